"""Measurements that look at both sides: what happens in the directory, and what reaches the bucket.

1. A clock that runs until "in the bucket" is stopped by the target's own word, and the word is
   checked against the bucket afterwards, by sizes and bytes, where a person can read it.
2. Requests and bytes are counted at the proxy: nobody is believed about them.
3. What makes requests late is taken back before the function returns.

Called by bench.runner.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench import growth, pieces
from bench.ground import FLUSH_POLL_S, Ask, Backing, ScenarioError, Target
from bench.proxy import Counts
from bench.results import Lag, Results, Wire
from bench.workloads import MIB, Job, Step

LATE_S: Final = 0.03
SAVED_TIMEOUT_S: Final = 300.0
STATUS_POLL_S: Final = 0.01
CHECKED_EVERY: Final = 20
"""Of a burst, so many files' objects are compared byte by byte; of all, names and sizes."""


@dataclass(slots=True)
class Stage:
    """One measurement under way. `child`: runs a job in a process of its own."""

    results: Results
    target: Target
    job: Job
    number: int
    child: Callable[[Job], list[Step]]

    def piece(self, name: str, files: int | None = None) -> list[Step]:
        """Run one of bench.pieces, with so many small files."""
        return self.child(self.job_of(name, files))

    def job_of(self, name: str, files: int | None = None) -> Job:
        """The job of that piece."""
        scale = self.job.scale
        changed = dataclasses.replace(scale, small_files=files or scale.small_files)
        return dataclasses.replace(self.job, scenario=name, scale=changed)

    @property
    def where(self) -> str:
        """The job's directory, as seen from the mount."""
        return self.job.directory.rpartition("/")[2]

    def counts(self) -> Counts:
        """Now: at the proxy, or for a store without one what our daemon says."""
        if self.target.backing is not None:
            return self.target.backing.proxy.counts()
        assert self.target.ask is not None
        return Counts(dict(self.target.ask("status")["requests"]))


def lag(stage: Stage) -> list[Step]:
    """A burst, then the way to the bucket."""
    return _lag(stage, stage.job.scale.small_files, 0.0)


def lag_late(stage: Stage) -> list[Step]:
    """The same with requests that are late."""
    return _lag(stage, stage.job.scale.late_files, LATE_S)


def _lag(stage: Stage, files: int, late_s: float) -> list[Step]:
    target, backing = stage.target, stage.target.backing
    job = stage.job_of("burst", files)
    mirrored_s: float | None
    with _late(backing, late_s):
        before = stage.counts()
        (burst,) = stage.child(job)
        if target.ask is not None:
            sealed_s, at_seal, mirrored_s = _ours_saved(stage, target.ask)
        else:
            assert backing is not None
            sealed_s = _peer_saved(backing, stage.where, job, before)
            at_seal = stage.counts()
            mirrored_s = sealed_s if backing.readable else None
        after = stage.counts()
        if backing is not None:
            _check_burst(backing, stage.where, job)
        target.flush()
        settled = stage.counts()
        target.flush()
        again = stage.counts().since(settled).total
    requests = (at_seal.since(before).requests, after.since(before).requests)
    found = Lag(
        *(stage.number, target.name, files, late_s, burst.seconds, sealed_s, mirrored_s),
        *(*requests, again),
    )
    stage.results.lags.append(found)
    return []


@contextlib.contextmanager
def _late(backing: Backing | None, seconds: float) -> Iterator[None]:
    if backing is None or not seconds:
        yield
        return
    with backing.proxy.late(seconds):
        yield


