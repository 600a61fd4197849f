"""Negative controls: with a rule of the garbage collection switched off, the lives must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from s3ws_fs.core import retention
from s3ws_fs.transfer import garbage, spans
from s3ws_fs.transfer.garbage import Needs
from tests.history.lives import live

LIVES_MAX = 60
"""So many at most until one of them fails; each is a fraction of a second."""


def no_snapshot_needs(self: Needs, mark: object) -> set[int]:
    return set()


def nothing_lost(self: spans.History, *_: Any) -> list[spans.Span]:
    return []


def all_is_old(*_: Any) -> None:
    """history.json is not written."""


def window_too_short(lowest: int, newest: int, *_: Any) -> tuple[int, int]:
    return newest, 0


def nothing_deleted(*_: Any) -> int:
    return 0


CONTROLS: dict[str, tuple[object, str, Callable[..., Any]]] = {
    "what a snapshot needs": (Needs, "of_point", no_snapshot_needs),
    "what older points of the window name": (spans.History, "spans", nothing_lost),
    "history.json before the first deletion": (garbage, "_note_kept_from", all_is_old),
    "the window": (retention, "fit_window", window_too_short),
    "deleting anything": (garbage, "_delete", nothing_deleted),
}


@pytest.mark.parametrize("what", CONTROLS)
def test_a_life_tells(what: str) -> None:
    where, name, instead = CONTROLS[what]
    with mock.patch.object(where, name, instead):
        for seed in range(1, LIVES_MAX):
            try:
                live(seed)
            except Exception as exc:
                print(f"seed {seed}: {type(exc).__name__}")
                return
    raise AssertionError(f"{LIVES_MAX} lives found nothing wrong without {what}")
