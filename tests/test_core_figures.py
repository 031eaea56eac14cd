"""Figures that can be told apart, that leave nothing open, and that say what they show."""

import itertools
import json
import warnings

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pe_advseg.core import figure_style
from pe_advseg.core.figure_style import save_figure
from pe_advseg.core.forest_plot import DIFFERENCE, Measure, forest_plot
from pe_advseg.core.learning_curves import learning_curves
from pe_advseg.core.slice_grids import lesion_box, show_comparison, show_slices

HU = np.linspace(-1000, 400, 40 * 50).reshape(40, 50)
MASK = np.zeros((40, 50), bool)
MASK[10:14, 20:26] = True


@pytest.fixture(autouse=True)
def no_open_figures():
    plt.close('all')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # matplotlib's way of saying that something could not be drawn
        yield
    assert plt.get_fignums() == [], 'figures stay open: a long run would fill the memory'


def draw(figure):
    figure.draw_without_rendering()  # a closed figure has a canvas that draws nothing
    return figure


def test_colours_can_be_told_apart():
    "Every two methods differ in red-green blindness too (deuteranopia, matrix of Machado et al. 2009, roughly)."
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )
    seen = {
        name: deuteranopia @ matplotlib.colors.to_rgb(colour) for name, colour in figure_style.METHOD_COLOURS.items()
    }
    names = list(seen)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert np.linalg.norm(seen[a] - seen[b]) > 0.12, (a, b)
    assert (
        np.linalg.norm(
            deuteranopia
            @ np.subtract(*map(matplotlib.colors.to_rgb, (figure_style.TRUTH_COLOUR, figure_style.PREDICTION_COLOUR)))
        )
        > 0.3
    )


@pytest.mark.parametrize('empty', [np.zeros((40, 50), bool), np.ones((40, 50), bool), None])
def test_slices_without_an_edge_to_draw(empty):
    draw(show_slices([HU, HU], [empty, MASK], [None, np.full((40, 50), np.nan)]))


def test_slices_wrap_into_rows():
    figure = draw(show_slices([HU] * 7))
    assert len(figure.axes) == 10 and sum(bool(axis.images) for axis in figure.axes) == 7


def test_comparison_of_one_slice_and_without_zoom():
    assert len(draw(show_comparison({'supervised': [MASK]}, [HU])).axes) == 1
    assert (
        len(
            draw(
                show_comparison({'supervised': [MASK], 'oracle': [None]}, [HU], [MASK], titles=['synthetic'], zoom=None)
            ).axes
        )
        == 2
    )
    titled = draw(
        show_comparison(
            {'supervised': [MASK], 'oracle': [MASK]}, [HU], [MASK], titles=['synthetic'], notes={'oracle': ['0.7']}
        )
    )
    assert [axis.get_title() for axis in titled.axes if axis.get_title()] == ['synthetic']
    assert [text.get_text() for axis in titled.axes for text in axis.texts] == ['0.7']


@pytest.mark.parametrize('at', [(0, 0), (39, 49), (20, 25), None])
@pytest.mark.parametrize('size', [8, 40, 100])
def test_the_box_stays_inside(at, size):
    mask = np.zeros((40, 50), bool)
    if at:
        mask[at] = True
    top, left, height, width = lesion_box(mask, size)
    assert 0 <= top <= top + height <= 40 and 0 <= left <= left + width <= 50 and height == width == min(size, 40)
    if at:
        assert mask[top : top + height, left : left + width].any()


def test_curves_of_a_run_that_has_hardly_begun():
    short = pd.DataFrame({'step': [0], 'loss': [1.0], 'auroc': [np.nan]})
    draw(learning_curves({'supervised': short, 'someone_new': short.drop(columns='auroc')}, ['loss', 'auroc']))


def test_saved_picture_carries_its_provenance(tmp_path):
    provenance = {
        'data': 'Synthetic phantom',
        'seed': 3,
        'scale': 'smoke',
        'commit': 'abc',
        'when': pd.Timestamp('2026-01-01'),
    }
    figure = show_slices([HU])
    path = save_figure(figure, 'picture', provenance, tmp_path)
    assert json.loads(Image.open(path).text['Comment'])['seed'] == 3 and figure.texts == []
    assert [entry.name for entry in tmp_path.iterdir()] == ['picture.png']
    assert figure_style._caption(provenance).startswith('Synthetic patients, not real ones')
    assert 'not real' not in figure_style._caption({'data': 'FUMPE, one real patient'})


