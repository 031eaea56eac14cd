"Synthetic hospitals: the same for everyone, true to their numbers, whole on disk."
import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage
from scipy.io import loadmat

from pe_advseg import phantom_files
from pe_advseg.ct import InputError
from pe_advseg.dicom import read_series
from pe_advseg.hospitals import HOSPITALS, draw_patient, is_head_first, place_grid
from pe_advseg.phantom import make_study, paint_arteries, paint_scene, scan
from pe_advseg.phantom_files import patient_name, write_hospital
from pe_advseg.vessels import SUBSEGMENTAL, TRUNK

SMALL = (12, 64, 64)
HARBOUR, VALLEY, ISLAND = (HOSPITALS[name] for name in ('harbour', 'valley', 'island'))


def fingerprint(job):
    "SHA-256 of everything in a study; runs in other processes too."
    name, patient, shape = job
    study = make_study(HOSPITALS[name], patient, shape)
    digest = hashlib.sha256()
    for array in (study.volume.hu, study.mask, study.clot_ids, study.artery): digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def folder_digest(folder):
    "Relative name -> SHA-256 of every file under a folder."
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).rglob('*')) if path.is_file()}


# --- determinism

def test_same_study_in_any_process_and_order():
    jobs = [(name, patient, SMALL) for name in HOSPITALS for patient in (1, 2)]
    here = [fingerprint(job) for job in reversed(jobs)][::-1]
    with ProcessPoolExecutor(2, multiprocessing.get_context('spawn')) as pool: there = list(pool.map(fingerprint, jobs))
    assert here == there
    assert len(set(here)) == len(jobs)     # and no two are alike


def test_files_do_not_depend_on_workers(tmp_path):
    for workers in (1, 2): write_hospital(tmp_path/f'w{workers}'/'valley', 'valley', 3, (6, 32, 32), workers=workers, progress=False)
    assert folder_digest(tmp_path/'w1'/'valley') == folder_digest(tmp_path/'w2'/'valley')


@pytest.mark.parametrize('layout, mask', [('fumpe', None), ('folder', 'seg'), ('folder', 'png'), ('folder', 'nifti')])
def test_files_are_the_same_bytes_twice(tmp_path, layout, mask):
    folders = [write_hospital(tmp_path/str(k), 'harbour', [3], (6, 32, 32), layout, mask, workers=1, progress=False) for k in range(2)]
    assert folder_digest(folders[0]) == folder_digest(folders[1])


# --- truth

@pytest.fixture(scope='module')
def people():
    "Number -> patient, the first 35 of harbour."
    return {number: draw_patient(HARBOUR, number) for number in range(1, 36)}


@pytest.mark.parametrize('name', HOSPITALS)
@pytest.mark.parametrize('patient', [3, 4])
def test_truth_is_consistent(name, patient):
    study = make_study(HOSPITALS[name], patient, (24, 128, 128))
    assert study.mask.dtype == np.uint8 and set(np.unique(study.mask)) <= {0, 1}
    assert study.volume.hu.shape == study.mask.shape == study.clot_ids.shape == study.artery.shape == (24, 128, 128)
    assert (study.artery[study.mask > 0] > 0).all(), 'clot outside an artery'
    assert (study.artery[study.mask > 0] > TRUNK).mean() > 0.9
    np.testing.assert_array_equal(study.mask > 0, study.clot_ids > 0)
    assert study.clot_ids.max() <= len(draw_patient(HOSPITALS[name], patient).emboli)
    assert study.volume.hu.min() >= -1024 and study.volume.hu.max() <= 3071


@pytest.mark.parametrize('name', HOSPITALS)
def test_hounsfield_units_before_noise(name):
    hospital, lumens = HOSPITALS[name], []
    for number in (2, 3, 6):
        patient = draw_patient(hospital, number)
        grid, _ = place_grid(hospital, patient, (30, 160, 160))
        scene = paint_scene(hospital, number, patient, grid)
        whole, blood = (scene.clot > 0.999) & (scene.artery > 0.999), (scene.clot == 0) & (scene.artery > 0.999)
        assert 30 <= scene.hu[whole].min() and scene.hu[whole].max() <= 100
        assert abs(np.median(scene.hu[blood]) - patient.contrast['artery']) < 25
        lumens.append(np.median(scene.hu[blood]))
        rim = (scene.artery > 0.999) & (scene.clot > 0.01) & (scene.clot < 0.99)   # partial volume lies between the two
        assert scene.hu[rim].min() >= 30 and scene.hu[rim].max() <= patient.contrast['artery'] + 1
    low, high = (mean + side*2*spread for mean, spread in [hospital.artery_hu] for side in (-1, 1))
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
        volumes.append(((clot >= 0.5) & (artery >= 0.5)).sum()*volume.voxel_ml)
    assert max(volumes)/min(volumes) < 1.1


