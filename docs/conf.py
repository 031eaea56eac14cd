"""Sphinx reads this. The pages are staged and built by `tools/docs.py` (`make docs`); nothing here runs a notebook."""

import inspect
import re

from fastcore.docments import docments

project = 'pe_advseg'
author = 'The pe_advseg authors'
copyright = '2026 onwards, the pe_advseg authors. Research only, not for diagnosis'
extensions = ['myst_nb', 'sphinx.ext.autodoc']
source_suffix = {'.md': 'myst-nb', '.ipynb': 'myst-nb', '.rst': 'restructuredtext'}
html_theme = 'furo'
html_title = 'pe_advseg'
html_show_sphinx = False
html_copy_source = False

nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'deflist', 'html_image']
myst_heading_anchors = 4
suppress_warnings = [
    'myst.header',  # a notebook may open a section with a smaller heading
    'mystnb.unknown_mime_type',  # widgets of the review are shown as text
]
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
default_role = 'code'


def escaped(text: str) -> str:
    "Keep signs of a docstring from being read as markup; what stands in backticks stays as it is."
    if text.count('`') % 2:  # a code span that goes on in the next line
        text = text.replace('`', '')
    words = []
    for part in re.split(r'(`[^`]*`)', text):
        if part.startswith('`'):
            words.append(part)
        else:
            plural = words and part[:1].isalnum()  # such as `Study`s: a code span has to end before a space
            words.append(' ' * bool(plural) + re.sub(r'([\\*|_])', r'\\\1', part))
    return ''.join(words)


def add_parameter_comments(app, what, name, obj, options, lines):
    "Append the comments beside a function's parameters, and beside a dataclass's fields, to its docstring."
    lines[:] = [escaped(line) for line in lines]
    if not (inspect.isfunction(obj) or inspect.isclass(obj)):
        return
    try:
        comments = docments(obj)
    except (OSError, TypeError, SyntaxError, AttributeError, ValueError):
        return
    listed = {key: comment for key, comment in comments.items() if isinstance(comment, str) and comment.strip()}
    returned = listed.pop('return', None)
    lines.append('')
    for key, comment in listed.items():
        lines.append(f':param {key}: {escaped(" ".join(comment.split()))}')
    if returned:
        lines.append(f':returns: {escaped(" ".join(returned.split()))}')
    lines.append('')


def skip_what_is_not_ours(app, what, name, obj, skip, options):
    "Leave out what a module only gives a name to, such as a class of pydicom."
    module = getattr(obj, '__module__', None) or 'pe_advseg'
    return True if not module.startswith('pe_advseg') else None


def setup(app):
    app.connect('autodoc-skip-member', skip_what_is_not_ours)
    app.connect('autodoc-process-docstring', add_parameter_comments)
