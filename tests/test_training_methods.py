"""Every method by itself: what would show it silently off, resumed bit for bit, weight 0, and the controls."""

import numpy as np
import pandas as pd
import pytest
import torch
from support.tiny_hospitals import cached_hospitals
from torch import nn

from pe_advseg.core.preprocessing import scale_hu
from pe_advseg.core.probability import entropy_bits
from pe_advseg.data.bolus import open_arteries
from pe_advseg.data.patches import IGNORE, Draw
from pe_advseg.training import teachers
from pe_advseg.training.adversarial import FeatureEnhanced, NetworkOutput, verdict
from pe_advseg.training.checkpoint import load_checkpoint, pack
from pe_advseg.training.config import TrainConfig
from pe_advseg.training.initial_networks import build_networks
from pe_advseg.training.losses import discriminator_hinge, masked_bce, network_hinge, prediction_entropy
from pe_advseg.training.methods import Step, in_target_style, labelled_loss, segmentation_loss, toy_step
from pe_advseg.training.registry import METHODS, build_method
from pe_advseg.training.run_folder import read_history
from pe_advseg.training.teachers import begins_round, paste_into_lumen, two_sided_labels
from pe_advseg.training.train import train

SMALL = dict(network_options={'upsampling': 'bilinear'}, batch=2, patch=32)
QUIET = dict(progress=False, checkpoint_every=3, log_every=1)
TEACHERS = ('mean_teacher', 'cutmix_mean_teacher', 'iterative_pseudo_labels', 'clot_paste', 'style_mixing')
LABELLING = (*TEACHERS[1:], 'style_mixing_features', 'best_recipe')
ALWAYS = dict(clot_above=0.5, background_below=0.5)  # so that an untrained teacher labels every pixel


@pytest.fixture(scope='module')
def hospitals(tmp_path_factory):
    "Two tiny synthetic hospitals, cached."
    return cached_hospitals(tmp_path_factory.mktemp('hospitals'), patients=2)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def prepared(name: str, **options) -> tuple[Step, object]:
    "A toy step with the networks of a method, and the method."
    step, method = toy_step(), build_method(name, **options)
    step.networks |= method.build(step.networks['network'])
    return step, method


