"Scans that are no chest, and an archive as its tools unpack it: one folder per series."

import dataclasses
from pathlib import Path

import numpy as np
import pydicom

from pe_advseg.core.volume import Volume
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.scans.write_series import write_series

AXIAL = np.eye(3)[:, ::-1]


def noisy(hu: np.ndarray, spacing: tuple) -> Volume:
    "HU with noise as a volume."
    hu = hu + np.random.default_rng(0).normal(0, 8, hu.shape)
    return Volume(hu.astype(np.int16), spacing, (0, 0, 0), AXIAL)


def head() -> Volume:
    "Brain in a skull with two sinuses, in a holder filled with foam of -945 HU."
    z, y, x = np.mgrid[:36, :96, :96] * np.array([4.0, 2.4, 2.4])[:, None, None, None]
    radius = np.sqrt(((z - 72) / 80) ** 2 + ((y - 112) / 95) ** 2 + ((x - 115) / 75) ** 2)
    hu = np.full(z.shape, -1000.0)
    hu[(y > 130) & (np.abs(x - 115) < 95)] = -945
    hu[(y > 130) & (np.abs(np.abs(x - 115) - 97) < 3)] = 100
    hu[(y > 207) & (np.abs(x - 115) < 100)] = 100
    hu[radius < 1] = 40
    hu[radius < 0.93] = 1000
    hu[radius < 0.86] = 35
    for side in (-1, 1):
        hu[(z - 40) ** 2 + (y - 55) ** 2 + (x - 115 - 22 * side) ** 2 < 16**2] = -1000
    return noisy(hu, (4, 2.4, 2.4))


def abdomen() -> Volume:
    "A trunk with fat, liver, opacified aorta and gas in the bowel, on a table."
    z, y, x = np.mgrid[:30, :96, :96] * np.array([5.0, 4.0, 4.0])[:, None, None, None]
    hu = np.full(z.shape, -1000.0)
    trunk = ((y - 190) / 120) ** 2 + ((x - 192) / 170) ** 2
    hu[trunk < 1] = -100
    hu[trunk < 0.75] = 55
    hu[(y - 230) ** 2 + (x - 192) ** 2 < 14**2] = 300
    for place in range(8):
        centre = (15 + 16 * place, 120 + 25 * (place % 3), 110 + 24 * place)
        hu[sum((axis - at) ** 2 for axis, at in zip((z, y, x), centre, strict=True)) < 20**2] = -990
    hu[(np.abs(y - 330) < 12) & (np.abs(x - 192) < 180)] = -940  # the table's foam
    return noisy(hu, (5, 4, 4))


def unenhanced() -> Volume:
    "A synthetic patient whose blood has 45 HU everywhere."
    still = dict.fromkeys(('artery_hu', 'vein_hu', 'aorta_hu', 'cava_hu'), (45, 0))
    return make_study(dataclasses.replace(HOSPITALS['valley'], **still), 3, (24, 96, 96)).volume


def other_dicom(path: Path, sop_class: str, modality: str) -> None:
    "A DICOM file of another kind, with nothing in it."
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, pydicom.uid.generate_uid()
    dataset.Modality, dataset.StudyInstanceUID = modality, '2.25.77'
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def unpacked_archive(folder: Path, volume: Volume) -> Path:
    "A study with folders for a scan, a SEG, an RTSTRUCT, a report and two MR images."
    write_series(volume, folder / 'series-1', 'P', header=dict(StudyInstanceUID='2.25.77'))
    uids = pydicom.uid
    other_dicom(folder / 'series-2/1.dcm', uids.SegmentationStorage, 'SEG')
    other_dicom(folder / 'series-3/1.dcm', uids.RTStructureSetStorage, 'RTSTRUCT')
    other_dicom(folder / 'series-4/1.dcm', uids.BasicTextSRStorage, 'SR')
    for number in (1, 2):
        other_dicom(folder / f'series-5/{number}.dcm', uids.MRImageStorage, 'MR')
    return folder
