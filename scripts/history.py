"""What history, restores and forks cost, on SeaweedFS: `python -m scripts.history [--files N]`.

A mounted workspace of N files (50,000, about 500 MB) is sealed, changed a little, and sealed again.
Then each command is timed as a person runs it, in a process of its own, TRIALS times; the shortest,
the median and the longest are printed, with the processor time of the command itself (which says
more than the clock on a busy machine), and the requests where they are told.

Restores go in rounds: some files are changed, or all are deleted, and the state of before is
brought back; at once that is undone, and the undo is, too. Meanwhile a file of the mount is looked
at again and again, and the longest look is told. `--only restores` leaves out the rest.

Invariants
1. Nothing is left: mount, server and directories end with the run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Self

from tests.support.buckets import S3Bucket
from tests.support.host import NEVER_BY_ITSELF, Host
from tests.support.seaweed import running_seaweed

TRIALS: Final = 5
ROUNDS: Final = 3
LOOK_EVERY_S: Final = 0.005
FILES: Final = 50_000
BYTES_EACH: Final = 10_000
CHANGED: Final = 500
SETTINGS: Final = NEVER_BY_ITSELF | {"WORKSPACE_MAX_SIZE_MB": "4096"}


def fill(top: Path, count: int) -> None:
    """Files of random bytes, a hundred in a directory."""
    rng = random.Random(1)
    for number in range(count):
        above = top / f"d{number // 10_000}" / f"e{number // 100}"
        if number % 100 == 0:
            above.mkdir(parents=True)
        (above / f"f{number}.txt").write_bytes(rng.randbytes(rng.randrange(2 * BYTES_EACH)))


def change(top: Path, seed: int, count: int) -> None:
    """Some files written anew, some moved, some removed."""
    rng = random.Random(seed)
    found = sorted(top.glob("d*/e*/f*.txt"))
    for at, path in enumerate(rng.sample(found, min(CHANGED, count // 10))):
        if at % 3 == 0:
            path.write_bytes(rng.randbytes(BYTES_EACH))
        elif at % 3 == 1:
            path.rename(path.with_suffix(f".moved-{seed}"))
        else:
            path.unlink()


def children_s() -> float:
    """Processor time of all commands so far."""
    used = os.times()
    return used.children_user + used.children_system


class Timing:
    """How long a thing took, each time."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._cpu: list[float] = []
        self._said = ""

    def time(self, work: Callable[[], object]) -> None:
        """Run it once more."""
        begun_s, spent_s = time.monotonic(), children_s()
        result = work()
        self._seconds.append(time.monotonic() - begun_s)
        self._cpu.append(children_s() - spent_s)
        self._said = f"  {result}" if isinstance(result, str) else ""

    def show(self, name: str) -> None:
        """One line of the table."""
        took = self._seconds
        low, middle, high = min(took), statistics.median(took), max(took)
        spent_s = statistics.median(self._cpu)
        figures = f"{low:6.2f} {middle:6.2f} {high:6.2f} s {spent_s:6.2f} s cpu"
        print(f"{name:<42} {figures}{self._said}", flush=True)


def timed(name: str, work: Callable[[], object], trials: int = TRIALS) -> None:
    """Run it, and print how long it took."""
    timing = Timing()
    for _ in range(trials):
        timing.time(work)
    timing.show(name)


def run(base: Path, count: int) -> None:
    """The whole measurement."""
    with running_seaweed() as server:
        bucket = S3Bucket(server)
        host = Host(base / "host", bucket.env, settings=SETTINGS)
        looker = host.elsewhere(base / "looker")
        try:
            host.mount()
            top = host.mountpoint
            timed("files written", lambda: fill(top, count), 1)
            timed("the first seal", lambda: host.s3ws("snapshot", "--name", "one", top), 1)
            for number in range(5):
                change(top, number, count)
                host.s3ws("snapshot", "--name", f"s{number}", top)
            look(host, looker, sorted(top.glob("d*/e*/f*.txt"))[0].relative_to(top))
            fork(host, base)
        finally:
            looker.end()
            host.end()
            bucket.close()


