"""Confidence measures against hand-made cases, brute force and scikit-image; discriminator checks on stand-ins."""

import numpy as np
import pandas as pd
import pytest
import torch

from pe_advseg.evaluation.metrics import auroc
from pe_advseg.lab import discriminator_checks
from pe_advseg.lab.confidence_maps import ConfidenceMaps
from pe_advseg.lab.confidence_measures import (
    coverage_risk,
    error_band,
    expected_calibration_error,
    fit_rescaling,
    predicted_parts,
)
from pe_advseg.lab.confidence_scores import PIXEL_MEASURES, pixel_scores
from pe_advseg.lab.confidence_table import CONFIDENCES, confidence_table, pooled_auroc
from pe_advseg.models.discriminators import DISCRIMINATORS, BlankMap, build_discriminator
from pe_advseg.training.adversarial import DiscriminatorMethod, NetworkOutput

SPACING = (2.0, 1.5, 1.5)


@pytest.fixture
def masks():
    "A prediction and a true mask (12, 40, 40) that overlap in part, with several parts each."
    rng = np.random.default_rng(0)
    prediction, mask = np.zeros((2, 12, 40, 40), bool)
    for outline, count in ((prediction, 12), (mask, 6)):
        for z, y, x in zip(*(rng.integers(0, side - 4, count) for side in outline.shape), strict=True):
            outline[z : z + 2, y : y + 4, x : x + 4] = True
    mask[3:6, 10:16, 10:16] = prediction[4:6, 12:18, 12:18] = True
    return prediction, mask


def scores_of(prediction, mask, **confidences) -> pd.DataFrame:
    "Scores by voxel: a row per confidence, a column per measure."
    maps = ConfidenceMaps(prediction, mask, confidences)
    band = error_band(prediction, mask, SPACING)
    wrong = maps.wrong[band]
    rescalings = {name: fit_rescaling(values[band], ~wrong) for name, values in confidences.items()}
    return pd.DataFrame(pixel_scores(maps, band, rescalings)).pivot(
        index='confidence', columns='measure', values='value'
    )


# --- voxels ---


def test_a_confidence_that_is_the_negative_error_ranks_all_voxels_right(masks):
    "Error as doubt: 1; reversed: 0; shuffled: chance; constant: exactly 0.5."
    error = (masks[0] != masks[1]).astype(float)
    shuffled = np.random.default_rng(1).permutation(error.ravel()).reshape(error.shape)
    found = scores_of(*masks, knows=-error, reverse=error, shuffled=-shuffled, constant=0 * error)
    for measure in ('pixel_auroc', 'pixel_auroc_all'):
        assert found[measure]['knows'] == 1 and found[measure]['reverse'] == 0 and found[measure]['constant'] == 0.5
        assert abs(found[measure]['shuffled'] - 0.5) < 0.02
    assert found.calibration_error['knows'] < 1e-9
    assert found.risk_coverage_area.idxmin() == 'knows' and found.risk_coverage_area.idxmax() == 'reverse'


def test_nothing_predicted_and_nothing_true_leaves_nothing_to_rank():
    nothing = np.zeros((3, 8, 8), bool)
    assert scores_of(nothing, nothing, any=np.zeros(nothing.shape)).isna().all(axis=None)


def test_the_band_holds_every_error_and_ends_at_its_reach(masks):
    prediction, mask = masks
    for reach in (0.0, 3.0, 10.0):
        anything = np.argwhere(prediction | mask) * SPACING
        voxels = np.argwhere(np.ones(mask.shape)) * SPACING
        nearest = np.array([((anything - voxel) ** 2).sum(1).min() for voxel in voxels[::97]])
        band = error_band(prediction, mask, SPACING, reach).ravel()[::97]
        assert np.array_equal(band, np.sqrt(nearest) <= reach)
        assert error_band(prediction, mask, SPACING, reach)[prediction != mask].all()


# --- coverage and risk ---


def test_coverage_risk_against_brute_force():
    rng = np.random.default_rng(2)
    confidence, wrong = rng.permutation(300).astype(float), rng.random(300) < 0.2
    most_trusted_first = wrong[np.argsort(-confidence)]
    expected = [most_trusted_first[:count].mean() for count in range(1, 301)]
    assert np.allclose(coverage_risk(confidence, wrong), expected, rtol=0, atol=1e-12)


