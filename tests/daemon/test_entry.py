"""The daemon's entry: what the launcher hears."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.daemon.entry import ReadyPipe, _user_error
from tests.support.mounting import REPOSITORY, workspace_config


def test_the_launcher_hears_progress_and_one_last_word() -> None:
    ours, theirs = os.pipe()
    say = ReadyPipe(theirs)
    say({"event": "progress", "done": 1})
    say({"event": "ready", "pid": 7})
    say({"event": "progress", "done": 2})
    with os.fdopen(ours) as lines:
        assert [json.loads(line) for line in lines] == [
            {"event": "progress", "done": 1},
            {"event": "ready", "pid": 7},
        ]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(theirs)


def test_a_launcher_that_went_away_or_does_not_read_delays_nothing() -> None:
    ours, theirs = os.pipe()
    say = ReadyPipe(theirs)
    for number in range(10_000):
        say({"event": "progress", "done": number})
    os.close(ours)
    say({"event": "progress", "done": 0})
    say({"event": "ready", "pid": 7})
    ReadyPipe(None)({"event": "ready", "pid": 7})


def test_errors_are_said_as_they_are_and_faults_as_faults() -> None:
    error = UserError("no", exit_code=ExitCode.BUSY)
    assert _user_error(ExceptionGroup("group", [error])) is error
    fault = _user_error(ExceptionGroup("group", [ValueError("x"), error]))
    assert fault.exit_code is ExitCode.INTERNAL
    assert "ExceptionGroup" in fault.message


@pytest.mark.parametrize("is_refused_early", [True, False])
def test_a_daemon_that_is_refused_leaves_no_worker(tmp_path: Path, is_refused_early: bool) -> None:
    mark = f"S3WS_TEST_MARK={uuid.uuid4().hex}"
    config = workspace_config(tmp_path)
    if is_refused_early:
        config = replace(config, mountpoint=str(tmp_path / "absent"))
    else:
        (tmp_path / "no-directory").touch()
        config = replace(config, store=replace(config.store, path=str(tmp_path / "no-directory")))
    done = subprocess.run(
        [sys.executable, "-m", "s3ws_fs.daemon", "--config-fd", "0"],
        stdin=_file_of(tmp_path, config),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **dict([mark.split("=")])},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (ExitCode.BAD_SETTINGS if is_refused_early else ExitCode.STORE)
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and _has(pid, mark)] == []


def _file_of(tmp_path: Path, config: MountConfig) -> int:
    (tmp_path / "config").write_bytes(config.dumps())
    return os.open(tmp_path / "config", os.O_RDONLY | os.O_CLOEXEC)


def _has(pid: str, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
