"Presets stay what they are; hospitals of one's own, one cause at a time, and a gap of any width."

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import ndimage

from pe_advseg.phantom.artefacts import average_over_motion, draw_motion
from pe_advseg.phantom.hospital import CAUSES, LIMITS, Hospital
from pe_advseg.phantom.hospital_variants import between, only, without
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.lookalikes import bolus_interruption
from pe_advseg.phantom.patients import draw_patient, place_grid
from pe_advseg.phantom.phantom import make_study
from pe_advseg.phantom.scene import paint_scene

SMALL = (12, 64, 64)
HARBOUR, VALLEY = HOSPITALS['harbour'], HOSPITALS['valley']


# --- the hospitals of committed results stay what they are


PINNED = {
    ('harbour', 1): (-385.417, 10, 3424),
    ('harbour', 3): (-370.898, 52, 5016),
    ('valley', 1): (-533.136, 34, 5265),
    ('valley', 3): (-460.858, 3, 6226),
    ('island', 1): (-483.169, 7, 3706),
    ('island', 3): (-553.337, 25, 4443),
}  # (hospital, patient) -> mean HU, clot voxels, sum of clot voxels' flat indices modulo 10007


@pytest.mark.parametrize('name, patient', PINNED)
def test_pictures_of_the_first_three_hospitals_do_not_change(name, patient):
    """Fields, causes and presets come and go; committed results hang on these pixels.

    No digest: the last bit of an FFT may differ elsewhere."""
    study = make_study(HOSPITALS[name], patient, (16, 64, 64))
    mean, count, places = PINNED[name, patient]
    assert abs(study.volume.hu.mean() - mean) < 0.02
    assert (int(study.mask.sum()), int(np.flatnonzero(study.mask).sum() % 10007)) == (count, places)


def test_there_are_presets_enough_and_the_first_three_come_first():
    assert list(HOSPITALS)[:3] == ['harbour', 'valley', 'island'] and len(HOSPITALS) >= 5
    own_patients = [hospital for hospital in HOSPITALS.values() if hospital.name != 'fjord']  # it has harbour's
    assert len({hospital.seed for hospital in own_patients}) == len(own_patients) == len(HOSPITALS) - 1
    assert HOSPITALS['fjord'].seed == HARBOUR.seed and HOSPITALS['fjord'].artery_hu[0] < 200  # badly opacified
    assert all(name == hospital.name for name, hospital in HOSPITALS.items())
    assert all(30 <= hospital.clot_hu[0] <= 100 for hospital in own_patients)
    usual = [hospital for hospital in own_patients if hospital.name != 'heath']  # a weak bolus on purpose
    assert all(200 <= hospital.artery_hu[0] <= 500 for hospital in usual)


def test_moor_is_the_hardest_on_paper():
    "Contrast of blood over clot in units of noise, in patients as they are drawn."

    def ratio(hospital):
        people = [draw_patient(hospital, number) for number in range(1, 7)]
        return np.mean([(p.contrast['artery'] - np.mean(p.clot_hu)) / p.noise_hu for p in people if p.emboli])

    ratios = {name: ratio(hospital) for name, hospital in HOSPITALS.items()}
    assert ratios.pop('fjord') < ratios['moor']  # badly opacified on purpose
    assert min(ratios, key=ratios.get) == 'moor' and ratios['moor'] < 0.85 * ratios['valley']
    assert HOSPITALS['moor'].slice_mm > VALLEY.slice_mm


# --- one's own hospital


@pytest.mark.parametrize(
    'field, value',
    [
        ('name', ''),
        ('name', '../x'),
        ('name', 7),
        ('seed', -1),
        ('seed', 1.5),
        ('artery_hu', 360),
        ('artery_hu', (360,)),
        ('artery_hu', (360, -1)),
        ('artery_hu', (float('nan'), 1)),
        ('clot_hu', (400, 10)),
        ('kernel', 'crisp'),
        ('kernel', (0.4,)),
        ('kernel', (-1, 0)),
        ('slice_mm', 0),
        ('slice_mm', 'thin'),
        ('fov_mm', (365, 290)),
        ('size', (0.9, 9)),
        ('negative', 1.01),
        ('nodes', -1),
        ('nodes', None),
        ('motion', float('inf')),
        ('off', ('nurses',)),
    ],
)
def test_a_hospital_names_the_field_that_makes_no_sense(field, value):
    with pytest.raises(ValueError, match=f'hospital .*: {field} must be '):
        replace(HARBOUR, **{field: value})


def test_a_hospital_from_a_text_file_is_the_same(tmp_path):
    "As JSON has it: lists for tuples."
    assert Hospital(**json.loads(json.dumps(asdict(HOSPITALS['moor'])))) == HOSPITALS['moor']


# --- one cause at a time


@pytest.mark.parametrize('cause', CAUSES)
def test_a_cause_left_out_changes_nothing_else(cause):
    """A cause is removed from a hospital that has them all: truth and patient stay, the picture changes where it was.

    Put back, it is the same again."""
    loud = replace(
        HOSPITALS['forest'],
        cava_hu=(1200, 0),
        negative=0.0,
        nodes=4,
        mucus=4,
        mixing=3,
        effusion=1,
        collapse=1,
        emphysema=1,
        interruption=1,
        motion=1,
        hardening_hu=150,
    )
    full, less = (make_study(hospital, 3, (16, 80, 80)) for hospital in (loud, without(loud, cause)))
    for name in ('mask', 'clot_ids', 'artery'):
        np.testing.assert_array_equal(getattr(full, name), getattr(less, name))
    changed = full.volume.hu != less.volume.hu
    assert changed.any() and (abs(full.volume.hu.astype(int) - less.volume.hu) > 5).mean() < 0.4
    assert less.patient.contrast == full.patient.contrast and less.patient.noise_hu == full.patient.noise_hu
    assert without(loud, cause).name == f'forest_without_{cause}'


