"""What lies in the repository: notebooks, their cells, modules, tracked files. No notebook is run."""

import ast
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_tool(tool: str):
    "A script of tools/ as a module."
    found = importlib.util.spec_from_file_location(f'{tool}_tool', ROOT / 'tools' / f'{tool}.py')
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


PACKAGES = load_tool('docs').PACKAGES  # as data flows
NOTEBOOKS = sorted(path for path in (ROOT / 'nbs').rglob('*.ipynb') if '/.' not in path.as_posix())
EXPERIMENTS = [path for path in NOTEBOOKS if path.parent.name == 'experiments']
PAGES = [path for path in NOTEBOOKS if path.parent.name == 'pages']
LIBRARY = [path for path in NOTEBOOKS if path.parent.name in PACKAGES]
MODULES = [
    path for path in sorted((ROOT / 'pe_advseg').rglob('*.py')) if path.name not in ('__init__.py', '_modidx.py')
]
EXPORT = re.compile(r'(?m)^#\|\s*(export|exporti|exports)\b')


def cells(path, kind='code'):
    "Cells of one kind in a notebook; `source` as one string."
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [{**cell, 'source': ''.join(cell['source'])} for cell in found if cell['cell_type'] == kind]


def exported(path):
    return [cell['source'] for cell in cells(path) if EXPORT.search(cell['source'])]


def code_of(source):
    "The syntax tree of a cell without nbdev's directives and lines for the shell."
    return ast.parse(re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', source))


def module_of(path):
    "The module that a notebook names, or None."
    names = [
        match[1] for cell in cells(path) if (match := re.search(r'(?m)^#\|\s*default_exp\s+(\S+)', cell['source']))
    ]
    return names[0] if names else None


def repository_files():
    "Tracked files and untracked ones that git does not ignore."
    command = ['git', '-c', 'safe.directory=*', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split('\0')
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('not a git checkout: nothing says which files belong to the repository')
    return sorted({ROOT / name for name in listed if name and (ROOT / name).is_file()})


def text_files():
    for path in repository_files():
        content = path.read_bytes()
        if b'\0' not in content:
            yield path, content.decode('utf-8')


def name(path):
    return path.relative_to(ROOT).as_posix()
