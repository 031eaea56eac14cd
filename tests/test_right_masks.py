"""Masks and volume files after public bug reports: right, or refused with the right cause, through every door."""

import dataclasses
import gzip
import json
import re
import shutil
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from scipy import ndimage
from support.review_scans import annotated, make, on_disk
from support.right_masks import DOORS, LABELS, UNATTRIBUTED, Place, changed, nifti, rtstruct, seg, slicer

from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.core.volume import Volume, slice_name
from pe_advseg.data.read_study import read_study
from pe_advseg.data.studies import Study
from pe_advseg.review.correction_files import describe_passed_over, find_corrections, sort_files
from pe_advseg.review.foreign_masks import read_corrected
from pe_advseg.review.import_correction import import_correction
from pe_advseg.review.references import check_references
from pe_advseg.review.save_correction import save_correction
from pe_advseg.review.view import SliceView
from pe_advseg.scans.fill_contours import fill_all
from pe_advseg.scans.mask_files import read_png_masks, read_volume_mask
from pe_advseg.scans.mask_values import binary_mask
from pe_advseg.scans.masks import place_mask
from pe_advseg.scans.patient_identity import identity, unknown_letters
from pe_advseg.scans.rtstruct import write_rtstruct
from pe_advseg.scans.seg_read import read_seg_mask
from pe_advseg.scans.seg_write import write_segmentation
from pe_advseg.scans.series import read_series
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import make_uid, write_series

VIEWERS = Path(__file__).resolve().parents[2] / 'shared' / 'cases' / 'viewers'
every_door = pytest.mark.parametrize('door', DOORS)


three_doors = pytest.mark.parametrize('door', ['training and scoring', 'correction', 'import of files'])


@pytest.fixture(scope='module')
def scan_on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scan') / 'scan'
    return folder, *on_disk(folder, 1)


@pytest.fixture
def place(tmp_path, scan_on_disk):
    folder, volume, numbers = scan_on_disk
    shutil.copytree(folder, tmp_path / 'scan')
    return Place(tmp_path, tmp_path / 'scan', volume, numbers)


# ---- what is marked is never background


@every_door
@pytest.mark.parametrize('fault', UNATTRIBUTED)
def test_a_mark_that_belongs_to_nothing_is_refused_at_every_door(place, door, fault):
    write, words = UNATTRIBUTED[fault]
    path = write(place)
    with pytest.raises(ValueError, match=words) as caught:  # InputError is one
        DOORS[door](place, path)
    assert path.name in str(caught.value) and 'SECRET' not in str(caught.value)
    assert not list(place.root.glob('store*/study-*/0001')) and not list(place.root.glob('cache/*/*/mask*'))


GOOD = {
    'SEG': seg,
    'label map': lambda place: seg(place, 'LABELMAP'),
    'NIfTI': nifti,
    'NIfTI with a table': lambda place: nifti(place, names=dict(enumerate(LABELS, 1))),
    'seg.nrrd': lambda place: slicer(place, dict(enumerate(LABELS, 1))),
    'seg.nrrd without a list of segments': lambda place: slicer(place, {}),
    'RTSTRUCT': rtstruct,
}


@every_door
@pytest.mark.parametrize('kind', GOOD)
def test_a_good_file_is_the_same_mask_at_every_door(place, door, kind):
    np.testing.assert_array_equal(DOORS[door](place, GOOD[kind](place)) > 0, place.numbers > 0)


def test_one_segment_needs_no_number(place):
    path = seg(place, labels=['embolus'], numbers=(place.numbers > 0) * 1)
    expected = read_seg_mask(path, place.volume, 'mask.dcm')[0]

    def unnumbered(dataset):
        for groups in (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence):
            groups.pop('SegmentIdentificationSequence', None)

    mask, note = read_seg_mask(changed(path, unnumbered), place.volume, 'mask.dcm')
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(mask, place.numbers > 0)
    assert 'its frames name no segment; it has one' in note


def test_what_is_left_out_is_counted(place):
    note = read_seg_mask(seg(place, labels=['lung', 'embolus', 'clot']), place.volume, 'mask.dcm')[1]
    assert f'segment 1 ({(place.numbers == 1).sum()} voxels)' in note
    note = read_corrected(slicer(place, {1: 'Embolus', 2: 'lung', 3: 'PE'}), place.scan, place.volume, 'm')[2][1]
    assert f'segment 2 ({(place.numbers == 2).sum()} voxels)' in note


