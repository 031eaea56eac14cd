"""Masks as other programs write them, each with one thing wrong that must not lose a mark without a word."""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK
from support.review_scans import highdicom_seg

from pe_advseg.core.volume import Volume
from pe_advseg.data.hospital_cache import build_cache
from pe_advseg.data.read_study import read_embolus_ids, read_study
from pe_advseg.data.studies import Study
from pe_advseg.review.foreign_masks import read_corrected
from pe_advseg.review.import_correction import import_correction
from pe_advseg.review.import_corrections import import_corrections
from pe_advseg.review.started_from import read_started_from
from pe_advseg.scans.rtstruct import write_rtstruct


@dataclass
class Place:
    "A scan on disk, its emboli, and where a mask of it may be written."

    root: Path
    scan: Path
    volume: Volume
    numbers: np.ndarray  # uint16 (z, y, x): 0 to 3

    @property
    def affine(self):
        return self.volume.nifti_affine()


LABELS = ['embolus 1', 'embolus 2', 'embolus 3']


def changed(path, change):
    "The DICOM file after a change, in place."
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


# ---- writers: each returns the path of a mask of the emboli


def seg(place, kind='BINARY', labels=LABELS, numbers=None):
    path = place.root / 'mask.dcm'
    highdicom_seg(path, place.scan, place.numbers if numbers is None else numbers, labels, kind)
    return path


def nifti(place, values=None, affine=None, name='mask.nii.gz', names=None):
    values = place.numbers if values is None else values
    image = nibabel.Nifti1Image(values.T, place.affine if affine is None else affine)
    if names:
        rows = ''.join(f'<Label Key="{key}" Red="1"><![CDATA[{name}]]></Label>' for key, name in names.items())
        table = f'<?xml version="1.0"?><CaretExtension><LabelTable>{rows}</LabelTable></CaretExtension>'
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, table.encode()))
    nibabel.save(image, place.root / name)
    return place.root / name


def slicer(place, names, name='mask.seg.nrrd'):
    "A `.seg.nrrd`; SimpleITK takes the geometry from the NIfTI that nibabel wrote."
    image = SimpleITK.ReadImage(str(nifti(place, place.numbers.astype(np.uint8), name='plain.nii')))
    (place.root / 'plain.nii').unlink()
    image.SetMetaData('Segmentation_SourceRepresentation', 'Binary labelmap')
    for n, (value, text) in enumerate(names.items()):
        image.SetMetaData(f'Segment{n}_LabelValue', str(value))
        image.SetMetaData(f'Segment{n}_Name', text)
    SimpleITK.WriteImage(image, str(place.root / name))
    return place.root / name


def rtstruct(place):
    return write_rtstruct(place.root / 'mask.dcm', place.numbers, place.volume, place.scan)


# ---- what may be wrong


def each_frame(change):
    def spoil(dataset):
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            change(frame)

    return spoil


def without_number(frame):
    del frame.SegmentIdentificationSequence


def one_less(frame):
    frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber -= 1


def not_renumbered(dataset):
    for item in dataset.SegmentSequence:
        item.SegmentNumber += 3


def first_item_lost(dataset):
    dataset.SegmentSequence = [item for item in dataset.SegmentSequence if item.SegmentNumber != 1]


def from_zero(dataset):
    "Counted from 0 in the list and in the frames alike."
    for item in dataset.SegmentSequence:
        item.SegmentNumber -= 1
    each_frame(one_less)(dataset)


def same_number(dataset):
    dataset.SegmentSequence[1].SegmentNumber = 1


def first_region_lost(dataset):
    dataset.StructureSetROISequence = list(dataset.StructureSetROISequence)[1:]


def first_contour(dataset):
    return dataset.ROIContourSequence[0].ContourSequence[0]


def between_slices(dataset):
    "Half the distance between slices further up."
    contour = first_contour(dataset)
    points = np.reshape(contour.ContourData, (-1, 3)).astype(float) + np.array([0, 0, 0.75])
    contour.ContourData = [f'{value:.4f}' for value in points.ravel()]


def open_line(dataset):
    first_contour(dataset).ContourGeometricType = 'OPEN_PLANAR'


