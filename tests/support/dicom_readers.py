"""Scans in every direction with emboli that have no symmetry, and readers of DICOM SEG and RTSTRUCT by others."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation
from skimage.draw import polygon2mask

from pe_advseg.core.volume import Volume
from pe_advseg.scans.series import read_series
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
SHAPE = 9, 26, 22


def turned(axis, degrees=15):
    return Rotation.from_rotvec(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)).as_matrix()


CASES = {
    'plain': (AXIAL, False),
    'files from the top': (AXIAL, True),
    'rows negated': (AXIAL * [1, 1, -1], False),
    'columns negated': (AXIAL * [1, -1, 1], True),
    'rows and columns negated': (AXIAL * [1, -1, -1], False),
    'oblique': (turned([1, 0, 0]) @ AXIAL, False),
    'oblique about no axis': (turned([0.6, 0.64, 0.48]) @ AXIAL, True),
    'oblique and negated': (turned([0.6, 0.64, 0.48]) @ (AXIAL * [1, 1, -1]), False),
    'slices downwards': (AXIAL * [-1, 1, 1], False),
}


def emboli(shape=SHAPE):
    """Asymmetric, and hard for contours; the numbers have gaps.

    An L, a ring with an island, one pixel, two pixels, a diagonal, the border."""
    mask = np.zeros(shape, np.int64)
    mask[1:4, 2:9, 3:6] = mask[1:3, 7:9, 6:12] = 3
    mask[4:6, 12:19, 4:11] = 8
    mask[4:6, 14:17, 6:9] = 0
    mask[5, 15, 7] = mask[6, 3, 15] = 8
    mask[6, 6, 14:16] = 20
    mask[6, 9, 14] = mask[6, 10, 15] = 300
    mask[7, 0, :5] = mask[7:, -3:, -1] = 301
    return mask


def make_volume(case='plain', spacing=(1.5, 0.7, 0.85), shape=SHAPE):
    return Volume(
        np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16),
        spacing,
        (-30.0, 12.5, -700.25),
        CASES[case][0],
    )


def written(folder, case='plain', header=None, name='PAT', **options):
    "A volume, its series as it is read again, and the emboli on both grids, moved by the places of their voxels."
    volume = make_volume(case, **options)
    write_series(volume, folder, name, header=header, reverse=CASES[case][1])
    scan, mask = read_series(folder), emboli(volume.shape)
    index = np.rint(volume.to_index(scan.to_patient(np.argwhere(np.ones(scan.shape))))).astype(int)
    return volume, mask, scan, mask[tuple(index.T)].reshape(scan.shape)


def placed(points, numbers, volume, tolerance=1e-2):
    "Numbers at points of the patient (LPS mm), on the grid of the volume; tolerance in voxels."
    index = volume.to_index(points)
    assert np.abs(index - np.rint(index)).max() < tolerance
    grid = np.zeros(volume.shape, np.int64)
    grid[tuple(np.rint(index).astype(int).T)] = numbers
    return grid


def number_of(label):
    return int(label.split()[-1])


# ---- readers of others


def by_highdicom(path, volume, tolerance=1e-2):
    seg = highdicom.seg.segread(path)
    numbers = np.array([0, *(number_of(seg.get_segment_description(n).segment_label) for n in seg.segment_numbers)])
    read = seg.get_volume(combine_segments=True)
    index = np.argwhere(read.array)
    return placed(
        index @ read.affine[:3, :3].T + read.affine[:3, 3], numbers[read.array[tuple(index.T)]], volume, tolerance
    )


def dcmqi_tool():
    found = shutil.which('segimage2itkimage') or shutil.which(
        'segimage2itkimage', path=str(Path(sys.executable).parent)
    )
    return found or pytest.skip('segimage2itkimage, of dcmqi, is not installed')


def by_dcmqi(path, volume, out):
    "3D Slicer reads a SEG with this program."
    tool = dcmqi_tool()
    out.mkdir()
    subprocess.run(
        [tool, '--inputDICOM', path, '--outputDirectory', out, '--outputType', 'nrrd', '--prefix', 'x'],
        check=True,
        capture_output=True,
        timeout=60,
    )
    grid = np.zeros(volume.shape, np.int64)
    for group, segments in enumerate(json.loads((out / 'x-meta.json').read_text())['segmentAttributes'], 1):
        image = SimpleITK.ReadImage(str(out / f'x-{group}.nrrd'))
        array = SimpleITK.GetArrayFromImage(image)
        for segment in segments:
            assert segment['SegmentedPropertyTypeCodeSequence']['CodeValue'] == '55584005'
            points = [
                image.TransformIndexToPhysicalPoint(tuple(int(n) for n in index[::-1]))
                for index in np.argwhere(array == segment['labelID'])
            ]
            grid += placed(points, number_of(segment['SegmentLabel']), volume)
    return grid


def by_polygons(path, folder, volume):
    "Geometry by SimpleITK, polygons by scikit-image, contours of a slice combined by XOR: as dcmrtstruct2nii does it."
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image, dataset, grid = reader.Execute(), pydicom.dcmread(path), np.zeros(volume.shape, np.int64)
    for region, drawn in zip(dataset.StructureSetROISequence, dataset.ROIContourSequence, strict=True):
        assert region.ROINumber == drawn.ReferencedROINumber
        array = np.zeros(image.GetSize()[::-1], bool)
        for contour in drawn.ContourSequence:
            index = np.array(
                [
                    image.TransformPhysicalPointToContinuousIndex(tuple(float(v) for v in point))
                    for point in np.reshape(contour.ContourData, (-1, 3))
                ]
            )
            assert np.ptp(index[:, 2]) < 1e-3
            array[round(index[0, 2])] ^= polygon2mask(array.shape[1:], index[:, 1::-1])
        points = [
            image.TransformIndexToPhysicalPoint(tuple(int(n) for n in place[::-1])) for place in np.argwhere(array)
        ]
        grid += placed(points, number_of(region.ROIName), volume)
    return grid
