"""An agent's turns, numbered, as marks of a mounted workspace (`s3ws turn begin|end N`).

A turn lasts from the first message after the agent had finished until it finishes again, or until
its session is closed. Messages in between belong to the turn that is under way.

Invariants
1. The marks in the bucket are all the state there is: who goes on elsewhere goes on counting, and a
   turn that a crash cut off is ended by whoever finishes it.
2. Marks that somebody else set under other names are left alone and count for nothing.
3. `begin` and `end` return when the mark stands, and everything before it is sealed.
4. No call waits longer than its `timeout_s`.

Called by integrations.openhands and its hooks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from s3ws_fs.control import client
from s3ws_fs.core.errors import UserError
from s3ws_fs.core.history import TURN_BEGIN, TURN_END

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,5}")
"""Longer ones are somebody else's names; and a date of eight digits can't be one."""

Marks = Iterable[Mapping[str, Any]]


def open_turn(marks: Marks) -> str | None:
    """The turn that has begun and not ended: the newest, should there be several. Pure."""
    begun, ended = _numbers(marks, TURN_BEGIN), _numbers(marks, TURN_END)
    return max(begun - ended, key=int, default=None)


def next_turn(marks: Marks) -> str:
    """The name of a turn that begins now. Pure."""
    taken = _numbers(marks, TURN_BEGIN) | _numbers(marks, TURN_END)
    return str(max(map(int, taken), default=0) + 1)


def _numbers(marks: Marks, kind: str) -> set[str]:
    return {
        mark["name"]
        for mark in marks
        if mark["kind"] == kind and _NUMBER.fullmatch(mark["name"]) is not None
    }


def begin(socket_path: str, timeout_s: float) -> tuple[str, bool]:
    """The turn that is under way afterwards, and whether it began just now. Raises UserError."""
    deadline = time.monotonic() + timeout_s
    marks = _marks(socket_path, timeout_s)
    if (under_way := open_turn(marks)) is not None:
        return under_way, False
    name = next_turn(marks)
    _mark(socket_path, name, "begin", deadline)
    return name, True


def end(socket_path: str, timeout_s: float) -> str | None:
    """End the turn that is under way; its name, or None when none is. Raises UserError."""
    deadline = time.monotonic() + timeout_s
    name = open_turn(_marks(socket_path, timeout_s))
    if name is not None:
        _mark(socket_path, name, "end", deadline)
    return name


def finish(socket_path: str, timeout_s: float) -> tuple[str | None, dict[str, Any]]:
    """End the turn that is under way and save everything: its name, and what `sync` answers.

    Saving is asked for also when the turn can't be ended. Raises UserError.
    """
    deadline = time.monotonic() + timeout_s
    name, trouble = None, None
    try:
        name = end(socket_path, timeout_s)
    except UserError as exc:
        trouble = exc
    done = client.request(socket_path, "sync", timeout_s=max(0.0, deadline - time.monotonic()))
    if trouble is not None:
        raise trouble
    return name, done


def _marks(socket_path: str, timeout_s: float) -> list[dict[str, Any]]:
    found = client.request(socket_path, "snapshots", timeout_s=timeout_s)["snapshots"]
    return list(found)


def _mark(socket_path: str, name: str, mark: str, deadline: float) -> None:
    left_s = max(0.0, deadline - time.monotonic())
    client.request(socket_path, "turn", {"name": name, "mark": mark}, timeout_s=left_s)
