"""Walk through the loop in a real viewer: `make viewer`.

The built OHIF is fetched from npm once (50 MB, 200 MB unpacked) into build/viewer, which git ignores. Then
tests/test_viewer.py runs: an archive, the viewer and a browser in a network that has loopback only; a reader opens the
annotated study, paints, deletes, adds and exports; the correction is imported and shown again. It needs npm, chromium
and Debian's orthanc and orthanc-dicomweb. A picture of the viewer, with a synthetic scan, is build/viewer/ohif.png.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tests'))

from support import archive, viewer  # noqa: E402  the tests' own, found by the line above

PACKAGE = '@ohif/app@3.13.2'  # MIT
SHA512 = (
    '5997719a9986eeba85816f5924b71b82bdd70ad2e2d4a0cd3e831a798e4f3dee'
    'a3e06e1f8c48e393271933a0ba664d85f3b04ac457e9abe8dde715d907d13c10'
)
FOLDER = viewer.BUILT.parents[1]


def fetch() -> None:
    "Bring the built viewer from npm, unless it is here. Raises SystemExit with the cause."
    if (viewer.BUILT / 'index.html').is_file():
        return
    if shutil.which('npm') is None:
        raise SystemExit("npm is not installed (Debian's package): it brings the viewer")
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f'Fetching {PACKAGE}, 50 MB, into {FOLDER.relative_to(ROOT)}')
    command = ['npm', 'pack', PACKAGE, '--silent', '--pack-destination', str(FOLDER)]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    packed = FOLDER / name
    found = hashlib.sha512(packed.read_bytes()).hexdigest()
    if found != SHA512:
        raise SystemExit(f'{name} is not the file that was tried: its SHA-512 is {found}')
    with tarfile.open(packed) as content:
        content.extractall(FOLDER, filter='data')
    packed.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--picture', default=str(FOLDER / 'ohif.png'), help='where the picture of the viewer goes')
    picture = Path(parser.parse_args().picture).resolve()
    fetch()
    if reason := viewer.why_not() or archive.why_not():
        raise SystemExit(reason)
    test = [sys.executable, '-m', 'pytest', '-v', 'tests/test_viewer.py']
    return subprocess.run(test, cwd=ROOT, env=os.environ | dict(PE_ADVSEG_VIEWER_PICTURE=str(picture))).returncode


if __name__ == '__main__':
    sys.exit(main())
