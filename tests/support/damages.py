"""One damage for each thing that the records' check can find: its negative controls.

Called by the tests of cache.verify and cache.repair.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.cache.view import META_HEAD
from s3ws_fs.core import keys
from s3ws_fs.core.limits import EXTENT_BYTES, XATTR_VALUE_BYTES_MAX
from s3ws_fs.core.records import (
    decode_head,
    decode_inode,
    decode_location,
    decode_mirror,
    encode_dirty,
    encode_location,
)
from s3ws_fs.core.types import ROOT_INO
from tests.support import caches

Damage = Callable[[TableSet, dict[str, int]], None]


def change(tables: TableSet, ino: int, /, **values: object) -> None:
    key = keys.pack_u64(ino)
    rec = decode_inode(ino, tables.inodes[key])
    tables.inodes[key] = replace(rec, **values).encode()  # type: ignore[arg-type]


def inode(who: str, /, **values: object) -> Damage:
    return lambda tables, inos: change(tables, inos[who], **values)


def by(name: str, delta: int, field: str) -> Damage:
    def run(tables: TableSet, inos: dict[str, int]) -> None:
        rec = decode_inode(inos[name], tables.inodes[keys.pack_u64(inos[name])])
        change(tables, inos[name], **{field: getattr(rec, field) + delta})

    return run


def head(delta: int, field: str) -> Damage:
    def run(tables: TableSet, _: dict[str, int]) -> None:
        value = decode_head(tables.meta[META_HEAD])
        setattr(value, field, getattr(value, field) + delta)
        tables.meta[META_HEAD] = value.encode()

    return run


def put(table: str, key: bytes, value: bytes = b"") -> Damage:
    return lambda tables, _: getattr(tables, table).update({key: value})


def drop(table: str, key: Callable[[dict[str, int]], bytes]) -> Damage:
    return lambda tables, inos: getattr(tables, table).pop(key(inos))


def locate(name: str, index: int, **values: object) -> Damage:
    def run(tables: TableSet, inos: dict[str, int]) -> None:
        key = keys.chunk_key(inos[name], index)
        loc = replace(decode_location(tables.chunks[key]), **values)  # type: ignore[arg-type]
        tables.chunks[key] = encode_location(loc)

    return run


def row(**values: object) -> Damage:
    """Alter the mirror's row of "symlink", in place."""

    def run(tables: TableSet, inos: dict[str, int]) -> None:
        key = keys.mirror_key(b"symlink")
        raw = replace(decode_mirror(tables.mirror[key]), **values)  # type: ignore[arg-type]
        tables.mirror[key] = raw.encode()

    return run


def swap_parents(tables: TableSet, inos: dict[str, int]) -> None:
    """dir and dir/sub below each other: names and counts all right, but no way to the root."""
    del tables.dentries[keys.dentry_key(ROOT_INO, b"dir")]
    tables.dentries[keys.dentry_key(inos["sub"], b"dir")] = keys.pack_u64(inos["dir"])
    change(tables, inos["dir"], parent=inos["sub"])
    by("sub", 1, "nlink")(tables, inos)
    change(tables, ROOT_INO, nlink=2)


def unship(tables: TableSet, inos: dict[str, int]) -> None:
    key = keys.chunk_key(inos["dirty"], 0)
    del tables.dirty[keys.dirty_key(keys.T_CHUNKS, key)]


def rehash(tables: TableSet, inos: dict[str, int]) -> None:
    ino = tables.dentries.pop(keys.dentry_key(ROOT_INO, b"symlink"))
    tables.dentries[keys.pack_u64(ROOT_INO) + keys.pack_u64(77) + b"symlink"] = ino


def rename_badly(tables: TableSet, inos: dict[str, int]) -> None:
    ino = tables.dentries.pop(keys.dentry_key(ROOT_INO, b"symlink"))
    tables.dentries[keys.dentry_key(ROOT_INO, b"sym/link")] = ino
    change(tables, inos["symlink"], name=b"sym/link")


def move_into_a_file(tables: TableSet, inos: dict[str, int]) -> None:
    ino = tables.dentries.pop(keys.dentry_key(ROOT_INO, b"fifo"))
    tables.dentries[keys.dentry_key(inos["symlink"], b"fifo")] = ino
    change(tables, inos["fifo"], parent=inos["symlink"])


def stale_row(tables: TableSet, inos: dict[str, int]) -> None:
    raw = decode_mirror(tables.mirror[keys.mirror_key(b"symlink")])
    other = replace(raw, path=b"gone")
    tables.mirror[keys.mirror_key(b"gone")] = other.encode()
    tables.mirrori[keys.pack_u64(raw.ino) + keys.mirror_key(b"gone")] = b""


def long_attribute(tables: TableSet, inos: dict[str, int]) -> None:
    tables.xattrs[keys.xattr_key(inos["dir"], b"user.x")] = bytes(XATTR_VALUE_BYTES_MAX + 1)


def index_key(inos: dict[str, int]) -> bytes:
    return keys.pack_u64(inos["symlink"]) + keys.mirror_key(b"symlink")


