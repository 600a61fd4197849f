"""How many bytes are asked for at once: as many as the store brings in a moment, so that nobody
waits long behind them. Pure: whoever uses it says how long it took.

Invariants
1. Between PACE_BYTES_MIN and PACE_BYTES_MAX, whatever it is told.
2. It grows only by what was asked for in full: small pieces say nothing about large ones.

Called by hydrate.
"""

from __future__ import annotations

from typing import Final

PACE_BYTES_MIN: Final = 256 << 10
PACE_BYTES_MAX: Final = 4 << 20
PACE_BYTES_FIRST: Final = 1 << 20
QUICK_S: Final = 0.25
"""A piece that took no longer: the next may be twice as large."""
SLOW_S: Final = 1.0
"""A piece that took longer: the next is half as large."""


class Pace:
    """Of one stream of pieces."""

    def __init__(self) -> None:
        self.size_bytes = PACE_BYTES_FIRST

    def took(self, size_bytes: int, seconds: float) -> None:
        """A piece of `size_bytes` took `seconds`."""
        if seconds > SLOW_S:
            self.size_bytes = max(PACE_BYTES_MIN, self.size_bytes // 2)
        elif seconds <= QUICK_S and 2 * size_bytes > self.size_bytes:
            self.size_bytes = min(PACE_BYTES_MAX, self.size_bytes * 2)
