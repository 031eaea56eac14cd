"""Comparisons in pieces: stopped and killed they end in the same tables, on a machine without network."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement
from support.repository import ROOT

from pe_advseg.evaluation.comparison import comparison_table
from pe_advseg.lab import pieces
from pe_advseg.lab.comparison_plan import Plan, comparisons
from pe_advseg.lab.results import read_results
from pe_advseg.lab.runs import score_all, train_comparison, training_costs
from pe_advseg.training.protocol import prepare_setting

METHODS = ['supervised', 'clot_paste', 'feature_enhanced']  # in the order of the registry
MOMENT = ['seconds', 'commit', 'date', 'device']  # what depends on when and where a table was made
HAS, LISTED = ['torch', 'timm', 'numpy', 'pandas'], ROOT / 'tools' / 'gpu_wheels.txt'


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    "Project folder, setting, runs and scores of a comparison that nobody stopped."
    project = tmp_path_factory.mktemp('project')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PE_ADVSEG_HOME', str(project))
        torch.set_num_threads(1)
        setting = prepare_setting('smoke', progress=False)
        runs = train_comparison(setting, METHODS, folder=project / 'straight', workers=1, progress=False)
        sites = {'source': setting.source_test, 'target': setting.target_test}
        scores = score_all(runs, sites, {'target': setting.pool}, workers=1, progress=False)
        yield project, setting, runs, scores


def stop_at_look(number: int):
    "A clock that says stop from its `number`th look on."
    looks = iter(range(1, number))
    return lambda: next(looks, None) is None


def plan_in(straight, folder: Path) -> Plan:
    setting = straight[1]
    return Plan(setting, comparisons(setting, METHODS), 1, folder)


def snapshot(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


def check_tables(straight) -> None:
    "The tables in figures/results are those of the comparison that nobody stopped, and name the device."
    _, setting, runs, scores = straight
    table = comparison_table(scores, costs=training_costs(runs))
    main = comparison_table(scores[scores.method != 'clot_paste'], costs=training_costs(runs))
    for name, expected in (('06_methods', table), ('03_comparison', main)):
        found = read_results(name, 'smoke')
        columns = [column for column in expected if column not in MOMENT]
        pd.testing.assert_frame_equal(found[columns], expected[columns].round(5), check_dtype=False)
        assert found.device.notna().all() and (found.seconds > 0).all()
        assert set(found.split) == {setting.split.digest[:12]}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    assert found.device.str.startswith(device).all()
    found = read_results('06_methods_scores', 'smoke')
    pd.testing.assert_frame_equal(found[list(scores)], scores.round(5), check_dtype=False)
    health = read_results('06_methods_training', 'smoke').set_index('method')
    assert set(health.index) == set(METHODS)
    assert list(health.index[health.real_against_predicted.notna()]) == ['feature_enhanced']


def test_stopped_again_and_again_it_ends_in_the_same_tables(straight, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, 'PATIENTS_AT_A_TIME', 1)
    plan, calls = plan_in(straight, tmp_path), 0
    while not pieces.make_piece(plan, stop_at_look(2)):
        calls += 1
        assert calls < 100
    assert calls == 8 + 2 * 7 + 3 - 1  # steps; patients of four runs' sites and the control's; measured runs
    check_tables(straight)
    for run in straight[2]:
        names = [{path.name for path in folder.glob('scores-*')} for folder in (run, tmp_path / run.name)]
        assert names[0] == names[1]  # no part is left beside the whole
        for name in names[0]:
            assert (tmp_path / run.name / name).read_text() == (run / name).read_text()
    before = snapshot(tmp_path) | snapshot(straight[0] / 'figures')
    assert pieces.make_piece(plan, stop_at_look(1))  # it need not look: nothing is left to do
    assert snapshot(tmp_path) | snapshot(straight[0] / 'figures') == before


def test_no_methods_but_those_there_are(straight):
    with pytest.raises(ValueError, match='no method magic'):
        comparisons(straight[1], ['magic'])


# --- a machine that has torch, timm, numpy, pandas, the wheels, and no network -------------------------------

GUARD = """
import json
import socket
import sys
from importlib.machinery import PathFinder

BLOCKED = set(json.loads({blocked!r}))


class Guard(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split('.')[0] in BLOCKED else super().find_spec(name, path, target)


def refuse(*arguments):
    raise OSError('this machine has no network')


sys.meta_path[sys.meta_path.index(PathFinder)] = Guard
socket.create_connection = socket.getaddrinfo = refuse
"""


def normal(name: str) -> str:
    return name.lower().replace('_', '-').replace('.', '-')


def with_requirements(names: list[str]) -> set[str]:
    "Distributions, and what they depend on without extras."
    found, todo = set(), list(names)
    while todo:
        name = normal(todo.pop())
        if name in found:
            continue
        found.add(name)
        try:
            requirements = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        todo += [one.name for one in requirements if not one.marker or one.marker.evaluate({'extra': ''})]
    return found


def listed() -> list[str]:
    return [name for name in LISTED.read_text().split('\n') if name and not name.startswith('#')]


@pytest.fixture(scope='module')
def gpu_machine(tmp_path_factory) -> dict:
    "The environment of a process that can import what the machine has and the wheels bring, and nothing else."
    allowed = with_requirements(HAS) | set(map(normal, listed()))
    modules = importlib.metadata.packages_distributions().items()
    blocked = [module for module, names in modules if not allowed & set(map(normal, names))]
    blocked = [name for name in blocked if name not in {'pe_advseg', *sys.stdlib_module_names}]
    assert {'matplotlib', 'tensorboard', 'requests', 'papermill'} <= set(blocked)
    folder = tmp_path_factory.mktemp('guard')
    (folder / 'sitecustomize.py').write_text(GUARD.format(blocked=json.dumps(blocked)))
    return os.environ | {'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1'}


def test_nothing_else_is_imported_and_a_killed_call_loses_nothing(straight, gpu_machine, tmp_path):
    "Calls of growing length: the first are killed, the others stop themselves; the last says that all is done."
    project = tmp_path / 'project'
    project.mkdir()
    words = ['--scale', 'smoke', '--methods', ','.join(METHODS)]
    ended = []
    for seconds in (0.2, 3, 8, 16, 32, 64, 128, 256):
        command = [sys.executable, ROOT / 'tools' / 'gpu.py', *words, '--seconds', str(seconds)]
        machine = gpu_machine | {'PE_ADVSEG_HOME': str(project)}
        done = subprocess.run(command, env=machine, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode in (0, 75), done.stdout + done.stderr[-3000:]
        ended.append(done.returncode)
        if done.returncode == 0:
            break
    assert ended[0] == 75 and ended[-1] == 0, ended
    assert 'finished' in done.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PE_ADVSEG_HOME', str(project))
        check_tables(straight)


def test_what_the_wheels_bring_is_what_a_machine_has_none_of():
    "The list holds no torch and no numpy, and what our dependencies pin is on it under the same name."
    assert not set(listed()) & {*HAS, 'torchvision'}
    assert listed() == sorted(listed())