def test_the_padding_of_a_label_map_is_background(place):
    def padded(dataset):
        values = dataset.pixel_array
        dataset.PixelData = np.where(values == 0, 255, values).astype(np.uint8).tobytes()
        dataset.PixelPaddingValue = 255

    path = changed(seg(place, 'LABELMAP'), padded)
    np.testing.assert_array_equal(read_corrected(path, place.scan, place.volume, 'm')[0], place.numbers)


# ---- two statements of one fact


def with_forms(path, array, sform=None, qform=None, zooms=None):
    image = nibabel.Nifti1Image(array.T, None)
    image.header.set_zooms(SCAN.spacing[::-1])
    if qform is not None:
        image.set_qform(qform, 1)
    image.set_sform(sform, 0 if sform is None else 1)
    if zooms is not None:
        image.header.set_zooms(zooms)
    nibabel.save(image, path)
    return path


def contradictions(affine, spacing):
    "Name -> forms of a NIfTI header, words of the refusal; None where it is only noted."
    ones = np.diag([*np.sign(np.diag(affine)[:3]), 1])
    ones[:3, 3] = affine[:3, 3]
    mirrored, moved, rounded = affine @ np.diag([-1, 1, 1, 1]), affine.copy(), affine.copy()
    moved[1, 3] += 7
    rounded[:3, :3] *= 1.002
    return {
        'pixdim right, sform of ones': (
            dict(sform=ones, zooms=spacing),
            'its affine and its pixdim give voxels of 1 x 1 x',
        ),
        'qform right, sform of ones': (
            dict(sform=ones, qform=affine),
            'its affine and its pixdim give voxels of 1 x 1 x',
        ),
        'sform right, pixdim never set': (dict(sform=affine, zooms=(1, 1, 1)), None),
        'qform of ones, sform right': (dict(sform=affine, qform=ones), 'its pixdim give voxels of 0.8 x 0.7'),
        '9 percent': (dict(sform=affine @ np.diag([1.09, 1.09, 1, 1]), qform=affine), 'mm apart at the far corner'),
        'mirrored': (dict(sform=affine, qform=mirrored), 'turn the patient differently'),
        'moved': (dict(sform=affine, qform=moved), None),
        'rounded': (dict(sform=affine, qform=rounded), None),
    }


SCAN, NUMBERS = make(oblique=False, z_mm=1.5)
CONTRADICTIONS = contradictions(SCAN.nifti_affine(), SCAN.spacing[::-1])


@pytest.mark.parametrize('name', CONTRADICTIONS)
def test_sform_qform_and_pixdim_are_compared(tmp_path, name):
    "In scans and in masks alike; what nibabel takes as the affine is taken where the difference is small."
    forms, words = CONTRADICTIONS[name]
    scan, mask = (with_forms(tmp_path / f'{n}.nii.gz', array, **forms) for n, array in enumerate((SCAN.hu, NUMBERS)))
    if words:
        for read in (lambda: read_volume(scan), lambda: read_corrected(mask, tmp_path, SCAN, 'm.nii.gz')):
            with pytest.raises(InputError, match=words):
                read()
        return
    volume = read_volume(scan)
    affine = np.diag([-1.0, -1, 1, 1]) @ nibabel.load(scan).affine
    np.testing.assert_allclose(volume.affine(), affine[:, [2, 1, 0, 3]], atol=1e-4)
    values, _, notes = read_corrected(mask, tmp_path, SCAN, 'm.nii.gz')
    np.testing.assert_array_equal(values, NUMBERS)
    for found in (volume.notes, notes):
        assert any(' mm' in note and re.search('sform taken|the first taken|from its sform', note) for note in found), (
            found
        )


def test_a_consistent_file_has_no_note(tmp_path):
    affine = SCAN.nifti_affine()
    for forms in (dict(sform=affine), dict(qform=affine), dict(sform=affine, qform=affine)):
        assert read_volume(with_forms(tmp_path / 'a.nii', SCAN.hu, **forms)).notes == ()


