"""Rows 65 to 80 of the bad-input battery: what is written, what it betrays, and what could be smuggled in.

One function per row; its number and its case are the test's id. Rows that another file treats at length are tried here
once, briefly.
"""

import ast
import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import highdicom
import nbformat
import numpy as np
import pydicom
import pytest
import torch
from scipy.spatial.transform import Rotation

from pe_advseg.cli.notebooks import run_notebook
from pe_advseg.core.errors import InputError, TrainingError
from pe_advseg.core.volume import Volume
from pe_advseg.data.hospital_cache import build_cache
from pe_advseg.data.integrity import check_folder
from pe_advseg.data.integrity_report import report_path, write_report
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.read_study import read_study
from pe_advseg.data.study_cache import cache_study
from pe_advseg.evaluation.evaluate import predict_study
from pe_advseg.models.networks import build_network
from pe_advseg.phantom.patient_files import FUMPE_BLANKS
from pe_advseg.phantom.phantom_files import write_hospital
from pe_advseg.scans.seg_read import read_seg_mask
from pe_advseg.scans.seg_write import write_segmentation
from pe_advseg.scans.segments import NO_FINDING, RESEARCH
from pe_advseg.scans.series import read_series
from pe_advseg.scans.write_series import write_series
from pe_advseg.training.checkpoint import load_checkpoint, save_checkpoint
from pe_advseg.training.config import TrainConfig
from pe_advseg.training.run_folder import is_finished
from pe_advseg.training.train import train
from pe_advseg.training.trained_networks import load_network

ROOT = Path(__file__).resolve().parent.parent
FUMPE = ROOT.parent / 'shared' / 'data' / 'FUMPE'
AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
PLANTED = 'PLANTED'
ROWS = {}


def row(number, case):
    def add(function):
        assert number not in ROWS, f'row {number} is here twice'
        ROWS[number] = pytest.param(function, id=f'{number} {case}')
        return function

    return add


def make_volume(direction=AXIAL, shape=(8, 20, 24), seed=0):
    return Volume(
        np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16),
        (1.5, 0.7, 0.8),
        (-30.0, 12.5, -700.25),
        direction,
    )


def series(folder, name='PAT', volume=None, **options):
    "A written and re-read series, and a mask of two emboli on its grid."
    write_series(volume or make_volume(), folder, name, **options)
    read = read_series(folder)
    mask = (np.random.default_rng(1).random(read.shape) < 0.05) * np.where(np.arange(read.shape[2]) < 9, 4, 2)
    return read, mask.astype(np.int64)


def hospital(folder, patients=2):
    return write_hospital(folder, 'harbour', patients, (12, 48, 48), mask='nifti', workers=1, progress=False)


