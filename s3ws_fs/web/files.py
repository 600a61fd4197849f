"""Directories and bytes of files as they stand in the cache, for the page.

Invariants
1. No mounted file is looked at, and no link is followed: names are looked up in the records, so
   that no path leads out of the workspace, and a mount that hangs does not matter.
2. A page has at most PAGE_MAX entries, a preview PREVIEW_BYTES_MAX bytes; a download is read in
   pieces of PIECE_BYTES.
3. What is shown holds nothing that a browser or a person could take for something else (core.
   plaintext); the true name of an entry is its `id`, in percent escapes.
4. Bytes that are only in the bucket are verified by their digests.

Blocking; called by web.routes in threads.
"""

from __future__ import annotations

import codecs
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from s3ws_fs.cache.inspect import Entry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core import layout
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.plaintext import safe, safe_name
from s3ws_fs.core.types import Location
from s3ws_fs.transfer.looking import fetch_part
from s3ws_fs.web.mounts import Mounts

PAGE_MAX: Final = 200
PREVIEW_BYTES_MAX: Final = 256 << 10
PIECE_BYTES: Final = 2 << 20
PATH_BYTES_MAX: Final = 16 << 10


def clean(path: bytes) -> bytes:
    """A path below the root. Raises UserError for what is none."""
    names = path.split(b"/") if path else []
    if len(path) > PATH_BYTES_MAX or any(name in (b"", b".", b"..") for name in names):
        raise UserError(
            "This is no path in a workspace.",
            remedy="Paths begin at the root of the workspace.",
            exit_code=ExitCode.USAGE,
        )
    return path


def named(text: str) -> bytes:
    """A path below the root, from an `id` that a browser sent back. Raises UserError."""
    return clean(unquote_to_bytes(text.encode("ascii", "replace")))


@contextmanager
def _found() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise UserError(
            "There is nothing at this path (any more).",
            remedy="Look at the directory above it.",
            exit_code=ExitCode.USAGE,
        ) from exc
    except NotADirectoryError as exc:
        raise UserError("This is no directory.", exit_code=ExitCode.USAGE) from exc


def tree(mounts: Mounts, info: MountInfo, path: bytes, start: int) -> dict[str, Any]:
    """A page of a directory. Raises UserError."""
    path = clean(path)
    with _found(), mounts.cache(info) as cache:
        total, entries = cache.page(path, start, PAGE_MAX)
    return {
        "path": crumbs(path),
        "total": total,
        "start": start,
        "page": PAGE_MAX,
        "entries": [_shown(path, entry) for entry in entries],
    }


def crumbs(path: bytes) -> list[dict[str, str]]:
    """The directories on the way to a path, and itself."""
    found, at = [], b""
    for name in path.split(b"/") if path else ():
        at = at + b"/" + name if at else name
        found.append({"shown": safe_name(name), "id": quote_from_bytes(at)})
    return found


def _shown(directory: bytes, entry: Entry) -> dict[str, Any]:
    path = directory + b"/" + entry.name if directory else entry.name
    said = entry.to_json()
    shown = {name: said[name] for name in ("type", "mode", "size", "mtime_ns", "state", "warmth")}
    shown |= {"shown": safe_name(entry.name), "id": quote_from_bytes(path)}
    if stat.S_ISLNK(entry.attr.mode):
        shown["target"] = safe_name(entry.target)
    return shown


def _file(mounts: Mounts, info: MountInfo, path: bytes) -> Entry:
    with _found(), mounts.cache(info) as cache:
        entry = cache.entry(clean(path))
    if not stat.S_ISREG(entry.attr.mode):
        raise UserError("This is no file with bytes.", exit_code=ExitCode.USAGE)
    return entry


def preview(mounts: Mounts, info: MountInfo, path: bytes) -> dict[str, Any]:
    """The beginning of a file, if it is text. Raises UserError."""
    entry = _file(mounts, info, path)
    data = b"".join(_bytes(mounts, info, path, entry, min(entry.attr.size, PREVIEW_BYTES_MAX)))
    text = as_text(data)
    above = path.rpartition(b"/")[0]
    return {
        **_shown(above, entry),
        "path": crumbs(path),
        "text": text,
        "is_binary": text is None,
        "shown_bytes": len(data),
    }


def as_text(data: bytes) -> str | None:
    """Bytes as text that is safe to show; None when they are no UTF-8, or hold a NUL."""
    if b"\0" in data:
        return None
    # A character that the limit cut in two is no reason.
    is_whole = len(data) < PREVIEW_BYTES_MAX
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=is_whole)
    except UnicodeDecodeError:
        return None
    return "".join(char if char in "\n\t" else safe(char) for char in text.replace("\r\n", "\n"))


def download(mounts: Mounts, info: MountInfo, path: bytes) -> tuple[bytes, int, Iterator[bytes]]:
    """Name, size and bytes of a file; the bytes may stop short. Raises UserError."""
    entry = _file(mounts, info, path)
    return entry.name, entry.attr.size, _bytes(mounts, info, path, entry, entry.attr.size)


def _bytes(
    mounts: Mounts, info: MountInfo, path: bytes, entry: Entry, length: int
) -> Iterator[bytes]:
    """The first bytes of a file in pieces. Raises UserError."""
    step = PIECE_BYTES // EXTENT_BYTES
    for first in range(0, -(-length // EXTENT_BYTES), step):
        begin = first * EXTENT_BYTES
        data = bytearray(min(step * EXTENT_BYTES, length - begin))
        with _found(), mounts.cache(info) as cache:
            found = cache.extents(entry.attr.ino, first, step)
        for index, piece in _fetched(mounts, info, path, found):
            at = index * EXTENT_BYTES - begin
            room = len(data) - at
            if room > 0:
                data[at : at + min(len(piece), room)] = piece[:room]
        yield bytes(data)


def _fetched(
    mounts: Mounts, info: MountInfo, path: bytes, found: list[tuple[int, bytes | Location]]
) -> Iterator[tuple[int, bytes]]:
    cold: list[tuple[int, Location]] = []
    for index, piece in found:
        if isinstance(piece, bytes):
            yield index, piece
        else:
            cold.append((index, piece))
    if cold:
        with mounts.store(info) as (_, store):
            yield from fetch_part(store, layout.escape_path(path), cold)