# --- sampling never changes the patient

def test_shape_changes_sampling_only():
    coarse, fine = (make_study(HARBOUR, 3, shape).volume for shape in ((10, 48, 48), (20, 96, 96)))
    for corner in (0, 1):
        ends = [volume.to_patient(np.array(volume.shape)*corner - 0.5) for volume in (coarse, fine)]
        np.testing.assert_allclose(*ends, atol=1e-6)
    averaged = fine.hu.astype(float).reshape(10, 2, 48, 2, 48, 2).mean((1, 3, 5))
    assert np.corrcoef(averaged.ravel(), coarse.hu.ravel())[0, 1] > 0.93


def test_spacing_can_be_chosen():
    volume = make_study(HARBOUR, 3, (6, 40, 48), pixel_mm=3.0, z_mm=2.5).volume
    assert volume.spacing == (2.5, 3.0, 3.0) and volume.shape == (6, 40, 48)


@pytest.mark.parametrize('shape', [(10, 10), (1, 64, 64), ()])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match='three sizes'): make_study(HARBOUR, 1, shape)


# --- statistics

@pytest.fixture(scope='module')
def cohort(people):
    "Volume in mL, share of positive slices, foreground share and components of 35 patients, from geometry alone."
    rows = []
    for patient in people.values():
        grid, volume = place_grid(HARBOUR, patient, (60, 160, 160))
        artery, clot, _, _ = paint_arteries(grid, patient)
        mask = (clot >= 0.5) & (artery >= 0.5)
        rows.append((mask.sum()*volume.voxel_ml, mask.any((1, 2)).mean(), mask.mean(), ndimage.label(mask, np.ones((3, 3, 3)))[1]))
    return np.array(rows)


def test_statistics_are_near_fumpes(cohort):
    ml, slices, foreground, components = cohort.T
    positive = ml[ml > 0]
    assert 1 <= (ml == 0).sum() <= 4                                  # FUMPE: 2 of 35
    assert 4.5 < np.median(positive) < 9.5                            # 6.6 mL
    assert 0.2 < positive.min() < 1.0 and 35 < positive.max() < 75    # 0.3 to 62.2
    assert np.sort(ml)[-5:].sum()/ml.sum() > 0.35                     # five patients hold 54 %
    assert 0.20 < slices.mean() < 0.34                                # 26.2 %
    assert 0.0004 < foreground.mean() < 0.0008                        # 0.057 %
    assert 1.5 < components.mean() < 4                                # 95 in 35 patients


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
        return {key: np.mean([patient.contrast[key] for patient in contrasts]) for key in ('artery', 'vein', 'aorta', 'cava')} | {
            'noise': np.mean([patient.noise_hu for patient in contrasts]), 'fov': np.mean([patient.fov for patient in contrasts])}
    harbour, valley, island = measured(HARBOUR), measured(VALLEY), measured(ISLAND)
    assert valley['artery'] < harbour['artery'] - 80 and island['artery'] > harbour['artery'] + 60
    assert valley['aorta'] > valley['artery'] and harbour['aorta'] < harbour['artery'] and island['vein'] < 0.5*island['artery']
    assert valley['noise'] > 1.1*harbour['noise'] and harbour['noise'] > 1.3*island['noise']
    assert valley['fov'] > harbour['fov'] + 20 and island['cava'] > 2*valley['cava']
    assert len({HARBOUR.kernel, VALLEY.kernel, ISLAND.kernel}) == len({HARBOUR.slice_mm, VALLEY.slice_mm, ISLAND.slice_mm}) == 3


