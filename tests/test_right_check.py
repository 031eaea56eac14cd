"What `check` says of every file, and of scans that are no chest with contrast medium."

import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from support.repository import ROOT
from support.right_check import abdomen, head, unenhanced, unpacked_archive
from typer.testing import CliRunner

from pe_advseg.core.errors import InputError
from pe_advseg.core.preprocessing import body_mask
from pe_advseg.core.volume import Volume
from pe_advseg.data import integrity
from pe_advseg.data.chest import check_chest, chest_doubts
from pe_advseg.data.folder_content import folder_content
from pe_advseg.data.integrity import check_folder
from pe_advseg.data.read_study import mask_doubts
from pe_advseg.data.scan_candidates import kind_of_file
from pe_advseg.data.scan_folders import find_scans, list_passed_over
from pe_advseg.data.study_report import NOTED, REFUSED, USABLE
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import write_series

SHARED = ROOT.parent / 'shared' / 'data'
FUMPE = Path(os.environ.get('PE_ADVSEG_FUMPE', SHARED / 'FUMPE'))


@pytest.fixture(scope='module')
def chest():
    return make_study(HOSPITALS['valley'], 3, (24, 96, 96)).volume


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp('made') / 'valley'
    return write_hospital(place, 'valley', 2, (16, 64, 64), layout='folder', mask='nifti', progress=False, workers=1)


@pytest.fixture
def hospital(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / 'valley'))


def save_nifti(array, volume, path):
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), volume.nifti_affine()), path)


def quick(folder, **options):
    return check_folder(folder, workers=0, progress=False, **options)


# --- plausible as what it claims ---


@pytest.mark.parametrize(
    'scan, doubt',
    [
        (head, 'no lungs are seen'),
        (abdomen, 'no lungs are seen'),
        (unenhanced, 'no contrast medium is seen'),
        (lambda: Volume(np.full((20, 40, 40), -1000, np.int16), (2, 5, 5), (0, 0, 0), np.eye(3)), 'no patient is seen'),
    ],
)
def test_what_is_no_chest_with_contrast_medium_is_refused_unless_asked_for(scan, doubt):
    volume = scan()
    with pytest.raises(InputError, match=f'the scan: {doubt}.*any_scan=True'):
        check_chest(volume)
    assert check_chest(volume, any_scan=True)[0].startswith(doubt)


@pytest.mark.parametrize('name', HOSPITALS)
@pytest.mark.parametrize('shape', [(8, 48, 48), (24, 96, 96)])
def test_patients_of_every_hospital_are_chests(name, shape):
    assert chest_doubts(make_study(HOSPITALS[name], 2, shape).volume) == []


@pytest.mark.parametrize('part', [np.s_[8:12], np.s_[:, 30:70, 20:60], np.s_[6:14, 25:75, 45:90]])
def test_a_part_of_a_chest_is_one(chest, part):
    "A few slices, and fields of view that cut the body."
    assert chest_doubts(dataclasses.replace(chest, hu=np.ascontiguousarray(chest.hu[part]))) == []


@pytest.mark.parametrize('place', ['unlabelled/LIDC_0001', 'unlabelled/RIDER_0109', 'unlabelled/RIDER_0117', 'FUMPE'])
def test_real_chests_pass_and_their_crops_too(place):
    scan = FUMPE / 'CT_scans' / 'PAT029' if place == 'FUMPE' else SHARED / place
    if not scan.is_dir():
        pytest.skip('the real scans are not on this machine')
    volume = read_volume(scan)
    middle = len(volume.hu) // 2
    crop = np.ascontiguousarray(volume.hu[middle : middle + 20, 150:350, 120:320])
    assert chest_doubts(volume) == chest_doubts(dataclasses.replace(volume, hu=crop, sources=())) == []


def test_a_head_is_not_annotated_unless_asked_for(tmp_path):
    from pe_advseg.annotation.annotator import load_annotator
    from pe_advseg.annotation.find_emboli import find_emboli
    from pe_advseg.annotation.options import Options
    from pe_advseg.annotation.page import write_page

    annotator, volume = load_annotator(), head()
    with pytest.raises(InputError, match='no lungs are seen'):
        find_emboli('scan.nii.gz', volume, annotator)
    annotation = find_emboli('scan.nii.gz', volume, annotator, Options(any_scan=True))
    trust = annotation.summary['trust']
    assert trust['warnings'][0].startswith('no lungs are seen') and trust['estimated_dice'] is None
    page = write_page(tmp_path / 'report.html', annotation).read_text(encoding='utf-8')
    assert 0 < page.index('no lungs are seen') < page.index('<h1>')


