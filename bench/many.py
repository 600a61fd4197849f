"""`python -m bench.many`: what many mounts on one host cost: time, memory, idle processor, a burst.

--mounts workspaces of as many conversations on one server are mounted, --parallel at a time; each
gets a few files, all is synced, and they are left alone. Then what their processes hold and use
while nothing happens is read from /proc. Then --busy of them get --files small files at once: how
long that takes, until all of it is in the bucket, and against one of them doing it alone. At the
end each workspace is compared with what was written into it: nobody's file is another's.

1. Mounts, server and everything on disk are gone at the end, whatever happened.
2. Memory is shown in two ways: private (what ending the process would give back) and proportional
   (shared pages divided by those who share them), from smaps_rollup.
3. Nothing is judged here but isolation; the figures are for people.

Called by a person.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from tests.support.buckets import S3Bucket
from tests.support.host import Host, child_pids
from tests.support.seaweed import running_seaweed

SETTLE_S_MAX: Final = 120.0
"""So long at most the workers are waited for, which end by themselves when idle."""
POLL_S: Final = 0.5
FIRST_FILES: Final = 5
FILE_BYTES: Final = 2000
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Spent:
    """Processor time and wake-ups of a process since it started."""

    cpu_s: float
    switches: int


@dataclass
class Figures:
    """What was measured. Times in seconds, memory in MiB, of all mounts unless said."""

    mounts: int
    parallel: int
    mount_all_s: float = 0.0
    mount_median_s: float = 0.0
    mount_longest_s: float = 0.0
    settle_s: float = 0.0
    daemon_private_mib: float = 0.0
    daemon_proportional_mib: float = 0.0
    holder_private_mib: float = 0.0
    holder_proportional_mib: float = 0.0
    workers_when_idle: int = 0
    idle_s: float = 0.0
    idle_cpu_percent: float = 0.0
    """Of one processor, all mounts together."""
    idle_wakeups_per_s: float = 0.0
    idle_requests: int = 0
    busy: int = 0
    alone_written_s: float = 0.0
    alone_saved_s: float = 0.0
    busy_written_s: float = 0.0
    busy_saved_s: float = 0.0
    busy_longest_stat_ms: float = 0.0
    """Of a mount beside them that has nothing to do with it."""
    umount_all_s: float = 0.0
    mixed_up: list[str] = field(default_factory=list)


def content(number: int, name: str) -> bytes:
    """The bytes of a file: they name the conversation that they belong to."""
    return (f"conversation {number} {name}\n".encode() * 100)[:FILE_BYTES]


def write(host: Host, number: int, prefix: str, count: int) -> None:
    """Small files below the mount."""
    for at in range(count):
        name = f"{prefix}{at}"
        (host.mountpoint / name).write_bytes(content(number, name))


def processes(host: Host) -> tuple[int, int | None, list[int]]:
    """(daemon, holder, transfer workers and other children) of a mount."""
    info = host.info()
    assert info is not None, host.mountpoint
    return info.pid, info.holder_pid, child_pids(info.pid)


def memory_mib(pid: int) -> tuple[float, float]:
    """(private, proportional) of a process, proc_pid_smaps_rollup."""
    found = {"Pss:": 0, "Private_Clean:": 0, "Private_Dirty:": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        if name in found:
            found[name] += int(value)
    return (found["Private_Clean:"] + found["Private_Dirty:"]) / 1024, found["Pss:"] / 1024


def spent(pid: int) -> Spent:
    """From stat and the status of each thread."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                switches += int(line.split()[1])
    return Spent((int(fields[11]) + int(fields[12])) / _TICKS_PER_S, switches)


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took."""
    begun_s = time.monotonic()
    work()
    return time.monotonic() - begun_s


def in_parallel(works: Iterable[Callable[[], object]], parallel: int) -> list[float]:
    """Seconds that each took; `parallel` at a time."""
    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(timed, works))


class Many:
    """One run."""

    def __init__(self, hosts: list[Host], figures: Figures, console: Console) -> None:
        self.hosts = hosts
        self.figures = figures
        self._console = console

    def mount(self) -> None:
        """All of them, from nothing."""
        figures = self.figures
        waits: list[float] = []

        def all_of_them() -> None:
            waits.extend(in_parallel([host.mount for host in self.hosts], figures.parallel))

        self._say(f"mounting {len(self.hosts)} workspaces, {figures.parallel} at a time")
        figures.mount_all_s = timed(all_of_them)
        figures.mount_median_s, figures.mount_longest_s = statistics.median(waits), max(waits)
        self._say("writing into each, and saving it")
        numbered = enumerate(self.hosts)
        in_parallel([partial(self._first, *each) for each in numbered], figures.parallel)

    @staticmethod
    def _first(number: int, host: Host) -> None:
        write(host, number, "first", FIRST_FILES)
        host.sync()

    def idle(self, for_s: float) -> None:
        """What they cost when nothing happens."""
        figures = self.figures
        self._say("waiting for the transfer workers to end")
        begun_s = time.monotonic()
        while (found := self._workers()) and time.monotonic() - begun_s < SETTLE_S_MAX:
            time.sleep(POLL_S * max(1, len(found) / 20))
        figures.settle_s = time.monotonic() - begun_s
        ids = [processes(host) for host in self.hosts]
        daemons = [memory_mib(daemon) for daemon, _, _ in ids]
        holders = [memory_mib(holder) for _, holder, _ in ids if holder]
        figures.daemon_private_mib = statistics.median(each[0] for each in daemons)
        figures.daemon_proportional_mib = statistics.median(each[1] for each in daemons)
        if holders:
            figures.holder_private_mib = statistics.median(each[0] for each in holders)
            figures.holder_proportional_mib = statistics.median(each[1] for each in holders)
        pids = [pid for daemon, holder, _ in ids for pid in (daemon, holder) if pid]
        requests = self._requests()
        # Asking wakes a daemon: what that cost is not theirs.
        before = [spent(pid) for pid in pids]
        begun_s = time.monotonic()
        for _ in track(range(20), "idle", console=self._console, transient=True):
            time.sleep(for_s / 20)
        figures.idle_s = time.monotonic() - begun_s
        after = [spent(pid) for pid in pids]
        cpu_s = sum(each.cpu_s for each in after) - sum(each.cpu_s for each in before)
        woken = sum(each.switches for each in after) - sum(each.switches for each in before)
        figures.idle_cpu_percent = 100 * cpu_s / figures.idle_s
        figures.idle_wakeups_per_s = woken / figures.idle_s
        figures.idle_requests = self._requests() - requests
        figures.workers_when_idle = len(self._workers())

    def _workers(self) -> list[int]:
        return [pid for host in self.hosts for pid in processes(host)[2]]

    def _requests(self) -> int:
        return sum(sum(host.now()["requests"].values()) for host in self.hosts)

    def burst(self, files: int) -> None:
        """Small files into some of them at once, and before that into one alone."""
        figures = self.figures
        busy = list(enumerate(self.hosts))[: figures.busy]
        if not busy:
            return
        self._say(f"{files} files into one of them, then into {len(busy)} at once")
        number, host = busy[0]
        figures.alone_written_s = timed(lambda: write(host, number, "alone", files))
        figures.alone_saved_s = timed(host.sync)
        beside, over = self.hosts[-1], threading.Event()
        waits = [0.0]

        def look() -> None:
            while not over.is_set():
                waits.append(timed((beside.mountpoint / "first0").read_bytes))
                time.sleep(0.01)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            works = [
                lambda number=number, host=host: write(host, number, "busy", files)
                for number, host in busy
            ]
            figures.busy_written_s = timed(lambda: in_parallel(works, len(works)))
        finally:
            over.set()
            looking.join()
        figures.busy_longest_stat_ms = max(waits) * 1000
        figures.busy_saved_s = timed(
            lambda: in_parallel([host.sync for _, host in busy], len(busy))
        )

    def compare(self) -> None:
        """Every file of every mount, with what was written there."""
        for number, host in enumerate(self.hosts):
            for path in host.mountpoint.iterdir():
                if path.read_bytes() != content(number, path.name):
                    self.figures.mixed_up.append(str(path))

    def umount(self) -> None:
        """All of them, saved."""
        self._say("unmounting")
        works = [host.umount for host in self.hosts]
        self.figures.umount_all_s = timed(lambda: in_parallel(works, self.figures.parallel))

    def _say(self, text: str) -> None:
        self._console.print(text)


def run(args: argparse.Namespace, console: Console) -> Figures:
    """Mount, measure, unmount."""
    figures = Figures(args.mounts, args.parallel, busy=min(args.busy, args.mounts))
    with tempfile.TemporaryDirectory(prefix="s3ws-many-") as name, running_seaweed() as server:
        base = Path(name)
        bucket = S3Bucket(server)
        hosts = [
            Host(
                base / str(number),
                bucket.env,
                user=f"user{number % 7}",
                conversation=f"conversation-{number}",
                settings={},
            )
            for number in range(args.mounts)
        ]
        shared = {
            "WORKSPACE_CACHE_DIR": str(base / "cache"),
            "WORKSPACE_RUNTIME_DIR": str(base / "run"),
        }
        for host in hosts:
            host.settings |= shared
            host.cache, host.runtime = base / "cache", base / "run"
        many = Many(hosts, figures, console)
        try:
            many.mount()
            many.idle(args.idle_seconds)
            many.burst(args.files)
            many.compare()
            many.umount()
        finally:
            for host in hosts:
                with contextlib.suppress(OSError, AssertionError):
                    host.end()
    return figures


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mounts", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--busy", type=int, default=20)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--idle-seconds", type=float, default=120.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(words)
    figures = run(args, Console(stderr=True))
    if args.json:
        print(json.dumps(asdict(figures), indent=2))
    else:
        for name, value in asdict(figures).items():
            print(f"{name:<26} {value:.2f}" if isinstance(value, float) else f"{name:<26} {value}")
    if figures.mixed_up:
        sys.exit("a workspace holds what was not written into it")


if __name__ == "__main__":
    main()