def refused(words, function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert caught.value.remedy


# ---- DICOM SEG


@row(65, 'SEG from an anonymised source')
def anonymised(place, monkeypatch):
    gone = dict.fromkeys(
        (
            'PatientName',
            'PatientID',
            'PatientBirthDate',
            'PatientSex',
            'StudyDate',
            'StudyTime',
            'StudyID',
            'AccessionNumber',
            'ReferringPhysicianName',
            'StudyInstanceUID',
            'SeriesInstanceUID',
            'FrameOfReferenceUID',
            'Manufacturer',
            'SliceThickness',
        )
    )
    odd = {
        'StudyDate': '20261399',
        'PatientBirthDate': '1960',
        'StudyTime': 'noon',
        'PatientSex': 'female',
        'PatientName': 'no caret',
        'StudyID': 'x' * 40,
    }
    for number, header in enumerate((gone, FUMPE_BLANKS, odd)):
        scan = place / f'{number}'
        volume, mask = series(scan, header=header)
        written = [write_segmentation(place / f'{number}-{i}.dcm', mask, volume, scan) for i in (0, 1)]
        assert (read_seg_mask(written[0], volume, 'seg')[0] == (mask > 0)).all()
        one, two = (highdicom.seg.segread(path) for path in written)
        for keyword in (
            'PatientName',
            'PatientID',
            'PatientBirthDate',
            'PatientSex',
            'StudyDate',
            'StudyTime',
            'StudyID',
            'AccessionNumber',
            'ReferringPhysicianName',
        ):
            assert keyword in one, keyword  # type 2: must be there, may be empty
        assert (one.StudyDate, one.PatientBirthDate, one.StudyTime, one.PatientSex) == (
            '',
            '',
            '',
            '',
        ) or header is FUMPE_BLANKS
        assert one.StudyDate in ('', None) and one.StudyTime in ('', None)
        assert (
            one.StudyInstanceUID == two.StudyInstanceUID and one.FrameOfReferenceUID == two.FrameOfReferenceUID
        )  # made up, but always the same
        assert one.SOPInstanceUID != two.SOPInstanceUID
        if header is not odd:
            assert one.StudyInstanceUID.startswith('2.25.') and pydicom.uid.UID(one.StudyInstanceUID).is_valid
    refused(
        'SOPInstanceUID|is not the slice',
        write_segmentation,
        place / 'x.dcm',
        mask,
        dataclasses.replace(volume, sources=[dataclasses.replace(s, instance_uid='1.2') for s in volume.sources]),
        scan,
    )


@row(66, 'empty prediction')
def empty(place, monkeypatch):
    volume, mask = series(place / 'scan')
    path = write_segmentation(place / 'seg.dcm', mask * 0, volume, place / 'scan')
    dataset = highdicom.seg.segread(path)
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == [
        NO_FINDING
    ] and NO_FINDING in dataset.SeriesDescription
    assert (
        dataset.NumberOfFrames == len(volume.hu)
        and not dataset.pixel_array.any()
        and dataset.ContentDescription == RESEARCH
    )
    assert not read_seg_mask(path, volume, 'seg.dcm')[0].any()


@row(67, 'SEG with a mask of wrong shape, count or value')
def wrong_mask(place, monkeypatch):
    volume, mask = series(place / 'scan')

    def write(mask, volume=volume, **options):
        return write_segmentation(place / 'seg.dcm', mask, volume, place / 'scan', **options)

    for bad in (mask[:-1], mask[:, :-1], mask[..., None], np.concatenate([mask, mask[:1]])):
        refused(r'its scan is \(8, 20, 24\)', write, bad)
    for bad in (mask * 0.5, mask.astype(float), np.where(mask, np.nan, 0), mask.astype(object)):
        refused('values. Apply a threshold', write, bad)
    refused('holds -4', write, -mask)
    refused(
        'one DICOM file per slice',
        write,
        mask,
        dataclasses.replace(volume, sources=(volume.sources[0], *volume.sources[:-1])),
    )  # a slice twice
    refused('one DICOM file per slice', write, mask, dataclasses.replace(volume, sources=()))
    refused('does not lie where', write, mask, dataclasses.replace(volume, sources=volume.sources[::-1]))
    files = [source.file for source in volume.sources[::-1]]
    files_exchanged = [dataclasses.replace(s, file=file) for s, file in zip(volume.sources, files, strict=True)]
    refused(
        'is not the slice',
        write,
        mask,
        dataclasses.replace(volume, sources=files_exchanged),
    )
    refused('does not lie where', write, mask, dataclasses.replace(volume, spacing=(2.0, 0.7, 0.8)))
    assert not (place / 'seg.dcm').exists()
    for kind in (bool, np.uint8, np.int32, np.int64, np.uint64):  # whatever whole numbers a program has
        assert (read_seg_mask(write(mask.astype(kind)), volume, 'seg')[0] == (mask > 0)).all()
    numbers = np.arange(mask.size).reshape(mask.shape) % 300  # more emboli than a byte counts
    back = highdicom.seg.segread(write(numbers)).get_pixels_by_source_instance(
        [s.instance_uid for s in volume.sources], combine_segments=True, ignore_spatial_locations=True
    )
    assert (back == numbers).all()


def in_order(points):
    "Points in an order that does not depend on that of the file."
    return points[np.lexsort(np.round(points, 2).T)]


@row(68, 'SEG round trip in any orientation and order')
def round_trip(place, monkeypatch):

    def flip(row, column):
        return AXIAL * [1, column, row]

    turned = Rotation.from_rotvec(np.radians(15) * np.array([0.6, 0.64, 0.48])).as_matrix()
    directions = {
        'plain': AXIAL,
        'rows negated': flip(-1, 1),
        'columns negated': flip(1, -1),
        'both': flip(-1, -1),
        'oblique': turned @ AXIAL,
        'oblique negated': turned @ flip(1, -1),
    }
    for name, direction in directions.items():
        for reverse in (False, True):
            scan = place / f'{name} {reverse}'
            volume, mask = series(scan, volume=make_volume(direction), reverse=reverse)
            path = write_segmentation(place / f'{name} {reverse}.dcm', mask, volume, scan)
            assert (read_seg_mask(path, volume, 'seg')[0] == (mask > 0)).all(), (name, reverse)
            # the same voxels at the same places in the patient, says highdicom
            theirs = highdicom.seg.segread(path).get_volume(combine_segments=True)
            points = np.argwhere(theirs.array) @ theirs.affine[:3, :3].T + theirs.affine[:3, 3]
            ours = volume.to_patient(np.argwhere(mask))
            assert len(points) == len(ours)
            np.testing.assert_allclose(in_order(points), in_order(ours), atol=1e-3)


# ---- who the patient is

SPOILT = (
    'RescaleSlope',
    'PixelSpacing',
    'ImagePositionPatient',
    'InstanceNumber',
    'RescaleType',
    'PhotometricInterpretation',
    'ImageType',
    'SOPInstanceUID',
    'Modality',
    'FrameOfReferenceUID',
)


def spoil_header(path, keyword, value):
    "Writes any bytes as the value of a tag, as a careless exporter or an attacker would."
    dataset, tag = pydicom.dcmread(path), pydicom.tag.Tag(keyword)
    dataset._dict[tag] = pydicom.dataelem.RawDataElement(
        tag, pydicom.datadict.dictionary_VR(tag), len(value), value, 0, False, True
    )
    dataset.save_as(path)


@row(69, 'names in logs, reports, notebooks and errors')
def no_names(place, monkeypatch):
    folder, header = (
        place / 'hospital',
        {
            'PatientBirthDate': f'{PLANTED}2',
            'StudyDescription': f'{PLANTED}3',
            'InstitutionName': f'{PLANTED}4',
            'OperatorsName': f'{PLANTED}^5',
        },
    )
    for number, keyword in enumerate(('', *SPOILT)):
        write_series(make_volume(), folder / f'p{number}', f'{PLANTED}^1', header=header | {'RescaleType': 'HU'})
        if keyword:
            spoil_header(sorted((folder / f'p{number}').iterdir())[3], keyword, f'{PLANTED}{number:3d}'.encode())
    sorted((folder / 'p0').iterdir())[4].unlink()
    environment = os.environ | {'PE_ADVSEG_HOME': str(place / 'home'), 'OMP_NUM_THREADS': '1', 'COLUMNS': '300'}
    (place / 'home').mkdir()
    (place / 'home' / 'nbs').symlink_to(ROOT / 'nbs')
    for words in (
        ('check', folder, '--names', '--workers', 1),
        ('check', folder, '--json', '--workers', 1),
        ('experiment', '01_look_at_the_data', '--data', folder, '--scale', 'smoke'),
    ):
        result = subprocess.run(
            [Path(sys.executable).with_name('pe-advseg'), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
        assert result.returncode == 1, result.stderr[-1000:]
        assert PLANTED not in result.stdout + result.stderr
        if '--json' in words:
            assert json.loads(result.stdout)['summary']['refused'] >= 6  # the planted values were met, and not quoted
    left = [
        path
        for path in (place / 'home').rglob('*')
        if path.is_file() and 'nbs' not in path.relative_to(place / 'home').parts[0]
    ]
    assert {'.html', '.ipynb'} <= {path.suffix for path in left}  # the report, and the notebook with its traceback
    assert not [path.name for path in left if PLANTED.encode() in path.read_bytes()]
    assert any(b'InputError' in path.read_bytes() for path in left if path.suffix == '.ipynb')


@row(70, 'names in a SEG')
def names_in_seg(place, monkeypatch):
    header = {
        'PatientBirthDate': '19600102',
        'StudyDate': '20200304',
        'StudyTime': '101112',
        'StudyID': f'{PLANTED}3',
        'AccessionNumber': f'{PLANTED}4',
        'ReferringPhysicianName': f'{PLANTED}^5',
        'StudyDescription': f'{PLANTED}6',
        'InstitutionName': f'{PLANTED}7',
        'PatientSex': 'F',
    }
    volume, mask = series(place / 'scan', f'{PLANTED}^1', header=header)
    open_seg = pydicom.dcmread(write_segmentation(place / 'open.dcm', mask, volume, place / 'scan'))
    assert (
        str(open_seg.PatientName) == f'{PLANTED}^1'
        and open_seg.StudyDate == '20200304'
        and open_seg.StudyInstanceUID == pydicom.dcmread(place / 'scan' / volume.sources[0].file).StudyInstanceUID
    )
    assert "patient's name" in write_segmentation.__doc__  # it says so
    content = write_segmentation(place / 'case7.dcm', mask, volume, place / 'scan', pseudonym='case7').read_bytes()
    assert b'case7' in content and not [
        word for word in (PLANTED, '19600102', '20200304', '101112') if word.encode() in content
    ]
    assert (read_seg_mask(place / 'case7.dcm', volume, 'seg')[0] == (mask > 0)).all()
    for bad in ('', 'a\\b', 'x' * 65, 'a\0b', 'a^b'):
        refused('the pseudonym', write_segmentation, place / 'x.dcm', mask, volume, place / 'scan', pseudonym=bad)


@row(71, 'hostile text in headers never names a file')
def hostile_text(place, monkeypatch):
    monkeypatch.setenv('PE_ADVSEG_HOME', str(place / 'home'))
    for number, text in enumerate(('../../x', 'a\0b', '\u202egpj.exe', 'x' * 300, 'CON', '/etc/passwd')):
        here = place / f'{number}'
        header = {'SpecificCharacterSet': 'ISO_IR 192'} | dict.fromkeys(
            ('SeriesDescription', 'PatientID', 'PatientName', 'StudyDescription', 'StudyID', 'ProtocolName'), text
        )
        volume, mask = series(here / 'hospital' / 'p1', 'P', header=header)
        (study,) = find_studies(here / 'hospital')
        cache_study(study, here / 'cache')
        write_report(check_folder(here / 'hospital', workers=0, progress=False), report_path(here / 'hospital'))
        seg = pydicom.dcmread(write_segmentation(here / 'seg.dcm', mask, volume, study.scan))
        assert all(
            len(str(seg.get(keyword, ''))) <= 64 and str(seg.get(keyword, '')).isprintable()
            for keyword in ('PatientID', 'PatientName', 'StudyID', 'SeriesDescription')
        )
        assert {path.name for path in here.iterdir()} == {'hospital', 'cache', 'seg.dcm'}
        assert all(
            re.fullmatch(r'[\w.-]+', part) and 'passwd' not in part and 'gpj' not in part
            for path in (here / 'cache').rglob('*')
            for part in path.relative_to(here / 'cache').parts
        )
    assert all(re.fullmatch(r'[0-9a-f]{12}\.html', path.name) for path in (place / 'home' / 'runs' / 'check').iterdir())
    assert {path.name for path in place.iterdir()} == {*map(str, range(6)), 'home'}


# ---- what could be smuggled in

FORBIDDEN_IMPORTS = {
    'tarfile',
    'zipfile',
    'pickle',
    'cPickle',
    'shelve',
    'marshal',
    'dill',
    'cloudpickle',
    'joblib',
    'yaml',
    'telnetlib',
}
FORBIDDEN_CALLS = {
    'eval',
    'exec',
    'compile',
    '__import__',
    'os.system',
    'os.popen',
    'shutil.unpack_archive',
    'torch.hub.load',
    'pandas.read_pickle',
    'pd.read_pickle',
    'numpy.fromregex',
}


def forbidden(source, file):
    "What a source does that could run or unpack what it reads."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or '']
            yield from (
                f'{file}:{node.lineno} imports {name}' for name in names if name.split('.')[0] in FORBIDDEN_IMPORTS
            )
        if not isinstance(node, ast.Call):
            continue
        called, options = ast.unparse(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
        if called in FORBIDDEN_CALLS:
            yield f'{file}:{node.lineno} calls {called}'
        if called == 'torch.load' and options.get('weights_only') != 'True':
            yield f'{file}:{node.lineno} torch.load without weights_only=True'
        if options.get('allow_pickle') not in (None, 'False'):
            yield f'{file}:{node.lineno} {called} with allow_pickle'
        if options.get('shell') not in (None, 'False'):
            yield f'{file}:{node.lineno} {called} with a shell'


@row(72, 'archives are not extracted, pickles not opened, text not run')
def no_archives(place, monkeypatch):
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / 'pe_advseg').rglob('*.py')}
    for path in (ROOT / 'nbs' / 'experiments').glob('*.ipynb'):
        code = '\n'.join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == 'code')
        sources[path.name] = re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', code)
    assert len(sources) > 30
    found = [line for name, source in sources.items() for line in forbidden(source, name)]
    # an archive's zip is taken apart in one place, within limits on sizes, names and links (its lesson says how)
    zips = [
        line for line in found if line.startswith('pe_advseg/core/zip_files.py') and line.endswith('imports zipfile')
    ]
    assert len(zips) == 1 and found == zips
    for guilty in (
        'import tarfile',
        'from zipfile import ZipFile',
        'torch.load(f)',
        'torch.load(f, weights_only=False)',
        'np.load(f, allow_pickle=True)',
        'eval(x)',
        'subprocess.run(x, shell=True)',
    ):
        assert list(forbidden(guilty, 'x')), guilty  # the search finds what it looks for


