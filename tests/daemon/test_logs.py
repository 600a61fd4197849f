"""The daemon's log lines."""

from __future__ import annotations

import io
import json
import logging

import pytest

from s3ws_fs.daemon import logs
from s3ws_fs.daemon.logs import REPEAT_WINDOW_S, REPEATS_MAX, RepeatFilter


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _logged(form: str) -> str:
    stream = io.StringIO()
    logs.set_up("info", form, stream)
    logger = logging.getLogger("s3ws_fs.somewhere")
    logger.debug("not shown")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed on %s", "a\nb")
    return stream.getvalue()


def test_a_record_is_one_line_of_text() -> None:
    line = _logged("text")
    assert line.count("\n") == 1
    assert " error somewhere: failed on a\\nb\\nTraceback" in line
    assert "ValueError: two\\nlines" in line
    assert line[10] == "T"
    assert line.split(" ")[0].endswith("Z")


def test_a_record_is_one_line_of_json() -> None:
    lines = _logged("json").splitlines()
    assert len(lines) == 1
    entry = json.loads(lines[0])
    assert entry["level"] == "error"
    assert entry["logger"] == "somewhere"
    assert entry["message"] == "failed on a\nb"
    assert "ValueError: two\nlines" in entry["error"]


def test_one_place_that_says_too_much_is_cut_and_counted() -> None:
    now = 0.0
    keep = RepeatFilter(lambda: now)

    def record(line: int = 1) -> logging.LogRecord:
        return logging.LogRecord("x", logging.INFO, "file.py", line, "text", (), None)

    assert sum(keep.filter(record()) for _ in range(REPEATS_MAX + 30)) == REPEATS_MAX
    assert keep.filter(record(line=2)), "another place is not affected"
    now = REPEAT_WINDOW_S
    later = record()
    assert keep.filter(later)
    assert later.getMessage() == "text [30 like this were left out]"
    assert keep.filter(record())
