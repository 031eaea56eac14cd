"""Every DICOM file that is written conforms, and comes back as the same mask in the same place.

It betrays nobody, and is whole or not there. Tools of others check this: dciodvfy (dicom3tools) for conformance;
highdicom, dcmqi, SimpleITK with scikit-image, and rt-utils as readers.
"""

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.sr.codedict import codes
from skimage.draw import polygon2mask
from support.dicom_readers import CASES, by_dcmqi, by_highdicom, by_polygons, emboli, make_volume, number_of, written

from pe_advseg.core.errors import InputError
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.read_study import read_study
from pe_advseg.evaluation.emboli import number_emboli
from pe_advseg.phantom.patient_files import FUMPE_BLANKS
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.scans.contours import contours
from pe_advseg.scans.patient_identity import PATIENT_TAGS
from pe_advseg.scans.rtstruct import write_rtstruct
from pe_advseg.scans.seg_read import read_seg_mask
from pe_advseg.scans.seg_write import write_segmentation
from pe_advseg.scans.segments import NO_FINDING, RESEARCH
from pe_advseg.scans.series import read_series
from pe_advseg.scans.source_headers import SLICE_TAGS, has_slice_files
from pe_advseg.scans.source_series import source_series
from pe_advseg.scans.volume_files import read_volume

FUMPE = Path(__file__).resolve().parent.parent.parent / 'shared' / 'data' / 'FUMPE'
PLANTED = 'PLANTED'
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:pydicom')  # hostile headers are written on purpose


every_case = pytest.mark.parametrize('case', CASES)


# ---- conformance


@pytest.fixture
def conforms():
    "dciodvfy finds no error; what it warns of is returned."
    if not shutil.which('dciodvfy'):
        pytest.skip("dciodvfy, of Debian's dicom3tools, is not installed")

    def check(path):
        found = subprocess.run(['dciodvfy', str(path)], capture_output=True, text=True, errors='replace', timeout=120)
        said = (found.stdout + found.stderr).splitlines()
        assert found.returncode == 0 and not [line for line in said if 'Error' in line], '\n'.join(said[:40])
        return [
            line for line in said if 'Warning' in line and 'DICOMDIR' not in line and 'Retired Person Name' not in line
        ]  # what the source has

    return check


HEADERS = {
    'as written': {},
    'FUMPE': FUMPE_BLANKS,
    'anonymised': dict.fromkeys(
        (
            *PATIENT_TAGS,
            'StudyInstanceUID',
            'SeriesInstanceUID',
            'FrameOfReferenceUID',
            'Manufacturer',
            'SliceThickness',
        )
    ),
    'hostile': {
        'SpecificCharacterSet': 'ISO_IR 192',
        'PatientName': 'a^b^c^d^e^f=g=h=i',
        'PatientID': 'x' * 300,
        'PatientSex': 'male',
        'PatientBirthDate': '1960',
        'StudyDate': '20261399',
        'StudyTime': 'noon',
        'StudyID': '../../x' * 9,
        'AccessionNumber': 'a\0b\n',
        'ReferringPhysicianName': '\u202egpj',
        'StudyInstanceUID': '1.2.' + '3' * 70,
        'FrameOfReferenceUID': 'none of it',
    },
    'lossy': {
        'LossyImageCompression': '01',
        'LossyImageCompressionRatio': '10',
        'LossyImageCompressionMethod': 'ISO_15444_1',
    },
    'old dates': {
        'StudyDate': '2020.01.02',
        'PatientBirthDate': '19600102-19700102',
        'StudyTime': '10:15:00',
        'PatientSex': 'M',
    },
    'lossy, untold': {'LossyImageCompression': '01'},
}
WAYS = {
    'plain': {},
    'pseudonym': dict(pseudonym='case7'),
    'corrected': dict(reviewer='Lee^Ann', statement='Synthetic training, research only, not for diagnosis'),
    'by hand': dict(reviewer='Ann Lee', algorithm=None),
    'hostile reviewer': dict(
        reviewer='=a\\b^c^d^e^f^g\0' + 'x' * 90, algorithm='a\\b\0' + 'y' * 90, statement='s' * 200
    ),
}


