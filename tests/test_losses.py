"""Losses against numpy written from the definitions; ignored pixels; faults."""

import numpy as np
import pytest
import torch

from pe_advseg.training.losses import adversarial, bce_dice, bce_dice_as_released, masked_bce


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def dice_cost_in_numpy(logits, target, smooth=1e-5):
    "1 - soft Dice of the kept pixels, numpy, float64."
    keep = target != 255
    p, t = 1 / (1 + np.exp(-logits[keep].astype(np.float64))), target[keep].astype(np.float64)
    return 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)


def bce_dice_in_numpy(logits, target, per_image):
    "Half the cross-entropy plus the cost of the whole batch, or the mean cost of the images with a kept pixel."
    kept = target != 255
    z, t = logits[kept].astype(np.float64), target[kept].astype(np.float64)
    p = 1 / (1 + np.exp(-z))
    cross_entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    costs = [dice_cost_in_numpy(logits, target)]
    if per_image:
        costs = [dice_cost_in_numpy(*image) for image in zip(logits, target, strict=True) if (image[1] != 255).any()]
    return 0.5 * cross_entropy.mean() + np.mean(costs)


@pytest.mark.parametrize('per_image', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_bce_dice_equals_numpy(seed, per_image):
    rng = np.random.default_rng(seed)
    logits, target = (
        rng.normal(size=(3, 9, 7)).astype(np.float32),
        rng.choice([0, 1, 255], size=(3, 9, 7), p=[0.6, 0.2, 0.2]),
    )
    if seed == 3:
        target[1] = 255  # one image entirely ignored
    loss = bce_dice(torch.tensor(logits)[:, None], torch.tensor(target), per_image=per_image)
    assert loss.item() == pytest.approx(bce_dice_in_numpy(logits, target, per_image), rel=1e-5)


@pytest.mark.parametrize('per_image', [False, True])
def test_soft_dice_equals_that_of_monai(per_image):
    from monai.losses import DiceLoss

    logits, target = torch.randn(3, 1, 9, 7), torch.randint(0, 2, (3, 1, 9, 7)).float()
    reference = DiceLoss(sigmoid=True, batch=not per_image, smooth_nr=1e-5, smooth_dr=1e-5)(logits, target)
    ours = bce_dice(logits, target, cross_entropy=0, per_image=per_image)
    assert ours.item() == pytest.approx(reference.item(), rel=1e-5)


def test_uint8_int_float_and_channel_axis_agree():
    logits, target = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    values = {bce_dice(logits, t).item() for t in (target, target.to(torch.uint8), target.float(), target[:, None])}
    assert len(values) == 1


@pytest.mark.parametrize(
    'loss',
    [
        bce_dice,
        lambda logits, target: masked_bce(logits, target, target != 255),
        lambda logits, target: adversarial(logits, True, target != 255),
    ],
)
def test_ignored_pixels_have_exactly_zero_gradient(loss):
    logits, target = torch.randn(2, 1, 8, 8, requires_grad=True), torch.randint(0, 2, (2, 8, 8))
    ignored = torch.rand(2, 8, 8) < 0.4
    target[ignored] = 255
    loss(logits, target).backward()
    assert (logits.grad[:, 0][ignored] == 0).all() and (logits.grad[:, 0][~ignored] != 0).any()


@pytest.mark.parametrize(
    'loss',
    [
        bce_dice,
        lambda logits, target: masked_bce(logits, target, target != 255),
        lambda logits, target: adversarial(logits, False, target != 255),
    ],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_an_all_ignored_batch_is_zero_and_no_nan(loss, dtype):
    logits = (10 * torch.randn(2, 1, 8, 8)).to(dtype).requires_grad_()
    value = loss(logits, torch.full((2, 8, 8), 255, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0 and (logits.grad == 0).all() and value.dtype == torch.float32


def test_what_lies_under_ignored_pixels_does_not_matter():
    logits, target = torch.randn(1, 1, 8, 8), torch.randint(0, 2, (1, 8, 8))
    target[0, :4] = 255
    other = logits.clone()
    other[0, 0, :4] = 30 * torch.randn(4, 8)
    assert bce_dice(logits, target).item() == bce_dice(other, target).item()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4]).view(1, 1, 2, 2).requires_grad_()
    for loss in (bce_dice(logits, torch.tensor([[[1, 0], [0, 1]]])), adversarial(logits, True)):
        logits.grad = None
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_empty_truth_and_sure_background_cost_nothing_much():
    "The smoothing makes an empty image with an empty prediction a perfect one."
    assert bce_dice(torch.full((1, 1, 8, 8), -40.0), torch.zeros(1, 8, 8)).item() == pytest.approx(0, abs=1e-6)


def test_perfect_and_worst():
    target = torch.zeros(1, 8, 8)
    target[0, :2] = 1
    sure = torch.where(target == 1, 30.0, -30.0)[:, None]
    assert bce_dice(sure, target) < 1e-4 and bce_dice(-sure, target) > 10


def test_gradcheck():
    logits = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 2, (2, 3, 3))
    target[0, 0, 0] = 255
    # inside all is float32, hence the coarse step and tolerance
    assert torch.autograd.gradcheck(lambda shifted: bce_dice(shifted, target), logits, eps=1e-2, atol=1e-2)


def test_as_released_takes_255_for_a_number():
    logits, target = torch.randn(1, 1, 8, 8), torch.randint(0, 2, (1, 8, 8))
    assert bce_dice_as_released(logits, target).item() == pytest.approx(bce_dice(logits, target).item(), rel=1e-6)
    target[0, 0] = 255
    z, t = logits.double().numpy().ravel(), target.double().numpy().ravel()
    p = 1 / (1 + np.exp(-z))
    expected = 0.5 * np.mean(np.log1p(np.exp(z)) - z * t) + 1 - (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)
    assert bce_dice_as_released(logits, target).item() == pytest.approx(expected, rel=1e-4)
    assert abs(bce_dice_as_released(logits, target).item() - bce_dice(logits, target).item()) > 0.1


def test_adversarial_is_minus_log_probability():
    verdict = torch.randn(3, 1, 4, 4)
    assert adversarial(verdict, True).item() == pytest.approx(
        -np.log(1 / (1 + np.exp(-verdict.numpy()))).mean(), rel=1e-5
    )
    assert adversarial(verdict, False).item() == pytest.approx(adversarial(-verdict, True).item(), rel=1e-6)


@pytest.mark.parametrize(
    'call',
    [
        lambda: bce_dice(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 9)),
        lambda: bce_dice(torch.zeros(2, 1, 8, 8), torch.zeros(1, 8, 8)),
        lambda: bce_dice(torch.zeros(2, 1, 8, 8), torch.zeros(8, 8)),
        lambda: bce_dice_as_released(torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, 8, 8)),
        lambda: masked_bce(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), torch.ones(1, 1, 8, 8)),
        lambda: adversarial(torch.zeros(2, 1, 8, 8), True, torch.ones(2, 4, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_not_broadcast(call):
    with pytest.raises(ValueError, match='does not fit the logits'):
        call()