def test_the_remedy_of_a_refused_head_works(tmp_path):
    from pe_advseg.cli.annotate import annotate_command

    volume = head()
    (tmp_path / 'scans').mkdir()
    save_nifti(volume.hu, volume, tmp_path / 'scans/a.nii.gz')
    (tmp_path / 'scans/readme').write_text('words')
    words = [str(tmp_path / 'scans'), '--out', str(tmp_path / 'out'), '--workers', '0']
    refused = CliRunner().invoke(annotate_command, words)
    assert refused.exit_code == 1 and 'no lungs are seen' in refused.output and '--any-scan' in refused.output
    taken = CliRunner().invoke(annotate_command, [*words, '--any-scan'])
    assert taken.exit_code == 0 and taken.output.count('no lungs are seen') == 1
    assert taken.output.index('no lungs are seen') < taken.output.index('study-')
    assert 'passed over: 1 x text file' in taken.output


def test_the_page_does_not_take_ranges_for_trust(tmp_path):
    from pe_advseg.annotation.wording import ranges_in_words

    like = {'scan': {'slice_mm': 1.0}, 'warnings': [], 'calibration': 'on 24 held-out patients'}
    assert 'does not make the result right' in ranges_in_words(like)
    for change in ({'warnings': ['slices of 9 mm']}, {'calibration': 'none: the run was never calibrated'}):
        assert ranges_in_words(like | change) == ''


# --- a field of view that cuts the body ---


def test_a_clot_beside_cut_lung_lies_in_the_body(chest):
    "A vessel in the lung that reaches the edge of a small field of view."
    lung = np.argwhere(body_mask(chest.hu[12]) & (chest.hu[12] < -700))
    y, x = lung[np.abs(lung - np.median(lung, axis=0)).sum(1).argmin()]
    window = np.s_[10:14, y - 8 : y + 8, x - 8 : x + 8]
    cut = dataclasses.replace(chest, hu=np.ascontiguousarray(chest.hu[window]))
    mask = np.zeros(cut.hu.shape, np.uint8)
    mask[:, 5:10, 5:10] = 1
    cut.hu[mask > 0] = 60
    assert mask_doubts(cut, mask) == []


def test_a_mask_in_room_air_still_lies_outside(chest):
    mask = np.zeros(chest.hu.shape, np.uint8)
    mask[10:14, 1:8, 1:8] = 1
    assert any('outside the body' in note for note in mask_doubts(chest, mask))


# --- every file ---


def test_a_volume_file_beside_patient_folders_is_in_the_table(hospital, chest):
    save_nifti(chest.hu, chest, hospital / 'visitor.nii.gz')
    save_nifti(np.zeros(chest.hu.shape, np.uint8), chest, hospital / 'visitor_mask.nii.gz')
    (hospital / 'deep').mkdir()
    save_nifti(np.ascontiguousarray(chest.hu[:20]), chest, hospital / 'deep/ct.nii.gz')
    (hospital / 'notes.txt').write_text('words')
    left = []
    reports = quick(hospital, passed_over=left)
    assert [report.status for report in reports] == [USABLE, USABLE, NOTED, NOTED]
    assert all('training does not' in report.notes[0][1] for report in reports[2:])
    assert {report.clot_ml for report in reports[2:]} == {0.0, None}  # the mask beside it is read, too
    assert dict(left) == {'notes.txt': 'text file', 'phantom.json': 'text file'}
    annotated, _ = find_scans(hospital)
    content = folder_content(hospital)
    assert {study.scan for study in content.studies + content.beside} == set(annotated)


def test_everything_is_accounted_for_once(hospital, chest):
    "Each file belongs to a study, to a gap or to what is passed over."
    unpacked_archive(hospital / 'archive', chest)
    save_nifti(chest.hu, chest, hospital / 'visitor.nii.gz')
    (hospital / 'empty').mkdir()
    (hospital / 'a.zip').write_bytes(b'PK\x03\x04')
    content = folder_content(hospital)
    owners = [study.scan for study in content.studies + content.beside]
    owners += [study.mask for study in content.studies + content.beside if study.mask]
    owners += [hospital / name for name in content.gaps]
    files = [path for path in hospital.rglob('*') if path.is_file()]
    for path in files:
        inside = any(path == owner or owner in path.parents for owner in owners)
        assert inside != (path.relative_to(hospital).as_posix() in dict(content.passed_over)), path
    assert dict(content.passed_over)['a.zip'] == 'zip archive'


