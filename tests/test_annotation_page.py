"""The page on a scan and the page on a batch: the right way round, harmless, light, whole, and readable on a phone."""

import base64
import dataclasses
import io
import itertools
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image
from scipy.spatial.transform import Rotation

from pe_advseg.annotation.annotation import Annotation
from pe_advseg.annotation.batch_page import write_overview
from pe_advseg.annotation.orientation import upright
from pe_advseg.annotation.page import ROWS, SHOWN, write_page
from pe_advseg.annotation.projections import SLAB_MM, SLAB_WINDOW, place_labels, slab
from pe_advseg.annotation.scan_pictures import COLOURS, close_up, draw
from pe_advseg.annotation.wording import options_in_words
from pe_advseg.core.figure_style import PREDICTION_COLOUR
from pe_advseg.core.probability import to_bytes
from pe_advseg.core.volume import Source, Volume
from pe_advseg.evaluation.assessment import unlike_training
from pe_advseg.evaluation.emboli import number_emboli
from pe_advseg.evaluation.findings import embolus_table
from pe_advseg.evaluation.uncertainty import SCAN_PROPERTIES, scan_properties

FUMPE = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'FUMPE'
AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
STATEMENT = 'Synthetic training, research only, not for diagnosis'
TRUST = {
    'mean_probability': 0.8,
    'mean_entropy': 0.4,
    'mean_confidence': 0.6,
    'expected_dice': 0.7,
    'estimated_dice': 0.62,
    'estimated_dice_low': 0.4,
    'estimated_dice_high': 0.8,
    'calibration': 'on 24 held-out synthetic patients',
    'warnings': ['slices of 5.0 mm; the training scans had 1.0 to 2.5 mm'],
    'scan': {},
}
VOID = {'meta', 'img', 'br', 'input', 'link', 'hr'}
OPTIONAL_END = {'th', 'td', 'tr', 'li', 'p', 'dt', 'dd'}  # HTML lets these end by themselves


def body(shape=(24, 40, 48), spacing=(3.0, 2.0, 1.5), direction=AXIAL):
    """An asymmetric patient, stored upright: a box of water with bright corners.

    The brightest one, which is the mask, lies on the right, in front, at the head."""
    hu = np.full(shape, -1000, np.int16)
    hu[2:-2, 6:-6, 6:-6] = 0
    hu[16:20, 8:12, 8:12] = 400  # right, front, head
    hu[4:6, 26:30, 34:38] = 250  # left, back, feet
    mask = hu == 400
    return Volume(hu, spacing, (-36.0, -40.0, -800.0), direction), mask


def annotate(volume, mask, trust=TRUST, **summary):
    numbers = number_emboli(mask, volume.voxel_ml * 1000, 0)
    probability = to_bytes(mask * 0.8)
    table = embolus_table(numbers, volume, probability, probability)
    facts = {
        'what': 'annotation',
        'version': '0.1.0',
        'statement': STATEMENT,
        'emboli': len(table),
        'volume_ml': float(table.volume_ml.sum()),
        'scan': {
            'name': 'study-1a2b3c4d',
            'digest': 'ab' * 32,
            'shape': list(volume.shape),
            'spacing_mm': list(volume.spacing),
            'source': 'DICOM',
            'notes': list(volume.notes),
        },
        'runs': [
            {
                'name': 'a-run',
                'weights': '0123456789ab',
                'method': 'adversarial',
                'network': 'hrnet',
                'pixel_mm': 1.0,
                'synthetic': 'all',
            }
        ],
        'options': {
            'threshold': 0.5,
            'smallest_mm3': 2.0,
            'flips': False,
            'window': 0,
            'overlap': 0.5,
            'precision': '32',
            'weights': '',
        },
        'trust': trust,
        'seconds': {'reading': 1.2, 'network': 40.1},
        'made': '2026-11-27T01:02:03+00:00',
    }
    return Annotation(volume, numbers, probability, probability, table, facts | summary)


def store(volume, mask, order, signs):
    "The same patient, stored with other axes: `order` of the upright ones, each forwards or backwards."
    first = volume.to_patient([0 if sign > 0 else n - 1 for n, sign in zip(volume.shape, signs, strict=True)])

    def turn(array):
        return np.ascontiguousarray(array[tuple(slice(None, None, sign) for sign in signs)].transpose(order))

    turned = Volume(turn(volume.hu), [volume.spacing[i] for i in order], first, (volume.direction * signs)[:, order])
    return turned, turn(mask)