@pytest.mark.parametrize('header', HEADERS)
def test_every_seg_and_rtstruct_conforms(tmp_path, conforms, header):
    _, _, scan, mask = written(tmp_path / 'scan', header=HEADERS[header])
    for way, options in WAYS.items():
        for number, drawn in enumerate((mask, mask * 0, mask > 0)):
            seg = write_segmentation(tmp_path / f'{way}{number}.dcm', drawn, scan, tmp_path / 'scan', **options)
            rtstruct = write_rtstruct(tmp_path / f'{way}{number}-rt.dcm', drawn, scan, tmp_path / 'scan', **options)
            assert conforms(seg) == conforms(rtstruct) == []
    history = write_segmentation(
        tmp_path / 'history.dcm',
        mask,
        scan,
        tmp_path / 'scan',
        per_embolus=False,
        reviewer='Lee^Ann',
        history='began as run a\\b\0\n' + 'h' * 2000,
    )
    assert conforms(history) == []


@pytest.mark.parametrize('value', [b'\xff\xfe\\..\\', b'^=^=^=^=^^^^^^', b'9' * 400, b'\x1b$B'])
def test_bytes_that_are_no_values(tmp_path, conforms, value):
    "In every tag that is looked at; the scan may be refused, by name of the file."
    refused = set()
    for keyword in (*PATIENT_TAGS, *SLICE_TAGS, 'SpecificCharacterSet'):
        folder, tag = tmp_path / keyword, pydicom.tag.Tag(keyword)
        _, _, scan, mask = written(folder, header={'LossyImageCompression': '01'})
        for path in sorted(folder.iterdir()):
            dataset = pydicom.dcmread(path)
            dataset._dict[tag] = pydicom.dataelem.RawDataElement(
                tag, pydicom.datadict.dictionary_VR(tag), len(value), value, 0, False, True
            )
            dataset.save_as(path)
        try:
            scan = read_series(folder)
        except InputError:
            refused.add(keyword)
            continue
        for write in (write_segmentation, write_rtstruct):
            conforms(write(tmp_path / 'out.dcm', mask, scan, folder))
    assert refused <= {'SOPClassUID', 'SOPInstanceUID', 'SeriesInstanceUID', 'Rows', 'Columns', 'ImagePositionPatient'}


def test_every_series_conforms(tmp_path, conforms):
    for case in CASES:
        written(tmp_path / case, case)
    write_hospital(tmp_path / 'hospital', 'harbour', 1, (12, 48, 48), mask='nifti', workers=1, progress=False)
    source_series(make_volume(), tmp_path / 'source')
    source_series(make_volume('oblique'), tmp_path / 'pseudonym', pseudonym='case7')
    files = [
        next(path for path in sorted(folder.rglob('*.dcm')) if path.is_file())
        for folder in tmp_path.iterdir()
        if folder.is_dir()
    ]
    assert len(files) == len(CASES) + 3
    for path in files:
        assert conforms(path) == [], path.parent.name


def test_planted_faults_are_found(tmp_path, conforms):
    _, _, scan, mask = written(tmp_path / 'scan')
    faults = [
        (
            write_segmentation(tmp_path / 'seg.dcm', mask, scan, tmp_path / 'scan'),
            ('ContentLabel', 'SegmentSequence', 'PatientID', 'ReferencedSeriesSequence'),
        ),
        (
            write_rtstruct(tmp_path / 'rt.dcm', mask, scan, tmp_path / 'scan'),
            ('StructureSetLabel', 'ROIContourSequence', 'PatientID'),
        ),
        (tmp_path / 'scan' / scan.sources[0].file, ('Rows', 'BodyPartExamined', 'ImagePositionPatient')),
    ]
    for path, keywords in faults:
        conforms(path)
        for keyword in keywords:
            dataset = pydicom.dcmread(path)
            delattr(dataset, keyword)
            dataset.save_as(tmp_path / 'spoiled.dcm')
            with pytest.raises(AssertionError):
                conforms(tmp_path / 'spoiled.dcm')


# ---- the same mask in the same place