def test_nrrd_and_metaimage_that_contradict_themselves(tmp_path):
    image = SimpleITK.GetImageFromArray(SCAN.hu)
    image.SetSpacing(SCAN.spacing[::-1])
    image.SetOrigin(SCAN.origin)
    for name, old, new, words in (
        ('a.nrrd', b'encoding:', b'spacings: 1 1 1\nencoding:', 'its space directions and its spacings give voxels'),
        ('a.mha', b'TransformMatrix = 1', b'TransformMatrix = 1.2', 'its TransformMatrix'),
        ('a.mha', b'NDims = 3', b'NDims = 3\nElementSize = 1 1 1.5', 'its ElementSpacing and its ElementSize'),
    ):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        np.testing.assert_array_equal(read_volume(tmp_path / name).hu, SCAN.hu)
        content = (tmp_path / name).read_bytes()
        assert old in content
        (tmp_path / name).write_bytes(content.replace(old, new, 1))
        with pytest.raises(InputError, match=words):
            read_volume(tmp_path / name)


def test_grids_are_compared_in_mm_at_the_corners_of_the_scan():
    affine = SCAN.affine()
    wide = affine @ np.diag([1, 1, 1.02, 1])  # 39 columns of 0.8 mm: 0.62 mm
    with pytest.raises(MaskError, match=r'0\.62 mm from the scan.s \(0\.78 voxels off\)'):
        place_mask(NUMBERS, wide, SCAN, 'm')
    with pytest.raises(MaskError, match='voxels off'):  # a crop fits by itself, and its grid is not the scan's
        place_mask(NUMBERS[:, :, :5], wide, SCAN, 'm', part=True)
    np.testing.assert_array_equal(place_mask(NUMBERS[:, :, :5], affine, SCAN, 'm', part=True)[0], NUMBERS[:, :, :5])


# ---- what a file is, its content says


@three_doors
@pytest.mark.parametrize('name', ['mask.nii.gz', 'mask.nii', 'mask.nrrd', 'mask.mha', 'mask.dcm'])
def test_the_name_of_a_mask_means_nothing(place, door, name):
    plain = nifti(place, name='a.nii').read_bytes()
    for content in (plain, gzip.compress(plain)):
        (place.root / name).write_bytes(content)
        np.testing.assert_array_equal(DOORS[door](place, place.root / name) > 0, place.numbers > 0)


def test_the_name_of_a_scan_means_nothing(tmp_path):
    plain = with_forms(tmp_path / 'a.nii', SCAN.hu, sform=SCAN.nifti_affine()).read_bytes()
    image = SimpleITK.ReadImage(str(tmp_path / 'a.nii'))
    SimpleITK.WriteImage(image, str(tmp_path / 'a.nrrd'))
    for content in (plain, gzip.compress(plain), (tmp_path / 'a.nrrd').read_bytes()):
        for name in ('b.nii.gz', 'b.nii', 'b.mha'):
            (tmp_path / name).write_bytes(content)
            np.testing.assert_array_equal(read_volume(tmp_path / name).hu, SCAN.hu)


OTHER_KINDS = {
    'clot.stl': (b'solid clot\nendsolid clot\n', 'an STL surface', 'Export the segmentation'),
    'coco.json': (b'{"images": [], "annotations": []}', 'JSON', 'as masks'),
    'mask.zip': (b'PK\3\4' + bytes(40), 'a zip archive', 'Unpack it'),
    'detached.nhdr': (b'NRRD0004\ntype: uchar\ndata file: a.raw\n\n', 'a header of NRRD', 'one file'),
    'detached.mhd': (b'ObjectType = Image\nNDims = 3\nElementDataFile = a.raw\n', 'a header of MetaImage', 'one file'),
    'mask.nii.gz': (gzip.compress(b'NRRD0004\n\n'), 'gzip of NRRD', 'Unpack it'),
    'empty.nii': (b'', 'an empty file', 'Copy it again'),
    'text.nrrd': (b'hello' * 99, 'a file of unknown kind', 'Export the segmentation as DICOM SEG'),
}


