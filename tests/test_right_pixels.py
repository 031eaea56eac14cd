"""What the stored bits mean: overlays, padding, bits, excess and missing bytes, end marks, coarse and retired JPEG.

Every situation is read with its true HU or refused. Where pydicom and SimpleITK agree on a value we agree with them, or
the case says why not.
"""

import dataclasses
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from scipy.interpolate import RegularGridInterpolator
from support.right_pixels import (
    EIGHT_BIT_PROGRESSION,
    FULL_PROGRESSION,
    RAMP,
    SPECTRAL_SELECTION,
    agreed,
    as_signed,
    big_endian,
    by_simpleitk,
    chest,
    claim,
    draw,
    each_file,
    end_mark_as,
    enhanced,
    frame_count_as,
    numbers_of,
    outside,
    put,
    retired_jpeg,
    save,
    slices_of,
    with_metal,
)

from pe_advseg.core.errors import InputError
from pe_advseg.scans.resample import straighten
from pe_advseg.scans.series import read_series

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')  # pydicom's, about what is spoiled on purpose
SPECTRAL, PROGRESSION = '1.2.840.10008.1.2.4.53', '1.2.840.10008.1.2.4.55'


@dataclasses.dataclass
class Case:
    name: str
    change: object  # of one dataset; returns a new one or None
    note: str | None = None  # words of the notes; None: no note at all
    hu: object = chest  # makes the good volume
    truth: object = None  # of the good volume, where reading changes it
    whole: object = None  # of all datasets: returns those to be saved
    files: object = None  # of the folder
    why_not: str | None = None  # why we differ from pydicom and SimpleITK where these agree


def both(*changes):
    def apply(dataset):
        for change in changes:
            dataset = change(dataset) or dataset
        return dataset

    return apply


def drawn(*bits, group=0x6000, syntax=None, claimed=True, stated_bits=12):
    "Overlays in these bits of the pixels."

    def change(dataset):
        draw(dataset, *bits)
        if claimed:
            for number, bit in enumerate(bits):
                claim(dataset, bit, group + 2 * number)
        if syntax:
            dataset.BitsStored, dataset.HighBit = 16, 15  # pydicom compresses no more bits than are stored
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.BitsStored, dataset.HighBit = stated_bits, stated_bits - 1

    return change


