"""From measurements to a table: medians, ratios within a round, terminal and Markdown.

1. A ratio is time by time: 2.0 means that it took twice as long. It is taken in each round and the
   median of the rounds is shown, since neighbours in time share the noise.
2. Nothing is rounded before it is divided; nothing measured is left out of the JSON.

Called by bench.__main__ and its test. Pure but for printing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.runner import Results
from bench.workloads import STEPS, StepInfo

FLOORS: Final = ("null", "native")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of strings."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """A Markdown table under its title."""
        rule = ["---"] + ["---:"] * (len(self.head) - 1)
        lines = [self.head, rule, *self.rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def show(self, console: Console) -> None:
        """The same on a terminal."""
        table = Table(title=self.title, title_justify="left")
        for number, name in enumerate(self.head):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def seconds_by_round(results: Results) -> dict[str, dict[str, dict[int, tuple[float, float]]]]:
    """step → target → round → (seconds, amount)."""
    found: dict[str, dict[str, dict[int, tuple[float, float]]]] = {}
    for turn in results.turns:
        for step in turn.steps:
            by_target = found.setdefault(step.name, {})
            by_target.setdefault(turn.target, {})[turn.round] = (step.seconds, step.amount)
    return found


def ratio(step: dict[str, dict[int, tuple[float, float]]], target: str, floor: str) -> float | None:
    """Median over the rounds of time on `target` / time on `floor`."""
    ours, theirs = step.get(target, {}), step.get(floor, {})
    both = [ours[number][0] / theirs[number][0] for number in ours if number in theirs]
    return statistics.median(both) if both else None


def main_sheet(results: Results) -> Sheet:
    """Medians of all targets, then the ratios of ours to the floors."""
    steps = seconds_by_round(results)
    measured = {turn.target for turn in results.turns if turn.steps}
    targets = [name for name in results.options.targets if name in measured]
    pairs = [
        (ours, floor)
        for ours in targets
        if ours not in FLOORS
        for floor in FLOORS
        if floor in targets
    ]
    if not pairs and set(FLOORS) <= measured:
        pairs = [("null", "native")]
    rows = []
    for name, info in STEPS.items():
        if name not in steps:
            continue
        title = info.title.format(**asdict(results.options.scale))
        cells = [_cell(steps[name].get(target, {}), info) for target in targets]
        ratios = [_number(ratio(steps[name], ours, floor)) for ours, floor in pairs]
        rows.append([f"{title}{', ' + info.unit + '/s' if info.unit else ''}", *cells, *ratios])
    head = ["seconds, or what is said", *targets, *(f"{a} ÷ {b}" for a, b in pairs)]
    return Sheet(f"Medians of {results.options.rounds} rounds", head, rows)


def _cell(rounds: dict[int, tuple[float, float]], info: StepInfo) -> str:
    if not rounds:
        return "–"
    if info.unit:
        return f"{statistics.median(a / s for s, a in rounds.values()):,.0f}"
    return _number(statistics.median(s for s, _ in rounds.values()))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    digits = 4 if value < 0.01 else 3 if value < 0.1 else 2 if value < 10 else 1
    return f"{value:.{digits}f}"


def lag_sheet(results: Results) -> Sheet | None:
    """The way of the burst to the bucket; None when nobody has one."""
    rows = []
    for target in results.options.targets:
        lags = [lag for lag in results.lags if lag.target == target]
        if not lags:
            continue
        rows.append(
            [
                target,
                *(
                    _number(statistics.median(values))
                    for values in (
                        [lag.burst_s for lag in lags],
                        [lag.sealed_s for lag in lags],
                        [lag.mirrored_s for lag in lags],
                    )
                ),
                _requests([lag.sealed_requests for lag in lags]),
                _requests([lag.requests for lag in lags]),
            ]
        )
    if not rows:
        return None
    count = results.options.scale.small_files
    head = ["target", "burst", "sealed", "mirrored", "requests to sealed", "requests in all"]
    return Sheet(f"A burst of {count} files, then `sync`: seconds after it", head, rows)


def _requests(counts: Sequence[dict[str, int]]) -> str:
    kinds = sorted({kind for count in counts for kind in count})
    shown = [
        f"{statistics.median_low([count.get(kind, 0) for count in counts])} {kind}"
        for kind in kinds
    ]
    return ", ".join(shown) or "0"


def cost_sheet(results: Results) -> Sheet | None:
    """CPU seconds of the daemons in each scenario, and their private memory."""
    targets = [name for name in results.options.targets if name in results.private_mib]
    if not targets:
        return None
    rows = []
    for scenario in dict.fromkeys(turn.scenario for turn in results.turns):
        cells = []
        for target in targets:
            turns = [t for t in results.turns if (t.target, t.scenario) == (target, scenario)]
            own = [t.cpu_s for t in turns if t.cpu_s is not None]
            children = [t.children_cpu_s for t in turns if t.children_cpu_s is not None]
            cell = f"{statistics.median(own):.2f}" if own else "–"
            more = statistics.median(children) if children else 0.0
            cells.append(f"{cell} + {more:.2f}" if more else cell)
        rows.append([scenario, *cells])
    rows.append(
        ["private memory at the end, MiB", *(f"{results.private_mib[t]:.0f}" for t in targets)]
    )
    return Sheet("CPU seconds of the daemon + its children", ["scenario", *targets], rows)


def sheets(results: Results) -> list[Sheet]:
    """All tables that have something in them."""
    found = [main_sheet(results), lag_sheet(results), cost_sheet(results)]
    return [sheet for sheet in found if sheet is not None and sheet.rows]


def facts(results: Results) -> str:
    """One line about the machine and the run."""
    about = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    return f"{about}; seed {results.options.seed}, {results.options.rounds} rounds"


def markdown(results: Results) -> str:
    """The report as a Markdown text."""
    parts = [facts(results), *(sheet.markdown() for sheet in sheets(results))]
    parts += [f"{name} was left out: {reason}" for name, reason in results.left_out.items()]
    return "\n\n".join(parts) + "\n"


def show(results: Results, console: Console) -> None:
    """The report on a terminal; Markdown when it is none."""
    if not console.is_terminal:
        console.file.write(markdown(results))
        return
    console.print(facts(results))
    for sheet in sheets(results):
        sheet.show(console)
    for name, reason in results.left_out.items():
        console.print(f"{name} was left out: {reason}")
