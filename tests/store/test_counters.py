"""What a store counts of its requests, and how much of it is kept."""

from __future__ import annotations

import pytest

from s3ws_fs.store.base import CODE_CHARS_MAX, OPS, OTHER_CODE, OUTCOMES_MAX, Counters


def test_requests_by_operation_and_outcome() -> None:
    counters = Counters()
    for op, code in (("put", "200"), ("put", "200"), ("put", "SlowDown"), ("get", "206")):
        counters.add(op, code)
    assert counters.by_op() == {**dict.fromkeys(OPS, 0), "put": 3, "get": 1}
    assert counters.by_code() == {"get 206": 1, "put 200": 2, "put SlowDown": 1}


@pytest.mark.parametrize("code", ["", "a b", 'x"\n', "é", "n" * (CODE_CHARS_MAX + 1)])
def test_a_name_that_a_server_made_up_is_not_repeated(code: str) -> None:
    counters = Counters()
    counters.add("put", code)
    assert counters.by_code() == {f"put {OTHER_CODE}": 1}


def test_outcomes_are_bounded_whatever_the_server_says() -> None:
    counters = Counters()
    for number in range(OUTCOMES_MAX + 50):
        counters.add("put", f"Error{number}")
    counters.add("put", "Error0")
    said = counters.by_code()
    assert len(said) == OUTCOMES_MAX + 1
    assert said[f"put {OTHER_CODE}"] == 50
    assert said["put Error0"] == 2
    assert counters.by_op()["put"] == OUTCOMES_MAX + 51
    counters.add("get", "n" * CODE_CHARS_MAX)
    assert counters.by_code()[f"get {OTHER_CODE}"] == 1, "each operation has one more at most"
