"""Slices whose stored bits mean something unusual, with their true HU; readers by others to compare with.

A situation is a change of good slices. Pictures are soft and noisy as CT is: what a bit means shows in the picture.
"""

import base64
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK
from pydicom import uid
from scipy import ndimage

from pe_advseg.core.volume import Volume
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
SHAPE = 5, 140, 150
END_MARK = b'\xfe\xff\xdd\xe0' + bytes(4)


# ---- a chest


def outside(shape=SHAPE):
    "Outside the scanned circle."
    _, y, x = np.mgrid[tuple(slice(n) for n in shape)]
    return (y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2 > (0.495 * shape[1]) ** 2


def chest(seed=0, shape=SHAPE):
    "HU of a body with lungs, vessels and bone, with noise of 12 HU, and air of -1024 outside the scanned circle."
    z, y, x = np.mgrid[tuple(slice(n) for n in shape)]
    y, x = (y - shape[1] / 2) / shape[1], (x - shape[2] / 2) / shape[2]
    hu = np.full(shape, -1000.0)
    hu[(y / 0.36) ** 2 + (x / 0.46) ** 2 < 1] = 0  # water: where 0 HU is blood or effusion
    hu[(y / 0.24) ** 2 + ((np.abs(x) - 0.2) / 0.14) ** 2 < 1] = -850
    hu[(y + 0.02 * z) ** 2 + (np.abs(x) - 0.2) ** 2 < 0.002] = 320
    hu[(y - 0.3) ** 2 + x**2 < 0.002] = 900
    hu = ndimage.gaussian_filter(hu, (0, 1, 1)) + np.random.default_rng(seed).normal(0, 12, shape)
    hu = np.rint(hu).clip(-1023, 1900).astype(np.int16)
    hu[outside(shape)] = -1024
    return hu


def with_metal(hu):
    hu = hu.copy()
    hu[:, 60:66, 70:78] = 3000
    return hu


def slices_of(hu, folder):
    "Datasets of a volume, as `write_series` writes them: unsigned, HU + 1024, 16 bits stored."
    write_series(Volume(hu, (1.5, 0.7, 0.8), (-30.0, 12.5, -700.25), AXIAL), folder, 'P1')
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def save(slices, folder):
    folder.mkdir(parents=True)
    for number, dataset in enumerate(slices):
        dataset.save_as(folder / f'{number:02d}.dcm')
    return folder


# ---- changes of the stored numbers


def numbers_of(dataset):
    return np.frombuffer(dataset.PixelData, '<i2' if dataset.PixelRepresentation else '<u2').reshape(
        dataset.Rows, dataset.Columns
    )


def put(dataset, numbers, bits=16, signed=0, intercept=-1024, slope=1):
    "Write stored numbers, and say so."
    dataset.PixelData = numbers.astype('<i2' if signed else '<u2').tobytes()
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, signed
    dataset.RescaleIntercept, dataset.RescaleSlope = str(intercept), str(slope)


def as_signed(dataset, bits=16):
    "HU as they are, signed."
    put(dataset, numbers_of(dataset).astype(int) - 1024, bits, 1, 0)


def claim(dataset, bit, group=0x6000, allocated=16):
    "The tags of an overlay in a bit of the pixels."
    for element, representation, value in (
        (0x10, 'US', dataset.Rows),
        (0x11, 'US', dataset.Columns),
        (0x40, 'CS', 'G'),
        (0x50, 'SS', [1, 1]),
        (0x100, 'US', allocated),
        (0x102, 'US', bit),
    ):
        dataset.add_new((group << 16) + element, representation, value)


def draw(dataset, *bits):
    "A letter in the corner and an arrow in the chest, in high bits; the numbers are cut to twelve bits first."
    numbers = numbers_of(dataset).astype(int) & 0xFFF
    for bit in bits:
        numbers[8:20, 8:60] |= 1 << bit
        numbers[70:76, 50 : 90 - bit] |= 1 << bit
    signed = dataset.PixelRepresentation
    dataset.PixelData = numbers.astype('<u2').tobytes()
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, signed


def enhanced(slices):
    for dataset in slices:
        for event in ('Content', 'Acquisition', 'Study'):
            setattr(dataset, f'{event}Date', '20000101')
            setattr(dataset, f'{event}Time', '000000')
    return highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, '2.25.9', 1, '2.25.99', 1)


def big_endian(dataset):
    clean = pydicom.Dataset({element.tag: element for element in dataset})
    clean.PixelData = numbers_of(dataset).astype('>u2').tobytes()
    clean.file_meta = pydicom.dataset.FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    clean.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    clean.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return clean


# ---- changes of the files


def each_file(change):
    "Bytes of every file changed."

    def apply(folder):
        for path in folder.iterdir():
            path.write_bytes(change(path.read_bytes()))

    return apply


def end_mark_as(new):
    def change(data):
        assert data.endswith(END_MARK)
        return data[: -len(END_MARK)] + new

    return change


def frame_count_as(text):
    "NumberOfFrames as a program wrote it, whatever may stand there."

    def change(dataset):
        element = pydicom.DataElement('NumberOfFrames', 'IS', text, validation_mode=pydicom.config.IGNORE)
        dataset['NumberOfFrames'] = element

    return change


# ---- readers by others


def by_pydicom(path):
    "HU of the slices of a file, or None where pydicom reads none."
    try:
        dataset = pydicom.dcmread(path)
        return dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    except Exception:
        return None


def by_simpleitk(path):
    "HU of the slices of a file as ITK's copy of GDCM reads them, or None."
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO('GDCMImageIO')
    try:
        return SimpleITK.GetArrayFromImage(reader.Execute())[0].astype(float)
    except RuntimeError:
        return None


