"""Build the site from the notebooks, without executing them: `python tools/docs.py [--out FOLDER]`.

Pages are copied to `_docs/source` in the layout that they have in the repository, so that relative links hold; cells
that only serve nbdev are left out; Sphinx (myst-nb, furo) builds `_docs/html`; every link inside the site is followed.
The build needs no network. Warnings of Sphinx are errors.
"""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    'core',
    'scans',
    'models',
    'phantom',
    'data',
    'training',
    'evaluation',
    'annotation',
    'review',
    'lab',
    'cli',
]
COPIED = ('docs/*.md', 'nbs/**/*.ipynb', 'nbs/*/README.md', 'nbs/*/flow.svg', 'figures/*.png', 'figures/README.md')
COPIED += ('data/README.md', 'CHANGELOG.md', 'LICENSE', 'CITATION.cff', 'pe_advseg/pretrained/synthetic/README.md')


def stage(source: Path) -> None:
    "Copy every page and picture to its place under `source`."
    shutil.rmtree(source, ignore_errors=True)
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            if '/.' not in path.relative_to(ROOT).as_posix():
                copy_page(path, source / path.relative_to(ROOT))
    shutil.copy(ROOT / 'docs' / 'conf.py', source / 'conf.py')
    shutil.copy(ROOT / 'tools' / 'site_index.md', source / 'index.md')
    for package in [*PACKAGES, 'experiments']:
        add_contents(source / 'nbs' / package)
    for package in PACKAGES:
        write_api_page(package, source / 'api')
    write_api_index(source / 'api')


def copy_page(path: Path, target: Path) -> None:
    "Copy one file; a notebook goes without the cells that readers need not see."
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != '.ipynb':
        shutil.copy(path, target)
        return
    notebook = json.loads(path.read_text(encoding='utf-8'))
    notebook['cells'] = [shown_cell(cell) for cell in notebook['cells'] if is_shown(cell)]
    target.write_text(json.dumps(notebook), encoding='utf-8')


def directives(cell: dict) -> set[str]:
    "nbdev's directives of a cell, such as {'export'}."
    return set(re.findall(r'(?m)^#\|\s*(\w+)', ''.join(cell['source'])))


def is_shown(cell: dict) -> bool:
    return cell['cell_type'] != 'code' or not {'hide', 'default_exp'} & directives(cell)


def shown_cell(cell: dict) -> dict:
    "The cell without directives; one that is shown without its code becomes the Markdown that it put out."
    if cell['cell_type'] != 'code':
        return cell
    if 'hide_input' in directives(cell):
        found = [output['data']['text/markdown'] for output in cell['outputs'] if 'text/markdown' in output['data']]
        return dict(cell_type='markdown', id=cell['id'], metadata={}, source='\n\n'.join(map(''.join, found)))
    return cell | dict(source=re.sub(r'(?m)^#\|.*\n?', '', ''.join(cell['source'])))


def add_contents(folder: Path) -> None:
    "Append the list of its notebooks to a package's page."
    page = folder / 'README.md'
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f'# {folder.name}\n', encoding='utf-8')
    names = [path.stem for path in sorted(folder.glob('*.ipynb'))]
    contents = '\n\n```{toctree}\n:hidden:\n\n' + '\n'.join(names) + '\n```\n'
    page.write_text(page.read_text(encoding='utf-8').rstrip() + contents, encoding='utf-8')


def module_of(notebook: Path) -> str:
    "The module that a notebook exports."
    return f'{notebook.parent.name}.{notebook.stem.split("_", 1)[1]}'


def write_api_page(package: str, folder: Path) -> None:
    "One page for a package: signatures and docstrings of each module, and the way to its notebook."
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f'# {package}']
    for notebook in sorted((ROOT / 'nbs' / package).glob('[0-9]*.ipynb')):
        module = module_of(notebook)
        parts.append(f'## {module}')
        parts.append(f'The notebook [{notebook.stem}](../nbs/{package}/{notebook.name}) defines and explains it.')
        parts.append(f'```{{eval-rst}}\n.. automodule:: pe_advseg.{module}\n   :members:\n   :undoc-members:\n```')
    (folder / f'{package}.md').write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def write_api_index(folder: Path) -> None:
    text = '# API\n\nEvery public function and class: signature, docstring, and the comments beside its parameters.\n\n'
    text += '```{toctree}\n:maxdepth: 1\n\n' + '\n'.join(PACKAGES) + '\n```\n'
    (folder / 'index.md').write_text(text, encoding='utf-8')


class Links(HTMLParser):
    "Collects where a page leads to, and the places in it that others may lead to."

    def __init__(self):
        super().__init__()
        self.targets, self.anchors = set(), set()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.update(found[name] for name in ('id', 'name') if found.get(name))
        self.targets.update(found[name] for name in ('href', 'src') if found.get(name))


def read_links(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text(encoding='utf-8'))
    return links


def broken_links(site: Path) -> list[str]:
    "Links inside the site that lead to no file or to no place in it."
    pages = {page.resolve(): read_links(page) for page in site.rglob('*.html')}
    broken = []
    for page, links in pages.items():
        for target in sorted(links.targets):
            parts = urlsplit(html.unescape(target))
            if parts.scheme or parts.netloc:
                continue
            place = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            place = place / 'index.html' if place.is_dir() else place
            anchor_missing = parts.fragment and place in pages and unquote(parts.fragment) not in pages[place].anchors
            if not place.exists() or anchor_missing:
                broken.append(f'{page.relative_to(site.resolve())}: {target}')
    return broken


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument('--out', type=Path, default=ROOT / '_docs')
    out = options.parse_args().out.resolve()
    for made in ('html', 'doctrees'):  # and `source`, which is staged anew; whatever else lies in the folder stays
        shutil.rmtree(out / made, ignore_errors=True)
    stage(out / 'source')
    command = [
        sys.executable,
        '-m',
        'sphinx',
        '-q',
        '-W',
        '--keep-going',
        '-j',
        '2',
        '-b',
        'html',
        '-d',
        str(out / 'doctrees'),
    ]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}  # the API pages are of this checkout
    if subprocess.run([*command, str(out / 'source'), str(out / 'html')], env=environment).returncode:
        sys.exit('the site has warnings: see above')
    broken = broken_links(out / 'html')
    if broken:
        sys.exit('links that lead nowhere:\n  ' + '\n  '.join(broken))
    print(f'the site is in {out / "html" / "index.html"}')


if __name__ == '__main__':
    main()
