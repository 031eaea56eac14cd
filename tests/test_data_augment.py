"""Views of a batch against SciPy and scikit-image; order, division, 2.5D; what must never change."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pe_advseg.data.augment import boxes, mix, uniform, weak
from pe_advseg.data.augment_hu import contrast_phase, gamma, kernel, noise, other_scan
from pe_advseg.data.patches import IGNORE, Draw
from pe_advseg.data.style import fourier_style, match_histograms
from pe_advseg.data.transplant import move, overlaps, paste_clots, pick
from pe_advseg.models.networks import build_network


def smooth(count=3, slices=1, size=(40, 48), seed=0) -> torch.Tensor:
    "Images in [-1, 1] without sharp edges."
    noise_ = np.random.default_rng(seed).normal(size=(count, slices, *size))
    soft = ndimage.gaussian_filter(noise_, (0, 0, 3, 3))
    return torch.tensor(soft / np.abs(soft).max(), dtype=torch.float32)


def some_masks(count=3, size=(40, 48), seed=0) -> torch.Tensor:
    values = np.random.default_rng(seed).choice([0, 1, IGNORE], (count, *size), p=[0.8, 0.15, 0.05])
    return torch.tensor(values, dtype=torch.uint8)


# --- geometry -------------------------------------------------------------------------------------------------


def by_scipy(image, mask, angle, scale, flip):
    "What `weak` says it does, by scipy.ndimage.affine_transform: output pixel to input pixel, about the centre."
    (height, width), turn = image.shape, np.deg2rad(angle)
    matrix = np.array(
        [[scale * np.cos(turn), flip * scale * np.sin(turn)], [-scale * np.sin(turn), flip * scale * np.cos(turn)]]
    )
    centre = (np.array([height, width]) - 1) / 2
    offset = centre - matrix @ centre
    moved = ndimage.affine_transform(image + 1, matrix, offset, order=1, mode='constant', cval=0) - 1
    labels = ndimage.affine_transform(mask.astype(int), matrix, offset, order=0, mode='constant', cval=IGNORE)
    inside = ndimage.affine_transform(np.ones(image.shape), matrix, offset, order=1, mode='constant', cval=0) > 0.99
    return (
        moved,
        labels,
        ndimage.binary_erosion(inside, iterations=2),
    )  # at the border the two mix with 'outside' in their own ways


@pytest.mark.parametrize('size', [(40, 40), (40, 56)])
@pytest.mark.parametrize('step', [0, 1, 2])
def test_geometry_is_scipys(size, step):
    image, mask, draw = smooth(4, 1, size), some_masks(4, size), Draw(3, step)
    moved, labels = weak(image, mask, draw, degrees=25, zoom=0.3)

    def number(name, low, high):
        return uniform(draw, f'weak {name}', 4, low, high).flatten().double().numpy()

    for item, (angle, zoom, coin) in enumerate(
        zip(number('angle', -25, 25), number('zoom', -0.3, 0.3), number('flip', 0, 1), strict=True)
    ):
        expected, where, inside = by_scipy(
            image[item, 0].double().numpy(), mask[item].numpy(), angle, 1 + zoom, -1 if coin < 0.5 else 1
        )
        assert inside.mean() > 0.3
        np.testing.assert_allclose(moved[item, 0].numpy()[inside], expected[inside], atol=1e-5)
        assert (labels[item].numpy() == where)[inside].mean() > 0.999  # nearest: ties may fall either way


def test_slices_move_alike_and_masks_with_them():
    image = smooth(3, 1).repeat(1, 5, 1, 1)
    mask = (image[:, 0] > 0.3).to(torch.uint8)
    moved, labels = weak(image, mask, Draw(0, 0), degrees=20, zoom=0.2)
    for channel in range(5):
        assert torch.equal(moved[:, channel], moved[:, 0])
    assert ((moved[:, 0] > 0.3) == (labels == 1))[labels != IGNORE].float().mean() > 0.97


def test_what_comes_from_outside_is_ignored():
    moved, labels = weak(
        torch.zeros(8, 1, 32, 32), torch.zeros(8, 32, 32, dtype=torch.uint8), Draw(0, 0), degrees=45, zoom=0.5
    )
    assert (labels == IGNORE).any() and set(labels.unique().tolist()) == {0, IGNORE}
    assert (moved[:, 0][labels == IGNORE] < 0).all()  # at least half of it is air
    given_ = torch.full((2, 32, 32), IGNORE, dtype=torch.uint8)
    assert (weak(torch.zeros(2, 1, 32, 32), given_, Draw(0, 0))[1] == IGNORE).all()


# --- order and division ---------------------------------------------------------------------------------------

VIEWS = {
    'weak': lambda image, mask, draw, first: weak(image, mask, draw, first=first),
    'mix': lambda image, mask, draw, first: (
        mix(image, -image, boxes(len(image), image.shape[-2:], draw, first=first)),
    ),
    'fourier': lambda image, mask, draw, first: (fourier_style(image, -image.flip(-1)),),
    'histogram': lambda image, mask, draw, first: (match_histograms(image, image.flip(-1) ** 3),),
    'scan': lambda image, mask, draw, first: (other_scan(image, draw, first=first),),
    'paste': lambda image, mask, draw, first: paste_clots(
        image, mask, image.flip(-1), mask.flip(-1), draw, first=first, fit=0.2, lumen_hu=40.0, least=1
    ),
}


@pytest.mark.parametrize('name', VIEWS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 20), st.integers(1, 3), st.sampled_from([1, 3]))
def test_a_view_is_a_function_of_seed_step_and_item(name, seed, step, first, cut, slices):
    image, mask, draw = smooth(4, slices, (24, 20)), some_masks(4, (24, 20)), Draw(seed, step)
    state = torch.random.get_rng_state()
    whole = VIEWS[name](image, mask, draw, first)
    other_scan(image, Draw(seed, step + 1))  # something else in between
    parts = [
        VIEWS[name](image[part], mask[part], draw, first + (part.start or 0))
        for part in (slice(cut, None), slice(0, cut))
    ][::-1]
    for one, *rest in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.cat(rest), one, atol=1e-5, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global state is neither used nor moved
    assert torch.equal(whole[0], VIEWS[name](image, mask, draw, first)[0]) and torch.isfinite(whole[0]).all()


def test_default_views_are_those_of_the_committed_results():
    "Digest of draws by name and of boxes, taken before this file existed: committed results hang on them."
    draw, digest = Draw(1, 2), hashlib.sha256()
    for name in ('weak angle', 'weak zoom', 'weak flip', 'strong gamma', 'strong contrast', 'strong sigma'):
        digest.update(uniform(draw, name, 5, -1, 1, 3).numpy().tobytes())
    digest.update(boxes(5, (48, 40), draw, first=2).numpy().tobytes())
    assert digest.hexdigest()[:16] == '2e88319333e8d062'


@pytest.mark.parametrize('slices', [3, 5])
def test_25d_goes_all_the_way_into_a_network(slices):
    image, mask = smooth(2, slices, (32, 32)), some_masks(2, (32, 32))
    for view in VIEWS.values():
        assert view(image, mask, Draw(0, 0), 0)[0].shape == image.shape
    network = build_network('hrnet_tiny', in_channels=slices, upsampling='bilinear').eval()
    with torch.no_grad():
        assert network(other_scan(weak(image, mask, Draw(0, 0))[0], Draw(0, 0))).shape == (2, 1, 32, 32)


# --- style ----------------------------------------------------------------------------------------------------


def test_histograms_are_scikit_images():
    exposure = pytest.importorskip('skimage.exposure', reason='scikit-image is only there for this comparison')
    ours, theirs = smooth(2, 1, (64, 64)) * 0.8, smooth(2, 1, (64, 64), seed=1) ** 2 - 0.3
    matched = match_histograms(ours, theirs, above=-2.0, quantiles=2000)
    for a, b, got in zip(ours, theirs, matched, strict=True):
        off = np.abs(got.numpy() - exposure.match_histograms(a.numpy(), b.numpy()))
        # the few brightest pixels lie far apart, and ranks are counted from 0 here, from 1 there
        assert (off < 0.02).mean() > 0.998 and off.max() < 0.1


def test_histograms_by_quantiles_inside_the_body():
    ours, theirs = smooth(3, 2), smooth(3, 2, seed=5) * 0.5
    ours[:, :, :10], theirs[:, :, :, :20] = -1.0, -1.0  # air, in other places and amounts
    matched = match_histograms(ours, theirs)
    for a, b, got in zip(ours, theirs, matched, strict=True):
        assert torch.equal(got[a <= -0.999], a[a <= -0.999])
        for share in np.linspace(0.02, 0.98, 13):
            assert abs(got[a > -0.999].quantile(share) - b[b > -0.999].quantile(share)) < 0.01
        order = a[a > -0.999].argsort()
        assert (got[a > -0.999][order].diff() >= -1e-6).all()  # the darker stays the darker


def test_equal_pixels_stay_equal():
    ours = torch.tensor([-0.5, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]).view(1, 1, 3, 3)
    matched = match_histograms(ours, smooth(1, 1))
    for value in ours.unique():
        assert matched[ours == value].unique().numel() == 1
    assert torch.isfinite(match_histograms(torch.zeros(1, 1, 4, 4), smooth(1, 1, (4, 4)))).all()


# --- scanner --------------------------------------------------------------------------------------------------


def test_blur_is_scipys_gaussian():
    image = smooth(2, 3) + torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = ndimage.gaussian_filter(image.double().numpy(), (0, 0, 1, 1), mode='nearest', radius=(0, 0, 2, 2))
    np.testing.assert_allclose(kernel(image, torch.tensor(1.0)).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(
        kernel(image, torch.tensor(-1.0)), 2 * image - kernel(image, torch.tensor(1.0)), atol=1e-5, rtol=0
    )


def test_contrast_in_hounsfield_units():
    hu = torch.tensor([-160.0, -50.0, 60.0, 160.0, 300.0, 640.0]).view(1, 1, 2, 3)
    seen = contrast_phase((hu - 240) / 400, torch.tensor(0.5), (-160.0, 640.0)) * 400 + 240
    torch.testing.assert_close(seen, torch.tensor([-160.0, -50.0, 60.0, 110.0, 180.0, 350.0]).view(1, 1, 2, 3))


def test_noise_has_the_stated_spread_and_is_grainy():
    sigma = torch.tensor([5.0, 20.0, 60.0]).view(-1, 1, 1, 1)
    grain = noise(torch.zeros(3, 2, 96, 96), sigma, Draw(0, 0))[:, :, 4:-4, 4:-4] * 200
    np.testing.assert_allclose(grain.std((1, 2, 3)), sigma.flatten(), rtol=0.03)
    beside = (grain[..., 1:] * grain[..., :-1]).mean((1, 2, 3)) / grain.var((1, 2, 3))
    assert (beside > 0.2).all() and abs(grain[:, 0] * grain[:, 1]).mean() < grain.var((1, 2, 3)).max()


def test_gamma_keeps_black_and_white():
    ends = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    for power in (0.5, 1.0, 2.0):
        assert torch.equal(gamma(ends, torch.tensor(power)), ends)


# --- transplant -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(-9, 9), st.integers(-12, 12))
def test_moving_and_overlap_against_numpy(seed, rows, columns):
    rng = np.random.default_rng(seed)
    piece, lumen = rng.random((1, 10, 13)) < 0.3, rng.random((1, 10, 13)) < 0.5
    padded = np.pad(piece[0], ((10, 10), (13, 13)))
    expected = np.roll(padded, (rows, columns), (0, 1))[10:20, 13:26]
    moved = move(torch.tensor(piece[:, None]).float(), torch.tensor([rows]), torch.tensor([columns]))[0, 0].numpy() > 0
    np.testing.assert_array_equal(moved, expected)
    assert overlaps(torch.tensor(piece), torch.tensor(lumen))[0, rows, columns] == (expected & lumen[0]).sum()


def test_a_pick_is_uniform():
    allowed = torch.zeros(1, 5, 5, dtype=torch.bool)
    allowed[0, 0, 0] = allowed[0, 2, 3] = allowed[0, 4, 4] = True
    places = [
        tuple(int(part) for part in pick(allowed, torch.tensor([share]))[:2]) for share in np.linspace(0, 0.999, 300)
    ]
    assert {place: places.count(place) for place in set(places)} == {(0, 0): 100, (2, 3): 100, (4, 4): 100}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.floats(0.3, 1.0))
def test_clots_are_pasted_into_open_blood_and_nowhere_else(seed, slices, fit):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :44]
    hu, masks = np.full((4, slices, 40, 44), 40.0), np.zeros((4, 40, 44), np.uint8)
    for n in range(4):
        for _ in range(rng.integers(0, 4)):
            hu[n, :, (y - rng.integers(40)) ** 2 + (x - rng.integers(44)) ** 2 < rng.integers(3, 10) ** 2] = 230
        if rng.random() < 0.7:
            masks[n][(y - rng.integers(8, 32)) ** 2 + (x - rng.integers(8, 36)) ** 2 < rng.integers(2, 5) ** 2] = 1
    hu[(masks == 1)[:, None].repeat(slices, 1)] = 60
    masks[:, :3] = IGNORE
    image, mask = torch.tensor((hu - 40) / 200, dtype=torch.float32), torch.tensor(masks)
    allowed = torch.tensor(rng.random((4, 40, 44)) < 0.9)
    new, labels, pasted = paste_clots(
        image, mask, image.roll(1, 0), mask.roll(1, 0), Draw(seed, 0), allowed=allowed, fit=fit
    )
    lumen = (image > 0.55) & ((mask == 0) & allowed)[:, None]
    changed, added = new != image, (labels == 1) & (mask != 1)
    assert not (changed & ~lumen).any() and not (added & ~lumen[:, slices // 2]).any()
    assert torch.equal(labels[~added], mask[~added])
    assert (added.any((1, 2)) == pasted).all() and (changed.any((1, 2, 3)) == pasted).all()
    assert not pasted[(mask.roll(1, 0) == 1).sum((1, 2)) < 4].any()
    for n in pasted.nonzero().flatten():
        assert added[n].sum() >= 4