class Reader(HTMLParser):
    "What a browser would see: elements with attributes, text; complains of a tag that is never closed."

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f'never closed: {self.open}'

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in OPTIONAL_END and self.open and self.open[-1] == tag:
            self.open.pop()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag and self.open[-1] in OPTIONAL_END:
            self.open.pop()
        assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
        self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] not in (['style'], ['title']):
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return re.sub(r'\s+', ' ', ' '.join(self.texts))


def read(path):
    return Reader(Path(path).read_text(encoding='utf-8'))


def decode(uri):
    "The pixels of a picture in a data URI."
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition('base64,')[2]))))


def pictures(page, alt):
    "Decoded pictures whose description contains `alt`, each with its layer of outlines (None if it has none)."
    images, found = page.all('img'), []
    for at, image in enumerate(images):
        if alt not in image['alt']:
            continue
        marks = images[at + 1] if at + 1 < len(images) and images[at + 1].get('class') == 'marks' else None
        found.append((decode(image['src']), None if marks is None else decode(marks['src'])))
    return found


# --- the right way round ---

ORIENTATIONS = [(order, signs) for order in ((0, 1, 2), (0, 2, 1)) for signs in itertools.product((1, -1), repeat=3)]


@pytest.mark.parametrize('order, signs', ORIENTATIONS)
def test_upright_is_what_simpleitk_calls_lps(order, signs):
    for tilt in (0, 12):
        volume, mask = body(direction=Rotation.from_euler('zx', [tilt, tilt / 2], degrees=True).as_matrix() @ AXIAL)
        stored, stored_mask = store(volume, mask, list(order), signs)
        image = SimpleITK.GetImageFromArray(stored.hu)
        image.SetSpacing(stored.spacing[::-1])
        image.SetOrigin(stored.origin)
        image.SetDirection(stored.direction[:, ::-1].ravel())
        theirs = SimpleITK.DICOMOrient(image, 'LPS')
        stood, stood_mask = upright(stored, stored_mask)
        assert np.array_equal(stood.hu, SimpleITK.GetArrayFromImage(theirs)) and np.array_equal(stood_mask, mask)
        assert np.allclose(stood.origin, theirs.GetOrigin()) and np.allclose(
            stood.direction[:, ::-1].ravel(), theirs.GetDirection()
        )
        assert np.allclose(stood.spacing, theirs.GetSpacing()[::-1])


def in_first_half(marks, axis):
    return np.argwhere(marks[..., 3] > 0).mean(0)[axis] / marks.shape[axis] < 0.5


@pytest.mark.parametrize('order, signs', ORIENTATIONS)
def test_the_page_shows_the_patient_right_on_the_left_however_it_was_stored(order, signs, tmp_path):
    stored, mask = store(*body(), list(order), signs)
    annotation = annotate(stored, mask)
    page = read(write_page(tmp_path / 'p.html', annotation))
    for alt, on_left in (
        ('whole slice', True),
        ('coronal', True),
        ('sagittal', True),
    ):  # right, right and front of the patient
        ((_, marks),) = pictures(page, alt)
        assert in_first_half(marks, 1) == on_left
        assert in_first_half(marks, 0)  # front in the slice, head in the others
    ((grey, _),) = pictures(page, 'whole slice')
    assert grey.shape[:2] == (512, 461)  # 80 x 72 mm, square pixels
    assert (
        f'{int(annotation.emboli.main_slice[0]) + 1} of 24 from the {"feet" if signs[0] > 0 else "head"}' in page.text
    )
    assert annotation.numbers[int(annotation.emboli.main_slice[0])].any()


def test_side_of_the_findings_agrees_with_the_picture(tmp_path):
    "Two lungs, so that the side is known: what the table calls right is drawn on the left."
    volume, _ = body((20, 60, 90), (3.0, 4.0, 4.0))
    volume.hu[2:-2, 10:50, 12:38] = volume.hu[2:-2, 10:50, 52:78] = -850
    mask = np.zeros(volume.shape, bool)
    mask[8:12, 28:32, 20:24] = True
    for signs in ((1, 1, 1), (1, 1, -1), (-1, -1, 1)):
        annotation = annotate(*store(volume, mask, [0, 1, 2], signs))
        page = read(write_page(tmp_path / 'p.html', annotation))
        ((_, marks),) = pictures(page, 'whole slice')
        assert annotation.emboli.side[0] == 'right' and 'mL, right' in page.text
        assert (np.argwhere(marks[..., 3])[:, 1] < marks.shape[1] / 2).all()


