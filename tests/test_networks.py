"""HRNet against timm: forward pass, sizes, switches, dead weights; other networks; counting; weights from a file."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pe_advseg.models.hrnet import HRNet
from pe_advseg.models.hrnet_trunk import trunk_branches
from pe_advseg.models.networks import NETWORKS, build_network, count
from pe_advseg.models.padded_network import pad_to_multiple


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def timm_network(in_channels=1):
    "timm's own network with the segmentation HRNet's bilinear fuse layers."
    network = timm.create_model(
        'hrnet_w18_small', features_only=True, feature_location='', out_indices=(1, 2, 3, 4), in_chans=in_channels
    )
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = 'bilinear', False
    return network.eval()


@pytest.mark.parametrize('stage4', [False, True])
def test_branches_equal_timms_own_forward(stage4):
    theirs, image = timm_network(), torch.randn(2, 1, 96, 64)
    third = []
    theirs.stage3.register_forward_hook(lambda module, inputs, outputs: third.extend(t.clone() for t in outputs))
    ours = HRNet('w18_small', stage4=stage4, upsampling='bilinear').eval()
    missing = ours.trunk.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    assert missing == []
    with torch.no_grad():
        fourth, branches = theirs(image), trunk_branches(ours.trunk, image)
    expected = fourth if stage4 else third
    assert len(branches) == len(expected) and all(torch.equal(a, b) for a, b in zip(branches, expected, strict=True))


@pytest.mark.parametrize('size', [(400, 400), (321, 321), (57, 130), (17, 33), (1, 5)])
@pytest.mark.parametrize('options', [{}, {'stem_stride': 2}, {'stage4': True, 'upsampling': 'bilinear'}])
def test_any_size(size, options):
    network = HRNet('tiny', **options).eval()
    with torch.no_grad():
        logits, features = network(torch.randn(1, 1, *size), return_features=True)
    assert logits.shape == (1, 1, *size)
    assert features.shape == (1, network.feature_channels, -(-size[0] // network.stride), -(-size[1] // network.stride))


def test_padding_is_the_edge_and_multiples_are_left_alone():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert torch.equal(pad_to_multiple(image, 1), image)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 1, 4, 4) and padded[0, 0, 3, 3] == 5 and padded[0, 0, 0, 3] == 2


@pytest.mark.parametrize('variant, channels', [('w18_small', 112), ('w18', 126), ('w32', 224), ('w48', 336)])
def test_published_widths(variant, channels):
    with torch.device('meta'):
        assert HRNet(variant).feature_channels == channels
        assert HRNet(variant, stage4=True).feature_channels == channels + channels * 8 // 7


def test_large_doubles_the_resolution_of_every_branch():
    image = torch.randn(1, 1, 64, 64)
    ordinary, large = (HRNet('tiny', stem_stride=stride).eval() for stride in (4, 2))
    with torch.no_grad():
        for small, big in zip(*(trunk_branches(net.trunk, image) for net in (ordinary, large)), strict=True):
            assert big.shape[-1] == 2 * small.shape[-1] and big.shape[1] == small.shape[1]


@pytest.mark.parametrize(
    'options',
    [{}, {'stem_stride': 2}, {'stage4': True}, {'stem_stride': 2, 'keep_second_stem': True, 'upsampling': 'bilinear'}],
)
def test_no_weight_is_dead(options):
    network = HRNet('w18_small', **options)
    logits, features = network(torch.randn(2, 1, 64, 64), return_features=True)
    logits.square().mean().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


def test_released_head_has_the_released_epsilon():
    assert HRNet('tiny', released_head=True).head[1].eps == 0.1 and HRNet('tiny').head[1].eps == 1e-5


def test_all_upsampling_in_the_trunk_is_bilinear():
    modules = [module for module in HRNet('w18_small', stage4=True).modules() if isinstance(module, nn.Upsample)]
    assert modules and all(module.mode == 'bilinear' and module.align_corners is False for module in modules)


def test_imagenet_weights_from_a_file(tmp_path):
    "A classification checkpoint with three input channels, as timm publishes it."
    published = timm.create_model('hrnet_w18_small')
    save_file(published.state_dict(), tmp_path / 'model.safetensors')
    network = build_network('hrnet_w18_small', in_channels=1, pretrained=tmp_path / 'model.safetensors')
    assert torch.equal(
        network.trunk.stage3[0].branches[0][0].conv1.weight, published.stage3[0].branches[0][0].conv1.weight
    )
    torch.testing.assert_close(network.trunk.conv1.weight, published.conv1.weight.sum(1, keepdim=True))


def test_weights_out_of_reach_say_what_to_do(monkeypatch):
    def offline(*arguments, **options):
        raise OSError('Network is unreachable')

    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(RuntimeError, match='hrnet_w48.*without a network|hrnet_w48.*Without a network'):
        build_network('hrnet_w48', pretrained=True)


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    torch.save({'conv1.weight': Evil()}, tmp_path / 'weights.pth')
    with pytest.raises(RuntimeError, match='could not be loaded'):
        build_network('hrnet_w18_small', pretrained=tmp_path / 'weights.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'name, options',
    [
        ('unet', {'encoder': 'resnet18'}),
        ('deeplabv3plus', {'encoder': 'mobilenet_v2'}),
        ('unet', {'encoder': 'mobilenet_v2'}),
    ],
)
@pytest.mark.parametrize('size', [(96, 96), (65, 90)])
def test_rivals(name, options, size):
    network = build_network(name, in_channels=3, **options).eval()
    with torch.no_grad():
        logits, features = network(torch.randn(1, 3, *size), return_features=True)
        alone = network(torch.randn(1, 3, *size))
    assert logits.shape == alone.shape == (1, 1, *size)
    assert features.shape == (1, network.feature_channels, -(-size[0] // network.stride), -(-size[1] // network.stride))


def test_rivals_without_padding_equal_the_library():
    network, image = build_network('unet', encoder='resnet18').eval(), torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(image), network.model(image))


def test_rival_weights_out_of_reach(monkeypatch):
    import segmentation_models_pytorch as smp

    def offline(*arguments, **options):
        raise OSError('Network is unreachable')

    monkeypatch.setattr(smp, 'Unet', offline)
    with pytest.raises(RuntimeError, match='pretrained=False'):
        build_network('unet', pretrained=True)


def test_every_name_builds_and_learns_nothing_twice():
    for name in NETWORKS:
        with torch.device('meta'):
            network = build_network(name, in_channels=2)
        assert network.in_channels == 2 and network.feature_channels > 0 and network.stride > 0


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match='hrnet_tiny, hrnet_w18_small|hrnet_w18_small'):
        build_network('resnet')


def test_count_of_the_papers_network():
    with torch.device('meta'):
        network = build_network('hrnet_w48', stem_stride=2, upsampling='bilinear')
    cost = count(network, 400)
    decoder = (336 * 336 + 336) * 200**2
    assert round(cost['parameters'] / 1e6, 2) == 17.11
    assert round((cost['parameters'] + 64 * 64 * 9 + 128) / 1e6, 2) == 17.15
    assert round((cost['multiply_accumulates'] - decoder) / 1e9) == 117


def test_count_of_one_convolution_by_hand_and_the_network_is_left_alone():
    class One(nn.Module):
        in_channels = 3

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, image):
            return self.layer(image)

    network = One()
    assert count(network, 10) == {'parameters': 3 * 8 * 9 + 8, 'multiply_accumulates': 3 * 8 * 9 * 100}
    assert network.layer.weight.device.type == 'cpu' and network.training


def test_state_dict_goes_round(tmp_path):
    network, image = build_network('hrnet_tiny').eval(), torch.randn(1, 1, 64, 64)
    torch.save(network.state_dict(), tmp_path / 'state.pt')
    other = build_network('hrnet_tiny').eval()
    other.load_state_dict(torch.load(tmp_path / 'state.pt', weights_only=True))
    with torch.no_grad():
        assert torch.equal(network(image), other(image))


def test_same_seed_same_network_and_gradients():
    gradients = []
    for _ in range(2):
        torch.manual_seed(3)
        network, image = build_network('hrnet_tiny'), torch.randn(2, 1, 64, 64)
        network(image).square().mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    assert torch.equal(*gradients)
