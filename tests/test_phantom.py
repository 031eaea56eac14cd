"Synthetic hospitals: the same for everyone, true to their numbers, whole on disk."

import hashlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage
from scipy.io import loadmat

from pe_advseg.core.errors import InputError
from pe_advseg.lab.realism import calibres, noise_power, scan_facts
from pe_advseg.phantom import phantom_files
from pe_advseg.phantom.emboli import Embolus
from pe_advseg.phantom.hospital_variants import between, only, without
from pe_advseg.phantom.hospitals import (
    CAUSES,
    HOSPITALS,
    KERNELS,
    LIMITS,
    Hospital,
    draw_patient,
    is_head_first,
    place_grid,
)
from pe_advseg.phantom.phantom import (
    interruption,
    make_study,
    movements,
    paint_arteries,
    paint_scene,
    scan,
    scanner_response,
    shake,
    transfer,
)
from pe_advseg.phantom.phantom_files import patient_name, write_hospital
from pe_advseg.phantom.truth import artery_table, embolus_table, obstruction_index
from pe_advseg.phantom.vessels import MAIN, SEGMENTAL, SUBSEGMENTAL, TRUNK, Growing
from pe_advseg.phantom.voxels import Grid
from pe_advseg.scans.series import read_series

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


def folder_digest(folder):
    "Relative name -> SHA-256 of every file under a folder."
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob('*'))
        if path.is_file()
    }


# --- determinism


def test_same_study_in_any_process_and_order():
    jobs = [(name, patient, SMALL) for name in HOSPITALS for patient in (1, 2)]
    here = [fingerprint(job) for job in reversed(jobs)][::-1]
    with ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as pool:
        there = list(pool.map(fingerprint, jobs))
    assert here == there
    assert len(set(here)) == len(jobs)  # and no two are alike


def test_files_do_not_depend_on_workers(tmp_path):
    for workers in (1, 2):
        write_hospital(tmp_path / f'w{workers}' / 'valley', 'valley', 3, (6, 32, 32), workers=workers, progress=False)
    assert folder_digest(tmp_path / 'w1' / 'valley') == folder_digest(tmp_path / 'w2' / 'valley')


@pytest.mark.parametrize('layout, mask', [('fumpe', None), ('folder', 'seg'), ('folder', 'png'), ('folder', 'nifti')])
def test_files_are_the_same_bytes_twice(tmp_path, layout, mask):
    folders = [
        write_hospital(tmp_path / str(k), 'harbour', [3], (6, 32, 32), layout, mask, workers=1, progress=False)
        for k in range(2)
    ]
    assert folder_digest(folders[0]) == folder_digest(folders[1])


# --- truth


@pytest.fixture(scope='module')
def people():
    "Number -> patient, the first 35 of harbour."
    return {number: draw_patient(HARBOUR, number) for number in range(1, 36)}


def with_clot(name, numbers):
    "The first patients of a hospital who have PE; `numbers` where they do."
    later = (n for n in range(max(numbers) + 1, 99) if draw_patient(HOSPITALS[name], n).emboli)
    return [n if draw_patient(HOSPITALS[name], n).emboli else next(later) for n in numbers]


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
    middle = scan(replace(HARBOUR, streaks_hu=0), 1, patient, grid, flat, volume.spacing[1])[:, 54:74, 54:74]
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
                ndimage.label(mask, np.ones((3, 3, 3)))[1],
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


# --- on disk


@pytest.mark.parametrize('layout, mask', [('fumpe', None), ('folder', 'nifti'), ('folder', 'seg'), ('folder', 'png')])
def test_read_back(tmp_path, layout, mask):
    datasets = pytest.importorskip('pe_advseg.datasets', reason='module datasets is not there yet')
    hospital = replace(HARBOUR, head_first=0.5)
    numbers = [
        next(n for n in range(1, 50) if is_head_first(hospital, n) == head_first and draw_patient(hospital, n).emboli)
        for head_first in (False, True)
    ]
    folder = write_hospital(tmp_path / 'h', hospital, numbers, SMALL, layout, mask, workers=1, progress=False)
    studies = {study.patient: study for study in datasets.find_studies(folder)}
    assert sorted(studies) == sorted(patient_name(hospital, number, layout) for number in numbers)
    for number in numbers:
        truth = make_study(hospital, number, SMALL)
        volume, read = datasets.read_study(studies[patient_name(hospital, number, layout)])
        np.testing.assert_array_equal(volume.hu, truth.volume.hu)
        np.testing.assert_array_equal(read, truth.mask)
        np.testing.assert_allclose(volume.affine(), truth.volume.affine(), atol=1e-3)