def test_a_coronal_stack_is_refused_and_an_older_page_stays(tmp_path):
    volume, mask = body()
    page = write_page(tmp_path / 'p.html', annotate(volume, mask))
    before = page.read_bytes()
    coronal = dataclasses.replace(volume, direction=AXIAL[:, [1, 0, 2]])
    with pytest.raises(ValueError, match='not axial'):
        write_page(page, annotate(coronal, mask))
    assert page.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ['p.html']


# --- pictures ---


@pytest.mark.parametrize('axis', [1, 2])
def test_the_projection_is_simpleitks(axis, tmp_path):
    volume = dataclasses.replace(
        body()[0], hu=np.random.default_rng(0).integers(-1000, 1500, (24, 70, 80)).astype(np.int16)
    )
    for middle in (0, 20, 33.3, 69):
        near = [i for i in range(volume.shape[axis]) if abs(i - middle) * volume.spacing[axis] <= SLAB_MM / 2]
        size, start = list(volume.shape[::-1]), [0, 0, 0]
        size[2 - axis], start[2 - axis] = len(near), near[0]
        image = SimpleITK.RegionOfInterest(SimpleITK.GetImageFromArray(volume.hu), size, start)
        theirs = SimpleITK.GetArrayFromImage(SimpleITK.MaximumProjection(image, 2 - axis)).squeeze(axis)
        assert np.array_equal(slab(volume, axis, middle), theirs[::-1])


def test_the_picture_in_the_page_is_the_projection(tmp_path):
    "Decoded from the page, within what WebP loses; the mirrored one is far off, so the comparison can fail."
    volume, mask = body()
    annotation = annotate(volume, mask)
    ((grey, _),) = pictures(read(write_page(tmp_path / 'p.html', annotation)), 'coronal')
    middle = volume.to_index(annotation.emboli[['centre_x_mm', 'centre_y_mm', 'centre_z_mm']].to_numpy()[0])[1]
    low, high = SLAB_WINDOW
    expected = ((slab(volume, 1, middle).clip(low, high).astype(float) - low) / (high - low) * 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(expected).resize(grey.shape[1::-1], Image.Resampling.BICUBIC), float)
    shown = grey[..., 0].astype(float)
    assert np.abs(shown - expected).mean() < 2 < np.abs(shown - expected[:, ::-1]).mean()


def test_an_outline_goes_round_the_clot_and_not_over_it():
    numbers = np.zeros((50, 50), np.uint16)
    numbers[10:20, 12:30] = 3
    for side in (60, 500, 40):  # larger, much larger, smaller
        drawn = draw(np.zeros((50, 50), np.int16), numbers, (1.0, 1.0), [3], '', side)
        marks = decode(drawn['marks'])
        drawn = np.argwhere(marks[..., 3] > 0) / side * 50
        assert max(abs(drawn.min(0) - [10, 12]).max(), abs(drawn.max(0) - [20, 30]).max()) <= max(4 * 50 / side, 1)
        assert not marks[int(15 * side / 50), int(20 * side / 50), 3]
        assert '#' + marks[marks[..., 3] > 0][0, :3].tobytes().hex().upper() == COLOURS[2]


def test_the_smallest_clot_keeps_its_ring_where_pixels_are_lost():
    numbers = np.zeros((900, 900), np.uint16)
    numbers[400, 500] = 1
    marks = decode(draw(np.zeros((900, 900), np.int16), numbers, (1.0, 1.0), [1], '', 512)['marks'])
    assert np.allclose(np.argwhere(marks[..., 3] > 0).mean(0) * 900 / 512, [400.5, 500.5], atol=1.5)


def test_a_close_up_stays_inside_and_shows_the_whole_embolus():
    hu, numbers = np.zeros((100, 100), np.int16), np.zeros((100, 100), np.uint16)
    for row, column, extent in ((0, 0, 0), (99, 99, 0), (50, 50, 90), (50, 50, 900)):
        whole, near = close_up(hu, numbers, (1.0, 1.0), (row, column), [], '', extent)
        top, height, left, width = whole['frame']
        assert top >= 0 and left >= 0 and top + height <= 100 and left + width <= 100
        assert top <= row <= top + height and left <= column <= left + width and height >= min(extent, 100)


