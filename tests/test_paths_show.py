"""Folders found from anywhere, files written whole, pictures that say what they show."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pe_advseg.core import figures as show
from pe_advseg.core import paths

ROOT = Path(__file__).resolve().parent.parent


# --- paths ---


@pytest.fixture
def no_home(monkeypatch):
    monkeypatch.delenv('PE_ADVSEG_HOME', raising=False)


@pytest.mark.parametrize('start', ['.', 'nbs', 'nbs/experiments', 'tests'])
def test_root_from_inside(start, monkeypatch, no_home):
    monkeypatch.chdir(ROOT / start)
    assert paths.project_root() == ROOT


def test_root_from_elsewhere_is_the_installed_project(tmp_path, monkeypatch, no_home):
    monkeypatch.chdir(tmp_path)
    assert paths.project_root() == ROOT


def test_root_without_a_project_is_the_current_folder(tmp_path, monkeypatch, no_home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, '__file__', str(tmp_path / 'site-packages' / 'pe_advseg' / 'core' / 'paths.py'))
    assert paths.project_root() == tmp_path.resolve()


@pytest.mark.parametrize(
    'content', [b'[DEFAULT]\nlib_name = other\n', b'no section', b'\xff\xfe\x00', b'[DEFAULT]\nlib_name = %(x)s\n']
)
def test_settings_of_others_are_passed_by(content, tmp_path, monkeypatch, no_home):
    (tmp_path / 'settings.ini').write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert paths.project_root() == ROOT


def test_home_wins(tmp_path, monkeypatch):
    monkeypatch.setenv('PE_ADVSEG_HOME', str(tmp_path / 'elsewhere'))
    assert paths.results_dir() == tmp_path / 'elsewhere' / 'figures' / 'results' and paths.results_dir().is_dir()


def test_whole_file_replaces_and_keeps_the_ending(tmp_path):
    target = tmp_path / 'deep' / 'mask.nii.gz'
    with paths.whole_file(target) as partial:
        assert partial.parent == target.parent and partial.name.endswith('.nii.gz') and partial.name.startswith('.')
        partial.write_bytes(b'new')
    assert target.read_bytes() == b'new' and [entry.name for entry in target.parent.iterdir()] == ['mask.nii.gz']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, error):
    target = paths.write_whole(tmp_path / 'a.txt', 'old')
    with pytest.raises(error), paths.whole_file(target) as partial:
        partial.write_text('half')
        raise error
    assert target.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_permissions_are_the_usual_ones(tmp_path):
    "Files made with tempfile would be unreadable for the rest of the group."
    (tmp_path / 'plain').write_text('')
    assert paths.write_whole(tmp_path / 'whole', b'').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_text_is_written_as_given(tmp_path):
    assert paths.write_whole(tmp_path / 'a', 'ä\nb\r\n').read_bytes() == 'ä\nb\r\n'.encode()


@pytest.mark.skipif(os.name != 'posix', reason='kill -9 is a POSIX matter')
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = paths.write_whole(tmp_path / 'a.txt', 'old')
    code = f"""
        import os, signal
        from pe_advseg.core.paths import whole_file
        with whole_file({str(target)!r}) as partial:
            partial.write_text('half')
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and target.read_text() == 'old'
    assert all(entry.name.startswith('.partial-') for entry in tmp_path.iterdir() if entry != target)


# --- show ---

HU = np.linspace(-1000, 400, 40 * 50).reshape(40, 50)
MASK = np.zeros((40, 50), bool)
MASK[10:14, 20:26] = True


@pytest.fixture(autouse=True)
def no_open_figures():
    plt.close('all')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # matplotlib's way of saying that something could not be drawn
        yield
    assert plt.get_fignums() == [], 'figures stay open: a long run would fill the memory'


def draw(figure):
    figure.canvas.draw()
    return figure


def test_colours_can_be_told_apart():
    "All methods differ, and every two differ in red-green blindness too (deuteranopia, matrix of Machado et al. 2009, roughly)."
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    seen = {name: deuteranopia @ matplotlib.colors.to_rgb(colour) for name, colour in show.METHOD_COLOURS.items()}
    names = list(seen)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert np.linalg.norm(seen[a] - seen[b]) > 0.12, (a, b)
    assert (
        np.linalg.norm(
            deuteranopia @ np.subtract(*map(matplotlib.colors.to_rgb, (show.TRUTH_COLOUR, show.PREDICTION_COLOUR)))
        )
        > 0.3
    )


