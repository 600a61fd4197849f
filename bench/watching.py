"""`python -m bench.watching`: what it costs a mount that `s3ws watch` looks on.

One mount, and in it the same work again and again, each time in a new directory: without a watcher,
with one (the command itself, its lines go to a file), and without one once more, which says how
much of a difference is noise. The order changes with each round. What is shown are medians of the
ratios within rounds: of the time that the work took, and of the daemon's processor time.

1. The mount is at rest before each turn (synced, and nobody watches), and a turn is over before
   its changes are flushed: what is measured is the foreground, and the watcher's questions.
2. A turn's processor time is read when the watcher has told the last change of it.
3. Mount, watcher and everything on disk are gone at the end, whatever happened.

Called by a person.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import targets
from bench.ground import Ground, Target
from bench.processes import cpu_s
from tests.support.mounting import REPOSITORY

WAYS: Final = ("without", "watched", "again")
WAIT_S_MAX: Final = 30.0
POLL_S: Final = 0.005
FILE_BYTES: Final = 2000
NOTE: Final = b"twelve bytes"
LAST: Final = "the-last-of-it"


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds of the work; processor seconds of the daemon, and of the watcher (0: none)."""

    work: str
    way: str
    round: int
    wall_s: float
    daemon_s: float
    watcher_s: float


def create(directory: Path, count: int) -> None:
    """Small files, each written once."""
    body = bytes(FILE_BYTES)
    for number in range(count):
        _write(f"{directory}/{number}", body)


def append(directory: Path, count: int) -> None:
    """A log: one file, written in small pieces."""
    fd = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        for _ in range(count):
            os.write(fd, NOTE)
    finally:
        os.close(fd)


def save(directory: Path, count: int) -> None:
    """An editor: a file beside, renamed over the one before."""
    body = bytes(FILE_BYTES)
    for number in range(count):
        _write(f"{directory}/new", body)
        os.rename(f"{directory}/new", f"{directory}/{number % 20}")


def _write(path: str, body: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(fd, body)
    finally:
        os.close(fd)


WORKS: Final[dict[str, Callable[[Path, int], None]]] = {
    "create": create,
    "append": append,
    "save": save,
}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll. Raises TimeoutError."""
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(what)
        time.sleep(POLL_S)


@contextlib.contextmanager
def watcher(target: Target, home: Path) -> Iterator[tuple[int, Callable[[], str]]]:
    """`s3ws watch` on it: its process, and what it printed so far."""
    env = {**os.environ, "WORKSPACE_RUNTIME_DIR": str(home / "run")}
    printed = home / "printed"
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "s3ws_fs", "watch", str(target.directory)],
            cwd=REPOSITORY,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
    try:
        wait_until(lambda: printed.stat().st_size > 0, "the watcher says nothing")
        yield process.pid, lambda: printed.read_text(errors="replace")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(WAIT_S_MAX)


def turn(target: Target, home: Path, work: str, way: str, number: int, count: int) -> Turn:
    """One turn, from rest to rest."""
    pid = target.pid
    assert pid is not None
    directory = target.directory / f"{work}-{way}-{number}"
    directory.mkdir()
    target.settle()
    with contextlib.ExitStack() as stack:
        watching: int | None = None
        printed: Callable[[], str] = str
        if way == "watched":
            watching, printed = stack.enter_context(watcher(target, home))
        before = cpu_s(pid), cpu_s(watching) if watching else 0.0
        began_s = time.perf_counter()
        WORKS[work](directory, count)
        wall_s = time.perf_counter() - began_s
        _write(f"{directory}/{LAST}", b"")
        if watching:
            wait_until(lambda: LAST in printed(), "the watcher did not tell all")
        after = cpu_s(pid), cpu_s(watching) if watching else 0.0
    return Turn(work, way, number, wall_s, after[0] - before[0], after[1] - before[1])


def measure(rounds: int, count: int, works: list[str], base: Path, console: Console) -> list[Turn]:
    """All turns."""
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="s3ws-watching-", dir=base) as name,
        Ground(Path(name)) as ground,
        targets.ours_local(ground) as target,
    ):
        home = Path(name) / target.name
        for number in track(range(rounds), "measuring", console=console, transient=True):
            for work in works:
                at = number % len(WAYS)
                for way in WAYS[at:] + WAYS[:at]:
                    found.append(turn(target, home, work, way, number, count))
    return found


def ratios(turns: list[Turn], work: str, of: Callable[[Turn], float]) -> dict[str, list[float]]:
    """By round: `watched` to the mean of the two without, and `noise`, those two to each other."""
    by = {(each.way, each.round): of(each) for each in turns if each.work == work}
    found: dict[str, list[float]] = {"watched": [], "noise": []}
    for number in sorted({each.round for each in turns}):
        without, watched, again = (by[way, number] for way in WAYS)
        found["watched"].append(watched / ((without + again) / 2))
        found["noise"].append(again / without)
    return found


def table(turns: list[Turn], works: list[str], count: int) -> Table:
    """For a person: medians, and the middle half of what they are medians of."""
    made = Table(title=f"s3ws watch, {count} operations a turn")
    for title in ("work", "µs each", "time", "daemon's cpu", "watcher's cpu, µs each"):
        made.add_column(title, justify="left" if title == "work" else "right")
    for work in works:
        times = ratios(turns, work, lambda each: each.wall_s)
        daemons = ratios(turns, work, lambda each: each.daemon_s)
        watched = [each for each in turns if (each.work, each.way) == (work, "watched")]
        own_us = 1e6 * statistics.median(each.watcher_s for each in watched) / count
        each_us = 1e6 * statistics.median(each.wall_s for each in watched) / count
        made.add_row(
            work,
            f"{each_us:.0f}",
            _spread(times["watched"]),
            _spread(daemons["watched"]),
            f"{own_us:.0f}",
        )
        made.add_row("  (noise)", "", _spread(times["noise"]), _spread(daemons["noise"]), "")
    return made


def _spread(found: list[float]) -> str:
    if len(found) < 2:
        return f"×{found[0]:.3f}"
    low, middle, high = statistics.quantiles(found, n=4)
    return f"×{middle:.3f} ({low:.2f}–{high:.2f})"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--count", type=int, default=600, help="operations a turn")
    parser.add_argument("--work", action="append", choices=WORKS)
    parser.add_argument("--dir", type=Path, help="the disk to measure on: a directory on it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(words)
    works = args.work or list(WORKS)
    console = Console(stderr=True)
    turns = measure(args.rounds, args.count, works, args.dir, console)
    if args.json:
        print(json.dumps([asdict(each) for each in turns], indent=1))
    console.print(table(turns, works, args.count))


if __name__ == "__main__":
    main()
