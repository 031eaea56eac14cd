"""Series and volume files against highdicom, pydicom, nibabel, SimpleITK and arithmetic, none of which we wrote.

The bad-input battery is in test_battery_reading.py.
"""

import gzip
import importlib.util
import struct
import warnings
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, RLELossless
from scipy.spatial.transform import Rotation
from support.spoiled_series import (
    AXIAL,
    SECRETS,
    datasets,
    make_volume,
    move,
    refused,
    same_world,
    save,
    set_dates,
    tilted,
)

import pe_advseg.scans.slice_header as slice_header
from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.core.volume import Source, Volume
from pe_advseg.phantom.phantom_masks import write_mat, write_plain_nifti, write_seg
from pe_advseg.scans.find_series import find_series
from pe_advseg.scans.hounsfield import AIR
from pe_advseg.scans.mask_files import read_png_masks, read_volume_mask
from pe_advseg.scans.matlab_masks import read_mat_mask
from pe_advseg.scans.multiframe import frame_headers
from pe_advseg.scans.seg_read import read_seg_mask
from pe_advseg.scans.series import pixel_digest, read_series
from pe_advseg.scans.slice_header import read_header
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import write_series

few = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# ---- orientation, order and rescale


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans(), st.booleans())
@few
def test_any_orientation_and_order_keeps_the_world_and_agrees_with_highdicom(
    tmp_path_factory, seed, flip_row, flip_column, flip_slices, reverse
):
    rng = np.random.default_rng(seed)
    direction = Rotation.from_rotvec(rng.uniform(-0.35, 0.35, 3)).as_matrix() @ AXIAL
    direction = direction * np.where([flip_slices, flip_column, flip_row], -1, 1)
    volume = make_volume(direction, (5, 6, 7), seed, tuple(rng.uniform(-300, 300, 3)))
    folder = tmp_path_factory.mktemp('series') / 's'
    names = [f'{i:02d}.dcm' for i in rng.permutation(5)]
    write_series(volume, folder, 'P', file_names=names, reverse=reverse)
    read = read_series(folder)
    same_world(read, volume)
    assert read.direction[2, 0] > 0  # slices climb to the head
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    ours = read.affine()
    # highdicom may stack the other way round: compare the positions of both ends
    ends = [theirs.affine @ [z, 2, 3, 1] for z in (0, 4)]
    if ends[0] @ [*read.direction[:, 0], 0] > ends[1] @ [*read.direction[:, 0], 0]:
        ends.reverse()
    np.testing.assert_allclose([(ours @ [z, 2, 3, 1])[:3] for z in (0, 4)], [end[:3] for end in ends], atol=1e-3)
    theirs = theirs.match_geometry(
        highdicom.VolumeGeometry(
            ours, read.shape, coordinate_system='PATIENT', frame_of_reference_uid=theirs.frame_of_reference_uid
        )
    )
    np.testing.assert_array_equal(theirs.array, read.hu)


@given(
    st.integers(0, 1),
    st.floats(0.25, 4),
    st.one_of(st.integers(-2000, 500), st.floats(-2000, 500)),
    st.sampled_from([None, JPEG2000Lossless, RLELossless]),
)
@few
def test_rescale_agrees_with_pydicom(tmp_path_factory, signed, slope, intercept, syntax):
    folder = tmp_path_factory.mktemp('rescale') / 's'
    write_series(make_volume(shape=(4, 33, 34)), folder, 'P')
    expected = []
    for number, path in enumerate(sorted(folder.iterdir())):  # another slope and intercept for each slice
        dataset = pydicom.dcmread(path)
        dataset.PixelRepresentation = signed
        dataset.RescaleSlope, dataset.RescaleIntercept = (
            pydicom.valuerep.format_number_as_ds(float(value)) for value in (slope + 0.1 * number, intercept - number)
        )
        expected.append(np.rint(pydicom.pixels.apply_rescale(dataset.pixel_array, dataset)))
        if syntax:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_array_equal(read_series(folder, assume_hu=True).hu, expected)  # some of these have no air


# ---- writing


