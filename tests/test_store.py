"""The store of corrections under processes that race and die, and as data for training."""

import datetime
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from support.review_scans import AXIAL, annotated, files, highdicom_seg, make, on_disk

from pe_advseg.annotation.annotation import Annotation, write_arrays
from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.core.paths import whole_folder, write_whole
from pe_advseg.core.probability import to_bytes
from pe_advseg.core.volume import Volume
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.read_study import read_embolus_ids, read_study
from pe_advseg.data.sources import is_synthetic
from pe_advseg.evaluation.findings import embolus_table
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.review import store as store_module
from pe_advseg.review.foreign_masks import read_corrected
from pe_advseg.review.history import corrections_table, history, read_correction
from pe_advseg.review.import_correction import import_correction
from pe_advseg.review.import_corrections import import_corrections
from pe_advseg.review.save_correction import save_correction
from pe_advseg.scans.nifti import write_nifti
from pe_advseg.scans.series import pixel_digest, read_series, study_name
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import write_series


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
    write_nifti(tmp_path / 'scan.nii.gz', volume.hu, volume)
    volume = read_volume(tmp_path / 'scan.nii.gz')

    def save(numbers, **options):
        return save_correction(tmp_path / 'store', tmp_path / 'scan.nii.gz', volume, numbers, 'AB', **options)

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
    "One of two series in a folder, then a stack that is not even: review, import, training read what was annotated."
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
        write_nifti(tmp_path / 'corrected.nii.gz', numbers, volume)
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


def test_a_store_that_another_process_makes_in_between_is_opened(tmp_path, monkeypatch):
    def made_meanwhile(folder):
        write_whole(folder / 'corrections.json', '{"what": "corrections"}')
        return False

    monkeypatch.setattr(store_module, '_is_free', made_meanwhile)
    assert store_module.open_store(tmp_path / 'new', make=True) == tmp_path / 'new'


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='this system has no SIGKILL')
def test_killed_half_way_leaves_nothing_half(case):
    "The process dies when all but the record is written; the lock is free again, and the next one gets the number."
    root, scan, volume, numbers = case
    save_correction(root / 'store', scan, volume, numbers, 'AB')
    write_nifti(root / 'patient1.nii.gz', np.where(numbers == 1, 0, numbers), volume)
    program = f"""
import os, signal
from pe_advseg.review import import_corrections, save_correction
whole = save_correction.write_whole
def dies(path, text):
    if path.name == 'correction.json': os.kill(os.getpid(), signal.SIGKILL)
    return whole(path, text)
save_correction.write_whole = dies
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
    write_nifti(root / 'patient1.nii.gz', numbers[::-1], volume)
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
    table = corrections_table(root / 'store').set_index('study')
    assert table.loc[study_name(volume), ['version', 'reviewer', 'emboli', 'after_ml']].tolist() == [2, 'CD', 0, 0]
    assert table.loc[study_name(volume), 'before_ml'] == pytest.approx((numbers > 0).sum() * volume.voxel_ml)
    with pytest.raises(InputError, match='no correction'):
        history(root / 'store', 'study-00000000')
    with pytest.raises(InputError, match='no version 3'):
        read_correction(root / 'store', volume, 3)


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
