"""Masks of every kind against nibabel and highdicom, layouts, splits, leaks, and one real patient."""

import gzip
import json
import shutil
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.sr.codedict import codes
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.core.volume import Volume
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.read_study import read_study
from pe_advseg.data.split_patients import draw_order, split_patients
from pe_advseg.data.splits import Split, check_leak, read_split, write_split
from pe_advseg.data.studies import Study
from pe_advseg.scans.mask_values import binary_mask
from pe_advseg.scans.series import pixel_digest, read_series
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
SHAPE = (8, 12, 14)
FUMPE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'FUMPE'
fast = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make(seed=0, direction=AXIAL, origin=(-30.0, 12.5, -700.25)):
    """A volume whose mask has no symmetry, and its mask, a copy of which is in the HU: voxels of 77 HU are clot."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-1000, 70, SHAPE).astype(np.int16)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2:9, 3] = mask[1, 2, 3:11] = mask[1:6, 2, 3] = mask[5, 3, 4] = 1
    mask[tuple(rng.integers(0, SHAPE, (5, 3)).T)] = 1
    hu[mask > 0] = 77
    return Volume(hu, (1.5, 0.7, 0.8), origin, direction), mask


def check(study):
    volume, mask = read_study(study)
    assert mask.dtype == np.uint8 and mask.shape == volume.shape and mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, volume.hu == 77)
    return volume


def oriented(seed, flips):
    rng = np.random.default_rng(seed)
    direction = Rotation.from_rotvec(rng.uniform(-0.3, 0.3, 3)).as_matrix() @ AXIAL * np.where(flips, -1, 1)
    return make(seed, direction, tuple(rng.uniform(-300, 300, 3)))


def refused(study, words):
    with pytest.raises(MaskError) as caught:
        read_study(study)
    assert words in str(caught.value), str(caught.value)
    assert caught.value.remedy and str(study.scan) not in str(caught.value)


# ---- NIfTI


@given(
    st.integers(0, 9999),
    st.tuples(*[st.booleans()] * 3),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.booleans()] * 3),
    st.booleans(),
)
@fast
def test_nifti_lands_by_world_position_whatever_the_storage_order(
    tmp_path_factory, seed, flips, order, mask_flips, reverse
):
    """The mask is stored by nibabel in any order of axes; nibabel's own reorientation keeps the world fixed."""
    volume, mask = oriented(seed, flips)
    patient = tmp_path_factory.mktemp('n') / 'hospital' / 'p'
    write_series(volume, patient, 'P', reverse=reverse)
    image = nibabel.Nifti1Image(mask.transpose(2, 1, 0), volume.nifti_affine())
    turn = np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, mask_flips, strict=True)])
    nibabel.save(image.as_reoriented(turn), patient / 'mask.nii.gz')
    check(find_studies(patient.parent)[0])


