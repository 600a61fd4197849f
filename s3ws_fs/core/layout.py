"""Where everything stands in the bucket: keys below the workspace prefix, and the mirror's escape.

Keys (docs/format.md; all relative to the workspace prefix)
    journal/workspace.json          which workspace this is; made once, never overwritten
    journal/seg/{number:016x}       segments: 1, 2, 3, … no gaps above the newest checkpoint
    journal/ckpt/{number:016x}      checkpoints: the whole metadata as of segment `number`
    journal/blob/{object id:016x}   large data that a segment names (top bit of the id set)
    journal/snap/{number:016x}-{id} snapshots: points in history that are kept (core/history)
    journal/history.json            from which segment on every point is kept
    journal/mirrored.json           generation up to which the mirror was last complete
    journal/lease.json              who may write, and for how long
    journal/fork.json               while a fork is made: what stands here is no workspace yet
    journal/deleted.json            while it is deleted: what is left here is no workspace any more
    files/{escaped path}            the mirror

Invariants
1. `unescape_path(escape_path(x)) == x`, and two paths never share a key.
2. An escaped path is valid UTF-8 without control characters and backslashes, and its segments are
   those of the path: no '/', '.' or '..' ever comes out of a name.
3. A name that needs no escape is its own escape, so that ordinary trees read as they are.

Called by transfer and replica.
"""

from __future__ import annotations

import re
from typing import Final

from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.limits import NAME_BYTES_MAX
from s3ws_fs.core.types import BLOB_BIT

WORKSPACE_KEY: Final = "journal/workspace.json"
MIRRORED_KEY: Final = "journal/mirrored.json"
LEASE_KEY: Final = "journal/lease.json"
FORK_KEY: Final = "journal/fork.json"
DELETED_KEY: Final = "journal/deleted.json"
SEG_PREFIX: Final = "journal/seg/"
CKPT_PREFIX: Final = "journal/ckpt/"
BLOB_PREFIX: Final = "journal/blob/"
SNAP_PREFIX: Final = "journal/snap/"
HISTORY_KEY: Final = "journal/history.json"
FILES_PREFIX: Final = "files/"

KEY_BYTES_MAX: Final = 1024
"""Longest key S3 takes, counted with the workspace prefix."""
ESCAPED_NAME_BYTES_MAX: Final = NAME_BYTES_MAX
"""Longest segment of a mirror key: what a disk can carry when the mirror is copied to one."""

OBJECT_ID_MAX: Final = (1 << 64) - 1

_NUMBER: Final = re.compile(r"[0-9a-f]{16}")
_PERCENT: Final = re.compile(r"%(?=[0-9A-Fa-f]{2})")
# Some servers turn a backslash into a slash.
# Surrogates U+DC80..U+DCFF stand for the bytes that are no UTF-8 (surrogateescape).
_SPECIAL: Final = re.compile("[\\\\\x00-\x1f\x7f\udc80-\udcff\ufffe\uffff]")
_ESCAPED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def seg_key(number: int) -> str:
    """Key of segment `number`."""
    return f"{SEG_PREFIX}{number:016x}"


def ckpt_key(number: int) -> str:
    """Key of the checkpoint that folds everything up to segment `number`."""
    return f"{CKPT_PREFIX}{number:016x}"


def blob_key(object_id: int) -> str:
    """Key of a blob by its object id (top bit set)."""
    return f"{BLOB_PREFIX}{object_id:016x}"


def object_key(object_id: int) -> str:
    """Key of the object that a Location names. Raises FormatError for the id 0 ("this segment")."""
    if not 0 < object_id <= OBJECT_ID_MAX:
        raise FormatError("location", f"object id {object_id} names no object")
    return blob_key(object_id) if object_id & BLOB_BIT else seg_key(object_id)


def key_number(key: str, prefix: str) -> int | None:
    """The number in a key of this kind; None when the key is not one that we would have made."""
    if not key.startswith(prefix) or not _NUMBER.fullmatch(key, len(prefix)):
        return None
    return int(key[len(prefix) :], 16)


def escape_name(name: bytes) -> str:
    """One name as a mirror key's segment. Raises ValueError for what is no name."""
    if not name or name in (b".", b"..") or b"/" in name:
        raise ValueError(f"not a file name: {name!r}")
    text = name.decode("utf-8", "surrogateescape")
    if "%" in text:
        text = _PERCENT.sub("%25", text)
    return _SPECIAL.sub(_percent, text)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def unescape_name(text: str) -> bytes:
    """The name behind a mirror key's segment. Raises ValueError for what is no UTF-8."""
    return _ESCAPED.sub(lambda m: bytes((int(m[1], 16),)), text.encode("utf-8"))


def escape_path(path: bytes) -> str:
    """A path relative to the root as the mirror path (the key below files/)."""
    return "/".join(escape_name(name) for name in path.split(b"/"))


def unescape_path(text: str) -> bytes | None:
    """The path behind a mirror path; None when no path of ours escapes to it."""
    try:
        path = b"/".join(unescape_name(part) for part in text.split("/"))
        return path if escape_path(path) == text else None
    except ValueError:
        return None


def mirror_path(path: bytes, prefix_bytes: int) -> tuple[str, str]:
    """(mirror path, "") of a path, or ("", reason) when a key can't carry it.

    `prefix_bytes` is the length of the workspace prefix, which counts towards the key's limit.
    """
    escaped = escape_path(path)
    if any(len(part.encode()) > ESCAPED_NAME_BYTES_MAX for part in escaped.split("/")):
        return "", f"a name is longer than {ESCAPED_NAME_BYTES_MAX} bytes when escaped"
    key_bytes = prefix_bytes + len(FILES_PREFIX) + len(escaped.encode())
    if key_bytes > KEY_BYTES_MAX:
        return "", f"its key would have {key_bytes} bytes, more than S3's {KEY_BYTES_MAX}"
    return escaped, ""
