"""`s3ws list` and `s3ws du`: what stands in the bucket, per user and per workspace.

Invariants
1. Nothing is written. Names come from delimiter listings; a workspace is counted by one listing (a
   request a thousand objects), `WORKSPACE_MAX_PARALLEL` of them at once.
2. Memory does not grow with objects; workspaces are bounded by --limit, and a rest is told.
3. A workspace that can't be read is a row with the reason, not the end of the list.

Called by cli only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from s3ws_fs.cli import report
from s3ws_fs.cli.mounting import setting_flags
from s3ws_fs.cli.tables import text_table
from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, StoreError
from s3ws_fs.launch import EventSink
from s3ws_fs.settings import OPTIONS
from s3ws_fs.workspaces.mounts import runtime_dir, status_documents

if TYPE_CHECKING:
    from s3ws_fs.core.config import MountConfig
    from s3ws_fs.store.fleet import Fleet
    from s3ws_fs.transfer.tally import Tally

WORKSPACES_MAX: Final = 10_000
"""Workspaces that are counted unless --limit says otherwise."""
LIMIT_MAX: Final = 1_000_000
NOBODY: Final = "nobody"
"""Ids of a configuration that means no workspace."""
STORE_SETTINGS: Final = (
    "storage_type",
    "storage_path",
    "bucket",
    "prefix",
    "endpoint_url",
    "region",
    "verify_tls",
    "ca_bundle",
    "addressing_style",
    "max_parallel",
)
_PROGRESS_STEP: Final = 10

_F = TypeVar("_F", bound=Callable[..., Any])


def store_flags(function: _F) -> _F:
    """A flag for each setting that says where the bucket is."""
    return setting_flags(skip=[name for name in OPTIONS if name not in STORE_SETTINGS])(function)


def _fleet_flags(function: _F) -> _F:
    function = store_flags(function)
    function = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")(function)
    return click.option(
        "--limit",
        type=click.IntRange(1, LIMIT_MAX),
        default=WORKSPACES_MAX,
        show_default=True,
        help="Look at so many workspaces at most.",
    )(function)


@dataclass(slots=True)
class Row:
    """One workspace. `tally` is None when only names were asked for, or it can't be read."""

    user_id: str
    conversation_id: str
    tally: Tally | None = None
    live: dict[str, int] | None = None
    error: str = ""
    mount: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        document: dict[str, Any] = {
            "user_id": self.user_id,
            "conversation_id": self.conversation_id,
            **(self.tally.to_json() if self.tally is not None else {}),
            "mount": self.mount,
        }
        if self.live is not None:
            document["live"] = self.live
        return document | ({"error": self.error} if self.error else {})


@dataclass(slots=True)
class Sums:
    """One user."""

    user_id: str
    workspaces: int = 0
    objects: int = 0
    bytes: int = 0
    areas: dict[str, int] = field(default_factory=dict)
    last_seal_s: float | None = None
    mounted: int = 0
    oldest_dirty_s: float | None = None
    unread: int = 0

    def add(self, row: Row) -> None:
        """Count a workspace; what is none counts with its bytes only."""
        found, mount = row.tally, row.mount
        self.unread += bool(row.error)
        if found is None or found.state != "none":
            self.workspaces += 1
        if found is not None:
            self.objects += found.objects
            self.bytes += found.bytes
            for name, area in found.areas.items():
                self.areas[name] = self.areas.get(name, 0) + area.bytes
            if found.sealed_ns is not None:
                self.last_seal_s = max(self.last_seal_s or 0.0, round(found.sealed_ns / 1e9, 3))
        if mount is not None:
            self.mounted += 1
            age_s = mount.get("oldest_dirty_s")
            if report.is_finite(age_s):
                self.oldest_dirty_s = max(self.oldest_dirty_s or 0.0, float(age_s))

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "user_id": self.user_id,
            "workspaces": self.workspaces,
            "objects": self.objects,
            "bytes": self.bytes,
            "areas": self.areas,
            "last_seal_s": self.last_seal_s,
            "mounted": self.mounted,
            "oldest_dirty_s": self.oldest_dirty_s,
            "unreadable": self.unread,
        }


# --- the commands


@click.command(name="list", short_help="List users and workspaces of the bucket, or mounts.")
@click.option("--user", "--user-id", "user_id", help="The workspaces of one user, one by one.")
@click.option("--all", "everything", is_flag=True, help="The workspaces of all users, one by one.")
@click.option("--quick", is_flag=True, help="Names only: nothing is counted.")
@click.option("--mounts", is_flag=True, help="The mounts of this host; the bucket isn't asked.")
@_fleet_flags
def list_(
    user_id: str | None,
    everything: bool,
    quick: bool,
    mounts: bool,
    limit: int,
    as_json: bool,
    **overrides: Any,
) -> int:
    """List what the bucket holds: per user the workspaces, objects, bytes, and the last seal.

    Of what is mounted on this host also the age of the oldest change that is not sealed. Nothing is
    changed. Which bucket: as for `s3ws mount`, without ids.
    """
    if mounts:
        from s3ws_fs.cli.mounts import show_mounts

        return show_mounts(as_json=as_json)
    found = _look(user_id, overrides, limit, count=not quick, as_json=as_json)
    if user_id is not None or everything:
        found.show(as_json, "workspaces", [row.to_json() for row in found.rows], _list_rows)
    else:
        found.show(as_json, "users", [each.to_json() for each in found.users], _list_users)
    return found.exit_code