@three_doors
@pytest.mark.parametrize('name', [*OTHER_KINDS, 'picture.png', 'slice.dcm'])
def test_a_file_of_another_kind_is_named_with_the_way_out(place, door, name):
    path = place.root / name
    if name == 'picture.png':
        Image.fromarray(np.uint8(place.numbers[3] > 0) * 255).save(path)
        kind, way_out = 'a PNG picture', 'Export DICOM SEG or NIfTI'
    elif name == 'slice.dcm':
        path.write_bytes(next(place.scan.iterdir()).read_bytes())
        kind, way_out = 'a DICOM file of modality CT', 'Export the segmentation as DICOM SEG'
    else:
        content, kind, way_out = OTHER_KINDS[name]
        path.write_bytes(content)
    said = f'is {kind}.*{way_out}'
    if name.endswith('.zip') and door == 'import of files':  # which takes a zip apart, but not a broken one
        said = 'the zip: cannot be unpacked.*Export it again'
    with pytest.raises(ValueError, match=said):
        DOORS[door](place, path)


def test_what_is_passed_over_in_a_folder_is_listed_once_with_its_kind(place):
    inbox = place.root / 'inbox' / 'SECRET'
    inbox.mkdir(parents=True)
    for name, (content, *_) in OTHER_KINDS.items():
        (inbox / name).write_bytes(content)
    for path in place.scan.iterdir():
        (inbox / path.name).write_bytes(path.read_bytes())
    (inbox / 'struct.dcm').write_bytes(rtstruct(place).read_bytes())
    (inbox / 'seg.dcm').write_bytes(seg(place).read_bytes())
    found, passed = sort_files(place.root / 'inbox')
    called_masks = {'SECRET/mask.nii.gz', 'SECRET/empty.nii', 'SECRET/text.nrrd'}  # refused by name when they are read
    assert set(found) == {'SECRET/seg.dcm', 'SECRET/struct.dcm'} | called_masks
    assert set(find_corrections(place.root / 'inbox')) == set(found)
    lines = describe_passed_over(passed)
    assert len(lines) == len(passed) == 6 and 'SECRET' not in ' '.join(lines)
    assert any('modality CT' in line and f'and {len(place.volume.hu) - 3} more' in line for line in lines), lines
    assert sum(map(len, passed.values())) + len(found) == sum(path.is_file() for path in inbox.iterdir())


# ---- palettes and numbers


def write_pngs(place, save):
    for level, source in zip(place.numbers, place.volume.sources, strict=True):
        save(Image.fromarray(np.uint8(level > 0) * 255), place.scan / Path(source.file).with_suffix('.png'))
    return read_study(Study('h', 'p', place.scan, place.scan))[1]


def test_palettes_are_looked_up(place):
    "Pillow's quantize orders a palette by the number of pixels, so that white comes first in some pictures."
    orders = set()

    def quantized(image, path):
        indexed = image.convert('RGB').quantize(2)
        orders.add(tuple(indexed.getpalette()[:3]))
        indexed.save(path)

    np.testing.assert_array_equal(write_pngs(place, quantized), place.numbers > 0)

    def inverted(image, path):
        indexed = Image.fromarray(np.uint8(np.asarray(image) == 0), 'P')
        indexed.putpalette([255, 255, 255, 0, 0, 0])
        indexed.save(path)

    np.testing.assert_array_equal(write_pngs(place, inverted), place.numbers > 0)

    def one_colour(image, path):
        indexed = Image.fromarray(np.uint8(np.asarray(image) > 0), 'P')
        indexed.putpalette([0, 0, 0, 128, 0, 0])
        indexed.save(path)

    np.testing.assert_array_equal(write_pngs(place, one_colour), place.numbers > 0)


def test_palettes_that_say_nothing_are_refused(place):
    def two_colours(image, path):
        indexed = Image.fromarray(np.uint8(np.asarray(image) > 0), 'P')
        indexed.putpalette([0, 0, 255, 255, 0, 0])
        indexed.save(path)

    with pytest.raises(MaskError, match='has a palette of'):
        write_pngs(place, two_colours)


def test_a_png_that_is_named_like_no_slice_is_not_lost(place):
    marked = int((place.numbers > 0).any((1, 2)).argmax())
    name = Path(place.volume.sources[marked].file).with_suffix('.png')

    def misnamed(image, path):
        image.save(path.with_name('slice7.png') if path.name == name.name else path)

    with pytest.raises(MaskError, match='slice7.png: marks something, and is named like no slice'):
        write_pngs(place, misnamed)
    (place.scan / 'slice7.png').rename(place.scan / name)  # the remedy
    np.testing.assert_array_equal(read_study(Study('h', 'p', place.scan, place.scan))[1], place.numbers > 0)