def test_unlabelled_hospital_has_no_mask(tmp_path):
    folder = write_hospital(tmp_path / 'h', 'valley', 1, (6, 32, 32), mask=None, workers=1, progress=False)
    assert {path.suffix for path in folder.rglob('*') if path.is_file()} == {'.dcm', '.json'}


def test_a_negative_patient_gets_an_empty_mask(tmp_path):
    hospital = replace(HARBOUR, negative=1.0)
    for layout, mask in (('fumpe', None), ('folder', 'seg'), ('folder', 'png'), ('folder', 'nifti')):
        folder = write_hospital(
            tmp_path / f'{layout}{mask}', hospital, 1, (6, 32, 32), layout, mask, workers=1, progress=False
        )
        datasets = pytest.importorskip('pe_advseg.datasets', reason='module datasets is not there yet')
        (study,) = datasets.find_studies(folder)
        assert not datasets.read_study(study)[1].any()


def test_head_to_feet_in_fumpes_layout(tmp_path):
    "File order runs down the patient, and the mask follows the files."
    number = next(n for n in range(1, 60) if is_head_first(HARBOUR, n) and draw_patient(HARBOUR, n).emboli)
    folder = write_hospital(tmp_path / 'h', HARBOUR, [number], SMALL, 'fumpe', workers=1, progress=False)
    files = sorted((folder / 'CT_scans').rglob('*.dcm'))
    heights = [pydicom.dcmread(file).ImagePositionPatient[2] for file in files]
    assert [file.name for file in files][:2] == ['D0001.dcm', 'D0002.dcm'] and (np.diff(heights) < 0).all()
    stored = loadmat(folder / 'GroundTruth' / f'PAT{number:03d}.mat')['Mask']
    assert stored.dtype == np.uint8 and stored.shape == (64, 64, 12)  # (y, x, z)
    np.testing.assert_array_equal(stored.transpose(2, 0, 1), make_study(HARBOUR, number, SMALL).mask[::-1])


def test_headers_say_synthetic_and_fumpes_are_blank(tmp_path):
    for layout in ('fumpe', 'folder'):
        folder = write_hospital(tmp_path / layout, 'harbour', 1, (6, 32, 32), layout, workers=1, progress=False)
        for file in folder.rglob('*.dcm'):
            header = pydicom.dcmread(file)
            assert header.SeriesDescription == header.ImageComments == 'synthetic CTPA'
            assert (header.StudyInstanceUID == header.SeriesInstanceUID == header.StudyDate == '0') == (
                layout == 'fumpe'
            )
            assert float(header.SliceThickness) == HARBOUR.slice_mm
        assert 'synthetic' in (folder / 'phantom.json').read_text()


def test_volume_survives_dicom_with_its_geometry(tmp_path):
    folder = write_hospital(tmp_path / 'h', 'island', [2], SMALL, mask=None, workers=1, progress=False)
    read, made = read_series(folder / 'island002'), make_study(ISLAND, 2, SMALL).volume
    np.testing.assert_array_equal(read.hu, made.hu)
    np.testing.assert_allclose(read.spacing, made.spacing, rtol=1e-4)


# --- whole or not at all


