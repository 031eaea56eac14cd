"""A series is one whole acquisition in HU, or refused with what it is instead.

The situations are those of public reports (vtk-dicom#220, OHIF#4388, dcm2niix#349, medInria PR 156, PS3.17 JJJJ.4);
what is right is compared with pydicom, SimpleITK or the volume that was written.
"""

import os
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from support.right_series import (
    concatenation,
    enhanced,
    frames_of,
    good_slices,
    interleaved,
    put,
    put_all,
    second_slab,
    with_passes,
)
from support.spoiled_series import (
    SECRETS,
    datasets,
    move,
    same_world,
    save,
    tilted,
    without_identity,
)

from pe_advseg.core.errors import InputError
from pe_advseg.core.volume import Volume
from pe_advseg.scans.consistency import pass_count
from pe_advseg.scans.series import read_series
from pe_advseg.scans.write_series import write_series

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')  # pydicom's, about what is spoiled on purpose


def error_of(folder, **options):
    "The text of the refusal, which names nothing of the patient and is no longer than a screen."
    with pytest.raises(InputError) as caught:
        read_series(folder, **options)
    text = str(caught.value)
    without_identity(text, folder)
    assert caught.value.remedy and len(text) < 700
    return text


def notes_of(folder, volume, **options):
    "The notes of a series that is read as the volume."
    read = read_series(folder, **options)
    same_world(read, volume)
    without_identity(' '.join(read.notes), folder)
    return ' '.join(read.notes)


def part(volume, begin, end, step=1):
    return Volume(
        volume.hu[begin:end:step],
        (volume.spacing[0] * step, *volume.spacing[1:]),
        volume.to_patient([begin, 0, 0]),
        volume.direction,
    )


# ---- two passes in one series

TELL = {
    'AcquisitionTime': ('101000', '101112'),
    'AcquisitionDateTime': ('20000101101000.5', '20000101101112.25'),
    'ContentTime': ('101000.1', '101112.9'),
    'TemporalPositionIdentifier': (1, 2),
    'NominalPercentageOfCardiacPhase': (40, 75),
    'KVP': ('80', '140'),
    'Exposure': ('90', '45'),
    'XRayTubeCurrent': ('200', '90'),
    'ConvolutionKernel': ('B20f', 'B70f'),
    'ContrastBolusAgent': ('', 'OMNI'),
    'SliceThickness': ('1', '3'),
    'ImageOrientationPatient': ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0.0005]),
    'PixelSpacing': (['0.7', '0.8'], ['0.7001', '0.8001']),
}


@pytest.mark.parametrize('keyword', TELL)
def test_two_interleaved_passes_are_refused_whatever_tag_tells(tmp_path, keyword):
    slices, volume = good_slices(tmp_path)
    passes = with_passes(slices)
    for one, value in zip(passes, TELL[keyword], strict=True):
        put_all(one, **{keyword: value})
    text = error_of(save(interleaved(passes), tmp_path / 's'))
    assert f'its {keyword} and that of other slices alternate' in text and 'keep one' in text
    notes_of(save(passes[0], tmp_path / 'one'), volume)  # the remedy


@pytest.mark.parametrize('count', [2, 3])
@pytest.mark.parametrize('direction', [1, -1])
def test_passes_that_count_or_run_on_are_refused(tmp_path, count, direction):
    "Times and numbers that change from slice to slice, in each pass one way, the second one perhaps backwards."
    slices, volume = good_slices(tmp_path)
    for keyword in ('InstanceNumber', 'AcquisitionNumber', 'ContentTime'):
        passes = with_passes(slices, count)
        for number, one in enumerate(passes):
            for index, dataset in enumerate(one[:: direction if number else 1]):
                value = 1 + 12 * number + index
                put(dataset, keyword, f'10{number:02d}{index:02d}' if keyword == 'ContentTime' else value)
        text = error_of(save(interleaved(passes), tmp_path / keyword))
        assert f'its {keyword} and that of other slices alternate: {count} passes' in text
        notes_of(save(passes[0], tmp_path / f'one {keyword}'), volume)


