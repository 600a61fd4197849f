"""The mounts of this host: where they are registered, and what each says of itself.

Invariants
1. A mount whose daemon is dead or silent is told as such, never left out.
2. Nothing here touches a mounted filesystem, which may hang.

Called by the commands and the status page.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from s3ws_fs import launch
from s3ws_fs.control import client, registry, wire
from s3ws_fs.control.registry import MountInfo, default_runtime_dir
from s3ws_fs.core.errors import ExitCode, UserError

ASKED_AT_ONCE: Final = 16
"""Daemons that are asked side by side."""


def runtime_dir() -> str:
    """Where this user's mounts are registered."""
    return os.path.realpath(default_runtime_dir(os.environ, os.geteuid()))


def registered(mountpoint: str) -> MountInfo:
    """The entry of a mount, living or dead. Raises UserError (exit code 4)."""
    path = launch.canonical_mountpoint(mountpoint)
    info = registry.read(runtime_dir(), path)
    if info is None:
        raise UserError(
            f"{path!a} is not mounted.",
            remedy="`s3ws status` lists the mounts of this host; a cache can be named by --cache.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    return info


def require_alive(info: MountInfo) -> None:
    """Raise UserError (exit code 4) for a mount whose daemon is dead."""
    if not info.is_alive():
        raise UserError(
            f"The daemon of {info.mountpoint!a} is dead (it was {info.pid}).",
            remedy="Mount again with the same settings: it goes on saving by itself.",
            exit_code=ExitCode.NOT_MOUNTED,
        )


def status_documents(infos: Sequence[MountInfo]) -> list[dict[str, Any]]:
    """The status documents of mounts, in their order. A daemon that hangs holds up no other."""
    if len(infos) < 2:
        return [status_document(info) for info in infos]
    with ThreadPoolExecutor(min(ASKED_AT_ONCE, len(infos)), "status") as pool:
        return list(pool.map(status_document, infos))


def described(info: MountInfo) -> dict[str, Any]:
    """What is known of a mount without asking its daemon."""
    return {
        "mountpoint": info.mountpoint,
        "pid": info.pid,
        "workspace": {
            "user_id": info.user_id,
            "conversation_id": info.conversation_id,
            "prefix": info.prefix,
        },
        "store": {"type": info.store_type, "location": info.store_location},
        "cache": {"path": info.cache_path},
        "log": info.log_path,
    }


def status_document(
    info: MountInfo, *, counts: bool = False, timeout_s: float = client.STATUS_TIMEOUT_S
) -> dict[str, Any]:
    """The status document of one mount; of a dead or silent daemon what is known without it.

    With `counts` it has a member of that name, with what only grows (requests, operations, bytes);
    of a dead one it is then told how much is unsaved, not what.
    """
    base = described(info)
    if not info.is_alive():
        return base | {"state": "dead", "unsaved": launch.unsaved_of(info, paths=not counts)}
    try:
        path = registry.socket_path(runtime_dir(), info.mountpoint)
        args = {"counts": True} if counts else {}
        document = client.request(path, "status", args, timeout_s=timeout_s)
    except client.DaemonGoneError:
        if not info.is_alive():
            return base | {"state": "dead", "unsaved": launch.unsaved_of(info, paths=not counts)}
        return base | {"state": "starting"}
    except UserError as exc:
        return base | {"state": "silent", "error": wire.error_object(exc)}
    return {"log": info.log_path} | document
