"""Scores of the field against second implementations, hand-made cases, and simulated data with a known truth."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from pe_advseg.core.lesions import label_lesions
from pe_advseg.data.hospital_cache import build_cache
from pe_advseg.data.layouts import find_studies
from pe_advseg.evaluation import place_table as place_table_module
from pe_advseg.evaluation.candidates import MOST_FALSE, candidate_columns, find_candidates, read_list
from pe_advseg.evaluation.comparison import comparison_table
from pe_advseg.evaluation.detection import detection_auroc, detection_sensitivity
from pe_advseg.evaluation.froc import FALSE_PER_SCAN, froc_curve, froc_score, sensitivity_at
from pe_advseg.evaluation.intervals import compare_methods
from pe_advseg.evaluation.place_table import PLACES, embolus_places
from pe_advseg.evaluation.resampling import (
    compare_over_seeds,
    draw_weights,
    holm,
    percentile_interval,
    resampled_mean,
    resampled_patients,
)
from pe_advseg.evaluation.scan_scores import scan_scores
from pe_advseg.evaluation.size_table import band_row, embolus_rows, size_table
from pe_advseg.evaluation.surface_scores import surface_scores
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.phantom_files import write_hospital

TOUCH = np.ones((3, 3, 3))  # 26 neighbours


def blobs(seed, shape=(8, 24, 26), share=0.06):
    "A smooth random probability and a mask that overlaps with it here and there."
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.random(shape), 1.2)
    probability = np.clip((smooth - smooth.mean()) / smooth.std() / 4 + 0.1, 0, 1).astype(np.float32)
    other = 0.6 * smooth + 0.4 * ndimage.gaussian_filter(random.random(shape), 1.2)
    return probability, other > np.quantile(other, 1 - share)


# --- the border ---


def by_distance_transform(prediction, mask, spacing, tolerance_mm=1.0):
    borders = [part & ~ndimage.binary_erosion(part) for part in (prediction, mask)]
    fields = [ndimage.distance_transform_edt(~border, sampling=spacing) for border in borders]
    there, back = fields[1][borders[0]], fields[0][borders[1]]
    within = (there <= tolerance_mm).sum() + (back <= tolerance_mm).sum()
    share = within / (len(there) + len(back))
    return {'surface_dice': share, 'hd95_mm': max(np.quantile(there, 0.95), np.quantile(back, 0.95))}


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('spacing', [(1, 1, 1), (3.0, 0.7, 0.7)])
def test_border_scores_against_distance_transforms_of_the_whole_scan(seed, spacing):
    "Masks reach the edge of the scan in some cases; SciPy works on the whole scan, ours on a box."
    probability, mask = blobs(seed)
    expected = by_distance_transform(probability > 0.4, mask, spacing)
    assert surface_scores(probability > 0.4, mask, spacing) == pytest.approx(expected, rel=1e-5)


def test_the_box_around_both_masks_does_not_change_the_border_scores():
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    from torch import from_numpy

    prediction, mask = np.zeros((20, 90, 90), bool), np.zeros((20, 90, 90), bool)
    mask[5:9, 40:50, 40:50] = prediction[6:10, 41:53, 40:50] = prediction[19, 89, 85:] = True
    pair = [from_numpy(part)[None, None] for part in (prediction, mask)]
    options = dict(include_background=True, spacing=(2.5, 1.0, 1.0))
    whole = {
        'surface_dice': compute_surface_dice(*pair, class_thresholds=[1.0], **options).item(),
        'hd95_mm': compute_hausdorff_distance(*pair, percentile=95, **options).item(),
    }
    assert surface_scores(prediction, mask, (2.5, 1.0, 1.0)) == whole


def test_a_wider_tolerance_forgives_more():
    mask = np.zeros((10, 20, 20), bool)
    mask[3:7, 5:12, 5:12] = True
    moved = np.roll(mask, 2, axis=1)
    shares = [surface_scores(moved, mask, (1, 1, 1), tolerance)['surface_dice'] for tolerance in (0, 1, 2)]
    assert shares == sorted(shares) and shares[0] < shares[1] < shares[2] == 1


# --- candidates and curves ---


@pytest.mark.parametrize('seed', range(6))
def test_candidates_against_labels_one_by_one(seed):
    probability, mask = blobs(seed)
    parts, count = ndimage.label(probability > 0.1, TOUCH)
    emboli, embolus_count = ndimage.label(mask, TOUCH)
    highest = [probability[parts == k].max() for k in range(1, count + 1)]
    false = [value for k, value in enumerate(highest, 1) if not mask[parts == k].any()]
    found = [
        max([highest[k - 1] for k in set(parts[emboli == e]) - {0}], default=0) for e in range(1, embolus_count + 1)
    ]
    ours = find_candidates(probability, mask)
    assert ours[0].tolist() == found and ours[2].tolist() == sorted(false, reverse=True)
    assert ours[1].tolist() == [(emboli == e).sum() for e in range(1, embolus_count + 1)]


def test_a_row_keeps_only_the_highest_false_candidates():
    probability = np.zeros((3, 60, 60), np.float32)
    probability[1, ::4, ::4] = np.linspace(0.2, 0.8, 225).reshape(15, 15)
    columns = candidate_columns(probability, np.zeros_like(probability), (1, 1, 1))
    kept = read_list(columns['false_candidates'])
    assert len(kept) == MOST_FALSE and kept[0] == pytest.approx(0.8) and (np.diff(kept) <= 0).all()
    assert len(columns['false_candidates']) < 1300


def table_of(found, false, **columns):
    "A table with one scan per pair of lists."
    rows = []
    for number, (hits, misses) in enumerate(zip(found, false, strict=True)):
        row = dict(seed=0, patient=number, embolus_probabilities=str(list(hits)), false_candidates=str(list(misses)))
        rows.append(row | dict(embolus_mm3=str([50.0] * len(hits))))
    return pd.DataFrame(rows).assign(**columns)


def brute_force_sensitivity(found, false, allowed):
    "Try every threshold."
    hits, misses = np.concatenate(found), np.concatenate(false)
    best = 0
    for threshold in [*hits[hits > 0], *misses]:
        if (misses >= threshold).sum() / len(found) <= allowed:
            best = max(best, (hits >= threshold).mean())
    return best


@pytest.mark.parametrize('seed', range(8))
def test_froc_against_brute_force_and_monai(seed):
    from monai.metrics import compute_froc_curve_data

    random = np.random.default_rng(seed)
    draw = lambda n: (random.integers(0, 12, n) / 12).tolist()  # noqa: E731 ties on purpose, zero is not found
    found = [draw(random.integers(0, 5)) for _ in range(9)] + [[0.5]]
    false = [[value for value in draw(random.integers(0, 20)) if value > 0.1] for _ in range(10)]
    curve = froc_curve(table_of(found, false))
    for allowed in (*FALSE_PER_SCAN, 0.3):
        assert sensitivity_at(curve, allowed) == pytest.approx(brute_force_sensitivity(found, false, allowed))
    assert froc_score(table_of(found, false)) == pytest.approx(
        np.mean([brute_force_sensitivity(found, false, allowed) for allowed in FALSE_PER_SCAN])
    )
    hits, misses = np.concatenate(found), np.concatenate(false)
    theirs = compute_froc_curve_data(misses, hits, len(hits), len(found))
    points = {tuple(point) for point in curve[['false_per_scan', 'sensitivity']].round(9).to_numpy()}
    assert {tuple(point) for point in np.round(np.stack(theirs, 1), 9)} <= points


def test_candidates_of_a_scan_against_monai():
    "MONAI takes points: the highest voxel of a candidate must then lie in the embolus itself."
    from monai.metrics import compute_fp_tp_probs_nd

    mask, probability = np.zeros((4, 30, 30), bool), np.zeros((4, 30, 30), np.float32)
    places = {(1, 5, 5): 0.9, (2, 15, 15): 0.4, (1, 25, 25): 0.7, (3, 5, 25): 0.2}
    for place, value in places.items():
        probability[place] = value
    mask[1, 4:7, 4:7] = mask[2, 14:17, 14:17] = mask[0, 20, 5] = True
    labels, _ = ndimage.label(mask, TOUCH)
    false, true, count = compute_fp_tp_probs_nd(np.array(list(places.values())), np.array(list(places)), labels)
    found, _, ours = find_candidates(probability, mask)
    assert count == len(found) and sorted(found) == pytest.approx(sorted(true))
    assert sorted(ours) == pytest.approx(sorted(false))


def test_each_seed_has_a_curve_of_its_own():
    "Pooling two networks whose probabilities differ in scale would mix their thresholds."
    high, low = table_of([[0.9]], [[0.8] * 9]), table_of([[0.2]], [[0.1] * 9], seed=1)
    assert froc_score(pd.concat([high, low])) == froc_score(high) == froc_score(low) == 1


def test_sensitivity_by_size_by_hand():
    rows = table_of([[0.9, 0.2], [0.6]], [[], []], site='target', method='a')
    rows['embolus_mm3'] = ['[20.0,20000.0]', '[99.9]']
    both = pd.concat([rows, rows.assign(seed=1, embolus_probabilities=['[0.1,0.9]', '[0.6]'])])
    table = size_table(both).set_index('size_mm3')
    assert table.emboli.tolist() == [2, 0, 0, 1] and table.patients.tolist() == [2, 0, 0, 1]
    assert table.found.tolist() == [1.5, 0, 0, 0.5] and (table.seeds == 2).all()
    assert table.sensitivity['below 100'] == 0.75 and table.sensitivity['10000 and above'] == 0.5
    assert np.isnan(table.sensitivity['100 to 1000'])
    assert table.low['below 100'] == 0 and table.high['below 100'] == 1
    assert table.loc['10000 and above', ['low', 'high']].isna().all()  # one patient


def test_the_edges_of_bands_belong_to_the_larger_one():
    rows = table_of([[0.9] * 4], [[]], site='target', method='a').assign(embolus_mm3='[99.9,100.0,1000.0,10000.0]')
    assert size_table(rows).emboli.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize('seed', range(3))
def test_intervals_by_size_are_those_of_repeated_patients_and_seeds(seed):
    random = np.random.default_rng(seed)
    parts = []
    for network in range(3):
        found = [(random.random(n) * (random.random() < 0.8)).tolist() for n in (0, 1, 5, 2, 3)]
        parts.append(table_of(found, [[]] * 5, site='target', method='a').assign(seed=network))
    emboli = embolus_rows(pd.concat(parts))
    counts = emboli.patient.value_counts() // 3
    assert counts.to_dict() == {2: 5, 4: 3, 3: 2, 1: 1} and (emboli.size_mm3 == 'below 100').all()
    weights, expected = draw_weights(4, 3, 50), []
    for patients, seeds in zip(weights.patients, weights.seeds, strict=True):
        times = emboli.patient.map(dict(zip((1, 2, 3, 4), patients, strict=True)))
        times *= emboli.seed.map(dict(zip((0, 1, 2), seeds, strict=True)))
        expected.append(np.average(emboli.found, weights=times))
    row = band_row(emboli, seeds=3, draws=50)
    assert row['sensitivity'] == pytest.approx(emboli.found.mean()) and row['emboli'] == 11
    assert (row['low'], row['high']) == pytest.approx(percentile_interval(np.array(expected)))


def test_sensitivity_by_size_without_any_embolus():
    table = size_table(table_of([[], []], [[0.4], []], site='target', method='a'))
    assert (table.emboli == 0).all() and table[['sensitivity', 'low', 'high']].isna().all(axis=None)


def test_places_are_those_of_the_arteries_of_the_phantom(tmp_path):
    "As in the whole scan made again; and an embolus does not reach far beyond where its record says that it begins."
    write_hospital(tmp_path / 'fjord', 'fjord', (2, 5), (24, 64, 64), layout='folder', mask='nifti', progress=False)
    found = find_studies(tmp_path / 'fjord', hospital='fjord')
    for study in build_cache(found, tmp_path / 'cache', 5.0, progress=False).values():
        made = make_study(HOSPITALS['fjord'], int(study.study.patient[-3:]), (24, 64, 64))
        labels, count = label_lesions(made.mask)
        places, begins = embolus_places(study), made.emboli.set_index('embolus').generation
        assert len(places) == count > 0
        for number, place in enumerate(places, 1):
            most_proximal = made.artery[labels == number].min()
            assert place == PLACES[most_proximal]
            assert begins[np.unique(made.clot_ids[labels == number])].min() <= most_proximal + 1


def test_sensitivity_by_place_leaves_out_whose_places_are_not_known():
    rows = table_of([[0.9, 0.2], [0.6]], [[], []], site='target', method='a')
    emboli = place_table_module._with_places(embolus_rows(rows), {0: ['central', 'lobar']})
    assert emboli.place.tolist() == ['central', 'lobar'] and emboli.found.tolist() == [True, False]
    table = place_table_module.place_table(rows, [])
    assert table.place.tolist() == ['central', 'lobar', 'segmental', 'subsegmental'] and (table.emboli == 0).all()


def test_detection_needs_both_kinds_of_patients_in_every_seed():
    rows = pd.DataFrame(dict(seed=[0, 0, 1, 1], clot_ml=[1, 0, 2, 0], detection_score=[0.9, 0.1, 0.3, 0.6]))
    assert detection_auroc(rows) == 0.5 and detection_sensitivity(rows) == 0.5
    assert np.isnan(detection_auroc(rows[:3]))


def test_scores_of_a_scan_fit_into_a_csv_row(tmp_path):
    probability, mask = blobs(0)
    row = scan_scores(probability, mask, (2.0, 1.0, 1.0))
    assert {type(value) for value in row.values()} <= {float, int, bool, str}
    table = pd.DataFrame([row])
    table.to_csv(tmp_path / 'scores.csv', index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / 'scores.csv'), table)


# --- resampling ---


def holm_by_hand(p):
    "Step down: compare the k-th smallest with every level; the smallest level at which it is rejected."
    order, corrected, worst = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for rank, which in enumerate(order):
        worst = max(worst, (len(p) - rank) * p[which])
        corrected[which] = min(1.0, worst)
    return corrected


@pytest.mark.parametrize('seed', range(5))
def test_holm_by_hand(seed):
    p = np.random.default_rng(seed).random(7) ** 3
    assert holm(p) == pytest.approx(holm_by_hand(p.tolist()))
    with_gap = holm([*p[:3], np.nan, *p[3:]])
    assert np.isnan(with_gap[3]) and np.delete(with_gap, 3) == pytest.approx(holm(p))


def test_resampled_means_against_a_loop_over_drawn_patients_and_seeds():
    random = np.random.default_rng(3)
    values = random.random((6, 3))
    values[2, 1] = values[4] = np.nan
    weights = draw_weights(6, 3, 20)
    ours = resampled_mean(resampled_patients(values, weights), weights)
    for row, patients, seeds in zip(ours, weights.patients.astype(int), weights.seeds.astype(int), strict=True):
        drawn = []
        for patient in np.repeat(np.arange(6), patients):
            scores = values[patient, np.repeat(np.arange(3), seeds)]
            drawn.append(np.nan if np.isnan(scores).all() else np.nanmean(scores))
        assert row == pytest.approx(np.nanmean(drawn))


def simulated(random, gains, patients=24, seeds=3, luck=0.01, noise=0.03):
    "Scores in which every method differs from the first by its gain, its patients' own gain, and its networks' luck."
    base = random.normal(0.5, 0.12, patients)
    rows = []
    for number, (method, gain) in enumerate(gains.items()):
        own = random.normal(0, 0.06, patients) * (number > 0)
        of_seed = random.normal(0, luck, seeds)
        for patient, seed in itertools.product(range(patients), range(seeds)):
            dice = base[patient] + gain + own[patient] + of_seed[seed] + random.normal(0, noise)
            rows.append(dict(method=method, patient=patient, seed=seed, dice=dice))
    return pd.DataFrame(rows)


def test_intervals_of_difference_and_gap_hold_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    hits = np.zeros(2)
    for _ in range(150):
        table = compare_over_seeds(simulated(random, dict(supervised=0, a=0.08, oracle=0.16)), draws=400)
        row = table.set_index('method').loc['a']
        hits += (row.low <= 0.08 <= row.high, row.gap_closed_low <= 0.5 <= row.gap_closed_high)
    assert (hits / 150 >= 0.87).all() and (hits / 150 <= 0.995).all(), hits / 150


def test_luck_of_networks_is_seen_only_if_seeds_are_drawn_too():
    "Nominal 0.95; three seeds are few, so 0.8 is asked for where their luck is large. Patients alone fall below."
    random = np.random.default_rng(1)
    both = alone = 0
    for _ in range(120):
        scores = simulated(random, dict(supervised=0, a=0.0), luck=0.02)
        averaged = scores.groupby(['method', 'patient'], as_index=False).dice.mean().assign(seed=0)
        rows = [compare_over_seeds(table, draws=200).set_index('method').loc['a'] for table in (scores, averaged)]
        both += rows[0].low <= 0 <= rows[0].high
        alone += rows[1].low <= 0 <= rows[1].high
    assert both / 120 > 0.8 and both > alone + 5, (both, alone)


def test_false_claims_are_rare_among_many_useless_methods():
    "Of 60 comparisons of six useless methods, Holm's correction lets few claim anything; without it many would."
    random = np.random.default_rng(2)
    gains = dict.fromkeys(['supervised', *'abcdef'], 0.0)
    tables = [compare_over_seeds(simulated(random, gains, luck=0), draws=400) for _ in range(60)]
    claimed = np.mean([(table.p_holm < 0.05).any() for table in tables])
    uncorrected = np.mean([(table.p_value < 0.05).any() for table in tables])
    assert claimed <= 0.15 < uncorrected


def test_the_gap_has_no_interval_where_it_may_be_nothing():
    random = np.random.default_rng(4)
    table = compare_over_seeds(simulated(random, dict(supervised=0, a=0.0, oracle=0.005)), draws=400)
    assert table.gap_closed_low.isna().all() and table.gap_closed_high.isna().all()


def test_missing_seeds_of_one_method_do_not_stop_the_table():
    "An oracle that was trained with one seed only."
    scores = simulated(np.random.default_rng(5), dict(supervised=0, oracle=0.2))
    scores = scores[(scores.method != 'oracle') | (scores.seed == 0)]
    row = compare_over_seeds(scores, draws=500).set_index('method').loc['oracle']
    averaged = scores.groupby(['method', 'patient']).dice.mean()
    assert row.difference == pytest.approx((averaged['oracle'] - averaged['supervised']).mean())
    assert row.low < row.difference < row.high


def test_one_patient_has_a_difference_and_no_spread():
    scores = simulated(np.random.default_rng(6), dict(supervised=0, a=0.1), patients=1, seeds=1)
    row = compare_over_seeds(scores, draws=50).iloc[1]
    assert row.low == row.high == pytest.approx(row.difference)
    assert np.isnan(percentile_interval(np.array([0.1, np.nan]))).all()


def test_p_values_against_flipped_signs_and_intervals_against_bca():
    "With one seed, patients alone are drawn: the permutation test and the BCa interval then ask nearly the same."
    random = np.random.default_rng(9)
    scores = simulated(random, dict(supervised=0, a=0.03, b=0.0), patients=40, seeds=1)
    ours = compare_over_seeds(scores).set_index('method')
    theirs = compare_methods(scores).set_index('method')
    dice = scores.pivot(index='patient', columns='method', values='dice')
    for name in 'ab':
        difference = (dice[name] - dice.supervised).to_numpy()
        flipped = (random.choice([-1, 1], (20_000, 40)) * difference).mean(axis=1)
        p = (np.abs(flipped) >= abs(difference.mean())).mean()
        assert ours.p_value[name] == pytest.approx(p, abs=0.02 + 0.15 * p)
        allowed = (theirs.high[name] - theirs.low[name]) / 15
        assert ours.loc[name, ['low', 'high']].tolist() == pytest.approx(
            theirs.loc[name, ['low', 'high']].tolist(), abs=allowed
        )


# --- the table ---


def test_what_does_not_score_imports_neither_monai_nor_scikit_learn():
    "MONAI takes seconds to import; every command that trains or annotates imports these modules."
    modules = 'import sys, pe_advseg.evaluation.evaluate, pe_advseg.evaluation.comparison, pe_advseg.cli.main'
    code = f"{modules}; print({{'monai', 'sklearn'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'set()'


def test_comparison_reads_scores_that_know_less():
    "Score files written before the scores of the border, and tables that mix both."
    scores = simulated(np.random.default_rng(7), dict(supervised=0, a=0.1), patients=6, seeds=2)
    scores = scores.assign(site='target', clot_ml=1.0, false_positive_ml=0.2)
    old = comparison_table(scores, draws=200)
    assert {'froc', 'hd95_mm', 'seconds', 'gap_closed', 'p_holm'} <= set(old.columns)
    assert old[['froc', 'hd95_mm', 'surface_dice', 'detection_auroc', 'seconds', 'gap_closed']].isna().all(axis=None)
    mixed = pd.concat([scores, scores.assign(site='source', surface_dice=0.7, hd95_mm=3.0)])
    table = comparison_table(mixed, draws=200).set_index('site')
    assert table.surface_dice['target'].isna().all() and (table.hd95_mm['source'] == 3).all()
    assert table.gap_closed['source'].isna().all()


def test_costs_are_averaged_over_the_runs_of_a_method():
    scores = simulated(np.random.default_rng(8), dict(supervised=0, a=0.1), patients=4, seeds=2)
    scores = scores.assign(site='target', clot_ml=1.0, false_positive_ml=0.2, steps=600)
    scores['run'] = scores.method + scores.seed.astype(str)
    costs = {name: dict(seconds=value, passes=2 * value) for name, value in dict(a0=10, a1=30, supervised0=5).items()}
    table = comparison_table(scores, draws=100, costs=costs).set_index('method')
    assert table.seconds.to_dict() == dict(supervised=5, a=20) and (table.steps == 600).all()
    assert table.passes.to_dict() == dict(supervised=10, a=40)
    del costs['supervised0']
    unknown = comparison_table(scores, draws=100, costs=costs).set_index('method')
    assert np.isnan(unknown.seconds['supervised']) and unknown.seconds['a'] == 20
