"""Training: kill -9 and resume, several processes, weight 0, damaged checkpoints, not-a-number."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from support.tiny_hospitals import cached_hospitals

from pe_advseg.core.errors import TrainingError
from pe_advseg.training.checkpoint import load_checkpoint, pack, save_checkpoint
from pe_advseg.training.config import TrainConfig
from pe_advseg.training.released import Defects
from pe_advseg.training.run_folder import read_history
from pe_advseg.training.scales import SCALES
from pe_advseg.training.train import train
from pe_advseg.training.update import check_finite

SMALL = dict(network_options={'upsampling': 'bilinear'}, batch=2, patch=32)


@pytest.fixture(scope='session')
def hospitals(tmp_path_factory):
    "Two tiny synthetic hospitals on disk, cached."
    return cached_hospitals(tmp_path_factory.mktemp('hospitals'), patients=3)


def same(one: Path, two: Path) -> None:
    "Every tensor and every number of two runs is the same."
    states = [pack(load_checkpoint(folder)[0])[0] for folder in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    pd.testing.assert_frame_equal(read_history(one), read_history(two))


# --- kill -9 -------------------------------------------------------------------------------------------------

CHILD = """
import json
import sys
from pathlib import Path

import torch

from pe_advseg.data.hospital_cache import build_cache
from pe_advseg.data.studies import Study
from pe_advseg.training.config import TrainConfig
from pe_advseg.training.train import train

torch.set_num_threads(1)
job = json.loads(Path(sys.argv[1]).read_text())
studies = [[Study(h, p, Path(s), Path(m)) for h, p, s, m in part] for part in job['studies']]
cached = [list(build_cache(part, job['cache'], 6.0, progress=False).values()) for part in studies]
quiet = dict(progress=False, checkpoint_every=2, log_every=1)
print(train(TrainConfig(**job['config']), *cached, job['runs'], **quiet), flush=True)
"""


@pytest.mark.parametrize('method', ['feature_enhanced', 'style_mixing_features'])
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(hospitals, tmp_path, method):
    options = {'pseudo_start': 0.2} if method == 'feature_enhanced' else {}
    config = dict(method=method, method_options=options, steps=24, **SMALL)
    job = dict(
        config=config,
        cache=str(hospitals[0][0].folder.parent),
        studies=[
            [(s.study.hospital, s.study.patient, str(s.study.scan), str(s.study.mask)) for s in part]
            for part in hospitals
        ],
    )

    def start(place):
        path = tmp_path / f'{place}.json'
        path.write_text(json.dumps(job | dict(runs=str(tmp_path / place))))
        return subprocess.Popen(
            [sys.executable, '-c', CHILD, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {'OMP_NUM_THREADS': '1'},
        )

    name = TrainConfig(**config).name
    assert start('straight').wait(timeout=300) == 0
    kills = 0
    for wanted in (4, 12):  # kill while it is on its way after that checkpoint
        child = start('killed')
        last = tmp_path / 'killed' / name / 'last.json'
        deadline = time.monotonic() + 200
        while child.poll() is None and time.monotonic() < deadline:
            if last.exists() and json.loads(last.read_text())[0]['step'] >= wanted:
                child.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        child.wait()
    child = start('killed')
    output, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    assert kills >= 1
    same(tmp_path / 'straight' / name, tmp_path / 'killed' / name)


@pytest.mark.parametrize('method', ['supervised', 'adversarial', 'feature_enhanced_as_released'])
def test_stopped_and_resumed_is_the_same(hospitals, tmp_path, method):
    torch.set_num_threads(1)
    config = TrainConfig(method, {} if method == 'supervised' else {'pseudo_start': 0.2}, steps=15, **SMALL)
    quiet = dict(progress=False, checkpoint_every=3, log_every=1)
    straight = train(config, *hospitals, tmp_path / 'a', **quiet)
    train(config, *hospitals, tmp_path / 'b', stop_after=8, **quiet)
    same(straight, train(config, *hospitals, tmp_path / 'b', **quiet))


# --- several processes ---------------------------------------------------------------------------------------

WORKER = """
import sys

import torch
from lightning_fabric import Fabric

from pe_advseg.models.networks import build_network
from pe_advseg.training.losses import bce_dice
from pe_advseg.training.update import share_gradients

torch.set_num_threads(1)
processes, out = int(sys.argv[1]), sys.argv[2]
fabric = Fabric(accelerator='cpu', devices=processes, strategy='ddp' if processes > 1 else 'auto')
fabric.launch()
torch.manual_seed(0)
network = build_network('hrnet_tiny', upsampling='bilinear').double().eval()  # batch statistics are per process
generator = torch.Generator().manual_seed(1)
image = torch.randn(4, 1, 32, 32, generator=generator).double()
mask = (torch.rand(4, 1, 32, 32, generator=generator) < 0.1).double()
share = 4 // processes
mine = slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)
fabric.backward(bce_dice(network(image[mine]), mask[mine]))
share_gradients(fabric, list(network.parameters()))
if fabric.global_rank == 0:
    torch.save([p.grad for p in network.parameters()], out)
