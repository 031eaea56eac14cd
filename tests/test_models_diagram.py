"""The architecture figure: numbers come from the modules, for every network and discriminator."""

import numpy as np
import pytest

from pe_advseg.models.diagram import draw_overview
from pe_advseg.models.discriminators import build_discriminator
from pe_advseg.models.module_shapes import read_shapes
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
    assert shapes['parts'] == {'map': [], 'features': [], 'joined': shapes['discriminator']}


def test_stems_stand_side_by_side_and_unlabelled_scans_have_a_way():
    network = build_network('hrnet_tiny')
    figure = draw_overview(network, build_discriminator('features', network.feature_channels), 96)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {'stem of the map', 'stem of the features', 'prediction,\nunlabelled'} <= set(texts)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == '--']
    assert len(dashed) >= 4, 'into the network, to the prediction, to the discriminator, back as pseudo-labels'


def test_slices_that_are_given_are_shown():
    network = build_network('hrnet_tiny')
    discriminator = build_discriminator('features', network.feature_channels)
    image, mask = np.zeros((40, 50)), np.zeros((40, 50), bool)
    mask[10:14, 20:26] = True
    assert len(draw_overview(network, discriminator, 96).axes[0].images) == 0
    figure = draw_overview(network, discriminator, 96, image, mask, image)
    figure.draw_without_rendering()
    assert len(figure.axes[0].images) == 3
