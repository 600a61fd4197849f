"""Ending a mount, and not coming back before everything is saved.

Invariants
1. `umount_and_wait` returns only when everything is saved; otherwise it raises, with the list of
   what is not when somebody knows it.
2. A daemon that died is never taken for one that saved: its registry entry, which it removes only
   when everything is saved, or the cache itself must say so.

Called by cli and the manager (in a thread).
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from s3ws_fs.control import client, registry, wire
from s3ws_fs.control.paths import is_listening
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, S3wsError, UserError
from s3ws_fs.fuse import table
from s3ws_fs.launch.preflight import clear_if_dead, read_info
from s3ws_fs.launch.start import EventSink, ignore

if TYPE_CHECKING:
    from s3ws_fs.cache.inspect import Inspector

EXIT_TIMEOUT_S: Final = 60.0
"""How long a daemon may take to be gone after it answered `unmount`."""
BUSY_GRACE_S: Final = 1.0
"""A program that is just ending may still hold the mount; one that stays makes it busy (11)."""
ASK_TRIES_MAX: Final = 20
"""How many daemons in a row are asked to unmount, when each dies over it."""
SUCCESSOR_POLL_S: Final = 0.02
UNSAVED_PATHS_MAX: Final = 1000
"""At most so many paths are named for a dead daemon."""


def umount_and_wait(
    mountpoint: str,
    runtime_dir: str,
    *,
    on_event: EventSink = ignore,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """End a mount and wait for its final flush; returns {"saved": true, ...} of the daemon.

    Also for a mount that umount(8) took away while its daemon still flushes. Raises UserError:
    not mounted (4), not everything saved (7; ReplyError details may hold "unsaved"), busy (11).
    """
    info = read_info(runtime_dir, mountpoint)
    if info is None:
        return _umount_unknown(mountpoint)
    if not info.is_alive():
        return _umount_dead(info, runtime_dir)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        result = _ask_to_unmount(info, runtime_dir, on_event, deadline)
    except client.DaemonSilentError as exc:
        raise UserError(
            f"{mountpoint!a} was not saved within {timeout_s or 0:g} s.",
            remedy="The daemon goes on saving; run `s3ws umount` again to wait for it.",
            exit_code=ExitCode.NOT_SAVED,
        ) from exc
    except wire.ReplyError as exc:
        if "unsaved" in exc.details:
            # It ends: whoever mounts again next must not find it still there.
            _wait_for_exit(info, _left(deadline))
        raise
    except client.DaemonGoneError:
        # It may have ended by a signal just now, with everything saved: its entry tells.
        _wait_for_exit(info, _left(deadline))
        if read_info(runtime_dir, mountpoint) is None:
            return {"saved": True}
        return _umount_dead(info, runtime_dir)
    if not _wait_for_exit(info, _left(deadline)):
        raise UserError(
            f"Everything of {mountpoint!a} is saved, but the daemon {info.pid} does not end.",
            remedy=f"Look at its log {info.log_path!a}.",
        )
    return result


def _ask_to_unmount(
    info: MountInfo, runtime_dir: str, on_event: EventSink, deadline: float | None
) -> dict[str, Any]:
    """The daemon's answer when all is over. Raises client.DaemonGoneError, DaemonSilentError.

    A daemon that dies meanwhile is followed by another, which is asked again.
    """
    path = registry.socket_path(runtime_dir, info.mountpoint)
    for last in (*[False] * (ASK_TRIES_MAX - 1), True):
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return client.request(
                path, "unmount", {"grace_s": BUSY_GRACE_S}, on_event=on_event, timeout_s=timeout_s
            )
        except client.DaemonGoneError:
            if last or not wait_for_successor(info, runtime_dir, _left(deadline)):
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def wait_for_successor(info: MountInfo, runtime_dir: str, timeout_s: float) -> bool:
    """Whether the holder started another daemon than `info` names, which answers by now.

    False when there will be none: there is no holder, or it ended too, or time is over.
    """
    path = registry.socket_path(runtime_dir, info.mountpoint)
    deadline = time.monotonic() + timeout_s
    while info.holder_is_alive() and time.monotonic() < deadline:
        now = read_info(runtime_dir, info.mountpoint)
        if now is not None and now.pid != info.pid and is_listening(path):
            return True
        time.sleep(SUCCESSOR_POLL_S)
    return False


def _umount_unknown(mountpoint: str) -> dict[str, Any]:
    if table.is_mounted(mountpoint):
        raise UserError(
            f"{mountpoint!a} is mounted, but not by a daemon that is known here.",
            remedy="Check WORKSPACE_RUNTIME_DIR and the user; or use `fusermount3 -u`.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    raise UserError(
        f"{mountpoint!a} is not mounted.",
        remedy="`s3ws status` lists the mounts of this host.",
        exit_code=ExitCode.NOT_MOUNTED,
    )


def _umount_dead(info: MountInfo, runtime_dir: str) -> dict[str, Any]:
    """The daemon died: clear its mount and say what the cache still keeps."""
    clear_if_dead(info.mountpoint)
    left = unsaved_of(info)
    if left is not None and left["records"] == 0 and left["unmirrored"] == 0:
        registry.remove(runtime_dir, info.mountpoint, pid=info.pid)
        return {"saved": True, "daemon": "dead"}
    what = (
        "how much is unsaved is unknown"
        if left is None
        else f"not in the bucket: {counted(left['records'], 'change')} "
        f"({counted(left['files'], 'file')}); not mirrored: {counted(left['unmirrored'], 'file')}"
    )
    raise wire.ReplyError(
        f"The daemon of {info.mountpoint!a} is gone; {what}. "
        f"The cache {info.cache_path!a} keeps it all.",
        remedy="Mount the workspace again with the same settings: it goes on saving by itself.",
        exit_code=ExitCode.NOT_SAVED,
        details={"left": left, "unsaved": [] if left is None else left["paths"]},
    )


def counted(number: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def unsaved_of(info: MountInfo, *, paths: bool = True) -> dict[str, Any] | None:
    """What the cache of a dead daemon holds that is not saved; None when it can't be read.

    {"records": n, "files": n, "oldest_ns": n or None, "unmirrored": n, "paths": [first paths]};
    without `paths` the tree is not walked, and the last two are left out.
    """
    # Here, since every mount waits for what this module imports.
    from s3ws_fs.cache import inspect

    try:
        with inspect.open_readonly(Path(info.cache_path)) as inspector:
            records, files, oldest_ns = inspector.dirty_summary()
            behind = list(_behind(inspector)) if paths else []
    except (S3wsError, OSError):
        return None
    summary = {"records": records, "files": files, "oldest_ns": oldest_ns}
    if not paths:
        return summary
    return summary | {
        "unmirrored": len(behind),
        "paths": [os.fsdecode(path) for path in behind[:UNSAVED_PATHS_MAX]],
    }


def _behind(inspector: Inspector) -> Iterator[bytes]:
    """Paths of what is not sealed or not mirrored, by walking the tree."""
    pending = [b""]
    while pending:
        directory = pending.pop()
        try:
            entries = inspector.listdir(directory)
        except FileNotFoundError:
            continue
        for entry in entries:
            path = directory + b"/" + entry.name if directory else entry.name
            if entry.dirty or not entry.mirrored:
                yield path
            if stat.S_ISDIR(entry.attr.mode):
                pending.append(path)


def _wait_for_exit(info: MountInfo, timeout_s: float) -> bool:
    """Whether daemon and holder are gone, waiting up to `timeout_s` for each."""
    return all(_wait_for_process(info, pid, timeout_s) for pid in info.processes())


def _wait_for_process(info: MountInfo, pid: int, timeout_s: float) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if pid not in info.processes():
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000)) or pid not in info.processes()
    finally:
        # Where this process started the mount (the Python API), it must also bury it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        os.close(fd)


def _left(deadline: float | None) -> float:
    if deadline is None:
        return EXIT_TIMEOUT_S
    return min(EXIT_TIMEOUT_S, max(1.0, deadline - time.monotonic()))
