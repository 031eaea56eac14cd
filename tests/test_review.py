"""The review widget without a browser: whose work it is, what it began from, and that none is lost.

The browser itself is in test_review_browser.
"""

from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from support.review_scans import on_disk

from pe_advseg.annotation.annotation import Annotation, write_arrays
from pe_advseg.core.errors import InputError
from pe_advseg.core.paths import whole_folder
from pe_advseg.core.probability import to_bytes
from pe_advseg.evaluation.findings import embolus_table
from pe_advseg.review.history import history
from pe_advseg.review.review import review
from pe_advseg.review.save_correction import save_correction
from pe_advseg.scans.nifti import write_nifti
from pe_advseg.scans.series import pixel_digest, study_name


@pytest.fixture
def opened(tmp_path):
    "The scan, what a run found in it (three emboli), and how to open it."
    scan = tmp_path / 'scan'
    volume, numbers = on_disk(scan, 1)
    probability = to_bytes((numbers > 0) * 0.9)
    summary = dict(
        statement='a test', scan=dict(digest=pixel_digest(volume)), runs=[dict(name='run7', weights='0123456789ab')]
    )
    annotation = Annotation(volume, numbers, probability, None, embolus_table(numbers, volume, probability), summary)
    with whole_folder(tmp_path / 'out' / study_name(volume)) as folder:
        write_arrays(folder, annotation)
    found = tmp_path / 'out' / study_name(volume)

    def look(began=found, reviewer='Ada', **options):
        return review(scan, began, tmp_path / 'store', reviewer, interactive=False, **options)

    return SimpleNamespace(
        place=tmp_path,
        scan=scan,
        volume=volume,
        numbers=numbers,
        annotation=annotation,
        look=look,
        unfinished=lambda: sorted((tmp_path / 'store-unfinished').glob('*.npz')),
    )


def last(opened):
    return history(opened.place / 'store', study_name(opened.volume))[-1]


def test_one_persons_work_is_not_anothers(opened):
    mine = opened.look()
    mine.jump(2)
    mine.press('reject')
    other = opened.look(reviewer='Bee')
    assert other.edits.decision_of == {} and other.reviewer.value == 'Bee'
    other.jump(3)
    other.press('reject')
    other.press('save')
    assert last(opened)['reviewer'] == 'Bee' and last(opened)['after']['emboli'] == 2
    again = opened.look()
    assert again.edits.decision_of == {2: 'rejected'} and 'Unfinished work of Ada' in again.says.value


def test_the_name_that_was_given_stays(opened):
    "Also where the unfinished work was done under a name typed later."
    first = opened.look(reviewer='')
    first.reviewer.value = 'Ada'
    first.jump(2)
    first.press('reject')
    second = opened.look(reviewer='')
    assert (
        second.reviewer.value == 'Ada' and 'of Ada' in second.says.value
    )  # nobody was named: it says whose work it is


def test_what_is_saved_is_no_longer_unfinished(opened):
    widget = opened.look()
    widget.jump(2)
    widget.press('reject')
    assert len(opened.unfinished()) == 1
    widget.press('save')
    assert opened.unfinished() == []
    widget.tool.value = 'Look'
    widget.click(1, 9, 10)
    widget.note.value = widget.note.value  # looking on is no work
    assert opened.unfinished() == []
    widget.press('save')
    assert 'Nothing has changed' in widget.says.value and last(opened)['version'] == 1
    fresh = opened.look()
    assert fresh.edits.decision_of == {} and 'has been corrected before' in fresh.says.value
    widget.jump(3)
    widget.press('reject')
    assert len(opened.unfinished()) == 1
    widget.press('save')
    assert last(opened)['version'] == 2 and opened.unfinished() == []


def test_of_two_widgets_the_newer_keeps_the_work(opened):
    first = opened.look()
    first.jump(1)
    first.press('reject')
    second = opened.look()
    assert second.edits.decision_of == {1: 'rejected'}
    second.jump(2)
    second.press('reject')
    first.jump(3)
    first.press('reject')
    first.press('save')  # still saves what it shows, and takes nothing away from the newer one
    assert opened.look().edits.decision_of == {1: 'rejected', 2: 'rejected'}