def test_labels_keep_their_distance():
    g = np.random.default_rng(0)
    for count in (0, 1, 5, 12):
        points = [tuple(p) for p in g.uniform([0, 0], [100, 85], (count, 2))]
        places = place_labels(points, 90)
        for right in (False, True):
            ys = sorted(y for (x, y), point in zip(places, points, strict=True) if (point[0] > 50) == right)
            assert all(0 < y < 90 for y in ys) and (np.diff(ys) > 6.4).all()
        assert all((x > 50) == (point[0] > 50) for (x, _), point in zip(places, points, strict=True))


def test_colours_are_those_of_the_figures():
    assert COLOURS[0] == PREDICTION_COLOUR and len(set(COLOURS)) == len(COLOURS)


# --- what it says ---


def test_a_finding_in_words_and_numbers(tmp_path):
    volume, mask = body()
    mask[4:6, 26:30, 34:38] = True
    annotation = annotate(volume, mask)
    page = read(write_page(tmp_path / 'p.html', annotation))
    assert page.text.count(STATEMENT) == 2 and page.text.index(STATEMENT) < page.text.index('2 emboli')
    assert (
        page.text.index('training scans had') < page.text.index('0.62') < page.text.index('largest first')
    )  # warnings, how sure, findings
    assert 'on 24 held-out synthetic patients' in page.text and '0.40 to 0.80' in page.text
    row = annotation.emboli.iloc[0]
    assert f'{row.longest_mm:.0f} mm' in page.text and f'{row.volume_ml:.3f}' in page.text
    assert (
        ', '.join(f'{value:.0f}' for value in row[['centre_x_mm', 'centre_y_mm', 'centre_z_mm']]).replace('-', '−')
        in page.text
    )
    for fact in (
        'a-run',
        '0123456789ab',
        'adversarial',
        'hrnet',
        '24 slices of 40 × 48',
        '3.00 × 2.00 × 1.50 mm',
        'threshold 0.5',
        'pieces from 2.0 mm³',
        'network 40.1',
        '2026-11-27 01:02 UTC',
        'pe_advseg 0.1.0',
    ):
        assert fact in page.text
    assert len(pictures(page, 'Embolus')) == 4 and 'overlap' not in page.text.split('Options')[1]


def test_no_finding_is_a_calm_result(tmp_path):
    volume, mask = body()
    annotation = annotate(volume, mask & False, dict.fromkeys(TRUST))
    page = read(write_page(tmp_path / 'p.html', annotation))
    assert (
        'No pulmonary embolism found' in page.text
        and 'does not mean that there is none' in page.text
        and 'The probability is 0 everywhere' in page.text
    )
    assert len(pictures(page, 'Slice')) == 6 and len(pictures(page, 'projection')) == 2 and '–' not in page.text
    probability = np.zeros(volume.shape, np.uint8)
    probability[17, 9, 10] = 110
    probability[4, 9, 30] = 90
    page = read(write_page(tmp_path / 'p.html', dataclasses.replace(annotation, probability=probability)))
    assert 'Highest probability: 0.44' in page.text and 'Slice 18 of 24' in page.text and 'left out' not in page.text
    page = read(write_page(tmp_path / 'p.html', dataclasses.replace(annotation, probability=probability * 2)))
    assert 'Above the threshold, but in a piece smaller than 2.0 mm³' in page.text


def test_what_is_not_known_is_not_made_up(tmp_path):
    volume, mask = body()
    annotation = annotate(volume, mask, None, runs=[], options={}, seconds=None, scan={}, statement='', made=None)
    annotation = dataclasses.replace(
        annotation, confidence=None, emboli=annotation.emboli.assign(mean_confidence=np.nan)
    )
    page = read(write_page(tmp_path / 'p.html', annotation))
    assert (
        'Not estimated' in page.text and 'no discriminator' in page.text and not re.search(r'\bnan\b|None', page.text)
    )
    assert page.text.count('Research only, not for diagnosis') == 2