def test_nifti_voxel_by_voxel_through_world_coordinates(tmp_path):
    """Independent of `place_mask`: every clot voxel of the file, sent to the patient by nibabel, hits 77 HU."""
    volume, mask = oriented(3, (True, False, True))
    patient = tmp_path / 'hospital' / 'p'
    write_series(volume, patient, 'P')
    nibabel.save(
        nibabel.Nifti1Image(
            mask.transpose(2, 1, 0)[::-1],
            volume.nifti_affine() @ [[-1, 0, 0, SHAPE[2] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        ),
        patient / 'mask.nii.gz',
    )
    read, placed = read_study(find_studies(patient.parent)[0])
    stored = nibabel.load(patient / 'mask.nii.gz')
    points = nibabel.affines.apply_affine(stored.affine, np.argwhere(np.asanyarray(stored.dataobj))) * [-1, -1, 1]
    index = np.rint(read.to_index(points)).astype(int)
    assert (read.hu[tuple(index.T)] == 77).all() and placed.sum() == len(index)


def nifti_study(tmp_path, edit=lambda array, affine: (array, affine), name='mask.nii.gz', raw=None):
    volume, mask = make()
    patient = tmp_path / 'hospital' / 'p'
    shutil.rmtree(patient, ignore_errors=True)
    write_series(volume, patient, 'P')
    if raw is not None:
        (patient / name).write_bytes(raw)
    else:
        nibabel.save(nibabel.Nifti1Image(*edit(mask.transpose(2, 1, 0), volume.nifti_affine())), patient / name)
    return find_studies(patient.parent)[0]


def shifted(mm):
    def edit(array, affine):
        affine = affine.copy()
        affine[0, 3] += mm
        return array, affine

    return edit


def test_nifti_faults(tmp_path):
    refused(
        nifti_study(tmp_path, lambda a, m: (a[:, :-1], m)), 'the mask is (14, 11, 8), its scan is (14, 12, 8) (x, y, z)'
    )
    refused(nifti_study(tmp_path, shifted(0.4)), '0.50 voxels off')
    refused(nifti_study(tmp_path, shifted(0.8)), 'does not cover the scan')
    refused(nifti_study(tmp_path, lambda a, m: (a, m @ np.diag([1, 1, 1.1, 1]))), 'voxels off')
    refused(nifti_study(tmp_path, lambda a, m: (a, m @ np.diag([2, 2, 1, 1]))), 'pixel size or direction differ')
    refused(nifti_study(tmp_path, lambda a, m: (a * 0.5, m)), 'holds the values 0, 0.5')
    refused(nifti_study(tmp_path, lambda a, m: (a * 2, m)), 'holds the values 0, 2')
    refused(nifti_study(tmp_path, lambda a, m: (np.stack([a, a], -1), m)), 'the mask is (14, 12, 8, 2)')
    refused(nifti_study(tmp_path, raw=b''), 'no readable NIfTI')
    refused(nifti_study(tmp_path, raw=gzip.compress(b'x' * 500)), 'no readable NIfTI')
    good = nifti_study(tmp_path)
    good.mask.write_bytes(gzip.compress(gzip.decompress(good.mask.read_bytes())[:-300]))
    refused(good, 'is damaged')
    blank = nibabel.Nifti1Image(make()[1].transpose(2, 1, 0), None)
    good = nifti_study(tmp_path)
    blank.header['sform_code'] = blank.header['qform_code'] = 0
    nibabel.save(blank, good.mask)
    refused(good, 'says nothing about orientation')


def test_nifti_accepts(tmp_path):
    for edit in (
        lambda a, m: (a, m),
        lambda a, m: (a[..., None], m),
        lambda a, m: (a.astype(np.float64), m),
        lambda a, m: (a * np.uint8(255), m),
        shifted(0.1),
    ):
        check(nifti_study(tmp_path, edit))
    check(nifti_study(tmp_path, name='mask.nii'))

    def number(array, affine):
        array = array.copy()
        array[3, 2, 1] = 2
        return array, affine

    assert '2 embolus numbers' in str(check(nifti_study(tmp_path, number)).notes)
    study = nifti_study(tmp_path, lambda a, m: (a * 0, m))
    assert not read_study(study)[1].any()  # an empty mask is a negative patient


# ---- FUMPE


def fumpe_study(tmp_path, reverse=False, edit=lambda mask: {'Mask': mask}, names=None, **options):
    volume, mask = make()
    root = tmp_path / 'FUMPE'
    shutil.rmtree(root, ignore_errors=True)
    (root / 'GroundTruth').mkdir(parents=True)
    write_series(
        volume,
        root / 'CT_scans' / 'PAT001',
        'P',
        reverse=reverse,
        file_names=names or [f'D{i + 1:04d}.dcm' for i in range(8)],
        header=dict(SeriesInstanceUID='0', StudyInstanceUID='0', StudyDate='0', Manufacturer='0'),
    )
    in_files = mask[::-1] if reverse else mask
    savemat(root / 'GroundTruth' / 'PAT001.mat', edit(in_files.transpose(1, 2, 0)), **options)
    return find_studies(root)[0]


def test_fumpe_both_directions(tmp_path):
    for reverse in (False, True):
        study = fumpe_study(tmp_path, reverse)
        assert study.key == 'FUMPE/PAT001'
        check(study)
        check(fumpe_study(tmp_path, reverse, do_compression=True))
        check(fumpe_study(tmp_path, reverse, lambda mask: {'Mask': mask * 255}))
        check(fumpe_study(tmp_path, reverse, lambda mask: {'Mask': mask.astype(bool)}))
        check(fumpe_study(tmp_path, reverse, names=[f'D{i + 1}.dcm' for i in range(5, 13)]))  # D9 comes before D10
    assert find_studies(tmp_path / 'FUMPE', hospital='harbour')[0].hospital == 'harbour'


def test_fumpe_file_names_and_instance_numbers_must_agree(tmp_path):
    refused(fumpe_study(tmp_path, names=[f'D{8 - i}.dcm' for i in range(8)]), 'different orders')


def test_a_dropped_duplicate_does_not_shift_the_mask_silently(tmp_path):
    study = fumpe_study(tmp_path)
    shutil.copy(study.scan / 'D0003.dcm', study.scan / 'D0009.dcm')
    assert 'dropped' in str(check(study).notes)


# ---- PNG


def png_study(tmp_path, sub='', reverse=False):
    volume, mask = make()
    patient = tmp_path / 'hospital' / 'p'
    shutil.rmtree(patient, ignore_errors=True)
    sources = write_series(volume, patient / sub, 'P', reverse=reverse)
    for source, part in zip(sources, mask, strict=True):
        if part.any():
            Image.fromarray(part * 255).save((patient / sub / source.file).with_suffix('.png'))
    return find_studies(patient.parent)[0]


def test_png_beside_slices(tmp_path):
    for sub in ('', '1'):
        for reverse in (False, True):
            assert 'have a PNG' in str(check(png_study(tmp_path, sub, reverse)).notes)


def test_png_faults(tmp_path):
    study = png_study(tmp_path)
    path = sorted(study.mask.glob('*.png'))[0]
    for picture, words in (
        (Image.fromarray(np.zeros((5, 6), np.uint8)), 'the mask is (5, 6), its slice is (12, 14)'),
        (Image.fromarray(np.zeros((12, 14, 3), np.uint8)), 'kind RGB'),
        (Image.fromarray(np.full((12, 14), 128, np.uint8)), 'holds the values 128'),
        (Image.fromarray(np.tile(np.arange(14, dtype=np.uint8), (12, 1))), 'holds the values 0, 1, 2'),
    ):
        picture.save(path)
        refused(study, words)
    path.write_bytes(path.read_bytes()[:45])
    refused(study, 'no readable PNG')


# ---- DICOM SEG, written by highdicom


def segment(number=1, label='embolus', code=codes.SCT.Embolus):
    return highdicom.seg.SegmentDescription(number, label, code, code, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)


def seg_study(
    tmp_path,
    flips=(False, False, False),
    seed=0,
    reverse=False,
    name='mask.dcm',
    kind='BINARY',
    mask=None,
    segments=None,
    **options,
):
    volume, truth = oriented(seed, flips)
    mask = truth if mask is None else mask(truth)
    patient = tmp_path / 'hospital' / 'p'
    shutil.rmtree(patient, ignore_errors=True)
    sources = write_series(volume, patient, 'P', reverse=reverse)
    slices = [pydicom.dcmread(patient / source.file) for source in sources]
    highdicom.seg.Segmentation(
        slices, mask, kind, segments or [segment()], '2.25.1', 1, '2.25.2', 1, 'm', 'n', '1', '1', **options
    ).save_as(patient / name)
    return find_studies(patient.parent)[0]


@pytest.mark.parametrize('flips', [(z, y, x) for z in (False, True) for y in (False, True) for x in (False, True)])
def test_seg_orientations(tmp_path, flips):
    for seed, reverse in ((1, False), (2, True)):
        assert 'DICOM SEG' in str(check(seg_study(tmp_path, flips, seed, reverse)).notes)


def test_seg_kinds(tmp_path):
    check(seg_study(tmp_path, omit_empty_frames=False))
    check(seg_study(tmp_path, name='anything'))
    check(seg_study(tmp_path, kind='LABELMAP'))
    check(seg_study(tmp_path, kind='FRACTIONAL', mask=lambda m: m.astype(float)))
    refused(seg_study(tmp_path, kind='FRACTIONAL', mask=lambda m: m * 0.4), 'holds the values 0, 0.4')

    def both(m):
        return np.stack([m, 1 - m], -1)

    check(seg_study(tmp_path, mask=both, segments=[segment(), segment(2, 'lung', codes.SCT.Lung)]))
    check(
        seg_study(
            tmp_path,
            mask=lambda m: np.stack(
                [m * (np.arange(8) < 3)[:, None, None], m * (np.arange(8) >= 3)[:, None, None]], -1
            ),
            segments=[segment(), segment(2, 'Clot 2')],
        )
    )
    refused(
        seg_study(tmp_path, mask=both, segments=[segment(1, 'a', codes.SCT.Heart), segment(2, 'b', codes.SCT.Lung)]),
        '2 segments, none of them called',
    )
    assert not read_study(seg_study(tmp_path, mask=lambda m: m * 0))[1].any()


def test_seg_of_another_grid_or_scan(tmp_path):
    study = seg_study(tmp_path)
    other = pydicom.dcmread(study.mask)
    for frame in other.PerFrameFunctionalGroupsSequence:
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = '2.25.999'
    other.save_as(study.mask)
    refused(study, 'drawn on slices of another scan')
    study = seg_study(tmp_path)
    contradiction = pydicom.dcmread(study.mask)
    for frame in contradiction.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        normal = read_series(study.scan).direction[:, 0]
        frame.PlanePositionSequence[0].ImagePositionPatient = [
            round(float(p + 1.5 * n), 6) for p, n in zip(position, normal, strict=True)
        ]
    contradiction.save_as(study.mask)
    refused(study, 'a frame names slice')
    study = seg_study(tmp_path)
    shape = pydicom.dcmread(study.mask)
    shape.Rows = 11
    shape.save_as(study.mask)
    refused(study, 'the mask is (11, 14), its scan is (12, 14)')
    study = seg_study(tmp_path)
    cut = pydicom.dcmread(study.mask)
    cut.PixelData = cut.PixelData[:8]
    cut.save_as(study.mask)
    refused(study, 'cannot be decoded')
    study = seg_study(tmp_path)
    nowhere = pydicom.dcmread(study.mask)
    for frame in nowhere.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    nowhere.save_as(study.mask)
    refused(study, 'ImagePositionPatient is missing')


def test_seg_without_references_is_placed_by_position(tmp_path):
    study = seg_study(tmp_path)
    bare = pydicom.dcmread(study.mask)
    for frame in bare.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    bare.save_as(study.mask)
    check(study)


# ---- layouts


def test_layouts(tmp_path):
    study = png_study(tmp_path)
    (study.scan / 'notes.txt').write_text('x')
    (tmp_path / 'hospital' / '.hidden').mkdir()
    (tmp_path / 'hospital' / 'empty').mkdir()
    assert [s.key for s in find_studies(tmp_path / 'hospital')] == ['hospital/p']
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), study.scan / 'mask.nii.gz')
    with pytest.raises(MaskError, match='several masks'):
        find_studies(tmp_path / 'hospital')
    with pytest.raises(InputError, match='folder per patient'):
        find_studies(study.scan)
    with pytest.raises(InputError, match='Understood are'):
        find_studies(tmp_path / 'hospital' / 'empty')
    with pytest.raises(InputError, match='does not exist'):
        find_studies(tmp_path / 'nowhere')