def test_nothing_is_made_twice(tmp_path, monkeypatch):
    folder = write_hospital(tmp_path / 'h', 'valley', 2, (6, 32, 32), workers=1, progress=False)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    monkeypatch.setattr(phantom_files, 'write_patient', lambda *job: pytest.fail('made again'))
    assert write_hospital(folder, 'valley', 2, (6, 32, 32), workers=1, progress=False) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_stopped_and_gone_on(tmp_path, monkeypatch, error):
    real, made = phantom_files.make_study, []

    def failing(hospital, patient, *rest):
        if patient == 2:
            raise error('power cut')
        made.append(patient)
        return real(hospital, patient, *rest)

    monkeypatch.setattr(phantom_files, 'make_study', failing)
    with pytest.raises(error):
        write_hospital(tmp_path / 'h', 'valley', 3, (6, 32, 32), workers=1, progress=False)
    assert not (tmp_path / 'h').exists()
    assert not list(tmp_path.rglob('.making-*')), 'half a patient was left'
    monkeypatch.setattr(
        phantom_files,
        'make_study',
        lambda hospital, patient, *rest: made.append(patient) or real(hospital, patient, *rest),
    )
    folder = write_hospital(tmp_path / 'h', 'valley', 3, (6, 32, 32), workers=1, progress=False)
    assert made == [1, 2, 3]
    whole = write_hospital(tmp_path / 'again' / 'h', 'valley', 3, (6, 32, 32), workers=1, progress=False)
    assert folder_digest(folder) == folder_digest(whole)


def test_a_failing_worker_leaves_no_folder(tmp_path):
    broken = replace(VALLEY)
    object.__setattr__(broken, 'kernel', 'crisp')  # past the constructor, which would refuse it
    with pytest.raises(ValueError, match='no kernel'):
        write_hospital(tmp_path / 'h', broken, 3, (6, 32, 32), workers=2, progress=False)
    assert not (tmp_path / 'h').exists()


def test_unfinished_work_of_another_order_is_not_mixed_in(tmp_path, monkeypatch):
    real = phantom_files.make_study

    def failing(hospital, patient, *rest):
        if patient == 2:
            raise RuntimeError
        return real(hospital, patient, *rest)

    monkeypatch.setattr(phantom_files, 'make_study', failing)
    with pytest.raises(RuntimeError):
        write_hospital(tmp_path / 'h', 'valley', 2, (6, 32, 32), workers=1, progress=False)
    monkeypatch.setattr(phantom_files, 'make_study', real)
    folder = write_hospital(tmp_path / 'h', 'valley', 2, (8, 32, 32), workers=1, progress=False)
    assert {len(list(patient.glob('*.dcm'))) for patient in folder.iterdir() if patient.is_dir()} == {8}


def test_another_hospital_is_not_overwritten(tmp_path):
    folder = write_hospital(tmp_path / 'h', 'valley', 1, (6, 32, 32), workers=1, progress=False)
    for change in ({'hospital': 'island'}, {'patients': 2}, {'shape': (8, 32, 32)}, {'mask': 'png'}):
        order = {'hospital': 'valley', 'patients': 1, 'shape': (6, 32, 32), 'mask': 'nifti'} | change
        with pytest.raises(InputError, match='something else'):
            write_hospital(folder, **order, workers=1, progress=False)


@pytest.mark.parametrize(
    'order, message',
    [
        ({'hospital': 'seaside'}, 'no hospital'),
        ({'patients': 0}, 'numbered from 1'),
        ({'patients': [0, 1]}, 'numbered from 1'),
        ({'patients': []}, 'numbered from 1'),
        ({'layout': 'bids'}, 'layout'),
        ({'mask': 'jpeg'}, 'mask'),
    ],
)
def test_orders_that_make_no_sense(tmp_path, order, message):
    with pytest.raises(ValueError, match=message):
        write_hospital(
            tmp_path / 'h', **({'hospital': 'valley', 'patients': 1, 'shape': (6, 32, 32)} | order), progress=False
        )
    assert not (tmp_path / 'h').exists()


# --- the hospitals of committed results stay what they are

PINNED = {
    ('harbour', 1): (-385.417, 10, 3424),
    ('harbour', 3): (-370.898, 52, 5016),
    ('valley', 1): (-533.136, 34, 5265),
    ('valley', 3): (-460.858, 3, 6226),
    ('island', 1): (-483.169, 7, 3706),
    ('island', 3): (-553.337, 25, 4443),
}  # (hospital, patient) -> mean HU, clot voxels, sum of clot voxels' flat indices modulo 10007


