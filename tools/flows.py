"""Draw `nbs/<package>/flow.svg` from the arrows in `nbs/<package>/flow.txt`: `python tools/flows.py [--check]`.

A line `scan folder -> series : DICOM files` is an arrow from one box to another; the text after the colon stands at
the arrow. Names of modules of the package become filled boxes, everything else (data, other packages) plain text.
"""

import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 34, 120, 26, 12


def read_arrows(path: Path) -> list[tuple[str, str, str]]:
    "Triples (from, to, label) of a flow file. ValueError names the line that is none."
    arrows = []
    for line in path.read_text(encoding='utf-8').splitlines():
        if not line.strip() or line.startswith('#'):
            continue
        found = re.fullmatch(r'(.+?)\s*->\s*(.+?)(?:\s+:\s+(.+))?', line.strip())
        if not found:
            raise ValueError(f'{path.parent.name}/{path.name}: no arrow in {line!r}')
        arrows.append((found[1], found[2], found[3] or ''))
    return arrows


def columns(arrows: list[tuple[str, str, str]]) -> dict[str, int]:
    "Longest way from a source to each box; an arrow that closes a circle does not count."
    names = list(dict.fromkeys(name for first, second, _ in arrows for name in (first, second)))
    column = dict.fromkeys(names, 0)
    for _ in names:
        for first, second, _ in arrows:
            if column[second] <= column[first] < len(names) - 1 and not leads_to(arrows, second, first):
                column[second] = column[first] + 1
    return column


def leads_to(arrows, first: str, second: str) -> bool:
    "Whether arrows lead from one box to another."
    seen, waiting = set(), [first]
    while waiting:
        here = waiting.pop()
        if here == second:
            return True
        if here not in seen:
            seen.add(here)
            waiting += [after for before, after, _ in arrows if before == here]
    return False


def places(arrows) -> dict[str, tuple[int, int]]:
    "Upper left corner of each box; within a column boxes lie beside what leads to them."
    column = columns(arrows)
    place = {}
    for number in range(max(column.values()) + 1):
        members = [name for name in column if column[name] == number]
        members.sort(
            key=lambda name: mean_row(
                [place[before][1] for before, after, _ in arrows if after == name and before in place]
            )
        )
        for row, name in enumerate(members):
            place[name] = (MARGIN + number * (BOX_WIDTH + GAP_X), MARGIN + row * (BOX_HEIGHT + GAP_Y))
    return place


def mean_row(rows: list[int]) -> float:
    return sum(rows) / len(rows) if rows else 0.0


def draw(arrows, modules: set[str], title: str) -> str:
    "The picture as SVG."
    place = places(arrows)
    width = max(x for x, _ in place.values()) + BOX_WIDTH + MARGIN
    height = max(y for _, y in place.values()) + BOX_HEIGHT + MARGIN
    shapes = [arrow_shape(place[first], place[second], label) for first, second, label in arrows]
    shapes += [box_shape(name, *corner, name in modules) for name, corner in place.items()]
    return '\n'.join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="13" role="img"><title>{escape(title)}</title>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#555555"/></marker></defs>',
            *shapes,
            '</svg>\n',
        ]
    )


def box_shape(name: str, x: int, y: int, is_module: bool) -> str:
    "A module is a filled box; data is a rounded outline."
    style = 'fill="#d7e9f7" stroke="#0072b2"' if is_module else 'fill="#f6f6f6" stroke="#999999" stroke-dasharray="4 3"'
    middle, base = x + BOX_WIDTH / 2, y + BOX_HEIGHT / 2 + 4.5
    text = f'<text x="{middle:.0f}" y="{base:.0f}" text-anchor="middle">{escape(name)}</text>'
    return f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" {style}/>{text}'


def arrow_shape(first, second, label: str) -> str:
    "A line from the right of one box to the left of the other; back arrows go below."
    x, y = first[0] + BOX_WIDTH, first[1] + BOX_HEIGHT / 2
    u, v = second[0], second[1] + BOX_HEIGHT / 2
    if u > x:
        bend = (x + u) / 2
        path = f'M{x} {y:.0f}C{bend:.0f} {y:.0f} {bend:.0f} {v:.0f} {u} {v:.0f}'
        middle = (bend, (y + v) / 2 - 5)
    else:
        x, u = first[0] + BOX_WIDTH / 2, second[0] + BOX_WIDTH / 2
        y, v = (first[1] + BOX_HEIGHT, second[1]) if first[1] < second[1] else (first[1], second[1] + BOX_HEIGHT)
        path = f'M{x:.0f} {y:.0f}L{u:.0f} {v:.0f}'
        middle = ((x + u) / 2, (y + v) / 2 - 4)
    line = f'<path d="{path}" fill="none" stroke="#555555" marker-end="url(#tip)"/>'
    if not label:
        return line
    return line + (
        f'<text x="{middle[0]:.0f}" y="{middle[1]:.0f}" text-anchor="middle" font-size="11" fill="#333333" '
        f'stroke="#ffffff" stroke-width="3" paint-order="stroke">{escape(label)}</text>'
    )


def main() -> None:
    stale = []
    for path in sorted((ROOT / 'nbs').glob('*/flow.txt')):
        modules = {notebook.stem.split('_', 1)[-1] for notebook in path.parent.glob('*.ipynb')}
        picture = draw(read_arrows(path), modules, f'Data flow of {path.parent.name}')
        target = path.with_name('flow.svg')
        if not target.exists() or target.read_text(encoding='utf-8') != picture:
            stale.append(target.relative_to(ROOT).as_posix())
            if '--check' not in sys.argv[1:]:
                target.write_text(picture, encoding='utf-8')
    if stale and '--check' in sys.argv[1:]:
        sys.exit(f'not drawn from their flow.txt: {", ".join(stale)}; run `make prepare`')


if __name__ == '__main__':
    main()
