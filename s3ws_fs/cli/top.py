"""`s3ws top`: the mounts of this host at work, as a table that lives.

Invariants
1. On a terminal the table is drawn again every --interval; elsewhere one frame is printed, and with
   --json one object a line, until --count or ctrl-C.
2. Names and errors come from outside: they are made safe, and are no markup.
3. rich is imported for a terminal only.

Called by cli only.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from s3ws_fs.cli import report
from s3ws_fs.cli.tables import text_table
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.workspaces import rates
from s3ws_fs.workspaces.rates import Look, Row

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL_S_MIN: Final = 0.2
INTERVAL_S_MAX: Final = 3600.0
HEAD: Final = (
    "mount point", "state", "ops/s", "chg/s", "dirty", "oldest", "up/s", "down/s", "req/s", "err",
    "restarts", "used",
)  # fmt: skip
_RIGHT: Final = range(2, len(HEAD))


@click.command(short_help="Watch the mounts of this host at work.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(INTERVAL_S_MIN, INTERVAL_S_MAX),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many frames.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a frame, a line each.")
def top(interval_s: float, count: int | None, as_json: bool) -> int:
    """Show what each mount of this host does: requests of programs and changes a second, what is
    dirty and since when, bytes to and from the bucket, requests to it, errors, restarts, quota.

    On a terminal the table lives until ctrl-C. Elsewhere one frame is printed (of two looks, so
    that there are rates); --json goes on, an object a line.
    """
    frames = _frames(interval_s)
    if as_json:
        for found, at in itertools.islice(frames, count):
            report.echo(json.dumps(_document(found, at)))
            sys.stdout.flush()
    elif sys.stdout.isatty():
        _live(itertools.islice(frames, count))
    else:
        for found, at in itertools.islice(frames, count or 1):
            for line in lines(found, at):
                report.echo(line)
    return ExitCode.OK


def _frames(interval_s: float) -> Iterator[tuple[list[Row], Look]]:
    """Rows of one look against the one before, for ever."""
    before = rates.look()
    while True:
        time.sleep(interval_s)
        now = rates.look()
        yield rates.rows(before, now), now
        before = now


def _document(found: list[Row], at: Look) -> dict[str, object]:
    return {
        "when_s": round(time.time(), 3),
        "mounts": [row.to_json() for row in found],
        "damaged_entries": at.damaged,
    }


def cells(row: Row) -> tuple[str, ...]:
    """One mount as text, column by column; not yet made safe."""
    state = row.state if row.health in ("ok", "-") else f"{row.state}, {row.health}"
    trouble = None if row.errors is None else row.errors + (row.store_errors or 0)
    files = "-" if row.dirty_files is None else f"{row.dirty_files:,}"
    size = "" if not row.dirty_bytes else f" ({report.human_bytes(row.dirty_bytes)})"
    return (
        row.mountpoint,
        state,
        _rate(row.ops),
        _rate(row.changes),
        f"{files}{size}",
        report.human_seconds(row.oldest_dirty_s),
        _flow(row.upload_bytes),
        _flow(row.download_bytes),
        _rate(row.requests),
        "-" if trouble is None else f"{trouble:,}",
        "-" if row.restarts is None else str(row.restarts),
        "-" if row.used is None else f"{100 * row.used:.0f} %",
    )


def summary(found: list[Row]) -> str:
    """One line over all of them."""
    sums = rates.total(found)
    text = (
        f"{sums.mounts} mounts, {sums.troubled} not well; {_rate(sums.ops)} ops/s, "
        f"{_flow(sums.upload_bytes)}/s up, {report.human_bytes(sums.dirty_bytes)} dirty"
    )
    if sums.oldest_dirty_s is not None:
        text += f", oldest {report.human_seconds(sums.oldest_dirty_s)}"
    return text


def lines(found: list[Row], at: Look) -> Iterator[str]:
    """A frame as plain text."""
    if not found:
        yield "nothing is mounted"
        return
    yield from text_table(HEAD, [cells(row) for row in found], right=_RIGHT)
    yield summary(found)
    for row in found:
        if row.error:
            yield report.safe(f"{row.mountpoint}: {row.error}")
    for path in at.damaged:
        yield report.safe(f"the entry {path!a} is damaged")


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _flow(value: float | None) -> str:
    return "-" if value is None else report.human_bytes(int(value))


# --- on a terminal


def _live(frames: Iterator[tuple[list[Row], Look]]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(Text("looking …"), console=console, screen=True, auto_refresh=False) as live:
        for found, at in frames:
            live.update(frame(found, at, console.height), refresh=True)


def frame(found: list[Row], at: Look, height: int) -> RenderableType:
    """A frame for rich, no higher than the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(HEAD):
        table.add_column(name, justify="right" if number in _RIGHT else "left", no_wrap=True)
    fits = max(1, height - 4)
    for row in found[:fits]:
        style = "" if row.health == "ok" and row.state == "ready" else "bold red"
        # Text, not str: brackets in a name are no markup.
        table.add_row(*(Text(report.safe(cell), style=style) for cell in cells(row)))
    below = [Text(summary(found))]
    if len(found) > fits:
        below.append(Text(f"and {len(found) - fits} more, less busy"))
    below += [
        Text(report.safe(f"{row.mountpoint}: {row.error}"), style="red")
        for row in found
        if row.error
    ][:2]
    return Group(Text(time.strftime("%H:%M:%S")), table, *below)