@pytest.mark.parametrize('scale', ['uint8 with a slope', 'float32'])
def test_labels_that_are_not_quite_whole(place, scale):
    "nibabel#1001: float labels under an integer header come back as 1.00000006; others as 0.9999999."
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8 if 'slope' in scale else np.float32)
    factor = 1.0 if 'slope' in scale else np.float32(0.9999999)
    values = (place.numbers * factor).astype(np.float64 if 'slope' in scale else np.float32)
    nibabel.save(nibabel.Nifti1Image(values.T, place.affine, header), place.root / 'm.nii.gz')
    stored = np.asarray(nibabel.load(place.root / 'm.nii.gz').dataobj)
    assert (stored != np.rint(stored)).any()
    found, _, notes = read_corrected(place.root / 'm.nii.gz', place.scan, place.volume, 'm.nii.gz')
    np.testing.assert_array_equal(found, place.numbers)
    assert any('rounded to whole numbers' in note for note in notes)
    assert any('rounded' in note for note in read_study(Study('h', 'p', place.scan, place.root / 'm.nii.gz'))[0].notes)


def test_values_are_printed_in_full():
    for values, words in (
        ([0, 1.00123456], '1.00123456'),
        ([0, 0.0000123], '0.0000123'),
        ([0, 16777217.5], '16777217.5'),
    ):
        with pytest.raises(MaskError, match=words):
            binary_mask(np.array(values), 'm')


# ---- RTSTRUCT


@pytest.mark.parametrize('seed', range(3))
def test_contours_through_centres_or_between_pixels(seed):
    "OpenCV draws through the centres of pixels, this package between them; any shape comes back from both."
    cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed, or lacks libGL', exc_type=ImportError)
    random = np.random.default_rng(seed)
    for share in (0.1, 0.4, 0.7):
        mask = ndimage.zoom(random.random((8, 9)) < share, 3, order=0)
        found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
        np.testing.assert_array_equal(
            fill_all([polygon[:, 0, ::-1].astype(float) for polygon in found], mask.shape), mask
        )


def test_rtstruct_of_rt_utils_is_read(tmp_path):
    rt_utils = pytest.importorskip(
        'rt_utils', reason='rt-utils is not installed, or its OpenCV lacks libGL', exc_type=ImportError
    )
    volume, numbers = make(oblique=False)
    write_series(dataclasses.replace(volume, spacing=(1.5, 0.8, 0.8)), tmp_path / 'scan', 'P1')
    volume = read_series(tmp_path / 'scan')
    made = rt_utils.RTStructBuilder.create_new(dicom_series_path=str(tmp_path / 'scan'))
    for number in (1, 2, 3):
        made.add_roi(mask=(numbers == number).transpose(1, 2, 0), name=f'embolus {number}')
    made.save(str(tmp_path / 'RS.dcm'))
    values, kind, _ = read_corrected(tmp_path / 'RS.dcm', tmp_path / 'scan', volume, 'RS.dcm')
    np.testing.assert_array_equal(values, numbers)
    assert kind == 'DICOM RTSTRUCT'


def test_contours_that_name_the_slices_of_a_scan_belong_to_it(place):
    "However little they share with what they started from: such a file may not be called another patient's."
    elsewhere = np.where(place.numbers == 1, 1, 0).astype(np.uint16)
    annotation = annotated(place.root / 'annotation', place.volume, elsewhere)
    path = write_rtstruct(place.root / 'r.dcm', np.where(place.numbers == 2, 2, 0), place.volume, place.scan)
    result = import_correction(path, place.scan, place.root / 'store', 'AB', annotation)
    assert (
        result.status == 'saved'
        and result.kind == 'DICOM RTSTRUCT'
        and result.difference.startswith('1 removed, 1 added')
    )


def test_rtstruct_of_another_scan_is_refused(place, tmp_path):
    path = rtstruct(place)
    other, _ = on_disk(tmp_path / 'other', 2)
    with pytest.raises(MaskError, match='another scan'):
        read_corrected(path, tmp_path / 'other', other, 'mask.dcm')


# ---- what is written


