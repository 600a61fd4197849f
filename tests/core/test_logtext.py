"""An event of the log as a line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import logtext

WHEN_S = 1_769_860_800.1239
TEXTS = st.text(st.characters(), max_size=50) | st.just("a\udcff\x1b[31m\u202e\n")


def test_a_line_of_text() -> None:
    line = logtext.line(
        "text", time_s=WHEN_S, level="info", logger="s3ws_fs.fuse.x", message="said"
    )
    assert line == "2026-01-31T12:00:00.123Z info fuse.x: said"


@pytest.mark.parametrize("form", ["text", "json"])
@given(message=TEXTS, error=TEXTS | st.none(), left_out=st.integers(0, 9))
def test_a_line_is_one_line_whatever_is_in_it(
    form: str, message: str, error: str | None, left_out: int
) -> None:
    line = logtext.line(
        form,
        time_s=WHEN_S,
        level="error",
        logger="x",
        message=message,
        error=error,
        left_out=left_out,
        about={"mountpoint": message},
    )
    assert line.isprintable()
    if form == "json":
        entry = json.loads(line)
        assert (entry["message"], entry["mountpoint"]) == (message, message)
        assert entry.get("error") == error
        assert entry.get("left_out", 0) == left_out
