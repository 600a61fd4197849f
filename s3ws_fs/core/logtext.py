"""An event of the log as one line: text for a person, or JSON for a collector.

    2026-01-31T12:00:00.123Z warning replica: message
    {"time": "2026-01-31T12:00:00.123Z", "level": "warning", "logger": "replica", "message": "…"}

Invariants
1. A line is printable text, whatever is in it: line ends in messages and tracebacks are escaped,
   and so is all that a terminal might obey (names of files are anybody's choice). JSON is ASCII.
2. Pure: the time is passed in.

Called by daemon.logs, and by the transfer worker and the snapshot child for a fault of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

PACKAGE: Final = "s3ws_fs."
LEFT_OUT: Final = "left_out"
"""Member of a JSON line: how many events like it were not written."""


def line(
    form: str,
    *,
    time_s: float,
    level: str,
    logger: str,
    message: str,
    error: str | None = None,
    left_out: int = 0,
    about: Mapping[str, Any] | None = None,
) -> str:
    """One event in `form` "text" or "json", without the line end. `error`: a traceback; `about`:
    further members of a JSON line.
    """
    when = datetime.fromtimestamp(time_s, UTC)
    stamp = f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"
    logger = logger.removeprefix(PACKAGE)
    if form == "json":
        entry = {"time": stamp, "level": level, "logger": logger, "message": message}
        optional = {"error": error, LEFT_OUT: left_out or None, **(about or {})}
        more = {name: value for name, value in optional.items() if value is not None}
        return json.dumps(entry | more)
    text = message if error is None else f"{message}\n{error}"
    if left_out:
        text += f" [{left_out} like this were left out]"
    return f"{stamp} {level} {logger}: {''.join(map(_printable, text))}"


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
