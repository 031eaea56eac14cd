"""Both readings of the discriminator: the release's defects shown, the corrected one sound; published weights."""

import pytest
import torch
from torch.nn import functional as F

from pe_advseg.core.errors import InputError
from pe_advseg.models.discriminator import soft_real_map
from pe_advseg.models.discriminators import build_discriminator
from pe_advseg.models.released_discriminator import load_released, released_real_map
from pe_advseg.training.losses import adversarial

KINDS = ['map', 'features_as_released', 'features']


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [(64, 64), (50, 97)])
def test_verdict_has_the_maps_size(kind, size):
    discriminator = build_discriminator(kind, 12)
    verdict = discriminator(torch.rand(2, 1, *size), torch.randn(2, 12, 20, 13))
    assert verdict.shape == (2, 1, *size)
    assert discriminator.uses_features == (kind != 'map') and discriminator.takes_logits == (
        kind == 'features_as_released'
    )


@pytest.mark.parametrize(
    'kind, options',
    [('map', {}), ('features_as_released', {}), ('features', {}), ('features', {'spectral_norm': True})],
)
def test_every_weight_gets_a_gradient_and_moves(kind, options):
    torch.manual_seed(0)
    discriminator = build_discriminator(kind, 12, **options)
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    before = {name: weight.detach().clone() for name, weight in discriminator.named_parameters()}
    adversarial(discriminator(torch.rand(2, 1, 64, 64), torch.randn(2, 12, 32, 32)), real=True).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in discriminator.parameters())
    optimiser.step()
    assert all((weight != before[name]).any() for name, weight in discriminator.named_parameters())


@pytest.mark.parametrize('kind', KINDS)
def test_the_map_gets_a_gradient(kind):
    discriminator = build_discriminator(kind, 12)
    map = torch.rand(1, 1, 64, 64, requires_grad=True)
    discriminator(map, torch.randn(1, 12, 32, 32)).sum().backward()
    assert map.grad.abs().sum() > 0


def test_released_without_features_gives_exactly_no_gradient():
    map = torch.randn(1, 1, 64, 64, requires_grad=True)
    discriminator = build_discriminator('features_as_released', 0)
    verdict = discriminator(map)
    verdict.sum().backward()
    assert (map.grad == 0).all() and not discriminator.uses_features
    assert torch.equal(verdict, discriminator(torch.randn(1, 1, 64, 64)))  # the same verdict on every map


def test_parent_without_features_does_give_one():
    map = torch.rand(1, 1, 64, 64, requires_grad=True)
    build_discriminator('map')(map).sum().backward()
    assert (map.grad != 0).any()


def test_features_are_detached_unless_asked_and_always_in_the_release():
    for kind, options, leaks in [
        ('features', {}, False),
        ('features', {'detach_features': False}, True),
        ('features_as_released', {}, True),
    ]:
        features = torch.randn(1, 12, 32, 32, requires_grad=True)
        map = torch.rand(1, 1, 64, 64, requires_grad=True)
        build_discriminator(kind, 12, **options)(map, features).sum().backward()
        assert (features.grad is not None) == leaks


def test_released_equals_its_definition():
    "337 channels, one softmax over all, three convolutions: written out once more."
    torch.manual_seed(0)
    discriminator = build_discriminator('features_as_released', 336)
    assert sum(weight.numel() for weight in discriminator.parameters()) == 822_465
    map, features, state = torch.randn(1, 1, 32, 32), torch.randn(1, 336, 32, 32), discriminator.state_dict()
    x = torch.exp(torch.cat([map, features], 1))
    x = x / x.sum(1, keepdim=True)
    for name in ('conv1', 'conv2'):
        x = F.conv2d(x, state[f'{name}.weight'], state[f'{name}.bias'], stride=2, padding=1)
        x = torch.where(x > 0, x, 0.2 * x)
    x = F.conv2d(x, state['classifier.weight'], state['classifier.bias'], stride=2, padding=1)
    assert x.shape == (1, 1, 4, 4)
    torch.testing.assert_close(
        discriminator(map, features), F.interpolate(x, (32, 32), mode='bilinear', align_corners=False)
    )


def test_corrected_cannot_be_told_by_the_scale_of_the_features():
    discriminator, map = build_discriminator('features', 12), torch.rand(1, 1, 64, 64)
    features = torch.randn(1, 12, 32, 32)
    torch.testing.assert_close(discriminator(map, features), discriminator(map, 100 * features), rtol=1e-3, atol=1e-4)


def test_corrected_on_blank_features_is_finite():
    assert torch.isfinite(
        build_discriminator('features', 12)(torch.rand(1, 1, 64, 64), torch.zeros(1, 12, 32, 32))
    ).all()


