"""The commands of the README at smoke scale, as a newcomer types them; the real patient where it is at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
FUMPE = ROOT.parent / 'shared' / 'data' / 'FUMPE'
COMMAND = Path(sys.executable).with_name('pe-advseg')
real_patient = pytest.mark.skipif(
    not FUMPE.is_dir(), reason='the real patient lies in ../shared/data/FUMPE, which this checkout does not have'
)


def pe_advseg(project: Path, *words, timeout=600):
    "Run the command with its data, runs and figures in the folder `project`."
    if not (project / 'nbs').exists():
        (project / 'nbs').symlink_to(ROOT / 'nbs')
    environment = os.environ | {
        'PE_ADVSEG_HOME': str(project),
        'OMP_NUM_THREADS': '1',
        'MPLBACKEND': 'agg',
        'COLUMNS': '200',
        'TERM': 'dumb',
    }
    return subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return tmp_path_factory.mktemp('project')


def test_the_main_job_leaves_tables_and_figures(project):
    result = pe_advseg(project, 'paper', '--scale', 'smoke')
    assert result.returncode == 0, result.stderr[-3000:]
    figures, results = project / 'figures', project / 'figures' / 'results'
    for name in (
        'overview',
        '01_hospitals',
        '03_comparison',
        '03_supervised_and_semi_supervised',
        '03_without_and_with_features',
        '03_methods',
        '03_learning_curves',
    ):
        name += '' if name == 'overview' else '_smoke'  # a small run never replaces the figures of a large one
        assert (figures / f'{name}.png').read_bytes()[:4] == b'\x89PNG', name
    scores = pd.read_csv(results / '03_scores_smoke.csv')
    assert {
        'method',
        'seed',
        'site',
        'patient',
        'dice',
        'released_iou',
        'data',
        'split',
        'commit',
        'transductive',
    } <= set(scores.columns)
    assert set(scores.data) == {'synthetic source and synthetic target'}
    assert {
        'supervised',
        'batchnorm_adapted',
        'adversarial',
        'feature_enhanced',
        'feature_enhanced_as_released',
        'style_mixing',
        'style_mixing_features',
        'oracle',
    } <= set(scores.method)
    # no name of a patient's folder in any result
    for table in results.glob('*.csv'):
        assert 'PAT0' not in table.read_text(), table.name


def test_the_main_job_again_trains_nothing_twice(project):
    runs = {path: path.stat().st_mtime_ns for path in (project / 'runs').glob('*/last.json')}
    assert runs
    result = pe_advseg(project, 'experiment', '03_semi_supervised', '--scale', 'smoke')
    assert result.returncode == 0, result.stderr[-3000:]
    assert runs == {path: path.stat().st_mtime_ns for path in (project / 'runs').glob('*/last.json')}


def test_the_third_hospital_leaves_a_figure(project):
    result = pe_advseg(project, 'experiment', '04_third_hospital', '--scale', 'smoke')
    assert result.returncode == 0, result.stderr[-3000:]
    assert (project / 'figures' / '04_third_hospital_smoke.png').read_bytes()[:4] == b'\x89PNG'


def test_train_and_evaluate(project):
    result = pe_advseg(project, 'train', '--method', 'style_mixing', '--scale', 'smoke', '--seed', 5)
    assert result.returncode == 0, result.stderr[-2000:]
    run = Path(result.stdout.split('the run is in ')[1].strip().replace('\n', ''))
    assert (run / 'history.csv').exists()
    assert 'waiting for the loader' in result.stdout + result.stderr
    result = pe_advseg(project, 'evaluate', run, '--scale', 'smoke')
    assert result.returncode == 0 and 'source' in result.stdout and 'synthetic' in result.stdout, result.stderr[-2000:]


def test_phantom_and_check(project, tmp_path):
    hospital = tmp_path / 'hospital'
    result = pe_advseg(project, 'phantom', hospital, '--hospital', 'island', '--patients', 2, '--shape', '12x48x48')
    assert result.returncode == 0, result.stderr
    assert pe_advseg(project, 'check', hospital).returncode == 0
    victim = sorted(next(path for path in hospital.iterdir() if path.is_dir()).glob('*.dcm'))[5]
    victim.unlink()  # a slice is lost
    result = pe_advseg(project, 'check', hospital)
    assert result.returncode == 1 and 'gap' in result.stdout


@pytest.mark.parametrize(
    'words, says',
    [
        (('train', '--method', 'magic'), 'Choose one of'),
        (('paper', '--scale', 'huge'), 'smoke, demo, study, paper'),
        (('paper', '--data', 'nowhere', '--scale', 'smoke'), 'does not exist'),
        (('experiment', '99_nothing'), 'there is no experiment'),
    ],
)
def test_mistakes_are_one_line(project, words, says):
    result = pe_advseg(project, *words)
    assert result.returncode != 0 and says in result.stderr and 'Traceback' not in result.stderr, result.stderr[-1000:]


@real_patient
def test_one_labelled_patient_is_too_few_and_the_message_says_how_many(project):
    result = pe_advseg(project, 'paper', '--data', FUMPE, '--scale', 'smoke')
    assert result.returncode != 0
    assert 'needs at least 3 labelled patients' in result.stderr and 'found 1' in result.stderr
    assert 'Traceback' not in result.stderr


@real_patient
def test_the_real_patient_as_the_unlabelled_hospital(project):
    result = pe_advseg(project, 'experiment', '03_semi_supervised', '--target', FUMPE, '--scale', 'smoke')
    assert result.returncode == 0, result.stderr[-3000:]
    scores = pd.read_csv(project / 'figures' / 'results' / '03_scores_smoke_real_fumpe.csv')
    assert set(scores.data) == {'synthetic source and real target'} and scores.transductive.all()
    of_target = scores[scores.site == 'target']
    assert (
        of_target.patient.nunique() == 1 and abs(of_target.clot_ml.iloc[0] - 18.1) < 0.1
    )  # the expert's 42,840 voxels
    assert 'oracle' not in set(scores.method)  # nobody sees the label that is scored
    # pictures of the patient stay in runs/, which git ignores
    assert (project / 'runs' / 'figures' / '03_methods_smoke_real_fumpe.png').exists() and not list(
        (project / 'figures').glob('*methods_real*')
    )
    assert not list((project / 'figures').rglob('*real_fumpe*.npz'))


def test_a_folder_that_is_no_run_and_two_folders_of_one_name(tmp_path):
    result = pe_advseg(tmp_path, 'evaluate', tmp_path / 'nothing', '--scale', 'smoke')
    assert result.returncode == 1 and 'is no run' in result.stderr and 'Traceback' not in result.stderr
    from pe_advseg.phantom.phantom_files import write_hospital

    for place in ('a', 'b'):
        write_hospital(
            tmp_path / place / 'scans',
            'harbour' if place == 'a' else 'valley',
            5,
            (12, 64, 64),
            layout='folder',
            workers=1,
            progress=False,
        )
    result = pe_advseg(
        tmp_path, 'train', '--scale', 'smoke', '--data', tmp_path / 'a' / 'scans', '--target', tmp_path / 'b' / 'scans'
    )
    assert result.returncode == 1 and 'name of both folders' in result.stderr and 'Traceback' not in result.stderr


def test_what_to_label_next_leaves_tables_and_a_figure(project):
    result = pe_advseg(project, 'experiment', '08_what_to_label_next', '--scale', 'smoke')
    assert result.returncode == 0, result.stderr[-3000:]
    assert (project / 'figures' / '08_what_to_label_next_smoke.png').read_bytes()[:4] == b'\x89PNG'
    table = pd.read_csv(project / 'figures' / 'results' / '08_strategies_smoke.csv')
    assert set(table.strategy) == {'none', 'all', 'confidence', 'entropy', 'estimated_dice', 'diversity', 'random'}
    assert set(table['data']) == {'synthetic source and synthetic target'} and {'commit', 'split'} <= set(table.columns)


def test_the_whole_circle_closes(project):
    result = pe_advseg(project, 'experiment', '11_the_whole_circle', '--scale', 'smoke')
    assert result.returncode == 0, result.stderr[-3000:]
    circle = project / 'runs' / 'circle' / 'smoke'
    scores = pd.read_csv(circle / 'scores.csv')
    assert scores.groupby('method').patient.nunique().to_dict() == {'before': 2, 'after': 2}
    assert len(list((circle / 'corrections').glob('study-*/0001/correction.json'))) == 1
    assert len(list(circle.glob('annotations-*/study-*/report.html'))) == 3


def test_the_circle_in_the_shell(project, tmp_path):
    "As a newcomer types it, with the shipped model: annotate, what next, correct elsewhere, import, train on."
    import nibabel
    import numpy as np

    scans, out, store = tmp_path / 'scans', tmp_path / 'annotations', tmp_path / 'corrections'
    wanted = ('--hospital', 'delta', '--patients', 2, '--shape', '16x96x96', '--mask', 'nifti')
    assert pe_advseg(project, 'phantom', scans, *wanted).returncode == 0
    result = pe_advseg(project, 'annotate', scans, '--out', out)
    assert result.returncode == 0 and 'Synthetic training, research only, not for diagnosis' in result.stdout, (
        result.stderr[-2000:]
    )
    assert (out / 'index.html').exists() and len(list(out.glob('study-*'))) == 2
    assert pe_advseg(project, 'queue', out, '--store', scans).returncode == 1  # a folder that is no store
    result = pe_advseg(project, 'queue', out, '--store', store)
    assert result.returncode == 0 and 'there is no store of corrections yet' in result.stderr, result.stderr[-2000:]
    first = next(word for word in result.stdout.split() if word.startswith('study-'))
    # corrected elsewhere: the expert's mask, saved by another program under the study's name
    folders = sorted(path for path in scans.iterdir() if path.is_dir())
    edited = tmp_path / 'edited'
    edited.mkdir()
    for folder in folders:
        truth = nibabel.load(next(folder.glob('mask.nii.gz')))
        annotated = nibabel.load(out / first / 'mask.nii.gz')
        if annotated.shape == truth.shape and np.allclose(annotated.affine, truth.affine):
            mask = np.asarray(truth.dataobj).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(mask, truth.affine), edited / f'{first}.nii.gz')
    assert list(edited.iterdir())
    given = ('--scans', scans, '--reviewer', 'Dr Demo', '--store', store, '--annotations', out)
    result = pe_advseg(project, 'import-corrections', edited, *given)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    result = pe_advseg(project, 'queue', out, '--store', store)
    assert first not in result.stdout  # it has been corrected
    result = pe_advseg(project, 'retrain', store, '--steps', 2)
    assert result.returncode == 0 and 'use it with' in result.stdout, result.stderr[-2000:]
    run = result.stdout.split('--run ')[1].split('`')[0]
    assert (project / 'runs' / run / 'retrained.json').exists()
