"Measured on pictures: kernels, noise, calibres and clot are what they were made to be."

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from pe_advseg.lab.realism import calibres, measure_scan, noise_power
from pe_advseg.phantom.hospital import KERNELS
from pe_advseg.phantom.hospital_variants import only
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.patients import draw_patient, place_grid
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.reconstruction import modulation_transfer, scanner_response
from pe_advseg.phantom.scanner import scan_scene
from pe_advseg.phantom.scene import paint_arteries
from pe_advseg.phantom.vessel_tree import SEGMENTAL, TreeBuilder
from pe_advseg.phantom.voxels import VoxelGrid

HARBOUR = HOSPITALS['harbour']


@pytest.fixture(scope='module')
def people():
    "Number -> patient, the first 35 of harbour."
    return {number: draw_patient(HARBOUR, number) for number in range(1, 36)}


# --- measured


@pytest.mark.parametrize('blur', [0.3, 0.62])
def test_a_kernel_without_lift_is_a_gaussian_blur(blur):
    "Against scipy's blur, made in the image."
    picture = np.random.default_rng(0).normal(0, 100, (96, 96))
    blurred = np.fft.irfft2(np.fft.rfft2(picture) * scanner_response((blur, 0), (96, 96), 0.25)[0], (96, 96))
    np.testing.assert_allclose(blurred, ndimage.gaussian_filter(picture, blur / 0.25, mode='wrap', truncate=8), atol=1)


@pytest.mark.parametrize('kernel', KERNELS)
def test_noise_of_a_scan_has_the_power_of_filtered_white_noise(kernel):
    "Grain of an empty scan, measured square by square, beside the ramp of back-projection times the kernel."
    hospital = replace(only(HARBOUR), kernel=kernel)
    patient = replace(draw_patient(hospital, 1), noise_hu=30.0)
    grid, volume = place_grid(hospital, patient, (6, 320, 320), pixel_mm=0.6)
    flat = type('Flat', (), {'hu': np.full(grid.shape, 40, np.float32)})
    middle = scan_scene(hospital, 1, patient, grid, flat, 0.6)[
        :, 110:210, 110:210
    ]  # where noise hardly changes with place
    frequency, power = noise_power(middle, 0.6, count=10_000)
    known = (frequency + 0.01) * modulation_transfer(frequency, kernel) ** 2
    measured, known = power[3:] / power[3:].sum(), known[3:] / known[3:].sum()
    assert abs(measured - known).max() < 0.12 * known.max()


def test_power_adds_up_to_the_variance():
    white = np.random.default_rng(0).normal(0, 25, (8, 128, 128))
    frequency, power = noise_power(white, 0.5, size=32, count=10_000)
    assert np.mean(power[3:-1]) / 0.5**2 == pytest.approx(25**2, rel=0.03)


@pytest.mark.parametrize('radius', [2.5, 4.0, 9.0])
@pytest.mark.parametrize('way', [(0, 0, 1), (1, 0, 0), (1, 1, 1)])
def test_calibre_on_voxels_is_twice_the_radius(people, radius, way):
    builder = TreeBuilder()
    along = 40 * np.array(way) / np.linalg.norm(way)
    builder.tube(-along, along, (radius, radius), SEGMENTAL)
    patient = replace(people[11], arteries=builder.tree())
    axis = np.arange(-25, 25.5, 0.75, dtype=np.float32)
    found = calibres(paint_arteries(VoxelGrid(axis, axis, axis, 0.75, 0.75), patient)[3], (0.75,) * 3)
    assert found == {SEGMENTAL: pytest.approx(2 * radius, abs=0.8)}


def test_measurements_of_a_scan_with_truth():
    study = make_study(HARBOUR, 3, (40, 160, 160))
    measured = measure_scan(study.volume, study.mask)
    assert (
        measured['ml'] == pytest.approx(study.mask.sum() * np.prod(study.volume.spacing) / 1000)
        and len(measured['areas_mm2']) == study.mask.any((1, 2)).sum()
    )
    assert measured['clot_hu'] == pytest.approx(np.median(study.patient.clot_hu), abs=20)
    assert measured['lumen_hu'] == pytest.approx(study.patient.contrast['artery'], rel=0.2)
    assert measured['clots'] == ndimage.label(study.mask, np.ones((3, 3, 3)))[1]
    np.testing.assert_allclose(sum(measured['areas_mm2']) * study.volume.spacing[0] / 1000, measured['ml'])