def test_segments_that_a_reader_drew_say_manual(place):
    "Over two versions: an embolus drawn by hand in the first is no longer new in the second."
    of_algorithm = np.where(place.numbers == 1, 1, 0).astype(np.uint16)
    annotation = annotated(place.root / 'annotation', place.volume, of_algorithm)
    first = np.where(place.numbers == 3, 0, place.numbers)
    for version, (numbers, start) in enumerate(((first, annotation), (place.numbers, None)), 1):
        folder = save_correction(place.root / 'store', place.scan, place.volume, numbers, 'AB', 'import', start)
        dataset = pydicom.dcmread(folder / 'segmentation.dcm')
        types = {item.SegmentLabel.split()[-1]: item.SegmentAlgorithmType for item in dataset.SegmentSequence}
        assert types == {'1': 'SEMIAUTOMATIC'} | {str(number): 'MANUAL' for number in range(2, version + 2)}
        assert [bool(item.get('SegmentAlgorithmName')) for item in dataset.SegmentSequence][1:] == [False] * version
        highdicom.seg.segread(folder / 'segmentation.dcm')
        assert json.loads((folder / 'correction.json').read_text())['by_hand'] == list(range(2, version + 2))


def test_every_seg_states_who_created_it(place):
    for reviewer, stated in ((None, ''), ('Lee^Ann', 'Lee^Ann')):
        for numbers in (place.numbers, place.numbers * 0):
            path = write_segmentation(place.root / 's.dcm', numbers, place.volume, place.scan, reviewer=reviewer)
            dataset = pydicom.dcmread(path)
            assert 'ContentCreatorName' in dataset and str(dataset.ContentCreatorName) == stated


def test_slices_that_state_different_frames_of_reference_and_series(place):
    "As an archive renamed LIDC_0001. One frame of reference is stated, and every series is referred to."
    for number, path in enumerate(sorted(place.scan.iterdir())):

        def renamed(dataset, number=number):
            dataset.FrameOfReferenceUID, dataset.SeriesInstanceUID = f'2.25.70{number}', f'2.25.80{number}'

        changed(path, renamed)
    first = pydicom.dcmread(place.scan / place.volume.sources[0].file)
    seg_path = write_segmentation(place.root / 's.dcm', place.numbers, place.volume, place.scan)
    rt_path = write_rtstruct(place.root / 'r.dcm', place.numbers, place.volume, place.scan)
    found, rt = highdicom.seg.segread(seg_path), pydicom.dcmread(rt_path)
    assert found.FrameOfReferenceUID == rt.FrameOfReferenceUID == first.FrameOfReferenceUID
    series = rt.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence
    expected = {f'2.25.80{number}' for number in range(len(place.volume.hu))}
    assert {item.SeriesInstanceUID for item in series} == expected
    own = {
        instance.ReferencedSOPInstanceUID: item.SeriesInstanceUID
        for item in found.ReferencedSeriesSequence
        for instance in item.ReferencedInstanceSequence
    }
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in place.scan.iterdir()]
    assert own == {str(header.SOPInstanceUID): header.SeriesInstanceUID for header in headers}
    for path in (seg_path, rt_path):
        assert check_references(path, place.scan, place.volume, path.name) == ''
        np.testing.assert_array_equal(read_corrected(path, place.scan, place.volume, path.name)[0], place.numbers)

    def another_study(dataset):
        dataset.StudyInstanceUID = '2.25.90'

    changed(next(place.scan.iterdir()), another_study)
    for write in (write_segmentation, write_rtstruct):
        with pytest.raises(InputError, match='has slices of 2 studies'):
            write(place.root / 'x.dcm', place.numbers, place.volume, place.scan)


NAMES = {  # case -> character set, bytes of the name, what is written, whether the letters are unknown
    'UTF-8, not declared': (None, 'Müller^Jürgen'.encode(), 'Müller^Jürgen', False),
    'GB18030, not declared': (None, '王^小东'.encode('gb18030'), None, True),
    'Latin-1, not declared': (None, 'Müller^Jürgen'.encode('latin1'), 'Müller^Jürgen', True),
    'Latin-1': ('ISO_IR 100', 'Müller^Jürgen'.encode('latin1'), 'Müller^Jürgen', False),
    'UTF-8': ('ISO_IR 192', 'Müller^Jürgen'.encode(), 'Müller^Jürgen', False),
    'GB18030': ('GB18030', '王^小东'.encode('gb18030'), '王^小东', False),
    'Japanese': (
        r'\ISO 2022 IR 87',
        b'Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B',
        'Yamada^Tarou=山田^太郎',
        False,
    ),
}


