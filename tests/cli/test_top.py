"""`s3ws top`: one frame without a terminal, objects with --json, a table on a terminal."""

from __future__ import annotations

import io
import itertools
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from s3ws_fs.cli import cli
from s3ws_fs.cli.top import HEAD, frame, lines, summary
from s3ws_fs.workspaces import rates
from s3ws_fs.workspaces.rates import Look, Row, rows
from tests.support.fake_mounts import Place
from tests.workspaces.test_rates import counts, document

EVIL = "/m/[bold]\x1b[31m\n"
ROOT = Path(__file__).resolve().parents[2]


def found(number: int = 1) -> list[Row]:
    names = [EVIL, *(f"/m/{n}" for n in range(1, number))]
    before = Look(0.0, [document(mountpoint=name) for name in names])
    now = Look(1.0, [document(mountpoint=name, counts=counts(3)) for name in names])
    return rows(before, now)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that does as much in every second."""
    clock = itertools.count()

    def look() -> Look:
        at = next(clock)
        return Look(float(at), [document(mountpoint=EVIL, counts=counts(1 + at))], ["/run/bad\x1b"])

    monkeypatch.setattr(rates, "look", look)
    monkeypatch.setattr(time, "sleep", lambda _: None)


def test_without_a_terminal_one_frame(looks: None) -> None:
    result = CliRunner().invoke(cli, ["top"])
    assert result.exit_code == 0 and "\x1b" not in result.output
    head, row, sums, *rest = result.stdout.splitlines()
    assert head.split() == " ".join(HEAD).split()
    assert "[bold]\\x1b[31m\\n" in row and "100" in row and "4.0 KiB" in row and "25 %" in row
    assert sums.startswith("1 mounts, 0 not well; 100 ops/s, 1000 B/s up")
    assert "damaged" in rest[0]


def test_json_is_an_object_a_line(looks: None) -> None:
    result = CliRunner().invoke(cli, ["top", "--json", "--count", "3"])
    frames = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(frames) == 3
    assert [each["mounts"][0]["ops"] for each in frames] == [100.0] * 3
    assert frames[0]["mounts"][0]["mountpoint"] == EVIL
    assert frames[0]["damaged_entries"] == ["/run/bad\x1b"]


@pytest.mark.parametrize("args", [["--interval", "0.1"], ["--interval", "4000"], ["--count", "0"]])
def test_usage(args: list[str]) -> None:
    assert CliRunner().invoke(cli, ["top", *args]).exit_code == 2


def test_where_nothing_is_mounted(place: Place) -> None:
    result = CliRunner().invoke(cli, ["top", "--interval", "0.2"])
    assert result.stdout == "nothing is mounted\n"


def test_the_table_fits_the_terminal_and_takes_no_markup_from_names() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, color_system=None)
    console.print(frame(found(30), Look(1.0, []), height=14))
    text = out.getvalue()
    assert "and 20 more" in text and len(text.splitlines()) <= 14
    console.print(frame(found(), Look(1.0, []), height=14))
    assert "[bold]\\x1b[31m\\n" in out.getvalue()
    troubled = Row("/m", "u", "c", "silent", "-", error="no answer\x1b")
    console.print(frame([troubled], Look(1.0, []), height=14))
    assert "no answer\\x1b" in out.getvalue()


def test_words() -> None:
    assert summary([]).startswith("0 mounts")
    assert list(lines([], Look(0.0, []))) == ["nothing is mounted"]
    dead = Row("/m", "u", "c", "dead", "-")
    assert "dead" in list(lines([dead], Look(0.0, [])))[1]


def test_on_a_terminal_it_lives_until_ctrl_c(place: Place) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "s3ws_fs", "top", "--interval", "0.2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    text = b""
    try:
        while text.count(b"0 mounts") < 2:
            ready, _, _ = select.select([ours], [], [], 30)
            assert ready, text
            text += os.read(ours, 65536)
        process.send_signal(2)
        while select.select([ours], [], [], 30)[0]:
            try:
                text += os.read(ours, 65536)
            except OSError:
                # The other end is closed: it has ended.
                break
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    # The terminal is given back as it was.
    assert b"\x1b[?1049l" in text and b"Traceback" not in text