def test_the_phantom_has_no_symmetry():
    mask = emboli()
    for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        assert (np.flip(mask, axes) != mask).any()


@every_case
def test_seg_comes_back(tmp_path, case):
    volume, wanted, scan, mask = written(tmp_path / 'scan', case)
    path = write_segmentation(tmp_path / 'seg.dcm', mask, scan, tmp_path / 'scan')
    assert (by_highdicom(path, volume) == wanted).all()
    assert (read_seg_mask(path, scan, 'seg')[0] == (mask > 0)).all()
    by_slice = highdicom.seg.segread(path).get_pixels_by_source_instance(
        [source.instance_uid for source in scan.sources],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert (np.array([0, *np.unique(mask)[1:]])[by_slice] == mask).all()


@every_case
def test_seg_comes_back_by_the_reader_of_3d_slicer(tmp_path, case):
    volume, wanted, scan, mask = written(tmp_path / 'scan', case)
    assert (
        by_dcmqi(write_segmentation(tmp_path / 'seg.dcm', mask, scan, tmp_path / 'scan'), volume, tmp_path / 'q')
        == wanted
    ).all()


@every_case
def test_rtstruct_comes_back(tmp_path, case):
    volume, wanted, scan, mask = written(tmp_path / 'scan', case)
    assert (
        by_polygons(write_rtstruct(tmp_path / 'rt.dcm', mask, scan, tmp_path / 'scan'), tmp_path / 'scan', volume)
        == wanted
    ).all()


@every_case
def test_rtstruct_comes_back_by_rt_utils(tmp_path, case):
    "Which rounds corners to whole pixels. Its pictures must be square, its pixels too."
    rt_utils = pytest.importorskip(
        'rt_utils', reason='rt-utils is not installed, or its OpenCV lacks libGL', exc_type=ImportError
    )
    volume, wanted, scan, mask = written(tmp_path / 'scan', case, spacing=(1.5, 0.8, 0.8), shape=(9, 24, 24))
    read = rt_utils.RTStructBuilder.create_from(
        str(tmp_path / 'scan'), str(write_rtstruct(tmp_path / 'rt.dcm', mask, scan, tmp_path / 'scan'))
    )
    header = {str(d.SOPInstanceUID): z for z, d in enumerate(read.series_data)}
    order = [header[source.instance_uid] for source in scan.sources]
    grid = sum(
        read.get_roi_mask_by_name(name).transpose(2, 0, 1)[order].astype(int) * number_of(name)
        for name in read.get_roi_names()
    )
    assert (grid == mask).all()


def test_any_shape_comes_back_from_contours():
    random = np.random.default_rng(0)
    for share in np.linspace(0.02, 0.98, 25):
        for _ in range(8):
            mask = random.random(random.integers(1, 24, 2)) < share
            again = np.zeros_like(mask)
            for polygon in contours(mask):
                again ^= polygon2mask(mask.shape, polygon)
            assert (again == mask).all()


def test_any_shape_comes_back_from_rounded_corners():
    "OpenCV as rt-utils uses it: corners rounded to whole pixels, a slice's polygons filled at once, borders drawn."
    cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed, or lacks libGL', exc_type=ImportError)
    random = np.random.default_rng(0)
    for share in np.linspace(0.02, 0.98, 25):
        for _ in range(8):
            mask = random.random(random.integers(1, 24, 2)) < share
            again = np.zeros(mask.shape, np.uint8)
            cv2.fillPoly(again, [np.around(polygon[:, ::-1]).astype(np.int32) for polygon in contours(mask)], 1)
            assert (again == mask).all()


def test_rings_in_rings_have_their_area():
    rings = np.zeros((21, 21), bool)
    for n in range(0, 10, 2):
        rings[n : 21 - n, n : 21 - n] = True
        rings[n + 1 : 20 - n, n + 1 : 20 - n] = False
    assert len(contours(rings)) == 5

    def area(p):  # the shoelace formula
        return abs(np.dot(p[:, 0], np.roll(p[:, 1], 1)) - np.dot(p[:, 1], np.roll(p[:, 0], 1))) / 2

    assert sum(map(area, contours(rings))) == pytest.approx(rings.sum(), rel=0.06)


# ---- what they say


@pytest.mark.parametrize(
    'options, kind',
    [
        ({}, 'AUTOMATIC'),
        (dict(reviewer='Lee^Ann'), 'SEMIAUTOMATIC'),
        (dict(reviewer='Lee^Ann', algorithm=None), 'MANUAL'),
    ],
)
def test_who_drew_it(tmp_path, options, kind):
    _, _, scan, mask = written(tmp_path / 'scan')
    seg = pydicom.dcmread(
        write_segmentation(
            tmp_path / 'seg.dcm',
            mask,
            scan,
            tmp_path / 'scan',
            history='run demo' if kind == 'SEMIAUTOMATIC' else '',
            **options,
        )
    )
    rtstruct = pydicom.dcmread(write_rtstruct(tmp_path / 'rt.dcm', mask, scan, tmp_path / 'scan', **options))
    assert (
        {segment.SegmentAlgorithmType for segment in seg.SegmentSequence}
        == {region.ROIGenerationAlgorithm for region in rtstruct.StructureSetROISequence}
        == {kind}
    )
    assert (
        str(seg.get('ContentCreatorName', ''))
        == str(rtstruct.RTROIObservationsSequence[0].ROIInterpreter)
        == options.get('reviewer', '')
    )
    assert ('by hand' in seg.SeriesDescription) == ('by hand' in rtstruct.SeriesDescription) == (kind != 'AUTOMATIC')

    def places(dataset):
        elements = [element for element in dataset.iterall() if element.VR != 'SQ']
        return [element.keyword for element in elements if 'Lee^Ann' in str(element.value)]

    assert (places(seg), {*places(rtstruct)}) == (
        (['ContentCreatorName'], {'ROIInterpreter'}) if options else ([], set())
    )
    equipment = [
        item
        for item in seg.ContributingEquipmentSequence
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == codes.DCM.ModifyingEquipment.value
    ]
    assert [item.ContributionDescription for item in equipment] == {
        'AUTOMATIC': [],
        'SEMIAUTOMATIC': ['run demo'],
        'MANUAL': ['manual'],
    }[kind]
    assert all(
        ('SegmentationAlgorithmIdentificationSequence' in segment) == (kind != 'MANUAL')
        for segment in seg.SegmentSequence
    )


@pytest.mark.parametrize('header', HEADERS)
def test_every_slice_is_referred_to_and_every_embolus_has_its_identity(tmp_path, header):
    _, _, scan, mask = written(tmp_path / 'scan', header=HEADERS[header])
    for drawn in (mask, mask * 0):
        seg = pydicom.dcmread(write_segmentation(tmp_path / 'seg.dcm', drawn, scan, tmp_path / 'scan'))
        rtstruct = pydicom.dcmread(write_rtstruct(tmp_path / 'rt.dcm', drawn, scan, tmp_path / 'scan'))
        (study,) = rtstruct.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
        (series,) = study.RTReferencedSeriesSequence
        assert [item.ReferencedSOPInstanceUID for item in series.ContourImageSequence] == [
            source.instance_uid for source in scan.sources
        ]
        assert {
            item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        } == {source.instance_uid for source in scan.sources}
        assert (
            seg.StudyInstanceUID == rtstruct.StudyInstanceUID
            and seg.FrameOfReferenceUID == rtstruct.FrameOfReferenceUID
            and series.SeriesInstanceUID == seg.ReferencedSeriesSequence[0].SeriesInstanceUID
        )
        labels = [f'pulmonary embolism {n}' for n in np.unique(drawn)[1:]] or [NO_FINDING]
        assert (
            [segment.SegmentLabel for segment in seg.SegmentSequence]
            == [region.ROIName for region in rtstruct.StructureSetROISequence]
            == labels
        )
        assert seg.ContentDescription == rtstruct.StructureSetDescription == RESEARCH
        assert (
            len({segment.TrackingUID for segment in seg.SegmentSequence})
            == len({str(segment.TrackingID) for segment in seg.SegmentSequence})
            == len(labels)
        )
        for segment in seg.SegmentSequence:
            for sequence, listed in (
                (segment.SegmentedPropertyCategoryCodeSequence, codes.cid7150.MorphologicallyAbnormalStructure),
                (
                    segment.SegmentedPropertyTypeCodeSequence,
                    codes.cid7159.Embolus if drawn.any() else codes.SCT.NoThrombus,
                ),
                (segment.AnatomicRegionSequence, codes.cid4.PulmonaryArtery),
            ):
                code = sequence[0]
                assert (code.CodeValue, code.CodingSchemeDesignator) == (listed.value, listed.scheme_designator)
    assert (
        'ContourSequence' not in rtstruct.ROIContourSequence[0]
        and not pydicom.dcmread(tmp_path / 'seg.dcm').pixel_array.any()
    )


# ---- a scan without a file per slice


def other_sources(place):
    "NIfTI, NRRD, many frames in one file, resampled, and an array that runs downwards."
    volume = make_volume('oblique')
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing[::-1])
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction[:, ::-1].ravel())
    for name in ('scan.nii.gz', 'scan.nrrd'):
        SimpleITK.WriteImage(image, str(place / name))
        yield name, read_volume(place / name)
    _, _, scan, _ = written(place / 'series')
    yield (
        'frames',
        dataclasses.replace(scan, sources=[dataclasses.replace(source, file='all.dcm') for source in scan.sources]),
    )
    yield 'downwards', dataclasses.replace(make_volume('slices downwards'))
    tilted = place / 'tilted'
    written(tilted, shape=(9, 40, 22))
    for path in tilted.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient[1] += 0.2 * (dataset.InstanceNumber - 1)
        dataset.save_as(path)
    yield 'resampled', read_series(tilted, resample=True)


