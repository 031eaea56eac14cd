"""The integrity report: what it finds, hides and costs; a study that kills its reader costs only itself."""

import dataclasses
import functools
import html.parser
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pe_advseg.core.volume import Volume
from pe_advseg.data import integrity, study_report
from pe_advseg.data.folder_content import FolderContent
from pe_advseg.data.integrity import check_folder, same_pixels
from pe_advseg.data.integrity_report import count_status, in_order, report_json, report_table, write_report
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.studies import Study
from pe_advseg.data.study_report import NOTED, REFUSED, USABLE, StudyReport, hu_counts, thumbnail
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return write_hospital(
        tmp_path_factory.mktemp('made') / 'island', 'island', 3, (16, 64, 64), progress=False, workers=1
    )


@pytest.fixture
def hospital(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / 'island'))


def quick(folder, **options):
    return check_folder(folder, workers=0, progress=False, **options)


def scans(folder):
    return [study.scan for study in find_studies(folder)]


def slices(scan):
    return sorted(scan.glob('*.dcm'))


# ---- what it finds


def test_a_sound_hospital_is_usable(hospital):
    reports = quick(hospital)
    assert [report.status for report in reports] == [USABLE] * 3
    assert all(sum(report.histogram) == np.prod(report.shape) for report in reports)


def lose_slice(scan):
    slices(scan)[5].unlink()


def cut_file(scan):
    slices(scan)[5].write_bytes(slices(scan)[5].read_bytes()[:-100])


def spoil_mask(scan):
    (scan / 'mask.nii.gz').write_bytes(b'no mask')


def second_mask(scan):
    shutil.copy(scan / 'mask.nii.gz', scan / 'mask.nii')


def no_scan(scan):
    for path in slices(scan):
        path.unlink()


def nothing_but_zeros(scan):
    for path in slices(scan):
        path.write_bytes(b'')


@pytest.mark.parametrize('spoil', [lose_slice, cut_file, spoil_mask, second_mask, no_scan, nothing_but_zeros])
def test_one_spoilt_study_is_refused_and_the_others_are_read(hospital, spoil):
    victim = scans(hospital)[1]
    spoil(victim)
    reports = quick(hospital)
    assert sorted(report.status for report in reports) == [REFUSED, USABLE, USABLE]
    (refused,) = (report for report in reports if report.status == REFUSED)
    assert refused.name.endswith(victim.name)
    assert refused.file and refused.cause and refused.remedy
    assert victim.name not in refused.file + refused.cause + refused.remedy
    if spoil is spoil_mask:
        assert refused.thumbnail and refused.clot_ml is None  # the scan is still shown


def test_an_error_nobody_foresaw_is_one_report_without_its_text(hospital, monkeypatch):
    def fails(study, **options):
        raise KeyError('AHMADI^HOSSEIN')

    monkeypatch.setattr(integrity, 'read_scan', fails)
    report = quick(hospital)[0]
    assert report.status == REFUSED and 'KeyError' in report.cause and 'AHMADI' not in repr(report) + report.cause


def test_copies_are_named_on_both_sides(hospital):
    shutil.copytree(scans(hospital)[0], hospital / 'zz_copy')
    reports = quick(hospital)
    assert same_pixels(reports) == [(1, 4)]
    assert [report.status for report in reports] == [NOTED, USABLE, USABLE, NOTED]
    assert 'study 4' in reports[0].notes[-1][1] and 'study 1' in reports[3].notes[-1][1]


def test_options_reach_the_reader(tmp_path):
    volume = Volume(
        np.random.default_rng(0).integers(-900, 900, (6, 20, 20)).astype(np.int16), (1.5, 0.7, 0.7), (0, 0, 0), AXIAL
    )
    volume = dataclasses.replace(volume, hu=np.maximum(volume.hu, 0))
    write_series(
        volume, tmp_path / 'h' / 'p1', 'P', header={'RescaleSlope': None, 'RescaleIntercept': None, 'RescaleType': None}
    )
    assert quick(tmp_path / 'h')[0].status == REFUSED
    assert quick(tmp_path / 'h', assume_hu=True)[0].status != REFUSED


# ---- the numbers and the picture


def test_histogram_against_numpy():
    hu = np.random.default_rng(1).integers(-3000, 3000, (4, 30, 31)).astype(np.int16)
    edges = study_report.HU_EDGES
    assert (hu_counts(hu) == np.histogram(hu.clip(edges[0], edges[-1] - 1), edges)[0]).all()


