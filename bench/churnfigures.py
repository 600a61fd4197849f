"""The figures of an agent's day: what is bounded, tables, a plot. Pure.

Called by bench.churn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench import plots
from bench.goals import Verdict
from bench.report import Sheet

MEMORY_MIB_MORE: Final = 4.0
"""The daemon's private memory at the end, beyond what it had after a tenth of the run."""
CACHE_TIMES: Final = 4.0
CACHE_BYTES_MORE: Final = 256 << 20
"""The cache file at most: so many times what is in use at most, and that. The engine's file never
shrinks, and pages freed between two sync points (32 MiB of commits) can't serve again at once."""
BUCKET_TIMES: Final = 1.3
"""The bucket after a leap, as a multiple of what it was after the first."""
TIME_TIMES: Final = 1.3
"""An operation's median on the aged mount, as a multiple of that on the fresh one."""
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Look:
    """One look. Memory in MiB; `bucket_bytes` and `objects`: journal and mirror.

    `cpu_ms`: the daemon's processor time for a turn, `us`: the clock's for one operation of each
    kind; both medians of the turns since the look before.
    """

    at_s: float
    turn: int
    daemon_mib: float
    children_mib: float
    descriptors: int
    cache_bytes: int
    used_bytes: int
    journal_bytes: int
    bucket_bytes: int
    objects: int
    after_leap: bool
    cpu_ms: float
    us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Turns:
    """By turn: the daemon's processor time (ms), and µs for one operation of each kind."""

    cpu_ms: list[float]
    us: list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Day:
    """All that was measured. `aged` and `fresh`: turns that took turns, at the end."""

    looks: list[Look]
    aged: Turns
    fresh: Turns


def medians(turns: Turns) -> dict[str, float]:
    """By kind of operation."""
    by_kind: dict[str, list[float]] = {}
    for each in turns.us:
        for kind, us in each.items():
            by_kind.setdefault(kind, []).append(us)
    return {kind: statistics.median(found) for kind, found in by_kind.items()}


def slowdowns(found: Day) -> dict[str, float]:
    """By kind of operation: its median on the aged mount ÷ that on the fresh one."""
    aged, fresh = medians(found.aged), medians(found.fresh)
    return {kind: aged[kind] / fresh[kind] for kind in aged if kind in fresh}


def judge(of: Day) -> list[Verdict]:
    """What is bounded, and whether it is. Pure."""
    looks = of.looks
    tenth = looks[max(0, len(looks) // 10 - 1)]
    first, last = looks[: max(1, len(looks) // 3)], looks[-max(1, len(looks) // 3) :]
    found = []
    more = statistics.median(each.daemon_mib for each in last) - tenth.daemon_mib
    for name, most, value in (
        ("memory of the daemon since a tenth of the day", MEMORY_MIB_MORE, more),
        (
            "memory of its children at most, last third − first",
            2 * MEMORY_MIB_MORE,
            max(each.children_mib for each in last) - max(each.children_mib for each in first),
        ),
    ):
        found.append(Verdict(name, f"≤ +{most:g} MiB", f"{value:+.1f} MiB", value <= most))
    used = max(each.used_bytes for each in looks)
    cache_max = CACHE_TIMES * used + CACHE_BYTES_MORE
    size = max(each.cache_bytes for each in looks)
    wanted = f"≤ {cache_max / MIB:.0f} MiB"
    found.append(Verdict("cache file", wanted, f"{size / MIB:.0f} MiB", size <= cache_max))
    grown = looks[-1].cache_bytes / max(each.cache_bytes for each in first)
    found.append(Verdict("cache file, end ÷ first third", "≤ 1.1", f"{grown:.2f}", grown <= 1.1))
    leaps = [each for each in looks if each.after_leap]
    if len(leaps) > 1:
        times = leaps[-1].bucket_bytes / leaps[0].bucket_bytes
        goal = "bucket a day later, last ÷ first"
        wanted = f"≤ {BUCKET_TIMES:g}"
        found.append(Verdict(goal, wanted, f"{times:.2f}", times <= BUCKET_TIMES))
    spread = [each.descriptors for each in last]
    opened = max(spread) - max(each.descriptors for each in first)
    found.append(
        Verdict("open descriptors, last third − first", "≤ 0", f"{opened:+d}", opened <= 0)
    )
    cpu = statistics.median(of.aged.cpu_ms) / statistics.median(of.fresh.cpu_ms)
    for name, value in (
        ("daemon's processor time for a turn", cpu),
        ("median operation's time", statistics.median(slowdowns(of).values())),
    ):
        goal, wanted = f"{name}, aged ÷ fresh", f"≤ {TIME_TIMES:g}"
        found.append(Verdict(goal, wanted, f"{value:.2f}", value <= TIME_TIMES))
    return found


def sheets(of: Day) -> list[Sheet]:
    """The tables."""
    looks = of.looks
    step = max(1, len(looks) // 12)
    shown = [each for n, each in enumerate(looks) if n % step == 0 or each.after_leap]
    if shown[-1] is not looks[-1]:
        shown.append(looks[-1])
    rows = [
        [
            f"{each.at_s:,.0f}" + (", a day later" if each.after_leap else ""),
            str(each.turn),
            f"{each.cpu_ms:.0f}",
            f"{each.daemon_mib:.1f}",
            f"{each.children_mib:.1f}",
            str(each.descriptors),
            *(f"{value / MIB:.0f}" for value in (each.cache_bytes, each.used_bytes)),
            *(f"{value / MIB:.0f}" for value in (each.journal_bytes, each.bucket_bytes)),
            f"{each.objects:,}",
        ]
        for each in shown
    ]
    head = [
        "after, s",
        "turns",
        "CPU a turn, ms",
        "daemon, MiB",
        "children, MiB",
        "descriptors",
        "cache file, MiB",
    ]
    head += ["in use, MiB", "journal, MiB", "bucket, MiB", "objects"]
    verdicts = [
        [each.goal, each.wanted, each.figure, "met" if each.met else "**not met**"]
        for each in judge(of)
    ]
    times = [[kind, f"{value:.2f}"] for kind, value in slowdowns(of).items()]
    return [
        Sheet("A day of an agent, without its pauses", head, rows),
        Sheet(
            "An operation's time at the end of the day, aged mount ÷ fresh one",
            ["operation", "ratio"],
            times,
        ),
        Sheet("Bounds", ["what", "wanted", "measured", ""], verdicts),
    ]


def plot(looks: Sequence[Look]) -> str:
    """What stays and what does not, over the turns (SVG)."""
    kinds: dict[str, Callable[[Look], float]] = {
        "daemon": lambda each: each.daemon_mib,
        "cache file": lambda each: each.cache_bytes / MIB,
        "in use": lambda each: each.used_bytes / MIB,
        "bucket": lambda each: each.bucket_bytes / MIB,
    }
    series = {
        name: [(each.turn, max(0.1, of(each))) for each in looks] for name, of in kinds.items()
    }
    return plots.lines("MiB over an agent's day", series, "turns")
