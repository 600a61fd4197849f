"""The time a change gets: the kernel's own, which ticks, and finer within a tick. Pure.

utimensat(2) with "now" (touch) reaches us as the kernel's coarse time, up to ten milliseconds old,
and pyfuse3 does not say that it is "now". With a finer clock of ours, a file touched after another
was written would be the older one, and make would build again and again.

Invariants
1. Each time given is later than the one before, unless the kernel's clock was set back.
2. A time given is later than the kernel's tick it falls in, by less than the tick lasts.
3. What the kernel calls "now" becomes, by `settled`, at least the last time given; and what is
   given after it is later. A time that a program set itself comes back as it is, except one equal
   to the last tick or "now": its copy within the same tick would be nanoseconds later.

Called by the daemon (composition), fuse (settled) and cache (the call).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

CLOCK_REALTIME_COARSE: Final = 5
"""Linux's number of the clock that file times come from; Python has no name for it."""

TICK_NS_MAX: Final = 10_000_000
"""The longest tick that Linux has (100 Hz)."""


class Clock:
    """`clock()` is the time of the next change, in nanoseconds since 1970."""

    def __init__(self, read: Callable[[], int]) -> None:
        """`read`: the kernel's coarse time of day in nanoseconds."""
        self._read = read
        self._tick_ns = 0
        self._last_ns = 0
        self._finer_ns: int | None = None
        """The last "now" between ticks: Linux 6.13 and later has them."""

    def __call__(self) -> int:
        tick_ns = self._read()
        if tick_ns == self._tick_ns or tick_ns < self._last_ns <= tick_ns + TICK_NS_MAX:
            self._last_ns += 1
        else:
            self._last_ns = tick_ns + 1
        self._tick_ns = tick_ns
        return self._last_ns

    def settled(self, asked_ns: int) -> int:
        """The time to store for one that came by setattr."""
        if abs(self._read() - asked_ns) > TICK_NS_MAX:
            return asked_ns  # a copy of a recent time is no "now", however often it comes
        if asked_ns in (self._tick_ns, self._finer_ns):
            return self._last_ns
        if asked_ns > self._last_ns:
            self._last_ns = self._finer_ns = asked_ns
        return asked_ns