def _ours_saved(stage: Stage, ask: Ask) -> tuple[float, Counts, float]:
    """`sync`; another connection watches when the head of that moment is sealed."""
    head = ask("status")["generation"]["head"]
    began = time.perf_counter()
    sync = _Asking(ask, "sync")
    sealed: tuple[float, Counts] | None = None
    while sealed is None:
        finished = not sync.is_alive()
        if ask("status")["generation"]["sealed"] >= head:
            sealed = (time.perf_counter() - began, stage.counts())
        elif finished or time.perf_counter() - began > SAVED_TIMEOUT_S:
            break
        else:
            time.sleep(STATUS_POLL_S)
    ended = sync.wait()
    after = ask("status")
    if sealed is None or after["generation"]["mirrored"] < head:
        raise ScenarioError(f"sync ended, but the burst is not in the bucket: {after}")
    return sealed[0], sealed[1], ended - began


class _Asking(threading.Thread):
    """One command in a thread of its own."""

    def __init__(self, ask: Ask, command: str) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self._command = command
        self._ended = 0.0
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._ask(self._command)
        except Exception as exc:
            self._error = exc
        self._ended = time.perf_counter()

    def wait(self) -> float:
        """When it ended (perf_counter seconds). Raises what the command raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._ended


def _peer_saved(backing: Backing, where: str, job: Job, before: Counts) -> float:
    """Seconds until the peer says that nothing is pending and the bucket has it all."""
    began = time.perf_counter()
    wanted = {name: len(body) for name, body in pieces.burst_files(job)}
    while True:
        backing.wait_saved()
        said_s = time.perf_counter() - began
        # A file that is not even queued yet is not pending: the bucket has the last word.
        if backing.readable:
            complete = backing.sizes(where).items() >= wanted.items()
        else:
            up_bytes = backing.proxy.counts().since(before).up_bytes
            complete = up_bytes >= sum(wanted.values())
        if complete:
            return said_s
        if said_s > SAVED_TIMEOUT_S:
            raise ScenarioError("nothing is pending, but the burst is not in the bucket")
        time.sleep(FLUSH_POLL_S)


def _check_burst(backing: Backing, where: str, job: Job) -> None:
    if not backing.readable:
        return
    files = dict(pieces.burst_files(job))
    sizes = backing.sizes(where)
    if sizes != {name: len(body) for name, body in files.items()}:
        raise ScenarioError(f"the bucket holds {len(sizes)} objects of {len(files)} files")
    for number, (name, body) in enumerate(files.items()):
        if number % CHECKED_EVERY == 0 and backing.body(f"{where}/{name}") != body:
            raise ScenarioError(f"{name} in the bucket differs from what was written")


def cold(stage: Stage) -> list[Step]:
    """Another host's first mount: ready, look around, read everything back."""
    scale = stage.job.scale
    assert stage.target.cold is not None
    stage.piece("burst", scale.cold_files)
    stage.piece("large_fill")
    stage.target.flush()
    steps = [Step("cold_ready", stage.target.cold(), 1)]
    for what in ("find", "read", "large_read"):
        before, began = stage.counts(), time.perf_counter()
        steps += stage.piece(what, scale.cold_files)
        _wire(stage, f"cold {what}", time.perf_counter() - began, stage.counts().since(before))
    return steps


def cold_late(stage: Stage) -> list[Step]:
    """Reading it back when each request is late."""
    count = stage.job.scale.cold_late_files
    assert stage.target.cold is not None
    stage.piece("burst", count)
    stage.target.flush()
    with _late(stage.target.backing, LATE_S):
        stage.target.cold()
        before, began = stage.counts(), time.perf_counter()
        (step,) = stage.piece("read", count)
        _wire(stage, "cold read late", time.perf_counter() - began, stage.counts().since(before))
    return [Step("cold_read_late", step.seconds, step.amount)]


def large(stage: Stage) -> list[Step]:
    """A large file: a block of it changes, it grows, it gets another name."""
    backing = stage.target.backing
    assert backing is not None
    stage.target.flush()
    for what in ("large_fill", "large_change", "large_append", "large_rename"):
        before, began = stage.counts(), time.perf_counter()
        stage.piece(what)
        stage.target.flush()
        _wire(stage, what, time.perf_counter() - began, stage.counts().since(before))
    if backing.readable:
        _check_large(backing, stage)
    return []


