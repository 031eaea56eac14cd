"""Calibration of a run: contrast where the bolus is known, expected Dice against drawn truths, fits by formula."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pe_advseg.core.errors import InputError, TrainingError
from pe_advseg.core.probability import STEP, to_bytes
from pe_advseg.core.volume import Volume
from pe_advseg.data.contrast_level import contrast_level
from pe_advseg.evaluation.assessment import assess, unlike_training
from pe_advseg.evaluation.calibration import calibrate, read_calibration
from pe_advseg.evaluation.dice_estimate import LEVEL, estimate, fit_dice
from pe_advseg.evaluation.reliability import calibration_error, calibration_figure, reliability_table
from pe_advseg.evaluation.uncertainty import SCAN_PROPERTIES, UNCERTAINTIES, outline_uncertainty, scan_properties
from pe_advseg.lab.runs import train_all
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.training.protocol import prepare_setting
from pe_advseg.training.trained_networks import slim_run

ROOT = Path(__file__).resolve().parent.parent
FUMPE = Path(os.environ.get('PE_ADVSEG_FUMPE', ROOT.parent / 'shared' / 'data' / 'FUMPE'))


# --- the scan ---


@pytest.mark.parametrize('name', HOSPITALS)
@pytest.mark.parametrize('patient', [1, 3])
def test_contrast_is_the_bolus_that_was_given(name, patient):
    study = make_study(HOSPITALS[name], patient, (40, 112, 112))
    bolus = study.patient.contrast
    assert contrast_level(study.volume) == pytest.approx(max(bolus['artery'], bolus['aorta'], bolus['vein']), rel=0.1)


def same_bolus(hu, noise=20):
    hospital = dataclasses.replace(
        HOSPITALS['harbour'],
        noise_hu=(noise, 0),
        **dict.fromkeys(('artery_hu', 'vein_hu', 'aorta_hu', 'cava_hu'), (hu, 0)),
    )
    return scan_properties(make_study(hospital, 2, (36, 112, 112)).volume)


@pytest.mark.parametrize('blood, cava', [(50, 400), (115, 500), (130, 900)])
def test_an_undiluted_cava_is_not_the_level_of_dim_vessels(blood, cava):
    dim = dict.fromkeys(('artery_hu', 'vein_hu', 'aorta_hu'), (blood, 0)) | dict(cava_hu=(cava, 0))
    study = make_study(dataclasses.replace(HOSPITALS['heath'], **dim), 3, (40, 112, 112))
    assert contrast_level(study.volume) < max(100, 1.1 * blood)


def test_contrast_follows_the_bolus_and_noise_the_dose():
    measured = [same_bolus(hu)['contrast_hu'] for hu in (45, 160, 220, 300, 450)]
    assert measured == sorted(measured) and measured[0] < 120
    np.testing.assert_allclose(measured[1:], (160, 220, 300, 450), rtol=0.05)
    quiet, loud = (same_bolus(300, noise) for noise in (10, 40))
    assert loud['noise_hu'] > 1.5 * quiet['noise_hu'] and loud['contrast_hu'] == pytest.approx(
        quiet['contrast_hu'], rel=0.03
    )


def test_contrast_of_a_scan_stored_another_way_round():
    scan = make_study(HOSPITALS['delta'], 1, (40, 96, 96)).volume
    expected = contrast_level(scan)
    for flips in ([1, 1, -1], [1, -1, 1], [-1, -1, -1]):
        turned = dataclasses.replace(
            scan, hu=scan.hu[tuple(slice(None, None, flip) for flip in flips)], direction=scan.direction * flips
        )
        assert contrast_level(turned) == pytest.approx(expected, abs=0.01)
    coronal = dataclasses.replace(
        scan,
        hu=np.ascontiguousarray(scan.hu.transpose(1, 0, 2)),
        direction=scan.direction[:, [1, 0, 2]],
        spacing=tuple(scan.spacing[axis] for axis in (1, 0, 2)),
    )
    assert contrast_level(coronal) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 64, 64), (3, 2, 500), (20, 40, 40)])
@pytest.mark.parametrize('value', [-1024, 40, 3071])
def test_what_cannot_be_measured_is_none(shape, value):
    found = scan_properties(Volume(np.full(shape, value, np.int16), (1.0, 0.7, 0.7), (0, 0, 0), np.eye(3)[:, ::-1]))
    assert found['contrast_hu'] is None and (found['slice_mm'], found['pixel_mm']) == (1.0, 0.7)
    json.dumps(found, allow_nan=False)


def test_a_large_scan_costs_little_memory():
    pytest.importorskip('resource')
    code = """
