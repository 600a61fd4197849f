"""A process that is SIGKILLed at each failpoint, and all that must hold after it.

The process is forked and runs a workload in one thread over a directory as its bucket; it writes
down what was answered to it as it goes. What must hold is looked at by rig.py, as for the states
that test_every_point puts back: here the kernel itself says what a kill leaves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from s3ws_fs.core import failpoints
from s3ws_fs.store.local import LocalStore
from s3ws_fs.transfer import garbage
from tests.crash.rig import Known, Rig, Step, fast_directory, newest_generation
from tests.crash.workloads import FIRST, OF_OTHERS, SECOND, WITH_A_KERNEL
from tests.support.armed import KILL, Listener, Plan
from tests.support.files_model import Files
from tests.support.pair import has_user_xattrs

WORKLOADS: dict[str, tuple[Step, ...]] = {"first": FIRST, "second": SECOND}


class Plain:
    """Both workloads' plain runs: what is to be passed how often, and the states by generation."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.bucket = base / "bucket of the first"
        first = Rig(base / "first", LocalStore(str(self.bucket)), is_watching=False)
        self.rigs = {"first": first}
        with at_once_garbage():
            first.run(FIRST)
            self.files = first.files.copy()
            self.sealed = newest_generation(first.store)
            copied = Path(shutil.copytree(self.bucket, base / "bucket of the second"))
            second = self.rig("second", base / "second", copied)
            self.rigs["second"] = second
            second.run(SECOND)

    def rig(self, host: str, base: Path, bucket: Path) -> Rig:
        """A rig before the workload."""
        store = LocalStore(str(bucket))
        if host == "first":
            return Rig(base, store, is_watching=False)
        known = Known({self.sealed: self.files.state()}, self.sealed, self.sealed, self.sealed)
        return Rig(base, store, self.files.copy(), known, is_watching=False, seed=2)

    def where(self, point: str) -> tuple[str, int]:
        """The workload that passes it, and the passing in the middle."""
        for host, rig in self.rigs.items():
            if rig.passed[point]:
                return host, (rig.passed[point] + 1) // 2
        raise AssertionError(f"no workload passes {point}")


def at_once_garbage() -> mock._patch[int]:
    """Garbage of a moment ago may go: the clock of a directory is the real one."""
    return mock.patch.object(garbage, "GC_GRACE_S", 0)


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    with fast_directory("s3ws-killed-") as directory:
        if not has_user_xattrs(Path(directory)):
            pytest.skip("no user xattrs in /dev/shm: the storage type local can't use it")
        yield Plain(Path(directory))


def run_and_be_killed(rig: Rig, host: str, plan: Plan, told: Path) -> int:
    """Run the workload in a forked process; returns its exit status."""
    with warnings.catch_warnings():
        # The child has one thread, and uses nothing that another may have locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        fd = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

        def note(known: Known) -> None:
            os.write(fd, json.dumps([known.acknowledged, known.sealed]).encode() + b"\n")

        rig.on_known, rig.on_point = note, Listener(plan)
        with at_once_garbage():
            rig.run(WORKLOADS[host])
        status = 0
    finally:
        os._exit(status)


OURS = sorted(set(failpoints.POINTS).difference(WITH_A_KERNEL, OF_OTHERS))


@pytest.mark.parametrize("point", OURS)
def test_killed_at(plain: Plain, point: str, tmp_path: Path) -> None:
    host, nth = plain.where(point)
    base = plain.base / "trial"
    shutil.rmtree(base, ignore_errors=True)
    bucket = base / "bucket"
    base.mkdir()
    if host == "second":
        shutil.copytree(plain.bucket, bucket)
    rig = plain.rig(host, base, bucket)
    begun = rig.known.acknowledged
    told = tmp_path / "told"
    plan = Plan(point, KILL, str(tmp_path), nth=nth)
    status = run_and_be_killed(rig, host, plan, told)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    assert plan.struck
    lines = told.read_text().splitlines() if told.exists() else []
    acknowledged, sealed = json.loads(lines[-1]) if lines else (begun, begun)
    rig.known.states.update(plain.rigs[host].known.states)
    apart = LocalStore(str(shutil.copytree(bucket, base / "apart"))) if bucket.exists() else None
    if apart is None:
        # It died before it ever spoke to the store.
        bucket.mkdir()
        apart = LocalStore(str(bucket))
    try:
        rig.look(apart, LocalStore(str(bucket)), acknowledged, sealed)
    except BaseException as exc:
        raise AssertionError(f"{point} ({nth}): {failpoints.POINTS[point]}") from exc


def test_states_are_those_of_the_model(plain: Plain) -> None:
    """The plain runs told the truth: else all of the above would be measured by itself."""
    files = Files()
    for step in FIRST:
        # A restore, too, which is undone.
        if not isinstance(step, str):
            assert files.apply(step) == 0
    assert plain.rigs["first"].known.states[plain.sealed] == files.state()
