"""Runs the scenarios on the targets, round by round, and collects what they took.

1. Rounds are interleaved: each scenario runs on every target before the next one begins, and the
   order of the targets rotates, so that a noisy minute hits all alike. Ratios are taken within a
   round (bench.report).
2. Before a turn every target is at rest (`settle`: our mount synced, the disk written back) and
   the directory is fresh; after it, the directory is removed. Neither is timed. What our mount
   does in the background during a turn is part of the turn.
3. A scenario that fails or takes too long takes its target out of the run, with the reason; the
   others go on.

Called by bench.__main__ and its test.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import material, processes
from bench.targets import HERE, TARGETS, USUAL, Ask, Target, UnavailableError
from bench.workloads import SCENARIOS, Job, Scale, Step
from s3ws_fs.core.errors import S3wsError

SCENARIO_TIMEOUT_S: Final = 600.0
LAG_TIMEOUT_S: Final = 300.0
LAG_POLL_S: Final = 0.01
LAG: Final = "lag"

Say = Callable[[str], None]


class ScenarioError(Exception):
    """A scenario did not come to its end, or found wrong bytes."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. The same seed gives the same bytes; round r uses seed + r."""

    scale: Scale
    rounds: int
    seed: int
    targets: Sequence[str] = USUAL
    scenarios: Sequence[str] = (*SCENARIOS, LAG)
    base: Path | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One scenario on one target in one round. CPU: the target's daemon, and its children.

    For `lag` there are no steps: see `Lag`.
    """

    round: int
    target: str
    scenario: str
    steps: list[Step]
    cpu_s: float | None
    children_cpu_s: float | None


@dataclass(frozen=True, slots=True)
class Lag:
    """From a `sync` right after the burst until the bucket has it, and the requests that took."""

    round: int
    target: str
    burst_s: float
    sealed_s: float
    mirrored_s: float
    sealed_requests: dict[str, int]
    requests: dict[str, int]


@dataclass(slots=True)
class Results:
    """All that was measured."""

    options: Options
    machine: dict[str, str]
    turns: list[Turn] = field(default_factory=list)
    lags: list[Lag] = field(default_factory=list)
    private_mib: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, for a machine to read."""
        value = asdict(self)
        value["options"]["base"] = None
        return value


def run(options: Options, say: Say) -> Results:
    """The whole run. Everything it made is gone when it returns or raises."""
    with contextlib.ExitStack() as stack:
        # A parent of the user's choice decides which disk is measured.
        made = tempfile.mkdtemp(prefix="s3ws-bench-", dir=options.base)
        stack.callback(shutil.rmtree, made, ignore_errors=True)
        base = Path(made).resolve()
        results = Results(options, machine(base))
        material.make(
            base / "material", options.seed, options.scale.repo_files, options.scale.tar_files
        )
        targets: list[Target] = []
        for name in options.targets:
            try:
                targets.append(stack.enter_context(TARGETS[name](base)))
            except UnavailableError as exc:
                _leave_out(results, name, str(exc), say)
        for number in range(options.rounds):
            _round(results, targets, number, base / "material", say)
        for target in targets:
            used = processes.usage(target.pid) if target.pid is not None else None
            if used is not None:
                results.private_mib[target.name] = used.private_mib
        return results


def _round(results: Results, targets: list[Target], number: int, sources: Path, say: Say) -> None:
    options = results.options
    for scenario in options.scenarios:
        turn = number % len(targets) if targets else 0
        for target in targets[turn:] + targets[:turn]:
            if target.name in results.left_out or (scenario == LAG and target.ask is None):
                continue
            directory = target.directory / f"{scenario}-{number}"
            name = "burst" if scenario == LAG else scenario
            job = Job(name, str(directory), str(sources), options.seed + number, options.scale)
            try:
                said = _one(results, target, scenario, job, number)
                say(f"round {number + 1} {scenario:<10} {target.name:<10} {said}")
            except (ScenarioError, OSError) as exc:
                _leave_out(results, target.name, f"{scenario}: {exc}", say)
                say(f"its log ends so:{target.log_tail()}")


