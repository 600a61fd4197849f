"""Every n-th thing that can fail, fails once: a request, a commit, a sync point, a call, a worker.

`python -m tests.crash.every` tries each fault at each n of both workloads and prints figures and
failures; `--only request commit` some kinds, `--sample` one fault for each n (what CI does).

What must hold: whoever is told of the failure tries once more, as a person or a program would, and
in the end cache, journal and mirror are exactly the model's files (Rig.require_in_step): nothing
dropped, nothing twice, nobody fenced by himself, no object of ours taken for somebody else's.

Called by test_every_fault.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

from s3ws_fs.core import failpoints as fp
from tests.crash.rig import Rig, Step, fast_directory
from tests.crash.workloads import FIRST, SECOND
from tests.support.armed import ERRORS
from tests.support.faulty_store import CHANGES, Fault, nth
from tests.support.inline import WorkerDied

WORKLOADS: Final[dict[str, tuple[Step, ...]]] = {"first": FIRST, "second": SECOND}

REQUEST: Final = "request"
COMMIT: Final = "commit"
SYNC_POINT: Final = "sync point"
SYSCALL: Final = "system call"
WORKER: Final = "worker"
KINDS: Final = (REQUEST, COMMIT, SYNC_POINT, SYSCALL, WORKER)

POINTS: Final[dict[str, tuple[str, ...]]] = {
    COMMIT: (fp.COMMIT_BEFORE, fp.BOOK_BEFORE),
    SYNC_POINT: (fp.SYNC_BEGUN, fp.SYNC_FLUSHED, fp.SYNC_WRITTEN),
    WORKER: (
        fp.WORKSPACE_MADE, fp.FREEZE_BEFORE, fp.FREEZE_AFTER, fp.SHIP_BEFORE, fp.SHIP_AFTER,
        fp.SEAL_BEFORE, fp.SEAL_AFTER, fp.CHECKPOINT_BEFORE, fp.CHECKPOINT_AFTER,
        fp.GARBAGE_BATCH, fp.GARBAGE_AFTER, fp.MIRROR_PUT_BEFORE, fp.MIRROR_PUT_AFTER,
        fp.MIRROR_DELETE_BEFORE, fp.MIRROR_DELETE_AFTER, fp.MIRROR_HINT,
    ),
}  # fmt: skip
"""Which points count as one of a kind. Those of the worker: it dies there, the daemon lives on."""

FAULTS: Final[dict[str, tuple[str, ...]]] = {
    COMMIT: ("lmdb-eio", "lmdb-enospc", "lmdb-map-full"),
    SYNC_POINT: ("eio", "lmdb-eio"),
    SYSCALL: ("eio", "enospc"),
    WORKER: ("died", "enospc"),
}
CALLS: Final = ("fsync", "fdatasync", "pwrite", "replace", "rename", "posix_fallocate", "ftruncate")
"""System calls of ours that make something durable, as functions of `os`."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault at the n-th of a kind."""

    host: str
    kind: str
    number: int
    fault: str

    def __str__(self) -> str:
        return f"{self.host} host, {self.kind} {self.number}: {self.fault}"


class Counted:
    """Counts points of a kind, and fails at the n-th."""

    def __init__(self, kind: str, number: int = 0, fault: str = "") -> None:
        self.count = 0
        self._kind, self._number, self._fault = kind, number, fault

    def __call__(self, point: str) -> None:
        if point not in POINTS[self._kind]:
            return
        self.count += 1
        if self.count == self._number:
            raise WorkerDied(point) if self._fault == "died" else ERRORS[self._fault](point)


