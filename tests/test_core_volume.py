"""Volumes and slices against torch and nibabel, which we did not write."""

import pickle

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pe_advseg.core.errors import InputError
from pe_advseg.core.preprocessing import (
    body_mask,
    center_crop_or_pad,
    resample_in_plane,
    resize_in_plane,
    scale_hu,
    scale_hu_per_slice,
)
from pe_advseg.core.volume import Volume


def oblique_volume(seed=0):
    rng = np.random.default_rng(seed)
    return Volume(
        rng.integers(-1000, 1000, (4, 5, 6)).astype(np.int16),
        tuple(rng.uniform(0.5, 3, 3)),
        tuple(rng.uniform(-300, 300, 3)),
        Rotation.random(random_state=seed).as_matrix(),
    )


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_geometry_agrees_with_nibabel_and_inverts(seed):
    volume = oblique_volume(seed)
    index = np.random.default_rng(seed).uniform(-5, 5, (7, 3))
    ras = nibabel.affines.apply_affine(volume.nifti_affine(), index[:, ::-1])
    np.testing.assert_allclose(ras * [-1, -1, 1], volume.to_patient(index), atol=1e-9)
    np.testing.assert_allclose(volume.to_index(volume.to_patient(index)), index, atol=1e-9)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(2, 40), st.integers(2, 40), st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_linear_resize_agrees_with_torch_antialias(height, width, new_height, new_width, seed):
    torch = pytest.importorskip('torch')
    image = np.random.default_rng(seed).normal(0, 300, (2, height, width)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None], (new_height, new_width), mode='bilinear', antialias=True, align_corners=False
    )[0].numpy()
    np.testing.assert_allclose(
        resize_in_plane(image, (new_height, new_width)), expected, atol=0.02
    )  # HU; float32 on both sides


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_mask_resize_by_whole_factors(height, width, factor, seed):
    mask = np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.uint8)
    larger = resize_in_plane(mask, (height * factor, width * factor), is_mask=True)
    np.testing.assert_array_equal(larger, np.kron(mask, np.ones((factor, factor), np.uint8)))
    np.testing.assert_array_equal(resize_in_plane(larger, (height, width), is_mask=True), mask)


def test_a_mask_pixel_half_covered_counts_and_less_does_not():
    mask = np.array([[1, 0], [1, 0]], np.uint8)
    assert resize_in_plane(mask, (1, 1), is_mask=True) == 1
    assert resize_in_plane(np.array([[1, 0], [0, 0]], np.uint8), (1, 1), is_mask=True) == 0


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None, derandomize=True)
def test_pad_and_crop_back(height, width, more_height, more_width):
    image = np.random.default_rng(0).integers(-5, 5, (2, height, width)).astype(np.int16)
    padded = center_crop_or_pad(image, (height + more_height, width + more_width), -1024)
    np.testing.assert_array_equal(center_crop_or_pad(padded, (height, width), 0), image)
    assert (padded == -1024).sum() == padded.size - image.size  # image values are above -1024


def test_types_are_kept_and_inputs_untouched():
    image = np.random.default_rng(0).integers(-1000, 1000, (3, 8, 8)).astype(np.int16)
    before = image.copy()
    assert scale_hu(image).dtype == scale_hu_per_slice(image).dtype == np.float32
    assert resample_in_plane(image, (1, 1), 0.7).dtype == np.int16
    same = resample_in_plane(image, (1, 1), 1)
    same[:] = 0
    body_mask(image)
    np.testing.assert_array_equal(image, before)


def test_constant_slice_per_slice_has_no_nan():
    np.testing.assert_array_equal(scale_hu_per_slice(np.full((2, 4, 4), 40, np.int16)), -1)


def test_input_error_survives_another_process():
    error = pickle.loads(pickle.dumps(InputError('a.dcm', 'cause', 'remedy')))
    assert (str(error), error.file) == ('a.dcm: cause. remedy.', 'a.dcm')
