"""Progress: a bar on a terminal, lines in a log, JSON on demand."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import sys

import pytest

from s3ws_fs.cli import report


def event(phase: str, done: int, total: int) -> dict[str, object]:
    return {"event": "progress", "phase": phase, "done": done, "total": total}


def test_plain_progress_tells_phases_and_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    with report.progress("sync", as_json=False) as on_event:
        for done in range(101):
            on_event(event("sealing", done, 100))
        on_event(event("mirroring\x1b[31m", 0, 0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12
    assert lines[0] == "sync: sealing 0/100" and lines[10] == "sync: sealing 100/100"
    assert lines[11] == "sync: mirroring\\x1b[31m"


def test_json_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with report.progress("sync", as_json=True) as on_event:
        on_event(event("sealing", 1, 2))
    assert json.loads(capsys.readouterr().err) == event("sealing", 1, 2)


@pytest.mark.parametrize("odd", [{}, {"phase": None, "done": "x", "total": -1}, {"total": 0}])
def test_odd_events_do_no_harm(odd: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    with report.progress("sync", as_json=False) as on_event:
        on_event(odd)
    assert capsys.readouterr().err.startswith("sync: ")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with report.progress("sync [x]", as_json=False) as on_event:
            on_event(event("sealing", 1, 2))
    shown = b""
    # Reading a terminal whose other side is closed fails, once everything is read.
    with contextlib.suppress(OSError):
        while chunk := os.read(leader, 65536):
            shown += chunk
    os.close(leader)
    assert "sync [x]: sealing" in shown.decode()
    assert "50%" in shown.decode()
