"""Folders of masks from elsewhere: which scan each belongs to, and one bad file among good ones."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from support.review_scans import annotated, files, on_disk

from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.read_study import read_embolus_ids, read_study
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.phantom_masks import write_plain_nifti
from pe_advseg.review.history import history, read_correction
from pe_advseg.review.import_correction import import_correction
from pe_advseg.review.import_corrections import import_corrections
from pe_advseg.review.orientation import MIRRORS
from pe_advseg.scans.nifti import write_nifti
from pe_advseg.scans.seg_write import write_segmentation
from pe_advseg.scans.series import pixel_digest, study_name

FUMPE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'FUMPE'


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
    (volume, numbers), (_other, _theirs) = made['patient1'], made['patient2']
    ways = {
        'named by slices': lambda folder: write_segmentation(
            folder / 'xyz.dcm', numbers, volume, root / 'scans/patient1'
        ),
        'file': lambda folder: write_nifti(folder / 'patient1_mask.nii.gz', numbers, volume),
        'slicer': lambda folder: SimpleITK.WriteImage(
            SimpleITK.ReadImage(root / 'a.nii.gz'), folder / 'patient1 Segmentation.seg.nrrd'
        ),
        'folder': lambda folder: (
            (folder / 'patient1').mkdir(),
            write_nifti(folder / 'patient1/abc.nii.gz', numbers, volume),
        ),
        'study': lambda folder: (
            (folder / study_name(volume)).mkdir(),
            write_nifti(folder / study_name(volume) / 'corrected.nii.gz', numbers, volume),
        ),
        'digest': lambda folder: (
            write_nifti(folder / 'abc.nii.gz', numbers, volume),
            (folder / 'abc.json').write_text(json.dumps(dict(digest=pixel_digest(volume)))),
        ),
        'series': lambda folder: write_nifti(
            folder / f'{pydicom.dcmread(root / "scans/patient1/IM0001.dcm").SeriesInstanceUID}.nii.gz', numbers, volume
        ),
    }
    write_nifti(root / 'a.nii.gz', numbers, volume)
    for way, write in ways.items():
        folder = root / 'ways' / way
        folder.mkdir(parents=True)
        write(folder)
        [result] = import_corrections(folder, root / 'scans', root / 'store' / way.split()[0], 'AB')
        assert (result.study, result.error) == (study_name(volume), None), way
        np.testing.assert_array_equal(read_correction(root / 'store' / way.split()[0], volume)[0], numbers)
    write_nifti(root / 'inbox/somebody.nii.gz', numbers, volume)
    [result] = import_corrections(root / 'inbox', root / 'scans', root / 'store/x', 'AB')
    assert (
        'belongs to none of the 2 scans' in result.error
        and 'its name or that of a folder' in result.error
        and not (root / 'store/x').exists()
    )


def test_a_bad_file_does_not_stop_the_others(ward):
    root, made = ward
    (_volume, _numbers), (other, theirs) = made['patient1'], made['patient2']
    (root / 'inbox/patient1.nii.gz').write_bytes(b'\x1f\x8b damaged')
    write_nifti(root / 'inbox/patient2.nii.gz', theirs, other)
    results = import_corrections(root / 'inbox', root / 'scans', root / 'store', 'AB')
    assert statuses(results) == {'patient1.nii.gz': 'refused', 'patient2.nii.gz': 'saved'} and len(results.refused) == 1
    assert set(results.table().columns) == {'file', 'study', 'status', 'emboli', 'what'} and 'no readable NIfTI' in str(
        results
    )
    write_nifti(root / 'inbox/patient2_edited.nii.gz', theirs, other)
    assert set(statuses(import_corrections(root / 'inbox', root / 'scans', root / 'store', 'AB')).values()) == {
        'refused'
    }  # two for one scan: which is meant?
    assert len(history(root / 'store', study_name(other))) == 1


def test_a_dry_run_writes_nothing(ward):
    root, made = ward
    volume, numbers = made['patient1']
    write_nifti(root / 'inbox/patient1.nii.gz', numbers, volume)
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
    write_nifti(out / 'mask_corrected.nii.gz', np.where(numbers == 2, 0, numbers), volume)
    [result] = import_corrections(root / 'out', root / 'scans', root / 'store', 'AB', annotations=root / 'out')
    assert (
        '2 kept, 1 removed' in result.difference
        and history(root / 'store', result.study)[0]['started_from']['what'] == 'annotation'
    )
    with pytest.raises(InputError, match='the annotation itself'):
        import_correction(out / 'mask.nii.gz', root / 'scans/patient1', root / 'store', 'AB', out)


@pytest.fixture
def returned(ward):
    "What an archive gives back: a folder named after a patient, with our SEG as we sent it."
    root, made = ward
    volume, numbers = made['patient1']
    out = annotated(root / 'out' / study_name(volume), volume, numbers)
    write_segmentation(out / 'segmentation.dcm', numbers, volume, root / 'scans/patient1')
    folder = root / 'PLANTED Eva'
    folder.mkdir()
    (folder / 'SEG0001.dcm').write_bytes((out / 'segmentation.dcm').read_bytes())
    return root, folder, dict(scans=root / 'scans', store=root / 'store', reviewer='AB', annotations=root / 'out')


def test_our_own_unchanged_seg_is_no_correction_wherever_it_lies(ward, returned):
    (volume, numbers), (root, folder, about) = ward[1]['patient1'], returned
    assert statuses(import_corrections(folder, **about)) == {'SEG0001.dcm': 'skipped'}
    assert statuses(import_corrections(folder / 'SEG0001.dcm', **about)) == {'SEG0001.dcm': 'skipped'}
    copied = pydicom.dcmread(folder / 'SEG0001.dcm')
    copied.PatientComments = 'added by an archive'
    copied.save_as(folder / 'SEG0001.dcm')
    assert statuses(import_corrections(folder, **about)) == {'SEG0001.dcm': 'skipped'}
    assert not (root / 'store').exists()
    write_segmentation(folder / 'theirs.dcm', np.where(numbers == 2, 0, numbers), volume, root / 'scans/patient1')
    assert statuses(import_corrections(folder, **about)) == {'SEG0001.dcm': 'skipped', 'theirs.dcm': 'saved'}
    np.testing.assert_array_equal(read_correction(root / 'store', volume)[0], np.where(numbers == 2, 0, numbers))
    # and what the store wrote is ours, too
    [written] = (root / 'store').glob('study-*/0001/segmentation.dcm')
    assert statuses(import_corrections(written, **about)) == {'segmentation.dcm': 'skipped'}


def test_our_seg_with_its_identifier_but_other_marks_is_a_correction(ward, returned):
    (volume, numbers), (root, folder, about) = ward[1]['patient1'], returned
    seg = pydicom.dcmread(folder / 'SEG0001.dcm')
    first = seg.pixel_array.copy()
    first[0] = 0
    seg.PixelData = np.packbits(first.ravel(), bitorder='little').tobytes()
    seg.PixelData += b'\0' * (len(seg.PixelData) % 2)
    seg.save_as(folder / 'SEG0001.dcm')
    assert statuses(import_corrections(folder, **about)) == {'SEG0001.dcm': 'saved'}
    assert (read_correction(root / 'store', volume)[0] != numbers).any()


def test_an_unchanged_seg_is_confirmed_when_asked(ward, returned):
    (volume, numbers), (root, folder, about) = ward[1]['patient1'], returned
    [result] = import_corrections(folder, confirm=True, **about)
    assert (result.status, result.emboli) == ('confirmed', 3)
    [record] = history(root / 'store', study_name(volume))
    assert record['origin']['confirmed'] and record['reviewer'] == 'AB'
    np.testing.assert_array_equal(read_correction(root / 'store', volume)[0], numbers)


def test_nothing_that_is_printed_names_a_file_or_a_folder(ward, returned):
    import zipfile

    root, made = ward
    (volume, numbers), (_, folder, about) = made['patient1'], returned
    inside = folder / 'MEIER Eva' / 'CT 1'
    inside.mkdir(parents=True)
    write_nifti(inside / 'somebody.nii.gz', numbers, volume)
    (inside / 'MEIER.nii.gz').write_bytes(b'\x1f\x8b damaged')
    (inside / 'MEIER.txt').write_text('a note')
    with zipfile.ZipFile(root / 'PLANTED.zip', 'w') as packed:
        for path in folder.rglob('*'):
            packed.write(path, path.relative_to(root))
    names = {'PLANTED', 'MEIER', 'Eva', 'somebody', 'SEG0001', 'patient1'}
    for source in (folder, root / 'PLANTED.zip', inside / 'MEIER.nii.gz'):
        results = import_corrections(source, **about)
        assert not names & set(re.findall(r'\w+', str(results)))
        assert results.refused
    assert 'file 1 of' in str(import_corrections(folder, **about))
    with pytest.raises(InputError) as caught:
        import_corrections(root / 'PLANTED Eva Meier', **about)
    assert 'PLANTED' not in str(caught.value)


def monai(root, made, **said):
    "As MONAI Label's LocalDatastore lays it out (monailabel/datastore/local.py)."
    images, objects = root / 'monai', {}
    for tag in ('final', 'original'):
        (images / 'labels' / tag).mkdir(parents=True)
    for name, (volume, numbers) in made.items():
        nibabel.save(nibabel.Nifti1Image(volume.hu.T, volume.nifti_affine()), images / f'{name}.nii.gz')
        write_nifti(images / 'labels/original' / f'{name}.nii.gz', numbers * 0 + (numbers > 0), volume)
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
    write_nifti(images / 'labels/final/patient2.nii.gz', np.where(numbers == 1, 0, numbers), volume)
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
    write_nifti(root / 'inbox/patient1.nii.gz', numbers * 0, volume)
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
        write_nifti(tmp_path / 'm.nii.gz', np.flip(numbers, axes), volume)
        with pytest.raises(MaskError, match='mirrored'):
            import_correction(tmp_path / 'm.nii.gz', study.scan, tmp_path / 'store', 'AB', out, volume=volume)


@pytest.mark.parametrize('given', ['file', 'folder'])
def test_a_scan_that_cannot_be_read_is_not_named_in_print(tmp_path, given):
    "The name of a scan may be a patient's; the table in the terminal does not show it."
    study = make_study(HOSPITALS['harbour'], 1, (16, 96, 96))
    scan = tmp_path / 'scans' / 'MEIER_HANS.nii.gz'
    scan.parent.mkdir()
    write_plain_nifti(scan, study.volume.hu, study.volume)
    write_plain_nifti(tmp_path / 'MEIER_HANS.nii.gz', study.mask.astype(np.uint8), study.volume)
    scan.write_bytes(scan.read_bytes()[:20_000])
    scans = scan if given == 'file' else scan.parent
    results = import_corrections(tmp_path / 'MEIER_HANS.nii.gz', scans=scans, store=tmp_path / 'store', reviewer='AB')
    assert results[0].status == 'refused' and 'MEIER' not in str(results)
