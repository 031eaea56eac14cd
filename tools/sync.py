"""Formats and cleans the notebooks, exports the modules, writes README.md: `python tools/sync.py [--check]`.

With --check it fails when any of this changed a file. It compares checksums before and after instead of asking git
for a diff, so it also works in the middle of somebody's uncommitted work, and without git.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORMATTED = ('nbs', 'tests', 'tools', 'docs')


def checksums() -> dict:
    "Of everything that cleaning and exporting may touch; checkpoints of Jupyter and other hidden files aside."
    files = [
        *ROOT.glob('nbs/**/*.ipynb'),
        *ROOT.glob('pe_advseg/**/*.py'),
        ROOT / 'README.md',
        ROOT / 'settings.ini',
        ROOT / 'pyproject.toml',
    ]
    names = {path.relative_to(ROOT).as_posix(): path for path in files if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items() if '/.' not in name}


def run(*command: str) -> None:
    "In the top folder, with the programs that stand beside this Python first."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, 'PATH': path})


def main() -> None:
    before = checksums()
    run('ruff', 'check', '--quiet', '--fix', *FORMATTED)
    run('ruff', 'format', '--quiet', *FORMATTED)
    run('nbdev_clean')
    run('nbdev_export')
    run(sys.executable, 'tools/readme.py')
    run(sys.executable, 'tools/flows.py')
    after = checksums()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed and '--check' in sys.argv[1:]:
        sys.exit('cleaning and exporting changed files; look at them and commit:\n  ' + '\n  '.join(changed))
    print(
        'notebooks, modules and README are in step'
        + (f'; {len(changed)} files were brought up to date' if changed else '')
    )


if __name__ == '__main__':
    main()