def test_a_hospital_without_pe_and_one_with_only_pe():
    assert not any(draw_patient(replace(HARBOUR, negative=1.0), number).emboli for number in range(1, 4))
    assert all(draw_patient(replace(HARBOUR, negative=0.0), number).emboli for number in (11, 23))   # healthy otherwise
    assert not any(draw_patient(HARBOUR, number).emboli for number in (11, 23))


# --- on disk

@pytest.mark.parametrize('layout, mask', [('fumpe', None), ('folder', 'nifti'), ('folder', 'seg'), ('folder', 'png')])
def test_read_back(tmp_path, layout, mask):
    datasets = pytest.importorskip('pe_advseg.datasets', reason='module datasets is not there yet')
    hospital = replace(HARBOUR, head_first=0.5)
    numbers = [next(n for n in range(1, 50) if is_head_first(hospital, n) == head_first and draw_patient(hospital, n).emboli) for head_first in (False, True)]
    folder = write_hospital(tmp_path/'h', hospital, numbers, SMALL, layout, mask, workers=1, progress=False)
    studies = {study.patient: study for study in datasets.find_studies(folder)}
    assert sorted(studies) == sorted(patient_name(hospital, number, layout) for number in numbers)
    for number in numbers:
        truth = make_study(hospital, number, SMALL)
        volume, read = datasets.read_study(studies[patient_name(hospital, number, layout)])
        np.testing.assert_array_equal(volume.hu, truth.volume.hu)
        np.testing.assert_array_equal(read, truth.mask)
        np.testing.assert_allclose(volume.affine(), truth.volume.affine(), atol=1e-3)


def test_unlabelled_hospital_has_no_mask(tmp_path):
    folder = write_hospital(tmp_path/'h', 'valley', 1, (6, 32, 32), mask=None, workers=1, progress=False)
    assert {path.suffix for path in folder.rglob('*') if path.is_file()} == {'.dcm', '.json'}


def test_a_negative_patient_gets_an_empty_mask(tmp_path):
    hospital = replace(HARBOUR, negative=1.0)
    for layout, mask in (('fumpe', None), ('folder', 'seg'), ('folder', 'png'), ('folder', 'nifti')):
        folder = write_hospital(tmp_path/f'{layout}{mask}', hospital, 1, (6, 32, 32), layout, mask, workers=1, progress=False)
        datasets = pytest.importorskip('pe_advseg.datasets', reason='module datasets is not there yet')
        (study,) = datasets.find_studies(folder)
        assert not datasets.read_study(study)[1].any()


def test_head_to_feet_in_fumpes_layout(tmp_path):
    "File order runs down the patient, and the mask follows the files."
    number = next(n for n in range(1, 60) if is_head_first(HARBOUR, n) and draw_patient(HARBOUR, n).emboli)
    folder = write_hospital(tmp_path/'h', HARBOUR, [number], SMALL, 'fumpe', workers=1, progress=False)
    files = sorted((folder/'CT_scans').rglob('*.dcm'))
    heights = [pydicom.dcmread(file).ImagePositionPatient[2] for file in files]
    assert [file.name for file in files][:2] == ['D0001.dcm', 'D0002.dcm'] and (np.diff(heights) < 0).all()
    stored = loadmat(folder/'GroundTruth'/f'PAT{number:03d}.mat')['Mask']
    assert stored.dtype == np.uint8 and stored.shape == (64, 64, 12)      # (y, x, z)
    np.testing.assert_array_equal(stored.transpose(2, 0, 1), make_study(HARBOUR, number, SMALL).mask[::-1])


def test_headers_say_synthetic_and_fumpes_are_blank(tmp_path):
    for layout in ('fumpe', 'folder'):
        folder = write_hospital(tmp_path/layout, 'harbour', 1, (6, 32, 32), layout, workers=1, progress=False)
        for file in folder.rglob('*.dcm'):
            header = pydicom.dcmread(file)
            assert header.SeriesDescription == header.ImageComments == 'synthetic CTPA'
            assert (header.StudyInstanceUID == header.SeriesInstanceUID == header.StudyDate == '0') == (layout == 'fumpe')
            assert float(header.SliceThickness) == HARBOUR.slice_mm
        assert 'synthetic' in (folder/'phantom.json').read_text()


