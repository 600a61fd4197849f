"""The kernel's deadline, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from s3ws_fs.transfer.deadline import Deadline, boot_s
from tests.support.mounting import REPOSITORY

CHILD = """
import sys, time
from s3ws_fs.transfer.deadline import Deadline, boot_s
deadline = Deadline()
deadline.set(boot_s() + float(sys.argv[1]))
print("armed", flush=True)
if sys.argv[2] == "disarm":
    deadline.set(None)
    time.sleep(2 * float(sys.argv[1]))
elif sys.argv[2] == "extend":
    for _ in range(20):
        time.sleep(float(sys.argv[1]) / 10)
        deadline.set(boot_s() + float(sys.argv[1]))
    deadline.close()
elif sys.argv[2] == "late":
    deadline.set(boot_s() - 1)
    print("must not be said", flush=True)
else:
    # Hard at work, in no system call.
    while True:
        pass
print("ended by itself", flush=True)
"""


def child(seconds: float, way: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(seconds), way],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize("way", ["work", "late"])
def test_at_the_deadline_the_process_is_gone(way: str) -> None:
    with child(0.3, way) as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert out == "armed\n"


@pytest.mark.parametrize("way", ["disarm", "extend"])
def test_a_deadline_may_be_taken_away_or_set_later(way: str) -> None:
    with child(1.0, way) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == "armed\nended by itself\n"


def test_a_stopped_process_does_not_survive_it() -> None:
    with child(2.0, "work") as process:
        assert process.stdout is not None and process.stdout.readline() == "armed\n"
        os.kill(process.pid, signal.SIGSTOP)
        # Never continued: the kernel ends it all the same.
        assert process.wait(30) == -signal.SIGKILL


def test_the_clock_is_the_hosts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 <= boot_s() - float(done.stdout) < 30


def test_timers_are_given_back() -> None:
    """The kernel's limit on a process's timers is not reached by making and closing them."""
    for _ in range(5000):
        Deadline(signal.SIGCONT).close()