def test_unlabelled_and_without_mask(tmp_path):
    study = png_study(tmp_path)
    assert study.mask == study.scan and study.without_mask() == Study('hospital', 'p', study.scan)
    assert read_study(study.without_mask())[1] is None
    for path in study.scan.glob('*.png'):
        path.unlink()
    assert find_studies(tmp_path / 'hospital')[0].mask is None


def test_scan_errors_name_patient_and_file(tmp_path):
    study = png_study(tmp_path)
    (study.scan / 'IM0004.dcm').unlink()
    with pytest.raises(InputError) as caught:
        read_study(study)
    assert caught.value.file == 'p/IM0003.dcm' and not isinstance(caught.value, MaskError)


@pytest.mark.parametrize(
    'values,ok',
    [
        ([0, 1], True),
        ([0], True),
        ([1], True),
        ([0, 255], True),
        ([0, 1, 2, 3], True),
        ([0, 3, 7], True),
        ([0, 2], False),
        ([0, 128], False),
        ([0, 1, 255], False),
        ([-1, 0], False),
        ([0, 0.5], False),
        ([0, np.nan], False),
        ([0, np.inf], False),
    ],
)
def test_mask_values(values, ok):
    if not ok:
        with pytest.raises(MaskError):
            binary_mask(np.array(values), 'm')
    else:
        np.testing.assert_array_equal(binary_mask(np.array(values), 'm')[0], np.array(values) > 0)


