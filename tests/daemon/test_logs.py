"""The daemon's log lines: how they look, and what becomes of a storm."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from s3ws_fs.daemon import logs
from s3ws_fs.daemon.logs import REPEAT_WINDOW_S, REPEATS_MAX, LogHandler, RepeatFilter


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Clock:
    """Time as a test sets it."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _logged(form: str) -> str:
    stream = io.StringIO()
    logs.set_up("info", form, stream, about={"workspace": "conversations/u/c/workspace/"})
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


def test_a_record_is_one_line_of_json_that_says_whose_it_is() -> None:
    lines = _logged("json").splitlines()
    assert len(lines) == 1
    entry = json.loads(lines[0])
    assert entry["level"] == "error"
    assert entry["logger"] == "somewhere"
    assert entry["message"] == "failed on a\nb"
    assert entry["workspace"] == "conversations/u/c/workspace/"
    assert "ValueError: two\nlines" in entry["error"]
    assert "left_out" not in entry


def _record(line: int = 1, text: str = "text") -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "file.py", line, text, (), None)


def _handler(form: str) -> tuple[LogHandler, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    handler = LogHandler(stream, form, None)
    handler.removeFilter(handler.repeats)
    handler.repeats = RepeatFilter(clock)
    handler.addFilter(handler.repeats)
    return handler, stream, clock


def test_one_place_that_says_too_much_is_cut_and_counted_with_the_next() -> None:
    handler, stream, clock = _handler("text")
    for _ in range(REPEATS_MAX + 30):
        handler.handle(_record())
    assert stream.getvalue().count("\n") == REPEATS_MAX
    handler.handle(_record(line=2))
    assert stream.getvalue().count("\n") == REPEATS_MAX + 1, "another place is not affected"
    clock.now_s = REPEAT_WINDOW_S
    handler.handle(_record())
    assert stream.getvalue().endswith("text [30 like this were left out]\n")
    handler.handle(_record())
    assert stream.getvalue().endswith("x: text\n")


def test_the_end_of_a_storm_is_said_though_nothing_like_it_comes() -> None:
    handler, stream, clock = _handler("json")
    for number in range(REPEATS_MAX + 30):
        handler.handle(_record(text=f"failure {number}"))
    handler.summarise(at_end=False)
    assert stream.getvalue().count("\n") == REPEATS_MAX, "the storm may go on"
    clock.now_s = REPEAT_WINDOW_S
    handler.summarise(at_end=False)
    handler.summarise(at_end=False)
    lines = stream.getvalue().splitlines()
    assert len(lines) == REPEATS_MAX + 1
    said = json.loads(lines[-1])
    assert (said["message"], said["left_out"]) == (f"failure {REPEATS_MAX + 29}", 29)
    assert handler.repeats.levels == {"info": REPEATS_MAX + 30}


def test_at_the_end_nothing_stays_unsaid() -> None:
    stream = io.StringIO()
    logs.set_up("info", "text", stream)
    logger = logging.getLogger("s3ws_fs.somewhere")
    for number in range(REPEATS_MAX + 2):
        logger.warning("number %d", number)
    logs.summarise(at_end=True)
    assert stream.getvalue().endswith(f"number {REPEATS_MAX + 1} [1 like this were left out]\n")
    assert logs.levels() == {"warning": REPEATS_MAX + 2}


def test_a_storm_with_one_too_many_is_written_whole() -> None:
    handler, stream, _ = _handler("text")
    for _ in range(REPEATS_MAX + 1):
        handler.handle(_record())
    handler.summarise(at_end=True)
    assert stream.getvalue().count("\n") == REPEATS_MAX + 1
    assert "left out" not in stream.getvalue()
