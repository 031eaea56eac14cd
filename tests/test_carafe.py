"""CARAFE against a slow loop written from the formula, in values and gradients; properties and faults."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from pe_advseg.models.carafe import CARAFE, _portable, carafe


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def slow_loop(features, logits, scale, kernel_size, groups):
    "One output pixel at a time, differentiable; written from the formula and independent of the module."
    n, channels, height, width = features.shape
    radius, per_group = kernel_size // 2, channels // groups
    pixels = []
    for image, channel, Y, X in itertools.product(
        range(n), range(channels), range(scale * height), range(scale * width)
    ):
        y, x, sub, group = Y // scale, X // scale, (Y % scale) * scale + X % scale, channel // per_group
        first = group * kernel_size**2 * scale**2
        kernel = torch.softmax(logits[image, first + sub : first + kernel_size**2 * scale**2 : scale**2, y, x], dim=0)
        total = features.new_zeros(())
        for tap, (i, j) in enumerate(itertools.product(range(-radius, radius + 1), repeat=2)):
            if 0 <= y + i < height and 0 <= x + j < width:
                total = total + kernel[tap] * features[image, channel, y + i, x + j]
        pixels.append(total)
    return torch.stack(pixels).view(n, channels, scale * height, scale * width)


def inputs(n, channels, height, width, scale, kernel_size, groups, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n + 10 * channels + 100 * height + width + scale)
    features = torch.randn(n, channels, height, width, generator=generator, dtype=dtype)
    logits = 2 * torch.randn(n, groups * kernel_size**2 * scale**2, height, width, generator=generator, dtype=dtype)
    return features, logits


CASES = [
    (2, 3, 3, 6, 2, 5, 1),
    (1, 4, 2, 5, 4, 5, 2),
    (1, 1, 2, 2, 8, 5, 1),
    (1, 3, 3, 9, 2, 3, 3),
    (1, 2, 4, 5, 2, 9, 1),
    (1, 2, 3, 4, 3, 7, 1),
    (2, 2, 1, 1, 2, 5, 2),
    (1, 2, 3, 5, 1, 1, 1),
    (1, 2, 3, 5, 1, 5, 1),
]


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('form', [carafe, _portable], ids=['fast', 'portable'])
def test_values_and_gradients_equal_the_slow_loop(case, form):
    scale, kernel_size, groups = case[4:]
    features, logits = (tensor.requires_grad_() for tensor in inputs(*case))
    expected = slow_loop(features, logits, scale, kernel_size, groups)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad(expected, (features, logits), weights)
    given = form(features, logits, scale, kernel_size, groups)
    gradients = torch.autograd.grad(given, (features, logits), weights)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)
    for gradient, expected_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize('case', [(1, 2, 2, 5, 2, 3, 2), (1, 1, 2, 3, 4, 3, 1), (1, 1, 2, 2, 2, 5, 1)])
def test_gradcheck(case):
    features, logits = (tensor.requires_grad_() for tensor in inputs(*case))
    assert torch.autograd.gradcheck(lambda x, w: carafe(x, w, *case[4:]), (features, logits))


def test_many_strips_equal_one(monkeypatch):
    features, logits = inputs(2, 3, 7, 6, 2, 5, 1)
    whole = carafe(features, logits, 2)
    monkeypatch.setattr('pe_advseg.models.carafe.STRIP_BYTES', 1)
    assert torch.equal(carafe(features, logits, 2), whole)


def test_constant_image_is_one_inside_and_darkens_at_the_border():
    features, logits = torch.ones(1, 2, 9, 9, dtype=torch.float64), torch.zeros(1, 100, 9, 9, dtype=torch.float64)
    out = carafe(features, logits, 2)
    torch.testing.assert_close(out[..., 4:-4, 4:-4], torch.ones(1, 2, 10, 10, dtype=torch.float64))
    assert out[0, 0, 0, 0].item() == pytest.approx(9 / 25)
    assert out[0, 0, 0, 9].item() == pytest.approx(15 / 25)


def test_a_one_hot_kernel_moves_the_image():
    features = torch.randn(1, 2, 6, 6)
    logits = torch.full((1, 25, 4, 6, 6), -1e4)
    logits[:, 2 * 5 + 3] = 1e4  # row 0, column +1
    out = carafe(features, logits.view(1, 100, 6, 6), 2)
    shifted = F.pad(features, (0, 1))[..., 1:]
    torch.testing.assert_close(out, F.interpolate(shifted, scale_factor=2))


def test_commutes_with_a_pointwise_convolution():
    features, logits = inputs(1, 6, 4, 5, 2, 5, 1)
    weight = torch.randn(3, 6, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(
        F.conv2d(carafe(features, logits, 2), weight), carafe(F.conv2d(features, weight), logits, 2)
    )


def test_memory_layout_does_not_matter():
    features, logits = inputs(2, 4, 6, 5, 4, 5, 2, torch.float32)
    channels_last = carafe(
        features.to(memory_format=torch.channels_last), logits.to(memory_format=torch.channels_last), 4, 5, 2
    )
    assert torch.equal(channels_last, carafe(features, logits, 4, 5, 2))


def test_deterministic_forward_and_backward():
    features, logits = (tensor.requires_grad_() for tensor in inputs(2, 8, 12, 13, 2, 5, 1, torch.float32))
    runs = [
        (out := carafe(features, logits, 2), *torch.autograd.grad(out.square().sum(), (features, logits)))
        for _ in range(2)
    ]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    features, logits = (tensor.to(dtype).requires_grad_() for tensor in inputs(1, 4, 5, 6, 2, 5, 1, torch.float32))
    out = carafe(features, logits, 2)
    exact = carafe(features.float(), logits.float(), 2)
    assert out.dtype == dtype
    assert torch.equal(out, exact.to(dtype))  # rounded once, at the end
    out.float().sum().backward()
    assert features.grad.dtype == logits.grad.dtype == dtype


def test_under_autocast_the_sums_stay_in_float32():
    torch.manual_seed(0)
    module, features = CARAFE(6, 2), torch.randn(1, 6, 5, 6, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        out = module(features)
        logits = module.encoder(module.compressor(features))
    assert logits.dtype == torch.bfloat16 and out.dtype == torch.float32
    torch.testing.assert_close(out, carafe(features, logits.float(), 2), rtol=0, atol=0)
    out.sum().backward()
    assert torch.isfinite(features.grad).all()


def test_only_one_input_needs_a_gradient():
    features, logits = inputs(1, 2, 3, 4, 2, 5, 1)
    carafe(features.requires_grad_(), logits, 2).sum().backward()
    assert features.grad is not None and logits.grad is None


def test_module_size_start_and_gradients():
    module = CARAFE(8, 4, groups=2, compressed_channels=16)
    features = torch.randn(2, 8, 6, 7, requires_grad=True)
    out = module(features)
    assert out.shape == (2, 8, 24, 28)
    mean = F.avg_pool2d(features, 5, stride=1, padding=2)  # counts the zero border, as CARAFE does
    torch.testing.assert_close(
        out, F.interpolate(mean, scale_factor=4), rtol=0, atol=0.2
    )  # nearly a 5x5 mean at the start
    out.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in module.parameters())


def test_meta_device_gives_shapes():
    with torch.device('meta'):
        assert CARAFE(8, 2)(torch.empty(1, 8, 5, 5)).shape == (1, 8, 10, 10)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (((1, 6, 4, 4), (1, 100, 4, 4), 4), ['(1, 400, 4, 4)', '(1, 100, 4, 4)']),
        (((1, 6, 4, 4), (1, 100, 4, 5), 2), ['(1, 100, 4, 4)', '(1, 100, 4, 5)']),
        (((2, 6, 4, 4), (1, 100, 4, 4), 2), ['(2, 100, 4, 4)']),
        (((1, 6, 4, 4), (1, 64, 4, 4), 2, 4), ['odd', '4']),
        (((1, 6, 4, 4), (1, 400, 4, 4), 2, 5, 4), ['6 channels', '4 groups']),
        (((6, 4, 4), (1, 100, 4, 4), 2), ['4-dimensional', '(6, 4, 4)']),
        (((1, 6, 4, 4), (1, 100, 4, 4), 0), ['scale']),
    ],
)
def test_bad_shapes_name_both_sides(arguments, words):
    features, logits, *rest = arguments
    with pytest.raises(ValueError) as error:
        carafe(torch.zeros(features), torch.zeros(logits), *rest)
    assert all(word in str(error.value) for word in words)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_equals_cpu():
    features, logits = inputs(2, 6, 9, 7, 4, 5, 2, torch.float32)
    torch.testing.assert_close(
        carafe(features.cuda(), logits.cuda(), 4, 5, 2).cpu(), carafe(features, logits, 4, 5, 2), rtol=1e-5, atol=1e-5
    )