@pytest.mark.parametrize('name, patient', PINNED)
def test_pictures_of_the_first_three_hospitals_do_not_change(name, patient):
    "Fields, causes and presets come and go; committed results hang on these pixels. (No hash: the last bit of an FFT may differ elsewhere.)"
    study = make_study(HOSPITALS[name], patient, (16, 64, 64))
    mean, count, places = PINNED[name, patient]
    assert abs(study.volume.hu.mean() - mean) < 0.02
    assert (int(study.mask.sum()), int(np.flatnonzero(study.mask).sum() % 10007)) == (count, places)


def test_there_are_presets_enough_and_the_first_three_come_first():
    assert list(HOSPITALS)[:3] == ['harbour', 'valley', 'island'] and len(HOSPITALS) >= 5
    assert len({hospital.seed for hospital in HOSPITALS.values()}) == len(HOSPITALS)
    assert all(name == hospital.name for name, hospital in HOSPITALS.items())
    assert all(
        200 <= hospital.artery_hu[0] <= 500 and 30 <= hospital.clot_hu[0] <= 100 for hospital in HOSPITALS.values()
    )


def test_moor_is_the_hardest_on_paper():
    "Contrast of blood over clot in units of noise, in patients as they are drawn."

    def ratio(hospital):
        people = [draw_patient(hospital, number) for number in range(1, 7)]
        return np.mean([(p.contrast['artery'] - np.mean(p.clot_hu)) / p.noise_hu for p in people if p.emboli])

    ratios = {name: ratio(hospital) for name, hospital in HOSPITALS.items()}
    assert min(ratios, key=ratios.get) == 'moor' and ratios['moor'] < 0.85 * ratios['valley']
    assert HOSPITALS['moor'].slice_mm > VALLEY.slice_mm


# --- one's own hospital


@pytest.mark.parametrize(
    'field, value',
    [
        ('name', ''),
        ('name', '../x'),
        ('name', 7),
        ('seed', -1),
        ('seed', 1.5),
        ('artery_hu', 360),
        ('artery_hu', (360,)),
        ('artery_hu', (360, -1)),
        ('artery_hu', (float('nan'), 1)),
        ('clot_hu', (400, 10)),
        ('kernel', 'crisp'),
        ('kernel', (0.4,)),
        ('kernel', (-1, 0)),
        ('slice_mm', 0),
        ('slice_mm', 'thin'),
        ('fov_mm', (365, 290)),
        ('size', (0.9, 9)),
        ('negative', 1.01),
        ('nodes', -1),
        ('nodes', None),
        ('motion', float('inf')),
        ('off', ('nurses',)),
    ],
)
def test_a_hospital_names_the_field_that_makes_no_sense(field, value):
    with pytest.raises(ValueError, match=f'hospital .*: {field} must be '):
        replace(HARBOUR, **{field: value})


def test_a_hospital_from_a_text_file_is_the_same(tmp_path):
    "As JSON has it: lists for tuples."
    assert Hospital(**json.loads(json.dumps(asdict(HOSPITALS['moor'])))) == HOSPITALS['moor']


# --- one cause at a time


@pytest.mark.parametrize('cause', CAUSES)
def test_a_cause_left_out_changes_nothing_else(cause):
    "Removed from a hospital that has them all: truth and patient stay, the picture changes where that cause was; put back, it is the same again."
    loud = replace(
        HOSPITALS['forest'],
        cava_hu=(1200, 0),
        negative=0.0,
        nodes=4,
        mucus=4,
        mixing=3,
        effusion=1,
        collapse=1,
        emphysema=1,
        interruption=1,
        motion=1,
        hardening_hu=150,
    )
    full, less = (make_study(hospital, 3, (16, 80, 80)) for hospital in (loud, without(loud, cause)))
    for name in ('mask', 'clot_ids', 'artery'):
        np.testing.assert_array_equal(getattr(full, name), getattr(less, name))
    changed = full.volume.hu != less.volume.hu
    assert changed.any() and (abs(full.volume.hu.astype(int) - less.volume.hu) > 5).mean() < 0.4
    assert less.patient.contrast == full.patient.contrast and less.patient.noise_hu == full.patient.noise_hu
    assert without(loud, cause).name == f'forest_without_{cause}'


def test_only_is_without_all_others():
    others = [cause for cause in CAUSES if cause != 'mucus']
    assert only(VALLEY, 'mucus', name='x') == without(VALLEY, *others, name='x')
    assert only(VALLEY).off == tuple(CAUSES) and without(without(VALLEY, 'nodes'), 'mucus').off == ('nodes', 'mucus')