def test_a_scan_without_slice_files_gets_some(tmp_path, conforms):
    for name, volume in other_sources(tmp_path):
        assert not has_slice_files(volume), name
        scan = tmp_path / f'{name}-series'
        with_files = source_series(volume, scan)
        assert (
            has_slice_files(with_files)
            and (with_files.hu == volume.hu).all()
            and (with_files.affine() == volume.affine()).all()
        )
        for source in with_files.sources:
            assert conforms(scan / source.file) == []
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(
            reader.GetGDCMSeriesFileNames(str(scan))
        )  # another reader sees the same value at the same place
        image = reader.Execute()
        index = np.argwhere(np.ones(volume.shape))
        values = [
            image[image.TransformPhysicalPointToIndex(tuple(float(v) for v in point))]
            for point in volume.to_patient(index)
        ]
        assert values == volume.hu.ravel().tolist(), name
        again = read_series(scan)
        assert np.allclose(
            sorted([again.to_patient([0, 0, 0])[2], again.to_patient([len(again.hu) - 1, 0, 0])[2]]),
            sorted([volume.to_patient([0, 0, 0])[2], volume.to_patient([len(volume.hu) - 1, 0, 0])[2]]),
            atol=1e-3,
        )
        mask = np.zeros(volume.shape, np.int64)
        mask[1:3, 4:9, 3] = 2
        mask[3, 5, 6:12] = 7
        seg = write_segmentation(tmp_path / f'{name}.dcm', mask, with_files, scan)
        rtstruct = write_rtstruct(tmp_path / f'{name}-rt.dcm', mask, with_files, scan)
        assert conforms(seg) == conforms(rtstruct) == []
        assert (by_highdicom(seg, volume) == mask).all() and (by_polygons(rtstruct, scan, volume) == mask).all(), name