@pytest.mark.parametrize('case', NAMES)
def test_names_in_any_character_set(place, case):
    "Written byte by byte into the file; read back from SEG and RTSTRUCT by pydicom."
    stated, raw, expected, unknown = NAMES[case]
    path = place.scan / place.volume.sources[0].file

    def named(dataset):
        dataset.PatientName, dataset.PatientID = 'N' * len(raw), 'ID7'
        if stated is None:
            dataset.pop('SpecificCharacterSet', None)
        else:
            dataset.SpecificCharacterSet = stated.split('\\')

    changed(path, named)
    content = path.read_bytes()
    assert content.count(b'N' * len(raw)) == 1
    path.write_bytes(content.replace(b'N' * len(raw), raw))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    assert bool(unknown_letters(header)) == unknown and 'ller' not in unknown_letters(header)
    assert identity(header)['PatientID'] == 'ID7'
    if expected is None:
        return
    for write in (write_segmentation, write_rtstruct):
        written = pydicom.dcmread(write(place.root / 'x.dcm', place.numbers, place.volume, place.scan))
        assert str(written.PatientName) == expected and written.SpecificCharacterSet == 'ISO_IR 192'


def test_slices_are_counted_in_one_way(place):
    "An error of a SEG, a caption of the review and the core function say the same of the same slice."
    path = seg(place)
    z = int((place.numbers > 0).any((1, 2)).argmax())

    def exchanged(dataset):
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            source = frame.DerivationImageSequence[0].SourceImageSequence[0]
            source.ReferencedSOPInstanceUID = place.volume.sources[0].instance_uid

    with pytest.raises(MaskError) as caught:
        read_seg_mask(changed(path, exchanged), place.volume, 'mask.dcm')
    count = len(place.volume.hu)
    lies_on = int(re.search(r'lies on slice (\d+) of', str(caught.value))[1]) - 1
    assert f'names {slice_name(0, count)} and lies on {slice_name(lies_on, count)}' in str(caught.value)
    assert (place.numbers[lies_on] > 0).any()
    assert slice_name(z, count) == f'slice {z + 1} of {count}'
    view = SliceView(place.volume, ['scan'])
    view.show(z, (40, 400), [None], lambda panel, number: 'r')
    assert slice_name(z, count) in view.panels[0].caption.get_text()


# ---- what viewers wrote


@pytest.fixture(scope='module')
def viewer_scan(tmp_path_factory):
    "The grid and the identifiers of the scan that the viewers were shown; its HU do not matter to a mask."
    if not VIEWERS.is_dir():
        pytest.skip('files of real viewers lie in ../shared/cases/viewers, which this checkout does not have')
    direction = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    spacing, origin = (
        (2.329672045310111, 1.13715954068489, 1.13715954068489),
        (-144.98784143732, -140.98784143732, -119.01718198439),
    )
    folder = tmp_path_factory.mktemp('viewers') / 'scan'
    z, y, x = np.mgrid[:100, :256, :256]
    hu = np.where((y - 128) ** 2 + (x - 128) ** 2 < 100**2, 40, -1000).astype(np.int16)
    hu[:, 128, 128] = z[:, 0, 0]
    series = '2.25.141072147368574159366165009683196897096'
    write_series(Volume(hu, spacing, origin, direction), folder, 'V')
    for number, path in enumerate(sorted(folder.iterdir()), 1):

        def as_shown(dataset, number=number):
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID = series, make_uid(series, 'slice', number)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID

        changed(path, as_shown)
    return folder, read_series(folder)


def read_viewer_file(viewer_scan, name):
    folder, volume = viewer_scan
    return read_corrected(VIEWERS / name, folder, volume, name)