def test_spectral_norm_bounds_every_convolution():
    torch.manual_seed(0)
    discriminator = build_discriminator('features', 12, spectral_norm=True)
    for _ in range(50):
        discriminator(torch.rand(1, 1, 32, 32), torch.randn(1, 12, 8, 8))
    weights = [module.weight for module in discriminator.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(weights) == 6
    assert all(torch.linalg.matrix_norm(weight.flatten(1), 2) < 1.05 for weight in weights)
    assert 'reduce.parametrizations.weight.original' in discriminator.state_dict()


def test_corrected_separates_a_toy():
    "Maps that fit their features against maps that do not: at least 0.95 on unseen ones."

    def batch(n, seed):
        generator = torch.Generator().manual_seed(seed)
        vessel = F.interpolate((torch.rand(n, 1, 4, 4, generator=generator) < 0.5).float(), scale_factor=8)
        fits = (torch.rand(n, generator=generator) < 0.5).float()
        map = torch.where(fits.view(-1, 1, 1, 1) == 1, vessel, 1 - vessel) * 0.8 + 0.1
        return (
            map,
            F.avg_pool2d(vessel, 2).repeat(1, 6, 1, 1) + 0.1 * torch.randn(n, 6, 16, 16, generator=generator),
            fits,
        )

    torch.manual_seed(0)
    discriminator = build_discriminator('features', 6)
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for step in range(60):
        map, features, fits = batch(16, step)
        loss = F.binary_cross_entropy_with_logits(discriminator(map, features).mean((1, 2, 3)), fits)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    map, features, fits = batch(200, 10_000)
    with torch.no_grad():
        verdict = discriminator(map, features).mean((1, 2, 3))
    auroc = (verdict[fits == 1][:, None] > verdict[fits == 0]).float().mean()
    assert auroc > 0.95 and ((verdict > 0) == (fits == 1)).float().mean() > 0.95


def test_corrected_real_map_is_high_at_the_lesion_and_the_released_one_is_not():
    truth = torch.zeros(1, 8, 8, dtype=torch.uint8)
    truth[0, 2:4, 2:4], truth[0, 6] = 1, 255
    prediction = torch.rand(1, 1, 8, 8, requires_grad=True)
    real = soft_real_map(truth, prediction)
    assert not real.requires_grad and real.shape == (1, 1, 8, 8)
    assert (real[0, 0][truth[0] == 1] >= 0.9).all() and (real[0, 0][truth[0] == 0] <= 0.1).all()
    assert torch.equal(real[0, 0, 6], prediction[0, 0, 6])  # nothing given away where nobody judged
    released = released_real_map(truth)
    assert (released[0, 0][truth[0] == 1] == 0).all() and (released[0, 0][truth[0] == 0] == 1).all()


def test_soft_real_map_keeps_a_good_prediction_as_it_is():
    truth = torch.tensor([[[1, 0]]])
    prediction = torch.tensor([[[[0.97, 0.03]]]])
    assert torch.equal(soft_real_map(truth, prediction), prediction)


def test_ignored_pixels_cost_the_discriminator_nothing():
    verdict = torch.randn(2, 1, 8, 8, requires_grad=True)
    keep = torch.rand(2, 8, 8) < 0.5
    adversarial(verdict, real=False, keep=keep).backward()
    assert (verdict.grad[:, 0][~keep] == 0).all() and (verdict.grad[:, 0][keep] != 0).all()


# the authors' files
def state(channels=337):
    discriminator = build_discriminator('features_as_released', channels - 1)
    return dict(discriminator.state_dict())


@pytest.mark.parametrize('channels', [337, 113, 1])
def test_published_state_dict_loads_for_any_trunk(tmp_path, channels):
    torch.save(state(channels), tmp_path / 'd.pth')
    discriminator = load_released(tmp_path / 'd.pth')
    assert discriminator.feature_channels == channels - 1 and not discriminator.training


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda s: s.pop('conv2.bias'), 'other things'),
        (lambda s: s.update(extra=torch.zeros(1)), 'extra'),
        (
            lambda s: s.update({'conv2.weight': torch.zeros(64, 128, 3, 3)}),
            r'conv2.weight is \(64, 128, 3, 3\), expected \(64, 128, 4, 4\)',
        ),
        (lambda s: s.update({'conv1.weight': torch.zeros(128)}), r'conv1.weight is \(128,\)'),
        (lambda s: s.update({'conv1.bias': 3}), 'other things'),
    ],
)
def test_other_shapes_and_names_are_refused(tmp_path, spoil, words):
    contents = state()
    spoil(contents)
    torch.save(contents, tmp_path / 'd.pth')
    with pytest.raises(InputError, match=words) as error:
        load_released(tmp_path / 'd.pth')
    assert str(tmp_path) not in str(error.value)


def test_broken_missing_and_dangerous_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    (tmp_path / 'text.pth').write_text('not a checkpoint')
    torch.save(state(), tmp_path / 'whole.pth')
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:5000])
    torch.save({'conv1.weight': Evil()}, tmp_path / 'evil.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    for name in ('text.pth', 'half.pth', 'evil.pth', 'list.pth', 'missing.pth'):
        with pytest.raises(InputError, match=name):
            load_released(tmp_path / name)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda: build_discriminator('pixel', 3), 'map, features_as_released, features'),
        (lambda: build_discriminator('features'), 'needs feature_channels'),
        (lambda: build_discriminator('features', 4)(torch.rand(1, 1, 32, 32)), 'given none'),
        (
            lambda: build_discriminator('features', 4)(torch.rand(1, 1, 32, 32), torch.rand(1, 5, 8, 8)),
            r'\(n, 4, h, w\), given \(1, 5, 8, 8\)',
        ),
        (
            lambda: build_discriminator('features_as_released', 4)(torch.rand(1, 1, 32, 32), torch.rand(1, 5, 8, 8)),
            r'\(1, 5, 8, 8\)',
        ),
        (lambda: build_discriminator('map')(torch.rand(1, 2, 64, 64)), r'\(1, 2, 64, 64\)'),
        (lambda: soft_real_map(torch.zeros(1, 8, 8), torch.zeros(1, 1, 8, 9)), 'differ in shape'),
        (lambda: released_real_map(torch.zeros(8, 8)), 'truth must be'),
    ],
)
def test_errors_name_expected_and_given(call, words):
    with pytest.raises(ValueError, match=words):
        call()
