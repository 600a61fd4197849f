"""`s3ws rescue`: what a cache holds and the bucket never got, into a plain directory.

Invariants
1. Nothing is sent to the bucket, and the cache is left as it is.
2. The directory is made, or was there; what stands in it stays (transfer/rescue.py).

Called by cli only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from s3ws_fs import launch
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.recovery import settle_dead
from s3ws_fs.cache.syncpoint import current_boot_id
from s3ws_fs.cli import report
from s3ws_fs.cli.mounting import setting_flags
from s3ws_fs.control import registry
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.types import Location
from s3ws_fs.settings import Settings
from s3ws_fs.store.factory import open_store
from s3ws_fs.transfer.fetch import fetch_group
from s3ws_fs.transfer.rescue import Fetch, Rescued
from s3ws_fs.transfer.rescue import rescue as export
from s3ws_fs.workspaces.mounts import registered, runtime_dir
from s3ws_fs.workspaces.reading import NOWHERE

LINES_MAX: Final = 1000
"""Paths printed of each kind; `--json` has all."""


@click.command()
@click.argument("directory", type=click.Path(path_type=str, readable=False))
@click.argument("mountpoint", required=False, type=click.Path(path_type=str, readable=False))
@click.option(
    "--cache",
    type=click.Path(path_type=str, readable=False),
    help="The cache directory of the workspace.",
)
@click.option("--offline", is_flag=True, help="Don't ask the bucket for bytes that are only there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@setting_flags()
def rescue(
    directory: str,
    mountpoint: str | None,
    cache: str | None,
    offline: bool,
    as_json: bool,
    **overrides: Any,
) -> int:
    """Export what was never sealed into DIRECTORY: of MOUNTPOINT, of --cache, or of the workspace
    that the settings name.

    Changed files are exported whole, with modes, times and extended attributes; deletions and moves
    are listed. Nothing in DIRECTORY is overwritten, the cache is left as it is. Works on the cache
    of a dead daemon. Exit code 7 when something could not be exported whole.
    """
    place = _cache_directory(mountpoint, cache, overrides)
    settle_dead(place, current_boot_id())
    with (
        open_reader(place) as reader,
        _directory(directory) as fd,
        _fetching(None if offline else overrides, mountpoint) as fetch,
    ):
        done = export(reader, fd, fetch)
    code = ExitCode.OK if done.is_whole else ExitCode.NOT_SAVED
    if as_json:
        report.echo_json(document(done, place, code))
    else:
        for line in lines(done, directory):
            report.echo(line)
    return code


def _cache_directory(mountpoint: str | None, cache: str | None, overrides: dict[str, Any]) -> Path:
    if cache is not None:
        return Path(cache)
    if mountpoint is None:
        return Path(Settings.load(os.environ, overrides).mount_config(NOWHERE).workspace_cache_dir)
    return Path(registered(mountpoint).cache_path)


@contextmanager
def _directory(path: str) -> Iterator[int]:
    try:
        Path(path).mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UserError(
            f"{path!a} can't be used: {exc.strerror}.",
            remedy="Name a directory of yours, or one whose parent exists.",
            exit_code=ExitCode.USAGE,
        ) from exc
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _fetching(overrides: dict[str, Any] | None, mountpoint: str | None) -> Iterator[Fetch | None]:
    """How to get bytes that are only in the bucket; None without settings for it.

    A digest vouches for each, so a wrong bucket gives an error, never other bytes.
    """
    if overrides is None:
        yield None
        return
    if mountpoint is not None:
        info = registry.read(runtime_dir(), launch.canonical_mountpoint(mountpoint))
        assert info is not None
        tail = f"conversations/{info.user_id}/{info.conversation_id}/workspace/"
        overrides = overrides | {
            "user_id": info.user_id,
            "conversation_id": info.conversation_id,
            "prefix": info.prefix.removesuffix(tail) or None,
        }
    try:
        config = Settings.load(os.environ, overrides).mount_config(NOWHERE)
    except UserError:
        yield None
        return
    if config.store.path is not None and not Path(config.store.path).is_dir():
        yield None
        return
    store = open_store(config.store, config.workspace.prefix, read_only=True)

    def fetch(where: Location) -> bytes:
        return fetch_group(store, [where])[where]

    try:
        yield fetch
    finally:
        store.close()


def document(done: Rescued, cache: Path, code: ExitCode) -> dict[str, Any]:
    """The report for a program."""
    return {
        "cache": str(cache),
        "exit_code": int(code),
        "exported": [report.json_name(path) for path in done.exported],
        "deleted": [report.json_name(path) for path in done.deleted],
        "moved": [
            {"from": report.json_name(old), "to": report.json_name(new)} for old, new in done.moved
        ],
        "incomplete": _reasons(done.incomplete),
        "not_exported": _reasons(done.left),
        "notes": _reasons(done.notes),
    }


def _reasons(found: dict[bytes, str]) -> list[dict[str, Any]]:
    return [report.json_name(path) | {"reason": why} for path, why in sorted(found.items())]


def lines(done: Rescued, directory: str) -> Iterator[str]:
    """The report for a person."""
    yield f"{len(done.exported)} changed files are in {report.safe(directory)}"
    yield from _listed("exported", map(report.safe_name, done.exported))
    yield from _listed("deleted here", map(report.safe_name, done.deleted))
    yield from _listed(
        "moved here", (f"{report.safe_name(a)} -> {report.safe_name(b)}" for a, b in done.moved)
    )
    for title, found in (
        ("INCOMPLETE", done.incomplete),
        ("NOT EXPORTED", done.left),
        ("exported, but", done.notes),
    ):
        pairs = sorted(found.items())
        yield from _listed(
            title, (f"{report.safe_name(path)}: {report.safe(why)}" for path, why in pairs)
        )


def _listed(title: str, items: Iterable[str]) -> Iterator[str]:
    for number, item in enumerate(items):
        if number == 0:
            yield f"{title}:"
        if number == LINES_MAX:
            yield "  and more (see --json)"
            return
        yield f"  {item}"
