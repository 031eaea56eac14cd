"""The cache under faults, killing and crowds; draws that depend on seed, step and item alone."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from pe_advseg.core.errors import InputError, MaskError
from pe_advseg.core.volume import Volume
from pe_advseg.data import content_digests, study_cache
from pe_advseg.data.arrays import CompressedArray, open_slices, save_slices
from pe_advseg.data.batches import Loader, draw_batch
from pe_advseg.data.cache import CachedStudy, embolus_points
from pe_advseg.data.hospital_cache import build_cache
from pe_advseg.data.patches import IGNORE, Draw, SliceConfig, cut, draw_corner
from pe_advseg.data.read_study import read_study
from pe_advseg.data.studies import Study
from pe_advseg.data.study_cache import cache_study
from pe_advseg.phantom.phantom_masks import write_plain_nifti
from pe_advseg.scans.series import pixel_digest
from pe_advseg.scans.write_series import write_series


def make_patient(folder: Path, name: str, seed: int = 0, shape=(8, 24, 28)) -> Study:
    "A scan of noise and its mask as a hospital would store them."
    rng = np.random.default_rng(seed)
    volume = Volume(rng.integers(-1000, 1000, shape).astype(np.int16), (2.0, 1.0, 1.0), (0, 0, 0), np.eye(3)[:, ::-1])
    write_series(volume, folder / name, name, seed_uid=str(seed))
    mask = np.zeros(shape, np.uint8)
    mask[2:4, 5:9, 5:9] = mask[6, 20:22, 20:22] = 1
    write_plain_nifti(folder / name / 'mask.nii.gz', mask, volume)
    return Study('place', name, folder / name, folder / name / 'mask.nii.gz')


@pytest.fixture()
def study(tmp_path):
    return make_patient(tmp_path / 'scans', 'one')


def arrays(cached) -> tuple:
    return tuple(np.array(part) for part in (cached.hu, cached.mask, cached.native_mask, cached.emboli))


def same(one, two) -> None:
    for a, b in zip(arrays(one), arrays(two), strict=False):
        np.testing.assert_array_equal(a, b)
    assert (one.positive, one.pixel_digest, one.spacing, one.native_shape) == (
        two.positive,
        two.pixel_digest,
        two.spacing,
        two.native_shape,
    )


# --- keyed by content -----------------------------------------------------------------------------------------


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_is_cached_is_what_was_read(study, tmp_path):
    volume, mask = read_study(study)
    for pixel in (None, 2.0):
        for how in (None, 'blosc2'):
            cached = cache_study(study, tmp_path / 'cache', pixel, how)
            assert cached.pixel_digest == pixel_digest(volume) and cached.key == 'place/one'
            np.testing.assert_array_equal(cached.native_mask, mask)
            if pixel is None:
                np.testing.assert_array_equal(cached.hu, volume.hu)
            assert cached.positive == tuple(np.flatnonzero(np.asarray(cached.mask).any((1, 2))))
    assert len(list((tmp_path / 'cache').glob('*/study.json'))) == 4


def test_a_copy_with_equal_dates_but_other_pixels_is_another_study(study, tmp_path):
    first = cache_study(study, tmp_path / 'cache')
    copy = Path(shutil.copytree(study.scan, tmp_path / 'copy' / 'one'))  # copies dates, too
    for file in sorted(copy.glob('*.dcm'))[:1]:
        seen = file.stat()
        flip_last_byte(file)
        os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    moved = Study('place', 'one', copy, copy / 'mask.nii.gz')
    second = cache_study(moved, tmp_path / 'cache')
    assert second.folder != first.folder and second.pixel_digest != first.pixel_digest
    # and the same under the very same path
    for file in study.scan.glob('*'):
        os.utime(copy / file.name, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    shutil.rmtree(study.scan)
    shutil.move(copy, study.scan)
    assert cache_study(study, tmp_path / 'cache').pixel_digest == second.pixel_digest


def test_new_dates_or_a_new_place_do_not_read_it_again(study, tmp_path, monkeypatch):
    first = cache_study(study, tmp_path / 'cache')
    monkeypatch.setattr(study_cache, 'read_study', None)  # whoever reads now, fails
    for file in study.scan.glob('*'):
        os.utime(file, (0, 0))
    assert cache_study(study, tmp_path / 'cache').folder == first.folder
    copy = Path(shutil.copytree(study.scan, tmp_path / 'copy' / 'one'))
    assert cache_study(Study('place', 'one', copy, copy / 'mask.nii.gz'), tmp_path / 'cache').folder == first.folder


def test_untouched_files_are_not_even_read(study, tmp_path, monkeypatch):
    first = cache_study(study, tmp_path / 'cache')
    later = time.time() + 10
    monkeypatch.setattr(content_digests.time, 'time', lambda: later)  # ten seconds on: what was seen may be remembered
    cache_study(study, tmp_path / 'cache')
    monkeypatch.setattr(content_digests, '_digest_or_error', None)
    assert cache_study(study, tmp_path / 'cache').folder == first.folder
    assert build_cache([study], tmp_path / 'cache', progress=False)['place/one'].folder == first.folder


def test_configuration_and_mask_make_another_study(study, tmp_path):
    folders = [
        cache_study(study, tmp_path / 'cache', *options).folder for options in ((), (2.0,), (2.5,), (None, 'blosc2'))
    ]
    folders += [
        cache_study(other, tmp_path / 'cache').folder
        for other in (study.without_mask(), dataclasses.replace(study, patient='two'))
    ]
    assert len(set(folders)) == 6
    assert cache_study(study.without_mask(), tmp_path / 'cache').mask is None


# --- damage ---------------------------------------------------------------------------------------------------

DAMAGES = {
    'truncated': lambda folder: os.truncate(folder / 'hu.npy', 200),
    'emptied': lambda folder: os.truncate(folder / 'hu.npy', 0),
    'one bit': lambda folder: flip_last_byte(folder / 'hu.npy'),
    'mask gone': lambda folder: (folder / 'mask.npy').unlink(),
    'emboli gone': lambda folder: (folder / 'emboli.npy').unlink(),
    'json gone': lambda folder: (folder / 'study.json').unlink(),
    'json cut': lambda folder: os.truncate(folder / 'study.json', 50),
    'json is no record': lambda folder: (folder / 'study.json').write_text('[1, 2]'),
    'json edited': lambda folder: (folder / 'study.json').write_text(
        (folder / 'study.json').read_text().replace('"positive": [2', '"positive": [1')
    ),
    'everything gone': lambda folder: [file.unlink() for file in folder.iterdir()],
    'memos are noise': lambda folder: [memo.write_bytes(b'\xff{') for memo in (folder.parent / '.memo').glob('*')],
}


@pytest.mark.parametrize('name', DAMAGES)
@pytest.mark.parametrize('pixel', [None, 2.0])
def test_a_damaged_cache_is_made_anew(study, tmp_path, name, pixel):
    good = cache_study(study, tmp_path / 'cache', pixel)
    right = arrays(good)
    del good
    cache_folder = next(path.parent for path in (tmp_path / 'cache').glob('*/study.json'))
    DAMAGES[name](cache_folder)
    again = cache_study(study, tmp_path / 'cache', pixel)
    for one, two in zip(arrays(again), right, strict=False):
        np.testing.assert_array_equal(one, two)
    assert again.positive == (2, 3, 6)
    assert not list((tmp_path / 'cache').glob('.partial-*'))


def test_damage_is_seen_through_a_memo(study, tmp_path, monkeypatch):
    "The memo of the cache's own files must not vouch for files changed since."
    later = time.time() + 10
    monkeypatch.setattr(content_digests.time, 'time', lambda: later)
    cache_folder = cache_study(study, tmp_path / 'cache').folder
    right = arrays(cache_study(study, tmp_path / 'cache'))
    seen = (cache_folder / 'hu.npy').stat()
    flip_last_byte(cache_folder / 'hu.npy')
    os.utime(cache_folder / 'hu.npy', ns=(seen.st_atime_ns, seen.st_mtime_ns))
    np.testing.assert_array_equal(cache_study(study, tmp_path / 'cache').hu, right[0])


def test_a_scan_that_changes_while_it_is_read(study, tmp_path, monkeypatch):
    def read_and_change(wanted):
        result = read_study(wanted)
        flip_last_byte(sorted(study.scan.glob('*.dcm'))[0])
        return result

    monkeypatch.setattr(study_cache, 'read_study', read_and_change)
    with pytest.raises(InputError, match='changed while'):
        cache_study(study, tmp_path / 'cache')
    assert not list((tmp_path / 'cache').glob('*/study.json')) and not list((tmp_path / 'cache').glob('.partial-*'))


def test_a_full_disk_leaves_nothing_behind(study, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(study_cache, 'save_slices', full)
    with pytest.raises(InputError, match='^one: cannot be written to the cache .No space left'):
        cache_study(study, tmp_path / 'cache')
    assert not list((tmp_path / 'cache').glob('*/study.json')) and not list((tmp_path / 'cache').glob('.partial-*'))


@pytest.mark.parametrize('workers', [1, 2])
def test_one_bad_study_does_not_cost_the_others(tmp_path, workers):
    studies = [make_patient(tmp_path / 'scans', name, seed) for seed, name in enumerate(('a', 'b', 'c', 'd'))]
    os.truncate(sorted(studies[1].scan.glob('*.dcm'))[3], 600)
    (studies[2].scan / 'mask.nii.gz').write_bytes(b'no mask')
    with pytest.raises(InputError, match=r'^b/.*c/mask\.nii\.gz'):
        build_cache(studies, tmp_path / 'cache', workers=workers, progress=False)
    with pytest.raises(MaskError, match='^c/'):
        build_cache(studies[2:], tmp_path / 'cache', progress=False)
    assert len(list((tmp_path / 'cache').glob('*/study.json'))) == 2
    good = build_cache([studies[3], studies[0]], tmp_path / 'cache', progress=False)
    assert list(good) == ['place/d', 'place/a']


def test_a_missing_scan_or_mask_is_the_readers_to_report(study, tmp_path):
    (study.scan / 'mask.nii.gz').unlink()
    with pytest.raises(InputError, match='^one/'):
        cache_study(study, tmp_path / 'cache')
    with pytest.raises(InputError, match='^one/'):
        cache_study(Study('place', 'one', tmp_path / 'nowhere'), tmp_path / 'cache')


def test_a_cache_that_may_only_be_read(study, tmp_path):
    first = cache_study(study, tmp_path / 'cache')
    if os.geteuid() == 0:
        pytest.skip('root may write everywhere')
    for path in (tmp_path / 'cache').rglob('*'):
        path.chmod(0o555 if path.is_dir() else 0o444)
    same(first, build_cache([study], tmp_path / 'cache', progress=False)['place/one'])


# --- crowds and kills -----------------------------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
from pe_advseg.data import study_cache
from pe_advseg.data.studies import Study

scan, folder, wait = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
write = study_cache._write_study


def slow(study, folder, *options):
    write(study, folder, *options)
    print('written', flush=True)
    time.sleep(wait)


study_cache._write_study = slow
study = Study('place', scan.name, scan, scan / 'mask.nii.gz')
print(study_cache.cache_study(study, folder).folder.name, flush=True)
"""