# ---- splits


def patients(hospital, count, mask=True):
    return [Study(hospital, f'P{i:03d}', Path(f'{i}'), Path('m.mat') if mask else None) for i in range(count)]


@given(st.integers(5, 60), st.integers(0, 10**6), st.randoms())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_splits_partition_and_ignore_order(count, seed, shuffle):
    studies = patients('a', count)
    split = split_patients(studies, pool=patients('b', 3, False), seed=seed)
    shuffled = studies[:]
    shuffle.shuffle(shuffled)
    assert split_patients(shuffled, pool=patients('b', 3, False), seed=seed) == split
    sides = [split.train, split.validation, split.test]
    assert sorted(sum(sides, ())) == sorted(s.key for s in studies) and all(sides)
    assert abs(len(split.test) - 0.2 * count) <= 0.5


def test_one_more_patient_moves_few():
    before, after = [s.key for s in draw_order(patients('a', 50), 0)], [s.key for s in draw_order(patients('a', 51), 0)]
    assert [key for key in after if key in before] == before


def test_too_few_patients_says_how_many():
    with pytest.raises(InputError) as caught:
        split_patients(patients('a', 1))
    assert 'at least 3 labelled patients (1 train, 1 validation, 1 test), found 1' in str(caught.value)
    with pytest.raises(InputError, match='at least 12 labelled patients .8 train, 2 validation, 2 test., found 5'):
        split_patients(patients('a', 5), train=8, validation=2, test=2)
    assert split_patients(patients('a', 5), train=4, validation=1, test=0, also_test=patients('b', 1)).test == (
        'b/P000',
    )


