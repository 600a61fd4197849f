"""When a dead daemon is followed by another, and when the mount is given up.

Invariants
1. Pure: times come as arguments.
2. Bounded: after ROW_MAX deaths in a row, in which nothing new was done (SETTLED_S), or WINDOW_MAX
   deaths within WINDOW_S, there is no further try.
3. The first try comes at once; then the pause doubles up to PAUSE_MAX_S.

Called by the holder.
"""

from __future__ import annotations

SETTLED_S = 0.2
"""A daemon that served for so long, or answered a change that its predecessor had not begun, died
of something new: the row begins again. A request that kills whoever handles it comes first each
time, so that nothing else is answered.
"""
ROW_MAX = 8
WINDOW_S = 600.0
WINDOW_MAX = 300
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 2.0

EXIT_INTERNAL = 1
EXIT_GAVE_UP = 14
EXIT_RESTART = 75
"""Exit codes of the daemon and of the holder that mean something here (core/errors.py has all)."""


class Deaths:
    """The deaths of one mount's daemons."""

    def __init__(self) -> None:
        self._row = 0
        self._times_s: list[float] = []

    def pause_s(
        self, now_s: float, served_s: float | None, *, has_worked: bool = False
    ) -> float | None:
        """A daemon died that had served for `served_s` (None: never), and answered something new
        (`has_worked`): seconds to wait before the next is started; None when there shall be none.
        """
        is_new = has_worked or (served_s is not None and served_s >= SETTLED_S)
        self._row = 1 if is_new else self._row + 1
        self._times_s = [at for at in self._times_s if now_s - at < WINDOW_S]
        self._times_s.append(now_s)
        if self._row > ROW_MAX or len(self._times_s) > WINDOW_MAX:
            return None
        if self._row == 1:
            return 0.0
        pause_s: float = PAUSE_MIN_S * 2 ** (self._row - 2)
        return min(pause_s, PAUSE_MAX_S)


def is_death(code: int, *, has_served: bool) -> bool:
    """Whether an exit status (negative: the signal) is one after which another daemon may help.

    A daemon that took over and ended before it served is one too, whatever it says: the cache may
    still be locked, the disk full for a moment.
    """
    return code < 0 or code == EXIT_INTERNAL or not has_served
