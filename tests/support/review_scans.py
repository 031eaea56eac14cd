"""Scans, labels and foreign masks that the tests of the review share."""

import json
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK
from pydicom.sr.codedict import codes
from scipy.spatial.transform import Rotation

from pe_advseg.core.volume import Volume
from pe_advseg.scans.nifti import write_nifti
from pe_advseg.scans.series import pixel_digest, read_series
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
SHAPE = (12, 36, 40)


def make(seed=0, oblique=True, z_mm=1.5):
    """A body with air around it and three emboli without any symmetry.

    Clot has 50 + its number HU and nothing else has, so the scan itself says where each embolus must lie.
    """
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = np.where(((y - 18) / 17) ** 2 + ((x - 20) / 19) ** 2 < 1, rng.integers(10, 45, SHAPE), -1000).astype(np.int16)
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[1:4, 9:14, 10:14] = 1
    numbers[3:5, 9, 13:21] = 1
    numbers[7:10, 20:24, 27:31] = 2
    numbers[8:11, 8, 24:30] = 3
    hu[numbers > 0] = 50 + numbers[numbers > 0]
    direction = Rotation.from_rotvec(rng.uniform(-0.2, 0.2, 3)).as_matrix() @ AXIAL if oblique else AXIAL
    return Volume(hu, (z_mm, 0.7, 0.8), tuple(rng.uniform(-200, 200, 3)), direction), numbers


def on_disk(folder, seed=0, name='SECRET', **options):
    "A scan written as DICOM and read again, and the numbers where its HU say they are."
    volume, _ = make(seed, **options)
    write_series(volume, folder, name, seed_uid=str(seed), reverse=bool(seed % 2))
    volume = read_series(folder)
    return volume, np.where((volume.hu > 50) & (volume.hu < 60), volume.hu - 50, 0).astype(np.uint16)


def annotated(folder, volume, numbers):
    "As much of an annotation as a correction needs."
    folder.mkdir(parents=True)
    write_nifti(folder / 'mask.nii.gz', numbers, volume)
    (folder / 'summary.json').write_text(
        json.dumps(
            dict(
                what='annotation',
                scan=dict(digest=pixel_digest(volume)),
                runs=[dict(name='run7', weights='0123456789ab')],
                made='2026-11-27T00:00:00+00:00',
            )
        )
    )
    return folder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob('*') if path.is_file())


def highdicom_seg(path, scan, numbers, labels, kind='BINARY', overlap=False, order=1):
    "As another program would write it: its own order of slices, segments called `labels`."
    images = sorted(
        (pydicom.dcmread(file) for file in scan.glob('*.dcm')), key=lambda d: float(d.ImagePositionPatient[2])
    )[::order]
    described = [
        highdicom.seg.SegmentDescription(
            n, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Tissue, 'MANUAL'
        )
        for n, label in enumerate(labels, 1)
    ]
    pixels = (
        np.stack([numbers == n for n in range(1, len(labels) + 1)], -1).astype(np.uint8)
        if overlap is False and kind == 'BINARY'
        else overlap
        if overlap is not False
        else numbers.astype(np.uint8)
    )
    uid = pydicom.uid.generate_uid
    highdicom.seg.Segmentation(
        images,
        pixels[::order],
        kind,
        described,
        uid(),
        1,
        uid(),
        1,
        'another',
        'program',
        '1',
        '1',
        **({'max_fractional_value': 255} if kind == 'FRACTIONAL' else {}),
    ).save_as(path)


def write_as(kind, path, numbers, volume, scan):
    "The mask as a file of this kind, with a header that fits the scan."
    if kind == 'seg':
        return highdicom_seg(
            path.with_suffix('.dcm'), scan, numbers, ['clot 1', 'clot 2', 'clot 3']
        ) or path.with_suffix('.dcm')
    write_nifti(path.with_suffix('.nii.gz'), numbers, volume)
    if kind == 'nrrd':
        SimpleITK.WriteImage(SimpleITK.ReadImage(path.with_suffix('.nii.gz')), path.with_suffix('.nrrd'))
    return path.with_suffix('.nii.gz' if kind == 'nifti' else '.nrrd')
