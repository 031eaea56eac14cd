"""Which scan comes next: whatever the numbers, nobody is lost, and ties and gaps do not matter."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from pe_advseg.core.probability import STEP
from pe_advseg.evaluation.uncertainty import doubt
from pe_advseg.review.diversity import spread_out
from pe_advseg.review.worklist import STRATEGIES, possible_strategies, rank_scans

numbers = st.one_of(st.just(np.nan), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))  # ties and gaps are common
rows = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=12)


def table_of(rows):
    digests = [f'{number * 7919 % 9973:064x}' for number in range(len(rows))]
    return pd.DataFrame(
        [
            dict(
                study=f'study-{digest[-8:]}',
                digest=digest,
                volume_ml=1.0,
                entropy=a,
                confidence=b,
                estimated_dice=c,
                embedding=np.array([np.nan_to_num(a), 1.0]),
            )
            for digest, (a, b, c) in zip(digests, rows, strict=False)
        ]
    )


@settings(deadline=None, max_examples=150)
@given(rows, st.integers(0, 5), st.randoms(use_true_random=False))
def test_everybody_is_listed_once_whatever_the_order_they_come_in(rows, seed, random):
    table = table_of(rows)
    mixed = table.sample(frac=1, random_state=random.randrange(1000))
    for strategy in STRATEGIES:
        if strategy not in possible_strategies(table):
            with pytest.raises(ValueError, match='possible are'):
                rank_scans(table, strategy)
            continue
        listed = rank_scans(table, strategy, seed=seed)
        assert sorted(listed.study) == sorted(table.study) and list(listed['rank']) == list(range(1, len(table) + 1))
        assert list(rank_scans(mixed, strategy, seed=seed).study) == list(listed.study)
        assert list(rank_scans(table, strategy, count=2, seed=seed).study) == list(listed.study[:2])
        column, lowest_first = STRATEGIES[strategy].column, STRATEGIES[strategy].lowest_first
        if column in listed:
            known = listed[column].dropna()
            assert list(known.index) == list(range(len(known)))  # what is not known comes last
            assert list(known) == sorted(known, reverse=not lowest_first)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 250), min_size=8, max_size=64), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_entropy_agrees_with_scipy_voxel_by_voxel(values, wanted, seed):
    probability = np.array(values, np.uint8).reshape(1, 1, -1)
    confidence = np.random.default_rng(seed).integers(0, 251, probability.shape).astype(np.uint8)
    found = probability > 125
    result = doubt(probability, confidence, found, voxel_ml=1 / wanted)
    p = probability.ravel() * STEP
    entropy = scipy.stats.entropy(np.stack([p, 1 - p]), base=2).round(5)
    worst = (entropy >= np.sort(entropy)[::-1][min(wanted, len(p)) - 1]) & (entropy > 0)
    assert result['entropy'] == pytest.approx(entropy[worst].mean() if worst.any() else 0, abs=1e-4)
    where = worst | found.ravel()
    assert result['confidence'] == pytest.approx(
        (confidence.ravel()[where] if where.any() else confidence).mean() * STEP, abs=1e-4
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(0, 3))
def test_the_spread_is_at_most_twice_as_wide_as_the_best(seed, count, labelled):
    draws = np.random.default_rng(seed)
    points, known = draws.normal(size=(count, 2)), draws.normal(size=(labelled, 2))
    order, _ = spread_out(points, known if labelled else None)
    everything = np.concatenate([points, known])
    scaled = (everything - everything.mean(0)) / everything.std(0)

    def radius(chosen):
        return cdist(scaled[:count], scaled[[*chosen, *range(count, count + labelled)]]).min(1).max()

    assert sorted(order) == list(range(count))
    for few in range(1, count):
        assert (
            radius(order[:few])
            <= 2 * min(radius(chosen) for chosen in itertools.combinations(range(count), few)) + 1e-9
        )