def point(dataset):
    contour = first_contour(dataset)
    contour.ContourGeometricType, contour.NumberOfContourPoints = 'POINT', 1
    contour.ContourData = list(contour.ContourData)[:3]


def points_lost(dataset):
    contour = first_contour(dataset)
    contour.ContourData = list(contour.ContourData)[:-3]


def several_numbers(frame):
    frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber = [1, 2]


UNATTRIBUTED = {  # name -> what writes the file, words of its refusal
    'frames without a number': (
        lambda p: changed(seg(p), each_frame(without_number)),
        'without a number; it lists 1, 2, 3',
    ),
    'frames from 0': (lambda p: changed(seg(p), each_frame(one_less)), 'as number 0; it lists 1, 2, 3'),
    'frames of two numbers': (lambda p: changed(seg(p), each_frame(several_numbers)), 'is damaged'),
    'list and frames from 0': (lambda p: changed(seg(p), from_zero), 'counts its segments from 0'),
    'list not renumbered': (lambda p: changed(seg(p), not_renumbered), 'as number 3; it lists 4, 5, 6'),
    'item of the list lost': (lambda p: changed(seg(p), first_item_lost), 'as number 1; it lists 2, 3'),
    'two items of one number': (lambda p: changed(seg(p), same_number), 'missing or not unique'),
    'label map, item lost': (lambda p: changed(seg(p, 'LABELMAP'), first_item_lost), 'as number 1; it lists 2, 3'),
    'only a lung marked': (
        lambda p: seg(p, labels=['lung', 'embolus'], numbers=(p.numbers > 0) * 1),
        'all in segments that are not called a clot',
    ),
    'seg.nrrd, value not listed': (lambda p: slicer(p, {2: 'embolus 2', 3: 'embolus 3'}), 'as number 1; it lists 2, 3'),
    'seg.nrrd, only a lung': (
        lambda p: slicer(p, {1: 'lung', 2: 'heart', 3: 'liver', 4: 'embolus'}),
        'not called a clot',
    ),
    'NIfTI table, value not listed': (
        lambda p: nifti(p, p.numbers.astype(np.uint8), names={2: 'embolus', 3: 'heart'}),
        'as number 1; it lists 2, 3',
    ),
    'NIfTI, marks of 0.00001': (lambda p: nifti(p, p.numbers.astype(np.float32) * 1e-5), 'holds the values 0, 0.0000'),
    'RTSTRUCT, region not listed': (
        lambda p: changed(rtstruct(p), first_region_lost),
        'contours of segments that it does',
    ),
    'RTSTRUCT, between slices': (lambda p: changed(rtstruct(p), between_slices), 'lies on no slice'),
    'RTSTRUCT, open line': (lambda p: changed(rtstruct(p), open_line), r'enclose nothing \(OPEN_PLANAR\)'),
    'RTSTRUCT, point': (lambda p: changed(rtstruct(p), point), r'enclose nothing \(POINT\)'),
    'RTSTRUCT, points lost': (lambda p: changed(rtstruct(p), points_lost), 'points are missing or damaged'),
}

# ---- the doors through which masks come in: each returns the mask, or raises InputError


def _study(place, path):
    return Study('h', 'p', place.scan, path)


def through_cache(place, path):
    cached = build_cache([_study(place, path)], place.root / 'cache', progress=False)
    return np.asarray(cached['h/p'].mask)


def through_import(place, path):
    result = import_correction(path, place.scan, place.root / 'store', 'AB', file=path.name)
    assert result.status == 'saved'
    return np.asarray(nibabel.load(result.version / 'mask.nii.gz').dataobj).T


def through_folder(place, path):
    [result] = import_corrections(path, place.scan, place.root / 'store2', 'AB')
    if result.error:
        raise ValueError(result.error)
    return np.asarray(nibabel.load(result.version / 'mask.nii.gz').dataobj).T


DOORS = {
    'training and scoring': lambda place, path: read_study(_study(place, path))[1],
    'scores per embolus': lambda place, path: read_embolus_ids(_study(place, path))[1],
    'cache': through_cache,
    'label to review': lambda place, path: read_started_from(path, place.volume, place.root / 'store')[0],
    'correction': lambda place, path: read_corrected(path, place.scan, place.volume, path.name)[0],
    'import of a file': through_import,
    'import of files': through_folder,
}