def test_off_is_the_same_as_a_field_of_zero_where_nothing_else_is_drawn_from_its_numbers():
    for cause in ('effusion', 'collapse', 'emphysema', 'streaks', 'hardening', 'motion', 'interruption'):
        zero = replace(HOSPITALS['moor'], **{CAUSES[cause]: 0.0})
        np.testing.assert_array_equal(
            make_study(zero, 2, SMALL).volume.hu, make_study(without(HOSPITALS['moor'], cause), 2, SMALL).volume.hu
        )


def test_an_interrupted_bolus_darkens_arteries_alone_and_not_to_nothing():
    hospital = replace(only(HARBOUR, 'interruption'), interruption=1.0)
    for number in (2, 3):
        patient = draw_patient(hospital, number)
        grid, _ = place_grid(hospital, patient, (24, 96, 96))
        share = interruption(grid, hospital, number)
        assert share.shape == (24,) and share.min() >= 0.5 and share.max() <= 1
        scenes = [paint_scene(h, number, patient, grid) for h in (without(hospital, 'interruption'), hospital)]
        darker = scenes[0].hu - scenes[1].hu
        assert darker.min() > -1e-3 and (darker[scenes[0].artery == 0] == 0).all() and darker.max() > 20
    assert interruption(grid, HARBOUR, 2) is None


def test_motion_is_the_average_over_a_swing():
    "Against the average of copies shifted by a sine, made in the image and not in the spectrum."
    patient = draw_patient(HARBOUR, 1)
    grid, _ = place_grid(HARBOUR, patient, (4, 96, 96), pixel_mm=1.0)
    picture = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 500, (96, 96)), 2, mode='wrap')
    swing = [(a, 2 * a) for a in 1.5 * np.sin(2 * np.pi * (np.arange(64) + 0.5) / 64)]  # (x, y) mm
    expected = np.mean([ndimage.shift(picture, (y, x), order=5, mode='grid-wrap') for x, y in swing], axis=0)
    moved = shake(np.fft.rfft2(picture), [(float(grid.z[1]), 10.0, (1.5, 3.0), np.inf)], grid, float(grid.z[1]), 1.0)
    assert abs(moved - expected).max() < 0.01 * abs(picture).max()
    far = shake(np.fft.rfft2(picture), [(1000.0, 10.0, (1.5, 3.0), np.inf)], grid, 0.0, 1.0)
    np.testing.assert_allclose(far, picture, atol=1e-6)
    assert movements(HARBOUR, 1) == [] and len(movements(replace(HARBOUR, motion=1.0), 1)) == 2


# --- an adjustable gap


@pytest.mark.parametrize('one', HOSPITALS)
@pytest.mark.parametrize('other', ['harbour', 'moor', 'island'])
def test_between_two_hospitals(one, other):
    a, b = HOSPITALS[one], HOSPITALS[other]
    same = lambda x, y: {**asdict(x), 'name': 0, 'seed': 0} == {**asdict(y), 'name': 0, 'seed': 0}
    assert (
        same(between(a, b, 0), a)
        and same(between(a, b, 1), b)
        and between(a, b, 1).seed == between(a, b, 0).seed == b.seed
    )
    steps = [between(a, b, amount) for amount in (0, 0.2, 0.5, 0.9, 1)]
    for field in LIMITS:
        values = np.array([np.atleast_1d(getattr(step, field)) for step in steps], float)
        rising = np.diff(values, axis=0)
        assert ((rising >= -1e-9).all(0) | (rising <= 1e-9).all(0)).all(), field
    for amount in (-3, -0.5, 1.5, 5):
        between(a, b, amount)  # valid however far, or the constructor would refuse


def test_the_gap_widens_in_the_pictures():
    "Contrast over noise in the scan falls steadily on the way from harbour to moor and beyond."

    def contrast(amount):
        study = make_study(replace(only(between(HARBOUR, HOSPITALS['moor'], amount)), negative=0.0), 3, (24, 96, 96))
        blood = (study.artery > 0) & (study.artery <= 3) & (study.mask == 0)
        return (np.median(study.volume.hu[blood]) - np.median(study.volume.hu[study.mask > 0])) / study.patient.noise_hu

    ratios = [contrast(amount) for amount in (0, 0.5, 1, 1.3)]
    assert all(b < a for a, b in zip(ratios, ratios[1:])), ratios