def test_a_file_or_a_patient_that_is_given_is_checked(hospital, chest):
    file = hospital / 'visitor.nii.gz'
    save_nifti(chest.hu, chest, file)
    (report,) = quick(file)
    assert report.status == USABLE and report.shape == chest.shape
    patient = next(path for path in sorted(hospital.iterdir()) if path.is_dir())
    (report,) = quick(patient)
    assert report.status == USABLE and report.clot_ml is not None
    (hospital / 'words.txt').write_text('words')
    (report,) = quick(hospital / 'words.txt')
    assert report.status == REFUSED and report.remedy


def test_segmentations_and_contours_of_an_archive_are_no_scans(tmp_path, chest):
    archive = unpacked_archive(tmp_path / 'archive', chest)
    scans, refused = find_scans(archive)
    assert scans == [archive / 'series-1'] and not refused
    kinds = [kind for _, kind in list_passed_over(archive, scans)]
    assert sorted(kinds) == ['Basic Text SR', 'MR Image', 'MR Image', 'RT Structure Set', 'Segmentation']
    left = []
    (report,) = quick(archive, passed_over=left)
    assert report.status == USABLE and sorted(kind for _, kind in left) == sorted(kinds)


def test_a_folder_without_a_scan_says_what_it_holds(tmp_path, chest):
    unpacked_archive(tmp_path / 'archive', chest)
    shutil.rmtree(tmp_path / 'archive/series-1')
    with pytest.raises(InputError, match='no scan was found in it, but 2 x MR Image, 1 x Basic Text SR'):
        find_scans(tmp_path / 'archive')
    with pytest.raises(InputError, match='no study was found; passed over: 2 x MR Image'):
        quick(tmp_path / 'archive')
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links/patient').symlink_to(tmp_path / 'archive')
    with pytest.raises(InputError, match='1 x link to a folder'):
        find_scans(tmp_path / 'links')


def test_many_files_of_one_kind_are_one_line(tmp_path, chest):
    write_series(chest, tmp_path / 'h/patient', 'P')
    for number in range(300):
        (tmp_path / 'h' / f'{number}.txt').write_text('words')
    result = CliRunner().invoke(scan_commands(), ['check', str(tmp_path / 'h'), '--workers', '0', *page(tmp_path)])
    assert result.exit_code == 0 and 'passed over: 300 x text file\n' in result.output
    assert '17.txt' not in result.output


def scan_commands():
    from pe_advseg.cli.scans import scan_commands

    return scan_commands


def page(folder):
    return ['--out', str(folder / 'page.html')]


def test_kinds_are_told_by_content(tmp_path, chest):
    (tmp_path / 'a.nii').write_bytes(pickle.dumps('words'))
    save_nifti(chest.hu, chest, tmp_path / 'b.nii.gz')
    (tmp_path / 'b.nii.gz').rename(tmp_path / 'b.txt')
    assert kind_of_file(tmp_path / 'a.nii') == 'file of unknown kind'
    assert kind_of_file(tmp_path / 'b.txt') == 'NIfTI volume'


# --- what check tells beforehand ---


def test_check_gives_the_contrast_note_of_annotate(tmp_path):
    volume = unenhanced()
    write_series(volume, tmp_path / 'h/patient', 'P')
    result = CliRunner().invoke(
        scan_commands(), ['check', str(tmp_path / 'h'), '--workers', '0', '--json', *page(tmp_path)]
    )
    (study,) = json.loads(result.stdout)['studies']
    notes = [(note['kind'], note['text']) for note in study['notes']]
    assert notes[0][0] == 'noted' and 'no contrast medium is seen' in notes[0][1]
    assert any(kind == 'for the shipped model' and text.startswith('contrast of about') for kind, text in notes)
    assert study['status'] == NOTED and 20 < study['contrast_hu'] < 110


def test_ranges_of_the_shipped_model_do_not_change_what_is_usable(hospital, tmp_path):
    result = CliRunner().invoke(scan_commands(), ['check', str(hospital), '--workers', '0', '--json', *page(tmp_path)])
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts['summary'] == {'refused': 0, 'usable with notes': 0, 'usable': 2}
    assert any(note['kind'] == 'for the shipped model' for note in facts['studies'][0]['notes'])


def test_pixels_are_read_once_even_where_the_mask_is_refused(hospital, monkeypatch):
    read = []

    def counting(study, **options):
        read.append(study.key)
        return integrity_read(study, **options)

    integrity_read = integrity.read_scan
    monkeypatch.setattr(integrity, 'read_scan', counting)
    for mask in hospital.glob('*/mask.nii.gz'):
        mask.write_bytes(b'no mask')
    reports = quick(hospital)
    assert [report.status for report in reports] == [REFUSED, REFUSED] and all(r.thumbnail for r in reports)
    assert len(read) == len(set(read)) == 2
