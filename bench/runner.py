"""Runs the scenarios on the targets, round by round, and collects what they took.

1. Rounds are interleaved: each scenario runs on every target before the next one begins, and the
   order of the targets rotates, so that a noisy minute hits all alike. Ratios are taken within a
   round (bench.report).
2. Before a turn every target is at rest (`settle`: our mount synced, the disk written back) and
   the directory is fresh; after it, the directory is removed (but for growth's, which comes last).
   Neither is timed. What our mount
   does in the background during a turn is part of the turn.
3. A scenario that fails on a target is not tried there again; the reason stands beside the figures.
   A target that does not come to rest, or hangs, is taken out of the run. The others go on.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench import material, processes, programs
from bench.bucketwork import SPECIALS, Stage
from bench.ground import Ground, ScenarioError, Target, UnavailableError
from bench.results import Idle, Options, Results, Turn
from bench.targets import HERE, TARGETS
from bench.workloads import Job, Step
from s3ws_fs.core.errors import S3wsError

SCENARIO_TIMEOUT_S: Final = 600.0
KILLED_TIMEOUT_S: Final = 5.0
SAMPLE_S: Final = 0.2
WORKERS_GONE_S_MAX: Final = 90.0

Say = Callable[[str], None]
Keep = Callable[[Results], None]


class HangError(ScenarioError):
    """A scenario did not end: what it hangs in can't be trusted to do anything else."""


def run(options: Options, say: Say, keep: Keep = lambda _: None) -> Results:
    """The whole run. Everything it made is gone when it returns or raises.

    `keep` gets what was measured so far after each turn: a long run may be ended.
    """
    with contextlib.ExitStack() as stack:
        # A parent of the user's choice decides which disk is measured.
        made = tempfile.mkdtemp(prefix="s3ws-bench-", dir=options.base)
        stack.callback(shutil.rmtree, made, ignore_errors=True)
        base = Path(made).resolve()
        results = Results(options, machine(base))
        _make_material(results, base / "material", say)
        ground = stack.enter_context(Ground(base, options.peers))
        targets: list[Target] = []
        for name in options.targets:
            try:
                targets.append(stack.enter_context(TARGETS[name](ground)))
            except UnavailableError as exc:
                _leave_out(results, name, str(exc), say)
        with _Peaks(results, targets):
            for number in range(options.rounds):
                _round(results, targets, number, base / "material", say, keep)
        standing = [target for target in targets if target.name not in results.left_out]
        for target in standing:
            if target.pid is not None:
                results.private_mib[target.name] = processes.private_mib(target.pid)[0]
        if options.idle_s:
            _idle(results, standing, say)
        return results


def _make_material(results: Results, place: Path, say: Say) -> None:
    options = results.options
    material.make(place, options.seed, options.scale.repo_files, options.scale.tar_files)
    counts = {"pip": options.scale.wheels, "npm": options.scale.npm_packages}
    for scenario in options.scenarios:
        reason = programs.missing(scenario)
        if reason is not None:
            results.not_run[scenario] = reason
            say(f"{scenario} is not run: {reason}")
        elif scenario in counts:
            programs.make(place, scenario, options.seed, counts[scenario])


class _Peaks(threading.Thread):
    """Looks at the daemons' memory all the while; what it saw at most goes into the results."""

    def __init__(self, results: Results, targets: list[Target]) -> None:
        super().__init__(daemon=True)
        self._results = results
        self._targets = targets
        self._over = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        # A run that is shorter than a pause has been looked at, too.
        self._look()

    def run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        for target in self._targets:
            if target.pid is None:
                continue
            own, below = processes.private_mib(target.pid)
            for peaks, found in (
                (self._results.peak_mib, own),
                (self._results.peak_children_mib, below),
            ):
                peaks[target.name] = max(peaks.get(target.name, 0.0), found)


