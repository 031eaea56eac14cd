"""Layouts against SimpleITK's readers, published splits against the lists they come from, and one real patient."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

import pe_advseg
from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.public_datasets import PUBLIC
from pe_advseg.data.published_splits import CASES, published_splits, write_published
from pe_advseg.data.read_study import read_embolus_ids, read_study
from pe_advseg.data.split_patients import five_folds
from pe_advseg.data.splits import Split, restrict
from pe_advseg.phantom.twin_studies import twin_study
from pe_advseg.phantom.twins import write_twin

FUMPE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'FUMPE'
SHAPE = (16, 64, 64)


# ---- READ


def same_as_gdcm(study):
    "What SimpleITK reads of a READ case, paired by index, has the same HU under the label as what we read."
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(study.scan)))
    image, label = (
        SimpleITK.GetArrayFromImage(picture) for picture in (reader.Execute(), SimpleITK.ReadImage(str(study.mask)))
    )
    volume, mask = read_study(study)
    assert mask.any() and np.array_equal(np.sort(volume.hu[mask > 0]), np.sort(image[label > 0]))
    assert 'label paired by index, its header not used' in volume.notes[0]
    number = int(study.patient[:2])
    np.testing.assert_array_equal(mask, twin_study('READ', number, SHAPE).mask)


def test_reads_label_is_aligned_with_what_gdcm_sorts(tmp_path):
    [study] = find_studies(write_twin('READ', tmp_path / 'READ', [1]))
    same_as_gdcm(study)


@pytest.mark.parametrize('by_maker', [True, False])
def test_read_flattened(tmp_path, by_maker):
    "images/ (with or without the makers' folders) and rs/, as the benchmark of 2026 has it."
    twin, flat = write_twin('READ', tmp_path / 'twin', 2), tmp_path / 'READ'
    (flat / 'rs').mkdir(parents=True)
    for scan in (twin / 'CT scans (DICOM files)').glob('*/*'):
        shutil.copytree(scan, flat / 'images' / (scan.parent.name if by_maker else '') / scan.name)
    for label in twin.glob('Ground truth*/*/*.nii.gz'):
        shutil.copy(label, flat / 'rs')
    studies = find_studies(flat)
    assert [(study.patient, study.rule, study.mask.name) for study in studies] == [
        ('01GE', 'index', '01GE.nii.gz'),
        ('02TS', 'index', '02TS.nii.gz'),
    ]
    for study in studies:
        same_as_gdcm(study)


# ---- volume files with masks in other orientations, turned by SimpleITK


def picture(array, volume):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(volume.spacing[::-1])
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction[:, ::-1].ravel().tolist())
    return image


TURNS = {
    'same': lambda image: image,
    'flipped': lambda image: SimpleITK.Flip(image, [True, False, True]),
    'RAI': lambda image: SimpleITK.DICOMOrient(image, 'RAI'),
    'sagittal': lambda image: SimpleITK.DICOMOrient(image, 'PIR'),
    'coronal': lambda image: SimpleITK.DICOMOrient(image, 'LSA'),
    'axes': lambda image: SimpleITK.PermuteAxes(image, [2, 0, 1]),
}


@pytest.mark.parametrize('turn', TURNS)
@pytest.mark.parametrize(
    'scan_ending, mask_ending', [('nrrd', 'nrrd'), ('mha', 'mha'), ('nii.gz', 'nrrd'), ('nrrd', 'nii.gz')]
)
def test_pairs(tmp_path, scan_ending, mask_ending, turn):
    truth = twin_study('FUMPE', 1, SHAPE)
    SimpleITK.WriteImage(picture(truth.volume.hu, truth.volume), str(tmp_path / f'one.{scan_ending}'))
    SimpleITK.WriteImage(TURNS[turn](picture(truth.mask, truth.volume)), str(tmp_path / f'one_mask.{mask_ending}'))
    SimpleITK.WriteImage(picture(truth.volume.hu, truth.volume), str(tmp_path / 'two.mha'))
    one, two = find_studies(tmp_path, 'h')
    assert (one.key, two.key, two.mask) == ('h/one', 'h/two', None)
    volume, mask = read_study(one)
    index = np.rint(volume.to_index(truth.volume.to_patient(np.argwhere(truth.mask)))).astype(
        int
    )  # by place in the patient
    assert mask.sum() == truth.mask.sum() > 0 and mask[tuple(index.T)].all()


def test_a_pair_on_another_grid_is_refused(tmp_path):
    truth = twin_study('FUMPE', 1, SHAPE)
    SimpleITK.WriteImage(picture(truth.volume.hu, truth.volume), str(tmp_path / 'one.mha'))
    moved = picture(truth.mask, truth.volume)
    moved.SetOrigin([value + 40 for value in moved.GetOrigin()])
    SimpleITK.WriteImage(moved, str(tmp_path / 'one_mask.mha'))
    with pytest.raises(MaskError, match='does not cover the scan|voxels off'):
        read_study(find_studies(tmp_path)[0])
    text = (tmp_path / 'one_mask.mha').read_bytes()
    (tmp_path / 'local.raw').write_bytes(text[-truth.mask.size :])
    for value in (b'local.raw', b'other.raw', b'LIST'):  # SimpleITK would follow it
        assert text.count(b'ElementDataFile = LOCAL') == 1
        (tmp_path / 'one_mask.mha').write_bytes(text.replace(b'ElementDataFile = LOCAL', b'ElementDataFile = ' + value))
        with pytest.raises(MaskError, match='keeps its data in another file'):
            read_study(find_studies(tmp_path)[0])
    (tmp_path / 'three_mask.mha').write_bytes(b'')
    with pytest.raises(MaskError, match='has no scan beside it'):
        find_studies(tmp_path)


# ---- CAD-PE


def cad_pe(folder, edit):
    "A twin's case whose mask file holds what `edit` makes of its picture."
    [study] = find_studies(write_twin('CAD-PE', folder / 'CAD-PE', [1]))
    SimpleITK.WriteImage(edit(SimpleITK.ReadImage(str(study.mask))), str(study.mask))
    return study


def without_header(image):
    return SimpleITK.GetImageFromArray(SimpleITK.GetArrayFromImage(image))


def test_cad_pe_masks_under_another_header_are_placed_by_index(tmp_path):
    truth = twin_study('CAD-PE', 1, SHAPE)
    study = cad_pe(tmp_path, without_header)
    for scan in (
        lambda image: image,
        lambda image: SimpleITK.Flip(image, [False, True, True]),
    ):  # a scan stored the other way round as well
        SimpleITK.WriteImage(scan(picture(truth.volume.hu, truth.volume)), str(study.scan))
        SimpleITK.WriteImage(without_header(scan(picture(truth.clot_ids, truth.volume))), str(study.mask))
        volume, ids = read_embolus_ids(study)
        assert any('mask placed by index: its header has another grid' in note for note in volume.notes)
        index = np.rint(volume.to_index(truth.volume.to_patient(np.argwhere(truth.clot_ids)))).astype(int)
        np.testing.assert_array_equal(ids[tuple(index.T)], truth.clot_ids[truth.clot_ids > 0])
        assert (ids > 0).sum() == len(index)


def test_cad_pe_masks_of_another_size_are_refused(tmp_path):
    with pytest.raises(MaskError, match=r'the mask is \(64, 64, 15\)'):
        read_study(cad_pe(tmp_path, lambda image: without_header(image)[:, :, 1:]))


def test_cad_pe_spellings(tmp_path):
    folder = write_twin('CAD-PE', tmp_path / 'CAD-PE', [1, 2, 109])
    assert sorted(path.name for path in (folder / 'rs').iterdir()) == [
        '0001RefStd.nrrd',
        '002RefStd.nrrd',
        'e0109RefStd.nrrd',
    ]
    assert [(study.patient, study.mask.name) for study in find_studies(folder)] == [
        ('001', '0001RefStd.nrrd'),
        ('002', '002RefStd.nrrd'),
        ('e0109', 'e0109RefStd.nrrd'),
    ]
    assert any('3.0 mm apart' in note for note in read_study(find_studies(folder)[2])[0].notes)
    shutil.copy(folder / 'rs' / '0001RefStd.nrrd', folder / 'rs' / '001RefStd.nrrd')
    with pytest.raises(MaskError, match='means the same case as'):
        find_studies(folder)


# ---- nnU-Net, and patients that are refused one by one


def test_nnunet_without_a_label(tmp_path):
    folder = write_twin('nnU-Net', tmp_path / 'Dataset001', 2)
    (folder / 'labelsTr' / 'case002.nii.gz').unlink()
    one, two = find_studies(folder)
    np.testing.assert_array_equal(read_study(one)[1], twin_study('nnU-Net', 1, SHAPE).mask)
    assert two.patient == 'case002' and two.mask is None and read_study(two)[1] is None
    shutil.copy(folder / 'imagesTr' / 'case001_0000.nii.gz', folder / 'imagesTr' / 'case001_0001.nii.gz')
    with pytest.raises(InputError, match='is not channel 0000'):
        find_studies(folder)


def test_one_bad_patient_does_not_hide_the_others(tmp_path):
    scans = write_twin('FUMPE', tmp_path / 'F', 3) / 'CT_scans'
    for path in scans.iterdir():
        shutil.copytree(path, tmp_path / 'hospital' / path.name)
    bad = sorted((tmp_path / 'hospital').iterdir())[1]
    for name in ('mask.nii', 'mask.nii.gz'):
        (bad / name).write_bytes(b'x')
    refused = []
    good = find_studies(tmp_path / 'hospital', refused=refused)
    assert [study.patient for study in good] == [
        path.name for path in sorted((tmp_path / 'hospital').iterdir()) if path != bad
    ]
    assert [(type(error), error.file) for error in refused] == [(MaskError, bad.name)] and 'several masks' in str(
        refused[0]
    )
    with pytest.raises(MaskError, match='several masks'):
        find_studies(tmp_path / 'hospital')
    for path in (tmp_path / 'hospital').iterdir():
        if path != bad:
            shutil.rmtree(path)
    assert (
        find_studies(tmp_path / 'hospital', refused=(again := [])) == [] and len(again) == 1
    )  # all refused is not "nothing found"


# ---- published splits


def test_the_files_are_what_the_function_makes(tmp_path):
    there = Path(pe_advseg.__file__).parent / 'splits_published'
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in write_published(tmp_path)
    }


def test_published_lists():
    fumpe, cad_pe, read = ([case for group in CASES[name] for case in group] for name in ('FUMPE', 'CAD-PE', 'READ'))
    assert sorted(fumpe) == [f'PAT{k:03d}' for k in range(1, 36)] and len(set(cad_pe)) == 91 and len(set(read)) == 80
    by_spacing = [len(group) for group in CASES['FUMPE']]  # slices 1.0, 0.5 and 1.5 mm apart
    assert by_spacing == [27, 6, 2] and CASES['FUMPE'][2] == ['PAT024', 'PAT032']
    splits = published_splits('CAD-PE')
    assert splits['challenge'].train == tuple(f'CAD-PE/{k:03d}' for k in range(1, 21)) and splits[
        'challenge'
    ].test == splits['AANet'].test == tuple(f'CAD-PE/{k:03d}' for k in range(21, 41))
    assert set(splits['AANet'].train) == {f'CAD-PE/{case}' for case in cad_pe} - set(splits['AANet'].test)


@pytest.mark.parametrize('name', CASES)
def test_folds_partition_and_are_even(name):
    folds = [published_splits(name)[f'fold {k}'] for k in range(5)]
    every = {f'{name}/{case}' for group in CASES[name] for case in group}
    assert (
        sorted(case for fold in folds for case in fold.test)
        == sorted(every)
        == sorted(case for fold in folds for case in fold.validation)
    )
    for group in (
        CASES[name]
        if name != 'READ'
        else [[case for block in CASES[name] for case in block if case[2:] == maker][:20] for maker in ('GE', 'TS')]
    ):
        counts = [len({f'{name}/{case}' for case in group} & set(fold.test)) for fold in folds]
        assert max(counts) - min(counts) <= 1


def test_folds_do_not_depend_on_who_is_there(tmp_path):
    dataset = PUBLIC['READ']
    studies = dataset.studies(write_twin('READ', tmp_path / 'READ', range(1, 8), (8, 32, 32)))
    all_of_them, some = dataset.splits(studies), dataset.splits(studies[1:])

    def side(splits, kind, key):
        names = [name for name in ('train', 'validation', 'test') if key in getattr(splits[kind], name)]
        return names[0] if names else None

    for kind in set(all_of_them) & set(some):
        assert [side(some, kind, study.key) for study in studies[1:]] == [
            side(all_of_them, kind, study.key) for study in studies[1:]
        ]
    assert restrict(Split(('a/1', 'a/2'), (), ('a/3',)), ['a/2', 'a/3']) == Split(('a/2',), (), ('a/3',))
    assert five_folds(studies, 0)[0].digest == five_folds(studies[::-1], 0)[0].digest


def test_a_changed_split_is_refused(tmp_path, monkeypatch):
    target = tmp_path / 'splits_published'
    write_published(target)
    facts = json.loads((target / 'FUMPE.json').read_text())
    facts['fold 0']['test'][0], facts['fold 0']['train'][0] = facts['fold 0']['train'][0], facts['fold 0']['test'][0]
    (target / 'FUMPE.json').write_text(json.dumps(facts))
    (target / 'READ.json').write_text('[]')
    (target / 'CAD-PE.json').unlink()
    monkeypatch.setattr('importlib.resources.files', lambda package: tmp_path)
    with pytest.raises(InputError, match='changed after it was written'):
        published_splits('FUMPE')
    for name in ('READ', 'CAD-PE'):
        with pytest.raises(InputError, match='no readable split'):
            published_splits(name)


# ---- the real patient


@pytest.mark.skipif(
    not FUMPE.is_dir(), reason='the real patient of FUMPE lies beside the project (../shared/data/FUMPE), not here'
)
def test_the_real_patient_is_as_published():
    "Slices, spacing, slices with clot, pieces and mL of PAT029, as measured on the whole of FUMPE."
    [study] = PUBLIC['FUMPE'].studies(FUMPE)
    volume, ids = read_embolus_ids(study)
    assert study.patient == 'PAT029' and len(volume.hu) == 197
    assert volume.spacing == pytest.approx((1.0, 0.65, 0.65), abs=0.002)
    assert ids.any((1, 2)).sum() == 61 and len(np.unique(ids[ids > 0])) == 4
    assert (ids > 0).sum() * volume.voxel_ml == pytest.approx(18.12, abs=0.03)
