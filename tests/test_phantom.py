"Synthetic scans: the same for everyone, true to their numbers."

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from pe_advseg.core.lesions import label_lesions
from pe_advseg.phantom.hospital_variants import without
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.patients import draw_patient, place_grid
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.scanner import scan_scene
from pe_advseg.phantom.scene import paint_arteries, paint_scene
from pe_advseg.phantom.vessel_tree import SUBSEGMENTAL, TRUNK

SMALL = (12, 64, 64)
HARBOUR, VALLEY, ISLAND = (HOSPITALS[name] for name in ('harbour', 'valley', 'island'))


def fingerprint(job):
    "SHA-256 of everything in a study; runs in other processes too."
    name, patient, shape = job
    study = make_study(HOSPITALS[name], patient, shape)
    digest = hashlib.sha256()
    for array in (study.volume.hu, study.mask, study.clot_ids, study.artery):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@pytest.fixture(scope='module')
def people():
    "Number -> patient, the first 35 of harbour."
    return {number: draw_patient(HARBOUR, number) for number in range(1, 36)}


def with_clot(name, numbers):
    "The first patients of a hospital who have PE; `numbers` where they do."
    later = (n for n in range(max(numbers) + 1, 99) if draw_patient(HOSPITALS[name], n).emboli)
    return [n if draw_patient(HOSPITALS[name], n).emboli else next(later) for n in numbers]


# --- determinism


def test_same_study_in_any_process_and_order():
    jobs = [(name, patient, SMALL) for name in HOSPITALS for patient in (1, 2)]
    here = [fingerprint(job) for job in reversed(jobs)][::-1]
    with ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as pool:
        there = list(pool.map(fingerprint, jobs))
    assert here == there
    assert len(set(here)) == len(jobs)  # and no two are alike


# --- truth


@pytest.mark.parametrize('name', HOSPITALS)
@pytest.mark.parametrize('patient', [3, 4])
def test_truth_is_consistent(name, patient):
    (patient,) = with_clot(name, [patient])
    study = make_study(HOSPITALS[name], patient, (24, 128, 128))
    assert study.mask.dtype == np.uint8 and set(np.unique(study.mask)) <= {0, 1}
    assert study.volume.hu.shape == study.mask.shape == study.clot_ids.shape == study.artery.shape == (24, 128, 128)
    assert (study.artery[study.mask > 0] > 0).all(), 'clot outside an artery'
    assert (study.artery[study.mask > 0] > TRUNK).mean() > 0.8  # one at the fork reaches into the trunk
    np.testing.assert_array_equal(study.mask > 0, study.clot_ids > 0)
    assert study.clot_ids.max() <= len(draw_patient(HOSPITALS[name], patient).emboli)
    assert study.volume.hu.min() >= -1024 and study.volume.hu.max() <= 3071


@pytest.mark.parametrize('name', HOSPITALS)
def test_hounsfield_units_before_noise(name):
    hospital, lumens = without(HOSPITALS[name], 'interruption'), []
    for number in with_clot(name, [2, 3, 6]):
        patient = draw_patient(hospital, number)
        grid, _ = place_grid(hospital, patient, (30, 160, 160))
        scene = paint_scene(hospital, number, patient, grid)
        whole, blood = (scene.clot > 0.999) & (scene.artery > 0.999), (scene.clot == 0) & (scene.artery > 0.999)
        assert scene.hu[whole].min() >= 30 and scene.hu[whole].max() <= 100
        assert abs(np.median(scene.hu[blood]) - patient.contrast['artery']) < 25
        lumens.append(np.median(scene.hu[blood]))
        rim = (scene.artery > 0.999) & (scene.clot > 0.01) & (scene.clot < 0.99)  # partial volume lies between the two
        assert scene.hu[rim].min() >= 30 and scene.hu[rim].max() <= patient.contrast['artery'] + 1
    low, high = (mean + side * 2 * spread for mean, spread in [hospital.artery_hu] for side in (-1, 1))
    assert low - 25 <= min(lumens) and max(lumens) <= high + 25


def test_clot_and_blood_of_the_labelled_hospital_are_fumpes(people):
    for patient in people.values():
        assert 200 <= patient.contrast['artery'] <= 500
        assert all(30 <= hu <= 100 for hu in patient.clot_hu) and len(patient.clot_hu) == len(patient.emboli) <= 6


def test_noise_is_what_was_asked_for():
    patient = replace(draw_patient(HARBOUR, 1), noise_hu=30.0)
    grid, volume = place_grid(HARBOUR, patient, (4, 128, 128))
    flat = type('Flat', (), {'hu': np.zeros(grid.shape, np.float32)})
    middle = scan_scene(replace(HARBOUR, streaks_hu=0), 1, patient, grid, flat, volume.spacing[1])[:, 54:74, 54:74]
    assert 25 < middle.std() < 42


