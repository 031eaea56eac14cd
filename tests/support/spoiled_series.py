"""A good synthetic series of twelve slices, ways to spoil it, and what its reader must say then."""

import numpy as np
import pydicom
import pytest

from pe_advseg.core.errors import InputError
from pe_advseg.core.volume import Volume
from pe_advseg.scans.series import read_series
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
SECRETS = 'PLANTED^NAME', 'PLANTED-4711'  # must never show in an error or a note
ALL = range(12)


def make_volume(direction=AXIAL, shape=(12, 40, 48), seed=0, origin=(-30.0, 12.5, -700.25)):
    hu = np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)
    return Volume(hu, (1.5, 0.7, 0.8), origin, direction)


def world(volume):
    "All voxels by their place in the patient: independent of array order."
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing='ij'), -1).reshape(-1, 3)
    points = volume.to_patient(index)
    order = np.lexsort(np.round(points, 3).T)
    return points[order], volume.hu.reshape(-1)[order]


def same_world(a, b):
    (points_a, hu_a), (points_b, hu_b) = world(a), world(b)
    np.testing.assert_allclose(points_a, points_b, atol=1e-3)
    np.testing.assert_array_equal(hu_a, hu_b)


def save(slices, folder, names=None, **options):
    folder.mkdir(parents=True)
    for index, dataset in enumerate(slices):
        dataset.save_as(folder / (names[index] if names else f'{index:02d}.dcm'), **options)
    return folder


def datasets(volume, folder):
    "A volume's slices as datasets, with planted identity."
    write_series(volume, folder, SECRETS[0])
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for dataset in slices:
        dataset.PatientID = SECRETS[1]
    return slices


def set_dates(slices):
    "The dates and times without which highdicom makes no enhanced CT of them."
    for dataset in slices:
        for event in ('Content', 'Acquisition', 'Study'):
            setattr(dataset, f'{event}Date', '20000101')
            setattr(dataset, f'{event}Time', '000000')


def without_identity(text, folder):
    for secret in (*SECRETS, 'PLANTED', str(folder), str(folder.parent)):
        assert secret not in text, text


def refused(words, file=None, **options):
    "An InputError with these words, file and remedy, and nothing of the patient."

    def check(folder, volume):
        with pytest.raises(InputError) as caught:
            read_series(folder, **options)
        assert words in str(caught.value), str(caught.value)
        assert file in (None, caught.value.file), str(caught.value)
        assert caught.value.remedy and caught.value.__cause__ is None
        without_identity(str(caught.value), folder)

    return check


def tags(index, **values):
    def apply(slices):
        for i in [index] if isinstance(index, int) else index:
            for keyword, value in values.items():
                if value is None:
                    delattr(slices[i], keyword)
                else:
                    slices[i][keyword] = pydicom.DataElement(
                        keyword,
                        pydicom.datadict.dictionary_VR(pydicom.datadict.tag_for_keyword(keyword)).split(' ')[0],
                        value,
                        validation_mode=0,
                    )

    return apply


def move(function):
    def apply(slices):
        for i, dataset in enumerate(slices):
            dataset.ImagePositionPatient = (
                (np.array(dataset.ImagePositionPatient, float) + function(i)).round(4).tolist()
            )

    return apply


def tilted(degrees, **more):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return tags(ALL, ImageOrientationPatient=[1, 0, 0, 0, round(c, 8), round(s, 8)], **more)
