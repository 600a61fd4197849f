"""The daemon's entry: what the launcher hears."""

from __future__ import annotations

import json
import os

import pytest

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.daemon.__main__ import ReadyPipe, _user_error


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
