"""The daemon's log: one line a record, as text or as JSON, to the standard error output.

Invariants
1. A record is one line of printable text: line ends in messages and tracebacks are escaped, and so
   is all that a terminal might obey (names of files are anybody's choice). JSON is ASCII.
2. The same place in the code writes at most `REPEATS_MAX` records in `REPEAT_WINDOW_S`; how many
   were left out is said with the next one. So a failing store can't fill a disk.
3. Secrets never get here: what is logged are our own messages, and the texts of our own errors.

Called by the daemon's entry.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

REPEATS_MAX: Final = 20
REPEAT_WINDOW_S: Final = 60.0


class RepeatFilter(logging.Filter):
    """Drops what one place says too often (invariant 2). Places are file and line: few."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._places: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        now = self._monotonic()
        since, count = self._places.get(place, (now, 0))
        if now - since >= REPEAT_WINDOW_S:
            if count > REPEATS_MAX:
                record.msg = f"{record.msg} [{count - REPEATS_MAX} like this were left out]"
            since, count = now, 0
        self._places[place] = (since, count + 1)
        return count < REPEATS_MAX


def _stamp(record: logging.LogRecord) -> str:
    """Time in UTC, to the millisecond."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z warning replica: message`"""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        text = "".join(char if char.isprintable() else _escaped(char) for char in text)
        name = record.name.removeprefix("s3ws_fs.")
        return f"{_stamp(record)} {record.levelname.lower()} {name}: {text}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and error with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("s3ws_fs."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send all records of at least `level` to `stream` (default: stderr) in `form` "text" or
    "json".
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # pyfuse3 asks for debug records on every request; the answer costs more than the question.
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)