def _check_large(backing: Backing, stage: Stage) -> None:
    size = stage.job.scale.large_mib * MIB + pieces.APPEND_BYTES
    found = backing.sizes(stage.where)
    if found != {pieces.RENAMED: size}:
        raise ScenarioError(f"the large file is not in the bucket as it should be: {found}")
    at, wanted = pieces.changed_at(stage.job), pieces.block(stage.job)
    for start, body in ((at, wanted), (size - pieces.APPEND_BYTES, pieces.tail(stage.job))):
        if backing.body(f"{stage.where}/{pieces.RENAMED}", start, len(body)) != body:
            raise ScenarioError(f"the large file in the bucket is wrong at {start}")


def slowdown(stage: Stage) -> list[Step]:
    """A burst with nothing else going on, and one while another is on its way to the bucket."""
    job = stage.job
    steps: list[Step] = []
    order = ("alone", "during") if stage.number % 2 == 0 else ("during", "alone")
    for what in order:
        stage.target.flush()
        directory = f"{job.directory}/{what}"
        sync: _Asking | None = None
        before = stage.counts()
        if what == "during":
            stage.child(dataclasses.replace(stage.job_of("burst"), directory=_made(job, "load")))
            if stage.target.ask is not None:
                sync = _Asking(stage.target.ask, "sync")
            _wait_for_upload(stage, before)
        began, begun = time.perf_counter(), stage.counts()
        _made(job, what)
        (step,) = stage.child(dataclasses.replace(stage.job_of("burst"), directory=directory))
        passed = stage.counts().since(begun)
        _wire(stage, f"burst {what}", time.perf_counter() - began, passed)
        # An upload that was over by then has slowed nothing down: that was no measurement.
        if what == "alone" or passed.total:
            steps.append(Step(what, step.seconds, step.amount))
        if sync is not None:
            sync.wait()
    return sorted(steps, key=lambda step: step.name)


def _made(job: Job, name: str) -> str:
    os.mkdir(f"{job.directory}/{name}")
    return f"{job.directory}/{name}"


def _wait_for_upload(stage: Stage, before: Counts) -> None:
    """Until the first object is on its way: a peer may look around long before."""
    deadline = time.perf_counter() + SAVED_TIMEOUT_S
    while not stage.counts().since(before).requests.get("PUT"):
        if time.perf_counter() > deadline:
            raise ScenarioError("no upload began")
        time.sleep(STATUS_POLL_S)


def _wire(stage: Stage, what: str, seconds: float, passed: Counts) -> None:
    stage.results.wires.append(
        Wire(
            *(stage.number, stage.target.name, what, seconds),
            *(passed.requests, passed.up_bytes, passed.down_bytes),
        )
    )


Special = Callable[[Stage], list[Step]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A special scenario, and which targets it has a meaning for."""

    run: Special
    applies: Callable[[Target], bool]
    keeps: bool = False
    """What it made stands until the run ends: removing a million files would take another hour."""


def _has_bucket(target: Target) -> bool:
    return target.backing is not None


def _saves(target: Target) -> bool:
    return target.backing is not None or target.ask is not None


SPECIALS: Final[dict[str, Kind]] = {
    "lag": Kind(lag, _saves),
    "lag_late": Kind(lag_late, _has_bucket),
    "slowdown": Kind(slowdown, _has_bucket),
    "cold": Kind(cold, _has_bucket),
    "cold_late": Kind(cold_late, _has_bucket),
    "large": Kind(large, _has_bucket),
    # For a peer all of it is an upload: an hour, and nothing new.
    "sizes": Kind(growth.sizes, lambda target: target.backing is None or target.ask is not None),
    "growth": Kind(growth.growth, lambda target: target.backing is None, keeps=True),
}
