"""Ending what the benchmark started, and what a process has used, from /proc.

1. A process is ended by its id only, and only by who started it; its mount goes first.
2. Nothing here waits without a bound.

Called by bench.targets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

END_TIMEOUT_S: Final = 15.0
UMOUNT_TRIES: Final = 20
UMOUNT_PAUSE_S: Final = 0.1
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a daemon has used since it started: itself, and its children, dead or alive."""

    cpu_s: float
    children_cpu_s: float
    private_mib: float


def usage(pid: int) -> Usage | None:
    """None when the process is gone."""
    try:
        own, reaped = _cpu_ticks(pid)
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    children = reaped
    for child in _children(pid):
        with contextlib.suppress(OSError):
            children += sum(_cpu_ticks(child))
    # Not the resident set: that counts the pages of a mapped cache file, which are the kernel's.
    kib = next(
        (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")), "0"
    )
    return Usage(own / _TICKS_PER_S, children / _TICKS_PER_S, int(kib) / 1024)


def _cpu_ticks(pid: int) -> tuple[int, int]:
    """(user + system of the process, of its children that it has buried), proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])


def _children(pid: int) -> list[int]:
    """Of all its threads: each lists those that it started itself."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in listing.read_text().split()]
    return found


def is_mounted(directory: Path) -> bool:
    """Whether a filesystem is mounted exactly there (the path must hold nothing to be escaped)."""
    wanted = str(directory)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == wanted for line in lines)


def unmount(directory: Path) -> None:
    """Unmount, trying for a while; as a last resort detach, so that nothing is left behind."""
    for attempt in range(UMOUNT_TRIES + 1):
        if not is_mounted(directory):
            return
        lazily = ["-z"] if attempt == UMOUNT_TRIES else []
        subprocess.run(
            ["fusermount3", "-u", *lazily, str(directory)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=END_TIMEOUT_S,
            check=False,
        )
        if is_mounted(directory):
            time.sleep(UMOUNT_PAUSE_S)


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process whose mount is gone; SIGTERM, then SIGKILL, when it does not end."""
    for signal_number in (0, signal.SIGTERM, signal.SIGKILL):
        # Signal 0 asks nothing of it.
        process.send_signal(signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
            return
