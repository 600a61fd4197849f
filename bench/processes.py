"""Ending what the benchmark started, and what a process has used, from /proc.

1. A process is ended by its id only, and only by who started it; its mount goes first.
2. Nothing here waits without a bound.

Called by bench.targets, bench.peers and bench.runner.
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
    below = reaped
    for child in children(pid):
        with contextlib.suppress(OSError):
            below += sum(_cpu_ticks(child))
    return Usage(own / _TICKS_PER_S, below / _TICKS_PER_S, _private_mib(status))


def cpu_s(pid: int) -> float:
    """Processor time of a process, all its threads, to the nanosecond: clock_getcpuclockid(3).

    0 for what is gone.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _private_mib(status: str) -> float:
    # Not the resident set: that counts the pages of a mapped cache file, which are the kernel's.
    kib = next(
        (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")), "0"
    )
    return int(kib) / 1024


def private_mib(pid: int) -> tuple[float, float]:
    """(the process, its children together) at this moment; 0 for what is gone."""
    found = []
    for each in (pid, *children(pid)):
        try:
            found.append(_private_mib(Path(f"/proc/{each}/status").read_text()))
        except OSError:
            found.append(0.0)
    return found[0], sum(found[1:])


def _cpu_ticks(pid: int) -> tuple[int, int]:
    """(user + system of the process, of its children that it has buried), proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])


def children(pid: int) -> list[int]:
    """Its living children: of all its threads: each lists those that it started itself."""
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


def identified(pid: int) -> dict[int, str]:
    """Its living children, each with when it started: a number may be somebody else's later."""
    found = ((child, _started(child)) for child in children(pid))
    return {child: started for child, started in found if started is not None}


def end_tree(process: subprocess.Popen[bytes], below: dict[int, str]) -> None:
    """`end`, and then SIGKILL for those of `below` (`identified` before) that are still there."""
    end(process)
    for pid, started in below.items():
        if _started(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _started(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
