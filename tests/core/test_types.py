"""The notes of what the kernel has to forget: read back as written, or an error in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.types import Outdated

INOS = st.integers(1, 2**64 - 1)


@given(st.lists(st.tuples(INOS, st.binary(min_size=1, max_size=255))), st.lists(INOS))
def test_a_note_is_read_back(names: list[tuple[int, bytes]], inodes: list[int]) -> None:
    outdated = Outdated(tuple(names), tuple(inodes))
    assert Outdated.from_json(json.loads(json.dumps(outdated.to_json()))) == outdated


@pytest.mark.parametrize(
    "value",
    [1, "x", [], {}, {"names": [], "inodes": 1}, {"names": [[1]], "inodes": []},
     {"names": [[1, 2]], "inodes": []}, {"names": [[1, "€"]], "inodes": []},
     {"names": [], "inodes": ["x"]}, {"names": [], "inodes": [float("inf")]}],
)  # fmt: skip
def test_a_damaged_note_is_an_error(value: Any) -> None:
    with pytest.raises(FormatError):
        Outdated.from_json(value)
