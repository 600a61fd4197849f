"""What the page changes: restores, undo, snapshots, saving now, backups.

Invariants
1. Nothing is restored that was not shown first: a plan is made by a dry run, and only a plan is
   carried out, once, within PLAN_S: that point, and those paths.
2. The daemon does it, as for the command. A backup is unpacked into a new directory of the mount
   (snapshot/extract.py: no link is followed, nothing is overwritten).

Blocking; called by web.routes in threads.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core import backups, history
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.plaintext import safe_name
from s3ws_fs.core.rewind import KINDS, answer_json, path_bytes
from s3ws_fs.fuse import table
from s3ws_fs.snapshot.extract import restore
from s3ws_fs.snapshot.reading import open_backup
from s3ws_fs.web import files
from s3ws_fs.web.looks import known_ref
from s3ws_fs.web.mounts import Mounts
from s3ws_fs.workspaces.mounts import require_alive

PLANS_MAX: Final = 32
PLAN_S: Final = 600.0
SHOWN_MAX: Final = 100
"""Paths of each kind that are shown."""
PATHS_MAX: Final = 200
PATHS_BYTES_MAX: Final = 10_000
"""Paths of one restore: they fit into a request to the daemon, however they are escaped there."""
COMPARE_S: Final = 300.0
TAKE_S: Final = 60.0
SYNC_S: Final = 300.0
TRIES_MAX: Final = 100
"""Names of a directory for a backup that are tried."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was shown, and may be done until `until_s`."""

    mountpoint: str
    cmd: str
    args: dict[str, Any]
    until_s: float


class Plans:
    """Thread-safe; each is given out once (invariant 1)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Plan] = OrderedDict()

    def keep(self, info: MountInfo, cmd: str, args: dict[str, Any]) -> str:
        """A name for it."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._held[name] = Plan(info.mountpoint, cmd, args, time.monotonic() + PLAN_S)
            while len(self._held) > PLANS_MAX:
                self._held.popitem(last=False)
        return name

    def take(self, info: MountInfo, name: object) -> Plan:
        """Raises UserError."""
        with self._lock:
            plan = self._held.pop(name, None) if isinstance(name, str) else None
        if plan is None or plan.mountpoint != info.mountpoint or plan.until_s < time.monotonic():
            raise UserError(
                "What was shown is too old to be done now.",
                remedy="Look at it again, then confirm.",
                exit_code=ExitCode.USAGE,
            )
        return plan


