"""The debounce policy: its bounds hold for every sequence of changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.backoff import (
    FOLLOW_IDLE_S_MAX,
    PATIENCE_FLOOR_S,
    PATIENCE_MAX_S,
    PATIENCE_MIN_S,
    RETRY_MAX_S,
    RETRY_MIN_S,
    Debounce,
    Pace,
    Patience,
    Retry,
)

gaps = st.lists(st.floats(min_value=0.0, max_value=40.0, allow_nan=False), max_size=80)


@given(gaps, st.lists(st.integers(1, 30), min_size=80, max_size=80))
def test_never_later_than_the_oldest_dirt_allows(steps: list[float], counts: list[int]) -> None:
    policy = Debounce(2.0, 30.0)
    now = 100.0
    oldest: float | None = None
    for step, count in zip(steps, counts, strict=False):
        now += step
        due = policy.due_s()
        if due is not None and due <= now:
            policy.frozen(due)
            oldest = None
        policy.changed(now, count)
        oldest = now if oldest is None else oldest
        due = policy.due_s()
        assert due is not None
        assert due <= oldest + 30.0
        assert due >= min(now + 2.0, oldest + 30.0)
        assert 2.0 <= policy.quiet_s <= 30.0


def test_normal_activity_waits_two_seconds() -> None:
    policy = Debounce(2.0, 30.0)
    assert policy.due_s() is None
    policy.changed(10.0)
    policy.changed(11.0)
    assert policy.due_s() == 13.0


def test_exactly_ten_changes_a_second_is_no_burst() -> None:
    policy = Debounce(2.0, 30.0)
    for step in range(100):
        policy.changed(step / 10)
    assert policy.quiet_s == 2.0


def test_a_burst_doubles_up_to_the_maximum_and_quiet_brings_it_back() -> None:
    policy = Debounce(2.0, 30.0)
    seen = []
    for second in range(6):
        for step in range(50):
            policy.changed(second + step / 50)
        seen.append(policy.quiet_s)
    assert seen == [4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert policy.due_s() == 30.0
    policy.changed(20.0)
    assert policy.quiet_s == 2.0


def test_dirt_that_is_older_than_the_daemon() -> None:
    policy = Debounce(2.0, 30.0)
    policy.changed(1000.0, oldest_s=900.0)
    assert policy.due_s() == 930.0


def test_a_failed_flush_keeps_the_age() -> None:
    policy = Debounce(2.0, 30.0)
    policy.changed(5.0)
    policy.frozen(7.0)
    assert policy.due_s() is None
    policy.restore_dirt(5.0)
    policy.changed(8.0)
    assert policy.oldest_s == 5.0


def test_bad_bounds() -> None:
    with pytest.raises(ValueError, match="minimum"):
        Debounce(3.0, 2.0)


@given(st.lists(st.floats(0.0, 1.0, exclude_max=True), max_size=200))
def test_retry_bounds(draws: list[float]) -> None:
    retry = Retry()
    for number, draw in enumerate(draws):
        span = min(RETRY_MAX_S, RETRY_MIN_S * 2.0**number)
        assert span / 2 <= retry.failed(draw) <= span
    retry.worked()
    assert retry.failed(0.0) == RETRY_MIN_S / 2


def test_the_pace_is_bounded_and_starts_anew() -> None:
    pace = Pace(2.0)
    waits = []
    for _ in range(20):
        waits.append(pace.wait_s)
        pace.nothing()
    assert waits[:3] == [2.0, 3.0, 4.5]
    assert pace.wait_s == FOLLOW_IDLE_S_MAX
    pace.found()
    assert pace.wait_s == 2.0
    slow = Pace(300.0)
    slow.nothing()
    assert slow.wait_s == 300.0


def test_after_a_long_outage_the_store_is_tried_soon() -> None:
    """However many failures came before, healing is noticed within RETRY_MAX_S, with jitter."""
    retry = Retry()
    for _ in range(10_000):
        retry.failed(0.5)
    pauses = {retry.failed(number / 100) for number in range(100)}
    assert len(pauses) == 100
    assert min(pauses) >= RETRY_MAX_S / 2
    assert max(pauses) <= RETRY_MAX_S <= 10.0
    retry.worked()
    assert retry.failed(0.999) <= 0.5


def test_patience_grows_to_its_limit_and_goes_away_again() -> None:
    patience = Patience(30.0)
    waits = []
    for _ in range(20):
        waits.append(patience.wait_s)
        patience.cut_off()
    assert waits[:4] == [0.0, PATIENCE_MIN_S, 2 * PATIENCE_MIN_S, 4 * PATIENCE_MIN_S]
    assert patience.wait_s == PATIENCE_MAX_S
    for _ in range(20):
        patience.completed()
    assert patience.wait_s == 0.0


@pytest.mark.parametrize(("max_s", "most_s"), [(0.0, PATIENCE_FLOOR_S), (5.0, 5.0)])
def test_patience_is_no_longer_than_the_debounce(max_s: float, most_s: float) -> None:
    patience = Patience(max_s)
    for _ in range(20):
        patience.cut_off()
    assert patience.wait_s == most_s
