"""Rows 1 to 52 of the bad-input battery, and traps that a reviewer found.

A good series of twelve slices is spoiled in one way and must be read right or refused with a reason.
"""

import base64
import builtins
import copy
import dataclasses
import os
import shutil
import stat
import struct
import sys
import zlib
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import uid
from support.spoiled_series import (
    ALL,
    AXIAL,
    SECRETS,
    datasets,
    make_volume,
    move,
    refused,
    same_world,
    save,
    set_dates,
    tags,
    tilted,
    without_identity,
)

import pe_advseg.scans.series as series_reader
import pe_advseg.scans.slice_header as slice_header
from pe_advseg.core.errors import InputError
from pe_advseg.core.volume import Volume
from pe_advseg.scans.codestream import SIZ
from pe_advseg.scans.series import read_series
from pe_advseg.scans.write_series import write_series

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')  # pydicom's, about what is spoiled on purpose


# ---- what is asked for


def reads(note=None, same=same_world, **options):
    "The good volume, with this note, or with none at all."

    def check(folder, volume):
        read = read_series(folder, **options)
        same(read, volume)
        without_identity(' '.join(read.notes), folder)
        assert (note in ' '.join(read.notes)) if note else read.notes == (), read.notes
        assert read.hu.dtype == np.int16 and read.hu.dtype.isnative

    return check


def hu_is(change):
    return lambda read, volume: np.testing.assert_array_equal(read.hu, change(volume.hu.copy()))


def three_rows_of_air(hu):
    hu[:, :3] = -1024
    return hu


def part(begin, end):
    return lambda read, volume: same_world(
        read, Volume(volume.hu[begin:end], volume.spacing, volume.to_patient([begin, 0, 0]), volume.direction)
    )


def anything(read, volume):
    pass


# ---- how a series is spoiled: `slices` are datasets, changed in place or returned anew


def each(change):
    "A change of every dataset."

    def apply(slices):
        for dataset in slices:
            change(dataset)

    return apply


def lose_inner_slice(slices):
    slices.pop(5)


def shuffle_instance_numbers(slices):
    for index, number in enumerate(np.random.default_rng(0).permutation(12)):
        slices[index].InstanceNumber = int(number)


def float_pixels(dataset):
    del dataset.PixelData
    dataset.FloatPixelData = bytes(40 * 48 * 4)


def deflated(dataset):
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian


def long_header(length_of):
    "A private element of so many bytes in each slice."

    def apply(slices):
        for number, dataset in enumerate(slices):
            block = dataset.private_block(0x9, 'pe_advseg test', create=True)
            block.add_new(1, 'OB', bytes(length_of(number)))

    return apply


def lose_a_frame(dataset):
    dataset.PerFrameFunctionalGroupsSequence.pop()


def lose_a_place(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence


def copied(index, change=lambda dataset: None, **values):
    "A copy of a slice is added."

    def apply(slices):
        slices.append(copy.deepcopy(slices[index]))
        tags(len(slices) - 1, **values)(slices)
        change(slices[-1])

    return apply


def add_50(dataset):
    dataset.PixelData = (np.frombuffer(dataset.PixelData, '<u2') + 50).astype('<u2').tobytes()


def phase(dataset):
    "Half a step on, another acquisition of the same series."
    other = copy.deepcopy(dataset)
    add_50(other)
    other.SOPInstanceUID, other.AcquisitionNumber = f'{dataset.SOPInstanceUID[:40]}.7', 2
    other.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], dataset.ImagePositionPatient[2] + 0.75]
    return other


def compress(syntax, which=ALL, **options):
    def apply(slices):
        for i in which:
            slices[i].compress(syntax, generate_instance_uid=False, **options)

    return apply


def stored(function, index=ALL, kind='<u2'):
    "Pixels written anew: function(HU + 1024 as int) -> stored numbers."

    def apply(slices):
        for i in [index] if isinstance(index, int) else index:
            slices[i].PixelData = (
                np.asarray(function(np.frombuffer(slices[i].PixelData, '<u2').astype(int))).astype(kind).tobytes()
            )

    return apply


def both(*changes):
    def apply(slices):
        for change in changes:
            slices = change(slices) or slices
        return slices

    return apply


def turned(matrix):
    "A good volume lying otherwise in the patient."
    return dataclasses.replace(make_volume(), direction=np.asarray(matrix) @ AXIAL)


def enhanced(shared=True, kind=None):
    def apply(slices):
        set_dates(slices)
        if not shared:
            for number, dataset in enumerate(slices):
                dataset.RescaleIntercept = -1024 - number
                dataset.PixelData = (np.frombuffer(dataset.PixelData, '<u2') + number).astype('<u2').tobytes()
        made = highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, '2.25.9', 1, '2.25.99', 1)
        if kind:
            made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = kind
        return [made]

    return apply


def enhanced_then(change):
    return both(enhanced(), lambda slices: change(slices[0]))


def packed(syntax):
    "An enhanced object with compressed frames."

    def apply(slices):
        made = enhanced()(slices)
        made[0].compress(syntax, generate_instance_uid=False)
        return made

    return apply


def gdcm_coded(name):
    def files(folder):
        gdcm = pytest.importorskip('gdcm')
        for path in folder.iterdir():
            reader = gdcm.ImageReader()
            reader.SetFileName(str(path))
            assert reader.Read()
            change = gdcm.ImageChangeTransferSyntax()
            change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
            change.SetInput(reader.GetImage())
            assert change.Change()
            writer = gdcm.ImageWriter()
            writer.SetFileName(str(path))
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            assert writer.Write()

    return files