def test_written_series_has_what_highdicom_and_strict_readers_want(tmp_path):
    volume = make_volume()
    slices = datasets(volume, tmp_path / 'good')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for dataset in slices:
            dataset.save_as(tmp_path / 'x.dcm', enforce_file_format=True)
    mask = np.zeros(volume.shape, np.uint8)
    mask[3:5, 4:8, 4:9] = 1
    segment = highdicom.seg.SegmentDescription(
        1,
        'embolus',
        pydicom.sr.codedict.codes.SCT.Embolus,
        pydicom.sr.codedict.codes.SCT.Embolus,
        highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    seg = highdicom.seg.Segmentation(slices, mask, 'BINARY', [segment], '2.25.1', 1, '2.25.2', 1, 'm', 'n', '1', '1')
    assert int(seg.pixel_array.sum()) == int(mask.sum())


def test_writing_is_deterministic_and_whole(tmp_path):
    volume = make_volume()
    first, second = (write_series(volume, tmp_path / name, 'P', seed_uid='7') for name in 'ab')
    assert first == second and [s.instance_number for s in first] == list(range(1, 13))
    for path in (tmp_path / 'a').iterdir():
        assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes()
    assert write_series(volume, tmp_path / 'c', 'P', seed_uid='8')[0].instance_uid != first[0].instance_uid
    with pytest.raises(ValueError):
        write_series(volume, tmp_path / 'd', 'P', header={'NoSuchTag': 1})
    assert list((tmp_path / 'd').iterdir()) == []
    low = Volume(
        np.full((4, 3, 3), -3024, np.int16), (1, 1, 1), (0, 0, 0), AXIAL
    )  # odd number of bytes per slice is padded
    write_series(low, tmp_path / 'e', 'P')
    np.testing.assert_array_equal(read_series(tmp_path / 'e').hu, low.hu)


def test_pixel_digest_sees_shape_and_values_only():
    a = make_volume()
    b = Volume(a.hu.copy(), (9, 9, 9), (1, 2, 3), AXIAL)
    c = Volume(a.hu.reshape(12, 48, 40), a.spacing, a.origin, AXIAL)
    assert pixel_digest(a) == pixel_digest(b) != pixel_digest(c)
    b.hu[0, 0, 0] += 1
    assert pixel_digest(a) != pixel_digest(b)


# ---- reading, beyond the battery


def test_series_are_listed_and_chosen(tmp_path):
    volume, folder = make_volume(), tmp_path / 's'
    slices = datasets(volume, tmp_path / 'good')
    save(slices, folder)
    other = Volume(volume.hu[:6] + 1, volume.spacing, volume.origin, AXIAL)
    write_series(other, folder / 'second', SECRETS[0], series_description='lung')
    same_world(read_series(folder, series=2), other)
    for key in find_series(folder)[0]:
        assert len(read_series(folder, series=key).hu) in (6, 12)
    for dataset in slices:
        dataset.SeriesInstanceUID, dataset.PatientID = find_series(folder / 'second')[0].popitem()[0], SECRETS[0]
    save(slices, folder / 'third')
    (folder / '00.dcm').unlink()  # two scans merged under one UID contradict each other
    refused('holds 2 CT series')(folder, volume)
    refused('shows another picture', series=2)(folder, volume)


@pytest.mark.parametrize(
    'syntax', ['1.2.840.113619.5.2', 'nonsense', '1.2.840.10008.1.2.4.100']
)  # GE's private one, none at all, MPEG2
def test_unknown_transfer_syntax(tmp_path, syntax):
    save(datasets(make_volume(), tmp_path / 'good'), tmp_path / 's')
    path = tmp_path / 's' / '03.dcm'
    old, new = b'1.2.840.10008.1.2.1\0', (syntax + '\0' * (len(syntax) % 2)).encode()
    data = path.read_bytes().replace(
        b'UI' + struct.pack('<H', len(old)) + old, b'UI' + struct.pack('<H', len(new)) + new
    )
    path.write_bytes(
        data[:140] + struct.pack('<I', struct.unpack('<I', data[140:144])[0] + len(new) - len(old)) + data[144:]
    )
    refused('', '03.dcm')(tmp_path / 's', None)


def test_a_panic_in_a_decoder_becomes_an_input_error(tmp_path, monkeypatch):
    class Panic(BaseException):
        pass

    def panic(self):
        raise Panic(SECRETS[0])

    slices = datasets(make_volume(), tmp_path / 'good')
    for dataset in slices:
        dataset.compress(RLELossless, generate_instance_uid=False)
    save(slices, tmp_path / 's')
    monkeypatch.setattr(pydicom.Dataset, 'pixel_array', property(panic))
    refused('Panic', '00.dcm')(tmp_path / 's', None)

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(pydicom.Dataset, 'pixel_array', property(stop))
    with pytest.raises(KeyboardInterrupt):
        read_series(tmp_path / 's')


def test_a_multiframe_file_is_parsed_once_however_many_frames_it_has(tmp_path, monkeypatch):
    slices = datasets(make_volume(), tmp_path / 'good')
    set_dates(slices)
    made = highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, '2.25.9', 1, '2.25.99', 1)
    made.compress(RLELossless, generate_instance_uid=False)
    save([made], tmp_path / 's')
    calls, real = [], pydicom.dcmread
    monkeypatch.setattr(pydicom, 'dcmread', lambda *args, **options: calls.append(1) or real(*args, **options))
    volume = read_series(tmp_path / 's')
    assert len(calls) == 1  # for the header; the pixels are found where it ended
    assert [source.instance_number for source in volume.sources] == list(
        range(12, 0, -1)
    )  # the converter begins at the head
    assert {source.file for source in volume.sources} == {'00.dcm'}
    path = tmp_path / 's' / '00.dcm'
    headers = frame_headers(read_header(path, path.name), path, path.name)
    assert headers[4].file == '00.dcm frame 5'


