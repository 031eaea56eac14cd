"""Scores against formulas and code that we did not write, and the traps that published evaluators fell into."""

import itertools
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pe_advseg.evaluation.intervals import Interval, bootstrap_mean, by_patient, compare_methods, paired_bootstrap
from pe_advseg.evaluation.metrics import auroc, lesion_scores, patient_scores
from pe_advseg.evaluation.released_metrics import released_scores, threshold_curve

UNIT = (1.0, 1.0, 1.0)


def random_case(seed, shape=(3, 7, 8), share=0.3):
    random = np.random.default_rng(seed)
    return random.random(shape), random.random(shape) < share


def test_released_scores_agree_with_a_slow_loop():
    "Written from the description alone, pixel by pixel, in exact fractions where possible."
    probability, mask = random_case(0)
    mask[1] = False
    table = released_scores(probability, mask)
    assert table['slice'].tolist() == [0, 2]
    for _, row in table.iterrows():
        z = int(row['slice'])
        pairs = [(float(p), bool(t)) for p, t in zip(probability[z].ravel(), mask[z].ravel(), strict=True)]
        both, either = sum(p > 0.8 and t for p, t in pairs), sum(p > 0.8 or t for p, t in pairs)
        true = sum(t for _, t in pairs)
        assert row['iou'] == pytest.approx((both + 1e-5) / (either + 1e-5), rel=1e-12)
        assert row['dice'] == pytest.approx(
            (2 * sum(p for p, t in pairs if t) + 1e-5) / (sum(p for p, _ in pairs) + true + 1e-5), rel=1e-12
        )
        assert row['sensitivity'] == pytest.approx(sum(p > 0.1 and t for p, t in pairs) / (true + 1e-5), rel=1e-12)


def test_released_scores_on_a_slice_without_clot():
    "Empty and empty: IoU and Dice 1, sensitivity 0; one stray pixel above 0.8: IoU nearly 0. The release skips both."
    empty, mask = np.zeros((1, 5, 5)), np.zeros((1, 5, 5))
    assert released_scores(empty, mask, only_positive=False).iloc[0, 1:].tolist() == [1, 1, 0]
    empty[0, 2, 2] = 0.9
    assert released_scores(empty, mask, only_positive=False)['iou'].item() == pytest.approx(1e-5, rel=1e-4)
    assert len(released_scores(empty, mask)) == 0
    assert released_scores(empty, mask).columns.tolist() == ['slice', 'iou', 'dice', 'sensitivity']


def test_single_precision_does_not_lose_the_dice_of_large_slices():
    probability = np.full((1, 512, 512), 1e-4, np.float32)
    mask = np.zeros((1, 512, 512), np.uint8)
    mask[0, :2, :2] = 1
    expected = (2 * 4 * 1e-4 + 1e-5) / (512 * 512 * 1e-4 + 4 + 1e-5)
    assert released_scores(probability, mask)['dice'].item() == pytest.approx(expected, rel=1e-6)


def test_threshold_curve_meets_the_released_scores_at_their_thresholds():
    probability, mask = random_case(1)
    curve, released = threshold_curve(probability, mask, [0.1, 0.8]), released_scores(probability, mask).mean()
    assert curve.loc[1, 'iou'] == pytest.approx(released['iou'], abs=1e-5)
    assert curve.loc[0, 'sensitivity'] == pytest.approx(released['sensitivity'], abs=1e-5)
    assert np.isnan(threshold_curve(probability, np.zeros_like(mask), [0.5])['dice'].item())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_patient_scores_against_set_arithmetic(seed, share_of_prediction, share_of_mask):
    random = np.random.default_rng(seed)
    shape, spacing = (2, 4, 5), (2.0, 0.5, 0.7)
    prediction, mask = random.random(shape) < share_of_prediction, random.random(shape) < share_of_mask
    scores = patient_scores(prediction, mask, spacing)
    p, t = ({tuple(where) for where in np.argwhere(volume)} for volume in (prediction, mask))

    def ratio(a, b):
        return float(Fraction(a, b)) if b else np.nan

    expected = {
        'dice': ratio(2 * len(p & t), len(p) + len(t)),
        'iou': ratio(len(p & t), len(p | t)),
        'sensitivity': ratio(len(p & t), len(t)),
        'precision': ratio(len(p & t), len(p)),
        'true_negative': not p and not t,
        'clot_ml': len(t) * 0.7e-3,
        'predicted_ml': len(p) * 0.7e-3,
        'false_positive_ml': len(p - t) * 0.7e-3,
        'false_negative_ml': len(t - p) * 0.7e-3,
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, nan_ok=True), name


