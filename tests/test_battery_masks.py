"""Rows 53 to 64 of the bad-input battery: masks and split. Every fault is made on the same good FUMPE patient."""
import tracemalloc

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from pe_advseg.ct import InputError, Volume
from pe_advseg.datasets import MaskError, find_studies, read_study
from pe_advseg.dicom import pixel_digest, write_series
from pe_advseg.public_datasets import check_manifest, write_manifest
from pe_advseg.splits import Split, check_leak, check_positive

AXIAL = np.array([[0., 0, 1], [0, 1, 0], [1, 0, 0]])
SHAPE = (8, 40, 48)


def body():
    "A body of 30 HU in air with an off-centre clot of 60 HU."
    z, y, x = np.mgrid[:8, :40, :48]
    hu = np.where(((y - 20) / 16) ** 2 + ((x - 24) / 20) ** 2 < 1, 30, -1000).astype(np.int16)
    mask = ((x - 34) ** 2 + (y - 16) ** 2 < 9) & (z > 4)
    hu[mask] = 60
    return Volume(hu, (2, .8, .8), (0, 0, 0), AXIAL), mask.astype(np.uint8)


def study(folder, edit=lambda m: m, name='Mask', **options):
    volume, mask = body()
    write_series(volume, folder / 'F' / 'CT_scans' / 'PAT001', 'P')
    (folder / 'F' / 'GroundTruth').mkdir()
    values = edit(mask.transpose(1, 2, 0))
    if values is not None: savemat(folder / 'F' / 'GroundTruth' / 'PAT001.mat', {name: values}, **options)
    return find_studies(folder / 'F')[0]


@pytest.mark.parametrize('row, edit, name, words', [
    (53, lambda m: m[..., 1:], 'Mask', r'\(40, 48, 7\).*\(40, 48, 8\)'), (54, lambda m: m[1:], 'Mask', r'\(39, 48, 8\)'),
    (55, lambda m: m * 2, 'Mask', 'values 0, 2'), (55.5, lambda m: m * .5, 'Mask', 'values 0, 0.5'), (62, lambda m: m, 'GT', 'no variable Mask, but GT')])
def test_refused(tmp_path, row, edit, name, words):
    with pytest.raises(MaskError, match=words): read_study(study(tmp_path, edit, name))


def test_row_55_255_becomes_1(tmp_path):
    volume, mask = read_study(study(tmp_path, lambda m: m * 255))
    np.testing.assert_array_equal(mask, body()[1])
    assert 'mask of 255 made 1' in volume.notes


@pytest.mark.parametrize('kind', ['5', '4', '7.3'])
def test_row_56_every_matlab_format(tmp_path, kind):
    one = study(tmp_path) if kind == '5' else study(tmp_path, lambda m: m.reshape(40, -1, order='F'), format='4') if kind == '4' else study(tmp_path)
    if kind == '7.3':
        with h5py.File(one.mask, 'w', userblock_size=512) as file: file['Mask'] = body()[1].transpose(1, 2, 0).T
    np.testing.assert_array_equal(read_study(one)[1], body()[1])


@pytest.mark.parametrize('content', [lambda d: d[:200], lambda d: b'', lambda d: b'text' * 99])
def test_row_57_cut_empty_text(tmp_path, content):
    one = study(tmp_path)
    one.mask.write_bytes(content(one.mask.read_bytes()))
    with pytest.raises(MaskError): read_study(one)


def test_row_58_a_flipped_bit(tmp_path):
    one = study(tmp_path)
    write_manifest(tmp_path / 'F', tmp_path / 'sums.json')
    data = bytearray(one.mask.read_bytes()); data[-200] ^= 1
    one.mask.write_bytes(data)
    with pytest.raises(InputError, match='SHA-256 differs'): check_manifest(tmp_path / 'F', tmp_path / 'sums.json')


def test_row_59_bomb(tmp_path):
    one = study(tmp_path, lambda m: np.zeros((900, 900, 60), np.uint8), do_compression=True)
    tracemalloc.start()
    with pytest.raises(MaskError, match='900, 900, 60'): read_study(one)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 300e6      # scipy inflates the first 128 kB of the file whatever they hold: at most 1,032 times as much


def test_row_60_a_mask_on_air_is_doubted(tmp_path):
    assert not any('flipped' in note for note in read_study(study(tmp_path / 'good'))[0].notes)
    notes = read_study(study(tmp_path / 'bad', lambda m: np.roll(m, 22, 0)))[0].notes
    assert any('outside the body' in note for note in notes) and any('median under the mask' in note for note in notes)


def test_row_61_empty_masks(tmp_path):
    assert not read_study(study(tmp_path, lambda m: m * 0))[1].any()
    with pytest.raises(InputError, match='none of its 1 patients has clot'): check_positive(Split(('a/1',), (), ('a/2',)), {'a/1': 3, 'a/2': 0})


@pytest.mark.parametrize('row, split', [(63, Split(('h/a',), (), ('h/b',))), (64, Split((), (), ('h/a',), ('h/b',)))])
def test_same_pixels(tmp_path, row, split):
    digest = pixel_digest(body()[0])
    with pytest.raises(InputError, match='same pixels'): check_leak(split, {'h/a': digest, 'h/b': digest})