def only_its_tags(dataset):
    "An overlay with data of its own: it claims no bit of the pixels, whatever its position says."
    claim(dataset, 0, allocated=1)
    claim(dataset, 12, group=0x6002)
    dataset.add_new(0x60023000, 'OW', bytes(dataset.Rows * dataset.Columns // 8 + 1))


def padded(value, limit=None, representation='US', circle=None):
    "PixelPaddingValue (and its range) stated; the outside of the circle holds `circle`, if given."

    def change(dataset):
        if circle is not None:
            numbers = np.where(outside()[0], circle, numbers_of(dataset))
            put(dataset, numbers, 16, dataset.PixelRepresentation, dataset.RescaleIntercept)
        dataset.add_new('PixelPaddingValue', representation, value)
        if limit is not None:
            dataset.add_new('PixelPaddingRangeLimit', representation, limit)

    return change


def compressed(syntax):
    return lambda dataset: dataset.compress(syntax, generate_instance_uid=False)


def longer(count, fill=b'\0'):
    def change(dataset):
        dataset.PixelData += fill * count

    return change


def with_bits(bits, signed=0):
    "BitsStored is wrong, the numbers are not."

    def change(dataset):
        if signed:
            as_signed(dataset)
        dataset.BitsStored, dataset.HighBit = bits, bits - 1

    return change


def metal_under_an_overlay(dataset):
    "BitsStored is too small for the metal, and an overlay lies higher still."
    numbers = numbers_of(dataset).copy()
    numbers[8:20, 8:60] |= 1 << 15
    put(dataset, numbers, 12)
    claim(dataset, 15)


def sign_stops(dataset):
    as_signed(dataset)
    put(dataset, numbers_of(dataset).astype(int) & 0xFFF, 12, 1, 0)


def enhanced_with_overlay(slices):
    made = enhanced(slices)
    claim(made, 12)
    return made


TAKEN_OFF = 'overlay in bit {} of the pixels taken off in 5 slices'
HIGH_BITS = 'bits from 12 on are no picture: taken off in 5 slices'
KEPT = 'values beyond BitsStored in 5 slices'
NO_END = 'no end mark behind the compressed pixels in 5 slices'
EXCESS = 'more bytes of pixels than the picture needs in 5 slices'
LEFT = 'PixelPaddingValue, 0 HU, lies inside the picture: left as HU'
METAL_STAYS = 'BitsStored is too small: they cut metal to air'
PADDED = 'padding is no tissue: they leave it to whoever shows the picture'

CASES = [
    Case('plain', lambda dataset: None),
    # overlays in the pixels: pydicom/deid#201, dcm4che/dcm4che#919, fo-dicom/fo-dicom#2087
    *[Case(f'overlay-bit-{bit}', drawn(bit), TAKEN_OFF.format(bit)) for bit in (12, 13, 15)],
    *[
        Case(f'overlay-group-{group:04X}', drawn(12, group=group), TAKEN_OFF.format(12))
        for group in range(0x6002, 0x6020, 2)
    ],
    Case('overlays-in-two-bits', drawn(12, 14), TAKEN_OFF.format(12)),
    Case('overlay-beside-signed-numbers', both(as_signed, drawn(13)), TAKEN_OFF.format(13)),
    Case('overlay-metal-beside-it', drawn(12), TAKEN_OFF.format(12), hu=lambda: with_metal(chest())),
    *[
        Case(
            f'overlay-{syntax.keyword}',
            drawn(12, syntax=syntax),
            TAKEN_OFF.format(12),
            why_not='the claim counts in JPEG 2000 too: they return HU + 4096'
            if 'JPEG2000' in syntax.keyword
            else None,
        )
        for syntax in (uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless)
    ],
    Case('overlay-big-endian', both(drawn(12), big_endian), TAKEN_OFF.format(12)),
    Case('overlay-enhanced', drawn(12), TAKEN_OFF.format(12), whole=enhanced_with_overlay),
    Case('overlay-tags-removed', drawn(12, claimed=False), HIGH_BITS),
    Case('overlay-tags-removed-bit-14', drawn(14, claimed=False), HIGH_BITS),
    Case('overlay-tags-removed-signed', both(as_signed, drawn(13, claimed=False)), HIGH_BITS),
    Case(
        'overlay-and-metal-beyond-12',
        metal_under_an_overlay,
        f'{TAKEN_OFF.format(15)} {KEPT}',
        hu=lambda: with_metal(chest()) + np.int16(200),
        why_not=METAL_STAYS,
    ),
    Case(
        'overlay-16-bits-said-to-be-stored',
        drawn(12, stated_bits=16),
        HIGH_BITS,
        why_not='an overlay claims bit 12, and the picture goes on below it: they return HU + 4096',
    ),
    Case('overlay-with-its-own-data', only_its_tags),
    # bits stored against values
    Case(
        'metal-beyond-12-unsigned',
        with_bits(12),
        KEPT,
        hu=lambda: with_metal(chest()) + np.int16(200),
        why_not=METAL_STAYS,
    ),
    Case(
        'metal-beyond-12-signed',
        with_bits(12, signed=1),
        KEPT,
        hu=lambda: with_metal(chest()),
        why_not=METAL_STAYS,
    ),
    Case('bits-stored-8', with_bits(8), KEPT, why_not='the picture has values up to 2924: BitsStored is wrong'),
    Case(
        'bits-stored-11',
        with_bits(11),
        KEPT,
        hu=lambda: chest() + np.int16(300),
        why_not='they cut bone of 1200 HU to air',
    ),
    Case('signed-16', as_signed),
    Case('signed-12', lambda dataset: as_signed(dataset, 12)),
    Case('unsigned-said-signed', lambda dataset: setattr(dataset, 'PixelRepresentation', 1)),
    Case('sign-stops-at-12', sign_stops, 'in 5 slices'),
    # padding: SimpleITK/SimpleITK#1014, InsightSoftwareConsortium/ITK#4733
    Case('padding-is-air', padded(0), 'padding set to air in 5 slices'),
    Case(
        'padding-below-air',
        both(as_signed, padded(-2000, representation='SS', circle=-2000)),
        'padding set to air in 5',
        why_not=PADDED,
    ),
    Case(
        'padding-as-other-sign', both(as_signed, padded(63536, circle=-2000)), 'padding set to air in 5', why_not=PADDED
    ),
    Case(
        'padding-range',
        both(as_signed, padded(-2000, -1500, 'SS', circle=-1800)),
        'padding set to air in 5',
        why_not=PADDED,
    ),
    Case('padding-left-behind', both(as_signed, padded(0)), LEFT),
    Case('padding-left-behind-1', both(as_signed, padded(40, representation='SS')), 'PixelPaddingValue, 40 HU'),
    Case(
        'padding-of-0-outside-and-0-in-tissue',
        both(as_signed, padded(0, circle=0)),
        'padding set to air in 5',
        why_not=PADDED,
    ),
    Case('padding-high', padded(4000, circle=4000), 'padding set to air in 5', why_not=PADDED),
    Case('padding-range-over-tissue', both(as_signed, padded(-1024, 3000, 'SS')), 'padding set to air in 5'),
    Case('padding-range-over-tissue-left-behind', both(as_signed, padded(0, 3000, 'SS')), LEFT),
    Case(
        'padding-minus-32768-and-12-bits',
        both(as_signed, padded(-32768, representation='SS', circle=-32768), with_bits(12)),
        'padding set to air in 5',
        why_not=PADDED,
    ),
    # bytes too many (pydicom/pydicom#796 #801, QIICR/dcmqi#341), end marks (pydicom#1799, DCMTK PR 118), number of
    # frames (pydicom#1844)
    Case('excess-4', longer(4), EXCESS),
    Case('excess-of-another-value', longer(26, b'\7'), EXCESS),
    Case('excess-enhanced', longer(0), EXCESS, whole=lambda slices: longer(4)(one := enhanced(slices)) or one),
    *[
        Case(f'end-mark-{name}-{syntax.keyword}', compressed(syntax), NO_END, files=each_file(end_mark_as(end)))
        for syntax in (uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless)
        for name, end in (('zeros', bytes(8)), ('cut', b''))
    ],
    *[
        Case(f'frames-{text or "empty"}', frame_count_as(text), 'read as 1 in 5 slices')
        for text in ('0', '', '-1', '7', '2000000')
    ],
    Case(
        'frames-text',
        frame_count_as('77'),
        'NumberOfFrames is no number, read as 1',
        files=each_file(lambda data: data.replace(b'\x28\0\x08\0IS\x02\x0077', b'\x28\0\x08\0IS\x02\0ab')),
    ),
    Case(
        'frames-0-compressed',
        both(frame_count_as('0'), compressed(uid.JPEG2000Lossless)),
        'NumberOfFrames is 0, read as 1',
    ),
]


def written(case, folder):
    slices = slices_of(case.hu(), folder / 'good')
    slices = [case.change(dataset) or dataset for dataset in slices]
    if case.whole:
        slices = [case.whole(slices)]
    made = save(slices, folder / 'scan')
    if case.files:
        case.files(made)
    return made


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_stored_bits_are_read_right(case, tmp_path):
    folder = written(case, tmp_path)
    read, true = read_series(folder), case.truth(case.hu()) if case.truth else case.hu()
    np.testing.assert_array_equal(read.hu, true)
    assert (case.note in ' '.join(read.notes)) if case.note else read.notes == (), read.notes
    theirs = agreed(folder)
    if theirs is not None:
        theirs = theirs.reshape(true.shape)
        order = 1 if case.whole is None else np.sign(read.to_patient([1, 0, 0])[2] - read.to_patient([0, 0, 0])[2])
        differ = not np.array_equal(theirs if order == 1 else theirs[::-1], true)
        assert differ == bool(case.why_not), f'pydicom and SimpleITK agree; reason to differ: {case.why_not}'
    else:
        assert not case.why_not


REFUSED = {
    'signed-said-unsigned': (
        both(as_signed, lambda dataset: setattr(dataset, 'PixelRepresentation', 0)),
        None,
        'which are no Hounsfield units. PixelRepresentation',
    ),
    'numbers-shifted': (
        lambda dataset: (put(dataset, numbers_of(dataset) << 4, 12), setattr(dataset, 'HighBit', 15))[2:],
        None,
        'HighBit of 15 does not fit BitsStored of 12',
    ),
    'a-row-too-many': (longer(300), None, 'has 42300 bytes of pixels where 140 x 150 needs 42000: 300 too many'),
    'a-column-too-many': (longer(280), None, '280 too many'),
    'bytes-missing': (
        lambda dataset: setattr(dataset, 'PixelData', dataset.PixelData[:-200]),
        None,
        'has 41800 bytes of pixels where 140 x 150 needs 42000: 200 are missing',
    ),
    'file-cut': (lambda dataset: None, each_file(lambda data: data[:-200]), 'ends 200 bytes of pixels before'),
    'compressed-file-cut': (
        compressed(uid.JPEG2000Lossless),
        each_file(lambda data: data[:-208]),
        'ends before its compressed pixels do: 200 bytes are missing',
    ),
    'something-behind-the-pixels': (
        compressed(uid.JPEGLSLossless),
        each_file(end_mark_as(b'something')),
        'are damaged',
    ),
    'compressed-said-plain': (
        compressed(uid.JPEGLSLossless),
        each_file(lambda data: data.replace(b'1.2.840.10008.1.2.4.80', b'1.2.840.10008.1.2.1\0\0\0')),
        'has compressed pixels, which its transfer syntax denies',
    ),
    'plain-said-compressed': (
        lambda dataset: None,
        each_file(lambda data: data.replace(b'1.2.840.10008.1.2.1\0', b'1.2.840.10008.1.2.5\0')),
        'has no compressed pixels, though its transfer syntax is RLE',
    ),
    'several-frames': (
        both(longer(84000), frame_count_as('3')),
        None,
        'holds several frames: has 126000 bytes of pixels where 140 x 150 needs 42000',
    ),
    'several-pictures': (
        lambda dataset: (
            dataset.compress(uid.JPEG2000Lossless, generate_instance_uid=False),
            setattr(
                dataset,
                'PixelData',
                pydicom.encaps.encapsulate([pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)] * 3),
            ),
        )[2:],
        None,
        'holds 3 pictures in an object of one',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_stored_bits_are_refused_with_their_cause(name, tmp_path):
    change, files, words = REFUSED[name]
    folder = written(Case(name, lambda dataset: change(dataset) or None, files=files), tmp_path)
    with pytest.raises(InputError) as caught:
        read_series(folder)
    assert words in str(caught.value) and caught.value.file == '00.dcm', str(caught.value)
    assert caught.value.remedy and str(tmp_path) not in str(caught.value)


def test_frames_of_a_cut_file_are_counted(tmp_path):
    made = save([enhanced(slices_of(chest(), tmp_path / 'good'))], tmp_path / 'scan')
    each_file(lambda data: data[:-50000])(made)
    with pytest.raises(InputError, match='00.dcm frame 5: ends 50000 bytes of pixels before its picture'):
        read_series(made)
    dataset = enhanced(slices_of(chest(), tmp_path / 'again'))
    dataset.PixelData = dataset.PixelData[:-1000]
    made = save([dataset], tmp_path / 'short')
    with pytest.raises(
        InputError, match='has 209000 bytes of pixels where 5 frames of 140 x 150 need 210000: 1000 are'
    ):
        read_series(made)


# ---- coarse pictures, retired JPEG


def as_jpeg(dataset, quality=100):
    "Eight-bit JPEG of a whole CT slice: 128 grey values for 4096 HU, as a converter writes it."
    stream = io.BytesIO()
    Image.fromarray((numbers_of(dataset) // 32).astype(np.uint8)).save(stream, 'JPEG', quality=quality)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.RescaleSlope = '32'
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
    dataset['PixelData'].VR, dataset['PixelData'].is_undefined_length = 'OB', True


def as_plain_eight_bit(dataset):
    dataset.PixelData = (numbers_of(dataset) // 32).astype(np.uint8).tobytes()
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.RescaleSlope = 8, 8, 7, '32'


def stretched(dataset):
    "256 grey values, multiplied to 12 bits again."
    put(dataset, numbers_of(dataset) // 16 * 16)


def eight_of_sixteen(dataset):
    put(dataset, numbers_of(dataset) // 32, 8, slope=32)


@pytest.mark.parametrize(
    ('change', 'note', 'step'),
    [
        (as_jpeg, 'coarse grey values (8 bits): a step of 32 HU', 32),
        (as_plain_eight_bit, 'coarse grey values (8 bits): a step of 32 HU', 32),
        (eight_of_sixteen, 'coarse grey values (8 bits): a step of 32 HU', 32),
        (stretched, 'coarse grey values: a step of 16 HU', 16),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_coarse_pictures_are_named_with_their_step(change, note, step, tmp_path):
    folder = written(Case('coarse', change), tmp_path)
    read = read_series(folder)
    assert f'{note} in 5 slices' in read.notes
    assert ('lossy compression (JPEG) in 5 slices' in read.notes) == (change is as_jpeg)
    np.testing.assert_array_equal(read.hu, agreed(folder))
    error = chest() - read.hu.astype(int)
    assert np.abs(error - step / 2).max() <= step / 2 + (4 * step if change is as_jpeg else 0)


def test_a_picture_of_all_its_grey_values_is_not_called_coarse(tmp_path):
    fine = written(Case('half', lambda dataset: put(dataset, 2 * numbers_of(dataset), slope=0.5)), tmp_path)
    assert read_series(fine).notes == ()
    few = np.where(chest() < -500, -1000, 40).astype(np.int16)  # two values tell nothing
    assert read_series(save(slices_of(few, tmp_path / 'two'), tmp_path / 'few')).notes == ()


RETIRED = {
    'spectral selection': (SPECTRAL_SELECTION, SPECTRAL, 12),
    'full progression': (FULL_PROGRESSION, PROGRESSION, 12),
    'full progression of 8 bits': (EIGHT_BIT_PROGRESSION, PROGRESSION, 8),
}


@pytest.mark.parametrize('name', RETIRED)
def test_retired_jpeg_is_read_as_simpleitk_and_gdcmconv_read_it(name, tmp_path):
    stream, syntax, bits = RETIRED[name]
    folder = retired_jpeg(stream, syntax, bits, tmp_path)
    read = read_series(folder, assume_hu=True)
    assert 'lossy compression (JPEG) in 5 slices' in read.notes
    assert ('coarse grey values (8 bits): a step of 8.03 HU in 5 slices' in read.notes) == (bits == 8)
    theirs = by_simpleitk(folder / '00.dcm')
    np.testing.assert_array_equal(read.hu[0], np.rint(theirs))
    assert np.abs(read.hu[0] - (RAMP - 1024)).max() <= (2 if bits == 12 else 16)


def test_the_remedy_for_what_is_not_decoded_works(tmp_path, monkeypatch):
    tool = shutil.which('gdcmconv', path=str(Path(sys.executable).parent)) or shutil.which('gdcmconv')
    if not tool:
        pytest.skip('gdcmconv, of python-gdcm, is not installed')
    folder = retired_jpeg(FULL_PROGRESSION, PROGRESSION, 12, tmp_path)
    read = read_series(folder, assume_hu=True)
    raw = tmp_path / 'raw'
    raw.mkdir()
    for path in folder.iterdir():
        subprocess.run([tool, '--raw', path, raw / path.name], check=True, capture_output=True, timeout=60)
    assert pydicom.dcmread(raw / '00.dcm').file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    np.testing.assert_array_equal(read_series(raw, assume_hu=True).hu, read.hu)
    monkeypatch.setitem(sys.modules, 'SimpleITK', None)
    with pytest.raises(InputError, match='convert the series, for instance with `gdcmconv --raw`'):
        read_series(folder, assume_hu=True)


# ---- decoders that print


def broken_jpeg(dataset):
    "Lossless JPEG of which a part is missing: its decoder fills the picture and says so to the terminal only."
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2] + b'\xff\xd9'])


def lossless_jpeg(folder):
    gdcm = pytest.importorskip('gdcm')
    for path in folder.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()


def rewritten(change):
    def apply(folder):
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            change(dataset)
            dataset.save_as(path)

    return apply


def cut_stream(dataset):
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) * 2 // 3]])


def loud_folders(root):
    "Folders of which a decoder printed something, by whether they can be read."
    good = {'retired': retired_jpeg(FULL_PROGRESSION, PROGRESSION, 12, root / '1')}
    bad = {
        'retired with a part missing': retired_jpeg(FULL_PROGRESSION[:340] + b'\xff\xd9', PROGRESSION, 12, root / '2')
    }
    bad['retired cut'] = retired_jpeg(FULL_PROGRESSION[:340], PROGRESSION, 12, root / '10')
    for number, syntax in enumerate((uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless), 3):
        change = both(compressed(syntax), cut_stream)
        bad[f'{syntax.keyword} cut'] = written(Case('', change), root / str(number))
    bad['JPEG cut'] = written(Case('', both(as_jpeg, cut_stream)), root / '6')
    bad['JPEG with a part missing'] = written(Case('', both(as_jpeg, broken_jpeg)), root / '7')
    whole = written(Case('', lambda dataset: None, files=lossless_jpeg), root / '8')
    good['lossless JPEG'] = whole
    broken = root / '9'
    shutil.copytree(whole, broken)
    rewritten(broken_jpeg)(broken)
    bad['lossless JPEG with a part missing'] = broken
    return good, bad


READ_ALL = """
import sys
from pe_advseg.core.errors import InputError
from pe_advseg.scans.series import read_series
for folder in sys.argv[1:]:
    try:
        read_series(folder, assume_hu=True)
        open(folder + '.read', 'w').close()
    except InputError as error:
        open(folder + '.refused', 'w').write(str(error))
"""


def test_no_decoder_prints_and_no_broken_picture_is_read(tmp_path):
    good, bad = loud_folders(tmp_path)
    folders = [str(folder) for folder in (*good.values(), *bad.values())]
    run = subprocess.run([sys.executable, '-c', READ_ALL, *folders], capture_output=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, b'', b'')
    for name, folder in good.items():
        assert Path(f'{folder}.read').exists(), name
    for name, folder in bad.items():
        assert Path(f'{folder}.refused').exists(), name
        assert 'its pixels' in (text := Path(f'{folder}.refused').read_text()) or 'are damaged' in text, text


def test_they_did_print(tmp_path):
    "Without which the test above could not fail: the same folders, read by the decoders themselves."
    _, bad = loud_folders(tmp_path)
    program = (
        'import sys, pydicom\nfor p in sys.argv[1:]:\n  try: pydicom.dcmread(p).pixel_array\n  except Exception: pass'
    )
    files = [str(folder / '00.dcm') for folder in bad.values()]
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', program, *files], capture_output=True, timeout=300)
    assert b'Corrupt JPEG data' in run.stderr


# ---- tilted and uneven


def waves(points):
    x, y, z = np.moveaxis(points, -1, 0)
    return 200 * np.sin(x / 2.1) * np.cos(y / 2.7) + 250 * np.sin(z / 3.3 + x / 9) + 30


def tilted_stack(degrees, places, shape=(60, 50), spacing=(0.8, 0.7)):
    "HU of `waves` on slices tilted about x and stacked along the table."
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    direction = np.stack([[0, -s, c], [0, c, s], [1, 0, 0]], axis=1)
    positions = np.stack([0 * places - 20, 0 * places - 24, places], axis=1)
    y, x = np.mgrid[: shape[0], : shape[1]]
    points = (
        positions[:, None, None]
        + y[..., None] * spacing[0] * direction[:, 1]
        + x[..., None] * spacing[1] * direction[:, 2]
    )
    return np.rint(waves(points)).astype(np.int16), positions, direction, spacing


def interpolated_once(hu, positions, direction, spacing, points):
    "SciPy's interpolation on the uneven slices themselves, at points of the patient; nan outside."
    places = (positions - positions[0]) @ direction[:, 0]
    line = (positions[-1] - positions[0]) / places[-1]
    offset = points - positions[0]
    along = offset @ direction[:, 0]
    in_slice = offset - along[..., None] * line
    grid = places, np.arange(hu.shape[1]) * spacing[0], np.arange(hu.shape[2]) * spacing[1]
    interpolate = RegularGridInterpolator(grid, hu.astype(float), bounds_error=False, fill_value=np.nan)
    return interpolate(np.stack([along, in_slice @ direction[:, 1], in_slice @ direction[:, 2]], axis=-1))


@pytest.mark.parametrize('degrees', [3, 15, -18])
@pytest.mark.parametrize('is_even', [False, True])
def test_tilted_and_uneven_slices_are_interpolated_once(degrees, is_even):
    places = np.arange(28) * 2.2 if is_even else np.r_[np.arange(14) * 2.0, 26 + np.arange(1, 15) * 2.6]
    hu, positions, direction, spacing = tilted_stack(degrees, places)
    new, new_spacing, origin, axes, notes = straighten(hu, positions, direction, spacing, 'waves')
    index = np.stack(np.meshgrid(*map(np.arange, new.shape), indexing='ij'), -1)
    points = index @ (axes * np.array(new_spacing)).T + origin
    once = interpolated_once(hu, positions, direction, spacing, points)
    inside = ~np.isnan(once)
    assert inside.mean() > 0.5
    assert np.abs(new - once)[inside].max() <= 0.51  # rounding
    error = np.sqrt(np.mean((new - waves(points))[inside] ** 2))
    assert error < 1.01 * np.sqrt(np.mean((once - waves(points))[inside] ** 2))
    if not is_even:
        assert notes[-1] == f'resampled: slices were 2.00 to 2.60 mm apart, now {new_spacing[0]:.2f} mm'


def test_an_uneven_tilted_series_says_the_spacing_it_has(tmp_path):
    hu, positions, direction, spacing = tilted_stack(12, np.r_[np.arange(8) * 2.0, 14 + np.arange(1, 9) * 2.6])
    slices = slices_of(hu.clip(-1024, 2000) - np.int16(500), tmp_path / 'good')
    for dataset, position in zip(slices, positions, strict=True):
        dataset.ImagePositionPatient = position.round(5).tolist()
        dataset.ImageOrientationPatient = [*direction[:, 2].round(8), *direction[:, 1].round(8)]
        dataset.PixelSpacing = list(spacing)
    read = read_series(save(slices, tmp_path / 'scan'), resample=True)
    assert f'apart, now {read.spacing[0]:.2f} mm' in ' '.join(read.notes)
    assert read.sources == ()