def test_scores_are_plain_numbers():
    "They go into CSV and JSON; NumPy scalars would print as np.float64(...)."
    _, mask = random_case(2)
    assert {type(value) for value in patient_scores(mask, mask, UNIT).values()} <= {float, int, bool}


def flood(mask):
    "26-connected parts by flood fill, without scipy."
    left, parts = {tuple(int(i) for i in where) for where in np.argwhere(mask)}, []
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    while left:
        part, front = set(), [left.pop()]
        while front:
            voxel = front.pop()
            part.add(voxel)
            for step in steps:
                neighbour = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    front.append(neighbour)
        parts.append(part)
    return parts


@pytest.mark.parametrize('overlap', [0.0, 0.2, 0.5])
@pytest.mark.parametrize('seed', range(8))
def test_emboli_against_flood_fill(seed, overlap):
    random = np.random.default_rng(seed)
    prediction, mask = random.random((4, 9, 9)) < 0.06, random.random((4, 9, 9)) < 0.08
    p, t = ({tuple(int(i) for i in where) for where in np.argwhere(volume)} for volume in (prediction, mask))
    emboli, drawn = flood(mask), flood(prediction)
    found = sum(len(part & p) / len(part) > overlap for part in emboli)
    scores = lesion_scores(prediction, mask, overlap)
    assert scores == {
        'emboli': len(emboli),
        'emboli_found': found,
        'lesion_sensitivity': found / len(emboli),
        'false_positive_lesions': sum(len(part & t) / len(part) <= overlap for part in drawn),
    }


def test_the_sum_of_a_table_agrees_with_its_cases():
    "A published re-implementation overwrote its case index and wrote .24 where its own list says .61."
    found = total = 0
    for seed in range(5):
        random = np.random.default_rng(seed)
        scores = lesion_scores(random.random((3, 8, 8)) < 0.1, random.random((3, 8, 8)) < 0.1)
        assert scores['lesion_sensitivity'] == scores['emboli_found'] / scores['emboli']
        found, total = found + scores['emboli_found'], total + scores['emboli']
    assert 0 < found < total


def test_prediction_everywhere_is_seen_in_the_millilitres():
    mask = np.zeros((3, 9, 9), bool)
    mask[1, 2, 2] = mask[1, 6, 6] = True
    scores = patient_scores(np.ones_like(mask), mask, (10, 10, 10))
    assert (scores['lesion_sensitivity'], scores['false_positive_lesions']) == (1, 0)
    assert scores['false_positive_ml'] == pytest.approx(3 * 81 - 2)


def test_empty_cases_in_means():
    "A true negative does not move the mean Dice; a false alarm on a patient without clot pulls it down as a 0."
    clot, nothing = np.ones((1, 2, 2), bool), np.zeros((1, 2, 2), bool)
    dice = [patient_scores(*case, UNIT)['dice'] for case in ((clot, clot), (nothing, nothing), (clot, nothing))]
    assert bootstrap_mean(dice[:2]).value == 1 and bootstrap_mean(dice).value == 0.5


@pytest.mark.parametrize('seed', range(5))
def test_auroc_against_scipy_and_counting(seed):
    random = np.random.default_rng(seed)
    score, label = random.integers(0, 6, 80) / 5, random.random(80) < 0.4  # many ties
    positive, negative = score[label], score[~label]
    counted = np.mean([(p > n) + (p == n) / 2 for p in positive for n in negative])
    statistic = stats.mannwhitneyu(positive, negative).statistic / len(positive) / len(negative)
    assert auroc(score, label) == pytest.approx(counted) == pytest.approx(statistic)
    assert auroc(-score, label) == pytest.approx(1 - counted)


def test_auroc_without_a_class_or_with_nan():
    assert np.isnan(auroc([1, 2], [1, 1])) and np.isnan(auroc([], []))
    with pytest.raises(ValueError, match='NaN'):
        auroc([1, np.nan], [0, 1])
    with pytest.raises(ValueError, match='3 scores but 2 labels'):
        auroc([1, 2, 3], [0, 1])


@pytest.mark.parametrize(
    'values',
    [
        np.random.default_rng(0).normal(size=12),
        np.random.default_rng(1).exponential(size=25),
        np.array([0, 0, 0, 0, 0.1, 0.9]),
        np.random.default_rng(2).beta(0.3, 0.3, size=35),
    ],
    ids=['normal', 'skewed', 'mostly zero', 'two heaps'],
)
def test_intervals_against_scipy(values):
    "Two runs of a bootstrap differ by chance: allowed is a twentieth of the interval's width."
    ours = bootstrap_mean(values, draws=40_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method='BCa', n_resamples=40_000, rng=np.random.default_rng(7)
    ).confidence_interval
    allowed = (theirs.high - theirs.low) / 20
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=allowed) and ours.high == pytest.approx(theirs.high, abs=allowed)


