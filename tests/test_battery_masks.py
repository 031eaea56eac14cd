"""Rows 53 to 64 of the bad-input battery: masks and split.

A good patient of FUMPE's layout is spoiled in one way and must be read right or refused with a reason."""

import dataclasses
import json
import shutil
import subprocess
import sys
import zlib

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
from scipy.io import savemat

from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.core.volume import Volume
from pe_advseg.data.hospital_cache import build_cache
from pe_advseg.data.layouts import find_studies
from pe_advseg.data.public_datasets import check_manifest, write_manifest
from pe_advseg.data.read_study import read_study
from pe_advseg.data.split_patients import check_positive
from pe_advseg.data.splits import Split, check_leak
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
SHAPE = (8, 48, 48)
SECRET = 'PLANTED^NAME'  # must never show in an error or a note


def body(seed=0):
    "A body of about 30 HU that lies low in the picture, with a clot of 60 HU at its side in the upper slices."
    z, y, x = np.mgrid[:8, :48, :48]
    inside = ((y - 30) / 14) ** 2 + ((x - 24) / 20) ** 2 < 1
    noise = np.random.default_rng(seed).integers(-3, 4, SHAPE, np.int16)
    hu = np.where(inside, 30, -1000).astype(np.int16) + noise
    mask = ((x - 8) ** 2 + (y - 28) ** 2 < 9) & (z > 4)
    hu[mask] = 60
    return Volume(hu, (2, 0.8, 0.8), (0, 0, 0), AXIAL), mask.astype(np.uint8)


MASK = body()[1]


# ---- how a patient is spoiled: `in_files` is the mask as MATLAB shows it, (y, x, z)


def patient(folder, name='PAT001', seed=0):
    "A patient's scan in FUMPE's layout, and where the mask belongs."
    write_series(body(seed)[0], folder / 'F' / 'CT_scans' / name, SECRET)
    (folder / 'F' / 'GroundTruth').mkdir(exist_ok=True)
    return folder / 'F' / 'GroundTruth' / f'{name}.mat'


def mat(edit=lambda m: m, name='Mask', spoil=lambda data: data, **options):
    def make(folder):
        path = patient(folder)
        savemat(path, {name: edit(MASK.transpose(1, 2, 0))}, **options)
        path.write_bytes(spoil(path.read_bytes()))
        return find_studies(folder / 'F')[0]

    return make


def hdf(write, spoil=lambda data: data):
    def make(folder):
        path = patient(folder)
        with h5py.File(path, 'w', userblock_size=512) as file:
            write(file, folder)
        path.write_bytes(spoil(path.read_bytes()))
        return find_studies(folder / 'F')[0]

    return make


def nii(edit=lambda m: m):
    def make(folder):
        volume, mask = body()
        write_series(volume, folder / 'h' / 'p', SECRET)
        nibabel.save(
            nibabel.Nifti1Image(edit(mask.transpose(2, 1, 0)), volume.nifti_affine()),
            folder / 'h' / 'p' / 'mask.nii.gz',
        )
        return find_studies(folder / 'h')[0]

    return make


def matrix_element(shape, bytes_of_data, name=b'Mask'):
    "The start of MATLAB 5's element of a uint8 array that holds so many bytes."

    def words(kind, *values):
        return np.array([kind, 4 * len(values), *values], '<i4').tobytes() + bytes(len(values) % 2 * 4)

    inside = (
        words(6, 9, 0)
        + words(5, *shape)
        + np.array([1, len(name)], '<i4').tobytes()
        + name.ljust(8, b'\0')
        + np.array([2, bytes_of_data], '<u4').tobytes()
    )
    return np.array([14, len(inside) + bytes_of_data], '<u4').tobytes() + inside


