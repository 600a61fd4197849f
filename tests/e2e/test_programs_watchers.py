"""Who watches files: inotify, reload loops, tail, logs that grow and rotate, terminals."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs
from tests.support.e2e_fixtures import Elsewhere
from tests.support.inotify import Watcher
from tests.support.mounting import wait_until
from tests.support.tools import background, finish, need, need_terminal, python

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

LINES: Final = 300
Events = list[tuple[str, str, str]]


def work(top: Path) -> None:
    """What programs do to files, one kind of change after another."""
    path = top / "file"
    with path.open("w") as out:
        out.write("one\n")
        out.flush()
        out.write("two\n")
    path.chmod(0o600)
    os.utime(path, (1, 1))
    os.truncate(path, 1)
    path.rename(top / "renamed")
    (top / "new").write_text("saved by rename\n")
    (top / "new").replace(top / "renamed")
    os.link(top / "renamed", top / "hard")
    (top / "link").symlink_to("renamed")
    (top / "directory").mkdir()
    (top / "directory").rmdir()
    (top / "hard").unlink()
    (top / "last").touch()


def events_of(top: Path, change: Callable[[Path], None]) -> Events:
    """All events of a change, up to the creation of the entry "last"."""
    events: Events = []
    with Watcher() as watcher:
        watcher.watch(top, "top")
        change(top)
        while not events or events[-1][1:] != ("create", "last"):
            events += watcher.take(1)
    return events


def test_inotify_sees_what_it_sees_on_a_native_filesystem(here: Path, native: Path) -> None:
    wanted = events_of(native, work)
    assert len(wanted) > 15
    assert events_of(here, work) == wanted


def test_inotify_of_a_file_that_goes(here: Path) -> None:
    path = here / "file"
    path.touch()
    with Watcher() as watcher:
        watcher.watch(path, "file")
        with path.open("a") as out:
            out.write("x")
            out.flush()
            path.rename(here / "moved")
            (here / "other").touch()
            (here / "other").replace(here / "moved")
        seen = {kind for _, kind, _ in watcher.take(5)}
    assert {"modify", "move_self", "close_write", "attrib", "delete_self"} >= seen
    assert {"modify", "move_self"} <= seen


def test_epoll_finds_a_file_always_ready(here: Path) -> None:
    """The kernel refuses to poll a file of ext4 (EPERM), and does not refuse one of FUSE."""
    path = here / "file"
    with path.open("w+b") as file, select.epoll() as poll:
        poll.register(file, select.EPOLLIN | select.EPOLLOUT)
        assert poll.poll(30) == [(file.fileno(), select.EPOLLIN | select.EPOLLOUT)]


def test_inotifywait(here: Path, tmp_path: Path) -> None:
    need("inotifywait")
    (here / "below").mkdir()
    heard = tmp_path / "events"
    with background("inotifywait", "-q", "-m", "-r", "-o", heard, "--format", "%e %f", here):

        def begins() -> bool:
            """It says nothing when it has begun: the first change that it reports tells."""
            (here / "probe").touch()
            return "probe" in read(heard)

        wait_until(begins, timeout_s=30, what="inotifywait to report")
        programs.run("bash", "-c", "echo x >below/file; mv below/file below/moved", cwd=here)
        wait_until(lambda: "MOVED_TO moved" in read(heard), timeout_s=30, what="the move")
    events = [line for line in read(heard).splitlines() if not line.endswith("probe")]
    assert events == [
        "CREATE file", "OPEN file", "MODIFY file", "CLOSE_WRITE,CLOSE file",
        "MOVED_FROM file", "MOVED_TO moved",
    ]  # fmt: skip


RELOADER: Final = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
MOVED_TO = 0x80
assert libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), MOVED_TO) > 0
print("watching", flush=True)
while True:
    os.read(fd, 4096)
    text = open(sys.argv[1] + "/settings").read()
    print(text, flush=True)
    if text == "end": break
"""


def test_a_program_that_reloads_what_changes(here: Path) -> None:
    with background(*python(RELOADER, here)) as reloader:
        assert reloader.stdout is not None
        assert reloader.stdout.readline() == "watching\n"
        for text in ("turn 1", "turn 2", "turn 3", "end"):
            (here / "settings.new").write_text(text)
            (here / "settings.new").rename(here / "settings")
            assert reloader.stdout.readline() == f"{text}\n"
        finish(reloader)


