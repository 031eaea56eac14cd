"""A file or folder that may not be read costs one scan, and no name; and which sources of scans are synthetic."""

import builtins
import json
import os
from pathlib import Path

import numpy as np
import pytest

from pe_advseg.core.errors import InputError
from pe_advseg.core.volume import Volume
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.scan_folders import find_scans
from pe_advseg.data.sources import is_synthetic, setting_tag
from pe_advseg.data.without_names import without_names
from pe_advseg.scans.write_series import write_series


@pytest.fixture
def export(tmp_path):
    "Three patients, each with a DICOM series in a folder of its own, and a volume file."
    volume = Volume(np.zeros((6, 8, 8), np.int16), (2.0, 1.0, 1.0), (0, 0, 0), np.eye(3)[:, ::-1])
    for patient in ('adams', 'baker', 'clark'):
        header = dict(StudyInstanceUID=f'2.25.1{len(patient)}{ord(patient[0])}')
        write_series(volume, tmp_path / 'export' / patient / 'series', 'P', seed_uid=patient, header=header)
    (tmp_path / 'export' / 'dyer.nii.gz').write_bytes(b'a volume')
    return tmp_path / 'export'


@pytest.fixture
def closed(monkeypatch):
    "A set of paths that may not be read: root may read everything, so that permissions alone would not show it."
    paths = set()

    def guard(function):
        def call(path='.', *arguments, **options):
            if isinstance(path, (str, os.PathLike)) and Path(path) in paths:
                raise PermissionError(13, 'Permission denied', str(path))
            return function(path, *arguments, **options)

        return call

    for module, name in ((builtins, 'open'), (os, 'scandir'), (os, 'listdir')):
        monkeypatch.setattr(module, name, guard(getattr(module, name)))
    return paths


def names(scans, place):
    return [scan.relative_to(place).as_posix() for scan in scans]


def test_nothing_is_closed(export):
    scans, refused = find_scans(export)
    assert names(scans, export) == ['adams/series', 'baker/series', 'clark/series', 'dyer.nii.gz'] and not refused


@pytest.mark.parametrize('place', ['baker', 'baker/series'])
def test_a_closed_folder_costs_one_scan(export, closed, place):
    closed.add(export / place)
    scans, refused = find_scans(export)
    assert names(scans, export) == ['adams/series', 'clark/series', 'dyer.nii.gz']
    assert [error.file for error in refused] == [place] and 'cannot be listed (PermissionError)' in refused[0].cause


def test_a_closed_file_costs_one_scan(export, closed):
    closed.add(export / 'dyer.nii.gz')
    scans, refused = find_scans(export)
    assert names(scans, export) == ['adams/series', 'baker/series', 'clark/series']
    assert [(error.file, error.cause) for error in refused] == [('dyer.nii.gz', 'cannot be read (PermissionError)')]


def test_a_closed_slice_is_the_readers_to_report(export, closed):
    closed.add(sorted((export / 'baker/series').glob('*.dcm'))[0])
    scans, refused = find_scans(export)
    assert 'baker/series' in names(scans, export) and len(scans) == 4 and not refused


def test_the_folder_given_is_closed(export, closed):
    closed.add(export)
    with pytest.raises(InputError, match='the folder given: cannot be listed .PermissionError'):
        find_scans(export)


def test_a_closed_patient_costs_one_study(export, closed):
    closed.add(export / 'baker/series')
    refused = []
    assert [study.patient for study in find_studies(export, refused=refused)] == ['adams', 'clark']
    assert [error.file for error in refused] == ['baker/series']


def test_no_folder_is_named_in_public_although_it_is_closed(export, closed):
    closed.add(export / 'baker/series')
    text = without_names('baker/series: cannot be listed', export / 'baker', export)
    assert text == 'the scan/...: cannot be listed'


def test_synthetic_is_what_says_so(tmp_path):
    scan = tmp_path / 'hospital' / 'CT_scans' / 'P1'
    scan.mkdir(parents=True)
    assert not is_synthetic(scan) and is_synthetic('harbour') and not is_synthetic(Path('harbour'))
    stamp = tmp_path / 'hospital' / 'phantom.json'
    for content, expected in ((dict(what='synthetic, no patient data'), True), (dict(what='real'), False), ([], False)):
        stamp.write_text(json.dumps(content))
        assert [is_synthetic(path) for path in (scan, stamp.parent, str(scan), str(stamp.parent))] == [expected] * 4
    stamp.write_text('{"what": "synthetic"}')
    assert setting_tag(None, str(stamp.parent)) == '_own_hospital'
    assert setting_tag(str(stamp.parent), str(tmp_path)) == f'_real_hospital_{tmp_path.name.lower()}'
    assert setting_tag('', 'valley') == setting_tag() == ''
