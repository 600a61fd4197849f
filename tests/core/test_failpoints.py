"""Failpoints: named, told, silent in production, and armed in children by tests only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import TransientError
from tests.support.armed import ANY, ERRORS, REPOSITORY, WATCH, Plan, listening

PASS = "from s3ws_fs.core import failpoints as f; [f.hit(f.SEAL_BEFORE) for _ in range(3)]"
SOURCES = sorted((REPOSITORY / "s3ws_fs").rglob("*.py"))


def run(plan: Plan | None, code: str = PASS) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(REPOSITORY)} if plan is None else plan.env()
    command = [sys.executable, "-c", f"{code}; print('done')"]
    return subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def test_every_point_says_what_must_hold() -> None:
    constants = {
        name: value
        for name, value in vars(failpoints).items()
        if name.isupper() and isinstance(value, str)
    }
    assert sorted(constants.values()) == sorted(failpoints.POINTS)
    for name, value in constants.items():
        assert value == name.lower().replace("_", "."), name
        assert re.fullmatch(r"[A-Za-z].{30,}\.", failpoints.POINTS[value]), value


def test_every_point_is_passed_somewhere_and_none_is_invented() -> None:
    used = set()
    for path in SOURCES:
        used.update(re.findall(r"(?:hit\(|, )failpoints\.([A-Z_]+)\)", path.read_text()))
    assert {name.lower().replace("_", ".") for name in used} == set(failpoints.POINTS)


def test_the_program_arms_nothing() -> None:
    for path in SOURCES:
        assert not re.search(r"failpoints\.hook|S3WS_TEST", path.read_text()), path
    assert failpoints.hook is None
    failpoints.hit(failpoints.SEAL_BEFORE)


def test_a_hook_is_told_and_may_raise() -> None:
    told: list[str] = []
    with listening(told.append):
        failpoints.hit(failpoints.COMMIT_AFTER)
    failpoints.hit(failpoints.COMMIT_BEFORE)
    assert told == [failpoints.COMMIT_AFTER]

    def refuse(point: str) -> None:
        raise ERRORS["transient"](point)

    with listening(refuse), pytest.raises(TransientError, match=r"seal\.after"):
        failpoints.hit(failpoints.SEAL_AFTER)


def test_a_child_dies_at_the_nth_passing_and_its_successor_does_not(tmp_path: Path) -> None:
    plan = Plan(failpoints.SEAL_BEFORE, "kill", str(tmp_path), nth=2, log=True)
    assert run(None).stdout == "done\n"
    first = run(plan)
    assert (first.returncode, first.stdout) == (-signal.SIGKILL, "")
    assert plan.struck
    assert run(plan).stdout == "done\n"
    assert plan.passed() == {failpoints.SEAL_BEFORE: 5}


def test_a_childs_error(tmp_path: Path) -> None:
    done = run(Plan(ANY, "enospc", str(tmp_path)))
    assert done.returncode == 1
    assert "OSError: [Errno 28] injected at seal.before" in done.stderr


def test_a_plan_reaches_children_of_children(tmp_path: Path) -> None:
    plan = Plan(ANY, WATCH, str(tmp_path), log=True)
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PASS!r}], check=True)"
    assert run(plan, inner).returncode == 0
    assert plan.passed() == {failpoints.SEAL_BEFORE: 3}