def _one(results: Results, target: Target, scenario: str, job: Job, number: int) -> str:
    """One turn, from rest to rest. Returns what to tell the person who waits."""
    with _as_scenario_error():
        target.settle()
    os.mkdir(job.directory)
    before = processes.usage(target.pid) if target.pid is not None else None
    if scenario == LAG:
        assert target.ask is not None
        lag = _lag(target.name, target.ask, job, number)
        results.lags.append(lag)
        steps: list[Step] = []
        said = f"sealed {lag.sealed_s:.2f} s, mirrored {lag.mirrored_s:.2f} s"
    else:
        steps = _in_child(job)
        said = " ".join(f"{step.name}={step.seconds:.3f}" for step in steps)
    after = processes.usage(target.pid) if target.pid is not None else None
    cpu_s = children_s = None
    if before is not None and after is not None:
        cpu_s = after.cpu_s - before.cpu_s
        children_s = after.children_cpu_s - before.children_cpu_s
    results.turns.append(Turn(number, target.name, scenario, steps, cpu_s, children_s))
    shutil.rmtree(job.directory)
    with _as_scenario_error():
        target.settle()
    return said


def _leave_out(results: Results, name: str, reason: str, say: Say) -> None:
    results.left_out[name] = reason
    say(f"{name} is left out: {reason}")


def _in_child(job: Job) -> list[Step]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.workloads"],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(job.dumps(), timeout=SCENARIO_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ScenarioError(f"no end after {SCENARIO_TIMEOUT_S:g} s") from None
    finally:
        if process.poll() is None:
            # Not waited for: a process inside a hung mount ends when the mount is taken away.
            process.kill()
    if process.returncode != 0:
        raise ScenarioError(err.strip().rpartition("\n")[2] or f"status {process.returncode}")
    return [Step(**step) for step in json.loads(out)]


def _lag(name: str, ask: Ask, job: Job, number: int) -> Lag:
    """Burst, then `sync`; another connection watches when the head of that moment is sealed."""
    with _as_scenario_error():
        before = ask("status")["requests"]
        (burst,) = _in_child(job)
        head = ask("status")["generation"]["head"]
        began = time.perf_counter()
        sync = _Asking(ask, "sync")
        sealed: tuple[float, dict[str, int]] | None = None
        while sealed is None:
            finished = not sync.is_alive()
            status = ask("status")
            if status["generation"]["sealed"] >= head:
                sealed = (time.perf_counter() - began, status["requests"])
            elif finished or time.perf_counter() - began > LAG_TIMEOUT_S:
                break
            else:
                time.sleep(LAG_POLL_S)
        ended = sync.wait()
        after = ask("status")
    if sealed is None or after["generation"]["mirrored"] < head:
        raise ScenarioError(f"sync ended, but the burst is not in the bucket: {after}")
    sealed_requests = _difference(sealed[1], before)
    requests = _difference(after["requests"], before)
    return Lag(number, name, burst.seconds, sealed[0], ended - began, sealed_requests, requests)


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


@contextlib.contextmanager
def _as_scenario_error() -> Iterator[None]:
    """What our control client raises becomes a reason to leave the target out."""
    try:
        yield
    except S3wsError as exc:
        raise ScenarioError(str(exc).strip()) from exc


def _difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    found = {kind: count - before.get(kind, 0) for kind, count in after.items()}
    return {kind: count for kind, count in found.items() if count}


def machine(base: Path) -> dict[str, str]:
    """The machine in general terms: nothing that names it."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "cpus": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_gib:.0f} GiB",
        "kernel": ".".join(platform.release().split("-")[0].split(".")[:2]),
        "python": platform.python_version(),
        "disk": _filesystem_type(base),
    }


def _filesystem_type(path: Path) -> str:
    best, kind = "", "?"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4]
        if path.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, after.split()[0]
    return kind
