"""README.md from nbs/index.ipynb, without Quarto: `python tools/readme.py [--check]`."""

import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = '<!-- Made from nbs/index.ipynb by `make readme`. Edit the notebook, not this file. -->\n'


def from_the_top(text: str) -> str:
    "Links and pictures that are relative to nbs/ become relative to the top level."

    def moved(match):
        target = match[2]
        outside = re.match(r'[a-z]+:|#|/', target)
        return match[0] if outside else match[1] + posixpath.normpath(posixpath.join('nbs', target)) + match[3]

    text = re.sub(r'(\]\()([^)\s]+)(\))', moved, text)
    return re.sub(r'(<img[^>]*\ssrc=")([^"]+)(")', moved, text)


def markdown_output(cell: dict) -> str:
    "What a cell shows as Markdown, for instance a table."
    shown = [
        ''.join(output['data']['text/markdown'])
        for output in cell.get('outputs', [])
        if 'text/markdown' in output.get('data', {})
    ]
    return from_the_top('\n\n'.join(shown))


def text_outputs(cell: dict) -> str:
    "What a cell printed or returned, as plain text; pictures belong into figures/."
    parts = []
    for output in cell.get('outputs', []):
        text = output.get('text') or output.get('data', {}).get('text/plain') or ''
        parts.append(''.join(text).rstrip())
    return '\n'.join(part for part in parts if part)


def block(cell: dict) -> str:
    "One cell as Markdown; '' for cells that readers need not see."
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
        return from_the_top(source)
    directives = re.findall(r'(?m)^#\|\s*(\S+)', source)
    code = re.sub(r'(?m)^#\|.*\n?', '', source).strip()
    if cell['cell_type'] != 'code' or not code or {'hide', 'default_exp', 'export'} & set(directives):
        return ''
    if 'hide_input' in directives:
        return markdown_output(cell)
    shown = text_outputs(cell)
    return f'```python\n{code}\n```' + (f'\n```\n{shown}\n```' if shown else '')


def readme() -> str:
    cells = json.loads((ROOT / 'nbs' / 'index.ipynb').read_text(encoding='utf-8'))['cells']
    return HEAD + '\n\n'.join(filter(None, map(block, cells))).rstrip() + '\n'


if __name__ == '__main__':
    path, text = ROOT / 'README.md', readme()
    same = path.exists() and path.read_text(encoding='utf-8') == text
    if '--check' in sys.argv[1:] and not same:
        sys.exit('README.md is not what nbs/index.ipynb says: run `make readme`')
    if not same:
        path.write_text(text, encoding='utf-8')