def test_a_picture_of_unknown_data_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="key 'data'"):
        save_figure(show_slices([HU]), 'a', {'seed': 1}, tmp_path)
    assert not list(tmp_path.iterdir())


# --- the forest plot ---


def forest_table(**rows) -> pd.DataFrame:
    "Method -> (difference, low, high)."
    return pd.DataFrame(
        [(name, *values) for name, values in rows.items()], columns=['method', 'difference', 'low', 'high']
    )


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_forest_plot_says_what_is_not_defined():
    nan = float('nan')
    figure = draw(forest_plot(forest_table(oracle=(nan, nan, nan), x=(0.1, nan, nan)), DIFFERENCE))
    assert texts(figure.axes[0]) == ['not defined', '+0.100 no interval']


def test_forest_panels_share_scale_and_rows():
    tables = {'one': forest_table(a=(0.1, 0.0, 0.2)), 'two': forest_table(b=(-3, -5, -1), a=(0, -1, 1))}
    figure = draw(forest_plot(tables, [DIFFERENCE, DIFFERENCE], reference='supervised'))
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    low, high = figure.axes[0].get_xlim()
    assert low < -5 and high > 1
    assert texts(figure.axes[0]) == ['–', '+0.10 [0.00, 0.20]']
    assert [bool(''.join(label.get_text() for label in axis.get_yticklabels())) for axis in figure.axes] == [
        True,
        False,
        False,
        False,
    ]


def test_forest_reference_has_no_difference_but_a_row():
    table = forest_table(supervised=(0, 0, 0), x=(0.1, 0.0, 0.2))
    figure = draw(forest_plot(table, [Measure(), DIFFERENCE], reference='supervised'))
    assert texts(figure.axes[0])[0] == '0.000 [0.000, 0.000]' and texts(figure.axes[1])[0] == 'reference'


def test_forest_axis_is_reversed_where_less_is_better():
    error = Measure(label='error, mm', less_is_better=True)
    axis = draw(forest_plot(forest_table(x=(0.1, 0.0, 0.2)), error)).axes[0]
    assert axis.xaxis_inverted() and 'less is better' in axis.get_xlabel()


def test_forest_plot_is_not_clipped():
    figure = draw(
        forest_plot(forest_table(supervised_many_hospitals=(0.1, -1, 1)), [DIFFERENCE, DIFFERENCE], title='n')
    )
    box = figure.get_tightbbox()
    assert box.x0 >= -0.01 and box.x1 <= figure.get_figwidth() + 0.01 and box.y0 >= -0.01


def test_forest_texts_do_not_overlap():
    "Two hospitals, two measures, long names: row names, numbers, ticks, labels and headings keep apart."
    rows = dict.fromkeys(('supervised_augmented', 'supervised_many_hospitals', 'oracle'), (-0.123, -0.156, 0.101))
    table = forest_table(**rows).assign(patients=[8, 9, 10], seeds=2)
    change = Measure(label='difference from supervised, paired by patient', is_difference=True, less_is_better=True)
    dice = Measure(label='Dice per patient with embolism, 95 % interval')
    figure = draw(forest_plot({'source: harbour': table, 'target: valley': table}, [dice, change], title='subject'))
    drawn = []
    for axis in figure.axes:
        low, high = sorted(axis.get_xlim())
        ticks = axis.get_yticklabels() + [
            tick for tick in axis.get_xticklabels() if low <= tick.get_position()[0] <= high
        ]
        drawn += [*axis.texts, *ticks, axis.xaxis.label, axis.title, axis._left_title]
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn if text.get_text()]
    assert len(boxes) > 30
    clashes = [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]
    assert clashes == []


def test_forest_numbers_have_no_negative_zero():
    assert texts(draw(forest_plot(forest_table(x=(-1e-5, -1e-5, 0.1)))).axes[0]) == ['+0.000 [0.000, 0.100]']


@pytest.mark.parametrize(
    'counts, text',
    [
        (dict(patients=[8, 8], seeds=[2, 2]), 'subject (8 patients, 2 seeds)'),
        (dict(patients=[1, 1]), 'subject (1 patient)'),
        (dict(slices=[5, 9]), 'subject (5 to 9 slices)'),
        ({}, 'subject'),
    ],
)
def test_forest_title_has_the_counts(counts, text):
    table = forest_table(a=(0.1, 0, 1), b=(0, 0, 0)).assign(**counts)
    assert draw(forest_plot(table, DIFFERENCE, title='subject')).get_suptitle() == text
