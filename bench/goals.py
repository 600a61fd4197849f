"""What we want to reach, and whether a run's figures say so. Pure.

A goal is judged on our mount before the run's S3 server; one that was not measured in the run is
not in the list. Where the figure is of several workloads, the worst one decides and is named.

Called by bench.report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from bench.figures import (
    BEST_PEER,
    OURS,
    Steps,
    median_of,
    rate,
    ratio,
    seconds,
    seconds_by_round,
)
from bench.results import Lag, Results, Wire
from bench.workloads import STEPS

SMALL: Final = ("create", "save", "clone", "untar", "add", "read")
SMALL_RATIO_MAX: Final = 0.8
BULK: Final = ("seq_write", "seq_read", "rand_write", "fio")
BULK_RATIO_MAX: Final = 1.3
WARM: Final = ("stat_again", "absent_again")
WARM_RATIO_MAX: Final = 1.25
"""Both answer from the kernel alone: what is more than noise is a request."""
DELETE_MIN, WAL_MIN = 400, 3500
SEALED_S_MAX, SEALED_LATE_S_MAX, SEALED_REQUESTS_MAX = 1.0, 2.0, 20
MIRRORED_S_MAX: Final = 10.0
DURING_RATIO_MAX: Final = 1.25
"""A fifth less a second is a quarter more time."""
COLD_S_MAX: Final = 0.5
COLD_FILES_MIN, COLD_MIB_MIN = 2000, 200
FILES_PER_REQUEST_MIN: Final = 10
CHANGE_BYTES_MAX: Final = 10_000_000
NAME_BYTES_MAX: Final = 100_000
"""Of a rename: the record of it, and no content."""
APPEND_BYTES_MAX: Final = 2 << 20
"""For one MiB appended."""
MEMORY_MIB_MAX: Final = 45
IDLE_PERCENT_MAX: Final = 0.1
REQUESTS_A_FLUSH_MAX: Final = 20
FLAT_RATIO_MAX: Final = 1.3
LIST_MIN: Final = 50_000
MB: Final = 1_000_000
NOT_FOREGROUND: Final = ("cold", "alone", "during")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal with its figure."""

    goal: str
    wanted: str
    figure: str
    met: bool


def judge(results: Results) -> list[Verdict]:
    """All goals that this run says something about."""
    steps = seconds_by_round(results)
    return [
        *_foreground(results, steps),
        *_durability(results, steps),
        *_cold(results, steps),
        *_large(results),
        *_cost(results),
        *_growth(results),
    ]


def _title(results: Results, name: str) -> str:
    return STEPS[name].title.format(**asdict(results.options.scale))


def _worst(
    results: Results, steps: dict[str, Steps], names: Sequence[str], other: str, most: float
) -> tuple[str, bool] | None:
    """(what to show, whether all are within `most`)."""
    found = {name: ratio(steps[name], OURS, other) for name in names if name in steps}
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return None
    over = sorted((name for name in known if known[name] > most), key=lambda n: -known[n])
    if not over:
        worst = max(known, key=lambda name: known[name])
        return f"at most {known[worst]:.2f} ({_title(results, worst)})", True
    shown = ", ".join(f"{_title(results, name)} {known[name]:.2f}" for name in over)
    return f"{len(known) - len(over)} of {len(known)}; not: {shown}", False


def _foreground(results: Results, steps: dict[str, Steps]) -> Iterator[Verdict]:
    # Whom the kernel answers in both is neither's merit: judged by itself, below.
    all_names = [n for n in STEPS if not n.startswith(NOT_FOREGROUND) and n not in WARM]
    for goal, names, other, most in (
        ("1 every workload ÷ the best peer", all_names, BEST_PEER, 1.0),
        ("1 small files and metadata ÷ null", SMALL, "null", SMALL_RATIO_MAX),
        ("1 bulk ÷ null", BULK, "null", BULK_RATIO_MAX),
        ("1 warm stats ÷ null (the kernel's own)", WARM, "null", WARM_RATIO_MAX),
    ):
        worst = _worst(results, steps, names, other, most)
        if worst is not None:
            yield Verdict(goal, f"≤ {most:g}", *worst)
    for name, least in (("sqlite_delete", DELETE_MIN), ("sqlite_wal", WAL_MIN)):
        found = rate(steps.get(name, {}), OURS)
        if found is not None:
            mode = name.removeprefix("sqlite_").upper()
            yield Verdict(f"1 sqlite {mode}", f"≥ {least}/s", f"{found:,.0f}/s", found >= least)