def test_only_is_without_all_others():
    others = [cause for cause in CAUSES if cause != 'mucus']
    assert only(VALLEY, 'mucus', name='x') == without(VALLEY, *others, name='x')
    assert only(VALLEY).off == tuple(CAUSES) and without(without(VALLEY, 'nodes'), 'mucus').off == ('nodes', 'mucus')


def test_off_is_the_same_as_a_field_of_zero_where_nothing_else_is_drawn_from_its_numbers():
    for cause in ('effusion', 'collapse', 'emphysema', 'streaks', 'hardening', 'motion', 'interruption'):
        zero = replace(HOSPITALS['moor'], **{CAUSES[cause]: 0.0})
        np.testing.assert_array_equal(
            make_study(zero, 2, SMALL).volume.hu, make_study(without(HOSPITALS['moor'], cause), 2, SMALL).volume.hu
        )


def test_an_interrupted_bolus_darkens_arteries_alone_and_not_to_nothing():
    hospital = replace(only(HARBOUR, 'interruption'), interruption=1.0)
    for number in (2, 3):
        patient = draw_patient(hospital, number)
        grid, _ = place_grid(hospital, patient, (24, 96, 96))
        share = bolus_interruption(grid, hospital, number)
        assert share.shape == (24,) and share.min() >= 0.5 and share.max() <= 1
        scenes = [paint_scene(h, number, patient, grid) for h in (without(hospital, 'interruption'), hospital)]
        darker = scenes[0].hu - scenes[1].hu
        assert darker.min() > -1e-3 and (darker[scenes[0].artery == 0] == 0).all() and darker.max() > 20
    assert bolus_interruption(grid, HARBOUR, 2) is None


def test_motion_is_the_average_over_a_swing():
    "Against the average of copies shifted by a sine, made in the image and not in the spectrum."
    patient = draw_patient(HARBOUR, 1)
    grid, _ = place_grid(HARBOUR, patient, (4, 96, 96), pixel_mm=1.0)
    picture = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 500, (96, 96)), 2, mode='wrap')
    swing = [(a, 2 * a) for a in 1.5 * np.sin(2 * np.pi * (np.arange(64) + 0.5) / 64)]  # (x, y) mm
    expected = np.mean([ndimage.shift(picture, (y, x), order=5, mode='grid-wrap') for x, y in swing], axis=0)
    moved = average_over_motion(
        np.fft.rfft2(picture), [(float(grid.z[1]), 10.0, (1.5, 3.0), np.inf)], grid, float(grid.z[1]), 1.0
    )
    assert abs(moved - expected).max() < 0.01 * abs(picture).max()
    far = average_over_motion(np.fft.rfft2(picture), [(1000.0, 10.0, (1.5, 3.0), np.inf)], grid, 0.0, 1.0)
    np.testing.assert_allclose(far, picture, atol=1e-6)
    assert draw_motion(HARBOUR, 1) == [] and len(draw_motion(replace(HARBOUR, motion=1.0), 1)) == 2


# --- an adjustable gap


@pytest.mark.parametrize('one', HOSPITALS)
@pytest.mark.parametrize('other', ['harbour', 'moor', 'island'])
def test_between_two_hospitals(one, other):
    a, b = HOSPITALS[one], HOSPITALS[other]

    def same(x, y):
        return {**asdict(x), 'name': 0, 'seed': 0} == {**asdict(y), 'name': 0, 'seed': 0}

    assert (
        same(between(a, b, 0), a)
        and same(between(a, b, 1), b)
        and between(a, b, 1).seed == between(a, b, 0).seed == b.seed
    )
    steps = [between(a, b, amount) for amount in (0, 0.2, 0.5, 0.9, 1)]
    for field in LIMITS:
        values = np.array([np.atleast_1d(getattr(step, field)) for step in steps], float)
        rising = np.diff(values, axis=0)
        assert ((rising >= -1e-9).all(0) | (rising <= 1e-9).all(0)).all(), field
    for amount in (-3, -0.5, 1.5, 5):
        between(a, b, amount)  # valid however far, or the constructor would refuse


def test_the_gap_widens_in_the_pictures():
    "Contrast over noise in the scan falls steadily on the way from harbour to moor and beyond."

    def contrast(amount):
        study = make_study(replace(only(between(HARBOUR, HOSPITALS['moor'], amount)), negative=0.0), 3, (24, 96, 96))
        blood = (study.artery > 0) & (study.artery <= 3) & (study.mask == 0)
        return (np.median(study.volume.hu[blood]) - np.median(study.volume.hu[study.mask > 0])) / study.patient.noise_hu

    ratios = [contrast(amount) for amount in (0, 0.5, 1, 1.3)]
    assert all(b < a for a, b in zip(ratios, ratios[1:], strict=False)), ratios