@pytest.mark.parametrize('name', ['ohif_export.dcm', 'ohif_rtss.dcm'])
def test_ohif_gives_back_what_it_showed(viewer_scan, name):
    "Voxels and centre per slice and segment are those that the viewer's label map held."
    values, _, notes = read_viewer_file(viewer_scan, name)
    slices = {source.instance_uid: z for z, source in enumerate(viewer_scan[1].sources)}
    shown = json.loads((VIEWERS / 'ohif_labelmap_edited.json').read_text())['slices']
    assert {slices[uid] for uid, *_ in shown} == set(np.flatnonzero(values.any((1, 2))))
    for uid, counts, y, x in shown:
        plane = values[slices[uid]]
        found = [int(count) for count in np.bincount(plane.ravel(), minlength=3)[1:] if count]
        assert found == [counts[key] for key in sorted(counts)]
        np.testing.assert_allclose(np.argwhere(plane).mean(0), [y, x], atol=1e-6)
    assert ('RTSTRUCT' in ' '.join(notes)) == ('rtss' in name)


@pytest.mark.parametrize('name', ['node_bitpacked.dcm', 'node_rle.dcm'])
def test_cornerstone_adapters_in_both_encodings(viewer_scan, name):
    values, kind, _ = read_viewer_file(viewer_scan, name)
    np.testing.assert_array_equal(values, read_viewer_file(viewer_scan, 'node_bitpacked.dcm')[0])
    assert kind == 'DICOM SEG' and np.bincount(values.ravel())[1:].tolist() == [817, 72]


def test_ohif_paints_into_an_annotation_without_finding(viewer_scan):
    values, _, _ = read_viewer_file(viewer_scan, 'ohif_export_none.dcm')
    assert np.unique(values).tolist() == [0, 1]
    assert (values > 0).sum() * viewer_scan[1].voxel_ml == pytest.approx(0.17, abs=0.005)


def test_segments_called_unknown_are_refused(viewer_scan):
    with pytest.raises(MaskError, match='has 2 segments, none of them called embolus'):
        read_viewer_file(viewer_scan, 'monai_seg_unknown.dcm')


BROKEN_TABLES = {
    'no number': 'Segment0_Name:=Embolus\nSegment1_Name:=Lung\n',
    'letters': 'Segment0_Name:=Embolus\nSegment0_LabelValue:=one\nSegment1_Name:=Lung\nSegment1_LabelValue:=two\n',
}


@pytest.mark.parametrize('table', BROKEN_TABLES)
def test_a_table_of_segments_that_cannot_be_read_is_no_missing_table(tmp_path, table):
    "What it would have called lung does not become clot."
    values = np.zeros((4, 6, 6), np.uint8)
    values[1, 2:4, 2:4], values[2, 1:5, 1:5] = 1, 2
    volume = Volume(np.zeros(values.shape, np.int16), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)[::-1])
    image = SimpleITK.GetImageFromArray(values)
    path = tmp_path / 'mask.seg.nrrd'
    SimpleITK.WriteImage(image, str(path), useCompression=False)
    header, numbers = path.read_bytes().split(b'\n\n', 1)
    path.write_bytes(header + b'\n' + BROKEN_TABLES[table].encode() + b'\n' + numbers)
    with pytest.raises(MaskError):
        read_volume_mask(path, volume, path.name)
    path.write_bytes(
        header + b'\nSegment0_Name:=Embolus\nSegment0_LabelValue:=1.0\nSegment1_Name:=Lung\n'
        b'Segment1_LabelValue:=2.0\n\n' + numbers
    )
    mask, note = read_volume_mask(path, volume, path.name)
    assert mask.sum() == 4 and 'segment 2 (16 voxels)' in note


@pytest.mark.parametrize(('mode', 'refused'), [('RGB', True), ('RGBA', True), ('L', True), ('picture', False)])
def test_a_coloured_mask_that_is_named_like_no_slice_is_not_lost(tmp_path, mode, refused):
    "A picture of the scan that lies beside the masks is no mask."
    volume, _ = on_disk(tmp_path / 'scan', 1)
    shape = volume.shape[1:]
    marked = np.zeros(shape, np.uint8)
    marked[5:9, 5:9] = 255
    stem = Path(volume.sources[0].file).stem
    Image.fromarray(marked).save(tmp_path / 'scan' / f'{stem}.png')
    shown = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) if mode == 'picture' else marked
    Image.fromarray(shown).convert('RGB' if mode == 'picture' else mode).save(tmp_path / 'scan' / 'IM0009_mask.png')
    if refused:
        with pytest.raises(MaskError, match='IM0009_mask.png: marks something'):
            read_png_masks(tmp_path / 'scan', volume, 'masks')
    else:
        assert read_png_masks(tmp_path / 'scan', volume, 'masks')[0].sum() == 16
