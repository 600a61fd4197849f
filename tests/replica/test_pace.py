"""How large the next piece is."""

from __future__ import annotations

from s3ws_fs.replica.pace import (
    PACE_BYTES_FIRST,
    PACE_BYTES_MAX,
    PACE_BYTES_MIN,
    QUICK_S,
    SLOW_S,
    Pace,
)


def test_a_quick_store_is_asked_for_more_up_to_the_limit() -> None:
    pace = Pace()
    assert pace.size_bytes == PACE_BYTES_FIRST
    pace.took(PACE_BYTES_FIRST, QUICK_S)
    assert pace.size_bytes == 2 * PACE_BYTES_FIRST
    for _ in range(10):
        pace.took(pace.size_bytes, 0.0)
    assert pace.size_bytes == PACE_BYTES_MAX


def test_a_slow_one_for_less_down_to_the_limit() -> None:
    pace = Pace()
    pace.took(pace.size_bytes, SLOW_S + 0.01)
    assert pace.size_bytes == PACE_BYTES_FIRST // 2
    for _ in range(10):
        pace.took(1, 60.0)
    assert pace.size_bytes == PACE_BYTES_MIN


def test_what_took_neither_long_nor_little_changes_nothing() -> None:
    pace = Pace()
    pace.took(pace.size_bytes, (QUICK_S + SLOW_S) / 2)
    pace.took(pace.size_bytes // 2, 0.0)
    assert pace.size_bytes == PACE_BYTES_FIRST
