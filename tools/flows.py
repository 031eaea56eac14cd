"""Draw `nbs/<package>/flow.svg` from the arrows in `nbs/<package>/flow.txt`: `python tools/flows.py [--check]`.

A line `scan folder -> series : DICOM files` is an arrow from one box to another; the text after the colon stands at
the arrow. Names of modules of the package become filled boxes, everything else (data, other packages) plain text.
"""

import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN, LANE = 160, 34, 150, 26, 12, 16


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
    "The picture as SVG. An arrow that would cross other boxes runs in a lane of its own below them."
    place = places(arrows)
    lanes = {}
    for first, second, _ in arrows:
        if not is_short(place[first], place[second]):
            lanes[first, second] = len(lanes)
    bottom = max(y for _, y in place.values()) + BOX_HEIGHT
    width = max(x for x, _ in place.values()) + BOX_WIDTH + MARGIN + 20
    height = bottom + MARGIN + LANE * (len(lanes) + 1) * bool(lanes)
    shapes = []
    for first, second, label in arrows:
        lane = lanes.get((first, second))
        if lane is None:
            shapes.append(short_arrow(place[first], place[second], label))
        else:
            shapes.append(long_arrow(place[first], place[second], bottom + LANE * (lane + 1), lane, label))
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


def is_short(first: tuple[int, int], second: tuple[int, int]) -> bool:
    "Whether an arrow leads from one column to the next, where nothing lies between."
    return second[0] - first[0] == BOX_WIDTH + GAP_X


def box_shape(name: str, x: int, y: int, is_module: bool) -> str:
    "A module is a filled box; data is a rounded outline."
    style = 'fill="#d7e9f7" stroke="#0072b2"' if is_module else 'fill="#f6f6f6" stroke="#999999" stroke-dasharray="4 3"'
    middle, base = x + BOX_WIDTH / 2, y + BOX_HEIGHT / 2 + 4.5
    text = f'<text x="{middle:.0f}" y="{base:.0f}" text-anchor="middle">{escape(name)}</text>'
    return f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" {style}/>{text}'


def short_arrow(first, second, label: str) -> str:
    "A curve from the right of one box to the left of the other; the label stands near the second box."
    x, y = first[0] + BOX_WIDTH, first[1] + BOX_HEIGHT / 2
    u, v = second[0], second[1] + BOX_HEIGHT / 2
    bend = (x + u) / 2
    path = f'M{x} {y:.0f}C{bend:.0f} {y:.0f} {bend:.0f} {v:.0f} {u} {v:.0f}'
    return line_shape(path) + label_shape(bend + 8, v - 5, label)


def long_arrow(first, second, lane_y: int, lane: int, label: str) -> str:
    "Down from one box, along a lane below all boxes, and up into the gap before the other box."
    x, y = first[0] + BOX_WIDTH, first[1] + BOX_HEIGHT / 2 + 8
    u, v = second[0], second[1] + BOX_HEIGHT / 2 + 8
    down, up = x + 10 + 4 * (lane % 4), u - 14 - 4 * (lane % 4)
    path = f'M{x} {y:.0f}H{down}V{lane_y}H{up}V{v:.0f}H{u}'
    return line_shape(path, '#999999') + label_shape((down + up) / 2, lane_y - 3, label)


def line_shape(path: str, colour: str = '#555555') -> str:
    return f'<path d="{path}" fill="none" stroke="{colour}" marker-end="url(#tip)"/>'


def label_shape(x: float, y: float, label: str) -> str:
    "Text with a white rim, so that lines do not run through it."
    if not label:
        return ''
    style = 'text-anchor="middle" font-size="11" fill="#333333" stroke="#ffffff" stroke-width="3" paint-order="stroke"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(label)}</text>'


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
