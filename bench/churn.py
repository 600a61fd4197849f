"""`python -m bench.churn`: what an agent's day does to a mount, its cache and its bucket.

Turns (bench.agentday) follow each other without a pause for --seconds, with a sync after each few.
After each sync is looked: memory of the daemon and its children, descriptors, the cache file and
what of it is in use, the bucket, and the time of each kind of operation. Each third of the run
ends with a *leap*: what stands in the bucket's journal is made a day older than it is, so that the
limits of history and garbage, which are hours, apply to it, and enough is sealed for a checkpoint.
At the end a fresh mount plays the same turns in turn with the aged one: the time of an operation is
held against that, since over half an hour a machine's other work changes.

1. The workspace stays of one size (agentday), so what grows is ours.
2. Mount and everything on disk are gone at the end, whatever happened.
3. Exit code 1 when memory, cache file or bucket are not within their bounds
   (bench.churnfigures).

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench import processes, targets
from bench.churnfigures import MIB, Day, Look, Turns, judge, medians, plot, sheets
from bench.ground import Ground, Target
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
COMPARED_TURNS: Final = 24
WARM_TURNS: Final = 3
"""Of the fresh mount, before it is held against the other."""


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


def timed_turn(place: Place, agent: _Agent) -> tuple[float, dict[str, float]]:
    """The next turn: the daemon's processor time (ms), and µs of one operation of each kind."""
    assert place.target.pid is not None
    cpu_s = processes.cpu_s(place.target.pid)
    us = {kind: 1e6 * took_s / count for kind, (took_s, count) in agent.turn().items()}
    return 1e3 * (processes.cpu_s(place.target.pid) - cpu_s), us


@contextlib.contextmanager
def agent_at(place: Place, seed: int) -> Iterator[_Agent]:
    """An agent at work there, its first files made."""
    work = place.target.directory / "day"
    work.mkdir()
    agent = _Agent(work, seed)
    try:
        agent.answer()
        yield agent
    finally:
        agent.end()


def play(place: Place, agent: _Agent, seconds: float, console: Console) -> list[Look]:
    """The day."""
    looks: list[Look] = []
    played_s = 0.0
    turn = leaps = 0
    turns = Turns([], [])
    while leaps < LEAPS:
        began_s = time.monotonic()
        cpu_ms, us = timed_turn(place, agent)
        turns.cpu_ms.append(cpu_ms)
        turns.us.append(us)
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
        cpu_ms = statistics.median(turns.cpu_ms)
        looks.append(place.look(played_s, turn, cpu_ms, medians(turns), after_leap=is_leap))
        turns = Turns([], [])
        _say(looks[-1], console)
    return looks


def compare(aged: tuple[Place, _Agent], fresh: tuple[Place, _Agent]) -> tuple[Turns, Turns]:
    """The same work on both, turn by turn."""
    for _ in range(WARM_TURNS):
        fresh[1].turn()
    found = (Turns([], []), Turns([], []))
    for number in range(COMPARED_TURNS):
        both = [(aged, found[0]), (fresh, found[1])]
        for (place, agent), turns in both if number % 2 else reversed(both):
            # Nobody is measured beside the other's uploads.
            for each, _ in (aged, fresh):
                each.target.flush()
            cpu_ms, us = timed_turn(place, agent)
            turns.cpu_ms.append(cpu_ms)
            turns.us.append(us)
    return found


def _say(look: Look, console: Console) -> None:
    console.print(
        f"{look.at_s:7.0f} s, turn {look.turn}: daemon {look.daemon_mib:.1f} MiB, children "
        f"{look.children_mib:.1f}, descriptors {look.descriptors}, cache "
        f"{look.cache_bytes / MIB:.0f} MiB ({look.used_bytes / MIB:.0f} in use), bucket "
        f"{look.bucket_bytes / MIB:.0f} MiB, {look.objects} objects"
        + (", a day later" if look.after_leap else ""),
        highlight=False,
    )


@contextlib.contextmanager
def mounted(base: Path) -> Iterator[Place]:
    """Our mount on a directory as its store, below `base`."""
    base.mkdir()
    with Ground(base) as ground, targets.ours_local(ground) as target:
        home = base / target.name
        (cache,) = (path for path in (home / "cache").iterdir() if (path / DATA_DIR).exists())
        yield Place(target, cache, home / "store")


def measure(base: Path, seconds: float, seed: int, console: Console) -> Day:
    """The day, and at its end the comparison."""
    with mounted(base / "aged") as place, agent_at(place, seed) as agent:
        looks = play(place, agent, seconds, console)
        with mounted(base / "fresh") as other, agent_at(other, seed) as second:
            aged, fresh = compare((place, agent), (other, second))
    return Day(looks, aged, fresh)


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
    with tempfile.TemporaryDirectory(prefix="s3ws-churn-", dir=given.dir) as name:
        found = measure(Path(name).resolve(), given.seconds, seed, console)
    if given.json is not None:
        document: dict[str, Any] = {"seed": seed, **asdict(found)}
        given.json.write_text(json.dumps(document, indent=1) + "\n")
    text = "\n\n".join(sheet.markdown() for sheet in sheets(found)) + "\n"
    if given.markdown is not None:
        given.markdown.write_text(text)
    if given.plots is not None:
        given.plots.mkdir(parents=True, exist_ok=True)
        (given.plots / "bench-churn.svg").write_text(plot(found.looks))
    print(text)
    return 0 if all(each.met for each in judge(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
