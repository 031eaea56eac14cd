"""Masks that other libraries wrote, in every orientation."""

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from support.review_scans import highdicom_seg, on_disk

from pe_advseg.core.errors import MaskError
from pe_advseg.review.foreign_masks import read_corrected
from pe_advseg.scans.nifti import write_nifti
from pe_advseg.scans.seg_write import write_segmentation

ORDERS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize('seed', [0, 1])
def test_nifti_in_every_orientation(tmp_path, seed):
    "nibabel stores the axes in all 48 orders; the scan's own HU say where each embolus must land."
    volume, numbers = on_disk(tmp_path / 'scan', seed)
    write_nifti(tmp_path / 'a.nii.gz', numbers, volume)
    image = nibabel.load(tmp_path / 'a.nii.gz')
    for order, flips in ORDERS:
        nibabel.save(image.as_reoriented(np.array(list(zip(order, flips, strict=False)))), tmp_path / 'b.nii')
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


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('kind', ['BINARY', 'LABELMAP'])
@pytest.mark.parametrize('order', [1, -1])
def test_highdicom_seg(tmp_path, seed, kind, order):
    volume, numbers = on_disk(tmp_path / 'scan', seed)
    highdicom_seg(tmp_path / 's.dcm', tmp_path / 'scan', numbers, ['clot A', 'clot B', 'clot C'], kind, order=order)
    np.testing.assert_array_equal(read_corrected(tmp_path / 's.dcm', tmp_path / 'scan', volume, 's')[0], numbers)


def test_segments_their_names_and_numbers(case):
    root, scan, volume, numbers = case

    def read():
        return read_corrected(root / 's.dcm', scan, volume, 's.dcm')

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
    write_nifti(root / 'a.nii.gz', numbers, volume)
    whole, path = SimpleITK.ReadImage(root / 'a.nii.gz'), root / 's.seg.nrrd'

    def read():
        return read_corrected(path, scan, volume, 's.seg.nrrd')

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
        write_nifti(root / 'a.nii.gz', values, volume)
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
