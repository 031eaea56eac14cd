"""Scans from an archive and results back: with a real Orthanc, and with a stand-in that misbehaves.

What the archive keeps is read back by dicomweb-client and highdicom, not by our own reader."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import highdicom
import pydicom
import pytest
from support.archive import orthanc, why_not

from pe_advseg.annotation.annotate_archive import annotate_archive
from pe_advseg.annotation.archive import Login
from pe_advseg.annotation.archive_client import Archive
from pe_advseg.annotation.archive_search import Question
from pe_advseg.annotation.options import Options
from pe_advseg.core.errors import InputError
from pe_advseg.phantom.hospitals import HOSPITALS
from pe_advseg.phantom.phantom import make_study
from pe_advseg.scans.series import read_series
from pe_advseg.scans.write_series import write_series

COMMAND = Path(sys.executable).with_name('pe-advseg')
USER, PASSWORD = 'reader', 'planted-secret'
PATIENT = dict(PatientName='Planted^Name', PatientID='PLANTED-ID', StudyDate='20261128', StudyDescription='CTA Thorax')


@pytest.fixture(scope='module')
def volume():
    "One in which the shipped model finds something: asserted, not hoped."
    return make_study(HOSPITALS['delta'], 3, (12, 160, 160)).volume


@pytest.fixture(scope='module')
def scan(volume, tmp_path_factory):
    folder = tmp_path_factory.mktemp('hospital') / 'scan'
    write_series(volume, folder, 'Planted^Name', header=PATIENT)
    return folder


@pytest.fixture(scope='module')
def server(scan, tmp_path_factory):
    "Orthanc with one study; the tests that use it run in its network."
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp('orthanc')
    with orthanc(folder, USER, PASSWORD) as running:
        assert running.put(scan) == 12
        yield running


@pytest.fixture(scope='module')
def study(scan):
    return str(pydicom.dcmread(scan / 'IM0001.dcm').StudyInstanceUID)


def login_file(folder):
    path = folder / 'login.ini'
    path.write_text(f'[archive]\nuser = {USER}\npassword = {PASSWORD}\n')
    path.chmod(0o600)
    return path


def run(*words, **environment):
    "The command, in the network of the archive, and everything it says."
    variables = os.environ | {'COLUMNS': '200', 'TERM': 'dumb'} | environment
    done = subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, env=variables)
    return done.returncode, done.stdout + done.stderr


# --- a real archive ---


@pytest.fixture(scope='module')
def annotated(server, study, tmp_path_factory):
    "The study annotated by the command, and the results sent back."
    folder = tmp_path_factory.mktemp('annotated')
    words = ['annotate', '--from', server.url, '--study', study, '--login', login_file(folder)]
    code, said = run(*words, '--out', folder / 'out', '--rtstruct', '--send')
    return folder / 'out', code, said


def series_of(server, study):
    from dicomweb_client.session_utils import create_session_from_user_pass
    from dicomweb_client.web import DICOMwebClient

    client = DICOMwebClient(server.url, create_session_from_user_pass(USER, PASSWORD))
    return client, {item['00080060']['Value'][0]: item for item in client.search_for_series(study)}


def test_a_study_comes_and_its_results_go_back_into_it(server, study, scan, volume, annotated):
    out, code, said = annotated
    assert code == 0, said
    assert 'sent segmentation.dcm and rtstruct.dcm' in said
    client, found = series_of(server, study)
    assert set(found) == {'CT', 'SEG', 'RTSTRUCT'}
    first, [target] = pydicom.dcmread(scan / 'IM0001.dcm'), list(out.glob('study-*'))
    for kind, name in (('SEG', 'segmentation.dcm'), ('RTSTRUCT', 'rtstruct.dcm')):
        [kept] = client.retrieve_series(study, found[kind]['0020000E']['Value'][0])
        for keyword in ('StudyInstanceUID', 'FrameOfReferenceUID', 'PatientID', 'PatientName', 'StudyDate'):
            assert kept[keyword] == first[keyword], (kind, keyword)
        written = pydicom.dcmread(target / name)
        assert {e.tag: e for e in kept} == {e.tag: e for e in written}
    assert len(server.ask('/patients')) == len(server.ask('/studies')) == 1
    seg = client.retrieve_series(study, found['SEG']['0020000E']['Value'][0])[0]
    by_highdicom = highdicom.seg.Segmentation.from_dataset(seg).get_volume(combine_segments=True, relabel=True)
    slices = client.retrieve_series(study, found['CT']['0020000E']['Value'][0])
    named = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert named == {item.SOPInstanceUID for item in slices}
    from pe_advseg.annotation.annotation import read_annotation

    numbers = read_annotation(target, read_series(scan)).numbers
    assert numbers.any()
    assert (by_highdicom.array > 0).sum() == (numbers > 0).sum()


def test_nothing_is_left_and_nothing_is_told(annotated, study):
    out, _, said = annotated
    for word in ('lanted', PASSWORD, study):
        assert word not in said
    assert not (out / '.from-archive').exists()
    for path in out.rglob('*'):
        if path.is_file() and path.suffix != '.dcm':
            assert PASSWORD.encode() not in path.read_bytes(), path.name
            assert b'lanted' not in path.read_bytes(), path.name


def test_a_rerun_sends_nothing_twice_and_fetches_nothing_again(server, study, annotated, monkeypatch):
    out, _, _ = annotated
    before = server.ask('/changes?last')['Last']
    archive = Archive(server.url, Login(USER, PASSWORD))
    monkeypatch.setattr(archive, 'files', lambda *_: pytest.fail('fetched again'))
    monkeypatch.setattr(archive, 'store', lambda *_: pytest.fail('sent again'))
    [result] = annotate_archive(archive, Question(study=study), out, options=Options(rtstruct=True), send=True)
    assert (result.made, result.sent) == (False, 'sent before: segmentation.dcm and rtstruct.dcm')
    (out / 'archive.json').unlink()  # and without the record the archive itself is asked
    monkeypatch.undo()
    archive = Archive(server.url, Login(USER, PASSWORD))
    monkeypatch.setattr(archive, 'store', lambda *_: pytest.fail('sent again'))
    [result] = annotate_archive(archive, Question(study=study), out, options=Options(rtstruct=True), send=True)
    assert result.sent == 'sent before: segmentation.dcm and rtstruct.dcm'
    assert server.ask('/changes?last')['Last'] == before


@pytest.mark.parametrize('question', [dict(date='20261101-20261130'), dict(description='CTA Tho', modality='CT')])
def test_a_study_is_found_by_date_and_description(server, study, question):
    from pe_advseg.annotation.archive_search import find_archived

    archive = Archive(server.url, Login(USER, PASSWORD))
    [one] = find_archived(archive, Question(**question))
    assert (one.study, one.count, one.modality) == (study, 12, 'CT')
    with pytest.raises(InputError, match='no study that fits'):
        find_archived(archive, Question(date='20251101'))


def test_nothing_is_sent_unasked_or_under_invented_identifiers(server, volume, study, tmp_path):
    archive = Archive(server.url, Login(USER, PASSWORD))
    before = len(server.ask('/instances'))
    [result] = annotate_archive(archive, Question(study=study), tmp_path / 'unasked')
    assert (result.made, result.sent) == (True, '')
    with pytest.raises(InputError, match='pseudonym'):
        annotate_archive(archive, Question(study=study), tmp_path / 'p', options=Options(pseudonym='P7'), send=True)
    options = Options(reading=dict(resample=True))
    write_series(volume, tmp_path / 'frameless', 'P9', header=dict(FrameOfReferenceUID='0', StudyDescription='other'))
    server.put(tmp_path / 'frameless')
    [result] = annotate_archive(archive, Question(description='other'), tmp_path / 'frame', options=options, send=True)
    assert 'identifiers were invented (frame of reference)' in result.unsent
    assert len(server.ask('/instances')) == before + 12


# --- what goes wrong ---


def test_wrong_credentials(server, study, tmp_path):
    for words in (
        dict(PE_ADVSEG_ARCHIVE_USER=USER, PE_ADVSEG_ARCHIVE_PASSWORD='another-secret'),
        dict(PE_ADVSEG_ARCHIVE_TOKEN='another-secret'),
        {},
    ):
        code, said = run('annotate', '--from', server.url, '--study', study, '--out', tmp_path / 'out', **words)
        assert code == 1 and 'wants a login, or refuses this one' in said, said
        assert 'Traceback' not in said and 'another-secret' not in said
        assert not (tmp_path / 'out').exists()


def test_a_study_without_ct(server, study, tmp_path):
    header = dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.4', Modality='MR', StudyDescription='MR')
    volume = make_study(HOSPITALS['delta'], 4, (12, 64, 64)).volume
    write_series(volume, tmp_path / 'mr', 'MR', header=header)
    server.put(tmp_path / 'mr')
    uid = pydicom.dcmread(tmp_path / 'mr/IM0001.dcm').StudyInstanceUID
    words = ['annotate', '--from', server.url, '--login', login_file(tmp_path), '--out', tmp_path / 'out']
    code, said = run(*words, '--study', uid)
    assert code == 1 and 'holds no CT series of 4 slices (but MR)' in said, said
    code, said = run(*words, '--study', '1.2.3')
    assert code == 1 and 'has no study that fits' in said, said


def test_several_series_are_listed_and_chosen(server, volume, tmp_path):
    uid = pydicom.uid.generate_uid
    same = dict(StudyInstanceUID=uid(), FrameOfReferenceUID=uid())
    for number, words in enumerate(('thick', 'thin'), 1):
        header = same | dict(SeriesInstanceUID=uid(), SeriesNumber=number, SeriesDescription=words)
        write_series(volume, tmp_path / words, 'P2', header=header, seed_uid=words)
        server.put(tmp_path / words)
    words = ['annotate', '--from', server.url, '--login', login_file(tmp_path), '--out', tmp_path / 'out']
    code, said = run(*words, '--study', same['StudyInstanceUID'])
    assert code == 1 and '1: 12 slices, thick' in said and 'Choose one with --series 1' in said, said
    code, said = run(*words, '--study', same['StudyInstanceUID'], '--series', '2')  # as the remedy says
    assert code == 0, said
    [target] = (tmp_path / 'out').glob('study-*')
    seg = pydicom.dcmread(target / 'segmentation.dcm')
    thin = pydicom.dcmread(tmp_path / 'thin/IM0001.dcm').SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == thin


@pytest.mark.parametrize(
    'words, cause',
    [
        (['--from', 'https://reader:secret-word@pacs'], 'its address holds a login'),
        (['--send'], '--send is of use only with --from'),
        (['--from', 'http://127.0.0.1:9', '--study', '1.2'], 'cannot be reached'),
        (['--from', 'http://127.0.0.1:9'], 'Say which one'),
    ],
)
def test_mistakes_are_said_at_once(tmp_path, words, cause):
    code, said = run('annotate', *words, '--out', tmp_path / 'out')
    assert code == 1 and cause in said, said
    assert 'Traceback' not in said and 'secret-word' not in said


# --- media and archives that an archive hands out ---


def test_media_and_zip_are_read_back(server, study, annotated, scan, tmp_path):
    "What Orthanc writes for a CD (DICOMDIR) and as a zip, with our SEG and RTSTRUCT in it."
    [key] = [key for key in server.ask('/studies') if study in json.dumps(server.ask(f'/studies/{key}'))]
    for kind in ('archive', 'media'):
        file = tmp_path / f'{kind}.zip'
        file.write_bytes(server.ask(f'/studies/{key}/{kind}'))
        code, said = run('annotate', file, '--out', tmp_path / f'from-{kind}-zip')
        assert code == 0 and 'embol' in said, said
        assert 'lanted' not in said
        with zipfile.ZipFile(file) as packed:
            packed.extractall(tmp_path / kind)
        code, said = run('annotate', tmp_path / kind, '--out', tmp_path / f'from-{kind}')
        assert code == 0, said
        for out in (f'from-{kind}-zip', f'from-{kind}'):
            [target] = (tmp_path / out).glob('study-*')
            assert target.name == next(annotated[0].glob('study-*')).name  # the same pixels
