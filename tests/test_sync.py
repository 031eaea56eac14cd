"""Is the house in order? Notebooks, modules, README and what lies in the repository, without running any notebook."""

import ast
import configparser
import re
import subprocess
from pathlib import Path

import pytest
from support.repository import (
    EXPERIMENTS,
    LIBRARY,
    MODULES,
    NOTEBOOKS,
    ROOT,
    cells,
    code_of,
    exported,
    load_tool,
    module_of,
    name,
    repository_files,
    text_files,
)

from pe_advseg.cli.experiments import PAPER

# --- notebooks and modules ---


@pytest.mark.parametrize('path', MODULES, ids=name)
def test_every_module_has_its_notebook(path):
    "nbdev never deletes: after a rename the old module would stay behind and still be imported."
    stated = re.search(r'File to edit: (\S+?)\.?$', path.read_text(encoding='utf-8'), re.M)
    assert stated, f'{name(path)} was not made by nbdev'
    notebook = (path.parent / stated[1]).resolve()
    assert notebook.exists(), f'{name(path)} names {stated[1]}, which is gone: delete the module'
    assert module_of(notebook) == '.'.join(path.relative_to(ROOT / 'pe_advseg').with_suffix('').parts)


@pytest.mark.parametrize('path', LIBRARY, ids=name)
def test_every_notebook_has_its_module(path):
    module = module_of(path)
    assert module, f'{name(path)} has no default_exp'
    package, _, last = module.partition('.')
    assert path.parent.name == package and re.fullmatch(rf'\d\d_{last}', path.stem), (
        f'{name(path)} should be called after its module {module}'
    )
    assert (ROOT / 'pe_advseg' / package / f'{last}.py').exists()


@pytest.mark.parametrize('path', LIBRARY, ids=name)
def test_imports_stand_alone_and_name_what_they_take(path):
    for source in exported(path):
        statements = code_of(source).body
        imports = [node for node in statements if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not imports or len(imports) == len(statements), (
            f'imports mixed with code in {name(path)}:\n{source[:200]}'
        )
        assert not any(alias.name == '*' for node in imports for alias in node.names), f'star import in {name(path)}'
        assert not re.search(r'(?m)^\s*[%!]', source), f'a magic in an exported cell of {name(path)}'
        assert 'fastcore' not in source, f'{name(path)}: fastcore is for lessons, not for the package'


@pytest.mark.parametrize('path', LIBRARY, ids=name)
def test_a_notebook_teaches(path):
    "Opens with a title and a claim, and has lesson cells beside the exported ones."
    first = cells(path, 'markdown')[0]['source']
    assert re.match(r'# .+\n> .+', first), f'{name(path)} should open with a title and a one-line claim'
    lessons = [cell['source'] for cell in cells(path) if not re.search(r'(?m)^#\|', cell['source'])]
    assert any(re.search(r'\btest_\w+\(|\bassert\b', source) for source in lessons), f'{name(path)} asserts nothing'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_notebooks_are_clean_and_small(path):
    assert all(cell.get('execution_count') is None for cell in cells(path)), f'{name(path)}: run `make prepare`'
    assert path.stat().st_size < 400_000, f'{name(path)} has {path.stat().st_size // 1000} kB: smaller pictures, please'
    errors = [output for cell in cells(path) for output in cell['outputs'] if output['output_type'] == 'error']
    assert not errors, f'{name(path)} was saved with a traceback'


# --- experiments ---


@pytest.mark.parametrize('path', EXPERIMENTS, ids=name)
def test_experiments_have_parameters_that_papermill_finds(path):
    tagged = [cell for cell in cells(path) if 'parameters' in cell['metadata'].get('tags', [])]
    assert len(tagged) == 1, f'{name(path)} needs exactly one cell tagged `parameters`'
    for node in code_of(tagged[0]['source']).body:
        assert isinstance(node, (ast.Assign, ast.AnnAssign)), 'only assignments in the parameters cell'
        ast.literal_eval(node.value)  # plain values only: derived ones would keep the default's value


@pytest.mark.parametrize('path', EXPERIMENTS, ids=name)
def test_experiments_only_use_the_library(path):
    assert not exported(path), f'{name(path)} exports'
    for cell in cells(path):
        assert not cell['outputs'], f'{name(path)} keeps outputs: executed copies belong into runs/'
        for node in ast.walk(code_of(cell['source'])):
            assert not isinstance(node, ast.ClassDef), f'{name(path)} defines a class: move it into a module'
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 5, f'{name(path)}: {node.name} is too long for an experiment'


# --- settings and README ---


def test_settings():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / 'settings.ini')
    ours = settings['DEFAULT']
    assert ours['allowed_cell_metadata_keys'].split() == ['tags'], 'nbdev_clean would delete the parameters tag'
    assert ours['clear_all'] == 'False' and ours['jupyter_hooks'] == 'True'
    assert f'__version__ = "{ours["version"]}"' in (ROOT / 'pe_advseg' / '__init__.py').read_text()


