"""The mark of a deletion."""

from __future__ import annotations

import json

import pytest

from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import json_digest
from s3ws_fs.core.tombstone import Tombstone, decode_tombstone

MARK = Tombstone("w" * 32, "host", 7)


def test_round_trip() -> None:
    assert decode_tombstone(MARK.encode()) == MARK


def test_anything_else_is_a_format_error() -> None:
    good = json.loads(MARK.encode())
    bad: list[object] = [
        b"",
        b"[]",
        b"\xff",
        good | {"host": "other"},
        *(
            found | {"digest": json_digest(found)}
            for found in (
                good | {"format": 2},
                good | {"created_ns": "7"},
                good | {"workspace": None},
                {name: value for name, value in good.items() if name != "host"},
            )
        ),
    ]
    for raw in bad:
        body = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
        with pytest.raises(FormatError):
            decode_tombstone(body)