def test_volume_survives_dicom_with_its_geometry(tmp_path):
    folder = write_hospital(tmp_path/'h', 'island', [2], SMALL, mask=None, workers=1, progress=False)
    read, made = read_series(folder/'island002'), make_study(ISLAND, 2, SMALL).volume
    np.testing.assert_array_equal(read.hu, made.hu)
    np.testing.assert_allclose(read.spacing, made.spacing, rtol=1e-4)


# --- whole or not at all

def test_nothing_is_made_twice(tmp_path, monkeypatch):
    folder = write_hospital(tmp_path/'h', 'valley', 2, (6, 32, 32), workers=1, progress=False)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    monkeypatch.setattr(phantom_files, 'write_patient', lambda *job: pytest.fail('made again'))
    assert write_hospital(folder, 'valley', 2, (6, 32, 32), workers=1, progress=False) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_stopped_and_gone_on(tmp_path, monkeypatch, error):
    real, made = phantom_files.make_study, []
    def failing(hospital, patient, *rest):
        if patient == 2: raise error('power cut')
        made.append(patient)
        return real(hospital, patient, *rest)
    monkeypatch.setattr(phantom_files, 'make_study', failing)
    with pytest.raises(error): write_hospital(tmp_path/'h', 'valley', 3, (6, 32, 32), workers=1, progress=False)
    assert not (tmp_path/'h').exists()
    assert not list(tmp_path.rglob('.making-*')), 'half a patient was left'
    monkeypatch.setattr(phantom_files, 'make_study', lambda hospital, patient, *rest: made.append(patient) or real(hospital, patient, *rest))
    folder = write_hospital(tmp_path/'h', 'valley', 3, (6, 32, 32), workers=1, progress=False)
    assert made == [1, 2, 3]
    whole = write_hospital(tmp_path/'again'/'h', 'valley', 3, (6, 32, 32), workers=1, progress=False)
    assert folder_digest(folder) == folder_digest(whole)


def test_a_failing_worker_leaves_no_folder(tmp_path):
    broken = replace(VALLEY, kernel='crisp')
    with pytest.raises(ValueError, match='no kernel'): write_hospital(tmp_path/'h', broken, 3, (6, 32, 32), workers=2, progress=False)
    assert not (tmp_path/'h').exists()


def test_unfinished_work_of_another_order_is_not_mixed_in(tmp_path, monkeypatch):
    real = phantom_files.make_study
    def failing(hospital, patient, *rest):
        if patient == 2: raise RuntimeError
        return real(hospital, patient, *rest)
    monkeypatch.setattr(phantom_files, 'make_study', failing)
    with pytest.raises(RuntimeError): write_hospital(tmp_path/'h', 'valley', 2, (6, 32, 32), workers=1, progress=False)
    monkeypatch.setattr(phantom_files, 'make_study', real)
    folder = write_hospital(tmp_path/'h', 'valley', 2, (8, 32, 32), workers=1, progress=False)
    assert {len(list(patient.glob('*.dcm'))) for patient in folder.iterdir() if patient.is_dir()} == {8}


def test_another_hospital_is_not_overwritten(tmp_path):
    folder = write_hospital(tmp_path/'h', 'valley', 1, (6, 32, 32), workers=1, progress=False)
    for change in ({'hospital': 'island'}, {'patients': 2}, {'shape': (8, 32, 32)}, {'mask': 'png'}):
        order = {'hospital': 'valley', 'patients': 1, 'shape': (6, 32, 32), 'mask': 'nifti'} | change
        with pytest.raises(InputError, match='something else'): write_hospital(folder, **order, workers=1, progress=False)


@pytest.mark.parametrize('order, message', [({'hospital': 'seaside'}, 'no hospital'), ({'patients': 0}, 'numbered from 1'), ({'patients': [0, 1]}, 'numbered from 1'),
                                            ({'patients': []}, 'numbered from 1'), ({'layout': 'bids'}, 'layout'), ({'mask': 'jpeg'}, 'mask')])
def test_orders_that_make_no_sense(tmp_path, order, message):
    with pytest.raises(ValueError, match=message): write_hospital(tmp_path/'h', **({'hospital': 'valley', 'patients': 1, 'shape': (6, 32, 32)} | order), progress=False)
    assert not (tmp_path/'h').exists()
