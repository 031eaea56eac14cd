"""Make a piece of experiments 03 and 06 where there is a GPU but no network: `python tools/gpu.py [--seconds 540]`.

It needs torch, timm, numpy and pandas; what else is missing comes from `build/wheels` (`make gpu-wheels`). The exit
status is 0 when everything is done and 75 when there is more to do: then the same command goes on. docs/gpu.md.
"""

import argparse
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS, PACKAGES = ROOT / 'build' / 'wheels', ROOT / 'build' / 'gpu-packages'
MORE_TO_DO = 75  # EX_TEMPFAIL: try again
RESERVE = 40  # seconds that are kept for writing the last checkpoint, or for finishing a few patients


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scale', default='paper', help='smoke, demo, study or paper (default)')
    parser.add_argument('--seconds', type=float, default=540, help='after which this command ends (540)')
    parser.add_argument('--methods', help='separated by commas; default: all')
    parser.add_argument('--seeds', type=int, help='how many; default: those of the scale')
    parser.add_argument('--until', type=float, help=argparse.SUPPRESS)  # this is the process that works, until then
    return parser.parse_args()


def missing_packages() -> list[str]:
    "Packages of the list that are not installed on this machine."
    names = (ROOT / 'tools' / 'gpu_wheels.txt').read_text(encoding='utf-8').splitlines()
    sys.path.append(str(PACKAGES))
    missing = []
    for name in names:
        try:
            if not name.startswith('#'):
                importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def install(missing: list[str]) -> None:
    "Install packages from `build/wheels` into a folder of their own; what the machine has stays as it is."
    if not WHEELS.is_dir():
        remedy = 'Run `make gpu-wheels` where there is a network, and bring build/wheels here'
        sys.exit(f'not installed: {", ".join(missing)}. {remedy}.')
    source = ['--no-index', '--find-links', str(WHEELS), '--no-deps']
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    subprocess.run([*pip, *source, '--target', str(PACKAGES), *missing], check=True)


def environment() -> dict:
    "The package from this checkout; what was installed beside it only where the machine lacks it."
    paths = [str(ROOT), os.environ.get('PYTHONPATH', ''), str(PACKAGES)]
    return os.environ | {'PYTHONPATH': os.pathsep.join(path for path in paths if path)}


def work_within(seconds: float) -> int:
    "Work in a process of its own, which is told to stop in time and killed if it does not; return the exit status."
    until = time.time() + seconds - min(RESERVE, seconds / 4)
    command = [sys.executable, __file__, *sys.argv[1:], '--until', str(until)]
    worker = subprocess.Popen(command, env=environment(), start_new_session=True)
    try:
        return worker.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        print('the time is over; what was being written at this moment will be made again')
        return MORE_TO_DO
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)  # with the processes that it has started
            worker.wait()


def main() -> None:
    options = parse_arguments()
    if options.until is None:
        missing = missing_packages()
        if missing:
            install(missing)
        sys.exit(work_within(options.seconds))
    from pe_advseg.lab.pieces import compare_until

    methods = options.methods.split(',') if options.methods else None
    done = compare_until(options.until, options.scale, methods, options.seeds)
    print('finished' if done else 'more to do: the same command goes on')
    sys.exit(0 if done else MORE_TO_DO)


if __name__ == '__main__':
    main()