class Smuggled:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


@row(73, 'a pickle in place of a checkpoint or an array')
def pickles(place, monkeypatch):
    proof, run = place / 'executed', place / 'run'
    run.mkdir()
    for content in (None, pickle.dumps(Smuggled(proof))):  # None: what torch.save writes
        path = run / 'checkpoint-0000001.safetensors'
        if content is None:
            torch.save({'x': Smuggled(proof)}, path)
        else:
            path.write_bytes(content)
        (run / 'last.json').write_text(
            json.dumps([dict(file=path.name, step=1, sha256=hashlib.sha256(path.read_bytes()).hexdigest())])
        )  # whoever writes it can write its checksum
        with pytest.raises(Exception):  # noqa: B017  any refusal will do; what matters is that nothing was executed
            load_checkpoint(run)
    study = find_studies(hospital(place / 'hospital', 1))[0]
    cached = cache_study(study, place / 'cache')
    right, at = np.array(cached.hu), cached.folder
    del cached
    for array in at.glob('*.npy'):
        np.save(array, np.array([Smuggled(proof)], dtype=object), allow_pickle=True)
    with contextlib.suppress(ValueError):  # refused is right, too
        assert (np.asarray(cache_study(study, place / 'cache').hu) == right).all()
    assert not proof.exists()
    pickle.loads(pickle.dumps(Smuggled(proof)))
    assert proof.exists()  # it would have worked