def test_nothing_of_a_damaged_header_is_logged(tmp_path, caplog, recwarn):
    slices = datasets(make_volume(), tmp_path / 'good')
    for keyword in ('InstanceNumber', 'StudyDate', 'ImagesInAcquisition'):
        for dataset in slices:
            dataset[keyword] = pydicom.DataElement(keyword, 'LO', SECRETS[0], validation_mode=0)
    save(slices, tmp_path / 's')
    recwarn.clear()
    caplog.clear()
    assert 'PLANTED' not in ' '.join(read_series(tmp_path / 's').notes)
    assert not caplog.text and not [str(warning.message) for warning in recwarn if 'PLANTED' in str(warning.message)]


# ---- resampling, against what the patient looks like: a field known at every point


def field(points):
    return -300 + points @ [1.5, -2.0, 0.8]  # HU, linear in patient space: linear interpolation gives it back exactly


def sample(spoil, volume, folder):
    "The field on the slices of a spoiled series."
    slices = datasets(volume, folder)
    spoil(slices)
    y, x = np.mgrid[: volume.shape[1], : volume.shape[2]]
    for dataset in slices:
        row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        points = np.array(dataset.ImagePositionPatient, float) + y[..., None] * column * 0.7 + x[..., None] * row * 0.8
        dataset.PixelData = np.rint(field(points) + 1024).astype('<u2').tobytes()
    return slices


@pytest.mark.parametrize(
    'spoil, most_air',
    [
        (tilted(15), 0.3),
        (tilted(2), 0.08),
        (move(lambda i: [0, 0.2 * i, 0]), 0.1),
        (move(lambda i: [0.1 * i, -0.1 * i, 0]), 0.1),
        (move(lambda i: [0, 0, max(0, i - 6) * 0.5]), 0),
        (lambda s: (move(lambda i: [0, 0, max(0, i - 6) * 0.5])(s), tilted(10)(s)), 0.25),
    ],
    ids=['tilt15', 'tilt2', 'sheared', 'sheared-sideways', 'uneven', 'uneven-and-tilted'],
)
def test_resampled_slices_show_the_patient_where_they_say(tmp_path, spoil, most_air):
    save(sample(spoil, make_volume(), tmp_path / 'good'), tmp_path / 's')
    with pytest.raises(InputError, match='resample=True'):
        read_series(tmp_path / 's')
    read = read_series(tmp_path / 's', resample=True)
    expected = field(read.to_patient(np.stack(np.meshgrid(*map(np.arange, read.shape), indexing='ij'), -1)))
    air = read.hu == AIR
    assert (
        air.mean() <= most_air and np.abs(read.hu - expected)[~air].max() < 1.5
    )  # HU; stored and resampled numbers are both rounded
    np.testing.assert_allclose(read.direction, AXIAL, atol=1e-6)
    assert any('resampled' in note for note in read.notes) and read.sources == ()


