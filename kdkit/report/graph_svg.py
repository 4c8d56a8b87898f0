"""The recipe as a drawn graph: models are boxes, losses are arrows with their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

from kdkit.report.links import LABELS, Arrow, Box

WIDTH, HIGH, GAP = 168, 62, 22  # of a box, and between two
ACROSS, LANE, LINE = 244, 46, 15  # between the columns; one arrow's share of the height, and a third line's
TOP = 14
COLOURS = {"frozen": "--frozen", "trained": "--trained", "ema": "--ema", "labels": "--soft"}


def graph_svg(boxes: Sequence[Box], arrows: Sequence[Arrow], under: Mapping[str, str]) -> str:
    """Teachers and labels on the left, whoever learns on the right, what peers say to each other at the far right.

    Args:
        boxes: the models.
        arrows: the losses.
        under: a last line for some boxes, such as their accuracy.
    """
    right = [box for box in boxes if box.kind != "frozen"]
    names = {box.name for box in right}
    left = [box for box in boxes if box.kind == "frozen"]
    across = [arrow for arrow in arrows if not names & set(arrow.sources)]
    beside = _both_ways([arrow for arrow in arrows if names & set(arrow.sources)])
    beside += [Arrow("follows", "", (str(box.of),), box.name, "") for box in boxes if box.kind == "ema"]
    if any(LABELS in arrow.sources for arrow in across):
        left.append(Box(LABELS, "labels", ("of the data",)))
    order = {box.name: i for i, box in enumerate([*left, *right])}
    across.sort(key=lambda arrow: (order[arrow.sources[0]], order[arrow.target]))
    lanes = max(len(across), len(beside))
    lane = LANE + LINE * any(arrow.ended for arrow in arrows)
    height = max(lanes * lane, *(len(column) * (HIGH + GAP) for column in (left, right))) + 2 * TOP
    width = (WIDTH + ACROSS if left else 0) + WIDTH + (ACROSS if beside else 0) + 4
    at = {**_column(left, 2, height), **_column(right, 2 + (WIDTH + ACROSS if left else 0), height)}
    parts = [*_across(across, at, height), *_beside(beside, at, height)]
    parts += [_box(box, at[box.name], under.get(box.name, "")) for box in (*left, *right)]
    told = "; ".join(f"{arrow.name} from {' and '.join(arrow.sources)} to {arrow.target}" for arrow in arrows)
    return (
        f'<svg class="graph" role="img" aria-label="{escape(told)}" viewBox="0 0 {width} {height:g}" '
        f'style="min-width:{0.85 * width:g}px;max-width:{width * 1.25:g}px">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8Z" fill="var(--soft)"/></marker></defs>' + "".join(parts) + "</svg>"
    )


def _column(column: Sequence[Box], x: float, height: float) -> dict[str, tuple[float, float]]:
    """Top left corners, spread over the height."""
    step = height / max(len(column), 1)
    return {box.name: (x, step * (i + 0.5) - HIGH / 2) for i, box in enumerate(column)}


def _both_ways(arrows: Sequence[Arrow]) -> list[Arrow]:
    """Peers that teach each other by one loss get one arrow."""
    found: list[Arrow] = []
    for arrow in arrows:
        back = next(
            (a for a in found if (a.name, a.sources, (a.target,)) == (arrow.name, (arrow.target,), arrow.sources)), None
        )
        if back is None:
            found.append(arrow)
        else:
            found[found.index(back)] = replace(back, taps=f"⇄ {back.taps}")
    return found


def _across(arrows: Sequence[Arrow], at: Mapping[str, tuple[float, float]], height: float) -> list[str]:
    """Arrows from the left column to the right one, each in a lane of its own."""
    parts = []
    step = height / max(len(arrows), 1)
    for i, arrow in enumerate(arrows):
        x = max(at[source][0] for source in arrow.sources) + WIDTH
        middle, y = x + ACROSS / 2, step * (i + 0.5)
        end_x, end_y = at[arrow.target][0], _port(arrow, arrows, at)
        for source in arrow.sources:
            begin = at[source][1] + HIGH / 2
            bend = f"C{x + 34:g} {begin:g} {x + 18:g} {y:g} {middle - 74:g} {y:g}"
            parts.append(_path(f"M{x:g} {begin:g}{bend}H{middle + 74:g}", arrow.when))
        bend = f"C{end_x - 18:g} {y:g} {end_x - 34:g} {end_y:g} {end_x - 2:g} {end_y:g}"
        parts.append(_path(f"M{middle + 74:g} {y:g}{bend}", arrow.when, tip=True))
        parts.append(_label(arrow, middle, y))
    return parts


def _beside(arrows: Sequence[Arrow], at: Mapping[str, tuple[float, float]], height: float) -> list[str]:
    """Arrows between those who learn, on their right."""
    parts = []
    step = height / max(len(arrows), 1)
    for i, arrow in enumerate(arrows):
        x, y_end = at[arrow.target][0] + WIDTH, at[arrow.target][1] + HIGH / 2 + 9
        middle, y = x + ACROSS - 78, step * (i + 0.5)
        for source in arrow.sources:
            begin = at[source][1] + HIGH / 2 - 9
            tip = arrow.taps.startswith("⇄")
            bend = f"C{middle - 74:g} {y:g} {x + 46:g} {begin:g} {x + 2:g} {begin:g}"
            parts.append(_path(f"M{middle:g} {y:g}H{middle - 56:g}{bend}", arrow.name == "follows", tip=tip))
        bend = f"C{middle - 74:g} {y:g} {x + 46:g} {y_end:g} {x + 2:g} {y_end:g}"
        parts.append(_path(f"M{middle - 56:g} {y:g}{bend}", arrow.name == "follows", tip=True))
        parts.append(_label(arrow, middle + 4, y))
    return parts


def _port(arrow: Arrow, arrows: Sequence[Arrow], at: Mapping[str, tuple[float, float]]) -> float:
    """Where an arrow meets its target: all of them spread over its side."""
    mine = [other for other in arrows if other.target == arrow.target]
    return at[arrow.target][1] + HIGH * (mine.index(arrow) + 1) / (len(mine) + 1)


def _path(line: str, dashed: object, *, tip: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    end = ' marker-end="url(#tip)"' if tip else ""
    return f'<path d="{line}" fill="none" stroke="var(--soft)" stroke-width="1.5"{dash}{end}/>'


def _label(arrow: Arrow, x: float, y: float) -> str:
    """Its name and weight, what the recipe says of a weight that moved, and where and when it acts."""
    told = " · ".join(word for word in (arrow.taps, arrow.when) if word)
    weight = arrow.ended or arrow.weight
    first = _short(f"{arrow.name} × {weight}" if weight else arrow.name, 20)
    recipe = f"recipe: {arrow.weight}" if arrow.ended else ""
    small = [_short(line, 24) for line in (recipe, told) if line]
    wide = 7.4 * max(len(first), *(0.86 * len(line) for line in small), 0) + 14
    top = y - 4 - LINE * (1 + len(small)) / 2
    texts = "".join(
        f'<text x="{x:g}" y="{top + 16 + LINE * i:g}" text-anchor="middle" class="small">{escape(line)}</text>'
        for i, line in enumerate(small, 1)
    )
    named = f"{arrow.name}: weight {weight}" if weight else arrow.name
    whole = ", ".join(filter(None, (named, recipe, told)))
    return (
        f"<g><title>{escape(whole)}</title>"
        f'<rect x="{x - wide / 2:g}" y="{top:g}" width="{wide:g}" height="{8 + LINE * (1 + len(small)):g}" rx="6" '
        'fill="var(--paper)"/>'
        f'<text x="{x:g}" y="{top + 16:g}" text-anchor="middle" class="name">{escape(first)}</text>{texts}</g>'
    )


def _box(box: Box, corner: tuple[float, float], under: str) -> str:
    x, y = corner
    last = " · ".join(word for word in (*box.lines[1:], under) if word)
    lines = [*box.lines[:1], last if len(last) <= 23 else under or last]  # the colour says the kind, too
    texts = "".join(
        f'<text x="{x + 14:g}" y="{y + 38 + 15 * i:g}" class="small">{escape(_short(line, 23))}</text>'
        for i, line in enumerate(lines)
        if line
    )
    return (
        f"<g><title>{escape(' '.join((box.name, *box.lines, under)))}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HIGH}" rx="9" fill="var(--stripe)" stroke="var(--line)"/>'
        f'<rect x="{x:g}" y="{y + 8:g}" width="4" height="{HIGH - 16}" rx="2" fill="var({COLOURS[box.kind]})"/>'
        f'<text x="{x + 14:g}" y="{y + 21:g}" class="name">{escape(_short(box.name, 19))}</text>{texts}</g>'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