@row(74, 'a checkpoint of another architecture')
def other_architecture(place, monkeypatch):
    config = TrainConfig(network='hrnet_tiny', network_options={'upsampling': 'bilinear'}, steps=1)
    save_checkpoint(
        place,
        {'networks': {'network': build_network(config.network, in_channels=1, **config.network_options).state_dict()}},
        1,
    )
    for change, fits in (({}, True), ({'network_options': {'upsampling': 'carafe'}}, False), ({'slices': 3}, False)):
        (place / 'config.json').write_text(json.dumps(dataclasses.asdict(dataclasses.replace(config, **change))))
        if fits:
            load_network(place)
            continue
        with pytest.raises((RuntimeError, TrainingError), match='size mismatch|Missing key|Unexpected key'):
            load_network(place)


@row(75, 'a damaged or stale cache is made anew')
def cache_faults(place, monkeypatch):
    study = find_studies(hospital(place / 'hospital', 1))[0]

    def fresh():
        return cache_study(study, place / 'cache')

    folder, right = fresh().folder, np.array(fresh().hu)
    damages = [
        lambda path=path, how=how: how(path)
        for path in sorted(folder.iterdir())
        if path.is_file()
        for how in (
            lambda p: os.truncate(p, p.stat().st_size // 2),
            lambda p: p.write_bytes(b''),
            lambda p: p.unlink(),
            lambda p: p.write_bytes(b'\x93NUMPY' + bytes(40)),
        )
    ]
    for damage in damages:
        damage()
        again = fresh()
        assert (
            (np.asarray(again.hu) == right).all() and again.mask is not None and again.native_mask.shape == right.shape
        )
    assert cache_study(study, place / 'cache', 6.0).folder != folder  # another pixel size is another cache
    file = sorted(study.scan.glob('*.dcm'))[2]
    content, seen = bytearray(file.read_bytes()), file.stat()
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert (np.asarray(fresh().hu) != right).any()  # same name, size and date, other pixels


# ---- runs

HOLD = """
import sys, time, filelock
with filelock.FileLock(sys.argv[1], timeout=0): print('held', flush=True); time.sleep(300)
"""


@row(76, 'two runs in one folder')
def two_runs(place, monkeypatch):
    torch.set_num_threads(1)
    cached = list(
        build_cache(find_studies(hospital(place / 'hospital')), place / 'cache', 6.0, progress=False).values()
    )
    config = TrainConfig(steps=1, network_options={'upsampling': 'bilinear'}, batch=2, patch=32)
    run_folder = place / 'runs' / config.name
    run_folder.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, '-c', HOLD, str(run_folder / 'lock')], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline().strip() == 'held'
        with pytest.raises(filelock.Timeout):
            train(config, cached, [], place / 'runs', progress=False)
        assert not is_finished(run_folder)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert is_finished(
        train(config, cached, [], place / 'runs', progress=False)
    )  # the lock of a killed process is free


