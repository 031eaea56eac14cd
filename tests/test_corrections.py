"""Corrections: the store under processes that race and die, differences against sets of voxels, masks that other libraries wrote in every orientation, planted mirrors."""

import datetime
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pe_advseg.annotation.annotation import Annotation, write_arrays
from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.core.paths import whole_folder
from pe_advseg.core.probability import to_bytes
from pe_advseg.core.volume import Volume
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.read_study import read_embolus_ids, read_study
from pe_advseg.data.sources import is_synthetic
from pe_advseg.evaluation.findings import embolus_table
from pe_advseg.evaluation.metrics import lesion_scores, patient_scores
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.phantom.phantom_masks import write_plain_nifti
from pe_advseg.review.foreign_masks import MIRRORS, read_corrected
from pe_advseg.review.import_corrections import import_correction, import_corrections
from pe_advseg.review.store import compare_masks, current, history, match_emboli, read_correction, save_correction
from pe_advseg.scans.seg_write import write_segmentation
from pe_advseg.scans.series import pixel_digest, read_series, study_name
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
SHAPE = (12, 36, 40)
FUMPE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'FUMPE'
ORDERS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]


def make(seed=0, oblique=True, z_mm=1.5):
    "A body with air around it and three emboli without any symmetry; clot has 50 + its number HU and nothing else has, so the scan itself says where each must lie."
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = np.where(((y - 18) / 17) ** 2 + ((x - 20) / 19) ** 2 < 1, rng.integers(10, 45, SHAPE), -1000).astype(np.int16)
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[1:4, 9:14, 10:14] = 1
    numbers[3:5, 9, 13:21] = 1
    numbers[7:10, 20:24, 27:31] = 2
    numbers[8:11, 8, 24:30] = 3
    hu[numbers > 0] = 50 + numbers[numbers > 0]
    direction = Rotation.from_rotvec(rng.uniform(-0.2, 0.2, 3)).as_matrix() @ AXIAL if oblique else AXIAL
    return Volume(hu, (z_mm, 0.7, 0.8), tuple(rng.uniform(-200, 200, 3)), direction), numbers


def on_disk(folder, seed=0, name='SECRET', **options):
    "A scan written as DICOM and read again, and the numbers where its HU say they are."
    volume, _ = make(seed, **options)
    write_series(volume, folder, name, seed_uid=str(seed), reverse=bool(seed % 2))
    volume = read_series(folder)
    return volume, np.where((volume.hu > 50) & (volume.hu < 60), volume.hu - 50, 0).astype(np.uint16)


@pytest.fixture
def case(tmp_path):
    scan = tmp_path / 'scans' / 'patient1'
    volume, numbers = on_disk(scan, 1)
    return tmp_path, scan, volume, numbers


def annotated(folder, volume, numbers):
    "As much of an annotation as a correction needs."
    folder.mkdir(parents=True)
    write_plain_nifti(folder / 'mask.nii.gz', numbers, volume)
    (folder / 'summary.json').write_text(
        json.dumps(
            dict(
                what='annotation',
                scan=dict(digest=pixel_digest(volume)),
                runs=[dict(name='run7', weights='0123456789ab')],
                made='2026-11-27T00:00:00+00:00',
            )
        )
    )
    return folder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob('*') if path.is_file())


# ---- what changed


def as_sets(mask):
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return [set(map(tuple, np.argwhere(pieces == n))) for n in range(1, count + 1)]