def test_the_package_opens_without_side_effects():
    "`import pe_advseg` loads nothing: what is heavy is imported where it is needed."
    lines = [line for line in (ROOT / 'pe_advseg' / '__init__.py').read_text().splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith('__version__')


def test_readme_is_made_from_the_index():
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == load_tool('readme').readme(), 'run `make readme`'


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    targets = [target for target in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match(r'[a-z]+:|#', target)]
    assert targets and not [target for target in targets if not (ROOT / target.split('#')[0]).exists()]


def test_readme_links_are_rewritten():
    tool = load_tool('readme')
    assert (
        tool.from_the_top('![a](../figures/x.png) [b](00_paths.ipynb) [c](https://d.e/f) [g](#h)')
        == '![a](figures/x.png) [b](nbs/00_paths.ipynb) [c](https://d.e/f) [g](#h)'
    )
    hidden = {'cell_type': 'code', 'source': '#| hide\n1 + 1', 'outputs': []}
    shown = {'cell_type': 'code', 'source': ['1 + ', '1'], 'outputs': [{'data': {'text/plain': ['2']}}]}
    assert tool.block(hidden) == '' and tool.block(shown) == '```python\n1 + 1\n```\n```\n2\n```'


def test_make_help_names_every_target():
    targets = re.search(r'(?m)^\.PHONY:(.*)$', (ROOT / 'Makefile').read_text())[1].split()
    try:
        shown = subprocess.run(
            ['make', '--no-print-directory', 'help'], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        pytest.skip('make is not installed')
    assert [target for target in targets if f'make {target} ' not in shown] == []


# --- what must never be in the repository ---

WEIGHTS_AND_SCANS = (
    '.dcm',
    '.mat',
    '.nii',
    '.nii.gz',
    '.nrrd',
    '.mha',
    '.pth',
    '.pt',
    '.ckpt',
    '.safetensors',
    '.npy',
    '.npz',
    '.h5',
    '.onnx',
    '.pkl',
    '.pickle',
    '.zip',
    '.tar',
    '.gz',
)
MACHINE_PATH = re.compile(r'(?<![\w./:+\-~])/(home|root|tmp|work|Users|mnt|scratch|private|opt)/[\w.]')
REGISTRY = re.compile(r'(?i)pypi\.(org|python)|pythonhosted|conda\.anaconda|registry\.npmjs|proxy\.golang|index[-_]url')


def test_no_scans_masks_or_weights():
    for path in repository_files():
        # two exceptions: small synthetic picture arrays from which the figures are drawn (real ones stay in runs/)
        if re.fullmatch(r'figures/results/\d\d_pictures_demo\.npz', name(path)):
            continue
        # ... and the weights of the model that comes with the package, from synthetic scans only
        if re.fullmatch(r'pe_advseg/pretrained/synthetic/checkpoint-\d+\.safetensors', name(path)):
            assert path.stat().st_size < 5_000_000
            continue
        assert not path.name.lower().endswith(WEIGHTS_AND_SCANS), f'{name(path)}: data and weights stay out of git'
        content = path.read_bytes()
        assert content[128:132] != b'DICM', f'{name(path)} is a DICOM file'
        assert len(content) < 2_000_000, f'{name(path)} has {len(content) // 1000} kB'


def test_nothing_of_this_machine():
    "No absolute path of somebody's machine and no package registry, neither in code nor in the outputs of notebooks."
    for path, text in text_files():
        if path == Path(__file__).resolve():
            continue  # names what it looks for
        for pattern in (MACHINE_PATH, REGISTRY):
            found = pattern.search(text)
            assert not found, f'{name(path)}: ...{text[max(0, found.start() - 60) : found.end() + 60]!r}...'


def test_the_search_for_paths_finds_them():
    for guilty in ('"/home/ann/scan"', "Path('/tmp/x')", 'File /work/main/nbs', '=/root/.cache'):
        assert MACHINE_PATH.search(guilty), guilty
    for innocent in ('https://host/home/page', '../tmp/x', 'data/work/x', '~/tmp/x', '/homework/x'):
        assert not MACHINE_PATH.search(innocent), innocent


def test_a_notebook_that_is_not_run_by_itself_is_run_through_the_shell():
    "`make test` leaves out the experiments that test_end_to_end runs, and no others."
    left_out = re.search(r'(?m)^IN_SHELL := (.*)$', (ROOT / 'Makefile').read_text())[1]
    shell_tests = (ROOT / 'tests' / 'test_end_to_end.py').read_text()
    names = [path.stem for path in NOTEBOOKS if re.match(left_out, path.name)]
    assert len(names) == len(left_out.split('|'))
    for notebook in names:
        assert notebook in PAPER or f"'experiment', '{notebook}'" in shell_tests, f'nothing runs {notebook}'
