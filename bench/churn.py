"""`python -m bench.churn`: what an agent's day does to a mount, its cache and its bucket.

Turns (bench.agentday) follow each other without a pause for --seconds, with a sync after each few.
After each sync is looked: memory of the daemon and its children, descriptors, the cache file and
what of it is in use, the bucket, and the time of each kind of operation. Each third of the run
ends with a *leap*: what stands in the bucket's journal is made a day older than it is, so that the
limits of history and garbage, which are hours, apply to it, and enough is sealed for a checkpoint.

1. The workspace stays of one size (agentday), so what grows is ours.
2. Mount and everything on disk are gone at the end, whatever happened.
3. Exit code 1 when memory, cache file or bucket are not within their bounds (`judge`, pure).

Called by a person.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench import plots, processes, targets
from bench.goals import Verdict
from bench.ground import Ground, Target
from bench.report import Sheet
from bench.targets import HERE
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE, TABLES

TURN_S_MAX: Final = 300.0
SYNC_EVERY: Final = 3
"""Turns between two syncs; the flusher's own timers run besides."""
LEAPS: Final = 3
DAY_S: Final = 26 * 3600.0
"""What a leap adds to the age of the journal's objects: beyond a day of history, and its grace."""
FLUSHES_A_LEAP: Final = 68
"""So many seals hold a checkpoint at least."""
MEMORY_MIB_MORE: Final = 4.0
"""The daemon's private memory at the end, beyond what it had after a tenth of the run."""
CACHE_TIMES: Final = 4.0
CACHE_BYTES_MORE: Final = 256 << 20
"""The cache file at most: so many times what is in use at most, and that. The engine's file never
shrinks, and pages freed between two sync points (32 MiB of commits) can't serve again at once."""
BUCKET_TIMES: Final = 1.3
"""The bucket after a leap, as a multiple of what it was after the first."""
TIME_TIMES: Final = 1.3
"""An operation's median in the last third, as a multiple of that in the first."""
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


class _Agent:
    """The process that plays the day."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.agentday", str(directory), str(seed)],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def answer(self) -> dict[str, list[float]]:
        """Of the turn under way. Raises RuntimeError when it ended, TimeoutError when it hangs."""
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], TURN_S_MAX)[0]:
            raise TimeoutError(f"a turn has not ended after {TURN_S_MAX:g} s")
        line = out.readline()
        if not line:
            raise RuntimeError("the agent ended: see above")
        found: dict[str, list[float]] = json.loads(line)
        return found

    def turn(self) -> dict[str, list[float]]:
        """The next one: seconds and count by kind."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self._process.kill()
        self._process.wait(processes.END_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@dataclass(slots=True)
class Place:
    """Where to look: a mount whose store is a directory."""

    target: Target
    cache: Path
    store: Path

    def look(
        self, at_s: float, turn: int, cpu_ms: float, us: dict[str, float], *, after_leap: bool
    ) -> Look:
        """Now."""
        pid = self.target.pid
        assert pid is not None
        own, below = processes.private_mib(pid)
        journal = _weigh(self.store, "journal")
        mirror = _weigh(self.store, "files")
        return Look(
            at_s=at_s,
            turn=turn,
            daemon_mib=own,
            children_mib=below,
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            cache_bytes=self._file().stat().st_size,
            used_bytes=self._used_bytes(),
            journal_bytes=journal[0],
            bucket_bytes=journal[0] + mirror[0],
            objects=journal[1] + mirror[1],
            after_leap=after_leap,
            cpu_ms=cpu_ms,
            us=us,
        )

    def _file(self) -> Path:
        return self.cache / DATA_DIR / DATA_FILE

    def _used_bytes(self) -> int:
        with open_reader(self.cache) as reader, reader.read() as view:
            stats = [view.txn.stat(getattr(view.db, name)) for name in TABLES]
        return sum(
            stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
            for stat in stats
        )

    def leap(self) -> None:
        """A day passes for the journal; then what nothing needs goes with the next checkpoint."""
        self.target.flush()
        for path in _files(self.store, "journal"):
            info = path.stat()
            os.utime(path, (info.st_atime - DAY_S, info.st_mtime - DAY_S))
        for number in range(FLUSHES_A_LEAP):
            (self.target.directory / "leap").write_bytes(b"%d" % number)
            self.target.flush()


def _files(store: Path, kind: str) -> Iterator[Path]:
    for top in store.glob(f"conversations/*/*/workspace/{kind}"):
        for directory, _, names in os.walk(top):
            yield from (Path(directory) / name for name in names)


def _weigh(store: Path, kind: str) -> tuple[int, int]:
    """(bytes, objects) below that part of the bucket."""
    sizes = []
    for path in _files(store, kind):
        # The mount goes on while we look.
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes), len(sizes)


