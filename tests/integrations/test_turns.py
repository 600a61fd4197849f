"""Which turn is under way, and which is next."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.history import TURN_BEGIN, TURN_END, check_name
from s3ws_fs.integrations.turns import next_turn, open_turn


def mark(kind: str, name: str) -> dict[str, Any]:
    return {"kind": kind, "name": name}


def turn(name: str, *kinds: str) -> list[dict[str, Any]]:
    return [mark(kind, name) for kind in kinds or (TURN_BEGIN, TURN_END)]


def test_the_first_turn() -> None:
    assert open_turn([]) is None
    assert next_turn([]) == "1"


def test_a_turn_that_has_begun_is_under_way_until_it_ends() -> None:
    marks = [*turn("1"), *turn("2", TURN_BEGIN)]
    assert open_turn(marks) == "2"
    assert open_turn([*marks, mark(TURN_END, "2")]) is None


def test_counts_by_numbers_and_not_by_letters() -> None:
    assert next_turn([*turn("9"), *turn("10")]) == "11"
    assert open_turn([*turn("9", TURN_BEGIN), *turn("10", TURN_BEGIN)]) == "10"


def test_goes_on_counting_when_old_marks_are_gone() -> None:
    assert next_turn(turn("41")) == "42"
    assert next_turn(turn("41", TURN_END)) == "42"


def test_names_of_somebody_else_count_for_nothing() -> None:
    foreign = ["morning", "007", "0", "-1", "1.5", "9" * 7, "9" * 64, "before-1"]
    marks = [each for name in foreign for each in turn(name, TURN_BEGIN)]
    marks += [mark("named", "5"), mark("before-restore", "")]
    assert open_turn(marks) is None
    assert next_turn(marks) == "1"


@given(st.integers(1, 999_999))
def test_every_number_can_be_the_name_of_a_turn(number: int) -> None:
    assert check_name(str(number)) == str(number)


def test_the_last_number_is_followed_by_one_that_is_still_a_name() -> None:
    assert check_name(next_turn(turn("999999"))) == "1000000"