def gradients(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


class DarkSpots(nn.Module):
    "A teacher that finds the dark spots of the toy's unlabelled discs, and is in doubt around the border of each."

    def forward(self, image):
        near = nn.functional.max_pool2d(image, 15, 1, 7) > 0.2
        clot = near & (image > -0.3) & (image < 0)
        around = nn.functional.max_pool2d(clot.float(), 5, 1, 2) > 0
        return torch.where(clot, 4.0, torch.where(around, -1.0, -4.0))


class FreeLogits(nn.Module):
    "A network whose logits are its parameters, whatever it sees."

    def __init__(self, shape: tuple, value: float = 0.3):
        super().__init__()
        self.logits = nn.Parameter(torch.full(shape, value))

    def forward(self, image):
        return self.logits[: len(image)]


# --- all methods ---


def test_the_list_is_in_the_order_of_the_tables_and_no_method_uses_what_it_does_not_declare():
    first, *_, last = METHODS
    assert (first, last) == ('supervised', 'oracle')
    for name in METHODS:
        step, method = prepared(name)
        if not method.uses_unlabelled:
            step.unlabelled = None
        terms = method.network_terms(step) | method.discriminator_terms(step)
        method.after_step(step)
        assert all(term.isfinite() for term in terms.values()), name
        assert method.evaluated in step.networks, name


def test_the_longest_begin_first():
    effort = {name: build_method(name).effort for name in METHODS}
    assert effort['supervised'] == min(effort.values()) and effort['feature_enhanced_as_released'] == max(
        effort.values()
    )
    assert effort['entropy_minimisation'] < effort['mean_teacher'] < effort['feature_enhanced']


@pytest.mark.parametrize(
    'name, options',
    [
        ('supervised_scanner_views', {}),
        ('supervised_fourier_style', {}),
        ('supervised_histogram_style', {}),
        ('entropy_minimisation', {}),
        ('mean_teacher', {}),
        ('cutmix_mean_teacher', ALWAYS),
        ('iterative_pseudo_labels', dict(rounds=2, **ALWAYS)),
        ('clot_paste', ALWAYS),
        ('style_mixing', dict(style='histogram', **ALWAYS)),
        ('feature_enhanced', dict(pseudo_start=0.2, shuffle_confidence=True, loss='hinge')),
        ('best_recipe', dict(weight=1.0, begin=0.3, paste=True, labelled_weight=0.1, **ALWAYS)),
    ],
)
def test_stopped_and_resumed_is_the_same(hospitals, tmp_path, name, options):
    config = TrainConfig(name, options, steps=8, **SMALL)
    straight = train(config, *hospitals, tmp_path / 'a', **QUIET)
    for stop in (3, 7):  # on both sides of step 4, after which the second round begins
        train(config, *hospitals, tmp_path / 'b', stop_after=stop, **QUIET)
    resumed = train(config, *hospitals, tmp_path / 'b', **QUIET)
    one, two = (pack(load_checkpoint(run)[0])[0] for run in (straight, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    pd.testing.assert_frame_equal(read_history(straight), read_history(resumed))


OFF = {
    'entropy_minimisation': dict(weight=0),
    'supervised_fourier_style': dict(styled_share=0),
    'supervised_histogram_style': dict(styled_share=0),
    'best_recipe': dict(styled_share=0, contrast=None),
} | {name: dict(weight=0) for name in TEACHERS}


def test_weight_zero_is_supervised_training_bit_for_bit(hospitals, tmp_path):
    runs = {'supervised': {}} | OFF
    states = {}
    for name, options in runs.items():
        run = train(TrainConfig(name, options, steps=3, **SMALL), *hospitals, tmp_path, progress=False)
        states[name] = load_checkpoint(run)[0]['networks']['network']
    for name, state in states.items():
        assert all(torch.equal(value, state[key]) for key, value in states['supervised'].items()), name


@pytest.mark.parametrize('name', [name for name in METHODS if name not in ('supervised', 'oracle')])
def test_a_method_that_is_on_differs_from_supervised_training(name):
    options = ALWAYS if name in LABELLING else {}
    step, method = prepared(name, **options)
    sum(method.network_terms(step).values()).backward()
    alone, supervised = prepared('supervised')
    sum(supervised.network_terms(alone).values()).backward()
    assert not torch.equal(gradients(step.networks['network']), gradients(alone.networks['network']))


# --- views and styles ---


@pytest.mark.parametrize('name', ['supervised_scanner_views', 'mean_teacher', 'style_mixing'])
def test_a_divided_batch_gets_the_same_views(name):
    "Process r of several begins at item r * n: its views are those of the joined batch."
    seen = []

    class Recorder(FreeLogits):
        def forward(self, image):
            seen.append(image)
            return super().forward(image)

    step, method = prepared(name, **({} if name != 'style_mixing' else ALWAYS))
    shape = (8, 1, 48, 48)
    step.networks = {'network': Recorder(shape), 'teacher': DarkSpots()}
    method.network_terms(step)
    whole = seen[-1].clone()
    half = Step(step.networks, step.image[2:], step.mask[2:], step.unlabelled[2:], step.draw, 1.0, first=2)
    method.network_terms(half)
    wanted = torch.cat([part[2:] for part in whole.chunk(2)]) if name == 'style_mixing' else whole[2:]
    assert torch.equal(seen[-1], wanted)


def test_a_styled_image_has_the_targets_low_frequencies_or_its_quantiles():
    step = toy_step()
    lowest = [
        torch.fft.rfft2(image)[..., :2, :2].abs() for image in (in_target_style(step, 'fourier'), step.unlabelled)
    ]
    torch.testing.assert_close(*lowest, rtol=1e-4, atol=1e-3)
    styled, shares = in_target_style(step, 'histogram'), torch.linspace(0.05, 0.95, 10)
    for image, wanted in zip(styled, step.unlabelled, strict=True):
        torch.testing.assert_close(image.quantile(shares), wanted.quantile(shares), rtol=0, atol=0.02)


def test_entropy_is_that_of_the_findings():
    logits = torch.linspace(-8, 8, 50)
    assert prediction_entropy(logits).item() == pytest.approx(entropy_bits(logits.sigmoid().numpy()).mean(), rel=1e-4)


# --- teachers ---


def test_the_average_moves_weights_and_buffers_and_gets_no_gradient(hospitals):
    step, method = prepared('cutmix_mean_teacher', momentum=0.5, **ALWAYS)
    step.draw = Draw(0, 100)  # past the first updates
    before = {name: value.clone() for name, value in step.networks['teacher'].state_dict().items()}
    sum(method.network_terms(step).values()).backward()
    with torch.no_grad():
        for parameter in step.networks['network'].parameters():
            parameter -= 0.1 * parameter.grad
    method.after_step(step)
    network = step.networks['network'].state_dict()
    moved = 0
    for name, value in step.networks['teacher'].state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (before[name] + network[name]) / 2)
            moved += int(not torch.equal(value, before[name]) and 'running' in name)
    assert moved > 10  # statistics of batch norm
    assert not any(parameter.requires_grad for parameter in step.networks['teacher'].parameters())


@pytest.mark.parametrize('name', LABELLING)
def test_labels_hold_clot_where_the_teacher_sees_it_and_doubt_is_ignored(name):
    options = dict(weight=1.0) if name == 'best_recipe' else {}  # it has no teacher unless asked for
    step, method = prepared(name, **options)
    step.networks['teacher'] = DarkSpots()
    method.network_terms(step)
    clot = DarkSpots()(step.unlabelled) > 0
    assert step.log['pseudo_foreground'] == pytest.approx(float(clot.float().mean()))
    assert step.log['pseudo_kept_clot'] == 1.0
    assert 0.5 < step.log['pseudo_kept'] < 1.0


def test_each_threshold_moves_its_own_side():
    probability = torch.linspace(0, 1, 101)
    usual, shy, doubtful = (two_sided_labels(probability, *sides) for sides in ((0.7, 0.05), (0.9, 0.05), (0.7, 0.01)))
    assert (usual == 1).sum() > (shy == 1).sum() and torch.equal(usual == 0, shy == 0)
    assert (usual == 0).sum() > (doubtful == 0).sum() and torch.equal(usual == 1, doubtful == 1)
    assert (usual == IGNORE).any()


@pytest.mark.parametrize('name', ['cutmix_mean_teacher', 'iterative_pseudo_labels'])
def test_an_ignored_pixel_moves_nothing(name):
    step, method = prepared(name)
    step.networks |= {'network': FreeLogits((4, 1, 48, 48)), 'teacher': DarkSpots()}
    method.unlabelled_loss(step).backward()
    moved = step.networks['network'].logits.grad != 0
    kept = float(step.log['pseudo_kept'])
    assert 0 < float(moved.float().mean()) < 1
    if name == 'iterative_pseudo_labels':  # nothing is mixed: the ignored pixels are the teacher's doubtful ones
        assert float(moved.float().mean()) == pytest.approx(kept)
        assert torch.equal(~moved, DarkSpots()(step.unlabelled) == -1.0)


def test_mean_teacher_is_the_squared_difference():
    step, method = prepared('mean_teacher')
    step.networks |= {'network': FreeLogits((4, 1, 48, 48), 2.0), 'teacher': FreeLogits((4, 1, 48, 48), -1.0)}
    wanted = (torch.tensor(2.0).sigmoid() - torch.tensor(-1.0).sigmoid()) ** 2
    torch.testing.assert_close(method.unlabelled_loss(step), wanted)


@pytest.mark.parametrize('rounds', [1, 2, 3])
def test_rounds_begin_evenly_whatever_the_number_of_steps(rounds):
    for steps in range(rounds + 1, 150):
        done = [
            k + 1 for k in range(1, steps) if begins_round(Step({}, None, None, None, Draw(0, k), k / steps), rounds)
        ]
        assert done == [-(-number * steps // rounds) for number in range(1, rounds + 1)], steps


def test_the_teacher_of_a_round_stands_still(hospitals, tmp_path):
    config = TrainConfig('iterative_pseudo_labels', dict(rounds=2, **ALWAYS), steps=8, **SMALL)
    states = []
    for stop in (3, 4, 7):
        run = train(config, *hospitals, tmp_path, stop_after=stop, progress=False, checkpoint_every=1)
        states.append(load_checkpoint(run)[0]['networks'])
    begun, first, second = build_networks(config, build_method(config.method), None), states[1], states[2]
    weight = next(name for name in states[0]['teacher'] if name.endswith('weight'))
    assert torch.equal(states[0]['teacher'][weight], begun['network'].state_dict()[weight])
    assert torch.equal(first['teacher'][weight], first['network'][weight])  # a new round has just begun
    assert torch.equal(second['teacher'][weight], first['teacher'][weight])
    assert not torch.equal(second['network'][weight], first['network'][weight])


# --- clots pasted into target scans ---


def lung(hu: float, n: int = 4, size: int = 48) -> torch.Tensor:
    "Lung with an artery of some HU and, at the border of the image, a rib."
    image = torch.full((n, 1, size, size), -1.0)
    image[..., 20:26] = float(scale_hu(np.float32(hu)))
    image[..., size - 5 :] = 1.0
    return image


@pytest.mark.parametrize('hu', [120, 150, 300])
def test_clots_go_into_arteries_of_any_contrast_and_into_no_bone(hu):
    found = open_arteries(lung(hu))
    assert found[:, 10:-10, 20:26].all() and not found[..., :20].any() and not found[..., 26:].any()
    assert not open_arteries(lung(60)).any()  # without contrast nobody knows
    step = toy_step()
    step.unlabelled = lung(hu)
    doubt = torch.full((4, 1, 48, 48), 0.2)
    image, labels = paste_into_lumen(step, doubt, two_sided_labels(doubt, 0.7, 0.05))
    changed = (image != step.unlabelled)[:, 0]
    assert changed.any() and not changed[..., :20].any() and not changed[..., 26:].any()
    assert torch.equal(changed | (labels[:, 0] == 1), labels[:, 0] == 1)
    assert (labels[labels != 1] == IGNORE).all()  # what the teacher doubts is not background
    middle = image[:, 0][labels[:, 0] == 1]
    assert middle.median() < float(scale_hu(np.float32(hu)))  # a clot is darker than the blood around it


def test_no_clot_is_pasted_onto_one_nor_without_a_donor():
    step = toy_step()
    step.unlabelled = lung(200)
    clot = torch.full((4, 1, 48, 48), 0.9)
    image, labels = paste_into_lumen(step, clot, two_sided_labels(clot, 0.7, 0.05))
    assert torch.equal(image, step.unlabelled) and (labels == 1).all()
    step.mask = torch.zeros_like(step.mask)
    image, labels = paste_into_lumen(step, 0 * clot, 0 * clot)
    assert torch.equal(image, step.unlabelled) and not labels.any()


# --- discriminators ---

RUNGS = {
    'map': dict(discriminator='map', discriminator_options={'width': 8}),
    'raw': dict(discriminator_options={'detach_features': False}),
    'hard': dict(soften_real=False),
    'soft': {},
    'hinge': dict(loss='hinge', threshold=0.5, discriminator_options={'spectral_norm': True}),
}


@pytest.mark.parametrize('rung', RUNGS)
def test_every_discriminator_of_the_ladder_learns(rung):
    step, method = prepared('feature_enhanced', **RUNGS[rung])
    method.network_terms(step)
    discriminator = step.networks['discriminator']
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    for number in range(40):
        optimizer.zero_grad()
        sum(method.discriminator_terms(step).values()).backward()
        if not number:
            weights = [parameter for parameter in discriminator.parameters() if parameter.ndim > 1]
            assert all(weight.grad.abs().sum() > 0 for weight in weights)
        optimizer.step()
    output = step.memory['labelled']
    real, fake = discriminator(method.real_map(output), output.features), verdict(discriminator, output)
    higher = (real.flatten()[:500, None] > fake.flatten()[:500]).float().mean()
    assert higher > 0.95  # AUROC of real against predicted


def test_raw_features_carry_the_adversarial_gradient_and_detached_ones_do_not():
    for detach in (True, False):
        step, method = prepared('feature_enhanced', discriminator_options={'detach_features': detach})
        logits, features = step.networks['network'](step.image, return_features=True)
        features.retain_grad()
        method.labelled_term(step, NetworkOutput(logits.detach(), features, step.mask[:, None])).backward()
        assert (features.grad is None) == detach


def test_a_blank_map_cannot_be_told_from_another():
    step, method = prepared('feature_enhanced', blank_map=True)
    method.network_terms(step)
    output, discriminator = step.memory['labelled'], step.networks['discriminator']
    real, fake = discriminator(method.real_map(output), output.features), verdict(discriminator, output)
    assert torch.equal(real, fake)  # AUROC 0.5 by construction


def test_a_frozen_discriminator_keeps_its_weights_and_still_moves_the_network(hospitals, tmp_path):
    options = dict(frozen=True, pseudo_weight=0)
    config = TrainConfig('feature_enhanced', options, steps=4, **SMALL)
    begun = build_networks(config, build_method(config.method, **options), None)['discriminator'].state_dict()
    run = train(config, *hospitals, tmp_path, progress=False)
    state = load_checkpoint(run)[0]['networks']
    assert all(torch.equal(value, begun[name]) for name, value in state['discriminator'].items())
    alone = load_checkpoint(train(TrainConfig(steps=4, **SMALL), *hospitals, tmp_path, progress=False))[0]['networks']
    assert not all(torch.equal(value, alone['network'][name]) for name, value in state['network'].items())


def test_shuffled_confidence_trusts_as_many_pixels_but_others():
    labels = []
    for shuffle in (False, True):
        step, method = toy_step(), FeatureEnhanced(shuffle_confidence=shuffle, threshold=0.5)
        answer = torch.linspace(-2, 1, 4 * 48 * 48).view(4, 1, 48, 48)
        labels.append(method.pseudo_labels(step, torch.full_like(answer, 3.0), answer))
    kept, shuffled = ((label != IGNORE).flatten(1) for label in labels)
    assert torch.equal(kept.sum(1), shuffled.sum(1)) and not torch.equal(kept, shuffled)


def test_the_hinge_is_that_of_biggan():
    real, fake = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    assert discriminator_hinge(real, True).item() == pytest.approx(np.maximum(0, 1 - real.numpy()).mean(), rel=1e-5)
    assert discriminator_hinge(fake, False).item() == pytest.approx(np.maximum(0, 1 + fake.numpy()).mean(), rel=1e-5)
    assert network_hinge(fake).item() == pytest.approx(-fake.numpy().mean(), rel=1e-4, abs=1e-6)


def test_a_trained_average_comes_before_the_methods_teacher(hospitals, tmp_path):
    "With `ema` the averaged network is used, whatever the method; without, what the method names."
    from pe_advseg.training.trained_networks import evaluated_name

    for ema, wanted in ((0.0, 'teacher'), (0.9, 'ema')):
        config = TrainConfig('mean_teacher', steps=2, ema=ema, **SMALL)
        assert evaluated_name(train(config, *hospitals, tmp_path, progress=False)) == wanted


def test_the_student_sees_another_view_than_the_teacher():
    step = toy_step()
    view = teachers.student_view(step, step.unlabelled)
    assert view.shape == step.unlabelled.shape and not torch.allclose(view, step.unlabelled, atol=0.02)


@pytest.mark.parametrize('name', METHODS)
def test_labelled_patches_are_learnt_with_their_own_odds(name):
    "The patches' log odds are added to the logits of labelled patches; what unlabelled patches say stays as it is."
    terms = []
    for log_odds in (0.0, 1.5):
        step, method = prepared(name)
        step.sampling_log_odds = log_odds
        torch.manual_seed(0)
        terms.append(method.network_terms(step))
    plain, adjusted = terms
    assert plain.keys() == adjusted.keys()
    assert plain['segmentation'] != adjusted['segmentation']
    for term in ('unlabelled', 'pseudo', 'entropy'):
        assert plain.get(term) == adjusted.get(term)


def test_adjusted_logits_speak_of_whole_scans():
    "A network that can only learn how frequent clot is learns how frequent it is in scans, not in patches."
    network = nn.Conv2d(1, 1, 1)
    nn.init.zeros_(network.weight)
    network.weight.requires_grad_(False)
    mask = torch.zeros(4, 20, 20, dtype=torch.uint8)
    mask[:, :4, :5] = 1  # a twentieth of every patch; a hundredth of the scans
    step = Step({'network': network}, torch.zeros(4, 1, 20, 20), mask, None, Draw(0, 0), 0.0)
    step.sampling_log_odds = float(np.log(0.05 / 0.95) - np.log(0.01 / 0.99))
    optimizer = torch.optim.Adam([network.bias], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        masked_bce(network(step.image) + step.sampling_log_odds, step.target, step.target < 2).backward()
        optimizer.step()
    assert network.bias.sigmoid().item() == pytest.approx(0.01, rel=0.02)
    expected = segmentation_loss(network(step.image) + step.sampling_log_odds, step.target)
    assert labelled_loss(step, network(step.image)).item() == pytest.approx(expected.item())


def test_a_run_adjusts_its_logits_unless_told_not_to(hospitals, tmp_path):
    plain, adjusted = (
        train(TrainConfig(adjust_logits=told, steps=3, **SMALL), *hospitals, tmp_path, **QUIET)
        for told in (False, True)
    )
    losses = [read_history(run)['segmentation'].iloc[0] for run in (plain, adjusted)]
    assert losses[0] != losses[1]