def test_resampling_leaves_an_upright_series_alone(tmp_path):
    save(datasets(make_volume(), tmp_path / 'good'), tmp_path / 's')
    plain, asked = read_series(tmp_path / 's'), read_series(tmp_path / 's', resample=True)
    assert pixel_digest(plain) == pixel_digest(asked) and plain.sources == asked.sources and asked.notes == ()
    np.testing.assert_allclose(plain.affine(), asked.affine(), atol=1e-9)


def test_masks_on_resampled_slices_are_placed_by_geometry_or_refused(tmp_path):
    slices = datasets(make_volume(), tmp_path / 'good')
    move(lambda i: [0, 0, max(0, i - 6) * 0.5])(slices)
    save(slices, tmp_path / 's')
    read = read_series(tmp_path / 's', resample=True)
    mask = np.zeros(read.shape, np.uint8)
    mask[3, 5:9, 5:9] = 1
    write_plain_nifti(tmp_path / 'new.nii', mask, read)  # drawn on the new grid
    np.testing.assert_array_equal(read_volume_mask(tmp_path / 'new.nii', read, 'new.nii')[0], mask)
    native = make_volume()
    old = np.zeros(native.shape, np.uint8)
    old[3:11, 5:9, 5:9] = 1
    write_plain_nifti(tmp_path / 'old.nii', old, native)
    with pytest.raises(MaskError):
        read_volume_mask(tmp_path / 'old.nii', read, 'old.nii')
    write_mat(tmp_path / 'old.mat', old)
    with pytest.raises(MaskError, match='the scan names no files'):
        read_mat_mask(tmp_path / 'old.mat', read, 'old.mat')
    write_seg(tmp_path / 'old.dcm', old, tmp_path / 's', [Source(f'{i:02d}.dcm', '', i) for i in range(12)])
    with pytest.raises(MaskError, match='voxels off'):
        read_seg_mask(tmp_path / 'old.dcm', read, 'old.dcm')
    with pytest.raises(MaskError, match='no PNG'):
        read_png_masks(tmp_path / 's', read, 's')


# ---- volume files


def image_of(volume):
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing[::-1])
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction[:, ::-1].ravel().tolist())
    return image


@given(
    st.integers(0, 10_000),
    st.sampled_from([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]),
    st.tuples(*3 * [st.booleans()]),
    st.sampled_from(['.nii', '.nii.gz', '.nrrd', '.nhdr', '.mha', '.mhd']),
    st.booleans(),
    st.sampled_from(['int16', 'int32', 'float32', 'float64']),
)
@settings(few, max_examples=40)
def test_any_axis_order_of_any_writer_keeps_the_world(tmp_path_factory, seed, order, flips, suffix, compress, kind):
    rng = np.random.default_rng(seed)
    axes = (Rotation.from_rotvec(rng.uniform(-0.35, 0.35, 3)).as_matrix() @ AXIAL * np.where(flips, -1, 1))[
        :, list(order)
    ]
    hu = rng.integers(-1024, 2000, (5, 6, 7)).astype(np.int16)
    hu[0, 0, 0] = -1000
    spacing = tuple(rng.uniform(0.6, 0.8, 3))
    made = Volume(hu, spacing, tuple(rng.uniform(-300, 300, 3)), axes)
    folder = tmp_path_factory.mktemp('files')
    path = folder / f'a{suffix}'
    SimpleITK.WriteImage(
        SimpleITK.Cast(
            image_of(made),
            getattr(
                SimpleITK,
                {'int16': 'sitkInt16', 'int32': 'sitkInt32', 'float32': 'sitkFloat32', 'float64': 'sitkFloat64'}[kind],
            ),
        ),
        str(path),
        compress,
    )
    read = read_volume(path)
    np.testing.assert_allclose(world_of(read), world_of(made), atol=2e-3)
    assert read.direction[2, 0] > 0.7 and read.direction[1, 1] > 0.7 and read.direction[0, 2] > 0.7 and read.notes == ()
    if suffix.startswith('.nii'):  # nibabel's own idea of where each voxel is
        theirs = nibabel.load(path)
        index = np.argwhere(np.ones(theirs.shape, bool))
        points = nibabel.affines.apply_affine(theirs.affine, index) * [-1, -1, 1]
        values = read.hu[tuple(np.rint(read.to_index(points)).astype(int).T)]
        np.testing.assert_array_equal(values, np.asarray(theirs.dataobj).reshape(-1))


