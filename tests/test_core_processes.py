"""Work in several processes from every kind of main module, and what is said when a worker dies."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pe_advseg.core.errors import InputError
from pe_advseg.core.processes import each_in_processes, map_in_processes

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX systems')


def run_python(*arguments, script: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], input=script, capture_output=True, text=True, cwd=ROOT)


def dedented(text: str) -> str:
    return textwrap.dedent(text).strip() + '\n'


# does work in two workers and says whether it was done elsewhere
UNGUARDED = dedented("""
    import math, os
    from pe_advseg.core.processes import each_in_processes, map_in_processes
    print('the main module is run')
    print(map_in_processes(math.factorial, [(3,), (4,)], 2, progress=False))
    print(os.getpid() not in map_in_processes(os.getpid, [(), ()], 2, progress=False))
""")
ANSWER = 'the main module is run\n[6, 24]\nTrue\n'


def test_script_without_guard(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text(UNGUARDED)
    done = run_python(path)
    assert (done.stdout, done.stderr) == (ANSWER, '')


def test_module_run_by_name(tmp_path, monkeypatch):
    (tmp_path / 'unguarded.py').write_text(UNGUARDED)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    done = run_python('-m', 'unguarded')
    assert (done.stdout, done.stderr) == (ANSWER, '')


def test_standard_input():
    done = run_python('-', script=UNGUARDED)
    assert (done.stdout, done.stderr) == (ANSWER, '')


def test_main_module_without_a_file():
    "As in a kernel."
    script = 'import sys; del sys.modules["__main__"].__file__\n' + UNGUARDED
    done = run_python('-', script=script)
    assert (done.stdout, done.stderr) == (ANSWER, '')


@pytest.mark.parametrize('how', ['def work(n): return os.getpid(), n', 'work = lambda n: (os.getpid(), n)'])
def test_function_of_the_main_module_stays_and_says_so(how):
    script = dedented(f"""
        import os
        from pe_advseg.core.processes import map_in_processes
        {how}
        print(map_in_processes(work, [(1,), (2,)], 2, progress=False) == [(os.getpid(), 1), (os.getpid(), 2)])
    """)
    done = run_python('-', script=script)
    assert done.stdout == 'True\n' and done.returncode == 0
    assert done.stderr.count('Working in the calling process and not in 2 workers') == 1


def test_job_with_an_object_of_the_main_module_stays():
    script = dedented("""
        import operator
        from pe_advseg.core.processes import map_in_processes
        class Three:
            def __index__(self): return 3
        print(map_in_processes(operator.index, [(Three(),), (Three(),)], 2, progress=False))
    """)
    done = run_python('-', script=script)
    assert done.stdout == '[3, 3]\n' and 'Working in the calling process' in done.stderr


def test_main_module_is_the_same_afterwards():
    before = sys.modules['__main__']
    assert dict(each_in_processes(abs, [(-1,), (2,)], 2)) == {0: 1, 1: 2}
    assert sys.modules['__main__'] is before


# --- workers that die ---


@posix
def test_killed_worker_names_memory():
    with pytest.raises(InputError, match='SIGKILL.*memory.*Use fewer workers'):
        map_in_processes(signal.raise_signal, [(signal.SIGKILL,), (signal.SIGKILL,)], 2, progress=False)


@posix
def test_crashed_worker_names_the_signal():
    with pytest.raises(InputError, match='SIGSEGV'):
        list(each_in_processes(signal.raise_signal, [(signal.SIGSEGV,), (signal.SIGSEGV,)], 2))


def test_worker_that_cannot_start_blames_no_job():
    with pytest.raises(InputError, match='exit code 7'):
        list(each_in_processes(abs, [(1,), (2,)], 2, crashed=lambda number: number, begin=os._exit, begin_with=(7,)))


@posix
@pytest.mark.parametrize('workers', [1, 2, 5])
def test_only_the_killed_jobs_are_blamed(workers):
    jobs = [(0,), (signal.SIGKILL,), (0,), (0,), (signal.SIGSEGV,), (0,)]  # signal 0 does nothing
    found = each_in_processes(_raise_signal, jobs, workers, crashed=lambda number: f'died of {number:d}')
    assert sorted(found) == [(0, 0), (1, 'died of 9'), (2, 0), (3, 0), (4, 'died of 11'), (5, 0)]


def _raise_signal(number: int) -> int:
    if number:
        signal.raise_signal(number)
    return 0


@posix
def test_killed_worker_leaves_no_semaphore():
    "tqdm in a worker makes a named semaphore unless it is given a lock."
    script = dedented("""
        import operator
        from pe_advseg.core.processes import each_in_processes
        jobs = [(eval, "[__import__('tqdm').tqdm([], disable=True), __import__('signal').raise_signal(9)]")] * 2
        print(list(each_in_processes(operator.call, jobs, 2, crashed=lambda *job: 'died')))
    """)
    done = run_python('-', script=script)
    assert done.stdout.count('died') == 2
    assert done.stderr == ''


# --- errors and interrupts ---


def test_error_is_raised_and_no_further_job_begins(tmp_path):
    jobs = [(str(tmp_path / f'folder {number}'),) for number in range(30)]
    jobs.insert(2, (str(tmp_path),))  # is there already
    with pytest.raises(FileExistsError):
        map_in_processes(os.mkdir, jobs, 2, progress=False)
    assert 2 <= len(list(tmp_path.iterdir())) < 10


def test_others_go_on_when_asked(tmp_path):
    jobs = [(str(tmp_path / name),) for name in ('a', 'missing/b', 'c', 'missing/d')]
    for workers in (1, 2):
        with pytest.raises(FileNotFoundError, match='missing/b'):
            map_in_processes(os.mkdir, jobs, workers, progress=False, keep_going=True)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ['a', 'c']
        for entry in tmp_path.iterdir():
            entry.rmdir()


def test_one_job_or_one_worker_stays_without_a_word(recwarn):
    here = os.getpid()
    assert map_in_processes(os.getpid, [()], 4, progress=False) == [here]
    assert map_in_processes(os.getpid, [(), ()], 1, progress=False) == [here, here]
    assert list(each_in_processes(os.getpid, [(), ()], 0, crashed=print)) == [(0, here), (1, here)]
    assert map_in_processes(os.getpid, [], 4, progress=False) == []
    assert not recwarn.list


def test_bar_follows_done_within_a_job(capfd):
    asked = []

    def done() -> int:
        asked.append(time.monotonic())
        return len(asked)

    assert map_in_processes(time.sleep, [(2.5,), (2.5,)], 2, 'training', total=90, done=done) == [None, None]
    assert len(asked) >= 3 and '/90' in capfd.readouterr().err


@posix
def test_interrupt_ends_the_workers(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text(
        dedented("""
        import time
        from pe_advseg.core.processes import map_in_processes
        print('ready', flush=True)
        map_in_processes(time.sleep, [(60,), (60,)], 2, progress=False)
    """)
    )
    process = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    time.sleep(3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)  # to the parent only, as `kill -INT` sends it
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert said.rstrip().endswith('KeyboardInterrupt') and 'leaked' not in said
