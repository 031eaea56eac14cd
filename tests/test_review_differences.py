"""Differences between two labels, against sets of voxels that are joined one by one."""

import itertools
import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from support.review_scans import AXIAL

from pe_advseg.core.volume import Volume
from pe_advseg.evaluation.metrics import lesion_scores, patient_scores
from pe_advseg.review.differences import compare_masks, match_emboli


def as_sets(mask):
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return [set(map(tuple, np.argwhere(pieces == n))) for n in range(1, count + 1)]


@given(st.integers(0, 10**6), st.floats(0.02, 0.3), st.floats(0, 0.3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_groups_against_sets_of_voxels(seed, density, change):
    "The same grouping, made of Python sets that are joined as long as they share a voxel."
    rng = np.random.default_rng(seed)
    before = rng.random((4, 6, 7)) < density
    after = before ^ (rng.random(before.shape) < change * density)
    groups = [([a], []) for a in as_sets(before)] + [([], [b]) for b in as_sets(after)]

    def cover(group):
        return set().union(*group[0], *group[1])

    def shares(g, h):
        return any(a & b for a in g[0] for b in h[1]) or any(a & b for a in h[0] for b in g[1])

    joined = True
    while joined:
        joined = next(((g, h) for g, h in itertools.combinations(groups, 2) if shares(g, h)), None)
        if joined:
            groups = [g for g in groups if g is not joined[0] and g is not joined[1]] + [
                (joined[0][0] + joined[1][0], joined[0][1] + joined[1][1])
            ]
    expected = sorted((len(a), len(b), len(set().union(*a) & set().union(*b)), len(cover((a, b)))) for a, b in groups)
    table = match_emboli(before, after, 1.0)
    assert (
        sorted(
            (len(r.before), len(r.after), round(r.before_ml - r.removed_ml), round(r.before_ml + r.added_ml))
            for r in table.itertuples()
        )
        == expected
    )
    for r in table.itertuples():
        kind = (
            'added'
            if not r.before
            else 'removed'
            if not r.after
            else 'kept'
            if r.dice == 1 and len(r.before) == len(r.after) == 1
            else 'changed'
        )
        assert r.change == kind
    whole, scores, lesions = (
        compare_masks(before, after, Volume(np.zeros(before.shape, np.int16), (1, 10, 10), (0, 0, 0), AXIAL)),
        patient_scores(after, before, (1, 10, 10)),
        lesion_scores(after, before),
    )
    assert (whole['removed'], whole['added']) == (
        lesions['emboli'] - lesions['emboli_found'],
        lesions['false_positive_lesions'],
    )
    for name in ('added_ml', 'removed_ml', 'before_ml', 'after_ml'):
        assert abs(whole[name] - table[name].sum() * 0.1) < 1e-9
    assert whole['dice'] == (None if np.isnan(scores['dice']) else scores['dice'])
    json.dumps(whole, allow_nan=False)