def frame_as(frame, syntax, index=ALL, **values):
    "One compressed frame in place of the pixels."

    def apply(slices):
        for i in [index] if isinstance(index, int) else index:
            slices[i].file_meta.TransferSyntaxUID, slices[i].PixelData = syntax, pydicom.encaps.encapsulate([frame])
            slices[i]['PixelData'].VR, slices[i]['PixelData'].is_undefined_length = 'OB', True
        tags(index, **values)(slices)

    return apply


def patched(syntax, mark, offset, new):
    "One slice compressed, then some bytes of its stream overwritten."

    def apply(slices):
        compress(syntax, [3])(slices)
        data = slices[3].PixelData
        at = data.index(mark) + offset
        slices[3].PixelData = data[:at] + new + data[at + len(new) :]

    return apply


def lying_label(slices):
    compress(uid.JPEG2000Lossless, [3])(slices)
    frame = pydicom.encaps.get_frame(slices[3].PixelData, 0, number_of_frames=1)
    slices[3].file_meta.TransferSyntaxUID, slices[3].PixelData = (
        uid.ExplicitVRLittleEndian,
        frame + b'\0' * (len(frame) % 2),
    )
    slices[3]['PixelData'].VR, slices[3]['PixelData'].is_undefined_length = 'OW', False


def rle_frame(change):
    def apply(slices):
        compress(uid.RLELossless)(slices)
        slices[3].PixelData = pydicom.encaps.encapsulate(
            [change(pydicom.encaps.get_frame(slices[3].PixelData, 0, number_of_frames=1))]
        )

    return apply


def encoded(implicit, little, meta=True):
    "Every file written anew in one of the uncompressed encodings."

    def files(folder):
        for path in folder.iterdir():
            old = pydicom.dcmread(path)
            if not little:
                old.PixelData = np.frombuffer(old.PixelData, '<u2').astype('>u2').tobytes()
            clean = pydicom.Dataset({element.tag: element for element in old})
            if not meta:
                clean.save_as(path, implicit_vr=implicit, little_endian=little)
                continue
            clean.file_meta = pydicom.dataset.FileMetaDataset()
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            clean.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
            clean.save_as(path, enforce_file_format=True)

    return files


def bytes_of(name, change):
    def files(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return files


def each_file(change):
    def files(folder):
        for path in folder.iterdir():
            path.write_bytes(change(path.read_bytes()))

    return files


def empty_folder(folder):
    for path in folder.iterdir():
        path.unlink()


def swap(old, new):
    def change(data):
        assert old in data and len(old) == len(new)
        return data.replace(old, new)

    return change


def nested(data):
    item = b'\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff' + b'\xfe\xff\x00\xe0\xff\xff\xff\xff'
    return data[: data.index(b'\x08\x00\x16\x00UI')] + item * 5000


def deflate_bomb(data):
    data = data[: data.index(b'\x02\0\x10\0UI')] + b'\x02\0\x10\0UI\x16\x00' + b'1.2.840.10008.1.2.1.99' + b''
    data = data[:140] + struct.pack('<I', len(data) - 144) + data[144:]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return data + b''.join(squeeze.compress(bytes(1 << 20)) for _ in range(260)) + squeeze.flush()


def second_series(folder):
    write_series(
        Volume(make_volume().hu[:6] + 1, (1.5, 0.7, 0.8), (0, 0, 0), AXIAL),
        folder / 'second',
        SECRETS[0],
        series_description='lung',
    )


def dicomdir(folder):
    directory = pydicom.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.TransferSyntaxUID, directory.file_meta.MediaStorageSOPClassUID = (
        uid.ExplicitVRLittleEndian,
        uid.MediaStorageDirectoryStorage,
    )
    directory.file_meta.MediaStorageSOPInstanceUID = '2.25.4'
    record = pydicom.Dataset()
    record.ReferencedFileID = ['..', '..', 'elsewhere']
    directory.FileSetID, directory.DirectoryRecordSequence = 'X', [record]
    directory.save_as(folder / 'DICOMDIR', enforce_file_format=True)


def links(folder):
    (folder / 'loop').symlink_to(folder)
    (folder / 'gone.dcm').symlink_to('nowhere')


def read_only(folder):
    for path in folder.iterdir():
        path.chmod(stat.S_IRUSR)
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)


# ---- what happens while it is being read


def without_decoders(monkeypatch, folder):
    for syntax in (uid.JPEG2000Lossless, uid.JPEG2000, uid.JPEGLSLossless):
        monkeypatch.setattr(pydicom.pixels.get_decoder(syntax), '_available', {})


def without_simpleitk(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, 'SimpleITK', None)


def between(action):
    "Something happens to a file after its header was read and before its pixels are."

    def arrange(monkeypatch, folder):
        real = series_reader.check_same

        def check_same(headers):
            real(headers)
            action(folder)

        monkeypatch.setattr(series_reader, 'check_same', check_same)

    return arrange


def replace_by_another(folder):
    dataset = pydicom.dcmread(folder / '03.dcm')
    dataset.SOPInstanceUID = '2.25.1234'
    dataset.save_as(folder / '03.dcm')


def closed(name):
    "A file that may not be read, also for root."

    def arrange(monkeypatch, folder):
        real = builtins.open

        def guard(path):
            if isinstance(path, (str, os.PathLike)) and Path(path).name == name:
                raise PermissionError(13, f'Permission denied: {SECRETS[0]}', str(path))

        monkeypatch.setattr(
            builtins, 'open', lambda path, *args, **options: guard(path) or real(path, *args, **options)
        )

    return arrange


