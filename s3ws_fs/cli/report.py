"""What the command says: safe text, errors, and progress on a terminal or as plain lines.

Invariants
1. What comes from outside goes through `safe` (core/plaintext.py).
2. rich is imported only when progress is shown on a terminal.
3. With `--json` progress is one JSON object a line on standard error.

Called by cli only.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import click

from s3ws_fs.control.wire import ReplyError
from s3ws_fs.core.errors import UserError
from s3ws_fs.core.plaintext import json_name as json_name
from s3ws_fs.core.plaintext import safe as safe
from s3ws_fs.core.plaintext import safe_name as safe_name

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from s3ws_fs.launch import EventSink

NUMBER_MAX: Final = 1 << 70
UNSAVED_SHOWN_MAX: Final = 50
"""Unsaved paths printed; `--json` gives all that the daemon named."""


def echo(text: str = "") -> None:
    """A line of plain text on standard output, already safe."""
    click.echo(text)


def echo_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))


def note(text: str) -> None:
    """A line for a person on standard error."""
    click.echo(safe(text), err=True)


def report_user_error(exc: UserError, *, prefix: str = "s3ws") -> None:
    """What happened, what to do, and which paths are not saved."""
    first, *more = exc.message.splitlines() or ["failed without saying why"]
    click.echo(f"{prefix}: {safe(first)}", err=True)
    for line in more:
        click.echo(safe(line), err=True)
    _report_unsaved(exc)
    if exc.remedy:
        click.echo(f"  {safe(exc.remedy)}", err=True)
    if os.environ.get("S3WS_DEBUG") == "1":
        traceback.print_exception(exc)


def _report_unsaved(exc: UserError) -> None:
    unsaved = exc.details.get("unsaved") if isinstance(exc, ReplyError) else None
    if not isinstance(unsaved, list) or not unsaved:
        return
    click.echo("  Not saved:", err=True)
    for path in unsaved[:UNSAVED_SHOWN_MAX]:
        click.echo(f"    {safe(str(path))}", err=True)
    if len(unsaved) > UNSAVED_SHOWN_MAX:
        click.echo(f"    and {len(unsaved) - UNSAVED_SHOWN_MAX} more", err=True)


def report_unexpected(exc: Exception) -> None:
    """A fault of ours: a short message, the traceback in a private file."""
    if os.environ.get("S3WS_DEBUG") == "1":
        traceback.print_exception(exc)
        return
    where = ""
    try:
        fd, path = tempfile.mkstemp(prefix="s3ws-error-", suffix=".log")
        with os.fdopen(fd, "w", errors="backslashreplace") as out:
            traceback.print_exception(exc, file=out)
        where = f" Details are in {path}."
    except OSError as second:
        where = f" Details could not be written: {second.strerror}."
    click.echo(f"s3ws: internal error: {type(exc).__name__}.{safe(where)}", err=True)
    click.echo("  Please report it with that file. S3WS_DEBUG=1 shows the details here.", err=True)


@contextmanager
def progress(title: str, *, as_json: bool) -> Iterator[EventSink]:
    """A sink for progress events: a bar on a terminal, otherwise a line a change of phase."""
    if as_json:
        yield lambda event: click.echo(json.dumps(event), err=True)
        return
    if not sys.stderr.isatty():
        yield _or_warning(_PlainProgress(title))
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        yield _or_warning(_BarProgress(bars, title))


def _or_warning(sink: EventSink) -> EventSink:
    """A sink that also shows what has to be said in words, and stays."""

    def show(event: dict[str, Any]) -> None:
        if event.get("event") == "warning":
            note(f"s3ws: warning: {event.get('message')}")
        else:
            sink(event)

    return show


def _numbers(event: dict[str, Any]) -> tuple[str, int | None, int | None]:
    def number(name: str) -> int | None:
        value = event.get(name)
        return int(value) if is_finite(value) else None

    return str(event.get("phase", event.get("event", ""))), number("done"), number("total")


class _PlainProgress:
    """Lines for logs: each new phase, and every further tenth of it."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last: tuple[str, int] | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        phase, done, total = _numbers(event)
        tenth = 10 * (done or 0) // total if total else 0
        if (phase, tenth) == self._last:
            return
        self._last = (phase, tenth)
        amount = f" {done or 0}/{total}" if total else ""
        click.echo(f"{safe(self._title)}: {safe(phase)}{amount}", err=True)


class _BarProgress:
    """The bar of the phase that goes on."""

    def __init__(self, bars: Progress, title: str) -> None:
        self._bars = bars
        self._title = title
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        from rich.markup import escape

        phase, done, total = _numbers(event)
        if phase not in self._tasks:
            for finished in self._tasks.values():
                self._bars.update(finished, visible=False)
            label = escape(f"{safe(self._title)}: {safe(phase)}")
            self._tasks[phase] = self._bars.add_task(label, total=None)
        self._bars.update(self._tasks[phase], completed=done or 0, total=total, visible=True)


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether it is a number that can be counted with (JSON holds integers of any size)."""
    return isinstance(value, int | float) and abs(value) < NUMBER_MAX


def human_bytes(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def human_seconds(seconds: object) -> str:
    """A duration for a person; "-" for what is none."""
    if not is_finite(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