def test_next_goes_on_from_what_was_rejected(opened):
    widget = opened.look()
    widget.jump(1)
    widget.press('reject')
    widget.press('next')
    assert widget.current == 2
    widget.press('delete')
    widget.press('next')
    assert widget.current == 3
    widget.press('next')
    assert widget.current == 3  # the only one
    widget = opened.look(reviewer='Bee')
    widget.jump(2)
    widget.press('reject')
    widget.press('previous')
    assert widget.current == 1


def test_a_stroke_ends_where_the_button_is_let_go(opened):
    "As the browser tells it: outside of the picture nothing, then movements without a button."
    widget = opened.look()
    widget.tool.value, widget.limits.value = 'Paint', (-1000, 1000)
    widget.view = SimpleNamespace(
        **{name: getattr(widget.view, name) for name in dir(widget.view) if not name.startswith('__')}
        | dict(voxel=lambda event: event.place)
    )

    def event(y, x, buttons):
        return SimpleNamespace(place=(y, x), button=1, buttons=frozenset(buttons))

    widget.on_button_press(event(20, 5, [1]))
    widget.on_motion_notify(event(20, 8, [1]))
    painted = widget.edits.numbers.copy()
    assert (painted != opened.numbers).any()
    widget.on_motion_notify(event(20, 20, []))
    widget.on_motion_notify(event(25, 30, []))
    assert np.array_equal(widget.edits.numbers, painted) and len(opened.unfinished()) == 1


@pytest.mark.parametrize('began', ['folder', 'object', 'array', 'file', 'nothing'])
def test_it_is_recorded_what_was_opened(opened, began):
    write_nifti(opened.place / 'm.nii.gz', opened.numbers, opened.volume)
    label = dict(
        folder=opened.place / 'out' / study_name(opened.volume),
        object=opened.annotation,
        array=opened.numbers,
        file=opened.place / 'm.nii.gz',
        nothing=None,
    )[began]
    widget = opened.look(label)
    if began == 'nothing':
        widget.tool.value, widget.limits.value, widget.radius.value = 'Add', (49, 54), 5
        widget.click(1, 9, 10)
    widget.press('save')
    said, seg = last(opened)['started_from'], pydicom.dcmread(widget.saved / 'segmentation.dcm')
    kind = {segment.SegmentAlgorithmType for segment in seg.SegmentSequence}
    text = ' '.join(item.get('ContributionDescription', '') for item in seg.ContributingEquipmentSequence)
    if began in ('folder', 'object'):
        assert (
            said['what'] == 'annotation'
            and said['runs'][0]['name'] == 'run7'
            and kind == {'SEMIAUTOMATIC'}
            and 'run7' in text
        )
    elif began == 'nothing':
        assert said == dict(what='nothing') and kind == {'MANUAL'}
    else:
        assert (
            said['what'] == 'mask'
            and said['digest'] in text
            and kind == {'SEMIAUTOMATIC'}
            and all(segment.SegmentAlgorithmName.startswith('unknown') for segment in seg.SegmentSequence)
        )
    if began != 'nothing':
        assert last(opened)['difference']['kept'] == 3 and last(opened)['difference']['added'] == 0


def test_an_older_version_opened_is_what_the_new_one_began_from(opened):
    def save(numbers):
        return save_correction(
            opened.place / 'store',
            opened.scan,
            opened.volume,
            numbers,
            'Ada',
            annotation=opened.place / 'out' / study_name(opened.volume),
        )

    first = save(np.where(opened.numbers == 2, 0, opened.numbers))
    save(np.where(opened.numbers > 1, 0, opened.numbers))
    widget = opened.look(first, 'Cee')
    widget.press('save')
    record = last(opened)
    assert (
        record['version'],
        record['started_from']['version'],
        record['difference']['added'],
        record['started_from']['runs'][0]['name'],
    ) == (3, 1, 0, 'run7')
    text = ' '.join(
        item.get('ContributionDescription', '')
        for item in pydicom.dcmread(widget.saved / 'segmentation.dcm').ContributingEquipmentSequence
    )
    assert 'began as correction 1, that as an annotation by run7 (0123456789ab)' in text


def test_a_second_label_of_another_scan_is_refused(opened):
    with pytest.raises(InputError, match='the label: is'):
        opened.look(second=opened.numbers[1:])