# --- the truth


def test_truth_of_every_artery(people):
    for number in (1, 3, 15):
        patient = people[number]
        table, clots = artery_table(patient), embolus_table(patient)
        np.testing.assert_array_equal(table.generation, patient.arteries.generation)
        assert (
            (table.parent.to_numpy() < np.arange(len(table))).all()
            and table.obstruction.between(0, 1).all()
            and (table.calibre_mm > 0).all()
        )
        assert set(table.embolus) - {0} == set(clots.embolus) == set(range(1, len(patient.emboli) + 1))
        starts, ends = (table[[f'{end}_{axis}' for axis in 'xyz']].to_numpy() for end in ('start', 'end'))
        inner = table.parent.to_numpy() >= 0
        np.testing.assert_allclose(
            starts[inner], ends[table.parent[inner]], atol=1e-6
        )  # every piece begins where its parent ends


def test_truth_lies_where_the_voxels_are(people):
    "An artery that the table calls full is clot in the middle of the mask, at its place in patient space; one it calls free has none."
    found = {'full': [], 'free': []}
    for number in (3, 15, 18):
        study = make_study(HARBOUR, number, (60, 192, 192))
        table = study.arteries[(study.arteries.calibre_mm > 4) & (study.arteries.generation > TRUNK)]
        middle = (
            table[['start_x', 'start_y', 'start_z']].to_numpy() + table[['end_x', 'end_y', 'end_z']].to_numpy()
        ) / 2
        index = np.rint(study.volume.to_index(middle)).astype(int)
        inside = ((index >= 0) & (index < study.mask.shape)).all(1)
        table, (z, y, x) = table[inside], index[inside].T
        clot = study.mask[z, y, x]
        found['full'] += clot[table.filled > 0.95].tolist()
        found['free'] += clot[table.filled == 0].tolist()
        assert (
            0.6 < study.emboli.ml.sum() / (study.mask.sum() * study.volume.voxel_ml) < 1.2
        )  # round ends and forks are only in the mask
    assert (
        len(found['full']) > 3
        and np.mean(found['full']) > 0.9
        and len(found['free']) > 50
        and np.mean(found['free']) < 0.1
    )


@pytest.mark.parametrize('share, shift', [(0.25, 0.0), (0.49, 0.3), (0.64, 0.0), (1.0, 0.0)])
def test_obstruction_of_one_tube_is_its_share_of_voxels(people, share, shift):
    "A vertical artery of 6 mm radius with a clot along it: the table's number beside voxels counted in every slice."
    growing = Growing()
    growing.tube((0.0, 0, -30), (0.0, 0, 30), (6.0, 6.0), SEGMENTAL)
    tree, radius = growing.tree(), 6 * share**0.5
    side = np.array([shift * (6 - radius), 0, 0])
    clot = Embolus(
        'by hand',
        tree.start + side,
        tree.end + side,
        np.full((1, 2), 8.0 if share == 1 else radius),
        np.array([share == 1]),
        np.array([0]),
        1.0,
    )
    patient = replace(people[1], arteries=tree, emboli=[clot], clot_hu=[50])
    table = artery_table(patient)
    assert abs(table.obstruction[0] - share) < 0.02 and abs(table.filled[0] - share) < 0.02
    grid = Grid(
        *(
            np.arange(-half, half + step / 2, step, dtype=np.float32)
            for half, step in ((20, 2), (10, 0.25), (10, 0.25))
        ),
        0.25,
        2.0,
    )
    artery, clot, _, _ = paint_arteries(grid, patient)
    counted = ((clot >= 0.5) & (artery >= 0.5)).sum((1, 2)) / (artery >= 0.5).sum((1, 2))
    np.testing.assert_allclose(counted, table.obstruction[0], atol=0.03)