@click.command(short_help="What each user's or each workspace's objects take in the bucket.")
@click.option(
    "--user", "--user-id", "user_id", help="The workspaces of one user, the largest first."
)
@_fleet_flags
def du(user_id: str | None, limit: int, as_json: bool, **overrides: Any) -> int:
    """Show the bytes in the bucket: journal (with history), mirror, backups and git bundles.

    Per user, or with --user per workspace; there `live` is what the workspace holds (what its quota
    counts), and the rest is the mirror, history and backups of it.
    """
    found = _look(user_id, overrides, limit, count=True, as_json=as_json, with_live=True)
    if user_id is not None:
        found.rows.sort(key=lambda row: row.tally.bytes if row.tally else 0, reverse=True)
        found.show(as_json, "workspaces", [row.to_json() for row in found.rows], _du_rows)
    else:
        found.users.sort(key=lambda each: each.bytes, reverse=True)
        found.show(as_json, "users", [each.to_json() for each in found.users], _du_users)
    return found.exit_code


# --- looking


@dataclass(slots=True)
class Found:
    """What was found. `more`: there are workspaces that were not looked at."""

    location: str
    rows: list[Row] = field(default_factory=list)
    users: list[Sums] = field(default_factory=list)
    more: bool = False
    limit: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0

    @property
    def exit_code(self) -> int:
        """6 when some could not be read."""
        return ExitCode.STORE if any(row.error for row in self.rows) else ExitCode.OK

    def show(
        self,
        as_json: bool,
        name: str,
        items: list[dict[str, Any]],
        lines: Callable[[Found], list[str]],
    ) -> None:
        """Print it."""
        if as_json:
            report.echo_json(
                {
                    "location": self.location,
                    name: items,
                    "is_complete": not self.more,
                    "requests": self.requests,
                    "duration_s": self.duration_s,
                }
            )
            return
        for line in lines(self):
            report.echo(line)
        for row in self.rows:
            if row.error:
                report.note(f"s3ws: {row.user_id}/{row.conversation_id}: {row.error}")
        if self.more:
            report.note(f"s3ws: only the first {self.limit} workspaces were looked at (--limit)")


def _look(
    user_id: str | None,
    overrides: dict[str, Any],
    limit: int,
    *,
    count: bool,
    as_json: bool,
    with_live: bool = False,
) -> Found:
    from s3ws_fs.store.factory import open_fleet
    from s3ws_fs.workspaces.reading import config_of, store_errors

    ids = {"user_id": user_id or NOBODY, "conversation_id": NOBODY}
    config = config_of(overrides | ids)
    started_s = time.monotonic()
    found = Found(config.store.location, limit=limit)
    mounted = _mounted(config)
    with report.progress("list", as_json=as_json) as on_event, store_errors(config):
        fleet = open_fleet(config.store, config.workspace.root_prefix)
        try:
            users = [config.workspace.user_id] if user_id else fleet.users()
            names = ((user, conv) for user in users for conv in fleet.conversations(user))
            chosen = islice(names, limit)

            def look(pair: tuple[str, str]) -> Row:
                return _row(fleet, pair, count=count, with_live=with_live)

            looked = _collect(found, _rows(config, look, chosen, count), mounted, on_event)
            found.more = looked == limit and next(names, None) is not None
        finally:
            fleet.close()
    found.requests = {op: n for op, n in fleet.counters.by_op().items() if n}
    found.duration_s = round(time.monotonic() - started_s, 3)
    return found


def _rows(
    config: MountConfig,
    look: Callable[[tuple[str, str]], Row],
    names: Iterator[tuple[str, str]],
    count: bool,
) -> Iterator[Row]:
    if not count:
        yield from map(look, names)
        return
    from s3ws_fs.transfer.windowed import windowed

    with ThreadPoolExecutor(config.store.max_parallel, "list") as pool:
        yield from windowed(pool, look, names, 2 * config.store.max_parallel)


def _row(fleet: Fleet, pair: tuple[str, str], *, count: bool, with_live: bool) -> Row:
    from s3ws_fs.transfer.tally import live, tally

    row = Row(*pair)
    if not count:
        return row
    store = fleet.workspace(*pair)
    try:
        row.tally = tally(store)
        header = live(store, row.tally) if with_live else None
    except StoreError as exc:
        row.error = str(exc)
        return row
    if header is not None:
        row.live = {"bytes": header.used_bytes, "files": header.inodes}
    return row


