"""Objects below files/ that somebody else put: looked at, read, and all of them for an import.

Invariants
1. Bytes of an object are given only while it has the ETag that was looked at.
2. A key that is the path of no file of ours is named, and never asked for.
3. Memory is bounded: SMALL_BYTES_MAX for each of WINDOW objects under way, a piece of a large one,
   and the directories' names.
4. Where an object and a directory have one name, the directory counts and the object is named.

Called by worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final

from s3ws_fs.core import content
from s3ws_fs.core.errors import ConflictError, NotFoundError, TransientError
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.core.mirrorplan import parents
from s3ws_fs.core.outside import Found, workspace_path
from s3ws_fs.store.base import ListEntry, ObjectInfo
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import whose
from s3ws_fs.transfer.windowed import windowed
from s3ws_fs.transfer.words import NO_PATH

PIECE_BYTES: Final = 4 << 20
SMALL_BYTES_MAX: Final = 1 << 20
"""Objects up to this size are fetched beside each other."""
WINDOW: Final = 16
TRIES_MAX: Final = 3
"""How often an object that changes while it is read is begun again in an import."""

SHADOWED: Final = "other objects have its name as their directory"

Part = Callable[..., None]


def found_of(info: ObjectInfo, workspace: str = "") -> Found:
    """What somebody else's object says, to the workspace of that id."""
    text = info.key[len(FILES_PREFIX) :]
    wishes = content.wishes(info.metadata)
    mark = content.our_mark(info.metadata, workspace, text)
    ours = "" if mark is None else mark[1].hex()
    return Found(text, info.etag, info.size_bytes, info.modified_ns, wishes, ours)


def look(store: ScopedStore, text: str, workspace: str) -> Found | None:
    """What is not ours at a mirror path; None: ours, or nothing. Raises StoreError."""
    info = whose.head(store, text)
    if info is None or whose.our_mark(store, info, workspace, text) is not None:
        return None
    return found_of(info, workspace)


def read(store: ScopedStore, text: str, etag: str, size_bytes: int) -> Iterator[bytes]:
    """An object's bytes, a piece at a time. Raises ConflictError when it is another one by now."""
    key = FILES_PREFIX + text
    for offset in range(0, size_bytes, PIECE_BYTES):
        try:
            data = store.get(key, offset, PIECE_BYTES, if_match=etag).data
        except NotFoundError as exc:
            raise ConflictError("get", key, "it is gone") from exc
        if len(data) != min(PIECE_BYTES, size_bytes - offset):
            raise TransientError("get", key, "it came short")
        yield data


def measure(store: ScopedStore) -> dict[str, Any]:
    """Number and bytes of all objects below files/."""
    objects = size_bytes = 0
    for entry in store.list(FILES_PREFIX):
        objects += 1
        size_bytes += entry.size_bytes
    if not objects:
        objects = sum(1 for _ in store.markers(FILES_PREFIX))
    return {"objects": objects, "bytes": size_bytes}


def send_all(store: ScopedStore, pool: Executor, part: Part) -> None:
    """Give everything below files/: `directory` parts, then `found` parts followed by their bytes.

    `left` parts name what can't be a file. Raises StoreError.
    """
    directories: set[str] = set()
    for entry in store.list(FILES_PREFIX):
        directories.update(parents(entry.key[len(FILES_PREFIX) :]))
    for info in store.markers(FILES_PREFIX):
        text = info.key[len(FILES_PREFIX) :].removesuffix("/")
        if workspace_path(text) is not None:
            directories.update((text, *parents(text)))
            told = content.wishes(info.metadata)
            found = Found(text, info.etag, 0, info.modified_ns, told)
            part({"directory": found.to_json()})
    entries = _importable(store, directories, part)
    for found, data in windowed(pool, partial(_fetch, store), entries, WINDOW):
        if data is not None:
            part({"found": found.to_json(), "whole": True}, data)
            continue
        part({"found": found.to_json(), "whole": False})
        for piece in read(store, found.path, found.etag, found.size_bytes):
            part({"piece": True}, piece)
        part({"end": True})


def _importable(store: ScopedStore, directories: set[str], part: Part) -> Iterator[ListEntry]:
    for entry in store.list(FILES_PREFIX):
        text = entry.key[len(FILES_PREFIX) :]
        if workspace_path(text) is None:
            part({"left": [text, NO_PATH]})
        elif text in directories:
            part({"left": [text, SHADOWED]})
        else:
            yield entry


def _fetch(store: ScopedStore, entry: ListEntry) -> tuple[Found, bytes | None]:
    for _ in range(TRIES_MAX):
        try:
            found = found_of(store.head(entry.key))
            if found.size_bytes > SMALL_BYTES_MAX:
                return found, None
            return found, b"".join(read(store, found.path, found.etag, found.size_bytes))
        except (NotFoundError, ConflictError) as exc:
            last = exc
    raise TransientError("get", entry.key, f"it changes while it is imported: {last.detail}")