def closed_folder(monkeypatch, folder):
    (folder / 'inner').mkdir()
    (folder / '03.dcm').rename(folder / 'inner' / '03.dcm')
    real = os.scandir

    def scandir(path):
        if Path(path).name == 'inner':
            raise PermissionError(13, 'Permission denied', str(path))
        return real(path)

    monkeypatch.setattr(os, 'scandir', scandir)


def small_limit(name, value):
    return lambda monkeypatch, folder: monkeypatch.setattr(slice_header, name, value)


# ---- the samples

HTJ2K = base64.b85decode(  # 1000 + 20 y + 7 x, 40 x 48, encoded by OpenJPH (imagecodecs 2026.3.6)
    '|4;u>04YEK0000m0000e00000000000000m0000e0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000+5iFnlfVEg07LkX`7!&S_yU2n'
    '0KfneKmZbe084ZL_x>_70Kfnh5C8<ge&2wP;EQ$uwdx9YQ~<yL6;J>LaNc|G+yXjq0(Stkw6wIewDb_(ApyR)0Kfnh&;SLp?(XjH?(_Jkr>CdFc>q`p!!QiPFbu=~|4ac09{q$Md-f24?7slO04;a`1=WBgNs=T<k|g>4f54}wr>Cc<r>Cbve'
    '*mU2#u#IaF~%5Uj4{R-WB&hrZ~y>%_5cCz*Z>E=U;rNdfB<{;00Hc~0sq+'
)
RAMP = 1000 + 20 * np.arange(40)[:, None] + 7 * np.arange(48)


def twelve_bit():
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file('JPGExtended.dcm'))
    return pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1), dict(
        Rows=dataset.Rows, Columns=dataset.Columns, BitsStored=12, HighBit=11
    )


def near(limit):
    "Not the same HU, and none further off than the limit."

    def same(read, volume):
        error = np.abs(read.hu.astype(int) - volume.hu)
        assert 0 < error.max() <= limit

    return same


def as_libjpeg_turbo(read, volume):
    """pydicom's sample as libjpeg-turbo decodes it.

    imagecodecs 2026.3.6 was compared voxel by voxel, without a difference; its shape, range and sum are kept here.
    """
    picture = read.hu[0].astype(int) + 1024
    assert picture.shape == (1024, 256) and (picture.min(), picture.max(), picture.sum()) == (0, 264, 3767007)


def smooth(slices):
    for i, dataset in enumerate(slices):
        dataset.PixelData = (RAMP + i).astype('<u2').tobytes()


@dataclasses.dataclass
class Case:
    row: str
    change: object = None  # of the datasets
    files: object = None  # of the folder they were saved in
    arrange: object = None  # with monkeypatch
    expect: object = None
    good: Volume = dataclasses.field(default_factory=make_volume)
    names: list = None
    where: str = 's'