def _collect(
    found: Found, rows: Iterator[Row], mounted: dict[tuple[str, str], Any], on_event: EventSink
) -> int:
    """Rows and sums; conversations below which nothing of ours stands are left out. Returns how
    many were looked at.
    """
    looked = 0
    for row in rows:
        looked += 1
        row.mount = mounted.get((row.user_id, row.conversation_id))
        if looked % _PROGRESS_STEP == 0:
            on_event({"phase": "workspaces", "done": looked})
        if row.tally is not None and not row.tally.objects:
            continue
        found.rows.append(row)
        if not found.users or found.users[-1].user_id != row.user_id:
            found.users.append(Sums(row.user_id))
        found.users[-1].add(row)
    return looked


def _mounted(config: MountConfig) -> dict[tuple[str, str], dict[str, Any]]:
    """The mounts of this host that write workspaces of this bucket, by their ids."""
    from s3ws_fs.workspaces.reading import writes

    infos, _ = registry.list_mounts(runtime_dir())
    top = f"{config.workspace.root_prefix}conversations/"
    ours = [
        info
        for info in infos
        if info.store_location == config.store.location
        and info.prefix.startswith(top)
        and writes(info)
    ]
    return {
        (info.user_id, info.conversation_id): _mount_json(info, document)
        for info, document in zip(ours, status_documents(ours), strict=True)
    }


def _mount_json(info: MountInfo, document: dict[str, Any]) -> dict[str, Any]:
    dirty = document.get("dirty")
    age_s = dirty.get("oldest_age_s") if isinstance(dirty, dict) else None
    return {
        "mountpoint": info.mountpoint,
        "state": document.get("state"),
        "oldest_dirty_s": age_s,
    }


# --- as text


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _sealed(row: Row) -> str:
    if row.tally is None or row.tally.sealed_ns is None:
        return "-"
    return _when(row.tally.sealed_ns / 1e9)


def _list_users(found: Found) -> list[str]:
    head = ("user", "workspaces", "objects", "bytes", "last seal", "mounted", "oldest dirt")
    is_counted = any(row.tally is not None for row in found.rows)
    rows = [
        (
            each.user_id,
            f"{each.workspaces:,}",
            f"{each.objects:,}" if is_counted else "-",
            report.human_bytes(each.bytes) if is_counted else "-",
            _when(each.last_seal_s),
            str(each.mounted),
            report.human_seconds(each.oldest_dirty_s),
        )
        for each in found.users
    ]
    return text_table(head, rows, right=(1, 2, 3, 5)) or [_nothing(found)]


def _list_rows(found: Found) -> list[str]:
    head = ("user", "conversation", "state", "objects", "bytes", "last seal", "mounted on", "dirt")
    rows = []
    for row in found.rows:
        mount = row.mount or {}
        rows.append(
            (
                row.user_id,
                row.conversation_id,
                row.tally.state if row.tally else ("unreadable" if row.error else "-"),
                f"{row.tally.objects:,}" if row.tally else "-",
                report.human_bytes(row.tally.bytes) if row.tally else "-",
                _sealed(row),
                str(mount.get("mountpoint", "-")),
                report.human_seconds(mount.get("oldest_dirty_s")),
            )
        )
    return text_table(head, rows, right=(3, 4)) or [_nothing(found)]


def _du_users(found: Found) -> list[str]:
    from s3ws_fs.transfer.tally import AREAS

    head = ("user", "workspaces", "objects", "bytes", *AREAS)
    rows = [
        (
            each.user_id,
            f"{each.workspaces:,}",
            f"{each.objects:,}",
            report.human_bytes(each.bytes),
            *(report.human_bytes(each.areas.get(name, 0)) for name in AREAS),
        )
        for each in found.users
    ]
    return text_table(head, rows, right=range(1, len(head))) or [_nothing(found)]


def _du_rows(found: Found) -> list[str]:
    from s3ws_fs.transfer.tally import AREAS

    head = ("conversation", "objects", "bytes", *AREAS, "live")
    rows = []
    for row in found.rows:
        areas = row.tally.areas if row.tally else {}
        rows.append(
            (
                row.conversation_id,
                f"{row.tally.objects:,}" if row.tally else "-",
                report.human_bytes(row.tally.bytes) if row.tally else "-",
                *(report.human_bytes(areas[n].bytes) if n in areas else "-" for n in AREAS),
                report.human_bytes(row.live["bytes"]) if row.live else "-",
            )
        )
    return text_table(head, rows, right=range(1, len(head))) or [_nothing(found)]


def _nothing(found: Found) -> str:
    return f"no workspaces in {report.safe(found.location)}"
