"""Learning from corrections: nobody is forgotten, or scored on what was learned."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_advseg.core.errors import InputError, TrainingError
from pe_advseg.data.hospital_cache import build_cache
from pe_advseg.data.layouts import find_studies
from pe_advseg.evaluation.evaluate import score_run
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.review.retrain import bring_run, retrain
from pe_advseg.review.retraining_data import with_corrections
from pe_advseg.review.worklist import make_worklist
from pe_advseg.training.config import TrainConfig
from pe_advseg.training.run_folder import find_run, is_finished, read_config, trained_on
from pe_advseg.training.train import train
from pe_advseg.training.trained_networks import load_network, slim_run


@pytest.fixture(scope='module')
def hospitals(tmp_path_factory):
    "Labelled patients, a run that lies elsewhere, and the other hospital's patients."
    place, shape = tmp_path_factory.mktemp('retrain'), (12, 64, 64)
    folders = {
        name: write_hospital(place / name, name, count, shape, layout='folder', workers=1, progress=False)
        for name, count in (('harbour', 4), ('valley', 4))
    }
    cached = {
        name: list(build_cache(find_studies(folder), place / 'cache', 5.0, progress=False).values())
        for name, folder in folders.items()
    }
    config = TrainConfig(network_options=dict(stem_stride=2), batch=2, patch=48, steps=2)
    return place, folders, cached, train(config, cached['harbour'][:3], [], place / 'elsewhere', progress=False)


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv('PE_ADVSEG_HOME', str(tmp_path))
    return tmp_path


def corrections(place, cached, patients, wrong=False):
    "A store with the true masks (or with one voxel less)."
    from pe_advseg.data.read_study import read_study
    from pe_advseg.review.save_correction import save_correction

    for study in (cached[patient] for patient in patients):
        volume, mask = read_study(study.study)
        numbers = (mask > 0).astype(np.uint16)
        if wrong:
            numbers.ravel()[np.flatnonzero(numbers)[0]] = 0
        save_correction(place, study.study.scan, volume, numbers, reviewer='tester')
    return place


def test_the_newest_correction_counts_and_says_which_it_is(hospitals, own):
    _, _, cached, start = hospitals
    ill = [number for number, study in enumerate(cached['valley']) if study.positive]
    store = corrections(own / 'store', cached['valley'], ill[:1], wrong=True)
    first = retrain(store, start, steps=1, progress=False)
    corrections(store, cached['valley'], ill[:1])
    second = retrain(store, start, steps=1, progress=False)
    said = [json.loads((run / 'retrained.json').read_text())['corrections'] for run in (first, second)]
    assert first != second and [found[0]['version'] for found in said] == ['0001', '0002']
    assert said[1][0]['labels'] == cached['valley'][ill[0]].mask_digest != said[0][0]['labels']
    assert trained_on(second) == trained_on(start) | {cached['valley'][ill[0]].pixel_digest}
    for run in (first, second):
        with pytest.raises(TrainingError, match='were trained on'):
            score_run(run, [cached['valley'][ill[0]]], 'target')
    assert len(score_run(second, [cached['valley'][number] for number in range(4) if number != ill[0]], 'target')) == 3


def test_two_runs_of_one_name_do_not_replace_each_other(hospitals, own):
    place, _, cached, start = hospitals
    other = train(
        TrainConfig(network_options=dict(stem_stride=2), batch=2, patch=48, steps=2, seed=5),
        cached['harbour'][:1],
        [],
        own / 'b',
        progress=False,
    )
    models = [slim_run(run, own / maker / 'synthetic') for maker, run in (('ours', start), ('theirs', other))]
    brought = [bring_run(model, own / 'runs') for model in models]
    assert len({run.name for run in brought}) == 2 and all(run.name.startswith('synthetic-') for run in brought)
    for model, run in zip(models, brought, strict=False):
        assert trained_on(run) == trained_on(model) and bring_run(model, own / 'runs') == run == bring_run(
            run, own / 'runs'
        )
        for mine, theirs in zip(
            load_network(run)[0].state_dict().values(), load_network(model)[0].state_dict().values(), strict=False
        ):
            assert (mine == theirs).all()


def test_what_a_copy_began_from_is_not_forgotten(hospitals, own):
    _, folders, cached, start = hospitals
    once = retrain(folders['valley'], start, folder=own / 'a', steps=1, progress=False)
    copy = bring_run(once, own / 'b')
    assert read_config(copy).initial is None and trained_on(copy) == {
        study.pixel_digest for study in cached['harbour'][:3] + cached['valley']
    }


def test_killed_while_it_learns_the_same_command_ends_where_it_would_have(hospitals, own):
    _, folders, _, start = hospitals
    code = (
        'import os, sys, pe_advseg.review.retrain as r\n'
        'old = r.train\n'
        'r.train = lambda *a, **k: (old(*a, **{**k, "stop_after": 2, "checkpoint_every": 1}), os._exit(9))\n'
        'r.retrain(sys.argv[1], sys.argv[2], folder=sys.argv[3], steps=4, progress=False)\n'
    )
    ended = subprocess.run(
        [sys.executable, '-c', code, str(folders['valley']), str(start), str(own / 'killed')],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 9, ended.stderr[-2000:]
    assert not any(
        is_finished(run) for run in (own / 'killed').glob('supervised-seed0-*') if (run / 'retrained.json').exists()
    )
    run, straight = [
        retrain(folders['valley'], start, folder=own / place, steps=4, progress=False)
        for place in ('killed', 'straight')
    ]
    assert run.name == straight.name
    for mine, theirs in zip(
        load_network(run)[0].state_dict().values(), load_network(straight)[0].state_dict().values(), strict=False
    ):
        assert (mine == theirs).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 200), st.integers(1, 200), st.integers(0, 20))
def test_corrections_are_at_least_half_and_never_twice(base, corrected, both):
    from types import SimpleNamespace

    base, corrected = (
        [SimpleNamespace(pixel_digest=f'{start + number}') for number in range(count)]
        for start, count in ((0, base), (1000, corrected))
    )
    again = [SimpleNamespace(pixel_digest=study.pixel_digest, old=True) for study in corrected[:both]]
    listed = with_corrections(base + again, corrected)
    theirs = [study for study in listed if int(study.pixel_digest) >= 1000]
    assert not any(hasattr(study, 'old') for study in listed)
    assert len(theirs) * 2 >= len(listed) and len(listed) - len(theirs) == len(base)
    assert len(base) <= len(theirs) or len(theirs) == len(corrected)
    assert len(theirs) < len(base) + len(corrected) or len(theirs) == len(corrected)  # no more often than half asks for


def test_a_store_that_cannot_be_learnt_from_says_so(hospitals, own):
    _, _, _, start = hospitals
    with pytest.raises(InputError, match='no corrections'):
        retrain(own / 'nothing', start, progress=False)
    with pytest.raises(ValueError, match='no run'):
        retrain(own / 'nothing', 'no such run', progress=False)
    with pytest.raises(InputError, match='no annotated scans'):
        make_worklist(own)
    with pytest.raises(ValueError, match='is no run'):
        bring_run(own, own / 'runs')
    assert find_run(start) == start