@given(st.integers(0, 10**6), st.floats(0.02, 0.3), st.floats(0, 0.3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_groups_against_sets_of_voxels(seed, density, change):
    "The same grouping, made of Python sets that are joined as long as they share a voxel."
    rng = np.random.default_rng(seed)
    before = rng.random((4, 6, 7)) < density
    after = before ^ (rng.random(before.shape) < change * density)
    groups = [([a], []) for a in as_sets(before)] + [([], [b]) for b in as_sets(after)]
    cover = lambda group: set().union(*group[0], *group[1])
    shares = lambda g, h: any(a & b for a in g[0] for b in h[1]) or any(a & b for a in h[0] for b in g[1])
    joined = True
    while joined:
        joined = next(((g, h) for g, h in itertools.combinations(groups, 2) if shares(g, h)), None)
        if joined:
            groups = [g for g in groups if g is not joined[0] and g is not joined[1]] + [
                (joined[0][0] + joined[1][0], joined[0][1] + joined[1][1])
            ]
    expected = sorted((len(a), len(b), len(set().union(*a) & set().union(*b)), len(cover((a, b)))) for a, b in groups)
    table = match_emboli(before, after, 1.0)
    assert (
        sorted(
            (len(r.before), len(r.after), round(r.before_ml - r.removed_ml), round(r.before_ml + r.added_ml))
            for r in table.itertuples()
        )
        == expected
    )
    for r in table.itertuples():
        kind = (
            'added'
            if not r.before
            else 'removed'
            if not r.after
            else 'kept'
            if r.dice == 1 and len(r.before) == len(r.after) == 1
            else 'changed'
        )
        assert r.change == kind
    whole, scores, lesions = (
        compare_masks(before, after, Volume(np.zeros(before.shape, np.int16), (1, 10, 10), (0, 0, 0), AXIAL)),
        patient_scores(after, before, (1, 10, 10)),
        lesion_scores(after, before),
    )
    assert (whole['removed'], whole['added']) == (
        lesions['emboli'] - lesions['emboli_found'],
        lesions['false_positive_lesions'],
    )
    for name in ('added_ml', 'removed_ml', 'before_ml', 'after_ml'):
        assert abs(whole[name] - table[name].sum() * 0.1) < 1e-9
    assert whole['dice'] == (None if np.isnan(scores['dice']) else scores['dice'])
    json.dumps(whole, allow_nan=False)


# ---- the store


def test_a_version_says_everything(case):
    root, scan, volume, numbers = case
    annotation = annotated(root / 'out' / study_name(volume), volume, numbers)
    corrected = np.where(numbers == 2, 0, numbers)
    folder = save_correction(
        root / 'store',
        scan,
        volume,
        corrected,
        ' AB ',
        annotation=annotation,
        decisions=[dict(embolus=np.int64(2), decision='rejected', dice=float('nan'))],
        note='flow',
    )
    record = json.loads((folder / 'correction.json').read_text())
    assert (record['reviewer'], record['version'], record['previous'], record['how'], record['note']) == (
        'AB',
        1,
        None,
        'review',
        'flow',
    )
    assert record['decisions'] == [dict(embolus=2, decision='rejected', dice=None)]  # as a table's rows come
    assert record['started_from']['runs'] == [dict(name='run7', weights='0123456789ab')]
    assert record['started_from']['digest'] == hashlib.sha256((annotation / 'mask.nii.gz').read_bytes()).hexdigest()
    assert (record['before']['emboli'], record['after']['emboli']) == (3, 2)
    assert record['difference']['removed_ml'] == pytest.approx((numbers == 2).sum() * volume.voxel_ml)
    when = datetime.datetime.fromisoformat(record['when'])
    assert when.utcoffset() == datetime.timedelta(0) and abs(
        datetime.datetime.now(datetime.UTC) - when
    ) < datetime.timedelta(hours=1)
    image = SimpleITK.ReadImage(folder / 'mask.nii.gz')  # a second reader agrees on place and number
    for point, number in ((np.argwhere(corrected == n)[0], n) for n in (1, 3)):
        assert image.GetPixel(image.TransformPhysicalPointToIndex(volume.to_patient(point).tolist())) == number
    seg = highdicom.seg.segread(folder / 'segmentation.dcm')
    back = seg.get_pixels_by_source_instance(
        [s.instance_uid for s in volume.sources],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(np.array([0, 1, 3])[back], corrected)
    from PIL import Image

    with Image.open(folder / 'difference.png') as picture:
        assert picture.width > 300


def test_the_seg_says_who_when_and_from_which_run(case, tmp_path):
    place, scan, volume, numbers = case
    started = annotated(place / 'out' / study_name(volume), volume, numbers) or place / 'out' / study_name(volume)
    first = pydicom.dcmread(
        save_correction(place / 'store', scan, volume, np.where(numbers == 2, 0, numbers), 'Dr Ada', annotation=started)
        / 'segmentation.dcm'
    )
    assert first.ContentCreatorName == 'Dr Ada^' and {
        segment.SegmentAlgorithmType for segment in first.SegmentSequence
    } == {'SEMIAUTOMATIC'}
    said = next(
        item for item in first.ContributingEquipmentSequence if 'began as' in item.get('ContributionDescription', '')
    )
    run = json.loads((started / 'summary.json').read_text())['runs'][0]
    assert run['name'] in said.ContributionDescription and said.ContributionDateTime
    second = pydicom.dcmread(save_correction(place / 'store', scan, volume, numbers, 'Dr Bee') / 'segmentation.dcm')
    assert any(
        'began as correction 1' in item.get('ContributionDescription', '')
        for item in second.ContributingEquipmentSequence
    )
    by_hand = pydicom.dcmread(save_correction(place / 'other', scan, volume, numbers, 'Dr Cat') / 'segmentation.dcm')
    assert {segment.SegmentAlgorithmType for segment in by_hand.SegmentSequence} == {'MANUAL'}


def test_a_pseudonym_once_given_stays(case):
    place, scan, volume, numbers = case
    started = place / 'out' / study_name(volume)
    annotated(started, volume, numbers)
    summary = json.loads((started / 'summary.json').read_text()) | dict(pseudonym='P9')
    (started / 'summary.json').write_text(json.dumps(summary))
    versions = [
        save_correction(place / 'store', scan, volume, numbers, 'AB', annotation=start) for start in (started, None)
    ]
    assert [pydicom.dcmread(version / 'segmentation.dcm').PatientID for version in versions] == ['P9', 'P9']
    for version in versions:
        assert not any(b'SECRET' in path.read_bytes() for path in version.iterdir())


def test_a_scan_without_slice_files_gets_a_seg_too(tmp_path):
    volume, numbers = make(3)
    write_plain_nifti(tmp_path / 'scan.nii.gz', volume.hu, volume)
    volume = read_volume(tmp_path / 'scan.nii.gz')
    save = lambda numbers, **options: save_correction(
        tmp_path / 'store', tmp_path / 'scan.nii.gz', volume, numbers, 'AB', **options
    )
    first, second = save(numbers), save(np.where(numbers == 2, 0, numbers))
    series = read_series(first.parent / 'scan')
    np.testing.assert_array_equal(series.hu, volume.hu)
    for version, corrected, labels in (
        (first, numbers, [0, 1, 2, 3]),
        (second, np.where(numbers == 2, 0, numbers), [0, 1, 3]),
    ):
        back = highdicom.seg.segread(version / 'segmentation.dcm').get_pixels_by_source_instance(
            [s.instance_uid for s in series.sources],
            combine_segments=True,
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )
        np.testing.assert_array_equal(np.array(labels)[back], corrected)
        again = import_correction(
            version / 'segmentation.dcm', tmp_path / 'scan.nii.gz', tmp_path / 'store', 'CD', dry_run=True
        )  # as a viewer would send it back
        np.testing.assert_array_equal(
            read_corrected(version / 'segmentation.dcm', tmp_path / 'scan.nii.gz', volume, 'x')[0] > 0, corrected > 0
        )
        assert again.status == 'would be saved'
    annotation = annotated(tmp_path / 'out' / study_name(volume), volume, numbers)  # what its annotation has is used
    (tmp_path / 'out' / study_name(volume) / 'scan').symlink_to(first.parent / 'scan')
    version = save_correction(
        tmp_path / 'other', tmp_path / 'scan.nii.gz', volume, numbers, 'AB', annotation=annotation
    )
    assert (version / 'segmentation.dcm').is_file() and not (version.parent / 'scan').exists()
    (first.parent / 'scan' / series.sources[0].file).unlink()
    with pytest.raises(InputError):
        save(numbers)
    assert len(history(tmp_path / 'store', first.parent.name)) == 2


def test_how_a_scan_was_read_stays_known(tmp_path):
    "Two series in one folder, of which one was annotated; then a stack that is not even: review, import and training read what was annotated."
    from pe_advseg.review.review import review

    scan = tmp_path / 'scan'
    volume, numbers = on_disk(scan, 1)
    write_series(
        Volume(volume.hu[::-1] + 1, volume.spacing, (0, 0, 0), AXIAL), scan / 'other', 'SECRET', seed_uid='other'
    )
    series = str(pydicom.dcmread(scan / volume.sources[0].file, stop_before_pixels=True).SeriesInstanceUID)
    with pytest.raises(InputError):
        read_volume(scan)
    uneven, even = tmp_path / 'uneven', make(5, oblique=False)[0]
    write_series(even, uneven, 'SECRET')
    for path in sorted(uneven.iterdir())[6:]:
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient[2] += (
            float(dataset.ImagePositionPatient[2]) - even.origin[2] - 6 * even.spacing[0]
        ) / 2
        dataset.save_as(path)
    for place, reading in ((scan, dict(series=series)), (uneven, dict(resample=True))):
        volume = read_volume(place, **reading)
        numbers = np.where((volume.hu > 49) & (volume.hu < 54), 1, 0).astype(np.uint16)
        assert numbers.any()
        annotation = tmp_path / 'out' / study_name(volume)
        summary = dict(
            what='annotation',
            statement='a test',
            scan=dict(digest=pixel_digest(volume)),
            runs=[],
            options=dict(threshold=0.5) | reading,
        )
        with whole_folder(annotation) as making:
            write_arrays(
                making,
                Annotation(
                    volume,
                    numbers,
                    to_bytes(numbers * 0.9),
                    None,
                    embolus_table(numbers, volume, to_bytes(numbers * 0.9)),
                    summary,
                ),
            )
        widget = review(place, annotation, tmp_path / 'store', 'AB', interactive=False)
        widget.press('save')
        assert widget.saved, widget.says.value
        write_plain_nifti(tmp_path / 'corrected.nii.gz', numbers, volume)
        [result] = import_corrections(
            tmp_path / 'corrected.nii.gz',
            place,
            tmp_path / 'store',
            'CD',
            annotations=tmp_path / 'out',
            reading=reading,
        )
        assert result.status == 'saved', result.error
        [study] = [study for study in find_studies(tmp_path / 'store') if study.patient == widget.saved.parent.name]
        np.testing.assert_array_equal(read_study(study)[1], numbers)
        again = review(place, result.version, tmp_path / 'store', 'AB', interactive=False)
        np.testing.assert_array_equal(again.edits.numbers > 0, numbers > 0)


def _save_in_process(store, scan, number, start):
    volume = read_series(scan)
    start.wait(60)
    save_correction(store, scan, volume, np.where(volume.hu == 50 + number, number, 0).astype(np.uint16), f'R{number}')


def test_processes_at_once_get_numbers_of_their_own(case):
    root, scan, volume, numbers = case
    context = multiprocessing.get_context('spawn')
    start = context.Barrier(3)
    workers = [
        context.Process(target=_save_in_process, args=(root / 'store', scan, number, start)) for number in (1, 2, 3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    records = history(root / 'store', study_name(volume))
    assert [r['version'] for r in records] == [1, 2, 3] and [r['previous'] for r in records] == [None, 1, 2]
    assert sorted(r['reviewer'] for r in records) == ['R1', 'R2', 'R3']
    for r in records:
        np.testing.assert_array_equal(
            read_correction(root / 'store', volume, r['version'])[0] > 0, numbers == int(r['reviewer'][1])
        )


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='this system has no SIGKILL')
def test_killed_half_way_leaves_nothing_half(case):
    "The process dies when everything but the record is written; the lock is free again, and the next one gets the number."
    root, scan, volume, numbers = case
    save_correction(root / 'store', scan, volume, numbers, 'AB')
    write_plain_nifti(root / 'patient1.nii.gz', np.where(numbers == 1, 0, numbers), volume)
    program = f"""
import os, signal
from pe_advseg import corrections, import_corrections
whole = corrections.write_whole
def dies(path, text):
    if path.name == 'correction.json': os.kill(os.getpid(), signal.SIGKILL)
    return whole(path, text)
corrections.write_whole = dies
import_corrections.import_corrections({str(root / 'patient1.nii.gz')!r}, {str(scan)!r}, {str(root / 'store')!r}, 'CD')
"""
    died = subprocess.run(
        [sys.executable, '-c', program], env=os.environ | {'MPLBACKEND': 'agg'}, capture_output=True, timeout=300
    )
    assert died.returncode == -signal.SIGKILL, died.stderr[-500:]
    assert [study.mask.parent.name for study in find_studies(root / 'store')] == ['0001']
    np.testing.assert_array_equal(read_embolus_ids(find_studies(root / 'store')[0])[1], numbers)
    [result] = import_corrections(root / 'patient1.nii.gz', scan, root / 'store', 'CD')
    assert result.version.name == '0002' and len(history(root / 'store', study_name(volume))) == 2


def test_refused_corrections_leave_no_version(case):
    root, scan, volume, numbers = case
    for wrong, words in (
        (numbers[:-1], 'its scan is'),
        (numbers / 2, 'threshold'),
        (-numbers.astype(int), 'holds -'),
        (numbers.astype(np.uint32) * 40000, 'numbers an embolus'),
    ):
        with pytest.raises(InputError, match=words):
            save_correction(root / 'store', scan, volume, wrong, 'AB')
    for nobody in ('', '  ', 'a\0b', None):
        with pytest.raises(InputError, match='has no name'):
            save_correction(root / 'store', scan, volume, numbers, nobody)
    (root / 'mine').mkdir()
    (root / 'mine/thesis.txt').write_text('x')
    (root / 'other').mkdir()
    (root / 'other/corrections.json').write_text('{"what": "something else"}')
    (root / 'broken').mkdir()
    (root / 'broken/corrections.json').write_text('{')
    for name in ('mine', 'other', 'broken'):
        before = files(root / name)
        with pytest.raises(InputError, match='no store'):
            save_correction(root / name, scan, volume, numbers, 'AB')
        assert files(root / name) == before
    other, theirs = on_disk(root / 'scans/patient2', 2)
    with pytest.raises(InputError, match='another scan'):
        save_correction(
            root / 'store', scan, volume, numbers, 'AB', annotation=annotated(root / 'out/x', other, theirs)
        )
    assert not list((root / 'store').rglob('correction.json'))


def test_no_name_of_a_patient(case):
    root, scan, volume, numbers = case
    save_correction(root / 'store', scan, volume, numbers, 'AB', pseudonym='case7')
    for path in (root / 'store').rglob('*'):
        assert not path.is_file() or b'SECRET' not in path.read_bytes(), path.name
    write_plain_nifti(root / 'patient1.nii.gz', numbers[::-1], volume)
    other = root / 'scans' / 'patient2'
    on_disk(other, 2)
    highdicom_seg(root / 'masks.dcm', scan, numbers, ['clot'] * 3)
    [result] = import_corrections(
        root / 'masks.dcm', root / 'scans', root / 'fresh', 'AB', pseudonym='case'
    )  # several scans: one pseudonym each
    seg = pydicom.dcmread(result.version / 'segmentation.dcm')
    assert (
        seg.PatientID == f'case-{result.study[6:]}'
        and b'SECRET' not in (result.version / 'segmentation.dcm').read_bytes()
    )
    [result] = import_corrections(root / 'patient1.nii.gz', scan, root / 'store', 'AB')
    assert result.error and 'SECRET' not in str(result) and str(root) not in result.error


def test_table_and_history(case):
    root, scan, volume, numbers = case
    other, theirs = on_disk(root / 'scans/patient2', 2)
    save_correction(root / 'store', scan, volume, numbers, 'AB')
    save_correction(root / 'store', scan, volume, numbers * 0, 'CD')
    save_correction(root / 'store', root / 'scans/patient2', other, theirs, 'AB')
    table = current(root / 'store').set_index('study')
    assert table.loc[study_name(volume), ['version', 'reviewer', 'emboli', 'after_ml']].tolist() == [2, 'CD', 0, 0]
    assert table.loc[study_name(volume), 'before_ml'] == pytest.approx((numbers > 0).sum() * volume.voxel_ml)
    with pytest.raises(InputError, match='no correction'):
        history(root / 'store', 'study-00000000')
    with pytest.raises(InputError, match='no version 3'):
        read_correction(root / 'store', volume, 3)


# ---- as data for training


def test_a_store_is_a_layout(case):
    root, scan, volume, numbers = case
    other, theirs = on_disk(root / 'scans/patient2', 2, z_mm=4.0)
    save_correction(root / 'store', scan, volume, numbers, 'AB')
    save_correction(root / 'store', root / 'scans/patient2', other, theirs * np.uint16(0), 'AB')
    studies = {study.patient: study for study in find_studies(root / 'store')}
    assert set(studies) == {study_name(volume), study_name(other)} and {
        study.hospital for study in studies.values()
    } == {'store'}
    read, ids = read_embolus_ids(studies[study_name(volume)])
    np.testing.assert_array_equal(ids, numbers)
    np.testing.assert_array_equal(read.hu, volume.hu)
    read, mask = read_study(studies[study_name(other)])
    assert mask.dtype == np.uint8 and not mask.any() and not any('CAD-PE' in note for note in read.notes)
    (root / 'empty').mkdir()
    (root / 'empty/corrections.json').write_text('{"what": "corrections"}')
    with pytest.raises(InputError, match='without any'):
        find_studies(root / 'empty')


def test_one_embolus_with_another_number_than_one(case):
    root, scan, volume, numbers = case
    save_correction(root / 'store', scan, volume, np.where(numbers == 3, 3, 0).astype(np.uint16), 'AB')
    np.testing.assert_array_equal(read_study(find_studies(root / 'store')[0])[1], numbers == 3)


def test_scans_that_moved_or_changed(case):
    root, scan, volume, numbers = case
    store = root / 'store'
    save_correction(store, scan, volume, numbers, 'AB')
    assert not Path(json.loads((store / study_name(volume) / 'scan.json').read_text())['path']).is_absolute()
    (root / 'elsewhere').mkdir()
    scan.rename(root / 'elsewhere/patient1')
    with pytest.raises(InputError, match='scans=') as caught:
        find_studies(store)
    assert str(root) not in str(caught.value) and 'patient1' not in str(caught.value)
    refused = []
    assert find_studies(store, refused=refused) == [] and len(refused) == 1
    np.testing.assert_array_equal(read_embolus_ids(find_studies(store, scans=root / 'elsewhere')[0])[1], numbers)
    save_correction(store, root / 'elsewhere/patient1', volume, numbers, 'AB')  # writes the new path
    [study] = find_studies(store)
    on_disk(root / 'scans/patient2', 2)
    (root / 'elsewhere/patient1').rename(root / 'elsewhere/old')
    (root / 'scans/patient2').rename(root / 'elsewhere/patient1')
    with pytest.raises(MaskError, match='another one than was corrected'):
        read_study(study)


def test_synthetic_scans_stay_synthetic(tmp_path):
    [study] = find_studies(write_hospital(tmp_path, 'harbour', 1, (12, 64, 64), mask=None, workers=1, progress=False))
    volume = read_volume(study.scan)
    save_correction(tmp_path / 'deep/er/store', study.scan, volume, np.zeros(volume.shape, np.uint8), 'AB')
    [corrected] = find_studies(tmp_path / 'deep/er/store')
    assert is_synthetic(corrected.scan) and corrected.scan == study.scan.resolve()


# ---- masks that others wrote


@pytest.mark.parametrize('seed', [0, 1])
def test_nifti_in_every_orientation(tmp_path, seed):
    "nibabel stores the axes in all 48 orders; the scan's own HU say where each embolus must land."
    volume, numbers = on_disk(tmp_path / 'scan', seed)
    write_plain_nifti(tmp_path / 'a.nii.gz', numbers, volume)
    image = nibabel.load(tmp_path / 'a.nii.gz')
    for order, flips in ORDERS:
        nibabel.save(image.as_reoriented(np.array(list(zip(order, flips)))), tmp_path / 'b.nii')
        np.testing.assert_array_equal(
            read_corrected(tmp_path / 'b.nii', tmp_path / 'scan', volume, 'b.nii')[0], numbers
        )


@pytest.mark.parametrize('ending', ['nii.gz', 'nrrd', 'mha', 'seg.nrrd'])
@pytest.mark.parametrize('orientation', ['LPS', 'RAS', 'LAS', 'RPI', 'ASL'])
def test_simpleitk_in_many_orientations(case, ending, orientation):
    "SimpleITK reads the DICOM series itself, so the geometry of the file is its own, not ours."
    root, scan, volume, numbers = case
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(scan)))
    image = reader.Execute()
    mask = SimpleITK.Cast(image - 50, SimpleITK.sitkInt16)
    mask = SimpleITK.Cast(SimpleITK.Mask(mask, (mask > 0) & (mask < 10)), SimpleITK.sitkUInt8)
    mask = SimpleITK.DICOMOrient(mask, orientation)
    if ending == 'seg.nrrd':
        for n in range(3):
            mask.SetMetaData(f'Segment{n}_LabelValue', str(n + 1))
            mask.SetMetaData(f'Segment{n}_Name', f'Segment_{n + 1}')
            mask.SetMetaData(f'Segment{n}_ID', f'Segment_{n + 1}')
    SimpleITK.WriteImage(mask, root / f'm.{ending}', True)
    np.testing.assert_array_equal(read_corrected(root / f'm.{ending}', scan, volume, 'm')[0], numbers)


def highdicom_seg(path, scan, numbers, labels, kind='BINARY', overlap=False, order=1):
    "As another program would write it: its own order of slices, segments called `labels`."
    images = sorted(
        (pydicom.dcmread(file) for file in scan.glob('*.dcm')), key=lambda d: float(d.ImagePositionPatient[2])
    )[::order]
    described = [
        highdicom.seg.SegmentDescription(
            n, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Tissue, 'MANUAL'
        )
        for n, label in enumerate(labels, 1)
    ]
    pixels = (
        np.stack([numbers == n for n in range(1, len(labels) + 1)], -1).astype(np.uint8)
        if overlap is False and kind == 'BINARY'
        else overlap
        if overlap is not False
        else numbers.astype(np.uint8)
    )
    uid = pydicom.uid.generate_uid
    highdicom.seg.Segmentation(
        images,
        pixels[::order],
        kind,
        described,
        uid(),
        1,
        uid(),
        1,
        'another',
        'program',
        '1',
        '1',
        **({'max_fractional_value': 255} if kind == 'FRACTIONAL' else {}),
    ).save_as(path)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('kind', ['BINARY', 'LABELMAP'])
@pytest.mark.parametrize('order', [1, -1])
def test_highdicom_seg(tmp_path, seed, kind, order):
    volume, numbers = on_disk(tmp_path / 'scan', seed)
    highdicom_seg(tmp_path / 's.dcm', tmp_path / 'scan', numbers, ['clot A', 'clot B', 'clot C'], kind, order=order)
    np.testing.assert_array_equal(read_corrected(tmp_path / 's.dcm', tmp_path / 'scan', volume, 's')[0], numbers)


def test_segments_their_names_and_numbers(case):
    root, scan, volume, numbers = case
    read = lambda: read_corrected(root / 's.dcm', scan, volume, 's.dcm')
    highdicom_seg(root / 's.dcm', scan, numbers, ['left lung', 'heart', 'Embolus'])
    np.testing.assert_array_equal(read()[0] > 0, numbers == 3)  # one called a clot among others: only that
    highdicom_seg(
        root / 's.dcm', scan, numbers, ['pulmonary embolism 4', 'pulmonary embolism 2', 'pulmonary embolism 9']
    )
    np.testing.assert_array_equal(read()[0], np.array([0, 4, 2, 9])[numbers])  # what an embolus was called, it stays
    highdicom_seg(root / 's.dcm', scan, numbers, ['Segment 1', 'Segment 2', 'Segment 3'])
    np.testing.assert_array_equal(read()[0], numbers)  # nobody named them
    highdicom_seg(root / 's.dcm', scan, numbers, ['lung', 'heart', 'liver'])
    with pytest.raises(MaskError, match='none of them called'):
        read()
    stack = np.stack([numbers == 1, numbers > 0], -1).astype(np.uint8)
    highdicom_seg(root / 's.dcm', scan, numbers, ['clot', 'more clot'], overlap=stack)
    found, _, notes = read()
    np.testing.assert_array_equal(found, np.where(numbers > 0, 2, 0))
    assert any(f'{(numbers == 1).sum()} voxels lie in two segments' in note for note in notes)


def test_our_own_seg_keeps_the_numbers(case):
    root, scan, volume, numbers = case
    for kept in ((1, 2, 3), (1, 3), (2,), ()):
        corrected = np.where(np.isin(numbers, kept), numbers, 0)
        write_segmentation(root / 's.dcm', corrected, volume, scan)
        found = read_corrected(root / 's.dcm', scan, volume, 's.dcm')[0]
        np.testing.assert_array_equal(found, corrected)


def test_slicer_files_cropped_empty_and_layered(case):
    root, scan, volume, numbers = case
    write_plain_nifti(root / 'a.nii.gz', numbers, volume)
    whole, path = SimpleITK.ReadImage(root / 'a.nii.gz'), root / 's.seg.nrrd'
    read = lambda: read_corrected(path, scan, volume, 's.seg.nrrd')
    low, size = [5, 4, 1], [30, 25, 10]
    part = SimpleITK.RegionOfInterest(whole, size, low)
    for n, name in enumerate(('Embolus 1', 'Lung', 'Thrombus 3')):
        part.SetMetaData(f'Segment{n}_LabelValue', str(n + 1))
        part.SetMetaData(f'Segment{n}_Name', name)
    flipped = SimpleITK.Flip(part, (False, True, True))
    for key in part.GetMetaDataKeys():
        flipped.SetMetaData(key, part.GetMetaData(key))
    SimpleITK.WriteImage(flipped, path)
    found, _, notes = read()
    np.testing.assert_array_equal(found, np.where(numbers == 2, 0, numbers))
    assert any('cropped' in note for note in notes)
    one = SimpleITK.Image(1, 1, 1, SimpleITK.sitkUInt8)
    one.SetMetaData('Segmentation_SourceRepresentation', 'Binary labelmap')
    SimpleITK.WriteImage(one, path)
    assert not read()[0].any()
    SimpleITK.WriteImage(
        SimpleITK.Compose(whole, whole), path
    )  # a list of layers before the three axes, as Slicer writes them
    assert b'kinds: vector domain domain domain' in path.read_bytes()[:2000]
    path.write_bytes(path.read_bytes().replace(b'kinds: vector domain', b'kinds: list domain', 1))
    with pytest.raises(MaskError, match='overlap'):
        read()
    for n, name in enumerate(('Lung', 'Heart', 'Liver')):
        whole.SetMetaData(f'Segment{n}_LabelValue', str(n + 1))
        whole.SetMetaData(f'Segment{n}_Name', name)
    SimpleITK.WriteImage(whole, path)
    with pytest.raises(MaskError, match='none of them called'):
        read()


def test_what_numbers_mean(case):
    root, scan, volume, numbers = case

    def read(values, **options):
        write_plain_nifti(root / 'a.nii.gz', values, volume)
        return read_corrected(root / 'a.nii.gz', scan, volume, 'a', **options)[0]

    pieces = ndimage.label(numbers > 0, np.ones((3, 3, 3)))[0]
    for value in (1, 255):
        np.testing.assert_array_equal(read((numbers > 0) * np.uint8(value)), pieces)
    np.testing.assert_array_equal(read((numbers > 0).astype(np.uint8), numbered=True), numbers > 0)
    np.testing.assert_array_equal(
        read(np.where(numbers == 2, 2, 0).astype(np.uint8)), np.where(numbers == 2, 2, 0)
    )  # 1 and 3 were deleted
    assert not read(numbers * 0).any()
    nibabel.save(nibabel.Nifti1Image((numbers * 0.5).T.astype(np.float32), volume.nifti_affine()), root / 'a.nii.gz')
    with pytest.raises(MaskError, match='holds the values'):
        read_corrected(root / 'a.nii.gz', scan, volume, 'a')


# ---- what belongs to another scan, or lies mirrored


def write_as(kind, path, numbers, volume, scan):
    "The mask as a file of this kind, with a header that fits the scan."
    if kind == 'seg':
        return highdicom_seg(
            path.with_suffix('.dcm'), scan, numbers, ['clot 1', 'clot 2', 'clot 3']
        ) or path.with_suffix('.dcm')
    write_plain_nifti(path.with_suffix('.nii.gz'), numbers, volume)
    if kind == 'nrrd':
        SimpleITK.WriteImage(SimpleITK.ReadImage(path.with_suffix('.nii.gz')), path.with_suffix('.nrrd'))
    return path.with_suffix('.nii.gz' if kind == 'nifti' else '.nrrd')


@pytest.mark.parametrize('kind', ['nifti', 'nrrd', 'seg'])
@pytest.mark.parametrize('axes', MIRRORS, ids=lambda axes: ''.join('zyx'[a] for a in axes) or 'straight')
def test_planted_mirrors_are_refused(case, kind, axes):
    "An expert deletes one embolus and adds another; a program then mirrors the contents under a header that fits."
    root, scan, volume, numbers = case
    annotation = annotated(root / 'out' / study_name(volume), volume, np.where(numbers == 3, 0, numbers))
    corrected = np.where(numbers == 2, 0, numbers)
    path = write_as(kind, root / 'c', np.flip(corrected, axes), volume, scan)
    if axes:
        with pytest.raises(MaskError, match=f'mirrored along {" and ".join("zyx"[a] for a in axes)}:'):
            import_correction(path, scan, root / 'store', 'AB', annotation)
        assert not (root / 'store').exists()
        result = import_correction(path, scan, root / 'store', 'AB', annotation, trust_header=True)
        assert (
            result.orientation == 'taken on trust'
            and history(root / 'store', result.study)[0]['origin']['orientation'] == 'taken on trust'
        )
    else:
        result = import_correction(path, scan, root / 'store', 'AB', annotation)
        assert result.orientation.startswith('agrees')
        np.testing.assert_array_equal(read_correction(root / 'store', volume)[0], corrected)
        assert (
            history(root / 'store', result.study)[0]['origin']['sha256']
            == hashlib.sha256(path.read_bytes()).hexdigest()
        )


def test_the_version_before_is_a_witness_too(case):
    root, scan, volume, numbers = case
    save_correction(root / 'store', scan, volume, numbers, 'AB')
    path = write_as('nifti', root / 'c', numbers[::-1], volume, scan)
    with pytest.raises(MaskError, match='mirrored along z'):
        import_correction(path, scan, root / 'store', 'CD')
    assert len(history(root / 'store', study_name(volume))) == 1


def test_without_a_witness_the_scan_is_asked(case):
    "Outside of the body is refused; inside, nothing can be proven, and that is said."
    root, scan, volume, numbers = case
    shifted = np.zeros_like(numbers)
    shifted[:, :4, :5] = 1
    path = write_as('nifti', root / 'c', shifted, volume, scan)
    with pytest.raises(MaskError, match='HU, clot has|outside the body'):
        import_correction(path, scan, root / 'store', 'AB')
    path = write_as('nifti', root / 'c', numbers[::-1], volume, scan)
    assert import_correction(path, scan, root / 'store', 'AB', dry_run=True).orientation.startswith('not provable')


def test_a_legitimate_rewrite_is_not_refused(case):
    "Everything deleted, and one embolus added somewhere else."
    root, scan, volume, numbers = case
    annotation = annotated(root / 'out' / study_name(volume), volume, np.where(numbers == 1, 1, 0).astype(np.uint16))
    rewritten = np.where(numbers == 3, 3, 0).astype(np.uint16)
    for path in (
        write_as('nifti', root / study_name(volume), rewritten, volume, scan),
        write_as('seg', root / 'c', rewritten, volume, scan),
    ):
        result = import_correction(path, scan, root / path.suffix, 'AB', annotation)
        assert result.orientation.startswith('not provable') and '1 removed, 1 added' in result.difference


def test_a_mask_that_may_be_another_patients(case):
    "It lies well in tissue and on the same grid, but shares nothing with what it began from: something has to say that it belongs to this scan."
    root, scan, volume, numbers = case
    annotation = annotated(root / 'out' / study_name(volume), volume, np.where(numbers == 1, 1, 0).astype(np.uint16))
    path = write_as('nifti', root / 'patient1', np.where(numbers == 3, 3, 0).astype(np.uint16), volume, scan)
    with pytest.raises(MaskError, match='shares 0% with what it started from.*name it after the scan'):
        import_correction(path, scan, root / 'store', 'AB', annotation)
    assert not (root / 'store').exists()
    (root / 'patient1.json').write_text(json.dumps(dict(digest=pixel_digest(volume))))
    assert import_correction(path, scan, root / 'store', 'AB', annotation).status == 'saved'


def test_doubts_are_shown_and_count(case):
    "The mask also covers what is bright; what it began from does not. And what nobody can prove is said in the table."
    root, scan, volume, numbers = case
    hu = volume.hu.copy()
    hu[2:10, 12:30, 5:36] = np.where(numbers[2:10, 12:30, 5:36] > 0, hu[2:10, 12:30, 5:36], 350)
    write_plain_nifti(root / 'bright.nii.gz', hu, volume)
    bright = read_volume(root / 'bright.nii.gz')
    annotation = annotated(root / 'out' / study_name(bright), bright, numbers)
    path = write_as('nifti', root / 'c', np.where(bright.hu == 350, 9, numbers).astype(np.uint16), bright, scan)
    with pytest.raises(MaskError, match='350 HU.*What it started from lies well'):
        import_correction(path, root / 'bright.nii.gz', root / 'store', 'AB', annotation)
    highdicom_seg(root / 'patient1.dcm', scan, numbers, ['clot', 'clot', 'heart'])
    results = import_corrections(root / 'patient1.dcm', scan, root / 'store', 'AB')
    for words in ('left out, not called a clot: segment 3', 'not known: all of it counts as drawn by hand'):
        assert words in str(results)


@pytest.mark.parametrize('kind', ['BINARY', 'LABELMAP', 'slicer'])
def test_an_embolus_that_was_added_in_a_viewer_arrives(case, kind):
    "Ours keep their names, the new one has the viewer's default name."
    root, scan, volume, numbers = case
    names = ['pulmonary embolism 4', 'pulmonary embolism 2', 'Segment_1']
    if kind == 'slicer':
        image = SimpleITK.GetImageFromArray(numbers)
        image.SetSpacing(volume.spacing[::-1])
        image.SetOrigin(volume.origin)
        image.SetDirection(volume.direction[:, ::-1].ravel().tolist())
        for n, name in enumerate(names):
            image.SetMetaData(f'Segment{n}_LabelValue', str(n + 1))
            image.SetMetaData(f'Segment{n}_Name', name)
        SimpleITK.WriteImage(image, path := root / 's.seg.nrrd')
    else:
        highdicom_seg(path := root / 's.dcm', scan, numbers, names, kind)
    np.testing.assert_array_equal(read_corrected(path, scan, volume, 's')[0], np.array([0, 4, 2, 5])[numbers])


@pytest.mark.parametrize('label', ['PE', 'Segment 1', 'anything'])
def test_a_label_map_with_one_segment(case, label):
    "Its background is listed as a segment 0 and is none."
    root, scan, volume, numbers = case
    highdicom_seg(root / 's.dcm', scan, (numbers > 0).astype(np.uint16), [label], 'LABELMAP')
    np.testing.assert_array_equal(read_corrected(root / 's.dcm', scan, volume, 's')[0] > 0, numbers > 0)


def test_the_same_file_twice_is_one_version(case):
    root, scan, volume, numbers = case
    path = write_as('seg', root / 'c', numbers, volume, scan)
    take = lambda reviewer: import_correction(path, scan, root / 'store', reviewer)
    first, second, third = take('AB'), take('AB'), take('CD')
    assert (first.status, second.status, third.status) == (
        'saved',
        'already there',
        'saved',
    ) and second.version == first.version
    assert len(history(root / 'store', first.study)) == 2


def test_a_symmetric_finding_is_not_refused(case):
    "It agrees as well when mirrored: nothing is proven, and nothing held against it."
    root, scan, volume, numbers = case
    before, after = np.zeros_like(numbers), np.zeros_like(numbers)
    before[5:8, 14:19, 14:26] = after[5:8, 14:19, 16:28] = 1  # 14 to 25 of 40 is its own mirror image
    path = write_as('nifti', root / 'c', after, volume, scan)
    result = import_correction(path, scan, root / 'store', 'AB', annotated(root / 'out/a', volume, before))
    assert result.orientation.startswith('not provable: 83%') and 'along x' in result.orientation


def test_another_scan(case):
    root, scan, volume, numbers = case
    other, theirs = on_disk(root / 'scans/patient2', 2)
    for kind, words in (
        ('nifti', 'voxels off|differ|cover'),
        ('nrrd', 'voxels off|differ|cover'),
        ('seg', 'another scan'),
    ):
        path = write_as(kind, root / 'c', theirs, other, root / 'scans/patient2')
        with pytest.raises(MaskError, match=words):
            import_correction(path, scan, root / 'store', 'AB')
    twin = root / 'scans/twin'  # the same place and pixels under other identifiers
    write_series(volume, twin, 'TWIN', seed_uid='twin')
    path = write_as('seg', root / 'c', numbers, read_series(twin), twin)
    with pytest.raises(MaskError, match='another scan'):
        import_correction(path, scan, root / 'store', 'AB')
    assert not (root / 'store').exists()


def test_a_seg_that_names_no_slice(case):
    root, scan, volume, numbers = case
    write_segmentation(root / 'c.dcm', numbers, volume, scan)
    dataset = pydicom.dcmread(root / 'c.dcm')
    del dataset.ReferencedSeriesSequence
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    dataset.save_as(root / 'c.dcm')
    values, _, notes = read_corrected(root / 'c.dcm', scan, volume, 'c.dcm')
    np.testing.assert_array_equal(values, numbers)
    assert any('frame of reference' in note for note in notes)
    dataset.FrameOfReferenceUID = '1.2.3.4.5.6'
    dataset.save_as(root / 'c.dcm')
    with pytest.raises(MaskError, match='another scan'):
        read_corrected(root / 'c.dcm', scan, volume, 'c.dcm')


def test_a_seg_that_names_slices_only_at_the_top(case):
    "Frames without references; the list of slices at the top of the object is of a twin: same place, same frame of reference."
    root, scan, volume, numbers = case
    write_segmentation(root / 'c.dcm', numbers, volume, scan)
    dataset = pydicom.dcmread(root / 'c.dcm')
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    dataset.save_as(root / 'c.dcm')
    np.testing.assert_array_equal(read_corrected(root / 'c.dcm', scan, volume, 'c.dcm')[0], numbers)
    for number, item in enumerate(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence):
        item.ReferencedSOPInstanceUID = f'1.2.3.4.{number + 1}'
    dataset.save_as(root / 'c.dcm')
    with pytest.raises(MaskError, match='another scan'):
        read_corrected(root / 'c.dcm', scan, volume, 'c.dcm')


def test_anonymised_scan_with_zero_identifiers(tmp_path):
    "FUMPE's '0': the SEG that we write for it comes back, by the slices' own identifiers or by place."
    volume, _ = make(1)
    write_series(
        volume,
        tmp_path / 'PAT001',
        'P',
        header=dict(StudyInstanceUID='0', SeriesInstanceUID='0', StudyDate='0', FrameOfReferenceUID=None),
        reverse=True,
    )
    volume = read_series(tmp_path / 'PAT001')
    numbers = np.where((volume.hu > 50) & (volume.hu < 60), volume.hu - 50, 0).astype(np.uint16)
    write_segmentation(tmp_path / 'inbox.dcm', numbers, volume, tmp_path / 'PAT001')
    [result] = import_corrections(tmp_path / 'inbox.dcm', tmp_path / 'PAT001', tmp_path / 'store', 'AB')
    assert result.status == 'saved'
    np.testing.assert_array_equal(read_correction(tmp_path / 'store', volume)[0], numbers)


# ---- folders


@pytest.fixture
def ward(tmp_path):
    "Two scans, and what the expert says of them."
    made = {name: on_disk(tmp_path / 'scans' / name, seed) for name, seed in (('patient1', 1), ('patient2', 2))}
    (tmp_path / 'inbox').mkdir()
    return tmp_path, made


def statuses(results):
    return {result.file: result.status for result in results}


def test_which_scan_a_file_belongs_to(ward):
    root, made = ward
    (volume, numbers), (other, theirs) = made['patient1'], made['patient2']
    ways = {
        'named by slices': lambda folder: write_segmentation(
            folder / 'xyz.dcm', numbers, volume, root / 'scans/patient1'
        ),
        'file': lambda folder: write_plain_nifti(folder / 'patient1_mask.nii.gz', numbers, volume),
        'slicer': lambda folder: SimpleITK.WriteImage(
            SimpleITK.ReadImage(root / 'a.nii.gz'), folder / 'patient1 Segmentation.seg.nrrd'
        ),
        'folder': lambda folder: (
            (folder / 'patient1').mkdir(),
            write_plain_nifti(folder / 'patient1/abc.nii.gz', numbers, volume),
        ),
        'study': lambda folder: (
            (folder / study_name(volume)).mkdir(),
            write_plain_nifti(folder / study_name(volume) / 'corrected.nii.gz', numbers, volume),
        ),
        'digest': lambda folder: (
            write_plain_nifti(folder / 'abc.nii.gz', numbers, volume),
            (folder / 'abc.json').write_text(json.dumps(dict(digest=pixel_digest(volume)))),
        ),
        'series': lambda folder: write_plain_nifti(
            folder / f'{pydicom.dcmread(root / "scans/patient1/IM0001.dcm").SeriesInstanceUID}.nii.gz', numbers, volume
        ),
    }
    write_plain_nifti(root / 'a.nii.gz', numbers, volume)
    for way, write in ways.items():
        folder = root / 'ways' / way
        folder.mkdir(parents=True)
        write(folder)
        [result] = import_corrections(folder, root / 'scans', root / 'store' / way.split()[0], 'AB')
        assert (result.study, result.error) == (study_name(volume), ''), way
        np.testing.assert_array_equal(read_correction(root / 'store' / way.split()[0], volume)[0], numbers)
    write_plain_nifti(root / 'inbox/somebody.nii.gz', numbers, volume)
    [result] = import_corrections(root / 'inbox', root / 'scans', root / 'store/x', 'AB')
    assert (
        'belongs to none of the 2 scans' in result.error
        and 'the name somebody' in result.error
        and not (root / 'store/x').exists()
    )


def test_a_bad_file_does_not_stop_the_others(ward):
    root, made = ward
    (volume, numbers), (other, theirs) = made['patient1'], made['patient2']
    (root / 'inbox/patient1.nii.gz').write_bytes(b'\x1f\x8b damaged')
    write_plain_nifti(root / 'inbox/patient2.nii.gz', theirs, other)
    results = import_corrections(root / 'inbox', root / 'scans', root / 'store', 'AB')
    assert statuses(results) == {'patient1.nii.gz': 'refused', 'patient2.nii.gz': 'saved'} and len(results.refused) == 1
    assert set(results.table().columns) == {'file', 'study', 'status', 'emboli', 'what'} and 'no readable NIfTI' in str(
        results
    )
    write_plain_nifti(root / 'inbox/patient2_edited.nii.gz', theirs, other)
    assert set(statuses(import_corrections(root / 'inbox', root / 'scans', root / 'store', 'AB')).values()) == {
        'refused'
    }  # two for one scan: which is meant?
    assert len(history(root / 'store', study_name(other))) == 1


def test_a_dry_run_writes_nothing(ward):
    root, made = ward
    volume, numbers = made['patient1']
    write_plain_nifti(root / 'inbox/patient1.nii.gz', numbers, volume)
    before = files(root)
    [result] = import_corrections(root / 'inbox', root / 'scans', root / 'store', 'AB', dry_run=True)
    assert (
        result.status == 'would be saved'
        and result.emboli == 3
        and files(root) == before
        and not (root / 'store').exists()
    )
    for options in (dict(reviewer=''), dict(store=root / 'scans')):
        arguments = (
            dict(source=root / 'inbox', scans=root / 'scans', store=root / 'store', reviewer='AB', dry_run=True)
            | options
        )
        if 'store' in options:
            with pytest.raises(InputError, match='no store'):
                import_corrections(**arguments)
        else:
            assert 'has no name' in import_corrections(**arguments)[0].error


def test_an_annotations_own_files_are_no_corrections(ward):
    root, made = ward
    volume, numbers = made['patient1']
    out = annotated(root / 'out' / study_name(volume), volume, numbers)
    write_segmentation(out / 'segmentation.dcm', numbers, volume, root / 'scans/patient1')
    assert import_corrections(root / 'out', root / 'scans', root / 'store', 'AB', annotations=root / 'out') == []
    write_plain_nifti(out / 'mask_corrected.nii.gz', np.where(numbers == 2, 0, numbers), volume)
    [result] = import_corrections(root / 'out', root / 'scans', root / 'store', 'AB', annotations=root / 'out')
    assert (
        '2 kept, 1 removed' in result.difference
        and history(root / 'store', result.study)[0]['started_from']['what'] == 'annotation'
    )
    with pytest.raises(InputError, match='the annotation itself'):
        import_correction(out / 'mask.nii.gz', root / 'scans/patient1', root / 'store', 'AB', out)


def monai(root, made, **said):
    "As MONAI Label's LocalDatastore lays it out (monailabel/datastore/local.py)."
    images, objects = root / 'monai', {}
    for tag in ('final', 'original'):
        (images / 'labels' / tag).mkdir(parents=True)
    for name, (volume, numbers) in made.items():
        nibabel.save(nibabel.Nifti1Image(volume.hu.T, volume.nifti_affine()), images / f'{name}.nii.gz')
        write_plain_nifti(images / 'labels/original' / f'{name}.nii.gz', numbers * 0 + (numbers > 0), volume)
        objects[name] = dict(image=dict(ext='.nii.gz', info={}), labels=dict(original=dict(ext='.nii.gz', info={})))
    (images / 'datastore_v2.json').write_text(
        json.dumps(dict(name='x', description='', images_dir='.', labels_dir='labels', objects=objects) | said)
    )
    return images


def test_monai_label(ward):
    "Only what readers submitted (`final`) is taken; the scans are its own images, or the DICOM they were made of."
    root, made = ward
    images = monai(root, made)
    assert import_corrections(images, None, root / 'store', 'AB') == []
    volume, numbers = made['patient2']
    write_plain_nifti(images / 'labels/final/patient2.nii.gz', np.where(numbers == 1, 0, numbers), volume)
    for scans, store in ((None, 'store'), (root / 'scans', 'store2')):
        [result] = import_corrections(images, scans, root / store, 'AB')
        assert (result.file, result.status) == ('labels/final/patient2.nii.gz', 'saved')
        [study] = find_studies(root / store)
        read, ids = read_embolus_ids(study)
        assert all(np.unique(read.hu[ids == n]).tolist() == [50 + n] for n in (2, 3)) and ids.max() == 3
    (root / 'outside/final').mkdir(parents=True)
    (images / 'datastore_v2.json').write_text(json.dumps(dict(labels_dir='../outside')))
    with pytest.raises(InputError, match='outside of its folder'):
        import_corrections(images, None, root / 'store', 'AB')


def test_nothing_left_is_a_finding(ward):
    root, made = ward
    volume, numbers = made['patient1']
    out = annotated(root / 'out' / study_name(volume), volume, numbers)
    write_plain_nifti(root / 'inbox/patient1.nii.gz', numbers * 0, volume)
    [result] = import_corrections(root / 'inbox', root / 'scans', root / 'store', 'AB', annotations=out)
    assert (result.status, result.emboli) == ('saved', 0) and '3 removed' in result.difference
    assert not read_study(find_studies(root / 'store')[0])[1].any()


def test_a_real_patient(tmp_path):
    "FUMPE's PAT029 from its DICOM through NIfTI and SEG into a store and out again; mirrored it is refused."
    if not (FUMPE / 'CT_scans/PAT029').is_dir():
        pytest.skip('the real patient is not on this machine')
    [study] = [study for study in find_studies(FUMPE) if study.patient == 'PAT029']
    volume, numbers = read_embolus_ids(study)
    out = annotated(tmp_path / 'out' / study_name(volume), volume, numbers)
    write_segmentation(tmp_path / 'PAT029.dcm', numbers, volume, study.scan)
    result = import_correction(tmp_path / 'PAT029.dcm', study.scan, tmp_path / 'store', 'AB', out)
    assert result.orientation.startswith('agrees')
    np.testing.assert_array_equal(read_study(find_studies(tmp_path / 'store')[0])[1], numbers > 0)
    for axes in MIRRORS[1:4]:
        write_plain_nifti(tmp_path / 'm.nii.gz', np.flip(numbers, axes), volume)
        with pytest.raises(MaskError, match='mirrored'):
            import_correction(tmp_path / 'm.nii.gz', study.scan, tmp_path / 'store', 'AB', out, volume=volume)