@pytest.mark.parametrize('off', [1e-7, 1e-4, 5e-4, 9e-4])
def test_axes_that_are_not_quite_perpendicular(tmp_path, conforms, off):
    "A `Volume` may be a thousandth off, DICOM's axes may not: the far corner moves by less than a third of a pixel."
    volume, mask = make_volume('oblique'), emboli()
    volume = dataclasses.replace(volume, direction=volume.direction + off * volume.direction[:, [1, 2, 0]] * [0, 1, 0])
    scan = source_series(volume, tmp_path / 'scan')
    seg, rtstruct = (
        write_segmentation(tmp_path / 'seg.dcm', mask, scan, tmp_path / 'scan'),
        write_rtstruct(tmp_path / 'rt.dcm', mask, scan, tmp_path / 'scan'),
    )
    assert conforms(seg) == conforms(rtstruct) == conforms(tmp_path / 'scan' / scan.sources[0].file) == []
    assert (by_highdicom(seg, volume, 0.3) == mask).all() and (read_seg_mask(seg, scan, 'seg')[0] == (mask > 0)).all()
    assert (by_polygons(rtstruct, tmp_path / 'scan', read_series(tmp_path / 'scan')) == mask).all()


def test_a_source_series_is_always_the_same_and_nobodys(tmp_path):
    volume, bytes_of = make_volume(), lambda folder: [path.read_bytes() for path in sorted(folder.iterdir())]
    folders = [tmp_path / name for name in 'abcd']
    source_series(volume, folders[0])
    source_series(volume, folders[1])
    source_series(volume, folders[2], pseudonym='case7')
    source_series(dataclasses.replace(volume, origin=(0, 0, 0)), folders[3])
    assert bytes_of(folders[0]) == bytes_of(folders[1])
    headers = [pydicom.dcmread(next(folder.iterdir())) for folder in folders]
    assert (
        len({header.SeriesInstanceUID for header in headers}) == 3
        and len({header.FrameOfReferenceUID for header in headers}) == 3
    )
    assert headers[0].PatientID.startswith('study-') and headers[2].PatientID == 'case7'
    with pytest.raises(InputError):
        source_series(volume, folders[0])