@row(77, 'names of notebook parameters are not code')
def parameter_names(place, monkeypatch):
    import papermill

    def never(*arguments, **options):
        raise AssertionError('a notebook was run')

    monkeypatch.setattr(papermill, 'execute_notebook', never)
    monkeypatch.setenv('PE_ADVSEG_HOME', str(place))
    (place / 'nbs').symlink_to(ROOT / 'nbs')
    for name in ('sclae', 'scale=1;import os', 'y=1\nopen("executed", "w")#', ''):
        with pytest.raises(ValueError, match='has no parameter'):
            run_notebook('01_look_at_the_data', **{name: 'smoke'})
    for notebook in ('99_nothing', '../index', '../../elsewhere'):
        with pytest.raises((ValueError, AssertionError)) as caught:
            run_notebook(notebook, scale='smoke')
        assert 'was run' not in str(caught.value)


@row(78, 'a killed kernel is a failed command')
def killed_kernel(place, monkeypatch):
    experiments = place / 'nbs' / 'experiments'
    experiments.mkdir(parents=True)
    code = [
        nbformat.v4.new_code_cell(
            "scale = 'smoke'\ndata = ''\ntarget = ''\nwrite = False", metadata={'tags': ['parameters']}
        ),
        nbformat.v4.new_code_cell('import os, signal\nos.kill(os.getpid(), signal.SIGKILL)'),
        nbformat.v4.new_code_cell("print('never')"),
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=code, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
        ),
        experiments / '77_dies.ipynb',
    )
    result = subprocess.run(
        [Path(sys.executable).with_name('pe-advseg'), 'experiment', '77_dies', '--scale', 'smoke'],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {'PE_ADVSEG_HOME': str(place)},
    )
    assert result.returncode not in (0, None) and 'never' not in result.stdout
    run = place / 'runs' / 'x'
    run.mkdir(parents=True)
    (run / 'config.json').write_text(json.dumps(dataclasses.asdict(TrainConfig())))
    assert not is_finished(run)  # finished is what has its last checkpoint, whatever a notebook says