def test_why_there_is_no_estimate(tmp_path):
    trust = (
        TRUST
        | dict.fromkeys(('estimated_dice', 'estimated_dice_low', 'estimated_dice_high'))
        | {'calibration': 'none: several runs were averaged'}
    )
    page = read(write_page(tmp_path / 'p.html', annotate(*body(), trust)))
    assert (
        'Not estimated: several runs were averaged. Its own probabilities promise 0.70' in page.text
        and 'Calibrated' not in page.text
    )


@pytest.mark.parametrize('low, high, is_unknown', [(0.0, 1.0, True), (0.0, 0.8, False), (0.2, 1.0, False)])
def test_an_interval_from_0_to_1_is_no_figure(tmp_path, low, high, is_unknown):
    trust = TRUST | {'estimated_dice_low': low, 'estimated_dice_high': high, 'bound': True}
    annotation = annotate(*body(), trust)
    text = write_page(tmp_path / 'p.html', annotation).read_text(encoding='utf-8')
    assert ('<b>0.62</b>' in text) != is_unknown and ('>unknown</b>' in text) == is_unknown
    assert ('Estimated Dice, at most' in text) != is_unknown
    over = write_overview(tmp_path / 'o.html', [annotation.summary | {'link': 'p.html'}])
    assert ('Dice unknown (0 to 1)' in over.read_text(encoding='utf-8')) == is_unknown


def test_page_and_warning_say_one_slice_distance(tmp_path):
    "1.79524 mm: rounded to three decimals first, as the measured properties are, it is 1.79 and not 1.80."
    volume, mask = body(spacing=(1.795243673, 2.0, 1.5))
    properties = scan_properties(volume)
    ranges = dict.fromkeys(SCAN_PROPERTIES) | {'slice_mm': [1.0, 1.2, 1.5]}
    warnings = unlike_training({'training': {'ranges': ranges}}, properties)
    page = read(write_page(tmp_path / 'p.html', annotate(volume, mask, TRUST | {'warnings': warnings})))
    assert '24 slices of 1.79 mm' in page.text and 'slices of 1.79 mm; the training scans had' in page.text


def test_options_in_words():
    assert options_in_words(
        {'threshold': 0.4, 'flips': True, 'window': 256, 'overlap': 0.5, 'weights': 'ema', 'new_one': 3}
    ) == [
        'threshold 0.4',
        'mirrored copies averaged',
        'windows of 256 pixels',
        'overlapping by 0.5',
        'ema weights',
        'new one 3',
    ]


# --- harmless, light, whole ---


def hostile(value, words):
    "The same structure with every text replaced."
    if isinstance(value, dict):
        return {key: hostile(part, words) for key, part in value.items()}
    if isinstance(value, list):
        return [hostile(part, words) for part in value]
    return words if isinstance(value, str) else value


@pytest.mark.parametrize(
    'words',
    [
        '<script>alert(1)</script>',
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        '</style><svg onload=alert(1)>',
        '{{ 7 * 7 }}{% raw %}',
        'javascript:alert(1)',
        '--></title></div><h1>No finding</h1>',
        'a\0b\x1b[2J\u202egnp\ud800\ufeff',
    ],
)
def test_text_stays_text(words, tmp_path):
    volume, mask = body()
    annotation = annotate(volume, mask)
    plain = read(write_page(tmp_path / 'plain.html', annotation))
    summary = hostile(annotation.summary, words) | {'link': words}
    annotation = dataclasses.replace(annotation, summary=summary, emboli=annotation.emboli.assign(side=words))
    page = read(write_page(tmp_path / 'p.html', annotation))
    assert sorted(tag for tag, _ in page.elements) == sorted(tag for tag, _ in plain.elements)
    over = read(write_overview(tmp_path / 'o.html', [summary], [(1, words, words, words)]))
    for element, attributes in page.elements + over.elements:
        assert element != 'script' and not any(name.startswith('on') for name in attributes)
        assert ':' not in attributes.get('href', '') and attributes.get('src', 'data:image/webp;base64,').startswith(
            'data:image/webp;base64,'
        )
    assert not re.search('[\0\x1b\u202e\ud800\ufeff]', page.text + over.text) and '49' not in page.text.split('Run')[-1]
    if words.isprintable():
        assert re.sub(r'\s+', ' ', words) in page.text


