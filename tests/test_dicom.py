"""Bad input, orders, orientations and codecs; geometry against highdicom and values against pydicom, which we did not write."""
import copy
import os
import struct
import warnings
import zlib

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pydicom.uid import (ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless)
from scipy.spatial.transform import Rotation

import pe_advseg.dicom_file as dicom_file
from pe_advseg.ct import InputError, Volume
from pe_advseg.dicom import find_series, pixel_digest, read_series, write_series

AXIAL = np.array([[0., 0, 1], [0, 1, 0], [1, 0, 0]])
SECRET = 'PLANTED^NAME'   # must never show in an error or a note


def make_volume(direction=AXIAL, shape=(12, 40, 48), seed=0, origin=(-30.0, 12.5, -700.25)):
    hu = np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)
    return Volume(hu, (1.5, 0.7, 0.8), origin, direction)


def world(volume):
    """A volume as (positions of all voxels in the patient, HU), sorted by position: independent of array order."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing='ij'), -1).reshape(-1, 3)
    points = volume.to_patient(index)
    order = np.lexsort(np.round(points, 3).T)
    return points[order], volume.hu.reshape(-1)[order]


def same_world(a, b):
    (points_a, hu_a), (points_b, hu_b) = world(a), world(b)
    np.testing.assert_allclose(points_a, points_b, atol=1e-3)
    np.testing.assert_array_equal(hu_a, hu_b)


@pytest.fixture
def good(tmp_path):
    volume = make_volume()
    write_series(volume, tmp_path / 'good', SECRET)
    return volume, [pydicom.dcmread(path) for path in sorted((tmp_path / 'good').iterdir())]


def save(slices, folder, names=None, **options):
    folder.mkdir()
    for index, dataset in enumerate(slices):
        dataset.save_as(folder / (names[index] if names else f'{index:02d}.dcm'), **options)
    return folder


def refused(folder, words, file=None, **options):
    with pytest.raises(InputError) as caught: read_series(folder, **options)
    text = str(caught.value)
    assert words in text, text
    assert SECRET not in text and 'PLANTED' not in text and str(folder) not in text
    assert caught.value.remedy
    if file: assert caught.value.file == file, text
    return text


# ---- against software we did not write

@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_orientation_and_order_keeps_the_world_and_agrees_with_highdicom(tmp_path_factory, seed, flip_row, flip_column, flip_slices, reverse):
    rng = np.random.default_rng(seed)
    direction = Rotation.from_rotvec(rng.uniform(-0.35, 0.35, 3)).as_matrix() @ AXIAL
    direction = direction * np.where([flip_slices, flip_column, flip_row], -1, 1)
    volume = make_volume(direction, (5, 6, 7), seed, tuple(rng.uniform(-300, 300, 3)))
    folder = tmp_path_factory.mktemp('series') / 's'
    names = [f'{i:02d}.dcm' for i in rng.permutation(5)]
    write_series(volume, folder, 'P', file_names=names, reverse=reverse)
    read = read_series(folder)
    same_world(read, volume)
    assert read.direction[2, 0] > 0   # slices climb to the head
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    ours = read.affine()
    # highdicom may stack the other way round: compare the positions of both ends
    ends = [theirs.affine @ [z, 2, 3, 1] for z in (0, 4)]
    if ends[0] @ [*read.direction[:, 0], 0] > ends[1] @ [*read.direction[:, 0], 0]: ends.reverse()
    np.testing.assert_allclose([(ours @ [z, 2, 3, 1])[:3] for z in (0, 4)], [end[:3] for end in ends], atol=1e-3)
    theirs = theirs.match_geometry(highdicom.VolumeGeometry(ours, read.shape, coordinate_system='PATIENT',
                                                            frame_of_reference_uid=theirs.frame_of_reference_uid))
    np.testing.assert_array_equal(theirs.array, read.hu)


@given(st.integers(0, 1), st.floats(0.25, 4), st.integers(-2000, 500))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rescale_agrees_with_pydicom(tmp_path_factory, signed, slope, intercept):
    folder = tmp_path_factory.mktemp('rescale') / 's'
    write_series(make_volume(shape=(4, 6, 6)), folder, 'P')
    expected = []
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.PixelRepresentation, dataset.RescaleSlope, dataset.RescaleIntercept = signed, pydicom.valuerep.format_number_as_ds(slope), intercept
        dataset.save_as(path)
        expected.append(np.rint(pydicom.pixels.apply_rescale(dataset.pixel_array, dataset)))
    np.testing.assert_array_equal(read_series(folder).hu, expected)


def test_written_series_has_what_highdicom_and_strict_readers_want(good, tmp_path):
    volume, slices = good
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for dataset in slices: dataset.save_as(tmp_path / 'x.dcm', enforce_file_format=True)
    mask = np.zeros(volume.shape, np.uint8); mask[3:5, 4:8, 4:9] = 1
    segment = highdicom.seg.SegmentDescription(1, 'embolus', pydicom.sr.codedict.codes.SCT.Embolus, pydicom.sr.codedict.codes.SCT.Embolus,
                                               highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
    seg = highdicom.seg.Segmentation(slices, mask, 'BINARY', [segment], '2.25.1', 1, '2.25.2', 1, 'm', 'n', '1', '1')
    assert int(seg.pixel_array.sum()) == int(mask.sum())


def test_writing_is_deterministic_and_whole(tmp_path):
    volume = make_volume()
    first, second = (write_series(volume, tmp_path / name, 'P', seed_uid='7') for name in 'ab')
    assert first == second and [s.instance_number for s in first] == list(range(1, 13))
    for path in (tmp_path / 'a').iterdir(): assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes()
    assert write_series(volume, tmp_path / 'c', 'P', seed_uid='8')[0].instance_uid != first[0].instance_uid
    with pytest.raises(ValueError): write_series(volume, tmp_path / 'd', 'P', header={'NoSuchTag': 1})
    assert list((tmp_path / 'd').iterdir()) == []
    low = Volume(np.full((4, 3, 3), -3024, np.int16), (1, 1, 1), (0, 0, 0), AXIAL)   # odd number of bytes per slice is padded
    write_series(low, tmp_path / 'e', 'P'); np.testing.assert_array_equal(read_series(tmp_path / 'e').hu, low.hu)


# ---- series assembly (rows 1 to 20 of the battery)

def change(index, **tags):
    def apply(slices):
        for i in ([index] if isinstance(index, int) else index):
            for keyword, value in tags.items():
                if value is None: delattr(slices[i], keyword)
                else: slices[i][keyword] = pydicom.DataElement(keyword, pydicom.datadict.dictionary_VR(pydicom.datadict.tag_for_keyword(keyword)).split(' ')[0], value, validation_mode=0)
    return apply


def move(function):
    def apply(slices):
        for i, dataset in enumerate(slices): dataset.ImagePositionPatient = (np.array(dataset.ImagePositionPatient, float) + function(i)).round(4).tolist()
    return apply


def tilt(degrees):
    def apply(slices):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        for dataset in slices: dataset.ImageOrientationPatient = [1, 0, 0, 0, round(c, 8), round(s, 8)]
    return apply


def same_place_other_pixels(slices):
    other = copy.deepcopy(slices[4]); other.SOPInstanceUID = '2.25.77'
    other.PixelData = (np.frombuffer(other.PixelData, '<u2') + 50).astype('<u2').tobytes()
    slices.append(other)


ALL = range(12)
REFUSED = {
    'missing inner slice': (lambda s: s.pop(5), 'gap of 3.00 mm between 04.dcm and 05.dcm, usual 1.50', '04.dcm'),
    'same place, other pixels': (same_place_other_pixels, '12.dcm', '12.dcm'),
    'tilt 15': (tilt(15), 'gantry tilt', None), 'tilt 2': (tilt(2), 'gantry tilt', None),
    'tilt in the tag only': (change(ALL, GantryDetectorTilt='15'), 'GantryDetectorTilt', None),
    'coronal': (change(ALL, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), 'not axial', None),
    'one other orientation': (change(3, ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6]), 'ImageOrientationPatient differs', '03.dcm'),
    'non-uniform': (move(lambda i: [0, 0, max(0, i - 6) * 0.5]), 'not evenly spaced', None),
    'creeping spacing': (move(lambda i: [0, 0, i * i * 0.02]), 'not evenly spaced', None),
    'one slice beside': (move(lambda i: [0, 9.0 * (i == 4), 0]), 'beside the stack', '04.dcm'),
    'no position in one': (change(3, ImagePositionPatient=None), 'ImagePositionPatient is missing', '03.dcm'),
    'no position in all': (change(ALL, ImagePositionPatient=None), 'ImagePositionPatient is missing', '00.dcm'),
    'no orientation': (change(3, ImageOrientationPatient=None), 'ImageOrientationPatient is missing', '03.dcm'),
    'no pixel spacing': (change(3, PixelSpacing=None), 'PixelSpacing is missing', '03.dcm'),
    'zero pixel spacing': (change(ALL, PixelSpacing=[0, 0]), 'PixelSpacing must be positive', None),
    'one pixel spacing': (change(3, PixelSpacing=[0.9, 0.9]), 'PixelSpacing differs', '03.dcm'),
    'other frame': (change(3, FrameOfReferenceUID='2.25.99'), 'FrameOfReferenceUID differs', '03.dcm'),
    'few slices': (lambda s: s.__delitem__(slice(2, None)), 'has 2 slices, at least 4', None),
    'same position everywhere': (move(lambda i: [0, 0, -1.5 * i]), 'shows another picture', None),
    # values (rows 21 to 29)
    'no rescale': (change(ALL, RescaleSlope=None, RescaleIntercept=None), 'assume_hu=True', '00.dcm'),
    'no intercept': (change(3, RescaleIntercept=None), 'RescaleIntercept is missing', '03.dcm'),
    'slope 0': (change(3, RescaleSlope='0'), 'RescaleSlope must be positive', '03.dcm'),
    'negative slope': (change(3, RescaleSlope='-1'), 'RescaleSlope must be positive', '03.dcm'),
    'NaN slope': (change(3, RescaleSlope='nan'), 'RescaleSlope must be 1 finite', '03.dcm'),
    'spectral map': (change(ALL, RescaleType='Z_EFF'), 'RescaleType is not HU', None),
    'float pixels': (lambda s: [d.__delitem__('PixelData') or setattr(d, 'FloatPixelData', bytes(40 * 48 * 4)) for d in s], 'no pixel data', None),
    # files (rows 30 to 52)
    'cut pixels': (lambda s: setattr(s[3], 'PixelData', s[3].PixelData[:-200]), 'bytes of pixels', '03.dcm'),
    'too many rows': (change(ALL, Rows=128), 'bytes of pixels', '00.dcm'), 'too few rows': (change(ALL, Rows=10), 'bytes of pixels', '00.dcm'),
    'huge rows': (change(ALL, Rows=65535), 'not a CT slice', '00.dcm'), 'huge frames': (change(ALL, NumberOfFrames='2000000'), 'several frames', '00.dcm'),
    'no pixels': (lambda s: s[3].__delitem__('PixelData'), 'no pixel data', '03.dcm'),
    'colour': (change(ALL, PhotometricInterpretation='RGB', SamplesPerPixel=3), 'colour', '00.dcm'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(name, good, tmp_path):
    apply, words, file = REFUSED[name]
    slices = good[1]
    apply(slices)
    refused(save(slices, tmp_path / 's'), words, file)


def test_values_that_are_no_numbers(good, tmp_path):
    save(good[1], tmp_path / 's')
    path = tmp_path / 's' / '03.dcm'
    data = path.read_bytes()
    for old, new, words in ((rb'0.7\0.8 ', rb'0,7\0,8 ', 'PixelSpacing is not a number'), (b'-30.0', b'nan  ', 'ImagePositionPatient must be 3 finite')):
        assert old in data
        path.write_bytes(data.replace(old, new))
        refused(tmp_path / 's', words, '03.dcm')


def test_signed_pixels_declared_unsigned(good, tmp_path):
    volume, slices = good
    for dataset, hu in zip(slices, volume.hu): dataset.PixelData, dataset.RescaleIntercept = hu.tobytes(), 0
    refused(save(slices, tmp_path / 's'), 'PixelRepresentation')
    for dataset in slices: dataset.PixelRepresentation = 1
    np.testing.assert_array_equal(read_series(save(slices, tmp_path / 't')).hu, volume.hu)


def accepted(slices, folder, volume, note=None, **options):
    read = read_series(save(slices, folder, **options))
    same_world(read, volume)
    assert SECRET not in str(read.notes)
    assert (note in str(read.notes)) if note else read.notes == ()
    return read


def test_repaired_with_a_note(good, tmp_path):
    volume, slices = good
    accepted(slices[::-1], tmp_path / 'reversed', volume)
    twice = slices + [copy.deepcopy(slices[4])]
    accepted(twice, tmp_path / 'duplicate', volume, 'dropped 12.dcm, same as 04.dcm')
    twice[-1].SOPInstanceUID = '2.25.5'
    accepted(twice, tmp_path / 'copy', volume, 'dropped')
    for number, dataset in zip(np.random.default_rng(0).permutation(12), slices): dataset.InstanceNumber = int(number)
    accepted(slices, tmp_path / 'shuffled', volume, 'InstanceNumber does not follow position')
    for number, dataset in enumerate(slices): dataset.InstanceNumber, dataset.ImagesInAcquisition = number, 15
    accepted(slices, tmp_path / 'end', volume, 'ImagesInAcquisition says 15')


def test_jitter_is_accepted(good, tmp_path):
    volume, slices = good
    jitter = np.random.default_rng(1).uniform(-0.05, 0.05, 12)
    move(lambda i: [0, 0, jitter[i]])(slices)
    read = read_series(save(slices, tmp_path / 's'))
    np.testing.assert_array_equal(read.hu, volume.hu)
    assert abs(read.spacing[0] - 1.5) < 0.01


def test_localizer_dose_report_and_foreign_files_are_skipped(good, tmp_path):
    volume, slices = good
    localizer, report = copy.deepcopy(slices[0]), copy.deepcopy(slices[0])
    localizer.ImageType, localizer.ImageOrientationPatient = ['ORIGINAL', 'PRIMARY', 'LOCALIZER'], [1, 0, 0, 0, 0, -1]
    report.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    save(slices + [localizer, report], tmp_path / 's')
    (tmp_path / 's' / 'notes.txt').write_text('text'); (tmp_path / 's' / 'empty.dcm').write_bytes(b''); (tmp_path / 's' / 'text.dcm').write_text('no DICOM ' * 40)
    os.mkfifo(tmp_path / 's' / 'pipe.dcm'); (tmp_path / 's' / 'loop').symlink_to(tmp_path / 's'); (tmp_path / 's' / 'gone.dcm').symlink_to('nowhere')
    read = read_series(tmp_path / 's')
    same_world(read, volume)
    text = '; '.join(read.notes)
    for words in ('localizer', 'Secondary Capture', 'not DICOM', 'empty.dcm', 'pipe.dcm', 'gone.dcm', 'loop'): assert words in text
    refused_text = refused(save([report] * 3, tmp_path / 'only'), 'holds no CT slices')
    assert 'Secondary Capture' in refused_text


def test_several_series_are_listed_and_chosen(good, tmp_path):
    volume, slices = good
    save(slices, tmp_path / 's')
    other = Volume(volume.hu[:6] + 1, volume.spacing, volume.origin, AXIAL)
    write_series(other, tmp_path / 's' / 'second', SECRET, series_description='lung')
    text = refused(tmp_path / 's', 'holds 2 CT series')
    assert '12 slices' in text and '6 slices' in text
    same_world(read_series(tmp_path / 's', series=1), volume); same_world(read_series(tmp_path / 's', series=2), other)
    for uid in find_series(tmp_path / 's')[0]: assert len(read_series(tmp_path / 's', series=uid).hu) in (6, 12)
    refused(tmp_path / 's', 'fits 0', series=3)
    for dataset in slices: dataset.SeriesInstanceUID = find_series(tmp_path / 's' / 'second')[0].popitem()[0]
    save(slices, tmp_path / 's' / 'third'); (tmp_path / 's' / '00.dcm').unlink()   # merged under one UID: contradicts itself
    refused(tmp_path / 's' , 'holds 2 CT series')


# ---- values

def test_per_slice_rescale_monochrome1_and_padding(good, tmp_path):
    volume, slices = good
    for dataset, hu in zip(slices[1::2], volume.hu[1::2]):
        dataset.RescaleIntercept, dataset.PixelData = -1100, (hu.astype(int) + 1100).astype('<u2').tobytes()
    for dataset in slices: dataset.PhotometricInterpretation = 'MONOCHROME1'
    accepted(slices, tmp_path / 'a', volume)
    for signed in (0, 1):   # the tag written as US or SS must mean the same stored bits
        padded, expected = volume.hu.astype(int), volume.hu.copy()
        padded[:, :3], expected[:, :3] = -2000, dicom_file.AIR
        for dataset, hu in zip(slices, padded):
            dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0
            dataset.PixelData = hu.astype('<i2').tobytes()
            dataset.add_new('PixelPaddingValue', 'SS' if signed else 'US', -2000 if signed else 63536)
        read = read_series(save(slices, tmp_path / f'pad{signed}'))
        np.testing.assert_array_equal(read.hu, expected)
        assert read.notes == ('padding set to air in 12 slices',)


def test_doubtful_values_are_noted(good, tmp_path):
    volume, slices = good
    for dataset in slices: dataset.BitsStored, dataset.HighBit = 12, 11
    slices[3].PixelData = (np.frombuffer(slices[3].PixelData, '<u2') + 2000).astype('<u2').tobytes()
    for dataset in slices[:2]: dataset.compress(pydicom.uid.JPEGLSNearLossless, jls_error=2, generate_instance_uid=False)
    read = read_series(save(slices, tmp_path / 's'))
    assert read.notes == ('possibly lossy compression in 2 slices', 'values beyond BitsStored in 1 slices')
    assert read.hu[3].max() > 3071   # not cut to twelve bits
    assert 0 < np.abs(read.hu[:2].astype(int) - volume.hu[:2]).max() <= 2


def test_assume_hu_and_constant_volume(good, tmp_path):
    volume, slices = good
    for dataset in slices: del dataset.RescaleSlope, dataset.RescaleIntercept; dataset.PixelData = bytes(len(dataset.PixelData))
    read = read_series(save(slices, tmp_path / 's'), assume_hu=True)
    assert not read.hu.any() and 'every voxel is 0 HU' in read.notes


# ---- encodings

@pytest.mark.parametrize('syntax', [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_encodings(good, tmp_path, syntax):
    volume, slices = good
    (tmp_path / 's').mkdir()
    for index, dataset in enumerate(slices):
        if syntax == ExplicitVRBigEndian:   # pydicom leaves the pixels' byte order to us
            dataset.PixelData = np.frombuffer(dataset.PixelData, '<u2').astype('>u2').tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        clean = pydicom.Dataset({element.tag: element for element in dataset}); clean.file_meta = dataset.file_meta
        clean.save_as(tmp_path / 's' / f'I{index}', enforce_file_format=True)
    read = read_series(tmp_path / 's')
    same_world(read, volume)
    assert read.hu.dtype == np.dtype('int16') and read.hu.dtype.isnative


@pytest.mark.parametrize('syntax', [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed(good, tmp_path, syntax):
    volume, slices = good
    for dataset in slices: dataset.compress(syntax, generate_instance_uid=False)
    accepted(slices, tmp_path / 's', volume)


def test_jpeg_lossless_by_gdcm(good, tmp_path):
    gdcm = pytest.importorskip('gdcm')
    volume, slices = good
    save(slices, tmp_path / 's')
    for path in (tmp_path / 's').iterdir():
        reader = gdcm.ImageReader(); reader.SetFileName(str(path)); assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax(); change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage()); assert change.Change()
        writer = gdcm.ImageWriter(); writer.SetFileName(str(path)); writer.SetFile(reader.GetFile()); writer.SetImage(change.GetOutput()); assert writer.Write()
    assert pydicom.dcmread(tmp_path / 's' / '00.dcm').file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
    same_world(read_series(tmp_path / 's'), volume)


def test_raw_datasets_without_preamble(good, tmp_path):
    volume, slices = good
    save(slices, tmp_path / 's')
    for path in (tmp_path / 's').iterdir(): path.write_bytes(path.read_bytes()[132:])   # group 0002 first
    same_world(read_series(tmp_path / 's'), volume)
    for path, dataset in zip(sorted((tmp_path / 's').iterdir()), slices):
        clean = pydicom.Dataset({element.tag: element for element in dataset})
        clean.save_as(path, implicit_vr=True, little_endian=True)   # no meta at all
    same_world(read_series(tmp_path / 's'), volume)


def test_damaged_and_lying_compression(good, tmp_path):
    volume, slices = good
    for name, syntax, words in (('bomb', JPEG2000Lossless, 'compressed picture is 60000 x 60000'), ('ls', JPEGLSLossless, 'compressed picture is 60000 x 48')):
        parts = copy.deepcopy(slices)
        parts[3].compress(syntax, generate_instance_uid=False)
        data = parts[3].PixelData
        if syntax == JPEG2000Lossless:
            at = data.index(b'\xff\x4f\xff\x51') + 8
            data = data[:at] + struct.pack('>II', 60000, 60000) + data[at + 8:]
        else:
            at = data.index(b'\xff\xf7') + 5
            data = data[:at] + struct.pack('>H', 60000) + data[at + 2:]
        parts[3].PixelData = data
        refused(save(parts, tmp_path / name), words, '03.dcm')
    lie = copy.deepcopy(slices)
    lie[3].compress(JPEG2000Lossless, generate_instance_uid=False)
    frame = pydicom.encaps.get_frame(lie[3].PixelData, 0, number_of_frames=1)
    lie[3].file_meta.TransferSyntaxUID, lie[3].PixelData = ExplicitVRLittleEndian, frame + b'\0' * (len(frame) % 2)
    lie[3]['PixelData'].VR, lie[3]['PixelData'].is_undefined_length = 'OW', False
    refused(save(lie, tmp_path / 'lie'), 'bytes of pixels', '03.dcm')
    rle = copy.deepcopy(slices)
    for part in rle: part.compress(RLELossless, generate_instance_uid=False)
    frame = pydicom.encaps.get_frame(rle[3].PixelData, 0, number_of_frames=1)
    rle[3].PixelData = pydicom.encaps.encapsulate([frame[:70]])
    refused(save(rle, tmp_path / 'rle'), 'cannot be decoded', '03.dcm')


@pytest.mark.parametrize('syntax', ['1.2.840.113619.5.2', 'nonsense', '1.2.840.10008.1.2.4.100'])   # GE's private one, none at all, MPEG2
def test_unknown_transfer_syntax(good, tmp_path, syntax):
    volume, slices = good
    save(slices, tmp_path / 's')
    path = tmp_path / 's' / '03.dcm'
    old, new = b'1.2.840.10008.1.2.1\0', (syntax + '\0' * (len(syntax) % 2)).encode()
    data = path.read_bytes().replace(b'UI' + struct.pack('<H', len(old)) + old, b'UI' + struct.pack('<H', len(new)) + new)
    path.write_bytes(data[:140] + struct.pack('<I', struct.unpack('<I', data[140:144])[0] + len(new) - len(old)) + data[144:])
    refused(tmp_path / 's', '', '03.dcm')


def test_a_panic_in_a_decoder_becomes_an_input_error(good, tmp_path, monkeypatch):
    class Panic(BaseException): pass
    def panic(self): raise Panic('boom')
    for dataset in good[1]: dataset.compress(RLELossless, generate_instance_uid=False)
    monkeypatch.setattr(pydicom.Dataset, 'pixel_array', property(panic))
    refused(save(good[1], tmp_path / 's'), 'Panic', '00.dcm')
    def stop(self): raise KeyboardInterrupt
    monkeypatch.setattr(pydicom.Dataset, 'pixel_array', property(stop))
    with pytest.raises(KeyboardInterrupt): read_series(tmp_path / 's')


def test_damaged_headers(good, tmp_path):
    save(good[1], tmp_path / 's')
    path = tmp_path / 's' / '03.dcm'
    data = path.read_bytes()
    for keep in (140, 200, 400, 700, 900, len(data) - 300):
        path.write_bytes(data[:keep])
        refused(tmp_path / 's', '')   # whatever is said, it is an InputError without the planted name
    nested = b'\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff' + b'\xfe\xff\x00\xe0\xff\xff\xff\xff'
    path.write_bytes(data[:data.index(b'\x08\x00\x16\x00UI')] + nested * 5000)
    refused(tmp_path / 's', '')


def test_deflated_reads_and_a_bomb_is_refused(good, tmp_path, monkeypatch):
    volume, slices = good
    for dataset in slices: dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    accepted(slices, tmp_path / 's', volume)
    monkeypatch.setattr(dicom_file, 'MAX_INFLATED', 1 << 20)
    path = tmp_path / 's' / '03.dcm'
    data = path.read_bytes()
    start = 144 + struct.unpack('<I', data[140:144])[0]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(data[:start] + squeeze.compress(bytes(8 << 20)) + squeeze.flush())
    refused(tmp_path / 's', 'inflates to more than', '03.dcm')


def test_dicomdir_is_never_followed_and_names_may_be_foreign(good, tmp_path):
    volume, slices = good
    folder = tmp_path / 'بیمار' / 'больной'
    (tmp_path / 'بیمار').mkdir()
    save(slices, folder, names=[f'срез{i}' for i in range(12)])
    directory = pydicom.Dataset(); directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.TransferSyntaxUID, directory.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, pydicom.uid.MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = '2.25.4'
    directory.FileSetID = 'X'
    directory.save_as(folder / 'DICOMDIR', enforce_file_format=True)
    read = read_series(folder)
    same_world(read, volume)
    assert 'DICOMDIR' in read.notes[0]


def test_changed_between_header_and_pixels(good, tmp_path, monkeypatch):
    save(good[1], tmp_path / 's')
    real = dicom_file.parse_dicom
    def swap(path, file, **options):
        dataset = real(path, file, **options)
        if not options: dataset.SOPInstanceUID = '2.25.123'
        return dataset
    monkeypatch.setattr(dicom_file, 'parse_dicom', swap)
    refused(tmp_path / 's', 'changed while')


def test_missing_folder_and_empty_folder(tmp_path):
    refused(tmp_path / 'nowhere', 'does not exist')
    (tmp_path / 'empty').mkdir(); refused(tmp_path / 'empty', 'holds no CT slices')


def test_pixel_digest_sees_shape_and_values_only():
    a = make_volume()
    b = Volume(a.hu.copy(), (9, 9, 9), (1, 2, 3), AXIAL)
    c = Volume(a.hu.reshape(12, 48, 40), a.spacing, a.origin, AXIAL)
    assert pixel_digest(a) == pixel_digest(b) != pixel_digest(c)
    b.hu[0, 0, 0] += 1
    assert pixel_digest(a) != pixel_digest(b)