def test_tail_follows_a_log_through_its_rotation(here: Path) -> None:
    need("tail")
    log = here / "log"
    log.write_text("begin\n")
    with background("tail", "-n", "+1", "-s", "0.05", "-F", log) as tail:
        assert tail.stdout is not None
        lines = iter(tail.stdout.readline, "")
        assert next(lines) == "begin\n"
        for number in range(LINES):
            with log.open("a") as out:
                out.write(f"line {number}\n")
        assert [next(lines) for _ in range(LINES)] == [f"line {n}\n" for n in range(LINES)]
        log.rename(here / "log.1")
        log.write_text("a new file\n")
        assert next(lines) == "a new file\n"
        with log.open("a") as out:
            out.write("more\n")
        assert next(lines) == "more\n"


def test_a_log_rotated_by_copy_and_truncate(here: Path) -> None:
    """The writer appends and keeps its file open; nothing of what it writes afterwards is lost."""
    log = here / "log"
    with log.open("ab", buffering=0) as out:
        out.write(b"old\n" * 10_000)
        programs.run("cp", "-p", "log", "log.1", cwd=here)
        programs.run("truncate", "-s", "0", "log", cwd=here)
        out.write(b"new\n")
        assert log.read_bytes() == b"new\n"
    assert (here / "log.1").read_bytes() == b"old\n" * 10_000
    assert log.stat().st_blocks * 512 <= 32768


def test_several_append_to_one_log(here: Path) -> None:
    script = f"for n in $(seq {LINES}); do echo $0 $n; done | tee -a log >/dev/null"
    with (
        background("bash", "-c", script, "one", cwd=here) as one,
        background("bash", "-c", script, "two", cwd=here) as two,
        background(
            "bash", "-c", f"for n in $(seq {LINES}); do echo 3 $n >>log; done", cwd=here
        ) as three,
    ):
        for process in (one, two, three):
            finish(process)
    lines = read(here / "log").splitlines()
    assert sorted(lines) == sorted(
        f"{who} {n}" for who in ("one", "two", "3") for n in range(1, LINES + 1)
    )


def test_a_terminal_session_that_is_recorded(here: Path) -> None:
    need("script")
    need_terminal()
    log = here / "typescript"
    turns = "for n in 1 2 3; do echo out $n; read x; done"
    with background("script", "-q", "-f", "-c", turns, log) as session:
        assert session.stdin is not None
        for number in (1, 2, 3):
            wait_for_text(log, f"out {number}")
            session.stdin.write("\n")
            session.stdin.flush()
        finish(session)
    assert read(log).count("out ") >= 3


def test_the_log_of_a_tmux_pane(here: Path) -> None:
    need("tmux")
    need_terminal()
    # The address of a socket is short: given relative to the directory.
    tmux = ["tmux", "-f", os.devnull, "-S", "s"]
    env = {"TMUX": "", "TERM": "screen", "SHELL": "/bin/sh", "LC_ALL": "C.UTF-8"}
    log = here / "pane.log"
    programs.run(*tmux, "new-session", "-d", "-x", "80", "-y", "24", "cat", cwd=here, env=env)
    try:
        assert (here / "s").is_socket()
        pipe = f"exec cat >>{shlex.quote(str(log))}"
        programs.run(*tmux, "pipe-pane", "-o", pipe, cwd=here, env=env)
        for number in range(3):
            programs.run(*tmux, "send-keys", f"typed {number}", "Enter", cwd=here, env=env)
            wait_for_text(log, f"typed {number}\r")
    finally:
        subprocess.run([*tmux, "kill-server"], cwd=here, check=False, capture_output=True)
    wait_until(lambda: not tmux_lives(tmux, here), what="tmux to end")


def wait_for_text(path: Path, text: str) -> None:
    """Wait until a file that grows contains a text."""
    wait_until(lambda: text in read(path), timeout_s=30, what=f"{text!r} in {path.name}")


def tmux_lives(tmux: list[str], cwd: Path) -> bool:
    """Whether the server still answers."""
    done = subprocess.run([*tmux, "list-sessions"], cwd=cwd, check=False, capture_output=True)
    return done.returncode == 0


def read(path: Path) -> str:
    """The text of a file, "" while there is none."""
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def test_logs_are_the_same_on_another_host(elsewhere: Elsewhere) -> None:
    """Last in this module."""
    elsewhere()
