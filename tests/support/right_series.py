"""Series as scanners and archives really send them: two passes in one series, an enhanced CT in parts, maps that call
themselves CT, a series for each slice. What was wrong with them stands in public bug reports.
"""

import copy

import highdicom
import numpy as np
import pydicom
from support.spoiled_series import datasets, make_volume, set_dates

STEP = 1.5  # mm between the slices of `make_volume`


def good_slices(tmp_path, **options):
    "Twelve slices from feet to head, and the volume that they are."
    volume = make_volume(**options)
    return datasets(volume, tmp_path / 'good'), volume


def put(dataset, keyword, value):
    "Set a tag without a check of its value; None deletes it."
    if value is None:
        dataset.pop(keyword, None)
        return
    representation = pydicom.datadict.dictionary_VR(pydicom.datadict.tag_for_keyword(keyword)).split(' ')[0]
    dataset[keyword] = pydicom.DataElement(keyword, representation, value, validation_mode=0)


def put_all(slices, **tags):
    for dataset in slices:
        for keyword, value in tags.items():
            put(dataset, keyword, value)


def with_passes(slices, count=2):
    "Each slice `count` times, moved on by a part of a step: the later passes with other HU. One list per pass."
    passes = []
    for number in range(count):
        one = copy.deepcopy(slices)
        for index, dataset in enumerate(one):
            dataset.SOPInstanceUID = f'2.25.{1000 * number + index + 1}'
            x, y, z = map(float, dataset.ImagePositionPatient)
            dataset.ImagePositionPatient = [x, y, round(z + number * STEP / count, 4)]
            dataset.PixelData = (np.frombuffer(dataset.PixelData, '<u2') + number).astype('<u2').tobytes()
            dataset.InstanceNumber = 1
        passes.append(one)
    return passes


def interleaved(passes):
    return [dataset for place in zip(*passes, strict=True) for dataset in place]


def enhanced(slices, uid='2.25.9', number=1):
    "The slices as one enhanced object, made by highdicom; its frames keep the UIDs of their slices."
    slices = copy.deepcopy(slices)
    set_dates(slices)
    return highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, uid, 1, f'2.25.99{number}', number)


def frames_of(made, slices):
    "The frames of an enhanced object with the slice that each was made of."
    by_uid = {dataset.SOPInstanceUID: dataset for dataset in slices}
    for frame in made.PerFrameFunctionalGroupsSequence:
        yield frame, by_uid[frame.ConversionSourceAttributesSequence[0].ReferencedSOPInstanceUID]


def concatenation(slices, sizes, total=True):
    "An enhanced object in parts of so many frames."
    parts, begin = [], 0
    for number, size in enumerate(sizes, start=1):
        part = enhanced(slices[begin : begin + size], number=number)
        part.ConcatenationUID, part.InConcatenationNumber = '2.25.8', number
        part.ConcatenationFrameOffsetNumber = begin
        if total:
            part.InConcatenationTotalNumber = len(sizes)
        parts.append(part)
        begin += size
    return parts


def second_slab(slices, overlap):
    "The slices, of which the upper half was taken later and begins `overlap` slices lower, with other noise."
    upper = copy.deepcopy(slices[6 - overlap :])
    for index, dataset in enumerate(upper):
        dataset.SOPInstanceUID = f'2.25.{5000 + index}'
        dataset.AcquisitionNumber, dataset.AcquisitionTime = 2, '101112'
        dataset.PixelData = (np.frombuffer(dataset.PixelData, '<u2') + 3).astype('<u2').tobytes()
    put_all(slices, AcquisitionTime='101000')
    return slices[:6] + upper
