"""What a mirrored object says about its file: content type and user metadata.

The metadata is that of s3fs-fuse, so that its users (and others that follow it) see modes, owners
and times: `mode` is the whole st_mode in decimal, `uid` and `gid` decimal, `mtime` seconds since
the epoch with nine digits of nanoseconds when they are not zero. A symlink is an object whose body
is its target; a fifo, socket or device is an empty object with its type in `mode`.
Ours beside it: `s3ws-xxh3` (xxh3-128 of the body, hex), `s3ws-gen` (generation of the flush that
put it), `s3ws-ws` (the workspace's uuid) and `s3ws-path` (digest of the mirror path): our *mark*.

Invariants
1. The same file gives the same answer on every machine: no system table is read.
2. Every value is printable ASCII.
3. A mark counts only where it was put: tools that copy or rename an object take its metadata along.
   It says whose the object was when it was put; that its bytes are still ours is known only when
   their digest is that of the mark, for tools that edit in place keep metadata too.
4. What other people's metadata says is taken as a wish, never trusted: what makes no sense is
   left out, and no set-id bit comes in.

Called by transfer.
"""

from __future__ import annotations

import mimetypes
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import xxhash

from s3ws_fs.core.limits import TIME_NS_MAX, TIME_NS_MIN
from s3ws_fs.core.records import InodeRec

META_HASH: Final = "s3ws-xxh3"
META_GENERATION: Final = "s3ws-gen"
META_WORKSPACE: Final = "s3ws-ws"
META_PATH: Final = "s3ws-path"

PERMISSION_BITS: Final = 0o1777
"""What is taken over of a mode: not setuid and setgid."""
ID_MAX: Final = (1 << 32) - 2

_TIME: Final = re.compile(r"(-?[0-9]{1,12})(?:\.([0-9]{1,20}))?", re.ASCII)

GENERATION_MAX: Final = (1 << 64) - 1

DEFAULT_TYPE: Final = "application/octet-stream"
TEXT_TYPE: Final = "text/plain"

_OWN_TYPES: Final = {
    ".c": "text/x-c",
    ".cfg": TEXT_TYPE,
    ".cpp": "text/x-c++",
    ".css": "text/css",
    ".csv": "text/csv",
    ".go": "text/x-go",
    ".h": "text/x-c",
    ".html": "text/html",
    ".ini": TEXT_TYPE,
    ".ipynb": "application/x-ipynb+json",
    ".java": "text/x-java",
    ".js": "text/javascript",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".log": TEXT_TYPE,
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".parquet": "application/vnd.apache.parquet",
    ".py": "text/x-python",
    ".rs": "text/rust",
    ".rst": "text/x-rst",
    ".sh": "text/x-shellscript",
    ".sql": "application/sql",
    ".svg": "image/svg+xml",
    ".toml": "application/toml",
    ".ts": "text/x-typescript",
    ".tsx": "text/x-typescript",
    ".txt": TEXT_TYPE,
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".gz": "application/gzip",
    ".bz2": "application/x-bzip2",
    ".xz": "application/x-xz",
    ".zst": "application/zstd",
    ".zip": "application/zip",
    ".tar": "application/x-tar",
}
# files=() keeps /etc/mime.types and the Windows registry out: the standard library's table alone.
_TABLE: Final = mimetypes.MimeTypes(filenames=())
_TYPES: Final = {**_TABLE.types_map[True], **_OWN_TYPES}


def content_type(path: str) -> str:
    """Content type by the extension of the last name (lower case)."""
    name = path.rsplit("/", 1)[-1]
    dot = name.rfind(".")
    return _TYPES.get(name[dot:].lower(), DEFAULT_TYPE) if dot > 0 else DEFAULT_TYPE


def time_text(time_ns: int) -> str:
    """A time as s3fs-fuse writes it."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    return f"{seconds}.{rest_ns:09d}" if rest_ns else str(seconds)


def attr_metadata(rec: InodeRec) -> dict[str, str]:
    """The part of the metadata that shows attributes."""
    return {
        "mode": str(rec.mode),
        "uid": str(rec.uid),
        "gid": str(rec.gid),
        "mtime": time_text(rec.mtime_ns),
    }


def path_mark(path: str) -> str:
    """What an object at this mirror path says of its place."""
    return xxhash.xxh3_64_hexdigest(path.encode())


def object_metadata(
    rec: InodeRec, *, digest: bytes, generation: int, workspace: str, path: str
) -> dict[str, str]:
    """All user metadata of the object at a mirror path whose body has this xxh3-128."""
    return {
        **attr_metadata(rec),
        META_HASH: digest.hex(),
        META_GENERATION: str(generation),
        META_WORKSPACE: workspace,
        META_PATH: path_mark(path),
    }


def our_mark(metadata: Mapping[str, str], workspace: str, path: str) -> tuple[int, bytes] | None:
    """(generation, content hash) of an object that this workspace put at this mirror path.

    None for anybody else's, also for a copy of ours that somebody put there. Objects of versions
    that did not note the path count wherever they stand.
    """
    if metadata.get(META_PATH, place := path_mark(path)) != place:
        return None
    try:
        digest = bytes.fromhex(metadata[META_HASH])
        generation = int(metadata[META_GENERATION])
    except (KeyError, ValueError):
        return None
    if metadata.get(META_WORKSPACE) != workspace or len(digest) != 16:
        return None
    if not 0 <= generation <= GENERATION_MAX:
        return None
    return generation, digest


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an object that somebody else put says of its file; None: nothing that makes sense."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None


def wishes(metadata: Mapping[str, str]) -> Wishes:
    """Read s3fs-style metadata of an object that is not ours."""
    mode = _number(metadata.get("mode", ""), 0, 0o177777)
    if mode is not None:
        mode = stat.S_IFMT(mode) | (mode & PERMISSION_BITS)
    return Wishes(
        mode,
        _number(metadata.get("uid", ""), 0, ID_MAX),
        _number(metadata.get("gid", ""), 0, ID_MAX),
        _time_ns(metadata.get("mtime", "")),
    )


def _number(text: str, low: int, high: int) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        return None
    value = int(text)
    return value if low <= value <= high else None


def _time_ns(text: str) -> int | None:
    """The inverse of `time_text`; other tools write fewer digits."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    time_ns = int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0")[:9])
    return time_ns if TIME_NS_MIN <= time_ns <= TIME_NS_MAX else None


def is_mirrored_kind(rec: InodeRec) -> bool:
    """Whether this kind of inode has an object of its own in the mirror: all but directories."""
    return not rec.is_dir


def is_inline_kind(rec: InodeRec) -> bool:
    """Whether the object's body comes from the record alone (symlinks and special files)."""
    return not stat.S_ISREG(rec.mode)


def inline_body(rec: InodeRec) -> bytes:
    """Body of an object that needs no extents: a symlink's target, else nothing."""
    return rec.target if stat.S_ISLNK(rec.mode) else b""