def test_partial_volume_keeps_the_mask_honest():
    "Clot volume hardly depends on voxels, and the mask on a coarse grid is the fine one, thinned."
    volumes = []
    for shape in ((40, 128, 128), (80, 256, 256), (120, 384, 384)):
        patient = draw_patient(HARBOUR, 3)
        grid, volume = place_grid(HARBOUR, patient, shape)
        artery, clot, _, _ = paint_arteries(grid, patient)
        volumes.append(((clot >= 0.5) & (artery >= 0.5)).sum() * volume.voxel_ml)
    assert max(volumes) / min(volumes) < 1.1


# --- sampling never changes the patient


def test_shape_changes_sampling_only():
    coarse, fine = (make_study(HARBOUR, 3, shape).volume for shape in ((10, 48, 48), (20, 96, 96)))
    for corner in (0, 1):
        ends = [volume.to_patient(np.array(volume.shape) * corner - 0.5) for volume in (coarse, fine)]
        np.testing.assert_allclose(*ends, atol=1e-6)
    averaged = fine.hu.astype(float).reshape(10, 2, 48, 2, 48, 2).mean((1, 3, 5))
    assert np.corrcoef(averaged.ravel(), coarse.hu.ravel())[0, 1] > 0.93


def test_spacing_can_be_chosen():
    volume = make_study(HARBOUR, 3, (6, 40, 48), pixel_mm=3.0, z_mm=2.5).volume
    assert volume.spacing == (2.5, 3.0, 3.0) and volume.shape == (6, 40, 48)


@pytest.mark.parametrize('shape', [(10, 10), (1, 64, 64), ()])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match='three sizes'):
        make_study(HARBOUR, 1, shape)


# --- statistics


@pytest.fixture(scope='module')
def cohort(people):
    "Volume in mL, share of positive slices, foreground share and components of 35 patients, from geometry alone."
    rows = []
    for patient in people.values():
        grid, volume = place_grid(HARBOUR, patient, (60, 160, 160))
        artery, clot, _, _ = paint_arteries(grid, patient)
        mask = (clot >= 0.5) & (artery >= 0.5)
        rows.append(
            (
                mask.sum() * volume.voxel_ml,
                mask.any((1, 2)).mean(),
                mask.mean(),
                label_lesions(mask)[1],
            )
        )
    return np.array(rows)


def test_statistics_are_near_fumpes(cohort):
    ml, slices, foreground, components = cohort.T
    positive = ml[ml > 0]
    assert 1 <= (ml == 0).sum() <= 4  # FUMPE: 2 of 35
    assert 4.5 < np.median(positive) < 9.5  # 6.6 mL
    assert 0.2 < positive.min() < 1.0 and 35 < positive.max() < 75  # 0.3 to 62.2
    assert np.sort(ml)[-5:].sum() / ml.sum() > 0.35  # five patients hold 54 %
    assert 0.20 < slices.mean() < 0.34  # 26.2 %
    assert 0.0004 < foreground.mean() < 0.0008  # 0.057 %
    assert 1.5 < components.mean() < 4  # 95 in 35 patients


def test_some_emboli_are_central_and_some_subsegmental(people):
    kinds, generations = set(), set()
    for patient in people.values():
        kinds |= {embolus.kind for embolus in patient.emboli}
        generations |= {int(patient.arteries.generation[embolus.artery[0]]) for embolus in patient.emboli}
    assert kinds == {'floating', 'mural', 'occlusive', 'saddle'}
    assert generations >= set(range(TRUNK + 1, SUBSEGMENTAL + 1))


def test_hospitals_differ_as_said():
    def measured(hospital):
        contrasts = [draw_patient(hospital, number) for number in range(1, 9)]
        return {
            key: np.mean([patient.contrast[key] for patient in contrasts])
            for key in ('artery', 'vein', 'aorta', 'cava')
        } | {
            'noise': np.mean([patient.noise_hu for patient in contrasts]),
            'fov': np.mean([patient.fov for patient in contrasts]),
        }

    harbour, valley, island = measured(HARBOUR), measured(VALLEY), measured(ISLAND)
    assert valley['artery'] < harbour['artery'] - 80 and island['artery'] > harbour['artery'] + 60
    assert (
        valley['aorta'] > valley['artery']
        and harbour['aorta'] < harbour['artery']
        and island['vein'] < 0.5 * island['artery']
    )
    assert valley['noise'] > 1.1 * harbour['noise'] and harbour['noise'] > 1.3 * island['noise']
    assert valley['fov'] > harbour['fov'] + 20 and island['cava'] > 2 * valley['cava']
    assert (
        len({HARBOUR.kernel, VALLEY.kernel, ISLAND.kernel})
        == len({HARBOUR.slice_mm, VALLEY.slice_mm, ISLAND.slice_mm})
        == 3
    )


def test_a_hospital_without_pe_and_one_with_only_pe():
    assert not any(draw_patient(replace(HARBOUR, negative=1.0), number).emboli for number in range(1, 4))
    assert all(draw_patient(replace(HARBOUR, negative=0.0), number).emboli for number in (11, 23))  # healthy otherwise
    assert not any(draw_patient(HARBOUR, number).emboli for number in (11, 23))
