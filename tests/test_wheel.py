"""The wheel in an environment of its own, away from the repository: package data, shell, functions, shipped model."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.repository import ROOT, repository_files

pytestmark = pytest.mark.slow


def run(*command, cwd) -> str:
    "Run a command without this checkout on any path; the test fails with its output."
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('PYTHON', 'PE_ADVSEG'))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def environment(tmp_path_factory) -> Path:
    "A virtual environment with the wheel; what the wheel depends on is read from this environment's folder."
    pytest.importorskip('setuptools', minversion='77', reason='setuptools 77 or newer builds the wheel')
    folder = tmp_path_factory.mktemp('wheel')
    for path in repository_files():  # a copy, so that the build leaves nothing in the checkout
        target = folder / 'source' / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    pip = (sys.executable, '-m', 'pip', '--disable-pip-version-check')
    run(*pip, 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', folder, folder / 'source', cwd=folder)
    shutil.rmtree(folder / 'source')
    place = folder / 'environment'
    run(sys.executable, '-m', 'venv', place, cwd=folder)
    site = next((place / 'lib').glob('python*/site-packages'))
    (wheel,) = folder.glob('*.whl')
    run(place / 'bin' / 'python', *pip[1:], 'install', '--quiet', '--no-deps', '--no-index', wheel, cwd=folder)
    # a folder named in a .pth file is searched, but the editable install's own .pth file in it is not read
    (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return place


def test_the_package_is_the_wheel_and_has_its_data(environment, tmp_path):
    code = 'import pe_advseg, json; from pathlib import Path; here = Path(pe_advseg.__file__).parent; '
    code += 'print(json.dumps([str(here), sorted(p.name for p in here.rglob("*") if p.suffix not in (".py", ".pyc"))]))'
    place, names = json.loads(run(environment / 'bin' / 'python', '-c', code, cwd=tmp_path))
    assert Path(place).is_relative_to(environment)
    assert {'config.json', 'FUMPE.json'} <= set(names) and any(name.endswith('.html') for name in names)
    assert any(name.endswith('.safetensors') for name in names)


def test_a_scan_is_annotated_by_the_shell_and_by_functions(environment, tmp_path):
    shell = environment / 'bin' / 'pe-advseg'
    run(
        shell,
        'phantom',
        tmp_path / 'moor',
        '--hospital',
        'moor',
        '--patients',
        '1',
        '--shape',
        '16x96x96',
        cwd=tmp_path,
    )
    said = run(shell, 'annotate', tmp_path / 'moor', '--out', tmp_path / 'out', '--workers', '0', cwd=tmp_path)
    assert 'Synthetic training' in said
    (folder,) = (tmp_path / 'out').glob('study-*')
    assert {'segmentation.dcm', 'mask.nii.gz', 'report.html'} <= {path.name for path in folder.iterdir()}
    code = 'from pe_advseg.training.run_folder import find_run, read_config; print(read_config(find_run()).method)'
    assert run(environment / 'bin' / 'python', '-c', code, cwd=tmp_path).strip() == 'feature_enhanced'