def test_ties_of_confidence_have_the_mean_risk_of_all_orders():
    rng = np.random.default_rng(3)
    confidence, wrong = rng.integers(0, 3, 20).astype(float), rng.random(20) < 0.4
    orders = [np.lexsort((rng.random(20), -confidence)) for _ in range(4000)]
    expected = np.mean([np.cumsum(wrong[order]) / np.arange(1, 21) for order in orders], axis=0)
    assert np.allclose(coverage_risk(confidence, wrong), expected, rtol=0, atol=0.03)
    assert np.isclose(coverage_risk(confidence, wrong)[-1], wrong.mean())


# --- emboli ---


def test_predicted_parts_against_scikit_image(masks):
    measure = pytest.importorskip('skimage.measure')
    prediction, mask = masks
    confidence = np.random.default_rng(4).normal(size=mask.shape)
    labels = measure.label(prediction, connectivity=3)
    expected = {
        tuple(np.argwhere(labels == region.label)[0]): (
            region.area,
            region.intensity_mean,
            not mask[labels == region.label].any(),
        )
        for region in measure.regionprops(labels, confidence)
    }
    found = predicted_parts(prediction, mask, {'confidence': confidence})
    assert len(found) == len(expected) > 3 and 0 < found.false.sum() < len(found)
    for row, (voxels, mean, false) in zip(found.itertuples(), expected.values(), strict=True):
        assert row.voxels == voxels and row.false == false and np.isclose(row.confidence, mean)


def test_pooled_auroc_of_resampled_patients_is_that_of_repeated_rows():
    "Also with ties, and with patients who have no predicted part."
    rng = np.random.default_rng(5)
    parts = pd.DataFrame(dict(patient=rng.choice(list('abcde'), 50), false=rng.random(50) < 0.5))
    parts['confidence'] = rng.integers(0, 6, 50)
    patients = list('abcdef')
    weights = rng.multinomial(6, np.full(6, 1 / 6), size=40)
    found = pooled_auroc(parts, 'confidence', patients, weights)
    for value, weight in zip(found, weights, strict=True):
        repeated = parts.loc[parts.index.repeat(parts.patient.map(dict(zip(patients, weight, strict=True))))]
        assert np.isclose(value, auroc(-repeated.confidence, repeated.false), equal_nan=True)


# --- calibration ---


def test_a_rescaling_is_monotone_and_does_not_depend_on_the_scale_of_the_confidence():
    rng = np.random.default_rng(6)
    confidence = np.round(rng.normal(size=5000), 1)  # with ties
    correct = rng.random(5000) < 1 / (1 + np.exp(-confidence))
    knots, share = fit_rescaling(confidence, correct)
    assert (np.diff(knots) > 0).all() and (np.diff(share) >= 0).all() and share.min() >= 0 and share.max() <= 1
    other = fit_rescaling(1000 * confidence - 7, correct)
    assert np.allclose(np.interp(confidence, knots, share), np.interp(1000 * confidence - 7, *other))


def test_calibration_error_by_hand():
    "Two bins: 0.25 predicted and 0.5 observed (2 voxels), 1.0 predicted and 1 observed (2 voxels)."
    probability, correct = np.array([0.2, 0.3, 1.0, 1.0]), np.array([True, False, True, True])
    assert np.isclose(expected_calibration_error(probability, correct, bins=2), 0.125)
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, bool)))


# --- the table ---