def bomb(shape, bytes_of_data=2**30):
    "A file of about 1 MB that says its mask is of `shape` and inflates to 1 GB."

    def make(folder):
        path = patient(folder)
        packer = zlib.compressobj(9)
        packed = packer.compress(matrix_element(shape, bytes_of_data))
        zeros = bytes(2**24)
        for _ in range(bytes_of_data // 2**24):
            packed += packer.compress(zeros)
        packed += packer.flush()
        header = b'MATLAB 5.0 MAT-file'.ljust(124) + b'\x00\x01IM'
        path.write_bytes(header + np.array([15, len(packed)], '<u4').tobytes() + packed)
        assert path.stat().st_size < 2e6
        return find_studies(folder / 'F')[0]

    return make


def elsewhere(kind):
    "A version 7.3 file whose mask lies in another file, which holds a good one."

    def write(file, folder):
        with h5py.File(folder / 'other.mat', 'w') as other:
            other['Mask'] = np.ascontiguousarray(MASK.transpose(1, 2, 0).T)
        if kind == 'external link':
            file['Mask'] = h5py.ExternalLink(folder / 'other.mat', '/Mask')
        elif kind == 'soft link':
            file['inner'] = h5py.ExternalLink(folder / 'other.mat', '/')
            file['Mask'] = h5py.SoftLink('/inner/Mask')
        elif kind == 'virtual':
            layout = h5py.VirtualLayout(MASK.transpose(1, 2, 0).T.shape, np.uint8)
            layout[...] = h5py.VirtualSource(folder / 'other.mat', 'Mask', layout.shape)
            file.create_virtual_dataset('Mask', layout)
        else:
            (folder / 'raw').write_bytes(MASK.tobytes())
            file.create_dataset(
                'Mask', MASK.transpose(1, 2, 0).T.shape, np.uint8, external=[(str(folder / 'raw'), 0, MASK.size)]
            )

    return write


def flip_bit(study, folder):
    data = bytearray(study.mask.read_bytes())
    where = data.index(bytes([1, 1, 1]))  # inside the mask, stored plainly
    data[where] ^= 1
    study.mask.write_bytes(data)


# ---- what is asked for


def refused(words, file='PAT001/PAT001.mat', kind=MaskError):
    def check(study, folder):
        with pytest.raises(kind) as caught:
            read_study(study)
        assert words in str(caught.value) and caught.value.remedy, str(caught.value)
        assert caught.value.file == file
        for secret in (SECRET, 'PLANTED', str(folder)):
            assert secret not in str(caught.value)

    return check


def reads(note=None, mask=lambda m: m):
    def check(study, folder):
        volume, found = read_study(study)
        assert found.dtype == np.uint8 and np.array_equal(found, mask(MASK))
        assert any(note in said for said in volume.notes) if note else volume.notes == (), volume.notes

    return check


MEMORY_OF_A_REFUSAL = """
import json, resource, sys
from pathlib import Path
import h5py, scipy.io, SimpleITK
from pe_advseg.core.errors import InputError
from pe_advseg.data.read_study import read_study
from pe_advseg.data.studies import Study


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


study = Study('F', 'PAT001', Path(sys.argv[1]), Path(sys.argv[2]))
read_study(study.without_mask())
before, said = peak(), ''
try:
    read_study(study)
except InputError as error:
    said = str(error)
print(json.dumps([said, (peak() - before) / 1024]))
"""


def small_memory(words):
    "Refused with these words by a process of its own, whose memory grows by less than 300 MB."

    def check(study, folder):
        done = subprocess.run(
            [sys.executable, '-c', MEMORY_OF_A_REFUSAL, str(study.scan), str(study.mask)],
            capture_output=True,
            text=True,
            check=True,
        )
        said, megabytes = json.loads(done.stdout.splitlines()[-1])
        assert words in said, said
        assert megabytes < 300, f'{megabytes:.0f} MB'

    return check


def found_by_manifest(study, folder):
    "Read as if it were good, so only the recorded sums can tell."
    write_manifest(folder / 'F', folder / 'sums.json')
    flip_bit(study, folder)
    assert read_study(study)[1].sum() == MASK.sum() - 1
    with pytest.raises(InputError, match='SHA-256 differs'):
        check_manifest(folder / 'F', folder / 'sums.json')


def stray_value(study, folder):
    volume, found = read_study(study)
    assert found.sum() == MASK.sum() + 1 and any('2 embolus numbers made one' in note for note in volume.notes)


def no_positive(study, folder):
    cached = build_cache([study], folder / 'cache', progress=False)
    assert cached[study.key].positive == ()
    with pytest.raises(InputError, match='none of its 1 patients has clot'):
        check_positive(Split((study.key,), (), ()), {key: len(one.positive) for key, one in cached.items()})


SIDES = ('train', 'validation', 'test', 'pool')


def copy_of(make, sides, transductive=False):
    "PAT001 (labelled), PAT002 (another body) and what `make` made of PAT001's folder stand on these sides."

    def check(study, folder):
        savemat(patient(folder, 'PAT002', seed=1), {'Mask': MASK.transpose(1, 2, 0)})
        make(study.scan, folder)
        studies = find_studies(folder / 'F') + (find_studies(folder / 'G') if (folder / 'G').is_dir() else [])
        cached = build_cache(studies, folder / 'cache', progress=False)
        digests = {key: one.pixel_digest for key, one in cached.items()}

        def place(*keys):
            by_side = {side: tuple(key for key in keys if sides[key] == side) for side in SIDES}
            return Split(**by_side, transductive=transductive)

        assert set(sides) == set(digests) and len(set(digests.values())) == 2
        check_leak(place('F/PAT001', 'F/PAT002'), digests)  # two bodies leak nothing
        with pytest.raises(InputError, match='the same pixels') as caught:
            check_leak(place(*sides), digests)
        first, second = (key for key in sides if key != 'F/PAT002')
        assert first in str(caught.value) and second in str(caught.value) and SECRET not in str(caught.value)

    return check


def same_folder(scan, folder):
    shutil.copytree(scan, scan.with_name('PAT003'))
    shutil.copy(folder / 'F' / 'GroundTruth' / 'PAT001.mat', folder / 'F' / 'GroundTruth' / 'PAT003.mat')


def exported_again(place):
    "The same pixels with another PatientID, other UIDs, file names and order, uncompressed implicit VR."

    def make(scan, folder):
        target = folder / place
        target.mkdir(parents=True)
        for index, path in enumerate(sorted(scan.iterdir())):
            dataset = pydicom.dcmread(path)
            dataset.PatientID, dataset.PatientName, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
                'new',
                'new',
                '2.25.5',
                '2.25.6',
            )
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f'2.25.7{index}'
            dataset.InstanceNumber = 90 - index
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            dataset.save_as(target / f'X{90 - index}', implicit_vr=True, little_endian=True)

    return make