def world_of(volume):
    "Places and HU, sorted by HU and place."
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing='ij'), -1).reshape(-1, 3)
    table = np.column_stack([volume.hu.reshape(-1), volume.to_patient(index)])
    return table[np.lexsort(np.round(table.T[::-1], 1))]


@given(st.floats(0.1, 3), st.floats(-1500, 0), st.sampled_from(['<i2', '>i2', '<f4', '>u2', 'u1']))
@few
def test_nifti_scaling_agrees_with_nibabel(tmp_path_factory, slope, intercept, kind):
    stored = np.arange(5 * 6 * 7).reshape(7, 6, 5).astype(kind)
    image = nibabel.Nifti1Image(
        stored, make_volume().nifti_affine(), nibabel.Nifti1Header(endianness='>' if kind[0] == '>' else '<')
    )
    image.header.set_data_dtype(kind)
    image.header.set_slope_inter(slope, intercept)
    path = tmp_path_factory.mktemp('scale') / 'a.nii'
    with open(path, 'wb') as file:  # as stored: nibabel would choose its own slope
        header = image.header.copy()
        header['vox_offset'] = 352
        header['magic'] = b'n+1'
        file.write(header.binaryblock + bytes(4) + np.asarray(stored, kind).tobytes(order='F'))
    theirs = nibabel.load(path)
    read = read_volume(path, assume_hu=True)
    exact = np.asarray(theirs.dataobj).transpose(2, 1, 0)
    assert np.abs(read.hu - exact).max() <= 0.501
    assert ('rounded to whole HU' in str(read.notes)) == (np.abs(np.rint(exact) - exact).max() > 1e-3)


@pytest.fixture
def nifti(tmp_path):
    good_affine = make_volume().nifti_affine()

    def write(array=None, name='a.nii', affine=good_affine, **fields):
        image = nibabel.Nifti1Image(make_volume().hu.transpose(2, 1, 0) if array is None else array, affine)
        for key, value in fields.items():
            image.header[key] = value
        nibabel.save(image, tmp_path / name)
        return tmp_path / name

    return write


def not_read(path, words, **options):
    with pytest.raises(InputError) as caught:
        read_volume(path, **options)
    assert words in str(caught.value), str(caught.value)
    assert caught.value.remedy and str(path.parent) not in str(caught.value) and caught.value.file == path.name
    return caught.value


def test_nifti_refusals(nifti, tmp_path):
    hu = make_volume().hu.transpose(2, 1, 0)
    sheared = make_volume().nifti_affine()
    sheared[0, 1] = 0.3
    for path_of, words in (
        (lambda: nifti(np.clip(hu / 2000, 0, 1).astype(np.float32)), 'hold no air'),
        (lambda: nifti((np.clip(hu, -160, 240) + 160).astype(np.uint8), 'b.nii.gz'), 'hold no air'),
        (lambda: nifti((hu + 1024).astype(np.uint16)), 'shifted numbers'),
        (lambda: nifti(hu.astype(np.int32) * 40), 'no Hounsfield units'),
        (lambda: nifti(np.where(hu > 1000, np.inf, hu).astype(np.float32)), 'not finite'),
        (lambda: nifti(np.stack([hu, hu], -1)), '48 x 40 x 12 x 2'),
        (lambda: nifti(hu[0]), '40 x 12'),
        (lambda: nifti(hu.astype(np.complex64)), 'complex64'),
        (lambda: nifti(affine=sheared), 'not perpendicular'),
        (lambda: nifti(affine=np.diag([1e-4, 1e-4, 1e-4, 1])), 'cannot be millimetres'),
        (lambda: nifti(affine=Volume(make_volume().hu, (0.7, 4, 0.8), (0, 0, 0), AXIAL).nifti_affine()), 'not axial'),
        (lambda: nifti(xyzt_units=1), 'not the millimetre'),
    ):
        not_read(path_of(), words)
    no_place = nibabel.Nifti1Image(hu, None)
    nibabel.save(no_place, tmp_path / 'c.nii')
    not_read(tmp_path / 'c.nii', 'nothing about its place')
    assert read_volume(nifti(hu[..., None])).shape == (12, 40, 48)  # a fourth axis of one
    assert read_volume(nifti(np.clip(hu, 0, 2000)), assume_hu=True).hu.min() == 0


