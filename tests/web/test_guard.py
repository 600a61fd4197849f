"""Sessions: how many, for how long."""

from __future__ import annotations

import pytest

from s3ws_fs.web.guard import KEY_HEADER, SESSION_IDLE_S, SESSIONS_MAX, Guard
from s3ws_fs.web.http import BadRequest, Request


class Door:
    """A guard with a clock of the test's."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.guard = Guard((), monotonic=lambda: self.now_s)

    def enter(self) -> Request:
        """What a browser that was let in shows."""
        response = self.guard.enter(self.guard.token)
        assert isinstance(response.body, bytes)
        cookie = dict(response.headers)["Set-Cookie"].partition(";")[0]
        headers = {"cookie": f"other=1; {cookie}; s3ws_other=2", KEY_HEADER: response.body.decode()}
        return Request("GET", "/api/mounts", {}, headers, b"")


def test_a_session_that_is_not_used_ends() -> None:
    door = Door()
    shown = door.enter()
    for _ in range(3):
        door.now_s += SESSION_IDLE_S - 1
        door.guard.require(shown)
    door.now_s += SESSION_IDLE_S + 1
    with pytest.raises(BadRequest):
        door.guard.require(shown)


def test_the_oldest_session_makes_room() -> None:
    door = Door()
    first, *others = [door.enter() for _ in range(SESSIONS_MAX + 1)]
    for each in others:
        door.guard.require(each)
    with pytest.raises(BadRequest):
        door.guard.require(first)


def test_cookie_and_key_are_of_one_session() -> None:
    door = Door()
    one, other = door.enter(), door.enter()
    mixed = Request("GET", "/", {}, {**one.headers, KEY_HEADER: other.headers[KEY_HEADER]}, b"")
    with pytest.raises(BadRequest):
        door.guard.require(mixed)
    door.guard.require(mixed, by_cookie=True)
