"""When to flush: the debounce of a burst, and the wait after a failure. Pure; time is an argument.

Rules
    normal      flush once nothing changed for `min_s`
    burst       above BURST_CHANGES_PER_S changes a second, at most once a step, the quiet time
                doubles, up to `max_s`
    calm        a flush interval below the rate brings the quiet time back to `min_s`
    bound       however busy it is, the oldest dirt is flushed at the latest `max_s` after it arose
    failure     RETRY_MIN_S doubling up to RETRY_MAX_S; half of each is fixed, half random
    mirror      a pass is let go on for PATIENCE_MIN_S doubling up to PATIENCE_MAX_S (and `max_s`)
                after each one that a due flush cut off, half as long after each that was completed
    following   a look every `interval_s`, each time longer by half while there is nothing new, up
                to FOLLOW_IDLE_S_MAX

Invariants
1. `due_s` is never later than oldest dirt + max_s while the store answers.
2. `due_s` never lies before the last change + min_s unless invariant 1 forces it.
3. No clock and no randomness of its own: the same calls give the same answers.

Called by replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BURST_CHANGES_PER_S: Final = 10.0
RATE_WINDOW_S: Final = 1.0
"""Changes are counted in windows of this length; a window above the rate doubles the quiet time."""
FOLLOW_GROWTH: Final = 1.5
FOLLOW_IDLE_S_MAX: Final = 300.0
"""A look of a worker that has to be started for it costs 0.4 s of CPU: 0.1 % at this interval."""
RETRY_MIN_S: Final = 0.5
RETRY_MAX_S: Final = 10.0
"""So long at most until a store that came back is noticed: well below the bound on the age of dirt,
and an attempt at a store that is away is cheap (one request, refused)."""

PATIENCE_MIN_S: Final = 0.25
PATIENCE_MAX_S: Final = 10.0
"""So long at most the mirror holds up a seal, and only where it would never be done otherwise."""
PATIENCE_FLOOR_S: Final = 1.0
"""So long it may whatever `max_s` is."""


@dataclass(slots=True)
class Debounce:
    """Debounce policy. All times are seconds of one monotonic clock."""

    min_s: float
    max_s: float
    quiet_s: float = 0.0
    oldest_s: float | None = None
    last_s: float = 0.0
    _window_start_s: float = 0.0
    _window_changes: int = 0
    _window_doubled: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_s <= self.max_s:
            raise ValueError("the debounce's minimum must not exceed its maximum")
        self.quiet_s = self.min_s

    def changed(self, now_s: float, count: int = 1, oldest_s: float | None = None) -> None:
        """`count` changes happened up to now; `oldest_s` when the dirt is older than this call."""
        first = now_s if oldest_s is None else min(oldest_s, now_s)
        self.oldest_s = first if self.oldest_s is None else min(self.oldest_s, first)
        self.last_s = now_s
        self._roll(now_s)
        self._window_changes += count
        if self._window_changes > BURST_CHANGES_PER_S * RATE_WINDOW_S and not self._window_doubled:
            self._window_doubled = True
            self.quiet_s = min(max(self.quiet_s * 2, self.min_s), self.max_s)

    def _roll(self, now_s: float) -> None:
        elapsed = now_s - self._window_start_s
        if 0 <= elapsed < RATE_WINDOW_S:
            return
        calm = not self._window_doubled or elapsed >= 2 * RATE_WINDOW_S
        if calm:
            self.quiet_s = self.min_s
        self._window_start_s = now_s
        self._window_changes = 0
        self._window_doubled = False

    def due_s(self) -> float | None:
        """When the next flush is due; None while nothing is dirty."""
        if self.oldest_s is None:
            return None
        return min(self.last_s + self.quiet_s, self.oldest_s + self.max_s)

    def frozen(self, now_s: float) -> None:
        """A freeze took everything up to now: what changes later is new dirt."""
        self.oldest_s = None
        self._roll(now_s)

    def restore_dirt(self, oldest_s: float) -> None:
        """A flush failed: its dirt is still there, as old as it was."""
        self.oldest_s = oldest_s if self.oldest_s is None else min(self.oldest_s, oldest_s)


@dataclass(slots=True)
class Retry:
    """Exponential wait after failures."""

    min_s: float = RETRY_MIN_S
    max_s: float = RETRY_MAX_S
    failures: int = 0

    def failed(self, random01: float) -> float:
        """One more failure: seconds to wait; `random01` in [0, 1) is the caller's randomness."""
        span = min(self.max_s, self.min_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return span / 2 + span / 2 * random01

    def worked(self) -> None:
        """It worked: the next failure starts small again."""
        self.failures = 0


@dataclass(slots=True)
class Patience:
    """How long a mirror pass goes on though a flush is due.

    None at first: a seal comes before the mirror. But a writer that never rests makes a flush due
    again while the one before is under way, and no pass would ever come to its end. `max_s`: of
    the debounce.
    """

    max_s: float = PATIENCE_MAX_S
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        self.max_s = min(PATIENCE_MAX_S, max(PATIENCE_FLOOR_S, self.max_s))

    def cut_off(self) -> None:
        """A due flush ended a pass early."""
        self.wait_s = min(self.max_s, max(PATIENCE_MIN_S, self.wait_s * 2))

    def completed(self) -> None:
        """A pass came to its end."""
        self.wait_s = self.wait_s / 2 if self.wait_s > PATIENCE_MIN_S else 0.0


@dataclass(slots=True)
class Pace:
    """How long a follower waits before it looks for new seals again."""

    interval_s: float
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        self.wait_s = self.interval_s

    @property
    def is_slow(self) -> bool:
        """Whether looks are further apart than asked for."""
        return self.wait_s > self.interval_s

    def found(self) -> None:
        """There was something new, or somebody reads: looks at the interval that was asked for."""
        self.wait_s = self.interval_s

    def nothing(self) -> None:
        """There was nothing new."""
        most_s = max(self.interval_s, FOLLOW_IDLE_S_MAX)
        self.wait_s = min(most_s, self.wait_s * FOLLOW_GROWTH)