def test_nifti_2_and_pairs(tmp_path):
    image = nibabel.Nifti2Image(make_volume().hu.transpose(2, 1, 0), make_volume().nifti_affine())
    nibabel.save(image, tmp_path / 'two.nii')
    same_world(read_volume(tmp_path / 'two.nii'), make_volume())
    nibabel.save(nibabel.Nifti1Pair(image.get_fdata(), image.affine), tmp_path / 'pair.img')
    (tmp_path / 'pair.hdr').rename(tmp_path / 'pair.nii')
    not_read(tmp_path / 'pair.nii', 'numbers inside')


def test_both_forms_of_nifti_and_their_contradiction(nifti, tmp_path):
    image = nibabel.load(nifti())
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    nibabel.save(image, tmp_path / 'q.nii')
    assert read_volume(tmp_path / 'q.nii').notes == ()
    moved = image.affine.copy()
    moved[2, 3] += 20
    image.set_qform(moved, 1)
    nibabel.save(image, tmp_path / 'q.nii')
    (note,) = read_volume(tmp_path / 'q.nii').notes
    assert note == 'sform and qform differ by up to 20.00 mm at the corners: sform taken'
    image.set_sform(None, 0)
    nibabel.save(image, tmp_path / 'q.nii')
    np.testing.assert_allclose(
        read_volume(tmp_path / 'q.nii').origin, make_volume().origin + np.array([0, 0, 20]), atol=1e-3
    )


def test_cut_packed_and_huge_files(nifti, tmp_path, monkeypatch):
    whole = nifti().read_bytes()
    for name, data, words in (
        ('cut.nii', whole[:-10], 'cut short'),
        ('head.nii', whole[:200], 'no NIfTI'),
        ('cut.nii.gz', gzip.compress(whole)[:-3000], 'cut short'),
        ('broken.nii.gz', gzip.compress(whole)[:600] + b'\xff' * 4000, 'damaged'),
        ('text.nii', b'hello' * 200, 'no NIfTI'),
        ('empty.nii', b'', 'no NIfTI'),
        ('folder.dcm', b'', 'no kind of volume file'),
        ('a.nrrd.gz', b'', 'no kind of volume file'),
    ):
        (tmp_path / name).write_bytes(data)
        not_read(tmp_path / name, words)
    (tmp_path / 'two.nii.gz').write_bytes(
        gzip.compress(whole[:5000]) + gzip.compress(whole[5000:])
    )  # gzip files strung together are one
    same_world(read_volume(tmp_path / 'two.nii.gz'), make_volume())
    not_read(tmp_path / 'none.nii', 'does not exist')
    monkeypatch.setattr(slice_header, 'MAX_VOXELS', 20000)
    not_read(nifti(), 'billion voxels')
    far = bytearray(whole)
    far[108:112] = struct.pack('<f', 1e9)
    (tmp_path / 'far.nii').write_bytes(far)
    not_read(tmp_path / 'far.nii', 'impossible place')