class Base:
    """The plain runs: what there is to fail, and the bucket that the second host starts from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: dict[tuple[str, int], list[str]] = {}
        self.first = Rig(directory / "first", is_watching=False)
        second = Rig.after(self.first, directory / "unused", is_watching=False)
        for host, steps in WORKLOADS.items():
            if host == "second":
                second = Rig.after(self.first, directory / "second", is_watching=False)
            self._count(host, self.first if host == "first" else second, steps)

    def _count(self, host: str, rig: Rig, steps: tuple[Step, ...]) -> None:
        counted = {kind: Counted(kind) for kind in POINTS}

        def on_point(point: str) -> None:
            for each in counted.values():
                each(point)

        rig.on_point = on_point
        with failing_call(0) as calls:
            rig.run(steps)
        for kind, each in counted.items():
            self.counts[host, kind] = each.count
        self.counts[host, SYSCALL] = calls.count
        self.counts[host, REQUEST] = len(rig.faulty.requests)
        for request in rig.faulty.requests:
            self.faults[host, request.number] = [f.value for f in _faults_of(request.op)]

    def trials(self, kind: str, *, sample: bool) -> Iterator[Trial]:
        """All of a kind, or one fault for each n, in turn."""
        for host in WORKLOADS:
            for number in range(1, self.counts[host, kind] + 1):
                known = self.faults[host, number] if kind == REQUEST else list(FAULTS[kind])
                # Of two faults and every second n, each would have but one.
                for fault in [known[number * 5 // 3 % len(known)]] if sample else known:
                    yield Trial(host, kind, number, fault)

    def attempt(self, trial: Trial) -> Rig:
        """Run a workload with one fault. Raises AssertionError when something does not hold."""
        base = self.directory / "trial"
        shutil.rmtree(base, ignore_errors=True)
        if trial.host == "first":
            rig = Rig(base, is_watching=False)
        else:
            rig = Rig.after(self.first, base, is_watching=False)
        calls: Any = contextlib.nullcontext()
        if trial.kind == REQUEST:
            rig.choose = nth(trial.number, Fault(trial.fault))
        elif trial.kind == SYSCALL:
            calls = failing_call(trial.number, trial.fault)
        else:
            rig.on_point = Counted(trial.kind, trial.number, trial.fault)
        try:
            with calls:
                rig.run(WORKLOADS[trial.host])
            rig.remount()
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt):
                raise
            raise AssertionError(f"{trial}; refused: {rig.refused}") from exc
        return rig


def _faults_of(op: str) -> list[Fault]:
    if op == "get":
        return [Fault.ERROR, Fault.DENIED, Fault.SHORT, Fault.FLIPPED]
    if op not in CHANGES:
        return [Fault.ERROR, Fault.DENIED] + [Fault.PARTIAL] * (op == "list")
    partial = [Fault.PARTIAL] * (op == "delete_many")
    return [Fault.LOST, Fault.LATE, Fault.ERROR, Fault.DENIED, *partial]


class _Calls:
    def __init__(self) -> None:
        self.count = 0


@contextlib.contextmanager
def failing_call(number: int, fault: str = "eio") -> Iterator[_Calls]:
    """The n-th of CALLS fails and does nothing; 0: none does, they are counted."""
    calls = _Calls()

    def wrapped(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.count += 1
            if calls.count == number:
                raise OSError(getattr(errno, fault.upper()), f"injected: {name}")
            return real(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for name in CALLS:
            replaced = wrapped(getattr(os, name), name)
            stack.enter_context(mock.patch.object(os, name, replaced))
        yield calls


def main() -> int:
    """Try all, print figures; the exit status says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--sample", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    failures = 0
    with fast_directory("s3ws-every-") as directory:
        base = Base(Path(directory))
        for kind in arguments.only:
            started_s, count, refused = time.monotonic(), 0, 0
            for trial in base.trials(kind, sample=arguments.sample):
                count += 1
                try:
                    refused += bool(base.attempt(trial).refused)
                except AssertionError as exc:
                    failures += 1
                    print(f"FAILED {exc}: {exc.__cause__!r}"[:1000])
            seconds = time.monotonic() - started_s
            print(f"{kind}: {count} faults, {refused} told to somebody, {seconds:.0f} s")
    print("all held" if not failures else f"{failures} did not hold")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
