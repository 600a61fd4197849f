"""The daemon's log: one line an event, as text or as JSON, to the standard error output.

Invariants
1. A record is one line of printable text (core.logtext).
2. The same place in the code writes at most `REPEATS_MAX` records in `REPEAT_WINDOW_S`. Of the rest
   the last one is written, with the number of those left out: with the next one of that place, or
   by `summarise` when the time is over. So a failing store can't fill a disk, and no storm goes
   unsaid.
3. Secrets never get here: what is logged are our own messages, and the texts of our own errors.

Called by the daemon's entry (`set_up`, and `summarise` at the end), and the daemon (the rest).
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TextIO

from s3ws_fs.core import logtext

REPEATS_MAX: Final = 20
REPEAT_WINDOW_S: Final = 60.0


@dataclass(slots=True)
class _Place:
    """What one place said in its window: how often, and the last that was not written."""

    since_s: float
    said: int = 0
    last: logging.LogRecord | None = None

    def left_out(self) -> logging.LogRecord | None:
        """The last of those not written, which says how many others there were."""
        if self.last is None:
            return None
        record, self.last = self.last, None
        setattr(record, logtext.LEFT_OUT, self.said - REPEATS_MAX - 1)
        return record


class RepeatFilter(logging.Filter):
    """Drops what one place says too often (invariant 2). Places are file and line: few."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._places: dict[tuple[str, int], _Place] = {}
        self.levels: Counter[str] = Counter()
        """All records by level, the dropped ones too."""

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, logtext.LEFT_OUT):
            return True
        self.levels[record.levelname.lower()] += 1
        key = (record.pathname, record.lineno)
        now_s = self._monotonic()
        place = self._places.get(key)
        if place is None or now_s - place.since_s >= REPEAT_WINDOW_S:
            if place is not None and place.last is not None:
                setattr(record, logtext.LEFT_OUT, place.said - REPEATS_MAX)
            place = self._places[key] = _Place(now_s)
        place.said += 1
        if place.said <= REPEATS_MAX:
            return True
        place.last = record
        return False

    def over(self, *, at_end: bool = False) -> Iterator[logging.LogRecord]:
        """Of each place whose time is over (at the end: of all) the last record not written."""
        now_s = self._monotonic()
        for key, place in list(self._places.items()):
            if at_end or now_s - place.since_s >= REPEAT_WINDOW_S:
                del self._places[key]
                record = place.left_out()
                if record is not None:
                    yield record


class LineFormatter(logging.Formatter):
    """A line of `form` "text" or "json"; `about` is in every JSON line."""

    def __init__(self, form: str, about: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._form = form
        self._about = about

    def format(self, record: logging.LogRecord) -> str:
        return logtext.line(
            self._form,
            time_s=record.created,
            level=record.levelname.lower(),
            logger=record.name,
            message=record.getMessage(),
            error=self.formatException(record.exc_info) if record.exc_info else None,
            left_out=getattr(record, logtext.LEFT_OUT, 0),
            about=self._about,
        )


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes records to a stream, without repeating itself."""

    def __init__(self, stream: TextIO, form: str, about: Mapping[str, Any] | None) -> None:
        super().__init__(stream)
        self.repeats = RepeatFilter()
        self.setFormatter(LineFormatter(form, about))
        self.addFilter(self.repeats)

    def summarise(self, *, at_end: bool) -> None:
        """Write what `RepeatFilter.over` brings."""
        for record in self.repeats.over(at_end=at_end):
            self.handle(record)


def set_up(
    level: str,
    form: str,
    stream: TextIO | None = None,
    *,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Send all records of at least `level` to `stream` (default: stderr) in `form` "text" or
    "json"; `about` stands in every line of JSON: logs of many mounts may be collected in one place.
    """
    root = logging.getLogger()
    root.handlers[:] = [LogHandler(stream or sys.stderr, form, about)]
    root.setLevel(level.upper())
    # pyfuse3 asks for debug records on every request; the answer costs more than the question.
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)


def _ours() -> Iterator[LogHandler]:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            yield handler


def summarise(*, at_end: bool = False) -> None:
    """Say what was left out of storms that are over; at the end of all of them."""
    for handler in _ours():
        handler.summarise(at_end=at_end)


def levels() -> dict[str, int]:
    """How many records there were by level, those left out as well."""
    total: Counter[str] = Counter()
    for handler in _ours():
        total.update(handler.repeats.levels)
    return dict(sorted(total.items()))
