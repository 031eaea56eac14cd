"""The loop in a real viewer: OHIF shows what we write, a reader corrects it there, and the correction comes back.

An archive (Orthanc) and the viewer (OHIF, `make viewer` fetches it) run in a network of their own, the reader is
headless Chromium. Every voxel that the viewer holds is compared with ours.
"""

import os

import nibabel
import numpy as np
import pydicom
import pytest
from support import archive, viewer

from pe_advseg.annotation.annotation import Annotation, write_arrays
from pe_advseg.core.paths import whole_folder
from pe_advseg.core.probability import to_bytes
from pe_advseg.evaluation.findings import embolus_table
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.review.history import history, read_correction
from pe_advseg.review.import_corrections import import_corrections
from pe_advseg.scans.rtstruct import write_rtstruct
from pe_advseg.scans.seg_write import write_segmentation
from pe_advseg.scans.series import pixel_digest, study_name
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import write_series

missing = viewer.why_not() or archive.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing), reason=str(missing))]
SHAPE = (40, 160, 160)
BRUSH_MM = 4.0
OURS = 'pulmonary embolism, research only'  # SeriesDescription of the annotation


@pytest.fixture(scope='module')
def annotated(tmp_path_factory):
    "A synthetic scan and its annotation, with two emboli: folder, volume, numbers."
    root = tmp_path_factory.mktemp('viewer')
    study = make_study(HOSPITALS['harbour'], 3, SHAPE)
    write_series(study.volume, root / 'scan', 'P1')
    volume = read_volume(root / 'scan')
    sizes = np.bincount(study.clot_ids.ravel())[1:]
    largest = 1 + np.argsort(sizes)[::-1][:2]
    numbers = sum((number * (study.clot_ids == n) for number, n in enumerate(largest, 1)), np.zeros(SHAPE)).astype(
        np.uint16
    )
    probability = to_bytes((numbers > 0) * 0.8)
    summary = dict(
        statement='synthetic',
        scan=dict(digest=pixel_digest(volume), name=study_name(volume)),
        runs=[dict(name='a-run', weights='0' * 12)],
    )
    with whole_folder(root / 'annotations' / study_name(volume)) as folder:
        write_segmentation(folder / 'segmentation.dcm', numbers, volume, root / 'scan')
        write_rtstruct(folder / 'rtstruct.dcm', numbers, volume, root / 'scan')
        table = embolus_table(numbers, volume, probability)
        write_arrays(folder, Annotation(volume, numbers, probability, None, table, summary))
    return root, volume, numbers


@pytest.fixture(scope='module')
def archive_and_viewer(annotated, tmp_path_factory):
    "The archive with the annotated study, and the viewer."
    root, *_ = annotated
    with archive.orthanc(tmp_path_factory.mktemp('archive')) as store:
        for path in sorted(root.rglob('*.dcm')):
            store.ask('/instances', path.read_bytes())
        port = int(store.root.rpartition(':')[2])
        with viewer.served(viewer.BUILT, port) as url, viewer.browser_page() as page:
            yield store, viewer.Ohif(page, url)


@pytest.fixture
def reader(archive_and_viewer):
    "A reader who has just opened the study."
    store, ohif = archive_and_viewer
    ohif.open(only_study(store))
    return store, ohif


def only_study(store) -> str:
    [study] = store.ask('/dicom-web/studies')
    return study['0020000D']['Value'][0]


def segmentations(store) -> dict[str, str]:
    "Orthanc's identifier of every SEG, by SOPInstanceUID."
    names = store.ask('/tools/find', dict(Level='Instance', Query=dict(Modality='SEG')))
    return {store.ask(f'/instances/{name}/simplified-tags')['SOPInstanceUID']: name for name in names}


def exported(ohif, store) -> bytes:
    "The SEG that the reader's export puts into the archive."
    before = segmentations(store)
    with ohif.page.expect_response(lambda answer: answer.request.method == 'POST' and answer.ok):
        ohif.export()
    [new] = segmentations(store).keys() - before.keys()
    return store.ask(f'/instances/{segmentations(store)[new]}/file')


def beside(numbers, number) -> tuple[int, int, int]:
    "The middle of an embolus (z, y, x) in its main slice."
    z = int((numbers == number).sum((1, 2)).argmax())
    y, x = np.argwhere(numbers[z] == number).mean(0).round().astype(int)
    return z, int(y), int(x)