@pytest.mark.parametrize('empty', [np.zeros((40, 50), bool), np.ones((40, 50), bool), None])
def test_slices_without_an_edge_to_draw(empty):
    draw(show.show_slices([HU, HU], [empty, MASK], [None, np.full((40, 50), np.nan)]))


def test_slices_wrap_into_rows():
    figure = draw(show.show_slices([HU] * 7))
    assert len(figure.axes) == 10 and sum(bool(axis.images) for axis in figure.axes) == 7


def test_comparison_of_one_slice_and_without_zoom():
    assert len(draw(show.show_comparison({'supervised': [MASK]}, [HU])).axes) == 1
    assert (
        len(
            draw(
                show.show_comparison(
                    {'supervised': [MASK], 'oracle': [None]}, [HU], [MASK], titles=['synthetic'], zoom=None
                )
            ).axes
        )
        == 2
    )
    titled = draw(
        show.show_comparison(
            {'supervised': [MASK], 'oracle': [MASK]}, [HU], [MASK], titles=['synthetic'], notes={'oracle': ['0.7']}
        )
    )
    assert [axis.get_title() for axis in titled.axes if axis.get_title()] == ['synthetic']
    assert [text.get_text() for axis in titled.axes for text in axis.texts] == ['0.7']


@pytest.mark.parametrize('at', [(0, 0), (39, 49), (20, 25), None])
@pytest.mark.parametrize('size', [8, 40, 100])
def test_the_box_stays_inside(at, size):
    mask = np.zeros((40, 50), bool)
    if at:
        mask[at] = True
    top, left, height, width = show.lesion_box(mask, size)
    assert 0 <= top <= top + height <= 40 and 0 <= left <= left + width <= 50 and height == width == min(size, 40)
    if at:
        assert mask[top : top + height, left : left + width].any()


def test_curves_of_a_run_that_has_hardly_begun():
    short = pd.DataFrame({'step': [0], 'loss': [1.0], 'auroc': [np.nan]})
    draw(show.learning_curves({'supervised': short, 'someone_new': short.drop(columns='auroc')}, ['loss', 'auroc']))


def test_forest_plot_of_an_undefined_interval():
    table = pd.DataFrame(
        {'method': ['oracle', 'x'], 'difference': [np.nan, 0.1], 'low': [np.nan] * 2, 'high': [np.nan] * 2}
    )
    figure = draw(show.forest_plot(table))
    assert [text.get_text() for text in figure.axes[0].child_axes[0].get_yticklabels()][0] == 'not defined'


def test_forest_plots_share_a_figure():
    figure, axes = plt.subplots(1, 2)
    table = pd.DataFrame({'method': ['oracle'], 'difference': [0.1], 'low': [0.0], 'high': [0.2]})
    assert show.forest_plot(table, axis=axes[1]) is figure
    plt.close(figure)


def test_saved_picture_carries_its_provenance(tmp_path):
    provenance = {
        'data': 'Synthetic phantom',
        'seed': 3,
        'scale': 'smoke',
        'commit': 'abc',
        'when': pd.Timestamp('2026-01-01'),
    }
    figure = show.show_slices([HU])
    path = show.save_figure(figure, 'picture', provenance, tmp_path)
    assert json.loads(Image.open(path).text['Comment'])['seed'] == 3 and figure.texts == []
    assert [entry.name for entry in tmp_path.iterdir()] == ['picture.png']
    assert show._caption(provenance).startswith('Synthetic patients, not real ones')
    assert 'not real' not in show._caption({'data': 'FUMPE, one real patient'})


def test_a_picture_of_unknown_data_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="key 'data'"):
        show.save_figure(show.show_slices([HU]), 'a', {'seed': 1}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_package_import_loads_no_heavy_library():
    code = "import sys, pe_advseg, pe_advseg.core.paths; assert not {'torch', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
