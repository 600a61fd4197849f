"""The holder, as a process, over daemons that do what a script says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.fuse import table
from s3ws_fs.holder import HOLDER_PROGRAM, main, policy
from tests.support.mounting import REPOSITORY, wait_until

RSS_KIB_MAX = 12 * 1024


class Held:
    """One holder under test."""

    def __init__(self, base: Path, *lines: str) -> None:
        self.script = base / "script"
        self.script.write_text("\n".join(lines))
        config = os.memfd_create("config")
        os.write(config, b"settings")
        self.ready, ready = os.pipe()
        self.log = base / "log"
        command = [sys.executable, "-I", "-S", "-E", HOLDER_PROGRAM]
        command += ["--mountpoint", str(base / "mnt"), "--config-fd", str(config)]
        command += ["--ready-fd", str(ready), "--"]
        command += [sys.executable, "-m", "tests.support.scripted_daemon", str(self.script)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "S3WS_SECRET": "s"},
                pass_fds=(config, ready),
                stderr=log,
                start_new_session=True,
            )
        os.close(config)
        os.close(ready)

    def seen(self) -> list[dict[str, Any]]:
        path = self.script.with_suffix(".seen")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def daemon_waits(self) -> None:
        path = self.script.with_suffix(".waiting")
        wait_until(path.exists, timeout_s=60, what=self.log.read_text())

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ready)


Make = Callable[..., Held]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Held] = []

    def start(*lines: str) -> Held:
        made.append(Held(tmp_path, *lines))
        return made[-1]

    yield start
    for held in made:
        held.end()


@pytest.mark.parametrize("code", [0, 1, 7, 9])
def test_it_ends_with_the_daemons_code(make: Make, code: int) -> None:
    held = make(f"exit {code}")
    assert held.process.wait(60) == code
    assert len(held.seen()) == 1


def test_a_first_daemon_that_dies_before_it_serves_ends_it_by_the_same_signal(make: Make) -> None:
    held = make("mount kill")
    assert held.process.wait(60) == -signal.SIGKILL
    assert len(held.seen()) == 1
    assert os.read(held.ready, 1) == b"", "whoever waits for the mount hears of it"


def test_the_next_daemon_gets_everything_but_the_ready_pipe(make: Make) -> None:
    held = make("mount serve kill", "serve exit 1", "serve exit 0")
    assert held.process.wait(60) == 0
    common = {"config": "settings", "secret": "s", "group": True}
    assert held.seen() == [
        {**common, "device": None, "restarts": None, "by": None, "ready": True},
        {**common, "device": "/dev/null", "restarts": 1, "by": "signal 9", "ready": False},
        {**common, "device": "/dev/null", "restarts": 2, "by": "exit status 1", "ready": False},
    ]


def test_a_restart_is_no_death_however_often(make: Make) -> None:
    often = policy.ROW_MAX + 2
    restarts = [f"serve exit {policy.EXIT_RESTART}"] * often
    held = make(f"mount {restarts[0]}", *restarts[1:], "serve exit 7")
    assert held.process.wait(100) == 7
    assert [life["by"] for life in held.seen()] == [None, *["restarted"] * often]


def test_a_kernel_that_does_not_send_again_means_the_end(make: Make) -> None:
    held = make("mount-old serve kill")
    assert held.process.wait(60) == -signal.SIGKILL
    assert len(held.seen()) == 1


@pytest.mark.parametrize(("line", "code"), [("serve kill", policy.EXIT_GAVE_UP), ("exit 8", 8)])
def test_a_daemon_that_keeps_dying_is_given_up(make: Make, line: str, code: int) -> None:
    held = make("mount serve kill", line)
    assert held.process.wait(170) == code
    assert len(held.seen()) == 1 + policy.ROW_MAX
    assert re.fullmatch(
        r"\S+Z error holder: the daemon died again and again .*keeps everything\n",
        held.log.read_text(),
    )


def test_signals_reach_the_daemon(make: Make) -> None:
    held = make(f"mount serve wait {signal.SIGINT:d} exit 7")
    held.daemon_waits()
    held.process.send_signal(signal.SIGINT)
    assert held.process.wait(60) == 7


def test_a_signal_that_a_daemon_died_over_reaches_the_next(make: Make) -> None:
    term = f"{signal.SIGTERM:d}"
    held = make(f"mount serve wait {term} kill", f"serve wait {term} exit 0")
    held.daemon_waits()
    held.process.terminate()
    assert held.process.wait(60) == 0


def test_it_is_small(make: Make) -> None:
    held = make("mount serve kill", "serve wait 15 exit 0")
    held.daemon_waits()
    status = Path(f"/proc/{held.process.pid}/status").read_text()
    (rss_kib,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    print(f"VmRSS {rss_kib} KiB")
    assert int(rss_kib) < RSS_KIB_MAX
    held.process.terminate()
    assert held.process.wait(60) == 0


def test_it_imports_nothing_large() -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['--mountpoint', '/', '--config-fd', '0', '--', '-'];"
        f"runpy.run_path({HOLDER_PROGRAM!r}, run_name='holder'); print(*sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert not {"trio", "lmdb", "subprocess", "ctypes", "json"} & set(done.stdout.split())


def test_the_mount_table_is_read_as_elsewhere() -> None:
    for mountpoint in ("/nowhere", "/a b\\c"):
        assert main.connection_at(mountpoint) is None
        assert table.connection_id(mountpoint) is None


def test_what_it_says_is_a_line_as_the_daemons_are(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = 'the daemon "died" \\ again'
    main.say(said)
    monkeypatch.setattr(main, "log_format", "json")
    main.say(said)
    text, entry = capfd.readouterr().err.splitlines()
    assert text.endswith(f"Z error holder: {said}")
    assert json.loads(entry).items() >= {"level": "error", "message": said}.items()