def _durability(results: Results, steps: dict[str, Steps]) -> Iterator[Verdict]:
    for late, most_s in ((False, SEALED_S_MAX), (True, SEALED_LATE_S_MAX)):
        lags = [lag for lag in _lags(results) if bool(lag.late_s) == late]
        if not lags:
            continue
        what = f"2 {lags[0].files:,} files → sealed" + (", requests 30 ms late" if late else "")
        sealed_s = median_of(lag.sealed_s for lag in lags)
        yield Verdict(what, f"< {most_s:g} s", f"{sealed_s:.2f} s", sealed_s < most_s)
        if not late:
            count = median_of(sum(lag.sealed_requests.values()) for lag in lags)
            fewest = count <= SEALED_REQUESTS_MAX
            yield Verdict("2 requests for it", f"≤ {SEALED_REQUESTS_MAX}", f"{count:.0f}", fewest)
            mirrored = [lag.mirrored_s for lag in lags if lag.mirrored_s is not None]
            if mirrored:
                took_s = median_of(mirrored)
                wanted = f"< {MIRRORED_S_MAX:g} s"
                yield Verdict("2 mirrored", wanted, f"{took_s:.2f} s", took_s < MIRRORED_S_MAX)
    during, alone = steps.get("during", {}).get(OURS, {}), steps.get("alone", {}).get(OURS, {})
    both = [during[n][0] / alone[n][0] for n in during if n in alone]
    if both:
        figure = median_of(both)
        wanted = f"≤ {DURING_RATIO_MAX:g}"
        met = figure <= DURING_RATIO_MAX
        yield Verdict("2 a burst during an upload ÷ alone", wanted, f"{figure:.2f}", met)


def _lags(results: Results) -> list[Lag]:
    return [lag for lag in results.lags if lag.target == OURS]


def _wires(results: Results, what: str) -> list[Wire]:
    return [wire for wire in results.wires if (wire.target, wire.what) == (OURS, what)]


def _cold(results: Results, steps: dict[str, Steps]) -> Iterator[Verdict]:
    ready = seconds(steps.get("cold_ready", {}), OURS)
    first = seconds(steps.get("cold_ls", {}), OURS)
    files = results.options.scale.cold_files
    if ready is not None and first is not None:
        took_s = ready + first
        shown = f"{took_s:.2f} s ({files:,} files)"
        yield Verdict("3 cold: ready and first ls", f"< {COLD_S_MAX:g} s", shown, took_s < 0.5)
    for what, goal, count in (
        ("cold find", "3 cold find: requests", files),
        (
            "cold read late",
            "3 cold read, 30 ms late: requests",
            results.options.scale.cold_late_files,
        ),
    ):
        wires = _wires(results, what)
        if wires:
            requests = median_of(sum(wire.requests.values()) for wire in wires)
            most = count / FILES_PER_REQUEST_MIN
            figure = f"{requests:.0f} in {median_of(w.seconds for w in wires):.2f} s"
            yield Verdict(goal, f"≤ {most:.0f} for {count:,} files", figure, requests <= most)
    for name, least, unit in (
        ("cold_read", COLD_FILES_MIN, "files/s"),
        ("cold_large", COLD_MIB_MIN, "MiB/s"),
    ):
        found = rate(steps.get(name, {}), OURS)
        if found is not None:
            goal = f"3 {_title(results, name)}"
            yield Verdict(goal, f"≥ {least:,} {unit}", f"{found:,.0f} {unit}", found >= least)