SINGLE: list[tuple[str, str, Damage]] = [
    ("head", "lost", drop("meta", lambda _: META_HEAD)),
    ("head", "short", put("meta", META_HEAD, b"short")),
    ("next-ino", "head", head(-1, "next_ino")),
    ("used-bytes", "head", head(4096, "used_bytes")),
    ("inode-count", "head", head(1, "inodes")),
    ("data-gen", "inode", inode("plain", data_gen=1 << 40)),
    ("record", "inode", lambda t, i: t.inodes.update({keys.pack_u64(i["plain"]): b"x"})),
    ("record", "inode key", put("inodes", b"key")),
    ("record", "dentry", put("dentries", b"key")),
    ("record", "link", put("links", b"key")),
    ("record", "orphan", put("orphans", b"key")),
    ("record", "chunk key", put("chunks", b"key")),
    ("record", "chunk", lambda t, i: t.chunks.update({keys.chunk_key(i["big"], 0): b"x"})),
    ("record", "xattr", put("xattrs", b"key")),
    ("record", "dirty", put("dirty", b"\1" + keys.pack_u64(1), b"x")),
    ("record", "mtodo", put("mtodo", b"key")),
    ("record", "mirror", put("mirror", b"key", b"x")),
    ("record", "mirrori", put("mirrori", b"key")),
    ("root", "lost", drop("inodes", lambda _: keys.pack_u64(ROOT_INO))),
    ("root", "file", lambda t, _: change(t, ROOT_INO, mode=stat.S_IFREG | 0o644)),
    ("inode-type", "none", inode("plain", mode=0o644)),
    ("inode-type", "beyond", inode("plain", mode=stat.S_IFREG | 1 << 20)),
    ("inode-size", "symlink", inode("symlink", size=3)),
    ("inode-size", "fifo", inode("fifo", size=3)),
    ("inode-size", "target", inode("fifo", target=b"x")),
    ("inode-size", "huge", inode("plain", size=1 << 60)),
    ("alloc", "sealed", by("sparse", 4096, "alloc")),
    ("name", "slash", rename_badly),
    ("dentry-hash", "wrong", rehash),
    ("dentry-target", "lost inode", drop("inodes", lambda i: keys.pack_u64(i["deep"]))),
    ("dentry-parent", "symlink", move_into_a_file),
    ("dentry-parent", "lost directory", drop("inodes", lambda i: keys.pack_u64(i["sub"]))),
    ("link", "renamed", inode("symlink", name=b"else")),
    ("link", "moved", inode("symlink", parent=1 << 20)),
    ("link", "orphan with a name", inode("orphan", name=b"x")),
    ("link", "of several", inode("linked", parent=1, name=b"linked")),
    ("link", "row lost", drop("links", lambda i: keys.link_key(i["linked"], 1, b"linked"))),
    ("link", "row of one", put("links", keys.link_key(1, 1, b"x"))),
    ("nlink", "file", by("linked", 1, "nlink")),
    ("nlink", "directory", by("dir", 1, "nlink")),
    ("nlink", "root", lambda t, _: change(t, ROOT_INO, nlink=7)),
    ("unreachable", "no entry", drop("dentries", lambda _: keys.dentry_key(1, b"fifo"))),
    ("cycle", "two directories", swap_parents),
    ("orphan", "lost", drop("orphans", lambda i: keys.pack_u64(i["orphan"]))),
    ("orphan", "of a file", lambda t, i: t.orphans.update({keys.pack_u64(i["deep"]): b""})),
    ("orphan", "of nothing", put("orphans", keys.pack_u64(99))),
    ("extent-owner", "of nothing", put("chunks", keys.chunk_key(99, 0), bytes(36))),
    ("extent-owner", "of a directory", lambda t, i: t.extents.add(keys.chunk_key(i["dir"], 0))),
    ("extent-end", "empty", locate("big", 0, length=0)),
    ("extent-end", "long", locate("big", 0, length=EXTENT_BYTES + 1)),
    ("extent-end", "beyond", inode("deep", size=9)),
    ("extent-unshipped", "no mark", unship),
    ("location", "self", locate("big", 0, object_id=0)),
    ("location", "future", locate("big", 0, object_id=caches.SEALED + 2)),
    ("xattr", "of nothing", put("xattrs", keys.xattr_key(99, b"user.x"), b"")),
    ("xattr", "long", long_attribute),
    ("dirty", "table", put("dirty", b"\x09" + bytes(8), encode_dirty(1, 1))),
    ("dirty", "key", put("dirty", b"\x01" + bytes(3), encode_dirty(1, 1))),
    ("dirty", "generation", put("dirty", b"\x01" + keys.pack_u64(1), encode_dirty(1 << 40, 1))),
    ("dirty", "unknown inode", put("dirty", b"\x01" + bytes([9] * 8), encode_dirty(1, 1))),
    ("dirty", "of a dropped inode", put("dirty", b"\x03" + bytes(12), encode_dirty(1, 1))),
    ("mtodo", "inode", put("mtodo", keys.pack_u64(1 << 40), keys.pack_u64(1))),
    ("mtodo", "generation", put("mtodo", keys.pack_u64(1), keys.pack_u64(1 << 40))),
    ("mirror-row", "key", row(path=b"elsewhere")),
    ("mirror-row", "etag", row(etag="")),
    ("mirror-row", "inode", row(ino=1 << 40)),
    ("mirror-row", "generation", row(generation=1 << 40)),
    ("mirror-index", "lost", drop("mirrori", index_key)),
    ("mirror-index", "of nothing", put("mirrori", bytes(24))),
    ("mirror-lacking", "row lost", drop("mirror", lambda _: keys.mirror_key(b"symlink"))),
    ("mirror-lacking", "older", row(data_gen=0)),
    ("mirror-stale", "no file", stale_row),
    ("meta", "no JSON", put("meta", b"mirrored", b"{")),
    ("meta", "sealed", put("meta", b"sealed", b"[]")),
    ("meta", "mirrored", put("meta", b"mirrored", b'"x"')),
    ("position", "sealed", put("meta", b"sealed", b'{"number":3,"hash":"","generation":1000000}')),
    ("position", "mirrored", put("meta", b"mirrored", b"1000000")),
]  # fmt: skip