# ---- who the patient is


def test_names_are_where_dicom_demands_them_and_nowhere_else(tmp_path):
    where = {'PatientName', 'PatientID', 'StudyID', 'AccessionNumber', 'ReferringPhysicianName'}
    header = dict.fromkeys(
        (
            *where,
            'StudyDescription',
            'SeriesDescription',
            'InstitutionName',
            'OperatorsName',
            'ProtocolName',
            'OtherPatientNames',
            'PatientComments',
            'StationName',
            'DeviceSerialNumber',
        ),
        PLANTED,
    )
    header |= {'PatientBirthDate': '19600102', 'StudyDate': '20200304', 'StudyTime': '101112'}
    folder = tmp_path / PLANTED
    _, _, scan, mask = written(folder, header=header, name=PLANTED)
    for write in (write_segmentation, write_rtstruct):
        for drawn in (mask, mask * 0):
            named = pydicom.dcmread(write(tmp_path / 'x.dcm', drawn, scan, folder))
            assert {
                element.keyword for element in named.iterall() if element.VR != 'SQ' and PLANTED in str(element.value)
            } == where
            content = write(tmp_path / 'y.dcm', drawn, scan, folder, pseudonym='case7').read_bytes()
            assert b'case7' in content and not [
                word for word in (PLANTED, '19600102', '20200304', '101112') if word.encode() in content
            ]
    source_series(scan, tmp_path / 'plain')
    source_series(scan, tmp_path / 'renamed', pseudonym='case7')
    for path in [*(tmp_path / 'plain').iterdir(), *(tmp_path / 'renamed').iterdir()]:
        assert not [word for word in (PLANTED, '19600102', '20200304', '101112') if word.encode() in path.read_bytes()]
    for write in (write_segmentation, write_rtstruct):
        with pytest.raises(InputError) as caught:
            write(tmp_path / 'z.dcm', mask[:-1], scan, folder)
        assert PLANTED not in str(caught.value)


def test_names_in_any_script_are_kept(tmp_path, conforms):
    real = {
        'PatientName': 'Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046',
        'PatientID': '\u00dc-7',
        'StudyDate': '20200229',
        'StudyTime': '101112.25',
        'PatientBirthDate': '19600102',
        'PatientSex': 'F',
        'StudyID': 'A 1',
        'AccessionNumber': '0012',
        'ReferringPhysicianName': 'M\u00fcller^J\u00fcrgen',
    }
    _, _, scan, mask = written(tmp_path / 'scan', header=real | {'SpecificCharacterSet': 'ISO_IR 192'})
    for write in (write_segmentation, write_rtstruct):
        kept = pydicom.dcmread(write(tmp_path / 'x.dcm', mask, scan, tmp_path / 'scan'))
        assert {keyword: str(kept[keyword].value) for keyword in real} == real
        assert conforms(tmp_path / 'x.dcm') == []