def within(volume, start, end, radius_mm):
    "Voxels of a slice near the line between two (z, y, x), by the formula for a point and a segment."
    _, y, x = np.indices(volume.shape)
    step = np.array(volume.spacing[1:])
    a, b = np.array(start[1:]) * step, np.array(end[1:]) * step
    points = np.stack([y, x], -1) * step
    share = np.clip(((points - a) @ (b - a)) / max((b - a) @ (b - a), 1e-12), 0, 1)
    near = np.linalg.norm(points - (a + share[..., None] * (b - a)), axis=-1) <= radius_mm
    return near & (np.arange(len(volume.hu)) == start[0])[:, None, None]


def test_the_viewer_shows_what_we_wrote(annotated, reader):
    "SEG voxel for voxel, RTSTRUCT corner for corner."
    root, volume, numbers = annotated
    _, ohif = reader
    ohif.load('SEG', OURS)
    np.testing.assert_array_equal(ohif.labelmap(volume), numbers)
    assert ohif.segments() == ['pulmonary embolism 1', 'pulmonary embolism 2']
    z, *_ = beside(numbers, 1)
    ohif.show(volume, z)
    ohif.picture(os.environ.get('PE_ADVSEG_VIEWER_PICTURE'))
    ohif.load('RTSTRUCT')
    held = sorted((number, points.round(3).tolist()) for number, points in ohif.contours())
    written = pydicom.dcmread(next(root.rglob('rtstruct.dcm')))
    ours = [
        (item.ReferencedROINumber, np.reshape(np.array(contour.ContourData, float), (-1, 3)).round(3).tolist())
        for item in written.ROIContourSequence
        for contour in item.ContourSequence
    ]
    assert held == sorted(ours)


def test_a_correction_in_the_viewer_comes_back(annotated, reader, tmp_path):
    "Painted on, deleted, added; exported, imported, pushed, shown again."
    root, volume, numbers = annotated
    store, ohif = reader
    ohif.load('SEG', OURS)
    ohif.take('Brush', BRUSH_MM)
    z, y, x = beside(numbers, 1)
    ohif.choose_segment(0)
    ohif.stroke(volume, (z, y, x), (z, y, x - 10))
    painted = ohif.labelmap(volume)
    grown = painted != numbers
    assert grown.any() and set(painted[grown]) == {1}
    assert not (grown & ~within(volume, (z, y, x), (z, y, x - 10), BRUSH_MM + 1.5 * volume.spacing[1])).any()
    ohif.delete_segment(1)
    ohif.add_segment()
    new = (z, y - 30, x)
    ohif.stroke(volume, new)
    corrected = ohif.labelmap(volume)
    assert corrected[new] == 2 and set(np.unique(corrected)) == {0, 1, 2}
    assert not ((corrected == 2) & (numbers == 2)).any()

    masks = tmp_path / 'masks'
    masks.mkdir()
    (masks / 'ohif.dcm').write_bytes(exported(ohif, store))
    options = dict(annotations=root / 'annotations')
    [result] = import_corrections(masks, root / 'scan', tmp_path / 'store', 'R. Viewer', **options)
    assert (result.status, result.error, result.emboli) == ('saved', None, 2)
    taken, _ = read_correction(tmp_path / 'store', volume)
    np.testing.assert_array_equal(taken > 0, corrected > 0)
    for number in (1, 2):
        assert len(np.unique(taken[corrected == number])) == 1
    [record] = history(tmp_path / 'store', study_name(volume))
    assert [row['change'] for row in record['difference']['per_embolus']] == ['changed', 'removed', 'added']

    store.ask('/instances', (result.version / 'segmentation.dcm').read_bytes())
    ohif.open(only_study(store))
    ohif.load('SEG', 'corrected by hand')
    np.testing.assert_array_equal(ohif.labelmap(volume), taken)


def test_the_viewer_cannot_export_nothing(annotated, reader, tmp_path):
    "docs/viewers.md says so, and what to do instead."
    root, volume, _ = annotated
    _, ohif = reader
    ohif.load('SEG', OURS)
    ohif.delete_segment(1)
    ohif.delete_segment(0)
    assert not ohif.can_export()
    nothing = tmp_path / 'scan.nii.gz'
    image = nibabel.load(next(root.rglob('mask.nii.gz')))
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), nothing)
    options = dict(annotations=root / 'annotations')
    [result] = import_corrections(nothing, root / 'scan', tmp_path / 'store', 'R. Viewer', **options)
    assert (result.status, result.emboli) == ('saved', 0)
    assert not read_correction(tmp_path / 'store', volume)[0].any()
