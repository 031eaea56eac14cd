"Synthetic hospitals on disk: whole or not at all, and the same bytes twice."

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy.io import loadmat

from pe_advseg.core.errors import InputError
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.read_study import read_study
from pe_advseg.phantom import patient_files, phantom_files
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.patient_files import patient_name
from pe_advseg.phantom.patients import draw_patient, is_head_first
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.scans.series import read_series

SMALL = (12, 64, 64)
HARBOUR, VALLEY, ISLAND = (HOSPITALS[name] for name in ('harbour', 'valley', 'island'))


def folder_digest(folder):
    "Relative name -> SHA-256 of every file under a folder."
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob('*'))
        if path.is_file()
    }


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


# --- on disk


@pytest.mark.parametrize('layout, mask', [('fumpe', None), ('folder', 'nifti'), ('folder', 'seg'), ('folder', 'png')])
def test_read_back(tmp_path, layout, mask):
    hospital = replace(HARBOUR, head_first=0.5)
    numbers = [
        next(n for n in range(1, 50) if is_head_first(hospital, n) == head_first and draw_patient(hospital, n).emboli)
        for head_first in (False, True)
    ]
    folder = write_hospital(tmp_path / 'h', hospital, numbers, SMALL, layout, mask, workers=1, progress=False)
    studies = {study.patient: study for study in find_studies(folder)}
    assert sorted(studies) == sorted(patient_name(hospital, number, layout) for number in numbers)
    for number in numbers:
        truth = make_study(hospital, number, SMALL)
        volume, read = read_study(studies[patient_name(hospital, number, layout)])
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
        (study,) = find_studies(folder)
        assert not read_study(study)[1].any()


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
    real, made = patient_files.make_study, []

    def failing(hospital, patient, *rest):
        if patient == 2:
            raise error('power cut')
        made.append(patient)
        return real(hospital, patient, *rest)

    monkeypatch.setattr(patient_files, 'make_study', failing)
    with pytest.raises(error):
        write_hospital(tmp_path / 'h', 'valley', 3, (6, 32, 32), workers=1, progress=False)
    assert not (tmp_path / 'h').exists()
    assert not list(tmp_path.rglob('.partial-*')), 'half a patient was left'
    monkeypatch.setattr(
        patient_files,
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
    real = patient_files.make_study

    def failing(hospital, patient, *rest):
        if patient == 2:
            raise RuntimeError
        return real(hospital, patient, *rest)

    monkeypatch.setattr(patient_files, 'make_study', failing)
    with pytest.raises(RuntimeError):
        write_hospital(tmp_path / 'h', 'valley', 2, (6, 32, 32), workers=1, progress=False)
    monkeypatch.setattr(patient_files, 'make_study', real)
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