# ---- whole or not at all

WRITE = {
    'write_segmentation': lambda place, mask, scan: write_segmentation(place / 'out', mask, scan, place / 'scan'),
    'write_rtstruct': lambda place, mask, scan: write_rtstruct(place / 'out', mask, scan, place / 'scan'),
    'source_series': lambda place, mask, scan: source_series(scan, place / 'out'),
}
DIE = """
import os, signal, sys
from pathlib import Path
import numpy as np, pydicom.filewriter
from pe_advseg.scans.series import read_series
from pe_advseg.scans.rtstruct import write_rtstruct
from pe_advseg.scans.seg_write import write_segmentation
from pe_advseg.scans.source_series import source_series
place, name, moment = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
scan = read_series(place/'scan'); mask = np.ones(scan.shape, np.uint8)
def die(*arguments, **options): os.kill(os.getpid(), signal.SIGKILL)
setattr(pydicom.filewriter if moment == 'write_data_element' else os, moment, die)
if name == 'source_series': source_series(scan, place/'out')
else: globals()[name](place/'out', mask, scan, place/'scan')
"""


@pytest.mark.parametrize('name', WRITE)
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, name):
    _, _, scan, mask = written(tmp_path / 'scan')
    count, write_element = [0], pydicom.filewriter.write_data_element

    def full(*arguments, **options):
        count[0] += 1
        if count[0] > 50:
            raise OSError(28, 'No space left on device')
        return write_element(*arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(pydicom.filewriter, 'write_data_element', full)
        with pytest.raises(OSError):
            WRITE[name](tmp_path, mask, scan)
    assert [path.name for path in tmp_path.iterdir()] == ['scan']
    WRITE[name](tmp_path, mask, scan)
    assert (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'name, moment',
    [
        ('write_rtstruct', 'write_data_element'),
        ('write_rtstruct', 'replace'),
        ('source_series', 'write_data_element'),
        ('source_series', 'rename'),
    ],
)
def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path, name, moment):
    _, _, scan, mask = written(tmp_path / 'scan')
    result = subprocess.run(
        [sys.executable, '-c', DIE, str(tmp_path), name, moment], capture_output=True, text=True, timeout=200
    )
    assert result.returncode == -signal.SIGKILL, result.stderr[-1000:]
    assert all(path.name.startswith('.partial-') for path in tmp_path.iterdir() if path.name != 'scan')
    WRITE[name](tmp_path, mask, scan)
    assert (tmp_path / 'out').exists()


# ---- the real patient


@pytest.mark.skipif(
    not FUMPE.is_dir(), reason='the real patient lies in ../shared/data/FUMPE, which this checkout does not have'
)
def test_a_real_anonymised_patient(tmp_path, request):
    (study,) = find_studies(FUMPE)
    volume, mask = read_study(study)
    numbers = number_emboli(mask > 0, volume.voxel_ml * 1000, smallest_mm3=0)
    assert np.count_nonzero(numbers) == mask.sum() == 42840 and numbers.max() > 1
    seg, rtstruct = (
        write_segmentation(tmp_path / 'seg.dcm', numbers, volume, study.scan),
        write_rtstruct(tmp_path / 'rt.dcm', numbers, volume, study.scan),
    )
    assert (by_highdicom(seg, volume) == numbers).all()
    assert (read_seg_mask(seg, volume, 'seg.dcm')[0] == mask).all()
    assert (by_polygons(rtstruct, study.scan, volume) == numbers).all()
    source_series(dataclasses.replace(volume, sources=()), tmp_path / 'source')
    conforms = request.getfixturevalue('conforms')
    assert conforms(seg) == conforms(rtstruct) == conforms(tmp_path / 'source' / 'IM0001.dcm') == []