def agreed(folder):
    "HU (z, y, x) on which pydicom and SimpleITK agree for every file, in the order of their names, or None."
    found = []
    for path in sorted(Path(folder).iterdir()):
        first, second = by_pydicom(path), by_simpleitk(path)
        if first is None or second is None or first.shape != second.shape or not np.array_equal(first, second):
            return None
        found.append(first)
    return np.stack(found)


# ---- twelve-bit JPEG of retired processes


RAMP = 20 * np.arange(40)[:, None] + 7 * np.arange(48)  # the picture; encoded by dcmcjpeg of DCMTK 3.6.7, quality 95
SPECTRAL_SELECTION = base64.b85decode(
    '|JeWF01!$>Nk#wx0RR9200961|JwjV00IF40RaI50RaI50s;a81OoyB0s;jD1Oo&H1qKEN1qKEN2MGuU2MGrT1_%oX2?`1d3JL}Y'
    '3k(Yi3<(Mf3je|Y3k(1#05Aao5di<h02TlN0RaF20000000000000082@U_+00;pA00000!Fg~v91aHrA8<Gv4hIAua5x+e2LvB*'
    'I2;ZK1RroX91aHu|HJ?m5C8)J000000000000000000OH|Jncu0RaF31pr^<kiW?xf09D~03?O}Neldv7x^SF@<?CgkiW?xf09D~'
    '03?O}Neldv7x^SF@<?CgkiW?xf09D~03?O}Neldv7x^SF@<?CgkiW?xf09D~03?O}NeldvKmWu47!Uvg0{{R3000000000000003'
    'CPPvG+5iXv0RRR+07Pdg5gE!vMskr6oTNl&DG?dUL`HIv5uBt%XDJaG%0xzTkrAAvL}w`x8OlUPa*+|7q(o;a5gE!vMskr6oTNl&'
    'DG?dUL`HIv5uBt%XDJaG%0xzTkrAAvL}w`x8Ol%p|Je'
)
FULL_PROGRESSION = base64.b85decode(
    '|JeWF01!$>Nk#wx0RR9200961|JwjV00IF40RaI50RaI50s;a81OoyB0s;jD1Oo&H1qKEN1qKEN2MGuU2MGrT1_%oX2?`1d3JL}Y'
    '3k(Yi3<(Mf3je|Y3k(1#05Aao5di<h02TlN0RaF20000000000000072n_$)00;pA00001!Fb@{;Nam0xHvdCI6>|X4h{|wdxL|6'
    'gM=R7;Nall|HJ?m5C8)J000000000000000000ID|Jncu0RaF31p;4^3-UpJNH56+`5?a}7vzHckYADu@<Dz`FUbY@AipFR<bwQ='
    'Uy=**L4HUt$p!f!za$srg8YzQk_+-den>CL1^FPqBtQSe02dGd0|5X40000000000000000VJXS+5iXv0RRR+0#jh7!A*jj1vUz7'
    '6xb=SQ(&gSO@f;RHVSMM*eS46V5Y%Mf|~_43TzbEDX>#urol~un*}xsY(M|R02B}b0000000000000000000$|Jncu0RaF3KOu3>'
    'bDZZn&U2jSInHyO=Q+-Eoc{p-+5iXv0RR915C8xG1OLPT6%YXd0000000000000000001?|Jncu0RaF3KM;&YBN2$iVlfzuMk5i3'
    '#9}cRj7B37h{R$s7>q_E5s1WN|Je'
)
EIGHT_BIT_PROGRESSION = base64.b85decode(
    '|JeWF01!$>Nk#wx0RR9200961|JwjV00IF40RaI50RaI50s;a81OoyB0s;jD1Oo&H1qKEN1qKEN2MGuU2MGrT1_%oX2?`1d3JL}Y'
    '3k(Yi3<(Mf3je|Y3kU!x05Aao5di<h02TlN0RaF20000000000000041qlDz00;pA00001!me|i=q_`d=q_`d=q_`d=q_`b@BhRA'
    '77zdf000000000000000000031pnFq2mt{A0R;kFg5(z<xdq5BL2?U_T!Q2mAh`v|E<th&kX(Y~7a+L>$Sy&03y@rb<QE{h1;{Q#'
    '|HJ?l5CH)I000000000000000001%n+5iXv0RRR+0*Hu+h=_=Yh=_=Yh=_=Y|HJ?k5CH%H00000000000000006_oR00;pA00BQC'
    'a7Y9KNF)G2B!WOC|Jncu0RaF201*2C01yAf02vSf0|5a6000000000000000F~Lz`5&zl%2mt{A0Y4B-h>;R_`66UTIC%LYWJfq7'
    'oDt3mksRQTa7>AjG9pCCnGqr+M2V3SB1FiU5#9*z5C8w!'
)  # of 0 to 255, with a slope of 8.027451


def retired_jpeg(stream, syntax, bits, folder):
    "Five slices, each of this compressed picture of 40 x 48 pixels."
    slices = slices_of(np.full((5, 40, 48), -1000, np.int16), folder / 'good')
    for dataset in slices:
        dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = max(8, bits + 4 if bits > 8 else 8), bits, bits - 1
        dataset.RescaleSlope = '1' if bits > 8 else '8.027451'
        dataset.PixelData = pydicom.encaps.encapsulate([stream])
        dataset['PixelData'].VR, dataset['PixelData'].is_undefined_length = 'OB', True
    return save(slices, folder / 'retired')
