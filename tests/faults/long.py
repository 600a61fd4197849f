"""The long form: a mount at work through real minutes of every outage, with figures.

    python -m tests.faults.long [--minutes 2] [--seconds 60] [--only NAME ...]

Invariants
1. The work never stops: a thread writes, appends, renames and deletes all the time, and every file
   is compared with what the thread knows at the end, on another host.
2. After each outage the whole promise of `Outages.settled` is asserted.

Run by hand. What it printed last stands in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tests.faults.outages import OUTAGES, Front, Outages
from tests.support import proxy as faults
from tests.support import trees
from tests.support.host import Host
from tests.support.mounting import wait_until
from tests.support.proxy import faulty_proxy
from tests.support.seaweed import running_seaweed

DEBOUNCE_MAX_S: Final = 30.0
HEALED_S_MAX: Final = 300.0
FILES: Final = 200
SETTINGS: Final = {"WORKSPACE_SYNC_DEBOUNCE_MIN": "2", "WORKSPACE_SYNC_DEBOUNCE_MAX": "30"}
"""The usual ones."""


@dataclass
class Busy:
    """Work that never stops while `running`."""

    top: Path
    rng: random.Random
    operations: int = 0
    slowest_s: float = 0.0
    known: dict[str, bytes] = field(default_factory=dict)
    running: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    resting: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def run(self) -> None:
        """One operation after the other, about a hundred a second."""
        try:
            while not self.ended.is_set():
                if not self.running.wait(0.05):
                    self.resting.set()
                    continue
                self.resting.clear()
                began = time.monotonic()
                self._one()
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.operations += 1
                time.sleep(0.01)
        except BaseException as exc:
            self.error = exc
            self.resting.set()

    def _one(self) -> None:
        name = f"f{self.rng.randrange(FILES)}"
        path, body = self.top / name, self.known.get(name)
        action = self.rng.choice(("write", "append", "append", "rename", "remove", "read"))
        if body is None or action == "write":
            body = self.rng.randbytes(self.rng.choice((10, 3000, 50_000)))
            path.write_bytes(body)
            self.known[name] = body
        elif action == "append":
            more = self.rng.randbytes(100)
            with path.open("ab") as file:
                file.write(more)
            self.known[name] = body + more
        elif action == "rename":
            other = f"f{self.rng.randrange(FILES)}"
            path.rename(self.top / other)
            del self.known[name]
            self.known[other] = body
        elif action == "remove":
            path.unlink()
            del self.known[name]
        else:
            assert path.read_bytes() == body

    def rest(self) -> None:
        """Return when no operation is under way."""
        self.running.clear()
        self.resting.clear()
        assert self.resting.wait(60), "an operation on the mount hangs"
        if self.error is not None:
            raise self.error

    def differences(self, top: Path) -> list[str]:
        """Where a directory is not what is known."""
        there = {path.name: path.read_bytes() for path in top.iterdir()}
        names = there.keys() | self.known.keys()
        return [name for name in sorted(names) if there.get(name) != self.known.get(name)]


@dataclass(frozen=True)
class Row:
    """What one outage showed."""

    name: str
    lasted_s: float
    told_s: float | None
    said: str
    operations: int
    slowest_s: float
    injected: int
    fresh_s: float
    well_s: float
    journal: int

    def line(self) -> str:
        """For the table."""
        told = "-" if self.told_s is None else f"{self.told_s:.0f}"
        return (
            f"| {self.name} | {self.lasted_s:.0f} | {told} | {self.operations} "
            f"| {self.slowest_s * 1000:.0f} | {self.injected} | {self.fresh_s:.1f} "
            f"| {self.well_s:.1f} | {self.journal} |"
        )


HEAD: Final = (
    "| outage | lasted s | told after s | local operations | slowest ms | requests spoilt "
    "| oldest dirt below the limit, s after healing | all saved, s after healing | journal |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


class Long:
    """The run."""

    def __init__(self, told: Outages, busy: Busy, long_s: float, short_s: float) -> None:
        self.told = told
        self.busy = busy
        self.long_s = long_s
        self.short_s = short_s
        self.rows: list[Row] = []

    def plan(self) -> dict[str, tuple[float, Callable[[], None]]]:
        """Seconds and beginning of each outage."""
        proxy, whole_s, short_s = self.told.proxy, self.long_s, self.short_s
        long_ones = ("refused", "black hole")
        found: dict[str, tuple[float, Callable[[], None]]] = {
            name: (whole_s if name in long_ones else short_s, partial(outage.begin, proxy))
            for name, outage in OUTAGES.items()
        }
        found["3 s of latency"] = (whole_s, lambda: proxy.weather(faults.late(3.0)))
        mix = (
            faults.INTERNAL,
            faults.SLOW_DOWN,
            faults.CUT_REQUEST,
            faults.LOST,
            faults.RESET_ANSWER,
            faults.SHORT,
            faults.CORRUPT,
        )
        found["a third spoilt in some way"] = (
            whole_s,
            lambda: proxy.weather(*mix, share=0.33, seed=1),
        )
        found["worker killed every 2 s"] = (whole_s / 2, self._kill_workers)
        found["worker stopped"] = (short_s, lambda: self._signal_worker(signal.SIGSTOP))
        found["server killed"] = (short_s, self.told.bucket.server.kill)
        return found

    def _signal_worker(self, number: int) -> None:
        wait_until(lambda: self.told.host.now()["worker_pid"] is not None, timeout_s=60)
        os.kill(self.told.host.now()["worker_pid"], number)

    def _kill_workers(self) -> None:
        until_s = time.monotonic() + self.long_s / 2
        while time.monotonic() < until_s:
            self._signal_worker(signal.SIGKILL)
            time.sleep(2)

    def one(self, name: str, lasts_s: float, begin: Callable[[], None]) -> None:
        """One outage, and what it showed."""
        told, busy, proxy = self.told, self.busy, self.told.proxy
        newest, operations, injected = told.newest(), busy.operations, self._injected()
        busy.slowest_s = 0.0
        busy.running.set()
        began = time.monotonic()
        begin()
        told_s, said = None, ""
        while time.monotonic() - began < lasts_s:
            health = told.host.now()["health"]
            if health["state"] == "degraded":
                said = health["error"]
                told_s = time.monotonic() - began if told_s is None else told_s
            time.sleep(0.5)
        lasted_s = time.monotonic() - began
        done, slowest_s = busy.operations - operations, busy.slowest_s
        assert busy.error is None
        assert done > lasts_s, "the work did not go on"
        spoilt = self._injected() - injected
        if told.bucket.server.pid is None:
            told.bucket.server.start()
        proxy.heal()
        healed = time.monotonic()
        # The work still goes on: the oldest change must get young again all the same.
        wait_until(self._is_fresh, timeout_s=HEALED_S_MAX, what=f"{name}: young dirt")
        fresh_s = time.monotonic() - healed
        busy.rest()
        told.settled(HEALED_S_MAX)
        well_s = time.monotonic() - healed
        row = Row(
            name, lasted_s, told_s, said, done, slowest_s, spoilt, fresh_s, well_s, told.newest()
        )
        assert row.journal > newest
        self.rows.append(row)
        print(row.line(), f"\n    {said}" if said else "", flush=True)

    def _injected(self) -> int:
        return sum(count for name, count in self.told.proxy.struck.items() if name)

    def _is_fresh(self) -> bool:
        now = self.told.host.now()
        age_s = now["dirty"]["oldest_age_s"]
        return now["health"]["state"] == "ok" and (age_s is None or age_s < DEBOUNCE_MAX_S)

    def end(self, base: Path) -> None:
        """Everything is in the bucket, by every way of looking at it."""
        host = self.told.host
        host.s3ws("check", host.mountpoint, "--bucket")
        before = trees.manifest(host.mountpoint)
        assert self.busy.differences(self.busy.top) == []
        host.umount()
        other = host.elsewhere(base / "another")
        try:
            other.mount()
            assert trees.differences(before, trees.manifest(other.mountpoint)) == []
            assert self.busy.differences(other.mountpoint / self.busy.top.name) == []
            other.umount()
        finally:
            other.end()


def run(base: Path, long_s: float, short_s: float, only: list[str]) -> None:
    """All outages, one after the other, on one mount."""
    with running_seaweed() as server, faulty_proxy(server.endpoint_url) as proxy:
        bucket = Front(server, proxy)
        host = Host(base / "host", bucket.env, user="long", settings=SETTINGS)
        busy = Busy(host.mountpoint / "busy", random.Random(1))
        thread = threading.Thread(target=busy.run, daemon=True)
        try:
            host.mount()
            busy.top.mkdir()
            thread.start()
            long = Long(Outages(host, proxy, bucket), busy, long_s, short_s)
            print(HEAD, flush=True)
            for name, (lasts_s, begin) in long.plan().items():
                if not only or name in only:
                    long.one(name, lasts_s, begin)
            long.end(base)
            injected = sum(row.injected for row in long.rows)
            print(
                f"{len(long.rows)} outages, {injected} requests spoilt, {busy.operations} local "
                f"operations, journal numbers 1 to {long.rows[-1].journal} compared: nothing lost"
            )
        finally:
            busy.ended.set()
            proxy.heal()
            host.end()
            bucket.close()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long the long ones last")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the others last")
    parser.add_argument("--only", nargs="*", default=[], help="names of outages")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="s3ws-long-", ignore_cleanup_errors=True) as base:
        run(Path(base), args.minutes * 60, args.seconds, args.only)


if __name__ == "__main__":
    main()