def look(host: Host, looker: Host, path: Path) -> None:
    """diff, log, cat, and a mount of a point."""
    timed("a command that does nothing (version)", lambda: host.s3ws("version"))
    timed("diff of neighbours (#5 #6)", lambda: host.s3ws("diff", "#5", "#6"))
    timed("diff of far points (#1 #6)", lambda: host.s3ws("diff", "#1", "#6"))
    timed("diff --patch of neighbours", lambda: host.s3ws("diff", "#5", "#6", "-p"))
    timed("diff #6 head on the mount", lambda: host.s3ws("diff", "#6", "-m", host.mountpoint))
    timed("log -n 5", lambda: host.s3ws("log", "-n", "5"))
    timed("log PATH", lambda: host.s3ws("log", os.fspath(path)))
    timed("cat #3:FILE", lambda: host.s3ws("cat", f"#3:{path}"))

    def at() -> None:
        looker.mount("--at", "#3")
        begun_s = time.monotonic()
        (looker.mountpoint / path).read_bytes()
        first_reads.append(time.monotonic() - begun_s)
        looker.umount()

    first_reads: list[float] = []
    timed("mount --at #3, first read, umount", at)
    print(f"{'  of that: the first read of a file':<42} {statistics.median(first_reads):6.2f} s")


def fork(host: Host, base: Path) -> None:
    """Forks, and that one is whole."""
    numbers = iter(range(TRIALS))

    def one() -> str:
        done = host.json("fork", host.settings["WORKSPACE_CONVERSATION_ID"], f"c{next(numbers)}")
        size = done["copied_bytes"] >> 20
        return f"{done['objects']} objects, {size} MiB, requests {done['requests']}"

    timed("fork", one)
    target = host.elsewhere(base / "target")
    target.settings["WORKSPACE_CONVERSATION_ID"] = "c0"
    try:
        timed("first mount of a fork", lambda: target.mount() and None, 1)
    finally:
        target.end()


class Looks:
    """Somebody who looks at a file again and again while the block lasts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.longest_s = 0.0

    def _look(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            begun_s = time.monotonic()
            self._path.exists()
            self.longest_s = max(self.longest_s, time.monotonic() - begun_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def restores(base: Path, count: int) -> None:
    """Snapshots, restores and undos of a mount that saves by itself."""
    with running_seaweed() as server:
        bucket = S3Bucket(server)
        settings = {"WORKSPACE_MAX_SIZE_MB": "4096", "WORKSPACE_BACKUP_INTERVAL": "0"}
        host = Host(base / "restores", bucket.env, settings=settings)
        try:
            host.mount()
            top = host.mountpoint
            fill(top, count)
            host.sync()
            timed("snapshot", lambda: host.s3ws("snapshot", top))
            for what, do in (("some changed", change), ("all deleted", delete)):
                rounds(host, what, partial(do, top), count)
        finally:
            host.end()
            bucket.close()


def rounds(host: Host, what: str, do: Callable[[int, int], None], count: int) -> None:
    """There and back again."""
    top = host.mountpoint
    timings = {name: Timing() for name in ("restore", "undo at once", "undo of that")}
    with Looks(top / "d0" / "e0" / "f0.txt") as looks:
        for number in range(ROUNDS):
            point = f"{what.replace(' ', '-')}-{number}"
            host.s3ws("snapshot", "--name", point, top)
            do(100 + number, count)
            for name, timing in timings.items():
                words = ("restore", point) if name == "restore" else ("undo",)
                timing.time(partial(host.s3ws, *words, top, "--yes"))
            host.s3ws("restore", point, top, "--yes")
    for name, timing in timings.items():
        timing.show(f"{what}: {name}")
    print(f"{'  the longest look at a file meanwhile':<42} {looks.longest_s:6.2f} s")


def delete(top: Path, _seed: int, _count: int) -> None:
    """Everything goes."""
    for path in top.iterdir():
        shutil.rmtree(path)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--only", choices=("history", "restores"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="s3ws-history-") as directory:
        if arguments.only != "restores":
            run(Path(directory), arguments.files)
        if arguments.only != "history":
            restores(Path(directory), arguments.files)


if __name__ == "__main__":
    main()