def test_same_patient_on_two_sides():
    source = patients('a', 6)
    for pool in (source[:1], [s.without_mask() for s in source[:1]]):
        with pytest.raises(InputError, match='same patient'):
            split_patients(source, pool=pool)
    target = patients('t', 1)
    with pytest.raises(InputError, match='transductive=True'):
        split_patients(source, pool=[target[0].without_mask()], also_test=target)
    with pytest.raises(InputError, match='without_mask'):
        split_patients(source, pool=target, also_test=target, transductive=True)
    split = split_patients(source, pool=[target[0].without_mask()], also_test=target, transductive=True)
    assert split.transductive and set(split.pool) < set(split.test)
    assert split.digest != dataclass_digest(split, transductive=False)
    for transductive in (False, True):  # the exception covers test and pool only
        with pytest.raises(InputError):
            Split(('a/1',), (), (), ('a/1',), transductive=transductive)
        with pytest.raises(InputError):
            Split((), ('a/1',), (), ('a/1',), transductive=transductive)
    with pytest.raises(InputError):
        Split(('a/1', 'a/1'), (), ())


def dataclass_digest(split, **changes):
    return Split(split.train, split.validation, split.test, (), split.seed, **changes).digest


def test_digests_compare_sides_only(tmp_path):
    """What leaks is in the battery (rows 63 and 64); this does not."""
    volume, _ = make()
    write_series(volume, tmp_path / 'a', 'P1', seed_uid='1')
    write_series(volume, tmp_path / 'b', 'P2', seed_uid='2', reverse=True)
    write_series(make(1)[0], tmp_path / 'c', 'P3')
    digests = {f'h/{name}': pixel_digest(read_series(tmp_path / name)) for name in 'abc'}
    assert digests['h/a'] == digests['h/b'] != digests['h/c']
    check_leak(Split(('h/a', 'h/b'), (), ('h/c',)), digests)  # two copies on one side leak nothing
    check_leak(Split((), (), ('h/a',), ('h/a',), transductive=True), digests)
    with pytest.raises(InputError, match='no pixel digest'):
        check_leak(Split(('h/a',), (), ('h/d',)), digests)


def test_split_files(tmp_path):
    split = split_patients(patients('a', 10), pool=patients('b', 2, False), seed=3)
    path = write_split(split, tmp_path / 's.json')
    assert read_split(path) == split and read_split(path).digest == split.digest
    text = path.read_text()
    for changed in (
        text.replace('"seed": 3', '"seed": 4'),
        text.replace(split.test[0], 'a/P999'),
        text.replace('"transductive": false', '"transductive": true'),
        text[:-20],
        '[]',
        json.dumps({**json.loads(text), 'extra': 1}),
    ):
        assert changed != text
        path.write_text(changed)
        with pytest.raises(InputError, match='s.json'):
            read_split(path)
    with pytest.raises(InputError):
        read_split(tmp_path / 'none.json')


# ---- a real patient


@pytest.mark.skipif(
    not FUMPE.is_dir(), reason='the real patient of FUMPE lies beside the project (../shared/data/FUMPE), not here'
)
def test_one_real_patient():
    [study] = find_studies(FUMPE)
    volume, mask = read_study(study)
    assert volume.shape == (197, 512, 512) and volume.notes == ()
    assert int(mask.sum()) == 42840 and int(mask.any((1, 2)).sum()) == 61
    assert np.median(volume.hu[mask > 0]) == 75
    assert abs(mask.sum() * volume.voxel_ml - 18.1) < 0.1
    with pytest.raises(InputError, match='found 1'):
        split_patients([study])