def test_paired_interval_against_scipy():
    random = np.random.default_rng(4)
    a = random.normal(0.6, 0.2, 30)
    b = a + random.normal(0.05, 0.06, 30)
    ours = paired_bootstrap(pd.Series(b), pd.Series(a), draws=40_000)
    theirs = stats.bootstrap(
        (b, a),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        method='BCa',
        n_resamples=40_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=(theirs.high - theirs.low) / 20)


def test_intervals_cover_about_as_often_as_they_say():
    "Of 300 studies with 30 normal patients; nominal 95 %, the bootstrap of a mean is a little short at this size."
    random = np.random.default_rng(0)
    intervals = [bootstrap_mean(random.normal(size=30), draws=1000) for _ in range(300)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.89 < covered < 0.98


def test_the_order_of_patients_and_seeds_does_not_matter():
    random = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([[f'p{i}' for i in range(9)], range(3)], names=['patient', 'seed'])
    a, b = pd.Series(random.random(27), index=index), pd.Series(random.random(27), index=index)
    interval = paired_bootstrap(a, b)
    shuffled = paired_bootstrap(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2))
    averaged = paired_bootstrap(by_patient(a), by_patient(b))
    assert tuple(shuffled) == pytest.approx(tuple(interval)) and tuple(averaged) == pytest.approx(tuple(interval))
    assert interval.value == pytest.approx((a - b).groupby('patient').mean().mean())


def test_repeating_seeds_does_not_narrow_the_interval():
    random = np.random.default_rng(0)
    once = pd.Series(random.random(10), index=pd.Index(range(10), name='patient'))
    assert tuple(bootstrap_mean(pd.concat([once] * 5))) == pytest.approx(tuple(bootstrap_mean(once)))


def test_equal_methods_differ_by_exactly_nothing():
    a = pd.Series(np.random.default_rng(0).random(8))
    assert paired_bootstrap(a, a) == Interval(0, 0, 0)


def test_too_few_patients_have_no_interval():
    one = paired_bootstrap(pd.Series({'p': 0.7}), pd.Series({'p': 0.5}))
    assert one.value == pytest.approx(0.2) and np.isnan(one.low) and np.isnan(one.high)
    assert np.isnan(bootstrap_mean([np.nan, np.nan])).all()


def test_undefined_patients_are_left_out_of_both_sides():
    a, b = pd.Series([0.5, np.nan, 0.7, 0.9]), pd.Series([0.4, 0.3, np.nan, 0.7])
    assert paired_bootstrap(a, b).value == pytest.approx(0.15)


def test_other_patients_are_refused_without_naming_them():
    with pytest.raises(ValueError, match='1 only in the first, 2 only in the second') as error:
        paired_bootstrap(pd.Series({'Ann': 1.0, 'Bob': 1.0}), pd.Series({'Bob': 1.0, 'Cay': 1.0, 'Dan': 1.0}))
    assert 'Ann' not in str(error.value)


def test_table_of_methods():
    random = np.random.default_rng(0)
    scores = pd.DataFrame(
        [
            {'method': method, 'patient': f'p{i}', 'seed': seed, 'dice': 0.5 + 0.1 * shift + 0.02 * random.random()}
            for shift, method in enumerate(['supervised', 'adversarial', 'oracle'])
            for i in range(6)
            for seed in range(2)
        ]
    )
    table = compare_methods(scores).set_index('method')
    assert table.index.tolist() == ['supervised', 'adversarial', 'oracle'] and set(table['patients']) == {6}
    assert table.loc['oracle', 'low'] > 0.15 and table.loc['supervised', 'difference'] == 0
    with pytest.raises(ValueError, match="no scores of 'nobody'"):
        compare_methods(scores, reference='nobody')


def test_a_volume_of_real_size_is_scored_whole():
    "The box around everything drawn is an economy and must not change the result."
    prediction, mask = np.zeros((60, 256, 256), bool), np.zeros((60, 256, 256), bool)
    mask[10:14, 50:60, 50:60] = mask[59, 255, 255] = prediction[12:16, 52:62, 52:62] = prediction[0, 0, 0] = True
    assert lesion_scores(prediction, mask) == {
        'emboli': 2,
        'emboli_found': 1,
        'lesion_sensitivity': 0.5,
        'false_positive_lesions': 1,
    }
