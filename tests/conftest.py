"""What many test files need: figures without a screen, a random scan, the real patient, a refusal."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault('MPLBACKEND', 'agg')  # before a test file imports matplotlib
ROOT = Path(__file__).resolve().parent.parent
# with two processes (`make test`) the files that take minutes begin first, so that both end at about the same time
LONGEST = ('test_end_to_end.py', 'test_training.py', 'test_annotate.py', 'test_calibration.py', 'test_wheel.py')
AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])  # columns: where the array axes z, y, x point (LPS)


def pytest_collection_modifyitems(items):
    "Put the files of LONGEST first, in its order; the others keep theirs."

    def place(item):
        return LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope='session')
def fumpe() -> Path:
    "Folder of the real patient of FUMPE, in its published layout; the test is skipped where it is not there."
    folder = Path(os.environ.get('PE_ADVSEG_FUMPE', ROOT.parent / 'shared' / 'data' / 'FUMPE'))
    if not (folder / 'CT_scans').is_dir():
        pytest.skip('the real patient lies in ../shared/data/FUMPE, which this checkout does not have')
    return folder


@pytest.fixture(scope='session')
def make_volume():
    "Function that makes a `Volume` of random HU with unequal spacing and an origin off zero."
    from pe_advseg.core.volume import Volume

    def volume(direction=AXIAL, shape=(8, 20, 24), seed=0, spacing=(1.5, 0.7, 0.8), origin=(-30.0, 12.5, -700.25)):
        hu = np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)
        return Volume(hu, spacing, origin, direction)

    return volume


@pytest.fixture(scope='session')
def refused():
    "Function that calls another one, which must raise InputError with a text that `words` (a pattern) is found in."
    from pe_advseg.core.errors import InputError

    def check(words, function, *arguments, **options):
        with pytest.raises(InputError) as caught:
            function(*arguments, **options)
        assert re.search(words, str(caught.value)), str(caught.value)
        return caught.value

    return check


@pytest.fixture
def case(tmp_path):
    "A folder, a scan in it, its volume, and the numbers of its emboli."
    from support.review_scans import on_disk

    scan = tmp_path / 'scans' / 'patient1'
    volume, numbers = on_disk(scan, 1)
    return tmp_path, scan, volume, numbers