def test_the_picture_shows_the_patient_the_same_way_round_however_it_is_stored():
    hu = np.random.default_rng(2).integers(-160, 440, (5, 40, 60)).astype(np.int16)
    mask = np.zeros(hu.shape, np.uint8)
    mask[3, 10:20, 5:25] = 1
    straight = Volume(hu, (2, 1, 1), (0, 0, 0), AXIAL)
    expected, z = thumbnail(straight, mask)
    assert z == 3 and Image.open(io.BytesIO(expected)).size == (256, 171)
    for row, column in ((-1, 1), (1, -1), (-1, -1)):
        turned = Volume(np.ascontiguousarray(hu[:, ::column, ::row]), (2, 1, 1), (0, 0, 0), AXIAL * [1, column, row])
        assert thumbnail(turned, np.ascontiguousarray(mask[:, ::column, ::row])) == (expected, z)


def test_a_clot_of_one_pixel_is_outlined_in_a_large_slice():
    hu = np.zeros((3, 512, 512), np.int16)
    volume = Volume(hu, (1, 0.7, 0.7), (0, 0, 0), AXIAL)
    mask = np.zeros(hu.shape, np.uint8)
    mask[1, 301, 202] = 1
    plain, marked = (np.asarray(Image.open(io.BytesIO(thumbnail(volume, m)[0]))).astype(int) for m in (None, mask))
    different = np.argwhere(np.abs(plain - marked).max(-1) > 40)
    assert len(different) and np.abs(different.mean(0) - [150.5, 101]).max() < 4


# ---- processes


class Deadly(Study):
    "A study that kills the process that reads it, as a crashing decoder does."

    def __getattribute__(self, name):
        if name == 'scan' and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getattribute__(name)


@pytest.mark.parametrize('deadly', [[1], [0, 3]])
def test_a_study_that_kills_its_process_is_refused_and_the_rest_goes_on(hospital, monkeypatch, deadly):
    shutil.copytree(scans(hospital)[0], hospital / 'zz_copy')
    studies = find_studies(hospital)
    expected = [report.pixel_digest for report in quick(hospital)]
    for number in deadly:
        studies[number] = Deadly(
            studies[number].hospital, studies[number].patient, studies[number].scan, studies[number].mask
        )
    monkeypatch.setattr(integrity, 'folder_content', lambda folder: FolderContent(studies, [], {}, []))
    reports = check_folder(hospital, workers=2, progress=False)
    assert [report.number for report in reports] == [1, 2, 3, 4]
    assert [report.number - 1 for report in reports if report.status == REFUSED] == deadly
    assert all('ended the process' in reports[number].cause and reports[number].remedy for number in deadly)
    assert all(reports[number].pixel_digest == expected[number] for number in range(4) if number not in deadly)


# ---- memory


def peak_of(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_studies(tmp_path):
    "No pixels are held: 12 studies of 2 MB peak as 3 do, but for their small facts."
    volume = Volume(
        np.random.default_rng(0).integers(-900, 900, (16, 256, 256)).astype(np.int16), (1.5, 0.7, 0.7), (0, 0, 0), AXIAL
    )
    write_series(volume, tmp_path / 'scan', 'P')
    peaks = []
    for count in (3, 12):
        folder = tmp_path / f'{count}'
        for number in range(count):
            (folder / f'p{number}').mkdir(parents=True)
            for path in slices(tmp_path / 'scan'):
                os.link(path, folder / f'p{number}' / path.name)
        if count == 3:
            quick(folder)  # warm up: imports
        peaks.append(peak_of(functools.partial(quick, folder)))
    assert peaks[1] - peaks[0] < volume.hu.nbytes / 4, [peak >> 10 for peak in peaks]


def test_a_report_of_a_thousand_studies_is_written_piece_by_piece(hospital, tmp_path):
    report = quick(hospital)[0]
    many = [dataclasses.replace(report, number=number) for number in range(1, 1001)]
    write_report(many[:5], tmp_path / 'warm.html')
    peak = peak_of(lambda: write_report(many, tmp_path / 'many.html'))
    assert peak < (tmp_path / 'many.html').stat().st_size / 3
    assert (tmp_path / 'many.html').read_text().count('<article') == 1000


# ---- the page


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_page_stands_alone(hospital, tmp_path):
    lose_slice(scans(hospital)[2])
    text = write_report(quick(hospital), tmp_path / 'r.html').read_text(encoding='utf-8')
    tags = Page(text).tags
    assert not {'script', 'link', 'iframe', 'object', 'form', 'a'} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith('on') or name == 'href']
        assert attributes.get('src', 'data:image/').startswith('data:image/')
    assert ('meta', {'name': 'viewport', 'content': 'width=device-width, initial-scale=1'}) in tags
    assert not re.search(r'https?:|@import|url\(', text)
    assert text.index('Study 3<') < text.index('Study 1<')


