"""Folders found from anywhere, files and folders written whole."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path

import pytest

from pe_advseg.core import paths
from pe_advseg.core.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def no_home(monkeypatch):
    monkeypatch.delenv('PE_ADVSEG_HOME', raising=False)


def old_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / 'a').write_text('old')
    return folder


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


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_folder_is_gone(tmp_path, error):
    with pytest.raises(error), paths.whole_folder(tmp_path / 'deep' / 'result') as folder:
        (folder / 'a').write_text('half')
        raise error
    assert list((tmp_path / 'deep').iterdir()) == []


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    (tmp_path / 'result').mkdir()
    with pytest.raises(InputError, match='nothing is overwritten'), paths.whole_folder(tmp_path / 'result'):
        pass
    with pytest.raises(InputError, match='meanwhile'), paths.whole_folder(tmp_path / 'other') as folder:
        (folder / 'a').write_text('mine')
        (tmp_path / 'other').mkdir()
        (tmp_path / 'other' / 'a').write_text('theirs')
    assert (tmp_path / 'other' / 'a').read_text() == 'theirs'
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['other', 'result']


def test_a_folder_is_replaced_when_the_new_one_is_complete(tmp_path):
    target = tmp_path / 'result'
    for content in ('old', 'new'):
        with paths.whole_folder(target, replace=True) as folder:
            assert not target.exists() or (target / 'old').exists()
            (folder / content).write_text(content)
    assert [entry.name for entry in target.iterdir()] == ['new'] and [*tmp_path.iterdir()] == [target]


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_replacement_leaves_the_old_folder(tmp_path, error):
    old_folder(tmp_path / 'result')
    with pytest.raises(error), paths.whole_folder(tmp_path / 'result', replace=True) as folder:
        (folder / 'a').write_text('half')
        raise error
    assert (tmp_path / 'result' / 'a').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('failing', [1, 2])
def test_a_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch, failing):
    old_folder(tmp_path / 'result')
    rename, calls = os.rename, []

    def fail_once(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise PermissionError(source)
        rename(source, target)

    monkeypatch.setattr(os, 'rename', fail_once)
    with pytest.raises(InputError), paths.whole_folder(tmp_path / 'result', replace=True):
        pass
    assert (tmp_path / 'result' / 'a').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / 'result').write_text('a file')
    with pytest.raises(InputError, match='there already'), paths.whole_folder(tmp_path / 'result', replace=True):
        pass
    assert (tmp_path / 'result').read_text() == 'a file'


@pytest.mark.skipif(os.name != 'posix', reason='kill -9 is a POSIX matter')
@pytest.mark.parametrize('at, found', [('first', 'old'), ('second', 'old'), ('delete', 'new')])
@pytest.mark.parametrize('replace', [True, False])
def test_a_killed_replacement_loses_no_folder(tmp_path, at, found, replace):
    "Killed before the first rename, between the two, or before the old folder is deleted."
    target = old_folder(tmp_path / 'result')
    code = f"""
        import os, shutil, signal
        from pe_advseg.core import paths
        rename, calls = os.rename, []
        def die(*arguments, **options):
            os.kill(os.getpid(), signal.SIGKILL)
        def rename_or_die(source, target):
            calls.append(source)
            if len(calls) == {['first', 'second', 'delete'].index(at) + 1}:
                die()
            rename(source, target)
        with paths.whole_folder({str(target)!r}, replace=True) as folder:
            (folder / 'a').write_text('new')
            os.rename, shutil.rmtree = rename_or_die, die
    """
    killed = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    with paths.whole_folder(tmp_path / 'another'):  # removes what killed processes have left
        pass
    refused = nullcontext() if replace else pytest.raises(InputError, match='there already')
    with refused, paths.whole_folder(target, replace=replace) as folder:
        assert (target / 'a').read_text() == found
        (folder / 'a').write_text('newest')
    assert (target / 'a').read_text() == ('newest' if replace else found)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['another', 'result']


def test_folders_of_running_processes_and_other_machines_stay(tmp_path):
    running = tmp_path / f'.partial-{paths._host_digest()}-{os.getppid()}-x'
    elsewhere = tmp_path / '.partial-00000000-999999-x'
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    dead = tmp_path / f'.partial-{paths._host_digest()}-{ended.pid}-x'
    for folder in (running, elsewhere, dead):
        folder.mkdir()
    with paths.whole_folder(tmp_path / 'result'):
        pass
    assert (running.exists(), elsewhere.exists(), dead.exists()) == (True, True, False)


def test_digest_of_a_file_larger_than_a_piece(tmp_path):
    (tmp_path / 'million').write_bytes(b'a' * 1_000_000)  # FIPS 180-2, appendix B.3
    assert paths.file_digest(tmp_path / 'million').startswith('cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e')


def test_package_import_loads_no_heavy_library():
    heavy = "{'torch', 'matplotlib', 'pandas', 'scipy'}"
    code = f'import sys, pe_advseg, pe_advseg.core.paths; assert not {heavy} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