missing, bytes_wrong = 'is missing', 'bytes of pixels'
CASES = [
    # series assembly
    Case(
        '01-missing-inner',
        lose_inner_slice,
        expect=refused('gap of 3.00 mm between 04.dcm and 05.dcm, usual 1.50', '04.dcm'),
    ),
    Case(
        '01-missing-inner-resample',
        lose_inner_slice,
        expect=refused('A slice is missing', '04.dcm', resample=True),
    ),
    Case('02-missing-end', lambda s: s[:-1], expect=reads(same=part(0, 11))),
    Case(
        '02-missing-end-stated',
        both(tags(ALL, ImagesInAcquisition=12), lambda s: s[:-1]),
        expect=reads('ImagesInAcquisition says 12, found 11 slices', part(0, 11)),
    ),
    Case('03-exact-duplicate', copied(4), expect=reads('dropped 12.dcm, same as 04.dcm')),
    Case(
        '04-same-place-other-pixels',
        copied(4, add_50, SOPInstanceUID='2.25.77'),
        expect=refused('lies where 04.dcm lies but shows another picture', '12.dcm'),
    ),
    Case('04-same-place-everywhere', move(lambda i: [0, 0, -1.5 * i]), expect=refused('shows another picture')),
    Case('04b-same-pixels-new-uid', copied(4, SOPInstanceUID='2.25.5'), expect=reads('dropped 12.dcm, same as 04.dcm')),
    Case('05-two-series', files=second_series, expect=refused('holds 2 CT series (1: 12 slices')),
    Case('05-two-series-chosen', files=second_series, expect=reads(series=1)),
    Case('05-two-series-no-such', files=second_series, expect=refused('fits 0 of its series', series=3)),
    Case(
        '06-localizer',
        copied(0, ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'], ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        expect=reads('no CT slice (localizer): 12.dcm'),
    ),
    Case(
        '07-dose-report',
        copied(0, SOPClassUID=uid.SecondaryCaptureImageStorage, PhotometricInterpretation='RGB', SamplesPerPixel=3),
        expect=reads('no CT slice (Secondary Capture Image Storage): 12.dcm'),
    ),
    Case(
        '07-only-a-dose-report',
        both(tags(ALL, SOPClassUID=uid.SecondaryCaptureImageStorage)),
        expect=refused('holds no CT slices (no CT slice (Secondary Capture'),
    ),
    Case('08-reversed-names', names=[f'{99 - i}' for i in ALL], expect=reads()),
    Case(
        '09-instance-number-shuffled',
        shuffle_instance_numbers,
        expect=reads('InstanceNumber does not follow position'),
    ),
    Case('10-descending', good=turned(np.diag([1, 1, -1])), expect=reads()),
    Case('10-feet-first', good=turned(np.diag([-1, 1, -1])), expect=reads()),
    Case('11-tilt15', tilted(15), expect=refused('stacked 15.0 degrees off their normal (gantry tilt)')),
    Case('11-tilt2', tilted(2), expect=refused('stacked 2.0 degrees off their normal (gantry tilt)')),
    Case('11-tilt15-tag', tilted(15, GantryDetectorTilt='15'), expect=refused('gantry tilt')),
    Case(
        '11-tilt15-resample',
        tilted(15),
        expect=reads('resampled: slices were stacked 15.0 degrees', anything, resample=True),
    ),
    Case(
        '11-tilt2-resample',
        tilted(2),
        expect=reads('resampled: slices were stacked 2.0 degrees', anything, resample=True),
    ),
    Case('11-tilt0.3', tilted(0.3), expect=reads(same=hu_is(lambda hu: hu))),
    Case(
        '11-tilt-in-the-tag-only',
        tags(ALL, GantryDetectorTilt='15'),
        expect=refused('GantryDetectorTilt is 15.0 degrees'),
    ),
    Case(
        '11-tilt-in-the-tag-only-resample',
        tags(ALL, GantryDetectorTilt='15'),
        expect=refused('GantryDetectorTilt is 15.0 degrees', resample=True),
    ),
    Case('12-coronal', tags(ALL, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), expect=refused('not axial')),
    Case('12-coronal-stack', good=turned([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), expect=refused('not axial')),
    Case(
        '12-oblique15',
        good=turned(
            [[1, 0, 0], [0, np.cos(np.pi / 12), -np.sin(np.pi / 12)], [0, np.sin(np.pi / 12), np.cos(np.pi / 12)]]
        ),
        expect=reads(),
    ),
    Case(
        '13-one-other-orientation',
        tags(3, ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6]),
        expect=refused('ImageOrientationPatient differs', '03.dcm'),
    ),
    Case(
        '13-one-slightly-other',
        tags(3, ImageOrientationPatient=[1, 0, 0, 0, 0.999, 0.0447]),
        expect=refused('ImageOrientationPatient differs', '03.dcm'),
    ),
    Case(
        '13-no-orientation',
        tags(3, ImageOrientationPatient=None),
        expect=refused('ImageOrientationPatient is missing', '03.dcm'),
    ),
    Case('14-uneven', move(lambda i: [0, 0, max(0, i - 6) * 0.5]), expect=refused('not evenly spaced')),
    Case('14-creeping', move(lambda i: [0, 0, i * i * 0.02]), expect=refused('not evenly spaced')),
    Case(
        '14-uneven-resample',
        move(lambda i: [0, 0, max(0, i - 6) * 0.5]),
        expect=reads('resampled: slices were 1.50 to 2.00 mm apart, now', anything, resample=True),
    ),
    Case(
        '14-doubled-resample',
        move(lambda i: [0, 0, max(0, i - 7) * 1.5]),
        expect=reads('resampled: slices were 1.50 to 3.00 mm apart', anything, resample=True),
    ),
    Case('14-beside', move(lambda i: [0, 9.0 * (i == 4), 0]), expect=refused('beside the stack', '04.dcm')),
    Case(
        '15-jitter',
        move(lambda i: [0, 0, np.random.default_rng(i).uniform(-0.05, 0.05)]),
        expect=reads(same=hu_is(lambda hu: hu)),
    ),
    Case(
        '16-position-absent-one',
        tags(3, ImagePositionPatient=None),
        expect=refused('ImagePositionPatient is missing', '03.dcm'),
    ),
    Case(
        '16-position-absent-all',
        tags(ALL, ImagePositionPatient=None),
        expect=refused('ImagePositionPatient is missing', '00.dcm'),
    ),
    Case(
        '17-position-nan',
        files=bytes_of('03.dcm', swap(b'-30.0', b'nan  ')),
        expect=refused('ImagePositionPatient must be 3 finite', '03.dcm'),
    ),
    Case('18-spacing-absent-one', tags(3, PixelSpacing=None), expect=refused('PixelSpacing is missing', '03.dcm')),
    Case('18-spacing-absent-all', tags(ALL, PixelSpacing=None), expect=refused('PixelSpacing is missing', '00.dcm')),
    Case('18-spacing-zero', tags(ALL, PixelSpacing=[0, 0]), expect=refused('PixelSpacing must be positive', '00.dcm')),
    Case(
        '18-spacing-comma',
        files=bytes_of('03.dcm', swap(rb'0.7\0.8 ', rb'0,7\0,8 ')),
        expect=refused('PixelSpacing is not a number', '03.dcm'),
    ),
    Case(
        '18-spacing-in-metres',
        tags(ALL, PixelSpacing=[0.0007, 0.0008]),
        expect=refused('cannot be millimetres', '00.dcm'),
    ),
    Case(
        '18-spacing-of-one-differs', tags(3, PixelSpacing=[0.9, 0.9]), expect=refused('PixelSpacing differs', '03.dcm')
    ),
    Case(
        '19-other-frame',
        tags(3, FrameOfReferenceUID='2.25.99'),
        expect=refused('FrameOfReferenceUID differs', '03.dcm'),
    ),
    Case('20-two-slices', lambda s: s[:2], expect=refused('has 2 slices, at least 4')),
    Case('20-three-slices', lambda s: s[:3], expect=refused('has 3 slices, at least 4')),
    # values
    Case(
        '21-rescale-absent',
        tags(ALL, RescaleSlope=None, RescaleIntercept=None),
        expect=refused('read it with assume_hu=True', '00.dcm'),
    ),
    Case(
        '21-rescale-absent-assumed',
        tags(ALL, RescaleSlope=None, RescaleIntercept=None),
        expect=reads(same=hu_is(lambda hu: hu + np.int16(1024)), assume_hu=True),
    ),
    Case(
        '21-intercept-absent', tags(3, RescaleIntercept=None), expect=refused('RescaleIntercept is missing', '03.dcm')
    ),
    Case(
        '21-intercept-absent-assumed',
        tags(3, RescaleIntercept=None),
        expect=refused('RescaleIntercept is missing', '03.dcm', assume_hu=True),
    ),
    Case(
        '22-per-slice-rescale',
        both(tags(range(1, 12, 2), RescaleIntercept='-1100'), stored(lambda values: values + 76, range(1, 12, 2))),
        expect=reads(),
    ),
    Case(
        '22-half-slope',
        both(tags(ALL, RescaleSlope='0.5', RescaleIntercept='-1024'), stored(lambda values: 2 * values)),
        expect=reads(),
    ),
    Case('23-slope-zero', tags(3, RescaleSlope='0'), expect=refused('RescaleSlope must be positive', '03.dcm')),
    Case('23-slope-negative', tags(3, RescaleSlope='-1'), expect=refused('RescaleSlope must be positive', '03.dcm')),
    Case('23-slope-nan', tags(3, RescaleSlope='nan'), expect=refused('RescaleSlope must be 1 finite', '03.dcm')),
    Case('23-spectral-map', tags(ALL, RescaleType='Z_EFF'), expect=refused('RescaleType is not HU', '00.dcm')),
    Case(
        '24-signed-said-unsigned',
        both(stored(lambda values: values - 1024, kind='<i2'), tags(ALL, RescaleIntercept='0')),
        expect=refused('which are no Hounsfield units. PixelRepresentation'),
    ),
    Case(
        '24-signed-said-signed',
        both(stored(lambda values: values - 1024, kind='<i2'), tags(ALL, RescaleIntercept='0', PixelRepresentation=1)),
        expect=reads(),
    ),
    *[
        Case(
            f'25-padding-as-{vr}',
            both(
                stored(lambda values: np.where(np.arange(1920) < 144, -2000, values - 1024), kind='<i2'),
                tags(ALL, RescaleIntercept='0', PixelRepresentation=1),
                each(lambda dataset, vr=vr, value=value: dataset.add_new('PixelPaddingValue', vr, value)),
            ),
            expect=reads('padding set to air in 12 slices', hu_is(three_rows_of_air)),
        )
        for vr, value in (('SS', -2000), ('US', 63536))
    ],
    Case('26-monochrome1', tags(ALL, PhotometricInterpretation='MONOCHROME1'), expect=reads()),
    Case(
        '27-beyond-bits-stored',
        both(tags(ALL, BitsStored=11, HighBit=10)),
        expect=reads('values beyond BitsStored in 12 slices'),
    ),
    Case(
        '28-float-pixels',
        each(float_pixels),
        expect=refused('no pixel data', '00.dcm'),
    ),
    Case(
        '28-parametric-map',
        copied(3, SOPClassUID=uid.ParametricMapStorage),
        expect=reads('no CT slice (Parametric Map Storage): 12.dcm'),
    ),
    Case(
        '29-constant',
        stored(lambda values: 0 * values),
        expect=reads('every voxel is -1024 HU', hu_is(lambda hu: np.full_like(hu, -1024))),
    ),
    # files and codecs
    Case('30-rle', compress(uid.RLELossless), expect=reads()),
    Case('30-jpeg-ls', compress(uid.JPEGLSLossless), expect=reads()),
    Case('30-jpeg2000', compress(uid.JPEG2000Lossless), expect=reads()),
    Case('30-jpeg-lossless-sv1', files=gdcm_coded('JPEGLosslessProcess14_1'), expect=reads()),
    Case('30-jpeg-lossless-p14', files=gdcm_coded('JPEGLosslessProcess14'), expect=reads()),
    *[
        Case(
            f'30-htj2k-{syntax[-3:]}',
            frame_as(HTJ2K, syntax),
            expect=reads(
                'possibly lossy' if syntax == uid.HTJ2K else None,
                hu_is(lambda hu: np.broadcast_to(RAMP - 1024, hu.shape)),
                assume_hu=True,
            ),
        )
        for syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
    ],
    Case(
        '30-deflated',
        each(deflated),
        expect=reads(),
    ),
    Case(
        '31-no-decoder-jpeg2000',
        compress(uid.JPEG2000Lossless),
        arrange=without_decoders,
        expect=refused('(JPEG 2000 Image Compression (Lossless Only)) cannot be decoded', '00.dcm'),
    ),
    Case(
        '31-no-decoder-names-package',
        compress(uid.JPEGLSLossless),
        arrange=without_decoders,
        expect=refused('pyjpegls', '00.dcm'),
    ),
    Case(
        '32-12-bit-jpeg',
        lambda s: frame_as(twelve_bit()[0], uid.JPEGExtended12Bit, **twelve_bit()[1])(s),
        expect=reads('lossy compression (JPEG) in 12 slices', as_libjpeg_turbo),
    ),
    Case(
        '32-12-bit-jpeg-no-simpleitk',
        lambda s: frame_as(twelve_bit()[0], uid.JPEGExtended12Bit, **twelve_bit()[1])(s),
        arrange=without_simpleitk,
        expect=refused('SimpleITK', '00.dcm'),
    ),
    Case(
        '33-lossy-jpeg2000',
        both(smooth, compress(uid.JPEG2000, j2k_cr=[10])),
        expect=reads('lossy compression (JPEG 2000, irreversible) in 12 slices', anything, assume_hu=True),
    ),
    Case(
        '33-near-lossless-jpeg-ls',
        compress(uid.JPEGLSNearLossless, jls_error=2),
        expect=reads('lossy compression (JPEG-LS, error up to 2) in 12 slices', near(2)),
    ),
    Case(
        '33-said-by-the-header',
        tags(ALL, LossyImageCompression='01'),
        expect=reads('lossy compression (says the header) in 12 slices'),
    ),
    Case('34-jpeg2000-said-raw', lying_label, expect=refused(bytes_wrong, '03.dcm')),
    Case(
        '34-raw-said-rle',
        files=bytes_of('03.dcm', swap(b'1.2.840.10008.1.2.1\0', b'1.2.840.10008.1.2.5\0')),
        expect=refused('', '03.dcm'),
    ),
    Case(
        '35-pixels-cut-and-said-so',
        lambda s: setattr(s[3], 'PixelData', s[3].PixelData[:-200]),
        expect=refused(bytes_wrong, '03.dcm'),
    ),
    Case(
        '35-file-cut-in-pixels',
        files=bytes_of('03.dcm', lambda data: data[:-300]),
        expect=refused(bytes_wrong, '03.dcm'),
    ),
    *[
        Case(
            f'35-file-cut-at-{keep}',
            files=bytes_of('03.dcm', lambda data, keep=keep: data[:keep]),
            expect=lambda folder, volume: refused('')(folder, volume),
        )
        for keep in (140, 200, 400, 700, 900)
    ],
    Case('36-rows-too-many', tags(ALL, Rows=128), expect=refused(bytes_wrong, '00.dcm')),
    Case('36-rows-too-few', tags(ALL, Rows=10), expect=refused(bytes_wrong, '00.dcm')),
    Case('36-one-with-other-rows', tags(3, Rows=32), expect=refused('Rows x Columns differs', '03.dcm')),
    Case(
        '37-empty-file',
        files=lambda folder: (folder / 'empty.dcm').write_bytes(b''),
        expect=reads('no CT slice (not DICOM): empty.dcm'),
    ),
    Case(
        '37-text-file',
        files=lambda folder: (folder / 'text.dcm').write_text('no DICOM ' * 40),
        expect=reads('no CT slice (not DICOM): text.dcm'),
    ),
    Case(
        '38-no-preamble',
        files=each_file(lambda data: data[132:]),
        expect=reads(),
    ),
    Case('38-no-meta', files=encoded(True, True, meta=False), expect=reads()),
    Case('38-no-meta-explicit', files=encoded(False, True, meta=False), expect=reads()),
    Case('39-big-endian', files=encoded(False, False), expect=reads()),
    Case('40-implicit', files=encoded(True, True), expect=reads()),
    Case('40-no-extension', names=[f'IMG{i}' for i in ALL], expect=reads()),
    Case('40-dicomdir', files=dicomdir, expect=reads('no CT slice (DICOMDIR): DICOMDIR')),
    Case('41-legacy-converted', enhanced(), expect=reads()),
    Case('41-enhanced', enhanced(kind=uid.EnhancedCTImageStorage), expect=reads()),
    Case('41-rescale-per-frame', enhanced(shared=False), expect=reads()),
    Case('41-enhanced-jpeg-ls', packed(uid.JPEGLSLossless), expect=reads()),
    Case('41-enhanced-rle', packed(uid.RLELossless), expect=reads()),
    Case(
        '41-frame-lost',
        enhanced_then(lose_a_frame),
        expect=refused('says it has 12 frames and describes 11', '00.dcm'),
    ),
    Case(
        '41-frame-without-place',
        enhanced_then(lose_a_place),
        expect=refused('ImagePositionPatient is missing', '00.dcm frame 5'),
    ),
    Case('42-no-pixels', tags(3, PixelData=None), expect=refused('no pixel data', '03.dcm')),
    Case('43-huge-rows', tags(ALL, Rows=65535), expect=refused('65535 x 48 is not a CT slice', '00.dcm')),
    Case(
        '43-huge-frames',
        tags(ALL, NumberOfFrames='2000000'),
        expect=reads('NumberOfFrames is 2000000, read as 1 in 12 slices'),
    ),
    Case(
        '43-huge-enhanced',
        enhanced_then(lambda d: setattr(d, 'NumberOfFrames', 2000000)),
        expect=refused('2000000 frames and describes 12', '00.dcm'),
    ),
    Case('43-huge-study', arrange=small_limit('MAX_VOXELS', 20000), expect=refused('billion voxels', '00.dcm')),
    Case(
        '44-jpeg2000-bomb',
        patched(uid.JPEG2000Lossless, SIZ, 8, struct.pack('>II', 60000, 60000)),
        expect=refused('compressed picture is 60000 x 60000', '03.dcm'),
    ),
    Case(
        '44-jpeg2000-colours',
        patched(uid.JPEG2000Lossless, SIZ, 40, struct.pack('>H', 9999)),
        expect=refused('9999 colours', '03.dcm'),
    ),
    Case(
        '44-jpeg-ls-bomb',
        patched(uid.JPEGLSLossless, b'\xff\xf7', 5, struct.pack('>H', 60000)),
        expect=refused('compressed picture is 60000 x 48', '03.dcm'),
    ),
    Case(
        '44-no-jpeg2000-at-all',
        patched(uid.JPEG2000Lossless, SIZ, 0, b'\0\0\0\0'),
        expect=refused('are damaged', '03.dcm'),
    ),
    Case(
        '45-deflate-bomb',
        files=bytes_of('03.dcm', deflate_bomb),
        expect=refused('inflates to more than 256 MB', '03.dcm'),
    ),
    Case('46-rle-cut', rle_frame(lambda frame: frame[:70]), expect=refused('cannot be decoded', '03.dcm')),
    Case(
        '46-rle-overlong',
        rle_frame(lambda frame: frame + b'\x7f' * 400),
        expect=lambda folder, volume: right_or_refused(folder, volume),
    ),
    Case('47-nesting-5000', files=bytes_of('03.dcm', nested), expect=refused('')),
    Case(
        '48-fifo',
        files=lambda folder: os.mkfifo(folder / 'pipe.dcm'),
        expect=reads('no CT slice (no regular file): pipe.dcm'),
    ),
    Case(
        '49-links',
        files=links,
        expect=reads('no CT slice (link to a folder, not followed): loop no CT slice (no regular file): gone.dcm'),
    ),
    Case(
        '50-changed', arrange=between(replace_by_another), expect=refused('changed while it was being read', '03.dcm')
    ),
    Case(
        '50-deleted',
        arrange=between(lambda folder: (folder / '03.dcm').unlink()),
        expect=refused('cannot be opened (FileNotFoundError)', '03.dcm'),
    ),
    Case(
        '50-cut',
        arrange=between(lambda folder: os.truncate(folder / '03.dcm', 3000)),
        expect=refused(bytes_wrong, '03.dcm'),
    ),
    Case(
        '50-changed-compressed',
        compress(uid.RLELossless),
        arrange=between(replace_by_another),
        expect=refused('changed while it was being read', '03.dcm'),
    ),
    Case(
        '51-unreadable-file', arrange=closed('03.dcm'), expect=refused('cannot be opened (PermissionError)', '03.dcm')
    ),
    Case('51-unreadable-folder', arrange=closed_folder, expect=refused('cannot be listed (PermissionError)', 'inner')),
    Case('51-read-only-folder', files=read_only, expect=reads()),
    Case(
        '51-no-folder',
        files=shutil.rmtree,
        expect=refused('does not exist'),
    ),
    Case(
        '51-empty-folder',
        files=empty_folder,
        expect=refused('holds no CT slices'),
    ),
    Case('52-foreign-names', names=[f'срез{i}' for i in ALL], where='بیمار/больной', expect=reads()),
    Case(
        '52-lying-charset',
        tags(ALL, SpecificCharacterSet='ISO_IR 192'),
        files=each_file(swap(b'PLANTED^NAME', b'PLANT\xc9D^NAM\xff')),
        expect=reads(),
    ),
    Case('52-unknown-charset', tags(ALL, SpecificCharacterSet='NO_SUCH_SET'), expect=reads()),
    # what a good-looking series may still hide
    *[
        Case(
            f'trap-beyond-bits-stored-{name}',
            both(
                stored(
                    lambda values: np.where(np.arange(1920) < 9, 3000, (values - 1024).clip(-1024, 1900)), kind='<i2'
                ),
                tags(ALL, RescaleIntercept='0', PixelRepresentation=1),
                compress(syntax) if syntax else lambda s: None,
                tags(ALL, BitsStored=12, HighBit=11),
            ),
            expect=reads(
                'values beyond BitsStored in 12 slices',
                hu_is(lambda hu: np.where(np.arange(1920).reshape(40, 48) < 9, 3000, hu.clip(-1024, 1900))),
            ),
        )
        for name, syntax in (
            ('raw', None),
            ('rle', uid.RLELossless),
            ('jpeg-ls', uid.JPEGLSLossless),
            ('jpeg2000', uid.JPEG2000Lossless),
        )
    ],
    Case('trap-raw-numbers', tags(ALL, RescaleIntercept='0'), expect=refused('hold no air', '00.dcm')),
    Case('trap-raw-numbers-remedy', tags(ALL, RescaleIntercept='0'), expect=refused('read it with assume_hu=True')),
    Case(
        'trap-raw-numbers-assumed',
        tags(ALL, RescaleIntercept='0'),
        expect=reads(same=hu_is(lambda hu: hu + np.int16(1024)), assume_hu=True),
    ),
    Case(
        'trap-raw-numbers-padded',
        both(tags(ALL, RescaleIntercept='0'), each(lambda dataset: dataset.add_new('PixelPaddingValue', 'US', 0))),
        expect=refused('hold no air', '00.dcm'),
    ),
    Case(
        'trap-windowed',
        both(stored(lambda values: ((values - 864) / 400 * 255).clip(0, 255)), tags(ALL, RescaleIntercept='0')),
        expect=refused('from 0 to 255 and hold no air', '00.dcm'),
    ),
    Case(
        'trap-constant-is-noted',
        both(stored(lambda values: 0 * values), tags(ALL, RescaleIntercept='40')),
        expect=reads('every voxel is 40 HU', hu_is(lambda hu: np.full_like(hu, 40))),
    ),
    Case(
        'trap-crop-with-lung',
        stored(lambda values: values.clip(224, 1300)),
        expect=reads(same=hu_is(lambda hu: hu.clip(-800, 276))),
    ),
    Case(
        'trap-crop-without-air', stored(lambda values: values.clip(1000, 1300)), expect=refused('hold no air', '00.dcm')
    ),
    Case(
        'trap-crop-without-air-assumed',
        stored(lambda values: values.clip(1000, 1300)),
        expect=reads(same=hu_is(lambda hu: hu.clip(-24, 276)), assume_hu=True),
    ),
    Case(
        'trap-other-study',
        tags(5, StudyInstanceUID='2.25.4711'),
        expect=refused('its StudyInstanceUID differs from 11 other slices', '05.dcm'),
    ),
    Case(
        'trap-other-patient',
        tags(5, PatientID='PLANTED-4712'),
        expect=refused('its PatientID differs from 11 other slices', '05.dcm'),
    ),
    Case('trap-scrubbed-alike', tags(ALL, PatientID='', StudyInstanceUID='0'), expect=reads()),
    Case('trap-scrubbed-in-one', tags(5, PatientID=None, StudyInstanceUID=''), expect=reads()),
    Case(
        'trap-two-phases',
        lambda s: [d for i in ALL for d in (s[i], phase(s[i]))],
        expect=refused('its AcquisitionNumber and that of other slices alternate', '01.dcm'),
    ),
    Case('trap-one-other-acquisition', tags(5, AcquisitionNumber=2), expect=refused('alternate', '05.dcm')),
    Case(
        'trap-two-slabs', tags(range(6, 12), AcquisitionNumber=2), expect=reads('2 acquisitions, one above the other')
    ),
    Case('trap-acquisition-unknown', tags(ALL, AcquisitionNumber=None), expect=reads()),
    Case(
        'trap-projection',
        tags(ALL, ImageType=['DERIVED', 'SECONDARY', 'AXIAL', 'MIP']),
        expect=refused('no Hounsfield units: projection of highest or lowest values'),
    ),
    Case(
        'trap-mean',
        tags(ALL, ImageType=['DERIVED', 'SECONDARY', 'REFORMATTED', 'AVERAGE']),
        expect=reads('mean of several slices (says ImageType) in 12 slices'),
    ),
    Case(
        'trap-one-projection',
        tags(5, ImageType=['DERIVED', 'SECONDARY', 'AXIAL', 'MIP']),
        expect=refused('its ImageType differs from 11 other slices', '05.dcm'),
    ),
    Case(
        'trap-one-reformatted',
        tags(5, ImageType=['DERIVED', 'SECONDARY', 'MPR']),
        expect=refused('its ImageType differs', '05.dcm'),
    ),
    Case('trap-other-words', tags(5, ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL', 'CT_SOM5 SPI']), expect=reads()),
    Case('trap-one-intercept', tags(5, RescaleIntercept='0'), expect=refused('and has other rescale values', '05.dcm')),
    Case(
        'trap-first-intercept', tags(0, RescaleIntercept='0'), expect=refused('and has other rescale values', '00.dcm')
    ),
    Case(
        'trap-blank',
        stored(lambda values: 0 * values, 5),
        expect=reads('blank slices: 05.dcm', hu_is(lambda hu: np.where(np.arange(12)[:, None, None] == 5, -1024, hu))),
    ),
    Case(
        'trap-high-bit',
        both(stored(lambda values: values << 4), tags(ALL, BitsStored=12, HighBit=15)),
        expect=refused('HighBit of 15 does not fit BitsStored of 12', '00.dcm'),
    ),
    Case(
        'trap-high-bit-rle',
        both(compress(uid.RLELossless), tags(ALL, BitsStored=12, HighBit=15)),
        expect=refused('HighBit of 15 does not fit BitsStored of 12', '00.dcm'),
    ),
    Case(
        'trap-sign-not-extended',
        both(
            stored(lambda values: (values - 1024) & 0xFFF),
            tags(ALL, RescaleIntercept='0', PixelRepresentation=1, BitsStored=12, HighBit=11),
        ),
        expect=reads('sign carried on from BitsStored in 12 slices'),
    ),
    Case(
        'trap-sign-not-needed',
        tags(ALL, PixelRepresentation=1, BitsStored=12, HighBit=11),
        expect=reads('values beyond BitsStored in 12 slices'),
    ),
    Case('trap-kind-only-in-the-meta', tags(ALL, SOPClassUID=None), expect=reads()),
    Case(
        'trap-long-header',
        long_header(lambda number: 40_000),
        expect=reads(),
    ),
    Case(
        'trap-header-of-just-that-length',
        long_header(lambda number: 15_000 + 60 * number),
        expect=reads(),
    ),
]


def right_or_refused(folder, volume):
    "A decoder may pass over what follows the picture; what it may not do is give another picture."
    try:
        read = read_series(folder)
    except InputError:
        refused('', '03.dcm')(folder, volume)
    else:
        same_world(read, volume)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.row if case.row.startswith('trap') else f'row{case.row}')
def test_battery(case, tmp_path, monkeypatch):
    slices = datasets(case.good, tmp_path / 'good')
    if case.change:
        slices = case.change(slices) or slices
    folder = save(slices, tmp_path / case.where, names=case.names)
    if case.files:
        case.files(folder)
    if case.arrange:
        case.arrange(monkeypatch, folder)
    case.expect(folder, case.good)


def test_every_row_is_there():
    rows = {case.row.split('-')[0] for case in CASES}
    assert rows == {f'{number:02d}' for number in range(1, 53)} | {'04b', 'trap'}
    assert len({case.row for case in CASES}) == len(CASES)
