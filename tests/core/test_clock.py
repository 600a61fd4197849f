"""The clock of changes: the kernel's tick, finer within, and never behind what touch gets."""

from __future__ import annotations

from itertools import pairwise

from s3ws_fs.core.clock import TICK_NS_MAX, Clock

TICK_NS = 4_000_000


class Ticking:
    """A coarse clock, set by hand."""

    def __init__(self) -> None:
        self.ns = 100 * TICK_NS

    def __call__(self) -> int:
        return self.ns


def test_times_are_later_one_by_one_within_a_tick_and_across() -> None:
    ticking = Ticking()
    clock = Clock(ticking)
    given = []
    for _ in range(3):
        given += [clock() for _ in range(5)]
        ticking.ns += TICK_NS
    assert all(earlier < later for earlier, later in pairwise(given))
    assert all(0 < ns % TICK_NS < 10 for ns in given)


def test_now_of_the_kernel_is_not_before_the_last_change() -> None:
    ticking = Ticking()
    clock = Clock(ticking)
    written = [clock(), clock(), clock()][-1]
    assert clock.settled(ticking.ns) == written
    ticking.ns += TICK_NS
    assert clock.settled(ticking.ns) == ticking.ns > written


def test_a_now_of_the_kernel_finer_than_the_tick_is_before_the_next_change() -> None:
    ticking = Ticking()
    clock = Clock(ticking)
    clock()
    now_ns = ticking.ns + TICK_NS // 2
    assert clock.settled(now_ns) == now_ns
    written = clock()
    assert written > now_ns
    assert clock.settled(now_ns) == written, "the same now again, after the change"
    ticking.ns += TICK_NS // 4  # a tick that is older than that "now"
    assert clock() > now_ns
    ticking.ns += TICK_NS
    assert clock() == ticking.ns + 1


def test_a_time_in_the_future_does_not_move_the_clock() -> None:
    ticking = Ticking()
    clock = Clock(ticking)
    clock()
    ahead_ns = ticking.ns + TICK_NS_MAX + 1
    assert clock.settled(ahead_ns) == ahead_ns
    assert clock() == ticking.ns + 2


def test_a_time_that_a_program_set_stays() -> None:
    ticking = Ticking()
    clock = Clock(ticking)
    times = [clock(), clock()]
    for ns in (0, -1, ticking.ns - TICK_NS, ticking.ns - 1, *times, 2 * ticking.ns):
        assert clock.settled(ns) == ns


def test_a_recent_time_that_is_set_again_and_again_stays() -> None:
    """rsync sets a directory's times once more after it has filled it."""
    ticking = Ticking()
    clock = Clock(ticking)
    clock()
    for recent_ns in (ticking.ns, ticking.ns + TICK_NS // 2):
        ticking.ns += 30 * TICK_NS
        assert clock.settled(recent_ns) == recent_ns
        clock()
        assert clock.settled(recent_ns) == recent_ns


def test_a_clock_that_is_set_back_is_followed() -> None:
    ticking = Ticking()
    clock = Clock(ticking)
    clock()
    ticking.ns -= 50 * TICK_NS
    assert clock() == ticking.ns + 1