@row(79, 'a network that predicts no numbers')
def not_a_number(place, monkeypatch):
    cached = cache_study(find_studies(hospital(place / 'hospital', 1))[0], place / 'cache')

    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image):
            return image.clone().index_fill(-1, torch.tensor([3]), float('nan'))

    with pytest.raises(ValueError, match='not numbers'):
        predict_study(Broken(), cached, TrainConfig())


DIE = """
import os, signal, sys
import numpy as np
from pe_advseg.scans.series import read_series
from pe_advseg.scans.seg_write import write_segmentation
scan, path, moment = sys.argv[1:]
volume = read_series(scan)
def die(*arguments): os.kill(os.getpid(), signal.SIGKILL)
if moment == 'writing':
    import pydicom.filewriter
    pydicom.filewriter.write_data_element = die
else: setattr(os, moment, die)
write_segmentation(path, np.ones(volume.shape, np.uint8), volume, scan)
"""


@row(80, 'killed while writing')
def killed_while_writing(place, monkeypatch):
    volume, mask = series(place / 'scan')
    old = write_segmentation(place / 'old.dcm', mask, volume, place / 'scan').read_bytes()
    for moment in ('writing', 'fsync', 'replace'):
        for target, before in (('new.dcm', None), ('old.dcm', old)):
            result = subprocess.run(
                [sys.executable, '-c', DIE, str(place / 'scan'), str(place / target), moment],
                capture_output=True,
                timeout=200,
            )
            assert result.returncode == -signal.SIGKILL, result.stderr[-1000:]
            assert (place / target).read_bytes() == before if before else not (place / target).exists(), moment
    assert all(
        path.name.startswith('.partial-') for path in place.iterdir() if path.name not in ('scan', 'old.dcm')
    )  # which every reader passes over
    assert len(write_segmentation(place / 'new.dcm', mask, volume, place / 'scan').read_bytes()) > 1000


