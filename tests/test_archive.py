"""Scans from an archive and results back: with a real Orthanc, and with a stand-in that misbehaves.

What the archive keeps is read back by dicomweb-client and highdicom, not by our own reader."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from support.archive import orthanc, why_not
from support.stand_in_archive import as_json, as_parts, stand_in, tags

from pe_advseg.annotation.annotate_archive import annotate_archive
from pe_advseg.annotation.archive import ArchiveError, Login
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


def test_a_reader_s_correction_comes_back_and_ours_does_not(server, study, scan, annotated, tmp_path):
    "Our SEG and RTSTRUCT lie in the study; a reader adds one, with an embolus less."
    from pe_advseg.annotation.annotation import read_annotation
    from pe_advseg.review.history import history, read_correction
    from pe_advseg.scans.seg_write import write_segmentation

    out, _, _ = annotated
    [target] = out.glob('study-*')
    volume = read_series(scan)
    numbers = read_annotation(target, volume).numbers
    corrected = np.where(numbers == 1, 0, numbers)
    words = ['import-corrections', '--from', server.url, '--login', login_file(tmp_path), '--reviewer', 'AB']
    words += ['--annotations', out, '--store', tmp_path / 'store', '--scans', tmp_path / 'scans']
    code, said = run(*words)
    assert code == 0 and 'nothing new' in said, said
    write_segmentation(tmp_path / 'theirs/seg.dcm', corrected, volume, scan, reviewer='AB')
    server.put(tmp_path / 'theirs')
    code, said = run(*words)
    assert code == 0 and 'saved' in said and '1 removed' in said, said
    assert 'lanted' not in said and study not in said
    np.testing.assert_array_equal(read_correction(tmp_path / 'store', volume)[0], corrected)
    [record] = history(tmp_path / 'store', target.name)
    assert record['started_from']['what'] == 'annotation'
    [kept] = (tmp_path / 'scans').iterdir()  # retraining finds the scan where it was put
    assert np.array_equal(read_series(kept).hu, volume.hu)
    code, said = run(*words)
    assert code == 0 and 'nothing new' in said, said
    assert not list(out.glob('.from-archive')) and len(history(tmp_path / 'store', target.name)) == 1


def test_slices_without_identifiers_are_filed_with_their_seg(server, volume, tmp_path):
    "As FUMPE publishes its scans: with --dicom-copy an archive files slices and SEG under one study and patient."
    zeros = ('StudyInstanceUID', 'SeriesInstanceUID', 'SOPInstanceUID', 'FrameOfReferenceUID', 'PatientID')
    write_series(volume, tmp_path / 'zeros', '0', header=dict.fromkeys(zeros, '0'))
    code, said = run('annotate', tmp_path / 'zeros', '--out', tmp_path / 'out')
    assert code == 0 and 'files it under another study' in said and '--dicom-copy' in said, said
    [target] = (tmp_path / 'out').glob('study-*')
    summary = json.loads((target / 'summary.json').read_text())
    assert summary['missing_identifiers'] == ['study', 'series', 'frame of reference', 'slices', 'patient']
    assert 'another study' in (target / 'report.html').read_text()
    code, said = run('annotate', tmp_path / 'zeros', '--out', tmp_path / 'copied', '--dicom-copy')
    assert code == 0, said
    [target] = (tmp_path / 'copied').glob('study-*')
    before = len(server.ask('/studies'))
    server.put(target / 'scan')
    server.ask('/instances', (target / 'segmentation.dcm').read_bytes())
    assert len(server.ask('/studies')) == before + 1
    uid = str(pydicom.dcmread(target / 'segmentation.dcm').StudyInstanceUID)
    _, found = series_of(server, uid)
    assert set(found) == {'CT', 'SEG'}
    patients = [server.ask(f'/patients/{key}')['MainDicomTags']['PatientID'] for key in server.ask('/patients')]
    assert target.name in patients and '0' not in patients


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


# --- an archive that misbehaves ---


@pytest.fixture
def weak(scan, study):
    "A stand-in that has the study, and keeps what it gets; nothing in it waits."
    slices = {path.name: path.read_bytes() for path in sorted(scan.iterdir())}
    first = pydicom.dcmread(scan / 'IM0001.dcm')
    with stand_in() as archive:
        archive.slices, archive.kept = slices, []
        archive.answers = {
            '/studies': as_json(tags(StudyInstanceUID=study)),
            f'{study}/series': as_json(
                tags(SeriesInstanceUID=first.SeriesInstanceUID, Modality='CT', NumberOfSeriesRelatedInstances=12)
            ),
            f'/series/{first.SeriesInstanceUID}': as_parts(slices.values()),
            '/instances': lambda _: as_json(*(tags(SOPInstanceUID=uid) for uid in archive.kept)),
        }
        archive.series = f'/series/{first.SeriesInstanceUID}'
        yield archive


@pytest.fixture
def at_once(monkeypatch):
    "Repeats wait for nothing."
    monkeypatch.setattr('time.sleep', lambda _: None)


def annotate(archive, study, out, **options):
    [result] = annotate_archive(
        Archive(archive.url, Login(USER, PASSWORD)), Question(study=study), out, progress=False, **options
    )
    return result


@pytest.mark.parametrize('path', ['/studies', 'series', 'slices'])
def test_an_archive_that_answers_with_a_web_page(weak, study, tmp_path, path, at_once):
    page = 200, 'text/html; charset=utf-8', b'<html><form>Log in, Planted^Name</form></html>'
    weak.answers[{'series': f'{study}/series', 'slices': weak.series}.get(path, path)] = page
    archive = Archive(weak.url, Login(USER, PASSWORD))
    cause = 'something else than DICOM'
    if path == 'slices':
        [result] = annotate_archive(archive, Question(study=study), tmp_path / 'out', progress=False)
        assert cause in result.cause and not result.target
    else:
        with pytest.raises(InputError, match=cause) as caught:
            annotate_archive(archive, Question(study=study), tmp_path / 'out', progress=False)
        assert 'lanted' not in str(caught.value)
    assert not list(tmp_path.glob('out/study-*'))


def test_a_series_that_breaks_off_is_fetched_whole(weak, study, volume, tmp_path, at_once):
    from pe_advseg.annotation.archive_search import find_archived
    from pe_advseg.annotation.fetch import fetch_series, private_folder

    status, kind, content = weak.answers[weak.series]
    answers = [(status, f'cut {kind}', content), (status, kind, content)]
    weak.answers[weak.series] = lambda _: answers.pop(0)
    archive = Archive(weak.url)
    [one] = find_archived(archive, Question(study=study))
    weak.kept[:] = [pydicom.dcmread(path).SOPInstanceUID for path in [*weak_files(weak, tmp_path)]]
    for name, uid in zip(weak.slices, weak.kept, strict=True):  # what is missing is asked for one by one
        weak.answers[f'/instances/{uid}'] = as_parts([weak.slices[name]])
    with private_folder(tmp_path / 'out', [one.series]) as place:
        folder = fetch_series(archive, one, place / one.series, pause=0)
        assert np.array_equal(read_series(folder).hu, volume.hu)
        assert folder.stat().st_mode & 0o077 == 0 or place.stat().st_mode & 0o077 == 0
        assert not any('lanted' in str(path) for path in place.rglob('*'))


def weak_files(weak, folder):
    "The slices of the stand-in as files."
    for name, content in weak.slices.items():
        (folder / name).write_bytes(content)
        yield folder / name


def test_a_series_that_never_comes_whole_is_not_annotated(weak, study, tmp_path, at_once):
    weak.answers[weak.series] = as_parts([*weak.slices.values()][:-1])  # the last slice: no gap would tell
    result = annotate(weak, study, tmp_path / 'out')
    assert 'sent 11 of 12 slices' in result.cause and not result.target
    weak.answers[weak.series] = as_parts(weak.slices.values())
    assert annotate(weak, study, tmp_path / 'out').target  # the same call goes on
    assert not (tmp_path / 'out/.from-archive').exists()


def test_an_upload_that_is_refused_half_way(weak, study, tmp_path, at_once):
    "First nothing but an error, then a refusal with a reason; what was sent counts only when the archive has it."
    failed = {'00081198': {'vr': 'SQ', 'Value': [{'00081197': {'vr': 'US', 'Value': [0xA700]}}]}}
    answers = [(503, 'text/plain', b''), (200, 'cut text/plain', b'half'), (409, 'application/dicom+json', failed)]
    answers = [(status, kind, json.dumps(c).encode() if isinstance(c, dict) else c) for status, kind, c in answers]
    weak.answers[f'/studies/{study}'] = lambda _: answers.pop(0)
    result = annotate(weak, study, tmp_path / 'out', send=True)
    assert result.target and not result.sent
    assert 'does not list it' in result.unsent  # the second answer said nothing, and the file is not there
    result = annotate(weak, study, tmp_path / 'out', send=True)
    assert 'refused by the archive: it has no room (A700)' in result.unsent
    assert json.loads((tmp_path / 'out/archive.json').read_text())['sent'] == []

    def keep(body):
        [path] = tmp_path.glob('out/study-*/segmentation.dcm')
        assert path.read_bytes()[132:] in body or len(body) > path.stat().st_size
        weak.kept.append(str(pydicom.dcmread(path).SOPInstanceUID))
        return 200, 'application/dicom+json; charset=utf-8', b'{}'

    weak.answers[f'/studies/{study}'] = keep
    assert annotate(weak, study, tmp_path / 'out', send=True).sent == 'sent segmentation.dcm'
    assert annotate(weak, study, tmp_path / 'out', send=True).sent == 'sent before: segmentation.dcm'


def test_no_password_in_any_text(weak, study, tmp_path, caplog, at_once):
    caplog.set_level(logging.DEBUG)
    weak.answers[weak.series] = 500, 'text/plain', b''
    result = annotate(weak, study, tmp_path / 'out')
    assert 'error 500' in result.cause
    assert any('Authorization' in headers for headers in weak.headers)
    assert PASSWORD not in caplog.text + str(result) + repr(Login(USER, PASSWORD))
    assert 'cmVhZGVyOn' not in caplog.text  # the same in Base64


def test_a_certificate_that_nobody_signed(tmp_path):
    import shutil
    import ssl
    from http.server import HTTPServer, SimpleHTTPRequestHandler
    from threading import Thread

    if not shutil.which('openssl'):
        pytest.skip('openssl makes the certificate')
    key, certificate = tmp_path / 'key.pem', tmp_path / 'ca.pem'
    words = 'req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1'
    made = ['openssl', *words.split(), '-keyout', key, '-out', certificate]
    subprocess.run(made, check=True, capture_output=True)
    server = HTTPServer(('127.0.0.1', 0), SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f'https://127.0.0.1:{server.server_address[1]}/dicom-web'
    with pytest.raises(ArchiveError, match='certificate that is not trusted'):
        Archive(url).series('1.2.3')
    with pytest.raises(ArchiveError, match='does not have this'):  # the server was reached: it has no such page
        Archive(url, Login(certificates=str(certificate))).series('1.2.3')
    server.shutdown()
    server.server_close()


# --- media and archives that an archive hands out ---


def test_media_and_zip_are_read_back(server, study, annotated, volume, tmp_path):
    "What Orthanc writes as a zip, and for a CD (DICOMDIR), with our SEG and RTSTRUCT in it."
    from pe_advseg.core.zip_files import unzipped
    from pe_advseg.data.scan_folders import find_scans

    [key] = [key for key in server.ask('/studies') if study in json.dumps(server.ask(f'/studies/{key}'))]
    for kind in ('archive', 'media'):
        file = tmp_path / f'{kind}.zip'
        file.write_bytes(server.ask(f'/studies/{key}/{kind}'))
        with unzipped(file) as folder:
            found, refused = find_scans(folder)
            assert refused == [] and len(found) == 1, kind  # SEG and RTSTRUCT are no scans that failed
            assert np.array_equal(read_series(found[0]).hu, volume.hu)
    code, said = run('annotate', tmp_path / 'archive.zip', '--out', tmp_path / 'out')
    assert code == 0 and 'lanted' not in said, said
    [target] = (tmp_path / 'out').glob('study-*')
    assert target.name == next(annotated[0].glob('study-*')).name  # the same pixels