import resource
import sys

import numpy as np

from pe_advseg.core.volume import Volume
from pe_advseg.evaluation.uncertainty import outline_uncertainty, scan_properties
volume = Volume(np.full((300, 512, 512), 40, np.int16), (1., .7, .7), (0, 0, 0), np.eye(3)[:, ::-1])
probability, mask = np.full(volume.shape, 3, np.uint8), np.ones(volume.shape, bool)
mask[1:] = False
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan_properties(volume)
outline_uncertainty(mask, probability, probability)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # bytes on a Mac, else kilobytes
print(grown / 1024 ** (2 if sys.platform == 'darwin' else 1))
"""
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300


def test_a_real_scan_has_plausible_properties():
    if not (FUMPE / 'CT_scans').is_dir():
        pytest.skip('the real patient is not on this machine')
    from pe_advseg.data.layouts import find_studies
    from pe_advseg.data.read_study import read_study

    found = scan_properties(read_study(find_studies(FUMPE)[0])[0])
    # what CT pulmonary angiography has, not what this patient has
    assert 150 < found['contrast_hu'] < 900 and 3 < found['noise_hu'] < 60
    assert found['slice_mm'] == 1.0


# --- what the network says of itself ---


def test_doubts_against_numpy():
    rng = np.random.default_rng(3)
    probability, confidence = rng.integers(0, 251, (2, 20, 30, 30), dtype=np.uint8)
    mask = rng.random(probability.shape) < 0.1
    p = probability * STEP
    found = outline_uncertainty(mask, probability, confidence)
    assert found['mean_probability'] == pytest.approx(p[mask].mean())
    assert found['mean_confidence'] == pytest.approx((confidence * STEP)[mask].mean())
    assert found['mean_entropy'] == pytest.approx(
        np.mean([stats.entropy([v, 1 - v], base=2) for v in p[mask]]), abs=1e-4
    )
    assert found['expected_dice'] == pytest.approx(2 * p[mask].sum() / (mask.sum() + p.sum()))
    numbered = mask.astype(np.uint16) * 7  # numbered emboli do, too
    assert outline_uncertainty(numbered, probability)['expected_dice'] == found['expected_dice']
    with pytest.raises(ValueError, match='same shape'):
        outline_uncertainty(mask, probability[1:])


@pytest.mark.parametrize('shape', [(6, 20, 20), (12, 40, 40)])
def test_the_expected_dice_is_the_mean_over_truths_drawn_from_the_probabilities(shape):
    rng = np.random.default_rng(0)
    probability = to_bytes(rng.beta(0.3, 2, shape))
    mask = probability * STEP > 0.5
    dice = []
    for _ in range(400):
        truth = rng.random(shape) < probability * STEP
        dice.append(2 * np.count_nonzero(truth & mask) / (truth.sum() + mask.sum()))
    assert outline_uncertainty(mask, probability)['expected_dice'] == pytest.approx(
        np.mean(dice), abs=4 * np.std(dice) / 20
    )


def test_nothing_found_and_everything_certain():
    nothing = np.zeros((4, 5, 5), np.uint8)
    assert outline_uncertainty(nothing > 0, nothing) == dict.fromkeys(UNCERTAINTIES)
    certain = np.where(np.arange(100).reshape(4, 5, 5) < 10, 250, 0).astype(np.uint8)
    found = outline_uncertainty(certain > 0, certain)
    assert found['expected_dice'] == pytest.approx(1) and found['mean_entropy'] == pytest.approx(0, abs=1e-4)


# --- the fit ---


def patients(count, spread, seed=0, slope=0.8):
    rng = np.random.default_rng(seed)
    return [
        dict(
            expected_dice=e,
            mean_entropy=rng.uniform(0.2, 0.6),
            mean_confidence=rng.uniform(0.2, 0.8),
            clot_ml=3.0,
            predicted_ml=2.0,
            dice=float(np.clip(0.1 + slope * e + rng.normal(0, spread), 0, 1)),
        )
        for e in rng.uniform(0.3, 0.9, count)
    ]


def test_the_fit_is_the_least_squares_line():
    rows = patients(40, 0.04)
    fit = fit_dice(rows)['fit']
    line = stats.linregress([row['expected_dice'] for row in rows], [row['dice'] for row in rows])
    assert list(fit['slopes']) == ['expected_dice']  # the others are pure chance: the simpler line is kept
    assert (fit['slopes']['expected_dice'], fit['intercept']) == pytest.approx((line.slope, line.intercept), abs=1e-6)


def test_a_second_number_that_helps_is_taken():
    rows = patients(40, 0.01)
    for row in rows:
        row['dice'] = 0.1 + 0.4 * row['expected_dice'] + 0.5 * row['mean_confidence']
    fit = fit_dice(rows)['fit']
    assert fit['slopes'] == pytest.approx(dict(expected_dice=0.4, mean_confidence=0.5), abs=1e-6)
    for row in rows:
        row['mean_confidence'] = None  # no discriminator
    assert 'mean_confidence' not in fit_dice(rows)['fit']['slopes']


@pytest.mark.parametrize('slope', [-0.8, -0.2, 0.0, 0.5])
def test_more_doubt_never_raises_the_estimate(slope):
    fit = fit_dice(patients(30, 0.1, seed=2, slope=slope))['fit']
    base = dict(expected_dice=0.5, mean_confidence=0.5, mean_entropy=0.4)
    rising = [
        estimate(fit, base | dict(expected_dice=e, mean_confidence=e, mean_entropy=1 - e))
        for e in np.linspace(0, 1, 21)
    ]
    assert rising == sorted(rising) and rising[0] >= 0 and rising[-1] <= 1


def test_left_out_errors_by_hand_and_the_naive_guess():
    rows = patients(12, 0.05, slope=0.0)  # nothing to learn: the mean is the fit
    answer, dice = fit_dice(rows), np.array([row['dice'] for row in rows])
    others = (dice.sum() - dice) / (len(dice) - 1)
    assert answer['naive_error'] == pytest.approx(np.abs(others - dice).mean())
    assert answer['fit']['slopes'] == {} and answer['fit']['intercept'] == pytest.approx(dice.mean())
    left_out = np.array([row['left_out'] for row in rows])
    assert answer['half_width'] == pytest.approx(np.abs(left_out - dice).max())  # 9 of 10 of 13: the 12th of 12


def test_the_interval_holds_its_share_of_new_patients():
    held = []
    for seed in range(12):
        answer = fit_dice(patients(30, 0.1, seed=seed))
        held += [
            abs(estimate(answer['fit'], row) - row['dice']) <= answer['half_width']
            for row in patients(200, 0.1, seed=100 + seed)
        ]
    assert LEVEL - 0.06 < np.mean(held) < LEVEL + 0.08


def test_who_counts():
    healthy, alarm, missed = (
        dict(clot_ml=a, predicted_ml=b, dice=d, **dict.fromkeys(UNCERTAINTIES))
        for a, b, d in ((0.0, 0.0, float('nan')), (0.0, 1.0, 0.0), (5.0, 0.0, 0.0))
    )
    answer = fit_dice([*patients(10, 0.05), healthy, alarm, missed])
    assert (answer['patients'], answer['missed'], answer['without_clot'], answer['false_alarms']) == (10, 1, 2, 1)
    assert answer['error'] == fit_dice(patients(10, 0.05))['error']
    assert fit_dice([healthy] * 9)['fit'] is None and fit_dice([])['patients'] == 0


# --- the assessment ---

RANGES = dict(
    slice_mm=[1.0, 1.5, 2.0], pixel_mm=[0.6, 0.7, 0.9], noise_hu=[12.0, 15.0, 20.0], contrast_hu=[260.0, 330.0, 420.0]
)
USUAL = dict(slice_mm=1.5, pixel_mm=0.7, noise_hu=15.0, contrast_hu=300.0)
DOUBT = dict(mean_probability=0.8, mean_entropy=0.4, mean_confidence=0.6, expected_dice=0.7)


FITTED = fit_dice(patients(20, 0.05))


def calibration(**changes):
    return {**FITTED, 'threshold': 0.5, 'synthetic': True, 'training': dict(scans=9, ranges=RANGES), **changes}


@pytest.mark.parametrize(
    'name, value, words',
    [
        ('slice_mm', 5.0, 'slices of 5 mm; the training scans had 1 to 2'),
        ('pixel_mm', 0.4, 'pixels of 0.4 mm; the training scans had 0.6 to 0.9'),
        ('noise_hu', 30.0, 'noise of about 30 HU; the training scans had 12 to 20'),
        ('contrast_hu', 180.0, 'contrast of about 180 HU; the training scans had 260 to 420'),
        ('contrast_hu', None, 'contrast could not be measured in this scan; the training scans had 260 to 420'),
    ],
)
def test_warnings_in_plain_words(name, value, words):
    assert unlike_training(calibration(), USUAL) == []
    warnings = unlike_training(calibration(), USUAL | {name: value})
    assert warnings == [warnings[0]] and warnings[0].startswith(words)
    answer = assess([calibration()], USUAL | {name: value}, DOUBT)
    assert answer['warnings'] == warnings and 'unlike' in answer['calibration'] and answer['estimated_dice'] is not None


def test_the_margin_is_a_tenth():
    for value, warned in ((418 * 1.1, 0), (420 * 1.11, 1), (260 * 0.91, 0), (260 * 0.89, 1)):
        assert len(unlike_training(calibration(), USUAL | dict(contrast_hu=value))) == warned
    unknown = calibration(training=dict(scans=1, ranges=RANGES | dict(contrast_hu=None)))
    # the training scans could not be measured: nothing to compare with
    assert unlike_training(unknown, USUAL | dict(contrast_hu=9.0)) == []


def test_an_assessment_is_plain_data_and_estimates_only_what_was_calibrated():
    one = assess([calibration()], USUAL, DOUBT)
    assert set(one) == {
        *UNCERTAINTIES,
        'estimated_dice',
        'estimated_dice_low',
        'estimated_dice_high',
        'bound',
        'confidence_correlation',
        'calibration',
        'warnings',
        'scan',
    }
    assert one['estimated_dice'] == pytest.approx(0.1 + 0.8 * 0.7, abs=0.05)
    assert one['calibration'].startswith('on 20 held-out synthetic patients')
    assert one['estimated_dice_low'] == pytest.approx(one['estimated_dice'] - calibration()['half_width'])
    others = dict(
        empty=assess([calibration()], USUAL, dict.fromkeys(UNCERTAINTIES)),
        several=assess([calibration(), calibration()], USUAL, DOUBT),
        half=assess([calibration(), None], USUAL, DOUBT),
        threshold=assess([calibration()], USUAL, DOUBT, threshold=0.2),
        few=assess([calibration(fit=None, patients=3)], USUAL, DOUBT),
    )
    for answer in others.values():
        assert answer['estimated_dice'] is None and answer['calibration'].startswith('none: ')
    for answer in (assess([None], USUAL, DOUBT), assess([], USUAL, DOUBT), assess([None, None], USUAL, DOUBT)):
        assert answer['estimated_dice'] is None and answer['warnings'] == []
        assert 'never calibrated' in answer['calibration']
    for answer in (one, *others.values()):
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    both = assess(
        [calibration(), calibration(training=dict(scans=2, ranges=RANGES | dict(slice_mm=[4.0, 5.0, 6.0])))],
        USUAL,
        DOUBT,
    )
    assert both['warnings'] == ['slices of 1.5 mm; the training scans had 4 to 6']


def test_beyond_what_was_held_out_there_is_a_bound_only():
    """More doubt than any held-out patient: the estimate is an upper bound, its interval begins at 0.

    Less doubt: it ends at 1. A scan unlike the training: anything below.
    """
    low, high = calibration()['fit']['seen']['expected_dice']
    inside, below, above = (
        assess([calibration()], USUAL, DOUBT | dict(expected_dice=value))
        for value in ((low + high) / 2, low - 0.1, high + 0.01)
    )
    assert 'upper bound' not in inside['calibration']
    assert inside['estimated_dice_low'] > 0 and inside['estimated_dice_high'] < 1
    at_the_end = assess([calibration()], USUAL, DOUBT | dict(expected_dice=low))
    assert 'upper bound' in below['calibration'] and below['estimated_dice_low'] == 0
    assert below['estimated_dice'] == pytest.approx(at_the_end['estimated_dice'])
    assert above['estimated_dice_high'] == 1 and above['estimated_dice_low'] > 0
    assert [one['bound'] for one in (inside, below, above)] == [False, True, False]
    noisy = assess([calibration()], USUAL | dict(noise_hu=90.0), DOUBT | dict(expected_dice=(low + high) / 2))
    assert noisy['estimated_dice_low'] == 0
    alarmed = assess([calibration(without_clot=4, false_alarms=3)], USUAL, DOUBT)
    assert 'of 4 without embolism 3 had something drawn' in alarmed['calibration']


def test_how_far_the_discriminator_went_with_the_dice():
    rng = np.random.default_rng(3)
    confidences = zip(patients(20, 0.05), rng.random(20), strict=True)
    rows = [row | dict(mean_confidence=float(value)) for row, value in confidences]
    expected = stats.spearmanr([row['mean_confidence'] for row in rows], [row['dice'] for row in rows])[0]
    assert assess([calibration(held_out=rows)], USUAL, DOUBT)['confidence_correlation'] == pytest.approx(expected)
    for others in ([calibration(held_out=rows[:4])], [calibration(held_out=rows)] * 2, [None], []):
        assert assess(others, USUAL, DOUBT)['confidence_correlation'] is None


# --- voxel by voxel ---


def test_reliability_against_a_loop():
    rng = np.random.default_rng(5)
    probabilities = [rng.integers(0, 251, (33, 9, 9), dtype=np.uint8), rng.integers(0, 251, (5, 7, 8), dtype=np.uint8)]
    masks = [rng.random(p.shape) < p / 400 for p in probabilities]
    table = reliability_table(probabilities, [mask.astype(np.uint8) for mask in masks])
    p, clot = (
        np.concatenate([p.ravel() for p in probabilities]) * STEP,
        np.concatenate([mask.ravel() for mask in masks]),
    )
    error = 0.0
    for row in table.itertuples():
        inside = (p > row.low + 1e-6) & (p <= row.high + 1e-6)
        assert row.voxels == inside.sum()
        assert row.observed == pytest.approx(clot[inside].mean())
        assert row.mean_probability == pytest.approx(p[inside].mean())
        error += abs(p[inside].mean() - clot[inside].mean()) * inside.sum()
    assert len(table) == 10 and calibration_error(table) == pytest.approx(error / (p > 0).sum())
    # a second library
    bins, _, _ = stats.binned_statistic(p[p > 0], clot[p > 0], 'mean', bins=10, range=(1e-6, 1 + 1e-6))
    np.testing.assert_allclose(table.observed, bins)
    with pytest.raises(ValueError, match='differ in shape'):
        reliability_table(probabilities, masks[::-1])
    with pytest.raises(ValueError):
        reliability_table(probabilities, masks[:1])


# --- a run ---


@pytest.fixture(scope='module')
def smoke(tmp_path_factory):
    setting = prepare_setting('smoke', progress=False)
    runs = train_all(
        [(setting.scale.config('adversarial', 0, scans_digest=setting.digest), setting.train, setting.pool)],
        tmp_path_factory.mktemp('runs'),
        workers=1,
        progress=False,
    )
    return setting, runs[0]


def test_calibrating_a_run(smoke, tmp_path):
    setting, run = smoke
    held_out = setting.validation + setting.source_test
    assert read_calibration(run) is None
    made = calibrate(run, held_out, setting.train)
    assert read_calibration(run) == made and made['synthetic'] and made['fit'] is None  # three patients are too few
    assert [row['patient'] for row in made['held_out']] == [study.pixel_digest[:8] for study in held_out]
    assert not any(study.patient in json.dumps(made) for study in (cached.study for cached in held_out))
    low, middle, high = made['training']['ranges']['contrast_hu']
    assert low <= middle <= high and made['training']['scans'] == len(setting.train)
    outlined = [row for row in made['held_out'] if row['predicted_ml'] > 0]
    assert all(row['mean_confidence'] is not None for row in outlined)  # this method has a discriminator
    with pytest.raises(TrainingError, match='trained on with their masks'):
        calibrate(run, held_out + setting.train[:1], setting.train)
    with pytest.raises(TrainingError, match='need masks'):
        calibrate(run, [study.without_mask() for study in held_out], setting.train)
    assert read_calibration(run) == made and not list(run.glob('.partial-*'))
    answer = assess([made], {name: made['held_out'][0][name] for name in SCAN_PROPERTIES}, DOUBT)
    assert answer['calibration'].startswith('none: only') and answer['estimated_dice'] is None


def test_the_dice_is_that_of_every_table_of_scores(smoke):
    from pe_advseg.evaluation.calibration import calibration_row
    from pe_advseg.evaluation.evaluate import score_study
    from pe_advseg.evaluation.inference import load_predictors

    setting, run = smoke
    (predictor,) = load_predictors([run])
    for study in setting.source_test:
        for threshold in (0.5, 0.45):
            np.testing.assert_equal(
                calibration_row(predictor, study, threshold)['dice'],
                score_study(predictor.network, study, predictor.config, threshold)['dice'],
            )


def test_elsewhere_than_in_the_run(smoke, tmp_path):
    setting, run = smoke
    slim = slim_run(run, tmp_path / 'slim')
    made = calibrate(run, setting.source_test, setting.train, path=slim / 'trust.json')
    assert read_calibration(slim) == made
    half = shutil.copytree(run, tmp_path / 'half')
    (half / 'config.json').write_text(json.dumps(json.loads((half / 'config.json').read_text()) | dict(steps=99)))
    with pytest.raises(TrainingError, match='not finished'):
        calibrate(half, setting.source_test, setting.train)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{',
        '[]',
        '3',
        'null',
        '{"fit": null}',
        '{"training": 1, "fit": 1, "threshold": 1, "half_width": 1, "held_out": 1}',
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path, text):
    (tmp_path / 'trust.json').write_text(text)
    with pytest.raises(InputError, match='trust.json: is damaged'):
        read_calibration(tmp_path)


def test_the_figure_shows_every_patient():
    rows = patients(20, 0.05)
    made = {**fit_dice(rows), 'held_out': rows}
    (axis,) = calibration_figure(
        made, {'elsewhere': patients(7, 0.05, seed=1), 'healthy': [dict(clot_ml=0.0, predicted_ml=1.0)]}
    ).axes
    assert sorted(len(line.get_xdata()) for line in axis.lines) == [0, 2, 7, 20]
