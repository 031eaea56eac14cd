"""The architecture figure: numbers come from the modules, for every network and discriminator."""

import pytest

from pe_advseg.models.diagram import draw_overview, read_shapes
from pe_advseg.models.discriminator import build_discriminator
from pe_advseg.models.networks import build_network


@pytest.mark.parametrize(
    'name, options',
    [
        ('hrnet_tiny', {}),
        ('hrnet_tiny', {'stage4': True, 'stem_stride': 2}),
        ('unet', {'encoder': 'resnet18'}),
        ('deeplabv3plus', {'encoder': 'resnet18'}),
    ],
)
@pytest.mark.parametrize(
    'kind, more', [('map', {}), ('features_as_released', {}), ('features', {'spectral_norm': True})]
)
def test_every_pair_can_be_drawn_and_is_left_as_it_was(name, options, kind, more):
    network = build_network(name, in_channels=3, **options)
    discriminator = build_discriminator(kind, network.feature_channels, **more)
    figure = draw_overview(network, discriminator, 96)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any('3 × 96 px' in text for text in texts)
    assert any('features' in text and 'concatenated' in text for text in texts) == discriminator.uses_features
    for module in (network, discriminator):
        assert module.training and all(weight.device.type == 'cpu' for weight in module.parameters())
        assert not any(child._forward_hooks for child in module.modules())


def test_shapes_of_the_papers_network():
    network = build_network('hrnet_w18_small', stem_stride=2)
    shapes = read_shapes(network, build_discriminator('features_as_released', network.feature_channels), 400)
    assert shapes['stages']['stage 3'] == [(16, 200), (32, 100), (64, 50)]
    assert shapes['features'] == (112, 200) and shapes['upsampling'] == ['CARAFE', 'CARAFE']
    assert shapes['discriminator'] == [(128, 200), (64, 100), (1, 50)]