def day(place: Place, seconds: float, seed: int, console: Console) -> list[Look]:
    """Play it."""
    looks: list[Look] = []
    work = place.target.directory / "day"
    work.mkdir()
    agent = _Agent(work, seed)
    try:
        agent.answer()
        played_s = 0.0
        turn = leaps = 0
        times: dict[str, list[float]] = {}
        cpus: list[float] = []
        assert place.target.pid is not None
        while leaps < LEAPS:
            began_s, cpu_s = time.monotonic(), processes.cpu_s(place.target.pid)
            for kind, (took_s, count) in agent.turn().items():
                times.setdefault(kind, []).append(1e6 * took_s / count)
            cpus.append(1e3 * (processes.cpu_s(place.target.pid) - cpu_s))
            played_s += time.monotonic() - began_s
            turn += 1
            is_leap = played_s >= seconds * (leaps + 1) / LEAPS
            if turn % SYNC_EVERY and not is_leap:
                continue
            if is_leap:
                place.leap()
                leaps += 1
            else:
                began_s = time.monotonic()
                place.target.flush()
                played_s += time.monotonic() - began_s
            us = {kind: statistics.median(found) for kind, found in times.items()}
            times.clear()
            cpu_ms = statistics.median(cpus)
            cpus.clear()
            looks.append(place.look(played_s, turn, cpu_ms, us, after_leap=is_leap))
            _say(looks[-1], console)
    finally:
        agent.end()
    return looks


def _say(look: Look, console: Console) -> None:
    console.print(
        f"{look.at_s:7.0f} s, turn {look.turn}: daemon {look.daemon_mib:.1f} MiB, children "
        f"{look.children_mib:.1f}, descriptors {look.descriptors}, cache "
        f"{look.cache_bytes / MIB:.0f} MiB ({look.used_bytes / MIB:.0f} in use), bucket "
        f"{look.bucket_bytes / MIB:.0f} MiB, {look.objects} objects"
        + (", a day later" if look.after_leap else ""),
        highlight=False,
    )


def judge(looks: Sequence[Look]) -> list[Verdict]:
    """What is bounded, and whether it is. Pure."""
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
    for name, value in (
        ("daemon's processor time for a turn", _ratio(first, last, lambda each: each.cpu_ms)),
        ("median operation's time", statistics.median(slowdowns(looks).values())),
    ):
        goal, wanted = f"{name}, last third ÷ first", f"≤ {TIME_TIMES:g}"
        found.append(Verdict(goal, wanted, f"{value:.2f}", value <= TIME_TIMES))
    return found


def _ratio(first: Sequence[Look], last: Sequence[Look], of: Callable[[Look], float]) -> float:
    return statistics.median(map(of, last)) / statistics.median(map(of, first))


def slowdowns(looks: Sequence[Look]) -> dict[str, float]:
    """By kind of operation: its median in the last third ÷ that in the first."""
    third = max(1, len(looks) // 3)
    found = {}
    for kind in looks[0].us:
        parts = [
            [each.us[kind] for each in part if kind in each.us]
            for part in (looks[:third], looks[-third:])
        ]
        if all(parts):
            found[kind] = statistics.median(parts[1]) / statistics.median(parts[0])
    return found


def sheets(looks: Sequence[Look]) -> list[Sheet]:
    """The tables."""
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
        for each in judge(looks)
    ]
    times = [[kind, f"{value:.2f}"] for kind, value in slowdowns(looks).items()]
    return [
        Sheet("A day of an agent, without its pauses", head, rows),
        Sheet("An operation's time, last third ÷ first", ["operation", "ratio"], times),
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


@contextlib.contextmanager
def mounted(base: Path) -> Iterator[Place]:
    """Our mount on a directory as its store, below `base`."""
    with Ground(base) as ground, targets.ours_local(ground) as target:
        home = base / target.name
        (cache,) = (path for path in (home / "cache").iterdir() if (path / DATA_DIR).exists())
        yield Place(target, cache, home / "store")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench.churn",
        description="A day of an agent, without its pauses: memory, cache file, bucket and times.",
    )
    made.add_argument("--seconds", type=float, default=1800.0)
    made.add_argument("--seed", type=int, help="default: a new one")
    made.add_argument("--dir", type=Path, help="the disk to measure on: a directory on it")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all looks there")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    made.add_argument("--plots", type=Path, metavar="DIR", help="write a plot (SVG) there")
    return made


def main(words: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    given = parser().parse_args(words)
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    console = Console(stderr=True)
    console.print(f"seed {seed}", highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="s3ws-churn-", dir=given.dir) as name,
        mounted(Path(name).resolve()) as place,
    ):
        looks = day(place, given.seconds, seed, console)
    if given.json is not None:
        document: dict[str, Any] = {"seed": seed, "looks": [asdict(each) for each in looks]}
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    text = "\n\n".join(sheet.markdown() for sheet in sheets(looks)) + "\n"
    if given.markdown is not None:
        given.markdown.write_text(text)
    if given.plots is not None:
        given.plots.mkdir(parents=True, exist_ok=True)
        (given.plots / "bench-churn.svg").write_text(plot(looks))
    print(text)
    return 0 if all(each.met for each in judge(looks)) else 1


if __name__ == "__main__":
    sys.exit(main())
