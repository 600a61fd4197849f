"""The small value types that layers hand to each other.

Invariants
1. All are immutable. 2. Times are integer nanoseconds since the epoch; sizes are bytes.
3. `Attr.blocks512` counts 512-byte units really held, so that du is right for sparse files.

Called by every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from s3ws_fs.core.errors import FormatError

ROOT_INO: Final = 1

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

BLOB_BIT: Final = 1 << 63
"""Object ids with this bit name blobs (random low 63 bits); without it, segments by number."""

SELF_OBJECT: Final = 0
"""Object id in a segment's own chunk records: "this segment" (segment numbers start at 1)."""


class Attr(NamedTuple):
    """What stat(2) shows of an inode. `mode` includes the file type bits.

    A tuple, as one is made for every entry that is listed: it takes a third of a dataclass's time.
    """

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    blocks512: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Cred:
    """Who asks: effective uid and gid of the caller, and its umask."""

    uid: int
    gid: int
    umask: int = 0o022


@dataclass(frozen=True, slots=True)
class Location:
    """Where an extent's bytes stand in the bucket: `length` bytes at `offset` of an object.

    `digest` is the xxh3-128 (16 bytes, big endian) of exactly those bytes.
    """

    object_id: int
    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class NeedExtents:
    """Returned instead of a result: these extents (index, where) must be fetched first."""

    ino: int
    locations: tuple[tuple[int, Location], ...]


@dataclass(frozen=True, slots=True)
class Outdated:
    """What the kernel may have cached and a change that did not come through it made stale.

    `names`: (parent inode, name) of entries that appeared, went, or stand for another inode.
    `inodes`: those with other attributes or bytes, and the directories of these names.
    `attributes`: those of which only the attributes are others.
    """

    names: tuple[tuple[int, bytes], ...] = ()
    inodes: tuple[int, ...] = ()
    attributes: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; a character of a name is a byte. No attributes without pages."""
        names = [(parent, name.decode("latin-1")) for parent, name in self.names]
        return {"names": names, "inodes": (*self.inodes, *self.attributes)}

    @classmethod
    def from_json(cls, value: Any) -> Outdated:
        """The inverse. Raises FormatError."""
        try:
            names = tuple((int(ino), name.encode("latin-1")) for ino, name in value["names"])
            return cls(names, tuple(int(ino) for ino in value["inodes"]))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as exc:
            raise FormatError("note", f"not what the kernel has to forget ({exc!r})") from exc


class DirEntry(NamedTuple):
    """One entry of a directory. Passing `cookie` to readdir continues after this entry."""

    name: bytes
    cookie: int
    attr: Attr


@dataclass(frozen=True, slots=True)
class StatFs:
    """What statvfs(3) shows; blocks in units of `block_bytes`."""

    block_bytes: int
    blocks: int
    blocks_free: int
    files: int
    files_free: int
    name_max: int
