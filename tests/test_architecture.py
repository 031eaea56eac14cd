"""The house: packages and modules import only what was told before them; cells, notebooks and lines stay short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.repository import (
    LIBRARY,
    NOTEBOOKS,
    PACKAGES,
    ROOT,
    cells,
    code_of,
    exported,
    module_of,
    name,
    repository_files,
)

LONGEST_CELL, LONGEST_NOTEBOOK = 40, 220  # exported lines after formatting; 25 and 150 are what one idea takes
DENSEST = 10.0  # syntax nodes a line over the whole package; fastcore has 8.5, miniai 9.7
ORDER = {module_of(path): (PACKAGES.index(path.parent.name), path.stem) for path in LIBRARY}


def imported_modules(tree: ast.AST) -> set[str]:
    "Modules of ours that code imports, wherever in it, as 'package.module'."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            whole = [f'{node.module}.{alias.name}' for alias in node.names]
            found |= {full if full.removeprefix('pe_advseg.') in ORDER else node.module for full in whole}
    return {module.removeprefix('pe_advseg.') for module in found if module.startswith('pe_advseg.')}


def arrows(path) -> set[str]:
    "Modules that the cells of a notebook import, lessons included."
    return {module for cell in cells(path) for module in imported_modules(code_of(cell['source']))}


@pytest.mark.parametrize('path', LIBRARY, ids=name)
def test_a_notebook_imports_only_what_was_told_before(path):
    "Upwards between packages in the order of the data flow, backwards within one; lessons included."
    own = ORDER[module_of(path)]
    for module in arrows(path):
        assert module in ORDER, f'{name(path)} imports {module}, which no notebook exports'
        assert ORDER[module] < own or module == module_of(path), f'{name(path)} imports {module}, told later'


@pytest.mark.parametrize('package', PACKAGES)
def test_notebooks_are_numbered_from_zero_without_gaps(package):
    numbers = [int(path.stem[:2]) for path in LIBRARY if path.parent.name == package]
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize('package', [*PACKAGES, 'experiments'])
def test_a_package_has_a_page_with_its_data_flow(package):
    folder = ROOT / 'nbs' / package
    text = (folder / 'README.md').read_text(encoding='utf-8')
    missing = [path.name for path in NOTEBOOKS if path.parent == folder and f']({path.name})' not in text]
    assert '](flow.svg)' in text and not missing, f'{package}/README.md does not show {missing or "its picture"}'
    assert (folder / 'flow.svg').exists()


def test_the_pictures_of_the_data_flow_are_drawn_from_their_text():
    assert subprocess.run([sys.executable, 'tools/flows.py', '--check'], cwd=ROOT).returncode == 0


def test_no_name_is_exported_twice():
    "One public name is defined in one module: nobody has to ask which of two is meant."
    homes = {}
    for path in LIBRARY:
        for source in exported(path):
            for node in code_of(source).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
                    homes.setdefault(node.name, []).append(module_of(path))
    verbs = {node for node in homes if any(module.startswith('cli.') for module in homes[node])}
    assert not {node: where for node, where in homes.items() if len(where) > 1 and node not in verbs}


# --- readable code ---


@pytest.mark.parametrize('path', LIBRARY, ids=name)
def test_a_notebook_stays_one_idea(path):
    lengths = [len(source.strip().splitlines()) for source in exported(path)]
    assert max(lengths) <= LONGEST_CELL, f'an exported cell of {name(path)} has {max(lengths)} lines'
    assert sum(lengths) <= LONGEST_NOTEBOOK, f'{name(path)} exports {sum(lengths)} lines: two ideas?'


def test_lines_are_not_dense():
    sources = [source for path in LIBRARY for source in exported(path)]
    nodes = sum(1 for source in sources for _ in ast.walk(code_of(source)))
    lines = sum(len(source.strip().splitlines()) for source in sources)
    assert nodes / lines <= DENSEST, f'{nodes / lines:.1f} syntax nodes a line'


@pytest.mark.parametrize('path', LIBRARY, ids=name)
def test_no_conditional_expression_within_another(path):
    for source in exported(path):
        for node in ast.walk(code_of(source)):
            if isinstance(node, ast.IfExp):
                nested = [inner for part in (node.body, node.test, node.orelse) for inner in ast.walk(part)]
                assert not any(isinstance(inner, ast.IfExp) for inner in nested), f'{name(path)}: {ast.unparse(node)}'


@pytest.mark.parametrize('command', ['check', 'format --check'])
def test_ruff_is_content(command):
    "Formatted at 120 columns, without lambdas with a name and the rest of what pyproject.toml selects."
    try:
        ruff = subprocess.run([sys.executable, '-m', 'ruff', '--version'], capture_output=True)
    except OSError:
        ruff = None
    if ruff is None or ruff.returncode:
        pytest.skip('ruff is not installed')
    result = subprocess.run(
        [sys.executable, '-m', 'ruff', *command.split(), 'nbs', 'tests', 'tools', 'docs'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]


# --- prose ---

CITED = re.compile(r'(?<![\w/.-])((?:[\w.-]+/)*[\w-]+\.md)\b')
SECTION = re.compile(r"references\.md[`)\]]*, (?:section )?[\"'`*]?([A-Z][^\"'`*.;:)\n]+)")


def texts(path):
    "Markdown and code of a notebook, with the lines of a docstring joined."
    yield from (cell['source'] for kind in ('markdown', 'code') for cell in cells(path, kind))


def is_there(cited: str, path: Path) -> bool:
    return any((folder / cited).exists() for folder in (ROOT, path.parent, ROOT / 'docs'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_what_is_cited_is_in_the_repository(path):
    for text in texts(path):
        missing = [cited for cited in CITED.findall(re.sub(r'https?://\S+', '', text)) if not is_there(cited, path)]
        assert not missing, f'{name(path)} cites {missing}'


def test_sections_of_the_references_exist():
    headings = set(re.findall(r'(?m)^#+ (.+)$', (ROOT / 'docs' / 'references.md').read_text(encoding='utf-8')))
    files = [path for path in repository_files() if path.suffix in ('.ipynb', '.py', '.md')]
    files.remove(Path(__file__).resolve())
    cited = {match.strip() for path in files for match in SECTION.findall(path.read_text(encoding='utf-8'))}
    assert cited, 'the pattern finds no citation any more'
    assert not {section for section in cited if not any(heading.startswith(section) for heading in headings)}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_links_of_a_notebook_lead_somewhere(path):
    for cell in cells(path, 'markdown'):
        targets = re.findall(r'\]\(([^)\s]+)\)', cell['source'])
        inside = [target.split('#')[0] for target in targets if not re.match(r'[a-z]+:|#', target)]
        missing = [target for target in inside if not (path.parent / target).exists()]
        assert not missing, f'{name(path)} leads to {missing}'