def test_nrrd_and_metaimage_refusals(tmp_path):
    for suffix in ('nrrd', 'mha'):
        SimpleITK.WriteImage(image_of(make_volume()), str(tmp_path / f'good.{suffix}'))

    def changed(name, *pairs):
        data = (tmp_path / f'good.{name}').read_bytes()
        for old, new in pairs:
            assert old in data
            data = data.replace(old, new, 1)
        (tmp_path / f'bad.{name}').write_bytes(data)
        return tmp_path / f'bad.{name}'

    for path_of, words in (
        (
            lambda: changed('nrrd', (b'space: left-posterior-superior\n', b'space dimension: 3\n')),
            'how it lies in the patient',
        ),
        (lambda: changed('nrrd', (b'space origin', b'#pace origin')), 'space origin'),
        (lambda: changed('nrrd', (b'space directions', b'#pace directions')), 'space directions'),
        (lambda: changed('nrrd', (b'sizes: 48 40 12', b'sizes: 48 40 99')), 'cut short'),
        (lambda: changed('nrrd', (b'sizes: 48 40 12', b'sizes: 48 40000 40000')), 'billion voxels'),
        (lambda: changed('nrrd', (b'encoding: raw', b'encoding: hex')), 'not read'),
        (lambda: changed('nrrd', (b'endian: little\n', b'')), 'order its bytes'),
        (lambda: changed('nrrd', (b'NRRD', b'XRRD')), 'no NRRD'),
        (lambda: changed('nrrd', (b'encoding: raw', b'encoding: raw\ndata file: ../../etc/passwd')), 'elsewhere'),
        (lambda: changed('nrrd', (b'encoding: raw', b'encoding: raw\ndata file: gone.raw')), 'not there'),
        (lambda: changed('mha', (b'TransformMatrix', b'#ransformMatrix')), 'TransformMatrix'),
        (lambda: changed('mha', (b'ElementSpacing', b'#lementSpacing')), 'ElementSpacing'),
        (lambda: changed('mha', (b'Offset', b'#ffset')), 'Offset'),
        (lambda: changed('mha', (b'DimSize = 48 40 12', b'DimSize = 48 40 -2')), 'no volume'),
        (lambda: changed('mha', (b'ElementDataFile = LOCAL', b'ElementDataFile = LIST')), 'elsewhere'),
        (lambda: changed('mha', (b'NDims = 3', b'NDims = 4')), 'three axes'),
        (lambda: changed('mha', (b'ElementDataFile', b'#lementDataFile')), 'does not end'),
    ):
        not_read(path_of(), words)
    ras = changed('nrrd', (b'left-posterior-superior', b'right-anterior-superior'))  # SimpleITK turns it too
    theirs = SimpleITK.ReadImage(str(ras))
    np.testing.assert_allclose(
        read_volume(ras).to_index(theirs.TransformIndexToPhysicalPoint((3, 4, 5))) % 1 % 0.999, 0, atol=2e-3
    )
    assert (
        read_volume(ras).hu[
            tuple(np.rint(read_volume(ras).to_index(theirs.TransformIndexToPhysicalPoint((3, 4, 5)))).astype(int))
        ]
        == theirs[3, 4, 5]
    )


def test_read_volume_takes_a_folder_too(tmp_path):
    slices = datasets(make_volume(), tmp_path / 'good')
    tilted(15)(slices)
    save(slices, tmp_path / 's')
    assert read_volume(tmp_path / 's', resample=True).sources == ()
    with pytest.raises(InputError, match='gantry tilt'):
        read_volume(tmp_path / 's')


# ---- any bytes at all


def fuzzer():
    "The fuzz target of `make fuzz`, without its coverage guide."
    spec = importlib.util.spec_from_file_location(
        'fuzz_reader', Path(__file__).resolve().parent.parent / 'tools' / 'fuzz_reader.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_seed_of_the_fuzz_target_is_read_and_its_mutations_are_read_or_refused(tmp_path):
    target, rng, outcomes = fuzzer(), np.random.default_rng(0), set()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for number, data in enumerate(target.seeds(tmp_path).values()):
            good = target.try_one(bytes([number]) + data, tmp_path)
            assert isinstance(good, Volume), f'{target.KINDS[number]}: {good}'
            for _ in range(40):
                changed = bytearray(data)
                for at in rng.integers(0, len(changed), rng.integers(1, 8)):
                    changed[at] = rng.choice([0, 255, rng.integers(256)])
                outcomes.add(
                    type(
                        target.try_one(
                            bytes([number + 128 * rng.integers(2)])
                            + bytes(changed[: rng.integers(len(changed) // 2, 2 * len(changed))]),
                            tmp_path,
                        )
                    )
                )
    assert outcomes == {Volume, InputError}