def child(study, folder, wait=0.0):
    return subprocess.Popen(
        [sys.executable, '-c', CHILD, str(study.scan), str(folder), str(wait)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_want_one_study_make_it_once(study, tmp_path):
    children = [child(study, tmp_path / 'cache', 0.5) for _ in range(3)]
    outputs = [process.communicate(timeout=100) for process in children]
    assert [process.returncode for process in children] == [0, 0, 0], outputs
    assert sum('written' in output for output, _ in outputs) == 1
    assert len({output.split()[-1] for output, _ in outputs}) == 1
    same(cache_study(study, tmp_path / 'cache'), cache_study(study, tmp_path / 'another'))


def test_killed_in_the_middle(study, tmp_path):
    process = child(study, tmp_path / 'cache', 100)
    assert process.stdout.readline() == 'written\n'
    (orphan,) = (tmp_path / 'cache').glob('.partial-*')
    other = make_patient(tmp_path / 'scans', 'other', 3)
    build_cache([other], tmp_path / 'cache', progress=False)
    assert orphan.exists()  # somebody is at work there
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    assert orphan.exists() and len(list((tmp_path / 'cache').glob('*/study.json'))) == 1  # that of `other`
    build_cache([make_patient(tmp_path / 'scans', 'third', 4)], tmp_path / 'cache', progress=False)
    assert not orphan.exists()  # whoever writes next removes it
    same(cache_study(study, tmp_path / 'cache'), cache_study(study, tmp_path / 'another'))


def seen_from_elsewhere(cached) -> tuple:
    return arrays(cached) if cached.mask is not None else (np.array(cached.hu), cached.mask, cached.emboli)


@pytest.mark.parametrize('how', [None, 'blosc2'])
def test_other_processes_open_the_same_files(study, tmp_path, how):
    cached = cache_study(study, tmp_path / 'cache', 2.0, how)
    with ProcessPoolExecutor(1, get_context('spawn')) as pool:
        for one, two in zip(pool.submit(seen_from_elsewhere, cached).result(), arrays(cached), strict=False):
            np.testing.assert_array_equal(one, two)
        hidden = pool.submit(seen_from_elsewhere, cached.without_mask()).result()
    assert hidden[1] is None and hidden[2] is None


def test_workers_give_what_one_process_gives(tmp_path):
    studies = [make_patient(tmp_path / 'scans', name, seed) for seed, name in enumerate(('a', 'b', 'c'))]
    one, two = (build_cache(studies, tmp_path / f'{workers}', 2.0, workers, progress=False) for workers in (1, 2))
    assert list(one) == list(two) == ['place/a', 'place/b', 'place/c']
    for key in one:
        same(one[key], two[key])


PEAK = """
import sys
from pathlib import Path
from pe_advseg.data.studies import Study
from pe_advseg.data.study_cache import cache_study


def peak():
    line = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


def cached(name):
    return cache_study(Study('place', name, scans / name, scans / name / 'mask.nii.gz'), folder, 0.9, compression)


scans, folder, compression = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] or None
cached('small')
Path('/proc/self/clear_refs').write_text('5')
before = peak()
slices, rows, columns = cached('large').native_shape
print((peak() - before) / (3 * slices * rows * columns))
"""


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux tells a process its largest size')
@pytest.mark.parametrize('how', ['', 'blosc2'])
def test_a_worker_stays_under_two_studies(tmp_path, how):
    "Peak of building a study, reading included, in studies: HU (2 bytes) and mask (1 byte) of every voxel."
    make_patient(tmp_path, 'small')
    make_patient(tmp_path, 'large', shape=(80, 384, 384))
    result = subprocess.run(
        [sys.executable, '-c', PEAK, str(tmp_path), str(tmp_path / 'cache'), how], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 2


# --- files of slices ------------------------------------------------------------------------------------------

INDEX = st.one_of(
    st.integers(-6, 5),
    st.slices(6),
    st.lists(st.integers(-6, 5), min_size=1, max_size=8).map(np.array),
    st.just(Ellipsis),
)


@settings(max_examples=150, deadline=None)
@given(INDEX, st.lists(st.one_of(st.slices(7), st.integers(-7, 6)), max_size=2))
def test_a_compressed_array_is_indexed_like_an_array(tmp_path_factory, first, rest):
    folder = tmp_path_factory.getbasetemp()
    values = np.arange(6 * 7 * 7, dtype=np.int16).reshape(6, 7, 7)
    if not (folder / 'a.b2nd').exists():
        save_slices(folder / 'a.b2nd', values, 6, np.int16)
    packed, index = open_slices(folder / 'a.b2nd'), (first, *rest)
    assert isinstance(packed, CompressedArray)
    if first is Ellipsis and len(rest) > 2:
        return
    try:
        expected = values[index]
    except IndexError:
        with pytest.raises(IndexError):
            packed[index]
        return
    np.testing.assert_array_equal(packed[index], expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.4))
def test_emboli_are_scipys_components(seed, density):
    mask = (np.random.default_rng(seed).random((5, 7, 6)) < density).astype(np.uint8)
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    points = embolus_points(mask)
    assert len(points) == mask.sum() and (count == 0 or points[:, 0].max() + 1 == count)
    np.testing.assert_array_equal(labels[tuple(points[:, 1:].T)], points[:, 0] + 1)
    assert (np.diff(points[:, 0]) >= 0).all()


# --- draws ----------------------------------------------------------------------------------------------------


def toy(seed=0, shape=(10, 30, 34), clots=((2, 5, 5, 3, 6), (7, 20, 24, 1, 2)), name='1', known=True) -> CachedStudy:
    "A study by hand: noise, and clots (z, y, x, slices, side)."
    hu = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
    mask = np.zeros(shape, np.uint8)
    for z, y, x, slices, side in clots:
        mask[z : z + slices, y : y + side, x : x + side] = 1
    return CachedStudy(
        f'toy/{name}',
        Path('.'),
        hu,
        mask,
        (1.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
        shape,
        tuple(np.flatnonzero(mask.any((1, 2))).tolist()),
        name,
        Study('toy', name, Path('.')),
        mask,
        embolus_points(mask) if known else None,
    )


STUDIES = [toy(0), toy(1, (7, 20, 22), ((3, 8, 8, 1, 2),), '2'), toy(2, (5, 40, 40), (), '3')]
CONFIGS = st.builds(
    SliceConfig,
    patch=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    slices=st.sampled_from([1, 3, 5]),
    positive_share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    per_slice_scaling=st.booleans(),
    by_embolus=st.booleans(),
    hard_negatives=st.sampled_from([0.0, 0.5, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(
    CONFIGS,
    st.integers(0, 2**40),
    st.integers(0, 10**6),
    st.integers(0, 50),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_draw_is_a_function_of_seed_step_and_item(config, seed, step, first, sizes, labelled):
    "However a batch is divided, whatever was drawn before, in whatever order."
    whole = draw_batch(STUDIES, sum(sizes), config, Draw(seed, step), 'x', labelled, first)
    starts = [first + sum(sizes[:i]) for i in range(len(sizes))]
    parts = {}
    for start, size in reversed(list(zip(starts, sizes, strict=False))):
        draw_batch(STUDIES, 2, config, Draw(seed, step + 1), 'x', labelled)  # something else in between
        parts[start] = draw_batch(STUDIES, size, config, Draw(seed, step), 'x', labelled, start)
    joined = [parts[start] for start in starts]
    assert torch.equal(torch.cat([part.image for part in joined]), whole.image)
    assert torch.equal(torch.cat([part.mask for part in joined]), whole.mask)
    assert [key for part in joined for key in part.keys] == whole.keys and [
        z for part in joined for z in part.slice_indices
    ] == whole.slice_indices


@settings(max_examples=60, deadline=None)
@given(CONFIGS, st.integers(0, 10**6))
def test_a_patch_holds_what_it_was_drawn_for(config, step):
    batch = draw_batch(STUDIES, 6, config, Draw(0, step), 'x', True)
    wanted = [int((item + 1) * config.positive_share) > int(item * config.positive_share) for item in range(6)]
    for mask, want in zip(batch.mask, wanted, strict=False):
        assert not want or (mask == 1).any()
    assert set(batch.mask.unique().tolist()) <= {0, 1, IGNORE}
    assert batch.image.shape == (6, config.slices, *config.patch) and batch.image.abs().max() <= 1
    if config.hard_negatives == 1:
        for mask, want, key, z in zip(batch.mask, wanted, batch.keys, batch.slice_indices, strict=False):
            assert want or (
                key != 'toy/3' and not (mask == 1).any() and z not in {s.key: s for s in STUDIES}[key].positive
            )


def test_small_emboli_are_drawn_as_often_as_large_ones():
    "And patients as often as each other, and slices of an embolus, too (chi-square, 1 % level, one fixed seed)."
    studies = [
        toy(0, (20, 60, 60), ((1, 5, 5, 12, 20), (16, 50, 50, 1, 2), (3, 50, 5, 3, 3))),
        toy(1, (8, 60, 60), ((2, 9, 9, 4, 8),), '2'),
    ]
    config, counts, levels = SliceConfig((8, 8), by_embolus=True), {}, []
    for step in range(1500):
        generator = Draw(0, step).generator('x')
        number = int(generator.integers(2))
        study = studies[number]
        z, y, x = draw_corner(study, config, generator, True)
        points = study.emboli
        seen = points[
            (points[:, 1] == z)
            & (points[:, 2] >= y)
            & (points[:, 2] < y + 8)
            & (points[:, 3] >= x)
            & (points[:, 3] < x + 8),
            0,
        ]
        (embolus,) = set(seen.tolist())  # they lie far apart
        counts[number, embolus] = counts.get((number, embolus), 0) + 1
        if (number, embolus) == (0, 0):
            levels.append(z)
    patients = [sum(value for (number, _), value in counts.items() if number == wanted) for wanted in (0, 1)]
    assert stats.chisquare(patients).pvalue > 0.01
    assert stats.chisquare([counts[0, embolus] for embolus in range(3)]).pvalue > 0.01
    assert stats.chisquare(np.bincount(levels, minlength=13)[1:13]).pvalue > 0.01


def test_by_slice_large_emboli_crowd_out_small_ones():
    "The default, as committed results have it: this is what `by_embolus` is for."
    study = toy(0, (20, 60, 60), ((1, 5, 5, 12, 20), (5, 50, 50, 1, 2)))
    corners = [draw_corner(study, SliceConfig((8, 8)), Draw(0, step).generator('x'), True) for step in range(500)]
    assert np.mean([y > 40 for _, y, _ in corners]) < 0.02


def test_emboli_unknown_are_found_when_needed():
    for step in range(20):
        corners = [
            draw_corner(toy(known=known), SliceConfig((8, 8), by_embolus=True), Draw(0, step).generator('x'), True)
            for known in (True, False)
        ]
        assert corners[0] == corners[1]


def test_a_patient_whose_every_slice_holds_clot_has_no_hard_negative():
    full = toy(shape=(4, 20, 20), clots=((0, 5, 5, 4, 3),))
    batch = draw_batch([full], 4, SliceConfig((8, 8), hard_negatives=1.0), Draw(0, 0), 'x', True)
    assert len(batch.slice_indices) == 4


@pytest.mark.parametrize('workers', [1, 2, 3])
def test_a_loader_gives_what_was_asked_for(workers):
    def make(step):
        return draw_batch(STUDIES, 2, SliceConfig((8, 8)), Draw(0, step), 'x', True)

    loader = Loader(make, workers)
    for step in (0, 1, 2, 7, 3, 4, 4):
        assert torch.equal(loader(step).image, make(step).image)
    loader.close()


def test_two_threads_read_a_compressed_study(study, tmp_path):
    packed, plain = (cache_study(study, tmp_path / 'cache', None, how) for how in ('blosc2', None))
    config = SliceConfig((16, 16), 3, by_embolus=True)
    loader = Loader(lambda step: draw_batch([packed], 4, config, Draw(0, step), 'x', True), 4)
    for step in range(40):
        assert torch.equal(loader(step).image, draw_batch([plain], 4, config, Draw(0, step), 'x', True).image)
    loader.close()


def test_neighbouring_slices_at_the_ends_repeat():
    study = toy()
    hu, _ = cut(study, 0, 0, 0, SliceConfig((8, 8), 5))
    np.testing.assert_array_equal(hu, study.hu[[0, 0, 0, 1, 2], :8, :8])