# ---- the battery


@pytest.mark.parametrize('function', [ROWS[number] for number in sorted(ROWS)])
def test_row(function, tmp_path, monkeypatch):
    function(tmp_path, monkeypatch)


def test_every_row_is_here_once():
    assert sorted(ROWS) == list(range(65, 81))


@pytest.mark.skipif(not shutil.which('dciodvfy'), reason="dciodvfy, of Debian's dicom3tools, is not installed")
@pytest.mark.parametrize(
    'header',
    [
        {},
        FUMPE_BLANKS,
        dict.fromkeys(('PatientName', 'StudyDate', 'StudyID', 'FrameOfReferenceUID')),
        {'PatientName': 'x' * 300, 'StudyTime': 'noon', 'PatientSex': 'U'},
        {
            'LossyImageCompression': '01',
            'LossyImageCompressionRatio': '10',
            'LossyImageCompressionMethod': 'ISO_15444_1',
        },
    ],
)
def test_another_program_finds_no_error_in_a_seg(tmp_path, header):
    volume, mask = series(tmp_path / 'scan', header=header)
    for number, (drawn, options) in enumerate(
        ((mask, {}), (mask, dict(per_embolus=False, pseudonym='case7')), (mask * 0, {}))
    ):
        path = write_segmentation(tmp_path / f'{number}.dcm', drawn, volume, tmp_path / 'scan', **options)
        found = subprocess.run(['dciodvfy', str(path)], capture_output=True, text=True, timeout=60)
        assert found.returncode == 0 and 'Error' not in found.stdout + found.stderr, found.stderr


@pytest.mark.skipif(
    not FUMPE.is_dir(), reason='the real patient lies in ../shared/data/FUMPE, which this checkout does not have'
)
def test_row_65_on_a_real_anonymised_patient(tmp_path):
    (study,) = find_studies(FUMPE)
    volume, mask = read_study(study)
    path = write_segmentation(tmp_path / 'seg.dcm', mask, volume, study.scan)
    assert (read_seg_mask(path, volume, 'seg.dcm')[0] == mask).all() and mask.sum() == 42840
    dataset = highdicom.seg.segread(path)
    assert dataset.StudyInstanceUID.startswith('2.25.') and dataset.StudyDate in ('', None)
    back = dataset.get_pixels_by_source_instance(
        [source.instance_uid for source in volume.sources],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert (back == mask).all()
