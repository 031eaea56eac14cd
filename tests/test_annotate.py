"""Annotating scans of every kind, past damaged scans and killed processes, without a word about the patient.

Readers of other projects (nibabel, SimpleITK, highdicom, pydicom) check the files."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
import torch

from pe_advseg.annotation.annotate import annotate_scan
from pe_advseg.annotation.annotation import read_annotation
from pe_advseg.annotation.annotator import Annotator, load_annotator
from pe_advseg.annotation.batch import annotate_all
from pe_advseg.annotation.find_emboli import find_emboli
from pe_advseg.annotation.options import Options
from pe_advseg.core.errors import InputError
from pe_advseg.core.volume import Volume
from pe_advseg.evaluation.prediction import Inference
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.phantom.phantom_masks import write_plain_nifti
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import write_series
from pe_advseg.training.run_folder import find_run

ROOT = Path(__file__).resolve().parent.parent
FUMPE = ROOT.parent / 'shared' / 'data' / 'FUMPE'
COMMAND = Path(sys.executable).with_name('pe-advseg')


@pytest.fixture(scope='module')
def annotator():
    return load_annotator()


@pytest.fixture(scope='module')
def patient():
    "One in which the shipped model finds something: asserted, not hoped."
    study = make_study(HOSPITALS['delta'], 3, (12, 160, 160))
    return study.volume


def turned(volume, signs=(1, 1, 1), degrees=0.0):
    "The same array in another direction."
    angle = np.radians(degrees)
    around = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return Volume(volume.hu, volume.spacing, (12.5, -40.0, 7.0), around @ volume.direction * np.array(signs))


def as_files(volume, place, kind):
    "The scan as one kind of file."
    if kind == 'DICOM':
        write_series(
            volume, place / 'scan', 'Planted^Name', header=dict(PatientID='PLANTED-ID', PatientBirthDate='19500101')
        )
        return place / 'scan'
    if kind == 'NIfTI':
        write_plain_nifti(place / 'Planted.nii.gz', volume.hu, volume)
        return place / 'Planted.nii.gz'
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing[::-1])
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction[:, ::-1].ravel().tolist())
    path = place / ('Planted.nrrd' if kind == 'NRRD' else 'Planted.mha')
    SimpleITK.WriteImage(image, str(path))
    return path


# --- any readable scan ---


def in_order(points):
    "Points in an order that does not depend on that of the file."
    return points[np.lexsort(np.round(points, 2).T)]


@pytest.mark.parametrize('kind', ['DICOM', 'NIfTI', 'NRRD', 'MetaImage'])
@pytest.mark.parametrize('signs, degrees', [((1, 1, 1), 0), ((-1, 1, 1), 0), ((1, -1, -1), 0), ((1, 1, 1), 10)])
def test_every_kind_of_scan_gives_the_same_finding_in_the_same_place(
    tmp_path, annotator, patient, kind, signs, degrees
):
    import highdicom

    if kind == 'DICOM' and signs[0] < 0:
        pytest.skip('a DICOM series has no order of its own: it is read towards the head')
    volume = turned(patient, signs, degrees)
    target = annotate_scan(as_files(volume, tmp_path, kind), tmp_path / 'out', annotator)
    mask = nibabel.load(target / 'mask.nii.gz')
    assert mask.get_data_dtype() == np.uint16 and np.asarray(mask.dataobj).any()
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    by_nibabel = (inside @ mask.affine[:3, :3].T + mask.affine[:3, 3]) * [-1, -1, 1]  # RAS to LPS
    seg = highdicom.seg.segread(target / 'segmentation.dcm')
    found = seg.get_volume(combine_segments=True, relabel=True)
    by_highdicom = np.argwhere(found.array > 0) @ found.affine[:3, :3].T + found.affine[:3, 3]
    assert np.abs(in_order(by_nibabel) - in_order(by_highdicom)).max() < 0.02
    # where the clot is does not depend on how the file was turned: the brightness under it is that of the array
    index = np.rint((by_nibabel - volume.origin) @ np.linalg.inv(volume.direction * volume.spacing).T).astype(int)
    axes = [axis for axis in (1, 2) if signs[axis] < 0]  # the same patient, stored the usual way round
    usual_way_round = dataclasses.replace(patient, hu=np.flip(patient.hu, axes))
    straight = np.flip(find_emboli('x.nii.gz', usual_way_round, annotator).numbers, axes) > 0
    same = np.zeros_like(straight)
    same[tuple(index.T)] = True
    assert np.array_equal(same, straight)  # the network sees every scan the same way round
    assert (target / 'scan').is_dir() == (kind != 'DICOM')


def test_no_finding_is_a_result(tmp_path, annotator, patient):
    scan = as_files(patient, tmp_path, 'DICOM')
    target = annotate_scan(scan, tmp_path / 'out', annotator, Options(smallest_mm3=1e9, rtstruct=True))
    summary = json.loads((target / 'summary.json').read_text())
    assert (summary['result'], summary['emboli'], summary['volume_ml']) == ('no pulmonary embolism found', 0, 0)
    assert not np.asarray(nibabel.load(target / 'mask.nii.gz').dataobj).any()
    table = pd.read_csv(target / 'emboli.csv')[['embolus', 'volume_ml', 'side']]
    assert table.values.tolist() == [[0, 0, 'no pulmonary embolism found']]
    seg = pydicom.dcmread(target / 'segmentation.dcm')
    assert (
        seg.SegmentSequence[0].SegmentLabel == 'no pulmonary embolism found'
        and not seg.pixel_array.any()
        and seg.ContentLabel == 'NO_FINDING'
    )
    assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == 'No thrombus'
    assert len(read_annotation(target, read_volume(scan)).emboli) == 0
    assert 'No pulmonary embolism found' in (target / 'report.html').read_text()
    assert summary['trust']['estimated_dice'] is None


# --- nothing about the patient, everything about the training ---


def unpacked(path):
    "The bytes of a file, without the compression of .nii.gz."
    if path.suffix != '.gz':
        return path.read_bytes()
    return subprocess.run(['gzip', '-dc', path], capture_output=True, check=True).stdout


@pytest.mark.parametrize('pseudonym', [None, 'P7'])
def test_names_stay_where_dicom_demands_them(tmp_path, annotator, patient, pseudonym):
    place = tmp_path / 'Planted Patient'
    scan = as_files(patient, place, 'DICOM')
    out = tmp_path / 'out'
    annotate_all(scan, out, (), Options(rtstruct=True, pseudonym=pseudonym), workers=0, progress=False)
    allowed = {'segmentation.dcm', 'rtstruct.dcm'} if pseudonym is None else set()
    for path in out.rglob('*'):
        if path.is_dir():
            continue
        content = unpacked(path)
        # no short number: new UIDs are random digits and hold any of those sooner or later
        holds_a_name = bool(re.search(rb'(?i)planted|19500101', content))
        assert holds_a_name == (path.name in allowed), path.name
        assert 'lanted' not in str(path.relative_to(out))
    if pseudonym:
        assert pydicom.dcmread(next(out.glob('study-*')) / 'segmentation.dcm').PatientID == 'P7'


def test_letters_that_cannot_be_known_are_said_and_not_shown(tmp_path, annotator, patient):
    "A name in GB18030 in a file that states no character set."
    scan = as_files(patient, tmp_path, 'DICOM')
    for path in scan.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.pop('SpecificCharacterSet', None)
        dataset.save_as(path)
        content = path.read_bytes()
        assert b'Planted^Name' in content
        path.write_bytes(content.replace(b'Planted^Name', '王小^东'.encode('gb18030').ljust(12)))
    made = annotate_scan(scan, tmp_path / 'out', annotator)
    warnings = json.loads((made / 'summary.json').read_text())['trust']['warnings']
    found = [text for text in warnings if text.startswith('PatientName has letters')]
    assert len(found) == 1 and '王' not in found[0]


def test_every_output_says_that_the_training_was_synthetic(tmp_path, annotator, patient):
    words = b'Synthetic training, research only, not for diagnosis'
    scan = as_files(patient, tmp_path, 'DICOM')
    annotate_all(scan, tmp_path / 'out', (), Options(rtstruct=True), workers=0, progress=False)
    files = [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]
    assert {
        'segmentation.dcm',
        'rtstruct.dcm',
        'mask.nii.gz',
        'probability.nii.gz',
        'confidence.nii.gz',
        'emboli.csv',
        'summary.json',
        'report.html',
        'index.html',
        'annotations.csv',
    } == {path.name for path in files}
    for path in files:
        content = unpacked(path)
        assert words in content, path.name


def test_a_page_asks_nobody_for_anything(tmp_path, annotator, patient):
    target = annotate_scan(as_files(patient, tmp_path, 'DICOM'), tmp_path / 'out', annotator)
    page = (target / 'report.html').read_text()
    assert not re.search(r'(?i)(src|href)\s*=\s*["\']?(https?:)?//|<script|@import|url\((?!["\']?data:)', page)
    assert 'viewport' in page and len(page) < 1_500_000


# --- whole or not at all, on and on ---

_HALF = """
import os, sys
from pe_advseg.annotation import annotate
def die(*arguments, **options): os.kill(os.getpid(), 9)
annotate.write_page = die
annotate.annotate_scan(sys.argv[1], sys.argv[2])
"""


def test_a_killed_annotator_leaves_nothing_that_counts(tmp_path, annotator, patient):
    scan, out = as_files(patient, tmp_path, 'DICOM'), tmp_path / 'out'
    killed = subprocess.run([sys.executable, '-c', _HALF, str(scan), str(out)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not list(out.glob('study-*'))
    target = annotate_scan(scan, out, annotator)
    assert read_annotation(target, read_volume(scan)).summary['what'] == 'annotation'


def test_a_batch_goes_on_past_bad_scans_and_dead_workers(tmp_path):
    hospital = write_hospital(tmp_path / 'valley', 'valley', 4, (12, 64, 64), mask=None, workers=1, progress=False)
    folders = sorted(path for path in hospital.iterdir() if path.is_dir())
    for file in sorted(folders[1].rglob('*.dcm'))[5:6]:
        file.unlink()  # a slice is lost
    for file in folders[2].rglob('*.dcm'):
        file.write_bytes(b'')
    command = [COMMAND, 'annotate', hospital, '--out', tmp_path / 'out', '--workers', '2']
    environment = os.environ | {'COLUMNS': '200', 'TERM': 'dumb'}
    first = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert first.returncode == 1 and 'Traceback' not in first.stderr, first.stderr[-2000:]
    assert 'gap' in first.stderr and 'study-' in first.stdout and 'Synthetic training' in first.stdout
    table = pd.read_csv(tmp_path / 'out' / 'annotations.csv')
    assert (
        (table.result == 'not annotated').sum() >= 1
        and table.study.notna().sum() == 2
        and table.remedy.notna().sum() >= 1
    )
    assert not any(
        path.name in first.stdout + first.stderr + (tmp_path / 'out' / 'index.html').read_text() for path in folders
    )  # folders may be called like patients
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('study-*/*')}
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.stdout.count('(was there)') == 2
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('study-*/*')}


_KILLED = """
import os
if 'VICTIM' in os.environ:
    from pe_advseg.annotation import batch
    annotate = batch.annotate_if_new
    def die_of_one(scan, *rest):
        if scan.name == os.environ['VICTIM']: os.kill(os.getpid(), 9)
        return annotate(scan, *rest)
    batch.annotate_if_new = die_of_one