def _idle(results: Results, targets: list[Target], say: Say) -> None:
    """Leave them alone; those that end their children when idle are given the time for it."""
    with_pid = [(target.name, target.pid) for target in targets if target.pid is not None]
    deadline = time.monotonic() + WORKERS_GONE_S_MAX
    ours = [pid for name, pid in with_pid if name.startswith("ours")]
    say("leaving them alone")
    while any(processes.children(pid) for pid in ours) and time.monotonic() < deadline:
        time.sleep(SAMPLE_S)
    before = {name: processes.usage(pid) for name, pid in with_pid}
    time.sleep(results.options.idle_s)
    for name, pid in with_pid:
        begun, now = before[name], processes.usage(pid)
        if begun is not None and now is not None:
            cpu_s = now.cpu_s + now.children_cpu_s - begun.cpu_s - begun.children_cpu_s
            children = len(processes.children(pid))
            # A child's time moves to its parent when it is buried, a tick here or there.
            results.idle[name] = Idle(results.options.idle_s, max(0.0, cpu_s), children)


def _round(
    results: Results, targets: list[Target], number: int, sources: Path, say: Say, keep: Keep
) -> None:
    options = results.options
    for scenario in options.scenarios:
        if scenario in results.not_run:
            continue
        turn = number % len(targets) if targets else 0
        for target in targets[turn:] + targets[:turn]:
            kind = SPECIALS.get(scenario)
            if target.name in results.left_out or (kind and not kind.applies(target)):
                continue
            if f"{target.name} {scenario}" in results.failed:
                continue
            directory = target.directory / f"{scenario}-{number}"
            job = Job(scenario, str(directory), str(sources), options.seed + number, options.scale)
            try:
                said = _one(results, target, job, number)
                say(f"round {number + 1} {scenario:<10} {target.name:<10} {said}")
            except (ScenarioError, UnavailableError, OSError) as exc:
                _leave_out(results, target.name, f"{scenario}: {exc}", say)
                say(f"its log ends so:{target.log_tail()}")
            keep(results)


def _one(results: Results, target: Target, job: Job, number: int) -> str:
    """One turn, from rest to rest. Returns what to tell the person who waits."""
    with _as_scenario_error():
        target.settle()
    os.mkdir(job.directory)
    pid = target.pid
    before = processes.usage(pid) if pid is not None else None
    began = time.perf_counter()
    failed = ""
    steps: list[Step] = []
    try:
        if job.scenario in SPECIALS:
            with _as_scenario_error():
                stage = Stage(results, target, job, number, _in_child)
                steps = SPECIALS[job.scenario].run(stage)
        else:
            steps = _in_child(job)
    except HangError:
        raise
    except ScenarioError as exc:
        # Tables are shown to others, whom the places of this machine tell nothing.
        failed = str(exc).replace(str(target.directory), "MOUNT")
        results.failed[f"{target.name} {job.scenario}"] = failed
    took_s = time.perf_counter() - began
    # One that was mounted anew has another daemon.
    after = processes.usage(pid) if pid is not None and pid == target.pid else None
    cpu_s = children_s = None
    if before is not None and after is not None:
        cpu_s = after.cpu_s - before.cpu_s
        children_s = after.children_cpu_s - before.children_cpu_s
    if not failed:
        results.turns.append(Turn(number, target.name, job.scenario, steps, cpu_s, children_s))
    if not (job.scenario in SPECIALS and SPECIALS[job.scenario].keeps):
        shutil.rmtree(job.directory)
        with _as_scenario_error():
            target.settle()
    if failed:
        return f"failed: {failed}"
    said = " ".join(f"{step.name}={step.seconds:.3f}" for step in steps)
    return said or f"took {took_s:.1f} s"


def _leave_out(results: Results, name: str, reason: str, say: Say) -> None:
    results.left_out[name] = reason
    say(f"{name} is left out: {reason}")


def _in_child(job: Job) -> list[Step]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.child"],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(job.dumps(), timeout=SCENARIO_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise HangError(f"no end after {SCENARIO_TIMEOUT_S:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            # Not for ever: inside a hung mount it ends when the mount is taken away.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILLED_TIMEOUT_S)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
    if process.returncode != 0:
        raise ScenarioError(err.strip().rpartition("\n")[2] or f"status {process.returncode}")
    return [Step(**step) for step in json.loads(out)]


@contextlib.contextmanager
def _as_scenario_error() -> Iterator[None]:
    """What our control client raises becomes a reason to leave the target out."""
    try:
        yield
    except S3wsError as exc:
        raise ScenarioError(str(exc).strip()) from exc


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
