"""A review in a real browser: headless Chromium opens JupyterLab and corrects a synthetic study with mouse and keys.

What was saved is read back from the disk.
"""

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import pe_advseg
from pe_advseg.annotation.annotation import Annotation, write_arrays
from pe_advseg.core.paths import whole_folder
from pe_advseg.core.probability import to_bytes
from pe_advseg.evaluation.findings import embolus_table
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.scans.series import pixel_digest, study_name
from pe_advseg.scans.volume_files import read_volume
from pe_advseg.scans.write_series import write_series

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
missing = [
    name
    for name in ('playwright', 'ipympl', 'jupyterlab', 'ipykernel', 'pe_advseg.review.store')
    if importlib.util.find_spec(name) is None
]
if CHROMIUM is None:
    missing.append("chromium (Debian's package)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing), reason=f'not installed: {", ".join(missing)}')]
WAIT = 60_000  # ms; a condition is waited for, this only ends a hopeless wait
SHAPE = (24, 128, 128)


@pytest.fixture
def hospital(tmp_path):
    "A synthetic study whose annotation misses one embolus and claims another; and a notebook that opens it."
    study = make_study(HOSPITALS['harbour'], 3, SHAPE)
    write_series(study.volume, tmp_path / 'scan', 'P1')
    volume = read_volume(tmp_path / 'scan')
    truth = study.clot_ids.astype(np.uint16)
    missed = int(truth.max())
    found = np.where(truth == missed, 0, truth)
    z, y, x = (int(i) for i in np.argwhere((volume.hu > 150) & (truth == 0))[100])
    found[z, y - 2 : y + 3, x - 2 : x + 3] = missed
    probability = to_bytes((found > 0) * 0.8)
    summary = dict(
        statement='synthetic',
        scan=dict(digest=pixel_digest(volume), name=study_name(volume)),
        runs=[dict(name='a-run', weights='0' * 12)],
    )
    with whole_folder(tmp_path / 'annotation') as folder:
        write_arrays(
            folder, Annotation(volume, found, probability, None, embolus_table(found, volume, probability), summary)
        )
    code = "from pe_advseg.review.review import review\nwidget = review('scan', 'annotation', 'corrections')\nwidget"
    cell = dict(cell_type='code', id='look', execution_count=None, metadata={}, outputs=[], source=code)
    (tmp_path / 'look.ipynb').write_text(
        json.dumps(
            dict(
                cells=[cell],
                metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')),
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )
    return tmp_path, volume, truth, found, missed


@pytest.fixture
def jupyter(hospital, tmp_path_factory):
    "JupyterLab on a free port, with settings of its own. Address of the notebook."
    home, settings = hospital[0], tmp_path_factory.mktemp('settings')
    kernel = settings / 'kernels' / 'python3'
    kernel.mkdir(parents=True)
    (kernel / 'kernel.json').write_text(
        json.dumps(
            dict(
                argv=[sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}'],
                display_name='python3',
                language='python',
            )
        )
    )
    quiet = settings / '@jupyterlab' / 'apputils-extension' / 'notification.jupyterlab-settings'
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    token, package = secrets.token_hex(16), str(Path(pe_advseg.__file__).resolve().parent.parent)
    own = {f'JUPYTER_{name}_DIR': str(settings) for name in ('CONFIG', 'DATA', 'RUNTIME')} | {
        name: str(settings)
        for name in ('JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')
    }
    environment = os.environ | own | dict(PYTHONPATH=package, JUPYTER_NO_CONFIG='1', OMP_NUM_THREADS='1')
    command = [
        sys.executable,
        '-m',
        'jupyterlab',
        '--no-browser',
        '--ServerApp.ip=127.0.0.1',
        f'--ServerApp.port={port}',
        '--ServerApp.port_retries=0',
        f'--IdentityProvider.token={token}',
        f'--ServerApp.root_dir={home}',
        '--allow-root',
    ]
    with open(settings / 'log.txt', 'w') as log:
        server = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        ends = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token={token}', timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < ends, (settings / 'log.txt').read_text()[-2000:]
                time.sleep(0.2)
        yield f'http://127.0.0.1:{port}/lab/tree/look.ipynb?token={token}'
    finally:
        server.send_signal(signal.SIGTERM)  # stops its kernels too
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        try:
            page = browser.new_page(viewport=dict(width=1280, height=800))
            page.set_default_timeout(WAIT)
            yield page
        finally:
            browser.close()


class Picture:
    "Where a voxel is on the screen."

    def __init__(self, page):
        self.page, self.canvas = page, page.locator('.jupyter-matplotlib-canvas-container canvas').last

    def at(self, y, x):
        box = self.canvas.bounding_box()
        return box['x'] + (x + 0.5) / SHAPE[2] * box['width'], box['y'] + (y + 0.5) / SHAPE[1] * box['height']

    def click(self, y, x):
        self.page.mouse.click(*self.at(y, x))

    def drag(self, *places):
        self.page.mouse.move(*self.at(*places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.at(*place), steps=4)
        self.page.mouse.up()


def run_cell(page):
    "Runs the notebook's only cell; again if JupyterLab was still busy with itself and did not hear."
    from playwright.sync_api import TimeoutError as Timeout

    page.locator(
        '#jp-main-statusbar', has_text='(ipykernel) | Idle'
    ).wait_for()  # before that a cell is taken, and forgotten
    prompt = page.locator('.jp-InputPrompt').first
    prompt.wait_for()
    before = prompt.inner_text()
    text = "document.querySelector('.jp-InputPrompt').innerText"
    has_run = f'before => (text => /[0-9]/.test(text) && text != before)({text})'
    for _ in range(6):
        page.locator('.jp-Notebook-cell .cm-content').first.click()
        page.keyboard.press('Control+Enter')
        try:
            return page.wait_for_function(
                has_run,
                arg=before,
                timeout=WAIT / 6,
            )
        except Timeout:
            continue
    pytest.fail('JupyterLab does not run the cell')


def within(volume, start, end, radius_mm):
    "Voxels of a slice near the line between two (z, y, x), by the formula for a point and a segment, voxel by voxel."
    _, y, x = np.indices(volume.shape)
    step = np.array(volume.spacing[1:])
    a, b = np.array(start[1:]) * step, np.array(end[1:]) * step
    points = np.stack([y, x], -1) * step
    share = np.clip(((points - a) @ (b - a)) / max((b - a) @ (b - a), 1e-12), 0, 1)
    return (np.linalg.norm(points - (a + share[..., None] * (b - a)), axis=-1) <= radius_mm) & (
        np.arange(len(volume.hu)) == start[0]
    )[:, None, None]


def grown(volume, seed, low, high, radius_mm, free):
    "scikit-image's flood fill in a ball."
    from skimage.segmentation import flood

    distance = np.linalg.norm((np.moveaxis(np.indices(volume.shape), 0, -1) - seed) * volume.spacing, axis=-1)
    return flood((volume.hu >= low) & (volume.hu <= high) & (distance <= radius_mm) & free, seed, connectivity=1)


def test_a_review_in_jupyterlab(hospital, jupyter, page, tmp_path):
    home, volume, truth, found, missed = hospital

    def main(mask):
        return int(mask.sum((1, 2)).argmax())

    page.goto(jupyter)
    run_cell(page)
    review, picture = page.locator('.pe-review'), Picture(page)

    def says(text):
        return review.locator('.pe-says', has_text=text).wait_for()

    def button(name):
        return review.get_by_role('button', name=name, exact=True).click()

    def at_slice(index):
        return page.wait_for_function(
            "index => document.querySelector('.pe-slice .widget-readout').innerText.trim() == index",
            arg=str(index + 1),  # slices are counted from 1
        )

    def go_to(index, now):
        for _ in range(abs(index - now)):
            page.keyboard.press('ArrowUp' if index > now else 'ArrowDown')
        at_slice(index)

    says('Click on an embolus')
    picture.canvas.wait_for()

    # looking: the first embolus is open before us; wheel, keys, next
    first = main(found == 1)
    at_slice(first)
    page.screenshot(path=tmp_path / 'opened.png')
    page.mouse.move(*picture.at(5, 5))
    page.mouse.wheel(0, 100)
    at_slice(first - 1)
    page.mouse.wheel(0, -100)
    at_slice(first)

    # keys belong to the picture, not to the notebook, where A and B would insert cells
    cells = page.locator('.jp-Notebook-cell').count()
    picture.click(5, 5)
    page.keyboard.press('a')
    says('Embolus 1: accepted')
    page.keyboard.press('b')
    says('Draw')
    page.keyboard.press('l')
    says('Click on an embolus')
    page.keyboard.press('n')
    at_slice(main(found == missed))
    assert page.locator('.jp-Notebook-cell').count() == cells

    # a finding that is none
    button('Previous')
    at_slice(first)
    button('Next')
    at_slice(main(found == missed))
    button('Reject')
    says(f'Embolus {missed}: rejected')
    expected = np.where(found == missed, 0, found)

    # a clot that was missed: a click into it
    z = main(truth == missed)
    picture.click(5, 5)  # the keys go where the mouse was last
    go_to(z, main(found == missed))
    inside = np.argwhere((truth[z] == missed) & (expected[z] == 0))
    y, x = (int(i) for i in inside[np.abs(volume.hu[z][tuple(inside.T)] - 60.0).argmin()])
    button('Add')
    says('Click into a clot')
    picture.click(y, x)
    says(f'Embolus {missed + 1} added')
    region = grown(volume, (z, y, x), 0, 130, 5.0, expected == 0)
    assert (region & (truth == missed)).sum() > 10
    expected[region] = missed + 1

    # a stroke through soft tissue, undone and done again
    soft = (volume.hu[z] >= 0) & (volume.hu[z] <= 130) & (expected[z] == 0)
    row, column = max(
        ((r, c) for r in range(20, 108, 4) for c in range(20, 84, 4)),
        key=lambda at: soft[at[0] - 3 : at[0] + 4, at[1] : at[1] + 24].sum(),
    )
    button('Paint')
    says('Draw')
    page.mouse.move(*picture.at(row, column))
    page.mouse.down()
    page.mouse.move(*picture.at(row, column + 4), steps=2)
    page.mouse.move(picture.canvas.bounding_box()['x'] + 20, picture.canvas.bounding_box()['y'] - 40, steps=2)
    page.mouse.up()  # let go outside of the picture: there the stroke ends
    page.mouse.move(*picture.at(row, column + 12), steps=3)
    says(f'Embolus {missed + 2} is new')
    stroke = review.locator('option', has_text='added').nth(1)
    stroke.wait_for()
    size = stroke.inner_text()
    page.mouse.move(*picture.at(row, column + 24), steps=3)
    button('Undo')
    button('Redo')
    says('Done again')
    assert stroke.inner_text() == size
    button('Undo')
    says('Undone')
    picture.drag((row, column), (row, column + 12), (row, column + 24))
    stroke.wait_for()
    button('Undo')
    says(f'Undone: painted {missed + 2}')
    button('Redo')
    says(f'Done again: painted {missed + 2}')
    painted = (
        within(volume, (z, row, column), (z, row, column + 24), 5.0)
        & (volume.hu >= 0)
        & (volume.hu <= 130)
        & (expected == 0)
    )
    assert painted.sum() > 50
    expected[painted] = missed + 2
    button('Erase')
    says('taken away')
    picture.drag((row, column + 24), (row, column + 24))
    review.locator('option', has_text='added').nth(1).wait_for()
    expected[within(volume, (z, row, column + 24), (z, row, column + 24), 5.0)] = 0

    # opened again before anything was saved: nothing is lost
    run_cell(page)
    says('Unfinished work was resumed')
    assert len(list((home / 'corrections-unfinished').glob('*.npz'))) == 1

    # saved, but not without a name
    button('Save correction')
    says('Type your name first')
    review.get_by_placeholder('your name').fill('R. Viewer')
    review.get_by_placeholder('optional').fill('by a machine')
    review.get_by_placeholder('optional').press('Tab')
    page.screenshot(path=tmp_path / 'corrected.png')
    button('Save correction')
    says('aved')  # also 'Not saved', so that a failure is told at once
    page.screenshot(path=tmp_path / 'saved.png')
    version = home / 'corrections' / study_name(volume) / '0001'
    assert str(version.relative_to(home)) in review.locator('.pe-says').inner_text()
    check_files(version, volume, expected, missed)
    assert list((home / 'corrections-unfinished').iterdir()) == []


def check_files(version, volume, expected, missed):
    "What lies on the disk, with other people's readers."
    import highdicom
    import nibabel

    image = nibabel.load(version / 'mask.nii.gz')
    written = np.asarray(image.dataobj)
    np.testing.assert_array_equal(written.transpose(2, 1, 0), expected)
    np.testing.assert_allclose(image.affine, volume.nifti_affine(), atol=1e-4)
    seg = highdicom.seg.segread(version / 'segmentation.dcm')
    planes = seg.get_pixels_by_source_instance(
        [source.instance_uid for source in volume.sources],
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    numbers = np.unique(expected)[1:]
    assert planes.shape == (*volume.shape, len(numbers)) and len(numbers) == 3
    for segment, number in enumerate(numbers):
        np.testing.assert_array_equal(planes[..., segment], expected == number)
    record = json.loads((version / 'correction.json').read_text())
    decisions = {row['embolus']: row['decision'] for row in record['decisions']}
    assert decisions == {1: 'accepted', missed: 'rejected', missed + 1: 'added', missed + 2: 'added'}
    assert (record['reviewer'], record['note'], record['how']) == (
        'R. Viewer',
        'by a machine',
        'review',
    ) and 'a-run' in json.dumps(record)