"""


def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(tmp_path):
    script = tmp_path / 'worker.py'
    script.write_text(WORKER)
    gradients = []
    for processes in (1, 2):
        out = tmp_path / f'{processes}.gradients'
        result = subprocess.run(
            [sys.executable, str(script), str(processes), str(out)], capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr[-2000:]
        gradients.append(torch.load(out, weights_only=True))
    assert any(g.abs().max() > 1e-3 for g in gradients[0])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_two_processes_train_by_the_same_command(tmp_path):
    "The whole command of the README with --devices 2, at smoke scale; each process draws its own half of the batch."
    environment = os.environ | {'PE_ADVSEG_HOME': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    shell_command = Path(sys.executable).with_name('pe-advseg')
    options = {'--method': 'feature_enhanced', '--scale': 'smoke', '--devices': '2'}
    command = [shell_command, 'train', *itertools.chain.from_iterable(options.items())]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    (run,) = [path for path in (tmp_path / 'runs').iterdir() if path.name.startswith('feature_enhanced')]
    assert load_checkpoint(run)[1] == SCALES['smoke'].steps


# --- what a method must never do -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'method, options',
    [
        ('adversarial', dict(labelled_weight=0, unlabelled_weight=0, pseudo_weight=0)),
        ('feature_enhanced', dict(labelled_weight=0, unlabelled_weight=0, pseudo_weight=0)),
        ('style_mixing', dict(weight=0)),
    ],
)
def test_weight_zero_is_supervised_training_bit_for_bit(hospitals, tmp_path, method, options):
    torch.set_num_threads(1)
    quiet = dict(progress=False, checkpoint_every=6)
    runs = [
        train(TrainConfig(name, opts, steps=6, **SMALL), *hospitals, tmp_path, **quiet)
        for name, opts in (('supervised', {}), (method, options))
    ]
    networks = [load_checkpoint(run)[0]['networks']['network'] for run in runs]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


def test_masks_of_the_pool_are_never_looked_at(hospitals, tmp_path):
    "Training with the pool's masks and without them gives the same network."
    torch.set_num_threads(1)
    source, target = hospitals
    config, quiet = TrainConfig('style_mixing_features', steps=4, **SMALL), dict(progress=False)
    runs = [
        train(config, source, pool, tmp_path / name, **quiet)
        for name, pool in (('with', target), ('without', [s.without_mask() for s in target]))
    ]
    same(*runs)


# --- faults --------------------------------------------------------------------------------------------------


def test_a_term_that_is_not_a_number_is_named_with_its_step():
    with pytest.raises(TrainingError, match="step 7: the loss 'pseudo'"):
        check_finite({'segmentation': torch.tensor(1.0), 'pseudo': torch.tensor(float('inf'))}, 7, 'loss')


def test_a_damaged_checkpoint_is_passed_over_and_two_are_an_error(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, {'x': torch.full((100,), float(step))}, step)
    newest = tmp_path / 'checkpoint-0000002.safetensors'
    newest.write_bytes(newest.read_bytes()[:-30])
    assert load_checkpoint(tmp_path)[1] == 1
    (tmp_path / 'checkpoint-0000001.safetensors').write_bytes(b'nonsense')
    with pytest.raises(TrainingError, match='every checkpoint is damaged'):
        load_checkpoint(tmp_path)


def test_two_processes_cannot_train_in_one_folder(hospitals, tmp_path):
    import filelock

    config = TrainConfig(steps=2, **SMALL)
    (tmp_path / config.name).mkdir()
    with filelock.FileLock(tmp_path / config.name / 'lock'), pytest.raises(filelock.Timeout):
        train(config, *hospitals, tmp_path, progress=False)


def test_every_defect_changes_the_training(hospitals, tmp_path):
    "A switch that changes nothing would be a switch in name only."
    torch.set_num_threads(1)
    base = dict(steps=8, **SMALL)
    final = {}
    for name in ('corrected', *Defects.__dataclass_fields__):
        options = dict(
            defects={} if name == 'corrected' else {name: True}, pseudo_start=0.2, threshold=0.5, pass_length=2
        )
        run = train(TrainConfig('feature_enhanced_as_released', options, **base), *hospitals, tmp_path, progress=False)
        networks = load_checkpoint(run)[0]['networks']
        weights = [value.flatten().double() for part in networks.values() for value in part.values()]
        final[name] = torch.cat(weights)
    for name, value in final.items():
        # another discriminator has other weights; scaling per slice is tested below, where it can show
        if name not in ('corrected', 'joint_softmax', 'per_slice_scaling'):
            assert not torch.equal(value, final['corrected']), name


def test_scaling_per_slice_matters_only_where_air_or_contrast_is_missing(hospitals):
    "A slice that reaches both ends of the window is scaled the same in both readings: this defect is often none."
    from pe_advseg.data.batches import draw_batch
    from pe_advseg.data.patches import Draw
    from pe_advseg.training.methods import Method
    from pe_advseg.training.released import FeatureEnhancedReleased

    assert FeatureEnhancedReleased(defects={'per_slice_scaling': True}).per_slice_scaling
    assert not Method.per_slice_scaling
    config = TrainConfig(batch=4, patch=8)
    fixed, per_slice = (
        draw_batch(hospitals[0], 40, config.slice_config(flag), Draw(0, 0), 'x', True).image for flag in (False, True)
    )
    ends = (fixed.amin((1, 2, 3)) == -1) & (fixed.amax((1, 2, 3)) == 1)
    assert ends.any() and not ends.all()
    torch.testing.assert_close(fixed[ends], per_slice[ends])
    assert not torch.allclose(fixed[~ends], per_slice[~ends])
