"""Add by click asks an nnInteractive server: the published client against a stand-in that speaks its protocol."""

import importlib.util
import socket

import numpy as np
import pydicom
import pytest
from support.promptable import ball, stand_in
from support.review_scans import on_disk

from pe_advseg.core.errors import InputError
from pe_advseg.review.history import history
from pe_advseg.review.promptable import Server
from pe_advseg.review.review import review
from pe_advseg.scans.series import study_name

needs_client = pytest.mark.skipif(
    importlib.util.find_spec('nnInteractive') is None, reason='nninteractive-client is not installed'
)


@pytest.fixture
def opened(tmp_path, monkeypatch):
    "A scan, and how to open a review of it with a server."
    monkeypatch.delenv('NN_INTERACTIVE_API_KEY', raising=False)
    volume, _ = on_disk(tmp_path / 'scan', 1)

    def look(server):
        return review(tmp_path / 'scan', None, tmp_path / 'store', 'Ada', interactive=False, ask=server)

    return volume, look, tmp_path / 'store'


def click(widget, point):
    widget.tool.value = 'Add'
    widget.click(*point)
    return widget.says.value


def by_hand(widget):
    "Something that must not be lost: a stroke."
    widget.tool.value, widget.limits.value = 'Paint', (-200, 500)
    widget.stroke([(5, 18, 10), (5, 18, 14)])
    assert widget.edits.decision_of[max(widget.edits.emboli)] == 'added'
    return widget.edits.numbers.copy()


@needs_client
def test_the_server_draws_where_the_reviewer_clicked(opened):
    volume, look, store = opened
    with stand_in() as server:
        widget = look(Server(server.address))
        before = by_hand(widget)
        assert 'Embolus 2 added' in click(widget, (6, 20, 30))
        bounds, drawn = ball(volume.shape, (6, 20, 30))
        expected = before.copy()
        part = expected[tuple(slice(*pair) for pair in bounds)]
        part[(drawn > 0) & (part == 0)] = 2
        np.testing.assert_array_equal(widget.edits.numbers, expected)
        click(widget, (6, 10, 20))
        widget.press('undo')
        np.testing.assert_array_equal(widget.edits.numbers, expected)
        [image] = server.images  # sent once
        np.testing.assert_array_equal(image, volume.hu[None])
        assert server.points == [[6, 20, 30], [6, 10, 20]]
        widget.press('save')
        widget.ask.close()
        assert server.released == server.leases == ['lease-0']
        assert 'SECRET' not in str(server.headers_seen)  # the patient's name
    [record] = history(store, study_name(volume))
    by = dict(program='nnInteractive', version='2', licence='CC BY-NC-SA 4.0')
    assert [row.get('drawn_by') for row in record['decisions']] == [None, by]
    assert says_of_segments(store) == [('MANUAL', None), ('SEMIAUTOMATIC', 'nnInteractive')]


def says_of_segments(store):
    "Who drew each embolus, by the newest SEG of the store."
    seg = pydicom.dcmread(sorted(store.rglob('segmentation.dcm'))[-1])
    names = [segment.get('SegmentAlgorithmName') for segment in seg.SegmentSequence]
    kinds = [segment.SegmentAlgorithmType for segment in seg.SegmentSequence]
    return [(kind, name and name.split(' (')[0]) for kind, name in zip(kinds, names, strict=True)]


@needs_client
def test_who_drew_an_embolus_is_known_after_the_browser_was_closed(opened):
    volume, look, store = opened
    with stand_in() as server:
        widget = look(Server(server.address))
        click(widget, (6, 20, 30))
        widget.ask.close()
    again = look(None)
    assert 'resumed' in again.says.value
    again.press('next')
    again.press('accept')
    again.press('save')
    [row] = history(store, study_name(volume))[0]['decisions']
    assert (row['decision'], row['drawn_by']['licence']) == ('accepted', 'CC BY-NC-SA 4.0')
    [first] = store.glob('*/0001')
    later = review(store.parent / 'scan', first, store, 'Bo', interactive=False)
    by_hand(later)
    later.press('save')
    assert says_of_segments(store) == [('SEMIAUTOMATIC', 'nnInteractive'), ('MANUAL', None)]  # in the next version, too


@needs_client
@pytest.mark.parametrize(
    ('fault', 'says'),
    [
        ('busy', 'serves as many people as it can'),
        ('html', 'gave no answer of an nnInteractive server'),
        ('other shape', 'gave no answer of an nnInteractive server'),
        ('garbage', 'gave no answer of an nnInteractive server'),
        ('nothing', 'Nothing was drawn at this point'),
    ],
)
def test_a_server_that_cannot_is_an_error_and_nothing_is_lost(opened, fault, says):
    _, look, _ = opened
    with stand_in(fault) as server:
        widget = look(Server(server.address))
        before = by_hand(widget)
        assert says in click(widget, (6, 20, 30))
        np.testing.assert_array_equal(widget.edits.numbers, before)
        widget.by_server.value = False  # by the limits, as always
        assert 'Embolus 2 added' in click(widget, (6, 20, 30))
        widget.ask.close()


@needs_client
def test_an_address_where_nobody_is(opened):
    _, look, _ = opened
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    widget = look(Server(f'http://ann:secret@127.0.0.1:{port}'))
    before = by_hand(widget)
    said = click(widget, (6, 20, 30))
    assert f'127.0.0.1:{port}: cannot be reached' in said and 'secret' not in said
    np.testing.assert_array_equal(widget.edits.numbers, before)


@needs_client
def test_a_key_is_read_from_the_environment_and_never_said(opened, monkeypatch):
    _, look, _ = opened
    with stand_in(key='s3cret-key') as server:
        widget = look(Server(server.address))
        said = click(widget, (6, 20, 30))
        assert 'wants a key' in said and 'NN_INTERACTIVE_API_KEY' in said
        monkeypatch.setenv('NN_INTERACTIVE_API_KEY', 's3cret-key')
        said = click(widget, (6, 20, 30))
        assert 'Embolus 1 added' in said and 's3cret' not in said
        widget.ask.close()


@needs_client
def test_a_session_that_the_server_closed_is_opened_again(opened):
    volume, look, _ = opened
    with stand_in('expire') as server:
        widget = look(Server(server.address))
        click(widget, (6, 20, 30))
        assert 'Embolus 2 added' in click(widget, (6, 10, 15))
        assert len(server.images) == 2  # the new session gets the scan
        np.testing.assert_array_equal(server.images[1], volume.hu[None])
        widget.ask.close()


def test_without_the_client(opened, monkeypatch):
    _, look, _ = opened
    monkeypatch.setattr('pe_advseg.review.promptable.find_spec', lambda name: None)
    widget = look(Server('http://gpu-box:1527'))
    before = by_hand(widget)
    said = click(widget, (6, 20, 30))
    assert 'nninteractive-client: is not installed' in said and 'pe_advseg[interactive]' in said
    np.testing.assert_array_equal(widget.edits.numbers, before)


@pytest.mark.parametrize('address', ['gpu-box', 'gpu-box:1527', 'ftp://gpu-box', 'http://', ''])
def test_what_is_no_address(address):
    with pytest.raises(InputError, match='http://machine:port'):
        Server(address)
