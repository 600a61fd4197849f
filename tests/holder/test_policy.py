"""When another daemon is started, and when not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.holder import policy
from s3ws_fs.holder.policy import Deaths, is_death


def test_the_first_try_comes_at_once_and_the_pause_doubles() -> None:
    deaths = Deaths()
    pauses = [deaths.pause_s(float(at), 0.1) for at in range(policy.ROW_MAX)]
    assert pauses == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, policy.PAUSE_MAX_S]


def test_a_row_of_deaths_is_bounded() -> None:
    deaths = Deaths()
    for at in range(policy.ROW_MAX):
        assert deaths.pause_s(float(at), None) is not None
    assert deaths.pause_s(float(policy.ROW_MAX), None) is None


def test_a_daemon_that_served_a_while_begins_a_new_row() -> None:
    deaths = Deaths()
    for at in range(policy.ROW_MAX):
        deaths.pause_s(float(at), 0.0)
    assert deaths.pause_s(99.0, policy.SETTLED_S) == 0.0
    assert deaths.pause_s(99.1, 0.1) == policy.PAUSE_MIN_S


def test_a_daemon_that_did_something_new_begins_a_new_row() -> None:
    deaths = Deaths()
    for at in range(3 * policy.ROW_MAX):
        assert deaths.pause_s(float(at), 0.01, has_worked=True) == 0.0


def test_deaths_within_a_window_are_bounded_also_with_service_between() -> None:
    deaths = Deaths()
    for number in range(policy.WINDOW_MAX):
        assert deaths.pause_s(number * 0.5, 0.3) == 0.0
    assert deaths.pause_s(policy.WINDOW_MAX * 0.5, 0.3) is None


def test_deaths_spread_over_time_go_on_for_ever() -> None:
    deaths = Deaths()
    every_s = 1.01 * policy.WINDOW_S / policy.WINDOW_MAX
    for number in range(3 * policy.WINDOW_MAX):
        assert deaths.pause_s(number * every_s, every_s) == 0.0


@given(st.lists(st.tuples(st.floats(0, 5), st.none() | st.floats(0, 5)), max_size=400))
def test_pauses_are_bounded(lives: list[tuple[float, float | None]]) -> None:
    deaths, now_s, row = Deaths(), 0.0, 0
    for life_s, served_s in lives:
        now_s += life_s
        pause_s = deaths.pause_s(now_s, served_s)
        row = 1 if served_s is not None and served_s >= policy.SETTLED_S else row + 1
        if row > policy.ROW_MAX:
            assert pause_s is None
        if pause_s is not None:
            assert 0 <= pause_s <= policy.PAUSE_MAX_S


def test_what_is_a_death() -> None:
    assert is_death(-9, has_served=True)
    assert is_death(policy.EXIT_INTERNAL, has_served=True)
    assert is_death(8, has_served=False), "it took over, and refused"
    for code in (0, 7, 9):
        assert not is_death(code, has_served=True)