def test_obstruction_index_by_the_published_rule(people):
    "A whole tree, one main artery shut: two points for each of its segmental arteries out of 40."
    patient = people[11]
    table = artery_table(patient)
    assert obstruction_index(table) == 0
    right = table[(table.generation == MAIN) & (table.end_x < table.start_x)].index
    segmental = table[table.generation == SEGMENTAL]
    last = segmental[~segmental.segment.isin(segmental.parent)]
    assert len(last) == 20
    twelve = last.lobe.isin([0, 1, 2]).sum()
    assert obstruction_index(table.assign(obstruction=np.where(table.index == right[0], 1.0, 0))) == pytest.approx(
        100 * 2 * twelve / 40
    )
    assert obstruction_index(table.assign(obstruction=np.where(table.index == right[0], 0.5, 0))) == pytest.approx(
        100 * twelve / 40
    )
    assert obstruction_index(table.assign(obstruction=np.where(table.generation == TRUNK, 1.0, 0))) == 100
    twig = table[table.generation > SUBSEGMENTAL].index[0]
    assert obstruction_index(table.assign(obstruction=np.where(table.index == twig, 1.0, 0))) == pytest.approx(2.5)


def test_truth_beside_the_scans(tmp_path):
    folder = write_hospital(tmp_path / 'h', 'forest', 2, (6, 32, 32), workers=1, progress=False, truth=True)
    for number in (1, 2):
        record = json.loads((folder / f'forest{number:03d}.truth.json').read_text())
        assert 'synthetic' in record['what'] and len(record['emboli']) == len(
            draw_patient(HOSPITALS['forest'], number).emboli
        )
        assert len(record['arteries']) == len(draw_patient(HOSPITALS['forest'], number).arteries)
    from pe_advseg.data.layouts import find_studies

    assert len(find_studies(folder)) == 2
    assert not list(
        write_hospital(tmp_path / 'plain', 'forest', 1, (6, 32, 32), workers=1, progress=False).glob('*.truth.json')
    )


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
    middle = scan(hospital, 1, patient, grid, flat, 0.6)[:, 110:210, 110:210]  # where noise hardly changes with place
    frequency, power = noise_power(middle, 0.6, count=10_000)
    known = (frequency + 0.01) * transfer(frequency, kernel) ** 2
    measured, known = power[3:] / power[3:].sum(), known[3:] / known[3:].sum()
    assert abs(measured - known).max() < 0.12 * known.max()


def test_power_adds_up_to_the_variance():
    white = np.random.default_rng(0).normal(0, 25, (8, 128, 128))
    frequency, power = noise_power(white, 0.5, size=32, count=10_000)
    assert np.mean(power[3:-1]) / 0.5**2 == pytest.approx(25**2, rel=0.03)


@pytest.mark.parametrize('radius', [2.5, 4.0, 9.0])
@pytest.mark.parametrize('way', [(0, 0, 1), (1, 0, 0), (1, 1, 1)])
def test_calibre_on_voxels_is_twice_the_radius(people, radius, way):
    growing = Growing()
    along = 40 * np.array(way) / np.linalg.norm(way)
    growing.tube(-along, along, (radius, radius), SEGMENTAL)
    patient = replace(people[11], arteries=growing.tree())
    axis = np.arange(-25, 25.5, 0.75, dtype=np.float32)
    found = calibres(paint_arteries(Grid(axis, axis, axis, 0.75, 0.75), patient)[3], (0.75,) * 3)
    assert found == {SEGMENTAL: pytest.approx(2 * radius, abs=0.8)}


def test_facts_of_a_scan_with_truth():
    study = make_study(HARBOUR, 3, (40, 160, 160))
    facts = scan_facts(study.volume, study.mask)
    assert (
        facts['ml'] == pytest.approx(study.mask.sum() * np.prod(study.volume.spacing) / 1000)
        and len(facts['areas_mm2']) == study.mask.any((1, 2)).sum()
    )
    assert facts['clot_hu'] == pytest.approx(np.median(study.patient.clot_hu), abs=20)
    assert facts['lumen_hu'] == pytest.approx(study.patient.contrast['artery'], rel=0.2)
    assert facts['clots'] == ndimage.label(study.mask, np.ones((3, 3, 3)))[1]
    np.testing.assert_allclose(sum(facts['areas_mm2']) * study.volume.spacing[0] / 1000, facts['ml'])