def test_nothing_is_loaded_and_every_picture_is_described(tmp_path):
    volume, mask = body()
    page = write_page(tmp_path / 'p.html', annotate(volume, mask))
    text, seen = page.read_text(encoding='utf-8'), read(page)
    assert "default-src 'none'" in text and not re.search(r'https?:|url\(|@import|<script|<link|<iframe', text)
    for image in seen.all('img'):
        assert image['src'].startswith('data:image/webp;base64,') and (image['alt'] or image.get('class') == 'marks')
    names = [attributes['id'] for _, attributes in seen.elements if 'id' in attributes]
    assert len(names) == len(set(names)) and seen.all('html') == [{'lang': 'en'}] and len(seen.all('h1')) == 1


def test_no_name_of_a_patient(tmp_path):
    volume, mask = body()
    volume = dataclasses.replace(volume, sources=[Source(f'DOE^JANE/{i}.dcm', f'1.2.3.{i}', i) for i in range(24)])
    text = write_page(tmp_path / 'p.html', annotate(volume, mask)).read_text(encoding='utf-8')
    assert 'DOE' not in text and '1.2.3.' not in text and str(tmp_path) not in text


def test_a_page_of_noise_stays_light(tmp_path):
    g = np.random.default_rng(0)
    volume = Volume(g.integers(-1000, 1000, (40, 256, 256)).astype(np.int16), (1.0, 0.7, 0.7), (0.0, 0, 0), AXIAL)
    annotation = annotate(volume, g.random(volume.shape) < 0.004)
    assert len(annotation.emboli) > 2 * ROWS
    page = write_page(tmp_path / 'p.html', annotation)
    assert page.stat().st_size < 3_000_000  # noise is the worst that a picture can hold
    page = read(page)
    assert (
        len(pictures(page, 'whole slice')) == SHOWN
        and f'The {SHOWN} largest of {len(annotation.emboli)} are shown' in page.text
    )
    assert len(page.all('tr')) == ROWS + 1 and f'all {len(annotation.emboli)} are in emboli.csv' in page.text


@pytest.mark.parametrize('shape', [(4, 16, 16), (2, 64, 32), (300, 8, 8)])
def test_odd_shapes(shape, tmp_path):
    volume = Volume(np.zeros(shape, np.int16), (5.0, 1.0, 1.0), (0.0, 0, 0), AXIAL)
    mask = np.zeros(shape, bool)
    mask[-1, 0, -1] = True  # in a corner
    for found in (mask, mask & False):
        read(write_page(tmp_path / 'p.html', annotate(volume, found)))


def test_numbers_of_a_reviewed_annotation_are_kept(tmp_path):
    "After a review numbers have gaps and no longer follow the size."
    volume, mask = body()
    mask[4:6, 26:30, 34:38] = True
    annotation = annotate(volume, mask)
    numbers = np.choose(annotation.numbers, [0, 9, 4]).astype(np.uint16)
    table = embolus_table(numbers, volume, annotation.probability)
    page = read(write_page(tmp_path / 'p.html', dataclasses.replace(annotation, numbers=numbers, emboli=table)))
    assert page.text.index('9 0.') < page.text.index('4 0.') and 'Embolus 9, slice 17 of 24, close up' in [
        image['alt'] for image in page.all('img')
    ]


def test_a_table_of_another_mask_is_refused(tmp_path):
    volume, mask = body()
    annotation = annotate(volume, mask)
    with pytest.raises(ValueError, match='not in its main slice'):
        write_page(tmp_path / 'p.html', dataclasses.replace(annotation, numbers=annotation.numbers * 0))
    assert not list(tmp_path.iterdir())


# --- a batch ---


def batch(count=4):
    volume, mask = body()
    summary = annotate(volume, mask).summary
    return [
        summary
        | {
            'scan': summary['scan'] | {'name': f'study-0000000{i}'},
            'emboli': i,
            'volume_ml': 1.5 * i,
            'link': f'study-0000000{i}/report.html',
            'trust': TRUST | {'warnings': TRUST['warnings'] * i},
        }
        for i in range(count)
    ]