def test_hostile_names_stay_text(hospital, tmp_path):
    evil = '"><script>alert(1)<'
    scan = scans(hospital)[0]
    scan.rename(hospital / f'{evil}patient')
    scan = hospital / f'{evil}patient'
    bad = scan / '\x1b[31m\u202e<img src=x onerror=alert(1)>[red]\udcff.dcm'
    slices(scan)[3].rename(bad)
    bad.write_bytes(bad.read_bytes()[:-50])
    reports = quick(hospital)
    assert count_status(reports)[REFUSED] == 1
    for names in (False, True):
        text = write_report(reports, tmp_path / 'r.html', names=names).read_text(encoding='utf-8')
        tags = Page(text).tags
        assert 'script' not in {tag for tag, _ in tags} and not [1 for _, attributes in tags if 'onerror' in attributes]
        assert ('patient' in text.split('<main>')[1].split('<footer>')[0]) == names
        assert not set('\x1b\u202e') & set(text)
        from rich.console import Console

        with (console := Console(width=400, force_terminal=True)).capture() as shown:
            console.print(report_table(reports, names))
        assert '\x1b[31m' not in shown.get() and '\u202e' not in shown.get() and '[red]' in shown.get()
        json.loads(report_json(reports, names))


def test_no_name_of_a_patient_unless_asked_for(hospital, tmp_path):
    scan = scans(hospital)[0]
    scan = scan.rename(hospital / 'AHMADI HOSSEIN')
    (scan / 'Ahmadi stud').mkdir()
    for number, path in enumerate(slices(scan)):
        path.rename(scan / 'Ahmadi stud' / f'AHMADI HOSSEIN_{number:03d}.dcm')
    next(iter(sorted((scan / 'Ahmadi stud').glob('*')))).write_bytes(b'DICM')
    sorted((scan / 'Ahmadi stud').glob('*'))[7].unlink()
    reports = quick(hospital)
    assert count_status(reports)[REFUSED] == 1
    for names in (False, True):
        page = write_report(reports, tmp_path / 'r.html', names=names).read_text(encoding='utf-8')
        for text in (page, report_json(reports, names)):
            assert ('hossein' in text.lower()) == names
    assert 'hossein' not in repr(reports).lower() and 'ahmadi' not in repr(reports).lower()


def test_worst_first():
    reports = [StudyReport(1, USABLE), StudyReport(2, REFUSED), StudyReport(3, NOTED), StudyReport(4, REFUSED)]
    assert [report.number for report in in_order(reports)] == [2, 4, 3, 1]


# ---- the command


def command(home, *words):
    environment = os.environ | {'PE_ADVSEG_HOME': str(home), 'COLUMNS': '200', 'TERM': 'dumb', 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [Path(sys.executable).with_name('pe-advseg'), 'check', *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def test_the_command(hospital, tmp_path):
    result = command(tmp_path, hospital, '--workers', 1)
    assert result.returncode == 0, result.stderr[-2000:]
    (page,) = (tmp_path / 'runs' / 'check').iterdir()
    assert re.fullmatch(r'[0-9a-f]{12}\.html', page.name) and page.name in result.stdout.replace('\n', '')
    patient = scans(hospital)[1].name
    lose_slice(scans(hospital)[1])
    result = command(tmp_path, hospital, '--workers', 2, '--json', '--out', tmp_path / 'other.html')
    facts = json.loads(result.stdout)  # nothing but JSON: progress is on the other channel
    assert result.returncode == 1 and facts['summary'] == {'refused': 1, 'usable with notes': 0, 'usable': 2}
    assert 'gap of' in facts['studies'][1]['cause'] and patient not in result.stdout + result.stderr
    assert 'gap of' in (tmp_path / 'other.html').read_text() and patient not in (tmp_path / 'other.html').read_text()
    result = command(tmp_path, hospital, '--names', '--out', tmp_path / 'other.html')
    assert patient in result.stdout and patient in (tmp_path / 'other.html').read_text()
    result = command(tmp_path, tmp_path / 'nowhere')
    assert result.returncode == 1 and 'Traceback' not in result.stderr and 'does not exist' in result.stderr