def toy_tables(value=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Scores and parts of four patients and two seeds, in which the discriminator is 0.1 above the entropy."
    rng, rows, parts = np.random.default_rng(7), [], []
    for seed in (0, 1):
        who = dict(method='adversarial', seed=seed, site='target')
        for patient in 'abcd':
            base = rng.uniform(0.4, 0.6)
            for name in CONFIDENCES:
                score = base + 0.1 * (name == 'discriminator') if value is None else value
                rows += [who | dict(patient=patient, confidence=name, measure=m, value=score) for m in PIXEL_MEASURES]
            for part in range(4):
                part = dict(patient=patient, part=part, voxels=5, false=part % 2 == 0, discriminator=part % 2)
                names = ('entropy', 'mc_dropout', 'frozen_0', 'frozen_1', 'frozen_2', 'shuffled')
                parts.append(who | part | dict.fromkeys(names, 0.0))
    return pd.DataFrame(rows), pd.DataFrame(parts)


def test_one_row_per_method_site_and_measure_with_paired_differences():
    table = confidence_table(*toy_tables(), draws=200)
    assert not table.duplicated(['method', 'site', 'measure']).any() and len(table) == len(PIXEL_MEASURES) + 1
    row = table.set_index('measure').loc['pixel_auroc']
    assert np.allclose([row.difference, row.low, row.high], 0.1) and row.discriminator_low < row.discriminator_high
    assert row.mc_dropout_low < row.mc_dropout < row.mc_dropout_high  # not those of the differences
    assert np.allclose([row.mc_dropout_over_entropy_low, row.frozen_over_entropy_high], 0)
    assert np.allclose([row.over_mc_dropout_low, row.over_frozen_difference], 0.1)
    row = table.set_index('measure').loc['embolus_auroc']
    assert (row.discriminator, row.entropy, row.frozen, row.difference, row.low) == (1, 0.5, 0.5, 0.5, 0.5)
    assert (row.patients, row.seeds, row.emboli, row.false_emboli) == (4, 2, 32, 16)


def test_a_table_without_emboli_or_values_is_nan_and_no_error():
    scores, parts = toy_tables(value=np.nan)
    table = confidence_table(scores, parts.iloc[:0], draws=50)
    assert table[['discriminator', 'entropy', 'difference', 'low', 'high']].isna().all(axis=None)
    assert (table.patients == 0).all()


LEARNED = dict(real_against_predicted=0.9, untrained=0.5, blanked=0.5, held_out_loss=0.4, untrained_loss=0.69)
LEARNED |= discriminator_checks.learning_verdict(0.9, 0.4)
LUCKY = LEARNED | dict(held_out_loss=0.69) | discriminator_checks.learning_verdict(0.9, 0.69)


@pytest.mark.parametrize(
    ('checks', 'learned', 'disagree'),
    [
        ([LEARNED, LEARNED], True, False),
        ([LEARNED, LUCKY], False, True),
        ([LUCKY], False, True),
        ([LEARNED, None], True, False),
        ([None], False, False),
    ],
    ids=['all seeds', 'one did not', 'lucky', 'one without an answer', 'none'],
)
def test_a_method_learned_when_all_its_runs_did(checks, learned, disagree):
    table = confidence_table(*toy_tables(), {'adversarial': checks}, draws=20)
    assert (table.learned == learned).all() and (table.checks_disagree == disagree).all()
    known = [check['held_out_loss'] for check in checks if check]
    assert np.allclose(table.held_out_loss, np.mean(known) if known else np.nan, equal_nan=True)


# --- did it learn? ---


@pytest.mark.parametrize(
    ('real_against_predicted', 'held_out_loss', 'learned', 'disagree'),
    [
        (0.92, 0.43, True, False),
        (0.7, 0.43, False, True),
        (0.92, 0.63, False, True),
        (1.0, 0.693, False, True),
        (0.41, 0.71, False, False),
        (0.5, float('nan'), False, False),
    ],
    ids=['both', 'AUROC at the threshold', 'loss at the threshold', 'a lucky direction', 'neither', 'no patches'],
)
def test_a_discriminator_has_learned_when_both_checks_say_so(real_against_predicted, held_out_loss, learned, disagree):
    verdict = discriminator_checks.learning_verdict(real_against_predicted, held_out_loss)
    assert verdict == dict(learned=learned, checks_disagree=disagree)


def output_of_a_beginner(patches: int = 40) -> NetworkOutput:
    "Masks with a square of clot, and a network that finds it but is unsure everywhere: its map has the larger mean."
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(patches, 1, 32, 32, dtype=torch.uint8)
    corners = torch.randint(0, 24, (patches, 2), generator=generator)
    for one, (y, x) in zip(mask, corners, strict=True):
        one[0, y : y + 8, x : x + 8] = 1
    logits = torch.randn(mask.shape, generator=generator) + 4.0 * mask - 2.0
    return NetworkOutput(logits, torch.zeros(patches, 8, 16, 16), mask)


class HandMade(torch.nn.Module):
    "A discriminator that is one function of the map."

    takes_logits = False

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, map, features):
        return self.answer(map)