"""

_TWO_WORKERS = """
import sys
from pe_advseg.annotation.batch import annotate_all
results = annotate_all(sys.argv[1], sys.argv[2], workers=2, progress=False)
print([bool(result.target) for result in results], [result.cause for result in results])
"""


def test_a_scan_that_kills_its_worker_costs_itself(tmp_path):
    hospital = write_hospital(tmp_path / 'valley', 'valley', 2, (12, 64, 64), mask=None, workers=1, progress=False)
    victim = sorted(path.name for path in hospital.iterdir() if path.is_dir())[0]
    (tmp_path / 'sitecustomize.py').write_text(_KILLED)  # imported by every process, workers too
    script = tmp_path / 'script.py'
    script.write_text(_TWO_WORKERS)
    paths = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(
        [sys.executable, script, hospital, tmp_path / 'out'],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': paths, 'VICTIM': victim},
    )
    assert '[False, True]' in done.stdout and 'ended the process' in done.stdout, done.stdout + done.stderr[-2000:]


def test_nothing_is_overwritten(tmp_path, annotator, patient):
    scan = as_files(patient, tmp_path, 'NIfTI')
    target = annotate_scan(scan, tmp_path / 'out', annotator)
    before = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}
    with pytest.raises(InputError, match='other runs, options'):
        annotate_scan(scan, tmp_path / 'out', annotator, Options(threshold=0.4))
    assert before == {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}


@pytest.mark.parametrize('change', ['spacing', 'place', 'identifiers', 'kind'])
def test_the_same_pixels_are_not_the_same_scan(tmp_path, annotator, patient, change):
    "A scan of another size, place, identifiers or kind of file is another scan: neither result stands for the other."
    scan = as_files(patient, tmp_path, 'DICOM')
    target = annotate_scan(scan, tmp_path / 'out', annotator)
    before = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}
    other = dataclasses.replace(
        patient,
        **dict(spacing=dict(spacing=(patient.spacing[0], 0.9, 0.9)), place=dict(origin=(1.0, 2.0, 3.0))).get(
            change, {}
        ),
    )
    if change == 'kind':
        path = as_files(other, tmp_path, 'NIfTI')
    else:
        write_series(other, path := tmp_path / 'other', 'P2', seed_uid='others')
    with pytest.raises(InputError, match='same pixels'):
        annotate_scan(path, tmp_path / 'out', annotator)
    assert before == {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}
    shutil.copytree(scan, tmp_path / 'a copy')
    assert annotate_scan(tmp_path / 'a copy', tmp_path / 'out', annotator) == target  # a copy is


def test_names_of_files_and_folders_stay_out_of_what_is_written(tmp_path):
    hospital = tmp_path / 'hospital'
    for name, number in (('MEIER Eva', 1), ('SCHMIDT Hans', 2)):
        volume = make_study(HOSPITALS['valley'], number, (12, 64, 64)).volume
        write_series(
            volume, hospital / name / 'first', 'X', seed_uid=name, file_names=[f'{name}_{i:02d}.dcm' for i in range(12)]
        )
    (hospital / 'MEIER Eva/first/MEIER Eva_05.dcm').unlink()  # a gap
    shutil.copy(
        hospital / 'SCHMIDT Hans/first/SCHMIDT Hans_03.dcm', hospital / 'SCHMIDT Hans/first/SCHMIDT_again.dcm'
    )  # twice
    write_plain_nifti(hospital / 'BAUER_Karl.nii.gz', np.zeros((12, 64, 64), np.int16), volume)  # no air
    results = annotate_all(hospital, tmp_path / 'out', (), Options(pseudonym='P'), workers=0, progress=False)
    assert [bool(result.target) for result in results] == [False, False, True] and 'MEIER' in results[
        1
    ].cause + results[1].file  # whoever asked is told
    for path in (tmp_path / 'out').rglob('*'):
        content = path.read_bytes() if path.suffix != '.gz' and path.is_file() else b''
        assert not re.search(rb'(?i)meier|schmidt|bauer', content + path.name.encode()), path.name
    table = pd.read_csv(tmp_path / 'out' / 'annotations.csv')
    assert 'file 6 of 11' in table.cause[1] + table.file[1] and table.statement.notna().all()
    assert 'file 13 of 13' in (results[2].target / 'summary.json').read_text()
    annotate_all(hospital, tmp_path / 'out', (), Options(pseudonym='P'), workers=0, progress=False, names=True)
    assert 'MEIER' in (tmp_path / 'out' / 'annotations.csv').read_text()  # with names, if asked for


def test_a_folder_that_grows_keeps_its_pseudonyms(tmp_path):
    hospital = tmp_path / 'hospital'

    def add(number):
        volume = make_study(HOSPITALS['valley'], number, (12, 64, 64)).volume
        write_series(volume, hospital / f'p{number}', 'X', seed_uid=str(number))

    add(1)
    (first,) = annotate_all(hospital, tmp_path / 'out', (), Options(pseudonym='P'), progress=False)
    add(2)
    again = annotate_all(hospital, tmp_path / 'out', (), Options(pseudonym='P'), workers=0, progress=False)
    assert [(result.made, bool(result.target)) for result in again] == [(False, True), (True, True)] and again[
        0
    ].target == first.target
    (alone,) = annotate_all(hospital / 'p1', tmp_path / 'alone', (), Options(pseudonym='P'), progress=False)
    assert pydicom.dcmread(alone.target / 'segmentation.dcm').PatientID == 'P'


def test_what_cannot_be_written_is_said_before_the_network_works(tmp_path, annotator, patient, monkeypatch):
    import pe_advseg.annotation.find_emboli as module

    monkeypatch.setattr(module, 'predict_volume', lambda *_: pytest.fail('the network has worked'))
    scan = as_files(patient, tmp_path, 'DICOM')
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot be written to'):
        annotate_all(scan, tmp_path / 'file', progress=False)
    with pytest.raises(InputError, match='pseudonym'):
        Options(pseudonym='A^B')
    with pytest.raises(InputError, match='pseudonym'):
        annotate_all(scan.parent, tmp_path / 'out', (), Options(pseudonym='x' * 60), progress=False)


# --- inference ---


@pytest.mark.parametrize('batch', [1, 5, 12])
def test_the_batch_does_not_change_the_result(annotator, patient, batch):
    "Tolerance: one unit of the stored byte, 0.004 of probability."
    other = load_annotator((), Inference(batch=batch))
    ours, theirs = (find_emboli('x.nii.gz', patient, a) for a in (annotator, other))
    assert np.abs(ours.probability.astype(int) - theirs.probability).max() <= 1
    assert np.abs(ours.confidence.astype(int) - theirs.confidence).max() <= 1
    assert np.array_equal(ours.numbers, theirs.numbers)
    assert ours.summary['options'] == theirs.summary['options']


@pytest.mark.parametrize(
    'change', [dict(flips=True), dict(window=96, overlap=0.25), dict(precision='bf16'), dict(weights='ema')]
)
def test_ways_to_apply_a_network_agree_on_what_is_plain(annotator, patient, change):
    "Mirrored, in windows, in half precision: another number here and there, not another finding."
    ours, theirs = (
        find_emboli('x.nii.gz', patient, annotator),
        find_emboli('x.nii.gz', patient, load_annotator((), Inference(**change))),
    )
    a, b = ours.numbers > 0, theirs.numbers > 0
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.7
    assert theirs.summary['options'] == ours.summary['options'] | change  # it says how it was made


def test_an_ensemble_is_the_mean_of_its_runs(annotator, patient):
    twice = Annotator(annotator.predictors * 2, annotator.runs * 2, annotator.trusts * 2)
    one, two = find_emboli('x.nii.gz', patient, annotator), find_emboli('x.nii.gz', patient, twice)
    assert np.abs(one.probability.astype(int) - two.probability).max() <= 1 and len(two.summary['runs']) == 2
    assert two.summary['trust']['estimated_dice'] is None  # an ensemble was never calibrated


def test_a_network_that_predicts_no_numbers_is_refused(patient):
    broken = load_annotator()
    with torch.no_grad():
        next(broken.predictors[0].network.parameters()).fill_(float('nan'))
    with pytest.raises(ValueError, match='not numbers'):
        find_emboli('x.nii.gz', patient, broken)


@pytest.mark.skipif(
    not FUMPE.is_dir(), reason='the real patient lies in ../shared/data/FUMPE, which this checkout does not have'
)
def test_the_real_anonymised_patient(tmp_path, annotator):
    "Dates and UIDs of '0': reading, SEG and page all the same. A few of its slices, for speed."
    scan = tmp_path / 'scan'
    scan.mkdir()
    for file in sorted((FUMPE / 'CT_scans' / 'PAT029').glob('*.dcm'))[80:92]:
        shutil.copy(file, scan)
    target = annotate_scan(scan, tmp_path / 'out', annotator, Options(rtstruct=True))
    volume = read_volume(scan)
    assert read_annotation(target, volume).volume.shape == (12, 512, 512)
    assert pydicom.dcmread(target / 'segmentation.dcm').StudyInstanceUID.startswith('2.25.')


def test_results_among_the_scans_are_no_scans_and_pseudonyms_do_not_mix(tmp_path, annotator):
    hospital = write_hospital(tmp_path / 'valley', 'valley', 2, (12, 64, 64), mask=None, workers=1, progress=False)
    options = Options(rtstruct=True, pseudonym='P')
    first = annotate_all(hospital, hospital / 'out', (), options, workers=0, progress=False)
    again = annotate_all(hospital, hospital / 'out', (), options, workers=0, progress=False)
    assert [result.number for result in again] == [1, 2] and all(result.target and not result.made for result in again)
    names = {pydicom.dcmread(result.target / 'segmentation.dcm').PatientID for result in first}
    assert names == {f'P-{result.target.name[6:]}' for result in first} and len(names) == 2
    plain = annotate_all(
        hospital, hospital / 'out', (), Options(rtstruct=True), workers=0, progress=False
    )  # would leave a pseudonym where a name was asked for, or the other way round
    assert not any(result.target for result in plain) and 'pseudonym' in plain[0].cause
    alone = annotate_all(
        first[0].target.parents[1]
        / sorted(path.name for path in hospital.iterdir() if path.is_dir() and path.name != 'out')[0],
        hospital / 'out',
        (),
        Options(rtstruct=True, pseudonym=f'P-{first[0].target.name[6:]}'),
        workers=0,
        progress=False,
    )
    assert alone[0].target == first[0].target
    assert len(pd.read_csv(hospital / 'out' / 'annotations.csv')) == 2  # the other one is still shown


def test_a_calibration_is_for_the_weights_it_was_made_with(tmp_path, patient):
    "Copied beside other weights it promises nothing."
    run = shutil.copytree(find_run(''), tmp_path / 'run')
    trust = json.loads((run / 'trust.json').read_text())
    (run / 'trust.json').write_text(json.dumps(trust | dict(weights='0' * 12)))
    other = find_emboli('x.nii.gz', patient, load_annotator([run])).summary['trust']
    assert other['estimated_dice'] is None and 'other weights' in other['calibration']
    (run / 'trust.json').unlink()
    none = find_emboli('x.nii.gz', patient, load_annotator([run])).summary['trust']
    assert none['estimated_dice'] is None and 'never calibrated' in none['calibration']


def test_a_run_calibrated_since_makes_another_annotation(tmp_path, patient):
    run, scan = shutil.copytree(find_run(''), tmp_path / 'run'), as_files(patient, tmp_path, 'DICOM')
    kept = (run / 'trust.json').read_bytes()
    (run / 'trust.json').unlink()
    annotate_scan(scan, tmp_path / 'out', load_annotator([run]))
    (run / 'trust.json').write_bytes(kept)
    with pytest.raises(InputError, match='other runs'):
        annotate_scan(scan, tmp_path / 'out', load_annotator([run]))


@pytest.mark.parametrize(
    'scans, begun, words',
    [
        ((True, True), None, 'Synthetic training'),
        ((False, True), None, 'Synthetic labels'),
        ((False, False), None, 'Research only'),
        ((True, True), (False, True), 'Synthetic labels'),
        ((True, True), (False, False), 'Research only'),
        ((False, False), (True, True), 'Research only'),
    ],
)
def test_what_a_run_says_it_has_learnt_from(tmp_path, scans, begun, words):
    "Scans and masks of its own and of the run it began from."
    for name, said in (('start', begun), ('run', scans)):
        if said is None:
            continue
        shutil.copytree(find_run(''), tmp_path / name)
        learned = json.loads((tmp_path / name / 'labelled.json').read_text())
        (tmp_path / name / 'labelled.json').write_text(
            json.dumps(learned | dict(synthetic=said[0], synthetic_labels=said[1]))
        )
    config = json.loads((tmp_path / 'run/config.json').read_text())
    (tmp_path / 'run/config.json').write_text(json.dumps(config | dict(initial='start' if begun else '')))
    assert load_annotator([tmp_path / 'run']).statement.startswith(words)


def test_a_calibration_is_for_the_inference_it_was_made_with(patient):
    trusted = find_emboli('x.nii.gz', patient, load_annotator())
    mirrored = find_emboli('x.nii.gz', patient, load_annotator((), Inference(flips=True)))
    assert trusted.summary['trust']['estimated_dice'] is not None
    assert (
        mirrored.summary['trust']['estimated_dice'] is None and 'mirrored' in mirrored.summary['trust']['calibration']
    )
