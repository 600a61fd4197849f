"""The grace, and who is told to end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from s3ws_fs.container.processes import Grace

INIT = """
import os, signal, subprocess, sys
from s3ws_fs.container.processes import Grace, Init, default_signals
init = Init(Grace(10, 5))
"""


def test_nothing_is_counted_before_the_grace_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("s3ws_fs.container.processes.time.monotonic", lambda: now_s)
    grace = Grace(10, 4)
    assert grace.command_left_s() is None
    assert grace.left_s(2) is None
    grace.start()
    now_s = 103.0
    grace.start()  # a second SIGTERM gives no more time
    assert grace.command_left_s() == 1
    assert grace.left_s(2) == 5
    now_s = 109.0
    assert grace.command_left_s() == 0
    assert grace.left_s(2) == 0
    assert grace.left_s(0) == 1


def after(code: str) -> str:
    """What a process prints that is an Init (signals are a process's, so it is one of its own)."""
    done = subprocess.run(
        [sys.executable, "-c", INIT + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_command_gets_our_signals_and_its_own_group() -> None:
    script = "trap 'exit 9' USR1; kill -USR1 $PPID; while :; do sleep 0.05; done"
    assert after(
        f"print(init.run_command(['sh', '-c', {script!r}], os.environ, cwd='/',"
        " uid=os.getuid(), gid=os.getgid()))"
    ) == ("9\n")


def test_only_sigterm_starts_the_grace_and_any_ending_signal_is_noted() -> None:
    assert after(
        """
grace = init._grace
for number in (signal.SIGWINCH, signal.SIGINT, signal.SIGTERM):
    os.kill(os.getpid(), number)
    assert init.next_signal(5) is number
    print(init.asked_to_end and init.asked_to_end.name, grace.left_s(0) is not None)
print(init.next_signal(0))
"""
    ) == ("None False\nSIGINT False\nSIGTERM True\nNone\n")


def test_what_is_left_behind_by_a_grandchild_is_collected_and_ended() -> None:
    assert after(
        """
script = "setsid sleep 1000 >/dev/null & echo $!"
done = subprocess.run(
    ["sh", "-c", script], stdout=subprocess.PIPE, text=True, preexec_fn=default_signals, check=True
)
left = int(done.stdout)
init.end_the_rest(None)
print(left in init.collected)
"""
    ) == ("True\n")


def test_the_session_of_the_daemon_is_spared() -> None:
    assert after(
        """
spared = subprocess.Popen(["sleep", "1000"], start_new_session=True)
other = subprocess.Popen(["sleep", "1000"], preexec_fn=default_signals)
init.end_the_rest(spared.pid)
print(other.pid in init.collected, spared.pid in init.collected)
spared.kill()
spared.wait()
"""
    ) == ("True False\n")


def test_our_own_command_is_told_when_it_is_late_until_it_ends() -> None:
    assert after(
        """
from s3ws_fs.container import processes
processes.AGAIN_S = 0.01
told = []
def too_late():
    told.append(None)
    if len(told) == 3:
        [child] = open(f"/proc/self/task/{os.getpid()}/children").read().split()
        os.kill(int(child), signal.SIGTERM)
print(init.run(["sleep", "1000"], name="x", left_s=lambda: 0.0, too_late=too_late), len(told) >= 3)
"""
    ) == (f"{128 + 15} True\n")
