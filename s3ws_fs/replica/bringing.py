"""An object of the mirror that is not ours, brought into a file of the workspace without a name.

Invariants
1. Only whole: a file of which not all came, or of which the object changed meanwhile, is dropped.
2. Attributes are a stranger's wishes: no other types than files and links, no more than modes.

Called by outside and importing.
"""

from __future__ import annotations

import errno
import stat
from typing import Any, Final

import xxhash

from s3ws_fs.core.errors import ConflictError, FsError
from s3ws_fs.core.limits import SYMLINK_BYTES_MAX
from s3ws_fs.core.outside import Found
from s3ws_fs.core.records import InodeRec
from s3ws_fs.fs.arrivals import Arriving
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica.places import Place
from s3ws_fs.transfer.client import OnPart, WorkerClient

DEFAULT_MODE: Final = stat.S_IFREG | 0o644


async def fetch(
    worker: WorkerClient, fs: FileSystem, found: Found, place: Place
) -> tuple[int, Arriving, bytes] | None:
    """The object's bytes in a new file without a name; None when it is another one by now."""
    wanted = arriving(found, place.rec, place.parent)
    state = xxhash.xxh3_128()
    if stat.S_ISLNK(wanted.mode):
        target = bytearray()

        async def on_target(part: dict[str, Any], payload: memoryview) -> None:
            target.extend(payload)

        if not await _ask(worker, found, on_target):
            return None
        state.update(target)
        return fs.begin_arrival(wanted, bytes(target)), wanted, state.digest()
    ino = fs.begin_arrival(wanted)
    offset = 0

    async def on_part(part: dict[str, Any], payload: memoryview) -> None:
        nonlocal offset
        state.update(payload)
        fill(fs, ino, offset, payload)
        offset += len(payload)

    is_whole = False
    try:
        is_whole = await _ask(worker, found, on_part)
    finally:
        if not is_whole:
            fs.drop_arrival(ino)
    return (ino, wanted, state.digest()) if is_whole else None


async def _ask(worker: WorkerClient, found: Found, on_part: OnPart) -> bool:
    try:
        await worker.ask(
            "fetch-outside",
            on_part,
            path=found.path,
            etag=found.etag,
            size_bytes=found.size_bytes,
        )
    except ConflictError:
        return False
    return True


def fill(fs: FileSystem, ino: int, offset: int, payload: memoryview) -> None:
    """Write a piece of a file that arrives. Raises FsError."""
    if len(payload) and fs.write(ino, offset, payload) != len(payload):
        raise FsError(errno.EDQUOT, "the quota is reached")


def arriving(found: Found, ours: InodeRec | None, parent: InodeRec) -> Arriving:
    """The attributes of an object's file: what it says, else those of our file or directory."""
    said = found.wishes
    like = ours if ours is not None and stat.S_ISREG(ours.mode) else None
    mode = DEFAULT_MODE if like is None else stat.S_IFREG | (like.mode & 0o777)
    if said.mode is not None:
        is_link = stat.S_ISLNK(said.mode) and 0 < found.size_bytes <= SYMLINK_BYTES_MAX
        # No other type: what makes a device, or nobody can read, is no business of strangers.
        mode = stat.S_IFLNK | 0o777 if is_link else stat.S_IFREG | stat.S_IMODE(said.mode)
    owner = like or parent
    return Arriving(
        mode,
        owner.uid if said.uid is None else said.uid,
        owner.gid if said.gid is None else said.gid,
        found.modified_ns if said.mtime_ns is None else said.mtime_ns,
    )