def test_a_batch_by_volume_with_its_failures(tmp_path):
    summaries = batch()
    for summary in summaries:
        write_page(tmp_path / summary['link'], annotate(*body()))
    page = read(
        write_overview(
            tmp_path / 'index.html',
            summaries,
            [(5, 'D0005.dcm', 'gap 3.00 mm', 'Export the series again'), (6, '', 'cannot be read', '')],
        )
    )
    links = [attributes['href'] for attributes in page.all('a')]
    assert links == [f'study-0000000{i}/report.html' for i in (3, 2, 1, 0)] and all(
        (tmp_path / link).exists() for link in links
    )
    assert (
        '4 studies annotated, 2 not' in page.text
        and '3 with emboli, 1 without' in page.text
        and page.text.count(STATEMENT) == 2
    )
    assert (
        page.text.index('Export the series again') < page.text.index('study-00000003')
        and '3 warnings' in page.text
        and '5 · D0005.dcm' in page.text
    )
    assert 'none found' in page.text and '4.5 mL' in page.text


def test_a_batch_of_nothing_is_a_page(tmp_path):
    page = read(write_overview(tmp_path / 'index.html', [], []))
    assert '0 studies annotated' in page.text and page.text.count('Research only, not for diagnosis') == 2
    page = read(write_overview(tmp_path / 'index.html', [], [(1, 'a', 'b', 'c')] * 20))
    assert page.all('details') == [{}]  # closed: many failures must not hide the rest


# --- in a browser ---


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not chromium:
        pytest.skip('no Chromium here')
    with api.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield opened
        opened.close()


@pytest.mark.parametrize('width', [390, 1280])
def test_in_a_browser(browser, width, tmp_path):
    "It does not scroll sideways, request or complain; pictures are decoded, outlines switched off; it prints."
    volume, mask = body()
    mask[4:6, 26:30, 34:38] = True
    annotation = annotate(volume, mask)
    long = hostile(annotation.summary, 'x' * 300)
    pages = [
        write_page(tmp_path / 'p.html', annotation),
        write_page(tmp_path / 'none.html', annotate(volume, mask & False)),
        write_overview(tmp_path / 'index.html', batch(), [(9, 'f', 'c', 'r')]),
        write_page(tmp_path / 'long.html', dataclasses.replace(annotation, summary=long)),
        write_overview(tmp_path / 'longer.html', [long | {'link': 'x' * 300}], [(9, 'x' * 300, 'x' * 300, '')]),
    ]
    for path in pages:
        tab, asked, said = browser.new_page(viewport={'width': width, 'height': 900}), [], []
        tab.on('request', lambda request, asked=asked: asked.append(request.url))
        tab.on('console', lambda message, said=said: said.append(message.text))
        tab.on('pageerror', lambda error, said=said: said.append(str(error)))
        tab.goto(path.as_uri())
        assert tab.evaluate('document.documentElement.scrollWidth') <= width, path.name
        assert all(url.startswith(('data:', path.as_uri())) for url in asked) and not said, (path.name, asked, said)
        assert tab.evaluate('[...document.images].every(image => image.complete && image.naturalWidth > 0)')
        if path.name == 'p.html':
            shown = (
                "[...document.querySelectorAll('.marks')]"
                ".filter(mark => getComputedStyle(mark).display != 'none').length"
            )
            assert tab.evaluate(shown) > 4
            tab.uncheck('#marks')
            assert tab.evaluate(shown) == 0
            tab.check('#marks')
            assert tab.pdf()[:5] == b'%PDF-'
            view = tab.evaluate(
                "[...document.querySelectorAll('.overview .view:first-child > img')].slice(0, 2)"
                '.map(image => image.getBoundingClientRect()).map(r => [r.x, r.y, r.width, r.height])'
            )
            assert (
                np.allclose(*view, atol=0.6) and abs(view[0][2] / view[0][3] - 72 / 72) < 0.02
            )  # layers coincide; 48 x 1.5 mm wide, 24 x 3 mm high
        tab.close()


# --- a real patient ---


def test_a_real_patient_with_the_experts_mask(tmp_path):
    if not FUMPE.exists():
        pytest.skip('the FUMPE patient is not here')
    from pe_advseg.data.layouts import find_studies
    from pe_advseg.data.read_study import read_study

    volume, mask = read_study(find_studies(FUMPE)[0])
    page = write_page(tmp_path / 'p.html', annotate(volume, mask > 0))
    assert page.stat().st_size < 1_500_000
    seen = read(page)
    assert (
        f'{(mask > 0).sum() * volume.voxel_ml:.1f} mL' in seen.text
        and 'FUMPE' not in seen.text
        and 'PAT' not in seen.text
    )