def _large(results: Results) -> Iterator[Verdict]:
    size = results.options.scale.large_mib
    for what, goal, most in (
        ("large_change", f"4 4 KiB changed in {size} MiB: uploads", CHANGE_BYTES_MAX),
        ("large_append", f"4 1 MiB appended to {size} MiB: uploads", APPEND_BYTES_MAX),
        ("large_rename", f"4 {size} MiB renamed: uploads", NAME_BYTES_MAX),
    ):
        wires = _wires(results, what)
        if wires:
            passed = median_of(wire.up_bytes for wire in wires)
            figure = f"{passed / MB:.2f} MB"
            yield Verdict(goal, f"≤ {most / MB:.1f} MB", figure, passed <= most)


def _cost(results: Results) -> Iterator[Verdict]:
    peak = results.peak_mib.get(OURS)
    if peak is not None:
        met = peak <= MEMORY_MIB_MAX
        yield Verdict("5 daemon's peak memory", f"≤ {MEMORY_MIB_MAX} MiB", f"{peak:.0f} MiB", met)
    idle = results.idle.get(OURS)
    if idle is not None:
        percent = 100 * idle.cpu_s / idle.seconds
        met = percent <= IDLE_PERCENT_MAX
        yield Verdict("5 CPU when idle", f"≤ {IDLE_PERCENT_MAX} %", f"{percent:.2f} %", met)
        gone = idle.children == 0
        yield Verdict("5 worker gone when idle", "0", str(idle.children), gone)
    lags = [lag for lag in _lags(results) if not lag.late_s]
    if lags:
        more = median_of(sum(lag.requests.values()) - lag.files for lag in lags)
        wanted = f"≤ 1 a file + {REQUESTS_A_FLUSH_MAX}"
        figure = f"1 a file {more:+.0f} ({lags[0].files:,} files)"
        met = more <= REQUESTS_A_FLUSH_MAX
        yield Verdict("5 requests for changed files", wanted, figure, met)
        again = median_of(lag.again for lag in lags)
        yield Verdict("5 requests for unchanged ones", "0", f"{again:.0f}", again == 0)


def _growth(results: Results) -> Iterator[Verdict]:
    found = [each for each in results.growths if each.target.startswith("ours")]
    found = [each for each in found if each.target == found[0].target]
    if len(found) > 1:
        first, last = found[0], found[-1]
        span = f"{last.files:,} files ÷ {first.files:,}"
        yield from _flat(
            span,
            ("create", first.create_us, last.create_us),
            ("stat", first.stat_us, last.stat_us),
            ("save", first.save_us, last.save_us),
            ("sync", first.flush_s, last.flush_s),
            *(
                (f"{what}, daemon's CPU", cpu_us, last.cpu_us.get(what))
                for what, cpu_us in first.cpu_us.items()
            ),
            ("sync of one change, CPU", first.change_cpu_s, last.change_cpu_s),
        )
        listed = last.list_per_s
        goal = f"6 a directory of {last.files:,} listed"
        yield Verdict(goal, f"≥ {LIST_MIN:,}/s", f"{listed:,.0f}/s", listed >= LIST_MIN)
    sized = [each for each in results.sizes if each.target.startswith("ours")]
    sized = [each for each in sized if each.target == sized[-1].target]
    if len(sized) > 1:
        small, large = sized[0], sized[-1]
        yield from _flat(
            f"a file of {large.mib:,} MiB ÷ {small.mib:,}",
            ("4 KiB write + fsync", small.write_us, large.write_us),
            ("4 KiB read", small.read_us, large.read_us),
            ("append", small.append_us, large.append_us),
            *(
                (f"{what}, daemon's CPU", cpu_us, large.cpu_us.get(what))
                for what, cpu_us in small.cpu_us.items()
            ),
        )
        sent = large.change_up_bytes
        if sent is not None:
            goal = f"6 4 KiB changed in {large.mib:,} MiB: uploads"
            wanted = f"≤ {CHANGE_BYTES_MAX / MB:.1f} MB"
            yield Verdict(goal, wanted, f"{sent / MB:.2f} MB", sent <= CHANGE_BYTES_MAX)


def _flat(span: str, *pairs: tuple[str, float | None, float | None]) -> Iterator[Verdict]:
    for name, before, now in pairs:
        if before and now is not None:
            figure = now / before
            met = figure <= FLAT_RATIO_MAX
            yield Verdict(f"6 {name}, {span}", f"≤ {FLAT_RATIO_MAX:g}", f"{figure:.2f}", met)
