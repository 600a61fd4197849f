"""A deadline that the kernel keeps: this process is killed at it, also when it is stopped.

A check before a request is not enough to fence a writer: a process that is stopped (SIGSTOP, a
frozen container) between the check and the send goes on with the send when it wakes, hours later. A
timer of the kernel on CLOCK_BOOTTIME that sends SIGKILL leaves no such gap: at the deadline the
process is gone, and one that was stopped beyond it runs no further instruction.

Invariants
1. After `set(at)`, no instruction of this process runs later than `at` (but for the time that the
   kernel takes to notice), unless `set` was called again before.

Called by gate.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Final

_SIGEV_SIGNAL: Final = 0
_TIMER_ABSTIME: Final = 1
_NS: Final = 1_000_000_000


class _SigEvent(ctypes.Structure):
    """struct sigevent: 64 bytes on Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("pad", ctypes.c_byte * 48),
    )


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


def boot_s() -> float:
    """Seconds since the boot, suspension included: the same for all processes of a host."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Deadline:
    """One timer of this process. Raises OSError where the kernel gives none."""

    def __init__(self, signal_number: int = signal.SIGKILL) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        event = _SigEvent(signo=signal_number, notify=_SIGEV_SIGNAL)
        self._check(
            self._libc.timer_create(
                time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)
            )
        )

    def set(self, at_s: float | None) -> None:
        """Kill this process when `boot_s()` reaches `at_s` (at once, if it has); None: never."""
        # All zeros disarm, so the smallest deadline is a nanosecond.
        at_ns = 0 if at_s is None else max(1, round(at_s * _NS))
        spec = _TimerSpec(value=_TimeSpec(*divmod(at_ns, _NS)))
        self._check(self._libc.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(spec), None))

    def close(self) -> None:
        """Give the timer back."""
        self._check(self._libc.timer_delete(self._timer))

    @staticmethod
    def _check(result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
