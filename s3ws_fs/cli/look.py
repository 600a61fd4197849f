"""`s3ws diff`, `log` and `cat`: what changed, when, and a file as it was.

They read the bucket, with or without a mount; `head` of a mounted workspace is sealed first.

Invariants
1. Nothing is changed but by that seal.
2. Bytes are written as they are to a file or a pipe; to a terminal nothing goes that it would
   interpret.
3. Only bytes whose digest was verified come out. When a file can't be read to its end, what came
   before is out already, and the exit code is 6.

Called by cli only.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import click

from s3ws_fs.cli import changes, report
from s3ws_fs.cli.workspace import chosen, inside, workspace_flags
from s3ws_fs.core import history
from s3ws_fs.core.changes import Kept, counts, kind_of, to_json, told_json
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.patch import Patch
from s3ws_fs.core.treediff import Change, by_files, select
from s3ws_fs.core.treeview import NoPathError, TreeView
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import looking, points
from s3ws_fs.transfer.looking import Difference
from s3ws_fs.transfer.points import Point, Points
from s3ws_fs.workspaces.reading import Workspace, sealed_first

LINES_MAX: Final = 10_000
"""Changes that `diff` prints; `--json` has all."""
STAT_DEPTH: Final = 2
LOG_LIMIT: Final = 20
LOG_LIMIT_MAX: Final = 10_000
LOG_SHOWN: Final = 20
"""Changes printed of one seal."""
LOG_JSON_MAX: Final = 10_000
"""Changes of one seal in JSON."""


def _resolve(
    workspace: Workspace, store: ScopedStore, refs: Iterable[str], as_json: bool
) -> tuple[Points, list[Point]]:
    """The points that are meant, after a seal where it matters."""
    wanted = list(refs)
    with report.progress("seal", as_json=as_json) as on_event:
        sealed_first(workspace, wanted, on_event)
    survey = points.survey_points(store)
    return survey, [points.resolve(store, ref, time.time_ns(), survey) for ref in wanted]


def _point_json(ref: str, point: Point) -> dict[str, Any]:
    return {
        "ref": ref,
        "number": point.number,
        "generation": point.generation,
        "created_at_s": round(point.created_ns / 1e9, 3),
    }


# --- diff


@click.command(short_help="Show what changed between two points in history.")
@click.argument("given", nargs=-1, metavar="A [B [PATH...]]")
@click.option("--turn", help="What the turn of that name changed: from its begin to its end.")
@click.option("--patch", "-p", "as_patch", is_flag=True, help="Unified diffs of the contents.")
@click.option("--stat", "as_stat", is_flag=True, help="Totals for each directory only.")
@click.option("--path", "paths", multiple=True, help="Only what is at or below it (repeatable).")
@click.option(
    "--all", "with_noise", is_flag=True, help="What is in .git, and times of directories, too."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@workspace_flags
def diff(
    given: tuple[str, ...],
    turn: str | None,
    as_patch: bool,
    as_stat: bool,
    paths: tuple[str, ...],
    with_noise: bool,
    as_json: bool,
    mountpoint: str | None,
    **overrides: Any,
) -> None:
    """What changed from point A to point B (head, when it is not given), at and below the PATHs.

    With --turn all arguments are paths.

    A point is a snapshot's name, #N (a segment), gen:N, a time (2026-11-29T21:40Z, or 15m: so long
    ago), turn:NAME[:begin], head or undo. Of a mounted workspace head is what is there now.

    A added, D deleted, M modified, R renamed. A renamed directory is one change. Each path is shown
    with what differs: content (sizes), mode, owner, times, xattrs. What git keeps for itself, in
    .git, is one line (and no part of a patch) unless --all, or a PATH in there, asks for it; --json
    has all of it.
    """
    if as_patch + as_stat + as_json > 1:
        raise _usage("--patch, --stat and --json exclude each other.", "Choose one.")
    wanted, more = _two_refs(given, turn)
    workspace = chosen(mountpoint, overrides)
    below = [inside(path, workspace.info) for path in (*more, *paths)]
    with workspace.store() as store, _pool(workspace) as pool:
        survey, (old, new) = _resolve(workspace, store, wanted, as_json)
        found = looking.difference(store, survey, old.number, new.number, pool)
        for given_path, path in zip((*more, *paths), below, strict=True):
            _require_path(given_path, path, (found.before, found.after))
        shown = [
            change for change in select(found.changes, below) if with_noise or not change.is_noise
        ]
        if as_json:
            sides = {
                "from": _point_json(wanted[0], old),
                "to": _point_json(wanted[1], new),
                "counts": counts(shown),
                "changes": [to_json(change) for change in shown],
            }
            report.echo_json(sides)
        elif as_stat:
            for line in changes.stat_lines(shown, STAT_DEPTH):
                report.echo(line)
        else:
            is_asked = with_noise or any(changes.GIT_DIR in path.split(b"/") for path in below)
            outside, lines = (shown, []) if is_asked else changes.folded(shown)
            if as_patch:
                _write_patches(store, found, outside, pool)
                for line in lines:
                    report.note(f"s3ws: not in the patch: {line}")
            else:
                _print(outside, lines, changes.summary(counts(shown)))


def _require_path(given: str, path: bytes, views: Iterable[TreeView]) -> None:
    """A path that stands in none of the trees is a slip. Raises UserError (exit 2)."""
    for view in views:
        try:
            view.find(path, follow=False)
        except NoPathError:
            continue
        return
    raise _usage(
        f"{given!a} is a path in neither of the two points.",
        "Name paths inside the workspace; for a workspace that is mounted there write -m.",
    )


def _two_refs(given: tuple[str, ...], turn: str | None) -> tuple[tuple[str, str], tuple[str, ...]]:
    """Two references, and paths."""
    if turn is not None:
        history.check_name(turn, what="turn")
        return (f"turn:{turn}:begin", f"turn:{turn}:end"), given
    if not given:
        raise _usage("diff takes a point, or two.", "Write `s3ws diff A B`, or --turn NAME.")
    old, new, *more = given if len(given) > 1 else (*given, history.HEAD)
    return (old, new), tuple(more)


def _print(shown: list[Change], folded: list[str], summary: str) -> None:
    for change in shown[:LINES_MAX]:
        report.echo(changes.line(change))
    if len(shown) > LINES_MAX:
        report.echo(f"and {len(shown) - LINES_MAX} more (--json has all)")
    for line in (*folded, summary):
        report.echo(line)


def _write_patches(
    store: ScopedStore, found: Difference, shown: list[Change], pool: ThreadPoolExecutor
) -> None:
    def read(change: Change, is_after: bool) -> bytes:
        view, rec = (found.after, change.after) if is_after else (found.before, change.before)
        path = change.path if is_after else change.old_path or change.path
        assert rec is not None
        return looking.read_whole(store, view, rec, path, pool)

    patch = Patch(read)
    for change in by_files(shown, found.before, found.after):
        _write(patch.of(change))


# --- log


@click.command(short_help="Show what changed when, seal by seal.")
@click.argument("paths", nargs=-1, metavar="[PATH...]")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, LOG_LIMIT_MAX),
    default=LOG_LIMIT,
    show_default=True,
    help="Seals that are shown, the newest first.",
)
@click.option("--since", help="Only what was sealed after that point.")
@click.option("--until", default=history.HEAD, help="Only what was sealed up to that point.")
@click.option("--all", "with_noise", is_flag=True, help="Times of directories, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a seal and line.")
@workspace_flags
def log(
    paths: tuple[str, ...],
    limit: int,
    since: str | None,
    until: str,
    with_noise: bool,
    as_json: bool,
    mountpoint: str | None,
    **overrides: Any,
) -> None:
    """What changed when, by generation: the newest seal first. With PATHs only what is there or
    below.

    Changes of the time between two seals (2 s, longer in a burst) are told together.
    """
    workspace = chosen(mountpoint, overrides)
    below = [inside(path, workspace.info) for path in paths]
    with workspace.store() as store, _pool(workspace) as pool:
        refs = [until] if since is None else [until, since]
        survey, (last, *after) = _resolve(workspace, store, refs, as_json)
        first = max(
            looking.oldest_step(survey, last.number),
            after[0].number + 1 if after else 1,
            last.number + 1 - (looking.LOG_SEGMENTS_MAX if below else limit),
        )
        kept = Kept(limit, LOG_JSON_MAX if as_json else LOG_SHOWN)
        for step in looking.steps(store, survey, first, last.number, pool):
            shown = [c for c in select(step.changes, below) if with_noise or not c.is_noise]
            if not as_json and not with_noise:
                # Few are named: what somebody did comes before what git keeps for itself.
                shown.sort(key=lambda change: changes.git_dir_of(change.path) is not None)
            if shown or not below:
                kept.add(step.header, step.modified_ns, shown)
    for told in reversed(kept.told):
        if as_json:
            click.echo(json.dumps(told_json(told)))
            continue
        for line in changes.told_lines(told):
            report.echo(line)
    if not kept.told and not as_json:
        report.note("s3ws: nothing was changed there, as far as history is kept")


# --- cat


@click.command(short_help="Print a file as it was at a point in history.")
@click.argument("ref", metavar="REF[:PATH]")
@click.argument("path", required=False)
@workspace_flags
def cat(ref: str, path: str | None, mountpoint: str | None, **overrides: Any) -> None:
    """Write the bytes of a file, as of point REF, to standard output.

    PATH is below the root of the workspace. Symlinks are followed inside the workspace only. Where
    a colon could be meant both ways (turn:x:end is a point), give PATH as an argument of its own.
    """
    if path is None:
        ref, path = split_ref(ref)
    workspace = chosen(mountpoint, overrides)
    info = workspace.info
    is_absolute = info is not None and path.startswith("/")
    wanted = inside(path, info) if is_absolute else os.fsencode(path)
    with workspace.store() as store, _pool(workspace) as pool:
        survey, (point,) = _resolve(workspace, store, [ref], False)
        view = TreeView(points.load(store, point.number, survey, pool))
        try:
            rec = view.find(wanted)
        except NoPathError as exc:
            raise UserError(
                f"{path!a} can't be read as of {ref!a}: {exc.why}.",
                remedy="`s3ws diff` and `s3ws log` show what was there.",
                exit_code=ExitCode.USAGE,
            ) from exc
        if not stat.S_ISREG(rec.mode):
            raise _usage(f"{path!a} is a {kind_of(rec)}.", "Only files have bytes.")
        real = view.path(*view.links(rec)[0])
        _write(looking.read_file(store, view, rec, real, pool))


def split_ref(text: str) -> tuple[str, str]:
    """REF:PATH as its two parts: the longest beginning that is a reference, and what follows."""
    at = len(text)
    while (at := text.rfind(":", 0, at)) > 0:
        try:
            history.parse_ref(text[:at], 0)
        except UserError:
            continue
        if text[at + 1 :]:
            return text[:at], text[at + 1 :]
    raise _usage(f"{text!a} names no file in history.", "Write REF:PATH, as in head:src/main.py.")


# --- all of them


def _pool(workspace: Workspace) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workspace.config.store.max_parallel, "look")


def _usage(message: str, remedy: str) -> UserError:
    return UserError(message, remedy=remedy, exit_code=ExitCode.USAGE)


def _write(parts: Iterable[bytes]) -> None:
    """Bytes to standard output (invariant 2)."""
    if sys.stdout.isatty():
        for text in _shown(parts):
            click.echo(text, nl=False)
        return
    sys.stdout.flush()
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


def _shown(parts: Iterable[bytes]) -> Iterator[str]:
    for part in parts:
        text = os.fsdecode(part)
        yield "".join(char if char in "\n\t" else report.safe(char) for char in text)