class Acts:
    """Of all mounts."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._plans = Plans()

    # --- shown, then done

    def look_at_restore(self, info: MountInfo, ref: object, paths: object = None) -> dict[str, Any]:
        """What a restore would change, and the plan of it. Raises UserError.

        `paths`: in percent escapes; None: the whole workspace.
        """
        require_alive(info)
        only = {} if paths is None else {"paths": _known_paths(paths)}
        args = {"ref": known_ref(ref), **only, "dry_run": True}
        found = self._mounts.request(info, "restore", args, COMPARE_S)
        args = {"ref": f"#{found['point']['number']}", **only}
        return _shown(found) | {"plan": self._plans.keep(info, "restore", args)}

    def look_at_undo(self, info: MountInfo) -> dict[str, Any]:
        """The same of an undo. Raises UserError."""
        require_alive(info)
        found = self._mounts.request(info, "undo", {"dry_run": True}, COMPARE_S)
        return _shown(found) | {"plan": self._plans.keep(info, "undo", {})}

    def look_at_backup(self, info: MountInfo, name: object) -> dict[str, Any]:
        """What the restore of a backup would make. Raises UserError, FormatError."""
        require_alive(info)
        name = _backup_name(name)
        with self._mounts.store(info) as (_, store):
            index = open_backup(store, name).index
        files = [entry for entry in index.entries if entry.type == "file"]
        return {
            "name": name,
            "directory": f"restored-{name}",
            "entries": len(index.entries),
            "bytes": sum(entry.size for entry in files),
            "paths": [safe_name(entry.path) for entry in index.entries[:SHOWN_MAX] if entry.path],
            "plan": self._plans.keep(info, "restore-backup", {"name": name}),
        }

    def carry_out(self, info: MountInfo, plan_name: object) -> dict[str, Any]:
        """Do what was shown. Raises UserError, StoreError, FormatError."""
        plan = self._plans.take(info, plan_name)
        require_alive(info)
        if plan.cmd == "restore-backup":
            return self._unpack(info, plan.args["name"])
        # It takes as long as it takes, as for the command.
        return _shown(self._mounts.request(info, plan.cmd, plan.args, None))

    def _unpack(self, info: MountInfo, name: str) -> dict[str, Any]:
        if not table.is_mounted(info.mountpoint):
            raise UserError("Nothing is mounted there.", exit_code=ExitCode.NOT_MOUNTED)
        with (
            self._mounts.store(info) as (workspace, store),
            ThreadPoolExecutor(workspace.config.store.max_parallel, "fetch") as pool,
        ):
            reader = open_backup(store, name)
            made, fd = _new_directory(info.mountpoint, f"restored-{name}")
            try:
                done = restore(reader, fd, [], pool=pool)
            finally:
                os.close(fd)
        return {
            "directory": made,
            "entries": done.entries,
            "bytes": done.data_bytes,
            "failed": len(done.failed),
            "notes": len(done.notes),
        }

    # --- done at once

    def snapshot(self, info: MountInfo, name: object) -> dict[str, Any]:
        """Keep what is there now under a name. Raises UserError."""
        require_alive(info)
        if not isinstance(name, str):
            raise UserError("A snapshot has a name.", exit_code=ExitCode.USAGE)
        return self._mounts.request(info, "snapshot", {"name": history.check_name(name)}, TAKE_S)

    def sync(self, info: MountInfo) -> dict[str, Any]:
        """Save all now. Raises UserError."""
        require_alive(info)
        return self._mounts.request(info, "sync", {}, SYNC_S)

    def backup(self, info: MountInfo) -> dict[str, Any]:
        """Make a backup now. Raises UserError."""
        require_alive(info)
        return self._mounts.request(info, "backup", {}, None)


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    """A daemon's answer, with the first paths of each kind as they are shown."""
    answer = answer_json(found)
    for kind in KINDS:
        paths = sorted(safe_name(path_bytes(path)) or "." for path in found[kind]["paths"])
        answer[kind] = {"count": found[kind]["count"], "paths": paths[:SHOWN_MAX]}
    return answer


def _known_paths(paths: object) -> list[str]:
    """Paths as a browser sent them, as the daemon takes them. Raises UserError.

    There is at least one, and none is the root: nothing that is left out means all.
    """
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UserError("A list of paths is wanted.", exit_code=ExitCode.USAGE)
    cleaned = [files.named(path) for path in paths]
    if not all(cleaned) or not cleaned:
        raise UserError(
            "No path is named.",
            remedy="Restore the whole workspace under History.",
            exit_code=ExitCode.USAGE,
        )
    if len(cleaned) > PATHS_MAX or sum(map(len, cleaned)) > PATHS_BYTES_MAX:
        raise UserError(
            f"These are too many paths at once (at most {PATHS_MAX}).",
            remedy="Name directories above them.",
            exit_code=ExitCode.USAGE,
        )
    return [os.fsdecode(path) for path in cleaned]


def _backup_name(name: object) -> str:
    try:
        if isinstance(name, str):
            backups.time_of(name)
            return name
    except ValueError:
        pass
    raise UserError("This is no backup's name.", exit_code=ExitCode.USAGE)


def _new_directory(mountpoint: str, name: str) -> tuple[str, int]:
    """Make a directory of that name, or with a number behind it; its name, and it opened."""
    top = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for number in range(1, TRIES_MAX):
            made = name if number == 1 else f"{name}-{number}"
            try:
                os.mkdir(made, 0o700, dir_fd=top)
            except FileExistsError:
                continue
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            return made, os.open(made, flags, dir_fd=top)
    except OSError as exc:
        raise UserError(
            f"A directory for the backup can't be made: {exc.strerror}.",
            remedy="`s3ws restore-backup` can restore it elsewhere.",
            exit_code=ExitCode.NOT_MOUNTED,
        ) from exc
    finally:
        os.close(top)
    raise UserError(
        f"There are {TRIES_MAX} restores of this backup already.",
        remedy="Remove those that nobody needs.",
        exit_code=ExitCode.USAGE,
    )