@dataclasses.dataclass
class Case:
    row: str
    make: object
    expect: object


outside = 'lies outside the body: is it flipped or shifted?'
CASES = [
    Case(
        '53-one-slice-fewer',
        mat(lambda m: m[..., 1:]),
        refused('the mask is (48, 48, 7) (y, x, z), its scan is (48, 48, 8)'),
    ),
    Case(
        '53-one-slice-more',
        mat(lambda m: np.concatenate([m, m[..., :1]], -1)),
        refused('the mask is (48, 48, 9) (y, x, z), its scan is (48, 48, 8)'),
    ),
    Case(
        '53-nifti',
        nii(lambda m: m[..., 1:]),
        refused('the mask is (48, 48, 7), its scan is (48, 48, 8) (x, y, z)', 'p/mask.nii.gz'),
    ),
    Case('54-cropped', mat(lambda m: m[1:]), refused('the mask is (47, 48, 8)')),
    Case('54-other-order-of-axes', mat(lambda m: m.transpose(2, 0, 1)), refused('the mask is (8, 48, 48)')),
    Case('54-two-dimensions', mat(lambda m: m[..., 0]), refused('the mask is (48, 48)')),
    Case('55-255', mat(lambda m: m * np.uint8(255)), reads('mask of 255 made 1')),
    Case('55-2', mat(lambda m: m * 2), refused('the mask holds the values 0, 2')),
    Case('55-half', mat(lambda m: m * 0.5), refused('the mask holds the values 0, 0.5')),
    Case('55-negative', mat(lambda m: -m.astype(np.int8)), refused('the mask holds the values -1, 0')),
    Case('55-not-a-number', mat(lambda m: np.where(m, np.nan, 0)), refused('the mask holds the values 0, nan')),
    Case('56-version-5', mat(), reads()),
    Case('56-version-5-compressed', mat(do_compression=True), reads()),
    Case('56-version-4', mat(lambda m: m.reshape(48, -1, order='F'), format='4'), reads()),
    Case(
        '56-version-7.3',
        hdf(lambda file, _: file.create_dataset('Mask', data=MASK.transpose(1, 2, 0).T, compression='gzip')),
        reads(),
    ),  # axes reversed
    *(
        Case(f'56-version-7.3-{kind.replace(" ", "-")}', hdf(elsewhere(kind)), refused(words))
        for kind, words in (
            ('external link', 'has no variable Mask'),
            ('soft link', 'has no variable Mask'),
            ('virtual', 'keeps its mask in another file'),
            ('external storage', 'keeps its mask in another file'),
        )
    ),
    *(
        Case(f'57-{kind}', mat(spoil=spoil), refused(words))
        for kind, spoil, words in (
            ('cut-in-the-header', lambda d: d[:100], 'no readable MATLAB file'),
            ('cut-in-the-pixels', lambda d: d[: len(d) // 2], 'is damaged'),
            ('empty', lambda d: b'', 'no readable MATLAB file'),
            ('text', lambda d: b'text' * 99, 'no readable MATLAB file'),
        )
    ),
    Case(
        '57-version-7.3-cut',
        hdf(
            lambda file, _: file.create_dataset('Mask', data=MASK.transpose(1, 2, 0).T),
            spoil=lambda d: d[: len(d) // 2],
        ),
        refused('no readable MATLAB file'),
    ),
    Case('58-bit-flip-1-to-0', mat(), found_by_manifest),
    Case(
        '58-bit-flip-0-to-64', mat(spoil=lambda d: d[:-200] + bytes([d[-200] ^ 64]) + d[-199:]), stray_value
    ),  # read, but never in silence
    Case('59-bomb', bomb((1024, 1024, 1024)), small_memory('the mask is (1024, 1024, 1024)')),
    Case('59-bomb-says-the-right-shape', bomb((48, 48, 8)), small_memory('')),
    Case(
        '59-bomb-7.3',
        hdf(
            lambda file, _: file.create_dataset('Mask', (1024,) * 3, np.uint8, chunks=(64, 64, 64), compression='gzip')
        ),
        small_memory('the mask is (1024, 1024, 1024)'),
    ),
    Case('60-flipped-onto-air', mat(lambda m: m[::-1]), reads(outside, lambda m: m[:, ::-1])),
    Case('60-transposed-onto-air', mat(lambda m: m.transpose(1, 0, 2)), reads(outside, lambda m: m.transpose(0, 2, 1))),
    Case('60-flipped-median', mat(lambda m: m[::-1]), reads('median under the mask is', lambda m: m[:, ::-1])),
    Case(
        '60-flipped-onto-tissue', mat(lambda m: m[..., ::-1]), reads(None, lambda m: m[::-1])
    ),  # cannot be proven: said here, not hidden
    Case('61-empty', mat(lambda m: m * 0), reads(mask=lambda m: m * 0)),
    Case('61-all-empty', mat(lambda m: m * 0), no_positive),
    Case('62-other-name', mat(name='GT'), refused('has no variable Mask, but GT')),
    Case('62-no-variable', mat(spoil=lambda d: d[:128]), refused('has no variable Mask, but none')),
    Case('62-not-an-array', mat(lambda m: np.full((48, 48, 8), 'a')), refused('Mask is no array of numbers')),
    Case(
        '63-copied-folder',
        mat(),
        copy_of(same_folder, {'F/PAT001': 'train', 'F/PAT002': 'validation', 'F/PAT003': 'test'}),
    ),
    Case(
        '63-copied-folder-validation',
        mat(),
        copy_of(same_folder, {'F/PAT001': 'validation', 'F/PAT002': 'train', 'F/PAT003': 'test'}),
    ),
    Case(
        '63-new-patient-id',
        mat(),
        copy_of(
            exported_again('F/CT_scans/PAT003'), {'F/PAT001': 'train', 'F/PAT002': 'validation', 'F/PAT003': 'test'}
        ),
    ),
    Case(
        '64-unlabelled-copy-of-test',
        mat(),
        copy_of(exported_again('G/anonymous'), {'F/PAT001': 'test', 'F/PAT002': 'train', 'G/anonymous': 'pool'}),
    ),
    Case(
        '64-unlabelled-copy-transductive',
        mat(),
        copy_of(
            exported_again('G/anonymous'),
            {'F/PAT001': 'test', 'F/PAT002': 'train', 'G/anonymous': 'pool'},
            transductive=True,
        ),
    ),
    Case(
        '64-unlabelled-copy-of-train',
        mat(),
        copy_of(exported_again('G/anonymous'), {'F/PAT001': 'train', 'F/PAT002': 'test', 'G/anonymous': 'pool'}),
    ),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: f'row{case.row}')
def test_battery(case, tmp_path):
    case.expect(case.make(tmp_path), tmp_path)


def test_every_row_is_there():
    assert {case.row.split('-')[0] for case in CASES} == {f'{number}' for number in range(53, 65)}
    assert len({case.row for case in CASES}) == len(CASES)
