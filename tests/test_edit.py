"""Correcting a label: against scikit-image's flood fill, a distance formula voxel by voxel, and copies of the array."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.segmentation import flood

from pe_advseg.core.errors import InputError
from pe_advseg.core.volume import Volume
from pe_advseg.review.edit import Edits
from pe_advseg.review.unfinished import read_draft, write_draft

SHAPE, SPACING = (6, 12, 14), (2.5, 0.8, 0.7)


def make(seed=0, oblique=True):
    "A small noisy scan and a label of three emboli."
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3))) if oblique else (np.eye(3), None)
    volume = Volume(rng.integers(-100, 300, SHAPE).astype(np.int16), SPACING, (0, 0, 0), turn)
    numbers = np.zeros(SHAPE, np.uint16)
    for number, (z, y, x) in ((1, (1, 2, 3)), (2, (3, 7, 9)), (7, (4, 3, 10))):
        numbers[z : z + 2, y : y + 3, x : x + 2] = number
    return volume, numbers, rng.integers(0, 251, SHAPE).astype(np.uint8)


points = st.tuples(*(st.integers(0, size - 1) for size in SHAPE))
ranges = st.tuples(st.integers(-100, 100), st.integers(101, 300))
radii = st.floats(0.5, 8)
actions = st.one_of(
    st.tuples(st.sampled_from(('accept', 'reject', 'delete')), st.sampled_from((1, 2, 7, 8, 9))),
    st.tuples(st.just('add'), points, ranges, radii, st.sampled_from(('hu', 'probability'))),
    st.tuples(
        st.just('brush'),
        points,
        points,
        ranges,
        radii,
        st.sampled_from(('paint', 'erase')),
        st.sampled_from((None, 1, 7)),
        st.booleans(),
        st.booleans(),
    ),
)


def do(edits, action):
    "One action; one that is refused, in words, counts as none."
    name, *rest = action
    try:
        if name == 'add':
            point, (low, high), radius, by = rest
            edits.add(point, *((low, high) if by == 'hu' else (0.1, 0.9)), radius, by)
        elif name == 'brush':
            point, end, hu_range, radius, mode, number, ball, straight = rest
            edits.brush(
                point, radius, mode, hu_range, number, end=(point[0], *end[1:]) if straight else None, ball=ball
            )
        else:
            getattr(edits, name)(rest[0])
    except ValueError as error:
        assert str(error)


@settings(deadline=None, max_examples=60)
@given(st.lists(actions, max_size=12), st.integers(0, 20))
def test_undo_gives_the_same_array_and_redo_the_other(doing, back):
    volume, numbers, probability = make()
    given_numbers = numbers.copy()
    edits = Edits(volume, numbers, probability)
    seen = [(edits.numbers.copy(), copy.deepcopy(edits.decision_of))]
    for action in doing:
        steps = len(edits.done)
        do(edits, action)
        if len(edits.done) > steps:
            seen.append((edits.numbers.copy(), dict(edits.decision_of)))
        check_counts(edits)
    assert len(seen) == len(edits.done) + 1
    place = len(seen) - 1
    for way in ['undo'] * back + ['redo'] * back:
        moved = getattr(edits, way)()
        place = max(0, place - 1) if way == 'undo' else min(len(seen) - 1, place + 1)
        assert bool(moved) or place in (0, len(seen) - 1)
        np.testing.assert_array_equal(edits.numbers, seen[place][0])
        assert edits.decision_of == seen[place][1] and edits.changed == (place > 0)
        check_counts(edits)
    np.testing.assert_array_equal(numbers, given_numbers)  # the caller's array is never written to


def check_counts(edits):
    "What is kept up to date is what a look through everything gives."
    present = {int(n): int(count) for n, count in zip(*np.unique(edits.numbers, return_counts=True), strict=False) if n}
    assert {n: count for n, count in edits.voxels.items() if count} == present and edits.emboli == sorted(present)
    for number in present:
        np.testing.assert_array_equal(edits.places(number), np.argwhere(edits.numbers == number))
    table = edits.decisions.set_index('embolus')
    for number, count in present.items():
        assert table.ml_after[number] == pytest.approx(count * np.prod(SPACING) / 1000)


def distance_mm(volume, point, end=None):
    "From every voxel to a point, or to the line between two, one voxel at a time, in the patient's own millimetres."
    a = volume.to_patient(point)
    b = a if end is None else volume.to_patient(end)
    found = np.empty(volume.shape)
    for index in np.ndindex(volume.shape):
        p = volume.to_patient(index)
        share = 0 if np.allclose(a, b) else min(1, max(0, np.dot(p - a, b - a) / np.dot(b - a, b - a)))
        found[index] = np.linalg.norm(p - a - share * (b - a))
    return found


@settings(deadline=None, max_examples=40)
@given(points, st.integers(0, 150), radii)
def test_a_click_grows_what_flood_fill_grows(point, tolerance, radius):
    volume, numbers, _ = make(1)
    edits = Edits(volume, numbers)
    value = int(volume.hu[point])
    if numbers[point]:
        with pytest.raises(ValueError, match='belongs to embolus'):
            edits.add(point, value - tolerance, value + tolerance, radius)
        return
    number = edits.add(point, value - tolerance, value + tolerance, radius)
    blocked = (distance_mm(volume, point) > radius + 1e-6) | (numbers > 0)
    expected = flood(np.where(blocked, 30_000, volume.hu).astype(float), point, connectivity=1, tolerance=tolerance)
    assert number == 8
    np.testing.assert_array_equal(edits.numbers, np.where(expected, 8, numbers))


@settings(deadline=None, max_examples=40)
@given(points, points, radii, ranges, st.booleans(), st.sampled_from((None, 2)))
def test_the_brush_paints_inside_its_limits(point, end, radius, hu_range, ball, number):
    volume, numbers, _ = make(2)
    end = end if ball else (point[0], *end[1:])
    edits = Edits(volume, numbers)
    covered = distance_mm(volume, point, end) <= radius + 1e-6
    if not ball:
        covered[np.arange(SHAPE[0]) != point[0]] = False
    covered &= (volume.hu >= hu_range[0]) & (volume.hu <= hu_range[1]) & (numbers == 0)
    painted = edits.brush(point, radius, 'paint', hu_range, number, end=end, ball=ball)
    assert painted == ((number or 8) if covered.any() else None)
    np.testing.assert_array_equal(edits.numbers, np.where(covered, number or 8, numbers))


def test_erasing_has_no_limits():
    volume, numbers, _ = make(3)
    edits = Edits(volume, numbers)
    edits.brush((1, 3, 3), 2.0, 'erase', hu_range=(1000, 1001))
    covered = distance_mm(volume, (1, 3, 3)) <= 2
    covered[np.arange(SHAPE[0]) != 1] = False
    np.testing.assert_array_equal(edits.numbers, np.where(covered, 0, numbers))
    assert edits.decision_of == {1: 'changed'}


def test_a_stroke_is_one_step():
    volume, numbers, _ = make(4)
    edits = Edits(volume, numbers)
    first = edits.brush((0, 2, 2), 2.0, hu_range=(-1000, 1000))
    for x in range(3, 12):
        edits.brush((0, 2, x - 1), 2.0, number=first, hu_range=(-1000, 1000), end=(0, 2, x), join=True)
    covered = distance_mm(volume, (0, 2, 2), (0, 2, 11)) <= 2
    covered[1:] = False
    np.testing.assert_array_equal(edits.numbers, np.where(covered & (numbers == 0), first, numbers))
    assert len(edits.done) == 1
    edits.undo()
    np.testing.assert_array_equal(edits.numbers, numbers)


def test_decisions():
    volume, numbers, probability = make()
    edits = Edits(volume, numbers, probability)
    edits.accept(1)
    edits.reject(2)
    edits.delete(7)
    free = next(tuple(int(i) for i in place) for place in np.argwhere(numbers == 0))
    new = edits.add(free, -2000, 2000, 1.0)
    ml = np.prod(SPACING) / 1000
    table = edits.decisions
    assert table.decision.tolist() == ['accepted', 'rejected', 'deleted', 'added'] and table.embolus.tolist() == [
        1,
        2,
        7,
        new,
    ]
    np.testing.assert_allclose(table.ml_before, [12 * ml, 12 * ml, 12 * ml, 0])
    np.testing.assert_allclose(table.ml_after, [12 * ml, 0, 0, (edits.numbers == new).sum() * ml])
    edits.accept(2)  # changed one's mind
    np.testing.assert_array_equal(edits.numbers == 2, numbers == 2)
    edits.delete(new)
    assert new not in edits.decisions.embolus.tolist() and edits.emboli == [1, 2]


def test_what_cannot_be_done_is_said_and_changes_nothing():
    volume, numbers, _ = make()
    edits = Edits(volume, numbers)
    for attempt, text in (
        (lambda: edits.accept(5), 'no embolus 5'),
        (lambda: edits.add((1, 2, 3), 0, 1), 'belongs to embolus 1'),
        (lambda: edits.add((0, 0, 0), 2000, 3000), 'Widen the limits'),
        (lambda: edits.add((99, 0, 0), 0, 1), 'outside the scan'),
        (lambda: edits.brush((0, 99, 0), 1.0), 'outside the scan'),
        (lambda: edits.add((0, -1, 0), 0, 1), 'outside the scan'),
        (lambda: edits.brush((0, 0, 0), 1.0, end=(0, 0, 14)), 'outside the scan'),
        (lambda: edits.brush((0, 0, 0), 1.0, 'smear'), 'paint'),
        (lambda: edits.add((0, 0, 0), 0, 1, by='probability'), 'no probability'),
    ):
        with pytest.raises(ValueError, match=text):
            attempt()
    assert not edits.changed and (edits.numbers == numbers).all()
    with pytest.raises(ValueError, match='the scan'):
        Edits(volume, numbers[:2])
    with pytest.raises(ValueError, match='65,000'):
        Edits(volume, numbers.astype(int) - 1)


def test_steps_are_small():
    "A step costs six bytes a voxel that changed, however large the scan is."
    volume = Volume(np.zeros((40, 200, 200), np.int16), (1, 1, 1), (0, 0, 0), np.eye(3))
    edits = Edits(volume, np.zeros(volume.shape, np.uint16))
    edits.brush((20, 100, 100), 10.0, ball=True)
    step = edits.done[0]
    assert step.index.nbytes + step.old.nbytes == 6 * np.count_nonzero(edits.numbers) and step.new.nbytes == 2


@settings(deadline=None, max_examples=20)
@given(st.lists(actions, max_size=8))
def test_unfinished_work_comes_back(tmp_path_factory, doing):
    volume, numbers, probability = make()
    edits = Edits(volume, numbers, probability)
    for action in doing:
        do(edits, action)
    path = tmp_path_factory.mktemp('drafts') / 'a.npz'
    write_draft(path, edits, reviewer='R. Viewer', note='')
    again = Edits(volume, numbers, probability)
    assert read_draft(path, again) == dict(reviewer='R. Viewer', note='')
    np.testing.assert_array_equal(again.numbers, edits.numbers)
    assert again.decisions.equals(edits.decisions)
    again.undo()
    np.testing.assert_array_equal(again.numbers, numbers)


@pytest.mark.parametrize('damage', ['empty', 'cut', 'text', 'pickle', 'other'])
def test_damaged_unfinished_work_is_refused(tmp_path, damage):
    volume, numbers, _ = make()
    edits = Edits(volume, numbers)
    edits.reject(1)
    path = tmp_path / 'a.npz'
    write_draft(path, edits)
    whole = path.read_bytes()
    if damage == 'pickle':
        np.savez(path, index=np.array([{}], object), new=np.zeros(1), words=np.array('{}'))
    elif damage == 'other':
        edits = Edits(volume, numbers * 2)
    else:
        path.write_bytes(dict(empty=b'', cut=whole[: len(whole) // 2], text=b'hello')[damage])
    fresh = Edits(volume, edits.numbers if damage == 'other' else numbers)
    with pytest.raises(InputError):
        read_draft(path, fresh)
    assert not fresh.changed
