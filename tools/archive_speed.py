"""Time that a study takes from an archive, beside reading it from disk: `python tools/archive_speed.py [slices]`.

Orthanc runs in a network of its own that has loopback only (see tests/support/archive.py): this needs root, `orthanc`
and `orthanc-dicomweb`. Prints seconds and their ratio for each time, and the largest memory of this process."""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'tests'))
from support.archive import orthanc, why_not

from pe_advseg.annotation.archive_client import Archive
from pe_advseg.annotation.archive_search import Question, find_archived
from pe_advseg.annotation.fetch import fetched_series, private_folder
from pe_advseg.core.volume import Volume
from pe_advseg.scans.series import read_series
from pe_advseg.scans.write_series import write_series

AXIAL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])


def make_scan(folder: Path, slices: int) -> Volume:
    "A scan of 512 x 512 pixels of noise, which no encoding makes smaller."
    rng = np.random.default_rng(0)
    hu = np.stack([rng.integers(-1000, 1500, (512, 512)).astype(np.int16) for _ in range(slices)])
    volume = Volume(hu, (1.0, 0.7, 0.7), (-180.0, -180.0, -500.0), AXIAL)
    write_series(volume, folder, 'speed', header=dict(StudyDescription='speed'))
    return volume


def seconds_from_disk(folder: Path) -> float:
    begun = time.perf_counter()
    read_series(folder)
    return time.perf_counter() - begun


def seconds_from_archive(url: str, out: Path) -> float:
    begun = time.perf_counter()
    archive = Archive(url)
    [wanted] = find_archived(archive, Question(description='speed'))
    with private_folder(out, [wanted.series]) as place, fetched_series(archive, wanted, place) as folder:
        read_series(folder)
        return time.perf_counter() - begun


def main(slices: int = 500, times: int = 3) -> None:
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as place, orthanc(Path(place) / 'orthanc') as server:
        make_scan(Path(place) / 'scan', slices)
        server.put(Path(place) / 'scan')
        for _ in range(times):
            disk, archive = (
                seconds_from_disk(Path(place) / 'scan'),
                seconds_from_archive(server.url, Path(place) / 'out'),
            )
            print(
                f'{slices} slices: from disk {disk:.1f} s, from the archive {archive:.1f} s, ratio {archive / disk:.2f}'
            )
    print(f'at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB')


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