def is_hard(map):
    "It knows: an expert's map is 0 or 1."
    return torch.where((map == 0) | (map == 1), 4.0, -4.0)


def fewer_is_real(map):
    "It answers the mean of the map, faintly, as fresh weights do; here in the lucky direction."
    return -0.01 * map.mean((2, 3), keepdim=True).expand_as(map)


def more_is_real(map):
    return -fewer_is_real(map)


def at_random(map):
    return torch.randn(map.shape, generator=torch.Generator().manual_seed(round(1e6 * float(map.sum()))))


@pytest.mark.parametrize(
    ('answer', 'real_against_predicted', 'loss', 'learned', 'disagree'),
    [
        (is_hard, 1.0, 0.018, True, False),
        (fewer_is_real, 1.0, 0.693, False, True),
        (more_is_real, 0.0, 0.693, False, False),
        (at_random, 0.5, 0.806, False, False),
    ],
)
def test_hand_made_discriminators(answer, real_against_predicted, loss, learned, disagree):
    "One that knows, one that answers the mean of the map in either direction, one that answers at random."
    given = discriminator_checks._answers(HandMade(answer), DiscriminatorMethod(), output_of_a_beginner())
    answers = {'trained': given, 'blanked': np.zeros_like(given), 'frozen_0': given, 'frozen_1': given}
    checks = discriminator_checks._checks(answers)
    assert abs(checks['real_against_predicted'] - real_against_predicted) < 0.15
    assert checks['untrained'] == max(checks['real_against_predicted'], 1 - checks['real_against_predicted'])
    assert abs(checks['held_out_loss'] - loss) < 0.01 and checks['untrained_loss'] == checks['held_out_loss']
    assert (checks['learned'], checks['checks_disagree'], checks['blanked']) == (learned, disagree, 0.5)


@pytest.mark.parametrize('kind', DISCRIMINATORS)
@torch.no_grad()
def test_fresh_weights_answer_the_mean_of_a_beginners_map_and_cost_log_2(kind):
    "Their AUROC may be 1 by luck, their cross-entropy never falls below that of a coin by more than a trace."
    network = torch.nn.Linear(1, 1)
    network.feature_channels = 8
    method = DiscriminatorMethod(discriminator=kind)
    untrained = discriminator_checks.untrained_discriminators(method, network)
    again = discriminator_checks.untrained_discriminators(method, network)
    assert len(untrained) == 3
    for name, discriminator in untrained.items():
        pairs = zip(discriminator.parameters(), again[name].parameters(), strict=True)
        assert not discriminator.training and all(torch.equal(one, other) for one, other in pairs)
        answers = discriminator_checks._answers(discriminator, method, output_of_a_beginner())
        assert abs(answers[2].mean() - np.log(2)) < 0.02


@pytest.mark.parametrize('kind', DISCRIMINATORS)
@torch.no_grad()
def test_blanked_maps_give_the_same_answer_to_masks_and_predictions(kind):
    "With the maps shown the answers differ: the control can fail."
    torch.manual_seed(0)
    method = DiscriminatorMethod()
    discriminator = build_discriminator(kind, 8).eval()
    mask = (torch.rand(3, 1, 64, 64) < 0.1).to(torch.uint8)
    output = NetworkOutput(torch.randn(3, 1, 64, 64), torch.randn(3, 8, 32, 32), mask)
    real, fake, _ = discriminator_checks._answers(BlankMap(discriminator), method, output)
    assert np.array_equal(real, fake) and auroc([*real, *fake], [1] * 3 + [0] * 3) == 0.5
    real, fake, _ = discriminator_checks._answers(discriminator, method, output)
    assert (real != fake).all()


def test_pixels_without_a_label_do_not_count():
    logits = torch.tensor([[1.0, 100.0], [3.0, 100.0]]).reshape(1, 1, 2, 2)
    counted = torch.tensor([[True, False], [True, False]]).reshape(1, 1, 2, 2)
    assert discriminator_checks._mean_counted(logits, counted).tolist() == [2.0]