def test_passes_that_each_count_from_one_are_refused(tmp_path):
    slices, volume = good_slices(tmp_path)
    passes = with_passes(slices)
    for one in passes:
        for number, dataset in enumerate(one, start=1):
            dataset.InstanceNumber = number
    assert 'its InstanceNumber and that of other slices alternate' in error_of(
        save(interleaved(passes), tmp_path / 's')
    )
    put_all(slices, InstanceNumber=7)
    assert 'InstanceNumber does not follow position' in notes_of(save(slices, tmp_path / 'one'), volume)


def test_two_phases_that_no_tag_tells_apart_are_noted_by_their_brightness(tmp_path):
    slices, volume = good_slices(tmp_path, shape=(16, 20, 24))
    passes = with_passes(slices)
    for dataset in passes[1]:
        values = np.frombuffer(dataset.PixelData, '<u2').astype(int)
        dataset.PixelData = np.where(values > 1150, (values + 1150) // 2, values).astype('<u2').tobytes()
    assert 'every second slice is brighter' in ' '.join(read_series(save(interleaved(passes), tmp_path / 's')).notes)
    whole, volume = good_slices(tmp_path / 'whole', shape=(32, 20, 24))
    assert notes_of(save(whole, tmp_path / 'one'), volume) == ''


@pytest.mark.parametrize('offset', [0, 0.2])  # mm: the slices of the second pass in the middle, or nearer to one side
def test_a_second_pass_over_half_of_the_scan_is_not_resampled_into_it(tmp_path, offset):
    slices, _ = good_slices(tmp_path)
    first, second = with_passes(slices)
    move(lambda i: [0, 0, offset])(second)
    put_all(first, ContentTime='101000')
    put_all(second, ContentTime='101112')
    text = error_of(save(first + second[:6], tmp_path / 's'), resample=True)
    assert 'its ContentTime and that of other slices alternate' in text


@pytest.mark.parametrize('told', ['TemporalPositionIndex', 'FrameAcquisitionDateTime', 'FrameAcquisitionNumber', 'KVP'])
def test_two_passes_in_an_enhanced_object_are_refused(tmp_path, told):
    slices, volume = good_slices(tmp_path)
    passes = with_passes(slices)
    made = enhanced(interleaved(passes))
    later = {dataset.SOPInstanceUID for dataset in passes[1]}
    values = dict(FrameAcquisitionDateTime=('20000101101000', '20000101101112'), KVP=(80, 140)).get(told, (1, 2))
    for frame, dataset in frames_of(made, interleaved(passes)):
        item = pydicom.Dataset()
        put(item, told, values[dataset.SOPInstanceUID in later])
        if told == 'KVP':
            frame.CTXRayDetailsSequence = [item]
        else:
            frame.FrameContentSequence = [item]
    assert 'alternate' in error_of(save([made], tmp_path / 's'))
    notes_of(save([enhanced(passes[0])], tmp_path / 'one'), volume)


@pytest.mark.parametrize(
    'values',
    [
        ['101000'] * 5 + ['101112'] * 7,  # two slabs
        [f'1010{second:02d}' for second in (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10)],  # computed two at a time
        [f'1010{second:02d}' for second in (0, 0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 9)],
        [''] * 11 + ['101000'],
        [f'{10 + second}0000' for second in range(11, -1, -1)],
    ],
    ids=['slabs', 'pairs', 'jitter', 'one-stated', 'downwards'],
)
def test_times_of_one_pass_are_no_reason_to_refuse(tmp_path, values):
    slices, volume = good_slices(tmp_path)
    for keyword in ('AcquisitionTime', 'ContentTime'):
        for dataset, value in zip(slices, values, strict=True):
            put(dataset, keyword, value)
    assert notes_of(save(slices, tmp_path / 's'), volume) == ''


def test_a_tube_current_that_is_modulated_is_no_reason_to_refuse(tmp_path):
    slices, volume = good_slices(tmp_path)
    currents = np.rint(200 + 80 * np.sin(np.arange(12)) + 9 * (np.arange(12) % 2))
    for dataset, current in zip(slices, currents, strict=True):
        put(dataset, 'XRayTubeCurrent', str(int(current)))
        put(dataset, 'Exposure', str(int(current) // 3))
    assert notes_of(save(slices, tmp_path / 's'), volume) == ''


def test_no_random_order_of_many_slices_is_taken_for_passes():
    rng = np.random.default_rng(0)
    assert {pass_count(rng.permutation(12)) for _ in range(2000)} == {1}
    assert {pass_count(rng.integers(0, 4, 40)) for _ in range(2000)} == {1}


@pytest.mark.parametrize('keyword, values', [('KVP', ('100', '120')), ('ConvolutionKernel', ('B20f', 'B70f'))])
def test_slabs_of_another_energy_or_kernel_are_noted_and_a_single_slice_is_refused(tmp_path, keyword, values):
    slices, volume = good_slices(tmp_path)
    put_all(slices[:5], **{keyword: values[0]})
    put_all(slices[5:], **{keyword: values[1]})
    assert f'2 values of {keyword}, one above the other' in notes_of(save(slices, tmp_path / 's'), volume)
    put_all(slices[:1], **{keyword: values[1]})
    assert f'its {keyword} and that of other slices alternate' in error_of(save(slices, tmp_path / 'odd'))


# ---- slabs that overlap


@pytest.mark.parametrize('by', ['AcquisitionNumber', 'AcquisitionTime'])
@pytest.mark.parametrize('overlap', [1, 2])
def test_slabs_that_overlap_by_a_slice_or_two_are_one_scan(tmp_path, overlap, by):
    slices, volume = good_slices(tmp_path)
    slices = second_slab(slices, overlap)
    if by == 'AcquisitionTime':
        put_all(slices, AcquisitionNumber=None)
    expected = volume.hu.copy()
    expected[6:] += 3
    same = Volume(expected, volume.spacing, volume.origin, volume.direction)
    notes = notes_of(save(slices, tmp_path / 's'), same)
    assert 'acquisitions overlap: kept the lower one, dropped 06.dcm' in notes


def test_phases_that_cover_the_same_part_are_no_slabs(tmp_path):
    slices, _ = good_slices(tmp_path)
    text = error_of(save(second_slab(slices, 4), tmp_path / 's'))
    assert 'shows another picture' in text and 'Two phases' in text


# ---- an enhanced CT in parts


def test_all_parts_of_a_concatenation_are_one_volume(tmp_path):
    slices, volume = good_slices(tmp_path)
    for sizes in ([6, 6], [5, 4, 3]):
        folder = save(concatenation(slices, sizes), tmp_path / str(sizes))
        read = read_series(folder)
        same_world(read, volume)
        assert sorted(source.instance_number for source in read.sources) == list(range(1, 13))
        pixels = [pydicom.dcmread(path) for path in folder.iterdir()]
        assert sum(len(dataset.pixel_array) for dataset in pixels) == len(read.hu)


@pytest.mark.parametrize('total', [True, False])
@pytest.mark.parametrize(
    'lost, words',
    [
        (0, 'is part 2 of 3 of one scan, of which part 1 is missing'),
        (1, 'is part 1 of 3 of one scan, of which part 2 is missing'),
        (2, 'is part 1 of 3 of one scan, of which part 3 is missing'),
    ],
)
def test_a_lost_part_of_a_concatenation_is_named(tmp_path, lost, words, total):
    parts = concatenation(good_slices(tmp_path)[0], [4, 4, 4], total)
    del parts[lost]
    folder = save(parts, tmp_path / 's')
    if lost == 2 and not total:
        assert read_series(folder).shape[0] == 8  # nothing says that there is more
    else:
        assert words in error_of(folder)


# ---- numbers that run in twos, and what else states the spacing


@pytest.mark.parametrize('step, words', [(2, 'runs in twos (1, 3, ...)'), (3, 'runs in threes (1, 4, ...)')])
def test_slices_left_out_evenly_are_noted(tmp_path, step, words):
    slices, volume = good_slices(tmp_path)
    notes = notes_of(save(slices[::step], tmp_path / 's'), part(volume, 0, 12, step))
    assert words in notes and f'slices of 1.5 mm every {1.5 * step:g} mm' in notes


@pytest.mark.parametrize(
    'stated, words',
    [
        (dict(SpacingBetweenSlices='1.5'), ''),
        (dict(SpacingBetweenSlices='1.51'), ''),  # 0.11 mm at the last slice
        (
            dict(SpacingBetweenSlices='3'),
            'SpacingBetweenSlices says 3 mm, positions 1.5 mm: 16.5 mm at the last slice; positions count',
        ),
        (dict(SpacingBetweenSlices='1.6'), '1.1 mm at the last slice'),
        (dict(SpacingBetweenSlices='-1.5'), ''),  # of no meaning in CT
        (dict(SpacingBetweenSlices='nan'), ''),
        (dict(SliceThickness='1'), ''),
        (dict(SliceThickness='0.6'), 'slices of 0.6 mm every 1.5 mm'),
        (dict(SliceThickness='5'), ''),  # they overlap
        (dict(ReconstructionDiameter='38.4'), ''),  # 48 columns of 0.8 mm
        (dict(ReconstructionDiameter='500'), ''),  # cropped
        (dict(ReconstructionDiameter='25'), 'ReconstructionDiameter says 25 mm, columns x PixelSpacing 38.4 mm'),
    ],
)
def test_two_statements_of_one_length_are_compared_and_positions_count(tmp_path, stated, words):
    slices, volume = good_slices(tmp_path)
    put_all(slices, **stated)
    notes = notes_of(save(slices, tmp_path / 's'), volume)
    assert words in notes if words else notes == ''


# ---- what is no HU

DERIVED = ['DERIVED', 'PRIMARY', 'AXIAL']
MAPS = {
    'iodine-unit-US': (dict(ImageType=[*DERIVED, 'MAT_SPECIFIC'], RescaleType='US'), 'spectral map of a material'),
    'iodine-no-unit': (dict(ImageType=[*DERIVED, 'MAT_SPECIFIC'], RescaleType=None), 'spectral map of a material'),
    'iodine-in-HU': (dict(ImageType=[*DERIVED, 'MAT_SPECIFIC']), 'spectral map of a material'),
    'vnc-HU_MOD': (
        dict(ImageType=[*DERIVED, 'MAT_REMOVED'], RescaleType='HU_MOD'),
        'spectral picture without a material',
    ),
    'vnc-in-words': (dict(ImageType=[*DERIVED, 'CT_SOM7 VNC']), 'spectral picture without a material'),
    'only-HU_MOD': (dict(RescaleType='HU_MOD'), 'modified HU'),
    'z-effective': (dict(ImageType=[*DERIVED, 'EFF_ATOMIC_NUM']), 'map of the effective atomic number'),
    'electron-density': (dict(ImageType=[*DERIVED, 'ELECTRON_DENSITY']), 'map of the electron density'),
    'fraction': (dict(ImageType=[*DERIVED, 'MAT_FRACTIONAL']), 'spectral map of a material'),
    'iodine-before-the-standard': (dict(ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL', 'IODINE_MAP']), 'spectral map'),
    'max-ip': (dict(ImageType=['DERIVED', 'SECONDARY', 'MAX_IP']), 'projection of highest or lowest'),
    'perfusion': (dict(ImageType=['DERIVED', 'SECONDARY', 'PERFUSION', 'CBF']), 'perfusion map'),
    'mip': (dict(ImageType=['DERIVED', 'SECONDARY', 'REFORMATTED', 'MIP']), 'projection of highest or lowest'),
    'mip-of-siemens': (dict(ImageType=['DERIVED', 'SECONDARY', 'AXIAL', 'CT_SOM5 MIP']), 'projection of highest'),
    'minip': (dict(ImageType=['DERIVED', 'SECONDARY', 'MINIMUM']), 'projection of highest or lowest'),
    'difference': (dict(ImageType=[*DERIVED, 'SUBTRACTION']), 'picture computed from several'),
    'perfusion-in-hu': (dict(ImageType=[*DERIVED, 'PERFUSION']), 'computed picture (perfusion)'),
    'calcium': (dict(ImageType=[*DERIVED, 'CALCIUM_SUPPRESSED']), 'computed picture (suppress)'),
    'fat': (dict(ImageType=[*DERIVED, 'FAT_FRACTION']), 'computed picture (fraction)'),
    'original-z': (dict(ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL', 'EFF_Z'], RescaleType='US'), 'atomic number'),
    'rendering': (dict(ImageType=['DERIVED', 'SECONDARY', 'VRT']), 'rendering or page of text'),
    'scout': (dict(ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER']), 'localizer'),
    'surview': (dict(ImageType=['DERIVED', 'SECONDARY', 'REF_SURVIEW']), 'localizer'),
}


@pytest.mark.parametrize('name', MAPS)
def test_what_is_no_hu_is_named_and_refused(tmp_path, name):
    changed, kind = MAPS[name]
    slices, volume = good_slices(tmp_path)
    put_all(slices, MultienergyCTAcquisition='YES', **changed)
    folder = save(slices, tmp_path / 's')
    text = error_of(folder)
    assert f'{kind}' in text and '00.dcm, 01.dcm, 02.dcm and 9 more' in text
    assert kind in error_of(folder, assume_hu=True)
    put_all(slices, SeriesInstanceUID='2.25.71')  # beside the conventional series it is passed over
    both = save(slices, tmp_path / 'both' / 'map').parent
    write_series(volume, both / 'conventional', SECRETS[0])
    assert kind in notes_of(both, volume)


TEXTS = {
    'its SeriesDescription': dict(SeriesDescription='Iodine (no water) 100*mg/ml'),
    'its DerivationDescription': dict(ImageType=DERIVED, DerivationDescription='Maximum intensity projection'),
    'its ImageComments': dict(ImageComments='VNC, Z-eff'),
    'comes from several energies': dict(MultienergyCTAcquisition='YES', RescaleType=None),
    'is a derived picture of an unknown kind': dict(ImageType=[*DERIVED, 'NEW_MAP'], RescaleType='US'),
}


@pytest.mark.parametrize('words', TEXTS)
def test_what_may_be_no_hu_is_refused_until_the_user_knows_better(tmp_path, words):
    slices, volume = good_slices(tmp_path)
    put_all(slices, **TEXTS[words])
    folder = save(slices, tmp_path / 's')
    text = error_of(folder)
    assert words in text and 'read it with assume_hu=True' in text
    notes_of(folder, volume, assume_hu=True)


GOOD = {
    'virtual-monoenergetic': dict(ImageType=[*DERIVED, 'VMI'], MultienergyCTAcquisition='YES'),
    'conventional-of-two-energies': dict(MultienergyCTAcquisition='YES'),
    'vendor-words': dict(ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL', 'CT_SOM7 SPI DUAL', 'DET_AB']),
    'added': dict(ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL', 'ADD'], RescaleType=None),
    'lossy': dict(ImageType=['DERIVED', 'SECONDARY', 'AXIAL', 'JP2K LOSSY'], RescaleType=None),
    'mean-slab': dict(ImageType=['DERIVED', 'SECONDARY', 'REFORMATTED', 'AVERAGE'], RescaleType=None),
    'no-image-type': dict(ImageType=None, RescaleType=None),
    'derived-in-hu': dict(ImageType=[*DERIVED, 'NEW_WORD']),
    'source-of-a-map': dict(ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL', 'PERFUSION']),
    'contrast-medium': dict(SeriesDescription='PE iodine dense bolus, Omnipaque iodine 350 mg'),
    'unit-in-words': dict(RescaleType='Hounsfield Units'),
    'unit-in-small': dict(RescaleType='hu'),
    'words-of-a-protocol': dict(SeriesDescription='CT perfusion pulmonary angio, MIP later, iodine 350'),
}


@pytest.mark.parametrize('name', GOOD)
def test_pictures_in_hu_are_read_whatever_their_vendor_calls_them(tmp_path, name):
    slices, volume = good_slices(tmp_path)
    put_all(slices, **GOOD[name])
    notes = notes_of(save(slices, tmp_path / 's'), volume)
    assert ('monoenergetic' in notes) == (name == 'virtual-monoenergetic')
    assert ('mean of several' in notes) == (name == 'mean-slab')


def test_frames_that_are_no_hu_are_refused(tmp_path):
    made = enhanced(good_slices(tmp_path)[0])
    for frame in made.PerFrameFunctionalGroupsSequence:
        item = pydicom.Dataset()
        item.FrameType = [*DERIVED, 'MAT_SPECIFIC']
        frame.CTImageFrameTypeSequence = [item]
    made.pop('ImageType', None)
    assert 'spectral map of a material' in error_of(save([made], tmp_path / 's'))


# ---- choosing among series


def test_a_number_is_the_number_of_the_printed_list(tmp_path):
    slices, volume = good_slices(tmp_path)
    put_all(slices, SeriesInstanceUID='1.2.840.77.2')
    save(slices, tmp_path / 's')
    other = Volume(volume.hu + 1, volume.spacing, volume.origin, volume.direction)
    second = datasets(other, tmp_path / 'other')
    put_all(second, SeriesInstanceUID='1.2.840.77.1')
    save(second, tmp_path / 's' / 'z')
    listed = dict(re.findall(r'(\d+): 12 slices[^;)]*UID \.\.\.([0-9.]+)', error_of(tmp_path / 's')))
    assert listed == {'1': '1.2.840.77.2', '2': '1.2.840.77.1'}
    for wanted, expected in ((1, volume), ('2', other), ('1.2.840.77.1', other), ('77.2', volume), ('.1', other)):
        notes_of(tmp_path / 's', expected, series=wanted)
    for wanted in (0, 3, '5', '840', '.7', ''):
        assert f'series={wanted} fits 0 of its series' in error_of(tmp_path / 's', series=wanted)
    for number in (1, 2):
        put_all(slices, SeriesInstanceUID=f'1.2.{number}.77.5')
        save(slices, tmp_path / 'alike' / str(number))
    assert 'series=77.5 fits 2 of its series' in error_of(tmp_path / 'alike', series='77.5')


@pytest.mark.parametrize('count', [12, 60])
def test_a_series_for_each_slice_is_one_line_and_can_be_read_as_one(tmp_path, count):
    slices, volume = good_slices(tmp_path, shape=(count, 6, 8))
    for number, dataset in enumerate(slices):
        dataset.SeriesInstanceUID = f'2.25.{700 + number}'
    folder = save(slices, tmp_path / 's')
    text = error_of(folder)
    assert f'holds {count} CT series of one slice each' in text and len(text) < 150
    assert f'{count} series read as one' in notes_of(folder, volume, series='all')


def test_the_list_of_many_series_is_bounded_and_shows_the_longest(tmp_path):
    slices, _ = good_slices(tmp_path)
    for number in range(12):
        put_all(slices, SeriesInstanceUID=f'2.25.{700 + number}')
        save(slices[: 12 if number in (3, 10) else 1], tmp_path / 's' / f'{number:02d}')
    text = error_of(tmp_path / 's')
    assert '4: 12 slices' in text and '11: 12 slices' in text and 'and 6 with no more slices' in text
    assert read_series(tmp_path / 's', series=11).sources[0].file == '10/00.dcm'


def test_slices_that_do_not_fit_together_are_not_read_as_one(tmp_path):
    slices, volume = good_slices(tmp_path)
    write_series(volume, tmp_path / 's' / 'a', 'P1', series_description='a')
    write_series(Volume(volume.hu + 1, volume.spacing, volume.origin, volume.direction), tmp_path / 's' / 'b', 'P1')
    assert 'shows another picture' in error_of(tmp_path / 's', series='all')
    passes = with_passes(slices)
    put_all(passes[0], SeriesInstanceUID='2.25.1')
    put_all(passes[1], SeriesInstanceUID='2.25.2')
    save(interleaved(passes), tmp_path / 'passes')
    assert 'SeriesInstanceUID and that of other slices alternate' in error_of(tmp_path / 'passes', series='all')
    put_all(passes[0][:1], PatientID='P9')
    save(passes[0], tmp_path / 'other')
    assert 'its PatientID differs' in error_of(tmp_path / 'other', series='all')


REMEDIED = {
    'several series': lambda s: put_all(s[6:], SeriesInstanceUID='2.25.5'),
    'a series for each slice': lambda s: (
        [put(d, 'SeriesInstanceUID', f'2.25.{i}0000') for i, d in enumerate(s)] and None
    ),
    'no rescale values': lambda s: put_all(s, RescaleSlope=None, RescaleIntercept=None),
    'no air': lambda s: put_all(s, RescaleIntercept='900'),
    'a derived picture': lambda s: put_all(s, ImageType=[*DERIVED, 'NEW'], RescaleType=None),
    'a description': lambda s: put_all(s, SeriesDescription='VNC'),
    'tilted': tilted(15),
    'sheared': move(lambda i: [0, 0.3 * i, 0]),
    'uneven': move(lambda i: [0, 0, max(0, i - 6) * 0.5]),
}


@pytest.mark.parametrize('name', REMEDIED)
def test_every_remedy_that_names_an_option_works(tmp_path, name):
    slices, _ = good_slices(tmp_path)
    REMEDIED[name](slices)
    folder = save(slices, tmp_path / 's')
    options = re.findall(r"(series|assume_hu|resample)=('?\w+'?)", error_of(folder))
    assert len(options) == 1
    option, value = options[0]
    read = read_series(folder, **{option: {'True': True}.get(value, value.strip("'"))})
    if option == 'resample':
        assert any('resampled' in note for note in read.notes)
    else:
        assert len(read.hu) == (6 if name == 'several series' else 12)


# ---- tags that say nothing


def test_a_frame_of_reference_for_every_slice_says_nothing(tmp_path):
    slices, volume = good_slices(tmp_path)
    for number, dataset in enumerate(slices):
        dataset.FrameOfReferenceUID = f'2.25.{900 + number}'
    note = 'FrameOfReferenceUID is another one in every slice: not used'
    assert notes_of(save(slices, tmp_path / 's'), volume) == note
    assert note in notes_of(save(slices + slices, tmp_path / 'twice'), volume)
    put_all(slices[6:], FrameOfReferenceUID='2.25.8')
    put_all(slices[:6], FrameOfReferenceUID='2.25.7')
    assert 'FrameOfReferenceUID differs' in error_of(save(slices, tmp_path / 'two'))


def test_the_real_series_with_a_frame_of_reference_for_every_slice_is_read():
    root = Path(__file__).resolve().parent.parent.parent / 'shared' / 'data'
    folder = Path(os.environ.get('PE_ADVSEG_UNLABELLED', root / 'unlabelled')) / 'LIDC_0001'
    if not folder.is_dir():
        pytest.skip('the real scan lies in ../shared/data/unlabelled, which this checkout does not have')
    read = read_series(folder)
    assert any('FrameOfReferenceUID' in note for note in read.notes)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(read.hu, SimpleITK.GetArrayFromImage(image))
    np.testing.assert_allclose(read.origin, image.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(read.spacing[::-1], image.GetSpacing(), atol=1e-3)


@pytest.mark.parametrize('value', [b'nan ', b'none', b'inf ', b'0,5 '])
def test_a_tilt_that_is_no_number_does_not_refuse_an_upright_series(tmp_path, value):
    slices, volume = good_slices(tmp_path)
    put_all(slices, GantryDetectorTilt='7654')
    folder = save(slices, tmp_path / 's')
    tilted(15)(slices)
    for place in (folder, save(slices, tmp_path / 'tilted')):
        for path in place.iterdir():
            path.write_bytes(path.read_bytes().replace(b'7654', value))
    assert 'GantryDetectorTilt is no number in 12 slices' in notes_of(folder, volume)
    assert 'gantry tilt' in error_of(tmp_path / 'tilted')  # the positions tell


def test_every_slice_twice_gives_one_note(tmp_path):
    slices, volume = good_slices(tmp_path)
    notes = notes_of(save(slices + slices, tmp_path / 's'), volume)
    assert notes == 'dropped 12 files that repeat others: 12.dcm, 13.dcm, 14.dcm and 9 more'


def test_a_folder_of_linked_folders_says_that_links_are_not_followed(tmp_path):
    _, volume = good_slices(tmp_path)
    write_series(volume, tmp_path / 'scan', 'P1')
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links' / 'patient').symlink_to(tmp_path / 'scan')
    text = error_of(tmp_path / 'links')
    assert 'link to a folder, not followed' in text and 'Give the folder that a link points to' in text
    same_world(read_series(tmp_path / 'links' / 'patient'), volume)  # the remedy
