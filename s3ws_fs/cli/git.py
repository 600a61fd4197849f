"""`s3ws git list` and `s3ws git restore`: the repositories of a workspace, from their bundles.

Invariants
1. The bucket is only read, and no mount or cache is needed.
2. Nothing is overwritten: a repository appears in a place that was free, whole or not at all.

Called by cli only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from s3ws_fs.cli import report
from s3ws_fs.cli.workspace import chosen, inside, workspace_flags
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.core.gitkeys import bundle_key
from s3ws_fs.snapshot.git import getting, restoring, together
from s3ws_fs.snapshot.git.find import BARE
from s3ws_fs.snapshot.git.running import GitError
from s3ws_fs.store.scoped import ScopedStore


@click.group()
def git() -> None:
    """The git repositories of a workspace, with what was not committed in them.

    Each has a bundle in the bucket (docs/git.md), made at every sync, backup and unmount that found
    something new. Plain git reads it, too: `git clone workspace.bundle`.
    """


@git.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@workspace_flags
def list_command(as_json: bool, mountpoint: str | None, **overrides: Any) -> None:
    """List the repositories that have a bundle in the bucket."""
    with chosen(mountpoint, overrides).store() as store:
        found = getting.listed(store)
    if as_json:
        report.echo_json(
            [
                report.json_name(stored.path)
                | {
                    "key": stored.key,
                    "bundle_bytes": stored.bundle_bytes,
                    "more_bytes": stored.more_bytes,
                }
                for stored in found
            ]
        )
        return
    for stored in found:
        size = report.human_bytes(stored.bundle_bytes + stored.more_bytes)
        report.echo(f"{size:>10}  {report.safe_name(stored.path) or '.'}")
    if not found:
        report.echo("no repository has a bundle")


@git.command()
@click.argument(
    "repository", required=False, default="", type=click.Path(path_type=str, readable=False)
)
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(path_type=str, readable=False),
    help="A new place.",
)
@click.option(
    "--from",
    "files",
    multiple=True,
    type=click.Path(path_type=str, readable=False),
    help="A bundle file instead of the bucket; a second one for what was added to it.",
)
@click.option("--all", "whole", is_flag=True, help="Every repository, each at its path below DIR.")
@click.option("--with-hooks", is_flag=True, help="Hooks work; else they are put aside.")
@click.option("--with-config", is_flag=True, help="All settings; else the harmless ones.")
@click.option("--json", "as_json", is_flag=True, help="Print the result, and progress, as JSON.")
@workspace_flags
def restore(
    repository: str,
    target: str,
    files: tuple[str, ...],
    whole: bool,
    with_hooks: bool,
    with_config: bool,
    as_json: bool,
    mountpoint: str | None,
    **overrides: Any,
) -> None:
    """Make the repository at REPOSITORY (a path in the workspace; its root when left out) anew, as
    it was when its bundle was made: refs, stashes, index, work tree, an operation under way.

    Hooks come to .git/hooks.restored, and settings that could run a program are left out (the whole
    configuration is in .git/config.original), unless asked for: they are as trustworthy as whoever
    worked in the workspace.
    """
    options = restoring.Options(with_hooks=with_hooks, with_config=with_config)
    place = Path(target)
    try:
        if files:
            _require_alone(repository, whole, mountpoint)
            done = {b"": restoring.restore([Path(file) for file in files], place, options)}
        else:
            workspace = chosen(mountpoint, overrides)
            path = inside(repository, workspace.info) if repository else b""
            with workspace.store() as store:
                wanted = _wanted(store, path, whole)
                done = _restore_each(store, wanted, place, options, whole, as_json)
    except (GitError, FormatError, OSError) as exc:
        raise UserError(
            f"The repository could not be restored: {exc}",
            remedy="Nothing was left behind of it. `git clone` of the bundle may give some of it.",
            exit_code=ExitCode.DAMAGED,
        ) from exc
    if as_json:
        report.echo_json([_document(path, place, whole, item) for path, item in done.items()])
        return
    for path, item in done.items():
        for line in _lines(path, place, whole, item):
            report.echo(line)


def _require_alone(repository: str, whole: bool, mountpoint: str | None) -> None:
    if repository or whole or mountpoint:
        raise UserError(
            "--from names the bundle itself: no path, --all or --mountpoint goes with it.",
            exit_code=ExitCode.USAGE,
        )


def _wanted(store: ScopedStore, path: bytes, whole: bool) -> list[bytes]:
    if not whole:
        return [path]
    below = path + b"/" if path else b""
    found = [item.path for item in getting.listed(store)]
    found = [item for item in found if item == path or item.startswith(below)]
    if not found:
        raise UserError(
            "No repository has a bundle there.",
            remedy="`s3ws git list` shows the repositories.",
            exit_code=ExitCode.USAGE,
        )
    return found


def _restore_each(
    store: ScopedStore,
    wanted: list[bytes],
    place: Path,
    options: restoring.Options,
    whole: bool,
    as_json: bool,
) -> dict[bytes, restoring.Restored]:
    done: dict[bytes, restoring.Restored] = {}
    for path in wanted:
        if whole and together.leads_into_git(path, place):
            raise FormatError("bundle", f"{path!a} is within another repository's git directory")
        with (
            report.progress(f"restore {report.safe_name(path) or '.'}", as_json=as_json) as say,
            tempfile.TemporaryDirectory(prefix="s3ws-git-") as scratch,
        ):

            def came(count: int, of: int, say: Any = say) -> None:
                say({"event": "progress", "phase": "downloading", "done": count, "total": of})

            files = getting.download(store, path, Path(scratch), came)
            say({"event": "progress", "phase": "restoring"})
            done[path] = restoring.restore(files, _place(path, place, whole), options)
    if whole:
        bare = [path for path, item in done.items() if item.kind == BARE]
        for path, item in done.items():
            together.join_up(item, _place(path, place, whole), place, bare)
    return done


def _place(path: bytes, place: Path, whole: bool) -> Path:
    return place / os.fsdecode(path) if whole and path else place


def _document(path: bytes, place: Path, whole: bool, item: restoring.Restored) -> dict[str, Any]:
    return report.json_name(path) | {
        "key": bundle_key(path),
        "place": str(_place(path, place, whole)),
        "kind": item.kind,
        "state": item.state,
        "files": item.files,
        "git_files": item.git_files,
        "put_aside": item.inert,
        "left_out_count": item.left_out_count,
        "left_out": [report.json_name(name) | {"reason": why} for name, why in item.left_out],
    }


def _lines(path: bytes, place: Path, whole: bool, item: restoring.Restored) -> Iterator[str]:
    at = str(_place(path, place, whole))
    yield f"{item.kind} restored to {report.safe(at)}: {item.files} files"
    if item.inert:
        yield f"  put aside: {', '.join(report.safe(name) for name in item.inert[:20])}"
    for name, why in item.left_out[:20]:
        yield f"  not in the bundle: {report.safe_name(name)}: {report.safe(why)}"
