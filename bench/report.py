"""From measurements to tables: medians, ratios within a round, terminal and Markdown.

1. A ratio is time by time: 2.0 means that it took twice as long. It is taken in each round and the
   median of the rounds is shown, since neighbours in time share the noise. The best peer of a
   ratio is the fastest of that round; of the table, the one with the best median, in bold.
2. Nothing is rounded before it is divided; nothing measured is left out of the JSON.

Called by bench.__main__ and its test. Pure but for printing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from bench import goals
from bench.figures import (
    BEST_PEER,
    FLOORS,
    OURS,
    PEER_NAMES,
    Steps,
    median_of,
    ratio,
    seconds_by_round,
)
from bench.results import Results
from bench.workloads import STEPS, StepInfo

MB: Final = 1_000_000


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
            table.add_row(*(cell.replace("**", "") for cell in row))
        console.print(table)


def main_sheet(results: Results) -> Sheet:
    """Medians of all targets, then the ratios of ours."""
    steps = seconds_by_round(results)
    measured = {turn.target for turn in results.turns if turn.steps}
    targets = [name for name in results.options.targets if name in measured]
    pairs = _pairs(targets)
    rows = []
    for name, info in STEPS.items():
        if name not in steps:
            continue
        title = info.title.format(**asdict(results.options.scale))
        best = _best(steps[name], targets)
        cells = []
        for target in targets:
            cell = _cell(steps[name].get(target, {}), info)
            cells.append(f"**{cell}**" if target == best else cell)
        ratios = [number(ratio(steps[name], ours, floor)) for ours, floor in pairs]
        rows.append([f"{title}{', ' + info.unit + '/s' if info.unit else ''}", *cells, *ratios])
    head = ["seconds, or what is said", *targets, *(f"{a} ÷ {b}" for a, b in pairs)]
    # Fewer than wanted, when the run was ended.
    rounds = len({turn.round for turn in results.turns})
    return Sheet(f"Medians of {rounds} round{'s' if rounds > 1 else ''}", head, rows)


def _pairs(targets: Sequence[str]) -> list[tuple[str, str]]:
    floors = [floor for floor in FLOORS if floor in targets]
    ours = [name for name in targets if name not in (*FLOORS, *PEER_NAMES)]
    if any(name in PEER_NAMES for name in targets):
        shown = OURS if OURS in targets else next(iter(ours), "")
        return [(shown, other) for other in (*floors, BEST_PEER) if shown]
    if not ours and len(floors) == len(FLOORS):
        return [("null", "native")]
    return [(name, floor) for name in ours for floor in floors]


def _best(step: Steps, targets: Iterable[str]) -> str | None:
    medians = {
        name: statistics.median(seconds / amount for seconds, amount in step[name].values())
        for name in targets
        if name in PEER_NAMES and step.get(name)
    }
    return min(medians, key=lambda name: medians[name]) if medians else None


def _cell(rounds: dict[int, tuple[float, float]], info: StepInfo) -> str:
    if not rounds:
        return "–"
    if info.unit:
        return f"{statistics.median(a / s for s, a in rounds.values()):,.0f}"
    return number(statistics.median(s for s, _ in rounds.values()))


def number(value: float | None) -> str:
    """As many digits as it takes to tell two apart."""
    if value is None:
        return "–"
    digits = 4 if value < 0.01 else 3 if value < 0.1 else 2 if value < 10 else 1
    return f"{value:.{digits}f}"


def lag_sheet(results: Results) -> Sheet | None:
    """The way of the burst to the bucket; None when nobody has one."""
    rows = []
    for late_s in sorted({lag.late_s for lag in results.lags}):
        for target in results.options.targets:
            lags = [lag for lag in results.lags if (lag.target, lag.late_s) == (target, late_s)]
            if not lags:
                continue
            mirrored = [lag.mirrored_s for lag in lags if lag.mirrored_s is not None]
            rows.append(
                [
                    target,
                    f"{lags[0].files:,}",
                    f"{1000 * late_s:.0f}",
                    number(statistics.median(lag.burst_s for lag in lags)),
                    number(statistics.median(lag.sealed_s for lag in lags)),
                    number(statistics.median(lag.burst_s + lag.sealed_s for lag in lags)),
                    number(statistics.median(mirrored)) if mirrored else "never",
                    _requests([lag.sealed_requests for lag in lags]),
                    _requests([lag.requests for lag in lags]),
                ]
            )
    if not rows:
        return None
    head = ["target", "files", "late, ms", "burst", "then all in S3", "from its start"]
    head += ["a file an object", "requests to all in S3", "requests in all"]
    return Sheet("A burst of small files and its way to the bucket: seconds", head, rows)


def _requests(counts: Sequence[dict[str, int]]) -> str:
    kinds = sorted({kind for count in counts for kind in count})
    shown = [
        f"{statistics.median_low([count.get(kind, 0) for count in counts])} {kind}"
        for kind in kinds
    ]
    return ", ".join(shown) or "0"


def wire_sheet(results: Results) -> Sheet | None:
    """What changes and cold reads took on the wire."""
    targets = [t for t in results.options.targets if any(w.target == t for w in results.wires)]
    rows = []
    for what in dict.fromkeys(wire.what for wire in results.wires):
        cells = []
        for target in targets:
            wires = [wire for wire in results.wires if (wire.what, wire.target) == (what, target)]
            if not wires:
                cells.append("–")
                continue
            requests = median_of(sum(wire.requests.values()) for wire in wires)
            cells.append(
                f"{median_of(wire.seconds for wire in wires):.2f} s, {requests:.0f}, "
                f"{median_of(wire.up_bytes for wire in wires) / MB:.2f}, "
                f"{median_of(wire.down_bytes for wire in wires) / MB:.2f}"
            )
        rows.append([what.replace("_", " "), *cells])
    if not rows:
        return None
    return Sheet("On the wire: seconds, requests, MB up, MB down", ["what", *targets], rows)


def growth_sheet(results: Results) -> Sheet | None:
    """The same work beside more and more files."""
    if not results.growths:
        return None
    rows = [
        [
            each.target,
            f"{each.files:,}",
            *(
                _us(us, each.cpu_us.get(what))
                for what, us in (
                    ("create", each.create_us),
                    ("stat", each.stat_us),
                    ("save", each.save_us),
                )
            ),
            f"{each.list_per_s:,.0f}",
            number(each.flush_s),
            "–" if each.flush_requests is None else str(each.flush_requests),
            number(each.change_s),
            number(each.change_cpu_s),
            "–" if each.private_mib is None else f"{each.private_mib:.0f}",
        ]
        for each in results.growths
    ]
    head = ["target", "files beside", "create, µs", "stat, µs", "save, µs", "list, entries/s"]
    head += ["sync after it, s", "its requests", "sync of one change, s", "CPU of that, s"]
    head += ["private memory, MiB"]
    title = "The same work beside more and more files, all in one directory"
    return Sheet(f"{title} (in brackets: the daemon's CPU)", head, rows)


def _us(us: float, cpu_us: float | None) -> str:
    return f"{us:.0f}" if cpu_us is None else f"{us:.0f} ({cpu_us:.0f})"


def sizes_sheet(results: Results) -> Sheet | None:
    """The same work in larger and larger files."""
    if not results.sizes:
        return None
    rows = [
        [
            each.target,
            f"{each.mib:,}",
            *(
                _us(us, each.cpu_us.get(what))
                for what, us in (
                    ("write", each.write_us),
                    ("read", each.read_us),
                    ("append", each.append_us),
                )
            ),
            f"{each.mib / each.fill_s:,.0f}",
            *(number(s) for s in (each.filled_s, each.change_s)),
            _mb(each.change_up_bytes),
            number(each.tail_s),
            _mb(each.tail_up_bytes),
            "–" if each.private_mib is None else f"{each.private_mib:.0f}",
        ]
        for each in results.sizes
    ]
    head = ["target", "MiB", "4 KiB write + fsync, µs", "4 KiB read, µs", "4 KiB append, µs"]
    head += ["written first, MiB/s", "sync of it, s", "4 KiB changed: sync, s", "MB sent"]
    head += ["1 MiB appended: sync, s", "MB sent", "private memory, MiB"]
    title = "The same work in larger and larger files (in brackets: the daemon's CPU)"
    return Sheet(title, head, rows)


def _mb(size_bytes: int | None) -> str:
    return "–" if size_bytes is None else f"{size_bytes / MB:.2f}"


def cost_sheet(results: Results) -> Sheet | None:
    """CPU seconds of the daemons in each scenario, and their private memory."""
    targets = [name for name in results.options.targets if name in results.peak_mib]
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
    # Of a run that was ended, there is none.
    ends = [results.private_mib.get(target) for target in targets]
    if any(end is not None for end in ends):
        shown = ("–" if end is None else f"{end:.0f}" for end in ends)
        rows.append(["private memory at the end, MiB", *shown])
    peaks = []
    for target in targets:
        below = results.peak_children_mib.get(target, 0.0)
        own_mib = results.peak_mib.get(target, 0.0)
        peaks.append(f"{own_mib:.0f} + {below:.0f}" if below else f"{own_mib:.0f}")
    rows.append(["its peak, MiB", *peaks])
    if results.idle:
        idle = [results.idle.get(target) for target in targets]
        rows.append(
            [
                "left alone: % of a CPU, children",
                *(f"{100 * i.cpu_s / i.seconds:.2f}, {i.children}" if i else "–" for i in idle),
            ]
        )
    return Sheet("CPU seconds of the daemon + its children", ["scenario", *targets], rows)


def goals_sheet(results: Results) -> Sheet | None:
    """Each goal with its figure, where it was measured."""
    rows = [
        [verdict.goal, verdict.wanted, verdict.figure, "met" if verdict.met else "**not met**"]
        for verdict in goals.judge(results)
    ]
    if not rows:
        return None
    return Sheet("The goals", ["goal", "wanted", "measured", ""], rows)


def sheets(results: Results) -> list[Sheet]:
    """All tables that have something in them."""
    found = [
        *(main_sheet(results), lag_sheet(results), wire_sheet(results), growth_sheet(results)),
        sizes_sheet(results),
        *(cost_sheet(results), goals_sheet(results)),
    ]
    return [sheet for sheet in found if sheet is not None and sheet.rows]


def facts(results: Results) -> str:
    """One line about the machine and the run."""
    about = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    return f"{about}; seed {results.options.seed}, {results.options.rounds} rounds"


def remarks(results: Results) -> list[str]:
    """What is not in the tables, and why."""
    return [
        *(f"{name} was left out: {reason}" for name, reason in results.left_out.items()),
        *(f"{name} failed: {reason}" for name, reason in results.failed.items()),
        *(f"{name} was not run: {reason}" for name, reason in results.not_run.items()),
    ]


def markdown(results: Results) -> str:
    """The report as a Markdown text."""
    parts = [facts(results), *(sheet.markdown() for sheet in sheets(results))]
    return "\n\n".join([*parts, *remarks(results)]) + "\n"


def show(results: Results, console: Console) -> None:
    """The report on a terminal; Markdown when it is none."""
    if not console.is_terminal:
        console.file.write(markdown(results))
        return
    console.print(facts(results))
    for sheet in sheets(results):
        sheet.show(console)
    for remark in remarks(results):
        console.print(remark)
