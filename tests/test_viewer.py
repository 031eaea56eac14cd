"""The loop in a real viewer: OHIF shows what we write, a reader corrects it there, and the correction comes back.

An archive (Orthanc) and the viewer (OHIF, `make viewer` fetches it) run in a network of their own, the reader is headless
Chromium. Every voxel that the viewer holds is compared with ours.
"""

import os
import shutil
from pathlib import Path

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
STUDY, SERIES, SOP = 0x0020000D, 0x0020000E, 0x00080018  # tags


@pytest.fixture(scope='module')
def annotated(tmp_path_factory):
    "A synthetic scan and its annotation, with two emboli: folder, volume, numbers."
    root = tmp_path_factory.mktemp('viewer')
    study = make_study(HOSPITALS['harbour'], 1, SHAPE)
    write_series(study.volume, root / 'scan', 'P1')
    volume = read_volume(root / 'scan')
    sizes = np.bincount(study.clot_ids.ravel())[1:]
    largest = 1 + np.argsort(sizes)[::-1][:2]
    numbers = np.select([study.clot_ids == n for n in largest], [1, 2]).astype(np.uint16)
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


@pytest.fixture
def reader(annotated, tmp_path):
    "The archive with the annotated study, and a reader who has it open in the viewer."
    root, volume, _ = annotated
    with archive.orthanc(tmp_path / 'archive') as store:
        for path in sorted(root.rglob('*.dcm')):
            store.ask('/instances', path.read_bytes())
        port = int(store.root.rpartition(':')[2])
        with viewer.served(viewer.BUILT, port) as url, viewer.browser_page() as page:
            ohif = viewer.Ohif(page, url)
            ohif.open(
                pydicom.dcmread(
                    volume.sources[0].path if hasattr(volume.sources[0], 'path') else root, stop_before_pixels=True
                ).StudyInstanceUID
            )
            yield store, ohif
