"""Plots as SVG: dots on a logarithmic scale, and lines over it. Pure, no library.

Colours are told apart by shape as well, and stand on light and dark pages alike.

Called by bench.__main__.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final
from xml.sax.saxutils import escape

from bench.figures import FLOORS, OURS, PEER_NAMES, ratio, seconds_by_round
from bench.results import Results
from bench.workloads import STEPS

WIDTH: Final = 760
LEFT: Final = 300
RIGHT: Final = 30
TOP: Final = 64
ROW: Final = 22
GRAY: Final = "#8a8a8a"
SERIES: Final = ("#1f77d0", "#e07b00", "#2b9a4b", "#b03bb0")
SIDE: Final = 5.0
OURS_ALL: Final = (OURS, "ours-local")


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic scale from `low` to `high` over the pixels `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        """Where a value stands; what is beyond stands at the end."""
        held = min(max(value, self.low), self.high)
        share = math.log(held / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Powers of ten within."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]


def spanning(values: Sequence[float], begin: float, end: float) -> Axis:
    """An axis from the power of ten below the least value to the one above the greatest."""
    low = 10.0 ** math.floor(math.log10(min(values)))
    high = 10.0 ** math.ceil(math.log10(max(values)))
    return Axis(low, high if high > low else low * 10, begin, end)


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{GRAY}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"/>'
    )


def _mark(number: int, x: float, y: float) -> str:
    colour = SERIES[number % len(SERIES)]
    if number % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{SIDE:g}" fill="{colour}"/>'
    corners = (
        ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    )[number % 4 - 1]
    points = " ".join(f"{x + SIDE * a * 0.9:.1f},{y + SIDE * b * 0.9:.1f}" for a, b in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'


def _svg(title: str, height: float, parts: Sequence[str], names: Sequence[str]) -> str:
    legend = []
    x = float(LEFT)
    for number, name in enumerate(names):
        legend += [_mark(number, x, 40), _text(x + 10, 44, name)]
        x += 30 + 8 * len(name)
    body = "\n".join([_text(10, 20, title, size=14), *legend, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(title)}">\n{body}\n</svg>\n'
    )


def dots(title: str, rows: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """A line a row, on it one mark a name; 1 is marked, since the values are ratios."""
    values = [value for row in rows.values() for value in row.values()]
    axis = spanning([*values, 1.0], LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(rows)
    parts = []
    for tick in axis.ticks():
        x = axis.at(tick)
        parts.append(_line(x, TOP - 8, x, bottom, GRAY, 2 if tick == 1 else 0.5))
        parts.append(_text(x, bottom + 16, f"{tick:g}", "middle"))
    for number, (label, row) in enumerate(rows.items()):
        y = TOP + ROW * number + ROW / 2
        parts.append(_text(LEFT - 12, y + 4, label, "end"))
        parts += [_mark(names.index(name), axis.at(value), y) for name, value in row.items()]
    return _svg(title, bottom + 28, parts, names)


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]], under: str) -> str:
    """One line a series through its points; both axes logarithmic."""
    points = [point for each in series.values() for point in each]
    left, bottom = 80.0, 330.0
    across = spanning([x for x, _ in points], left, WIDTH - RIGHT)
    up = spanning([y for _, y in points], bottom, TOP)
    parts = []
    for tick in across.ticks():
        parts.append(_line(across.at(tick), TOP, across.at(tick), bottom, GRAY, 0.5))
        parts.append(_text(across.at(tick), bottom + 16, f"{tick:,.0f}", "middle"))
    for tick in up.ticks():
        parts.append(_line(left, up.at(tick), WIDTH - RIGHT, up.at(tick), GRAY, 0.5))
        parts.append(_text(left - 8, up.at(tick) + 4, f"{tick:,g}", "end"))
    for number, each in enumerate(series.values()):
        placed = [(across.at(x), up.at(y)) for x, y in each]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        colour = SERIES[number % len(SERIES)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_mark(number, x, y) for x, y in placed]
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 36, under, "middle"))
    return _svg(title, bottom + 48, parts, list(series))


def plots(results: Results) -> dict[str, str]:
    """Name → SVG, of what there is something to draw."""
    made = {}
    steps = seconds_by_round(results)
    names = [name for name in (OURS, *PEER_NAMES) if name in results.options.targets]
    rows: dict[str, dict[str, float]] = {}
    for step, info in STEPS.items():
        found = {name: ratio(steps.get(step, {}), name, "null") for name in names}
        row = {name: value for name, value in found.items() if value is not None}
        if row:
            rows[info.title.format(**asdict(results.options.scale))] = row
    if rows:
        made["bench-workloads"] = dots(
            "Time ÷ null filesystem in RAM (less is better)", rows, names
        )
    growths = [each for each in results.growths if each.target in (*FLOORS, *OURS_ALL)]
    if growths:
        made["bench-growth"] = lines(
            "µs for one new file beside so many others",
            _series((g.target, g.files, g.create_us) for g in growths),
            "files in the directory",
        )
    ours = [each for each in growths if each.change_cpu_s is not None]
    if ours:
        kinds = {"create": "a new file", "stat": "a stat", "save": "a save"}
        points = [
            *(
                (f"{kinds[what]}", g.files, us)
                for g in ours
                for what, us in g.cpu_us.items()
                if what in kinds
            ),
            *(("sync of a change", g.files, 1e6 * (g.change_cpu_s or 0)) for g in ours),
        ]
        title = "µs of processor time beside so many files (ours)"
        made["bench-growth-cpu"] = lines(title, _series(points), "files in the directory")
    sized = [each for each in results.sizes if each.target in OURS_ALL]
    if sized:
        made["bench-sizes"] = lines(
            "µs for one operation in a file of so many MiB (ours)",
            _series(
                (what, each.mib, us)
                for each in sized
                for what, us in (
                    ("4 KiB write + fsync", each.write_us),
                    ("4 KiB read", each.read_us),
                    ("4 KiB append", each.append_us),
                )
            ),
            "MiB",
        )
    return made


def _series(points: Iterable[tuple[str, float, float]]) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for name, x, y in points:
        # A logarithmic axis has no zero.
        if y > 0:
            series.setdefault(name, []).append((x, y))
    return series
