"""Replay: what frames do to tables, and orphans."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import journal, keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import Frame
from s3ws_fs.core.records import InodeRec, decode_head
from s3ws_fs.transfer import replaying
from tests.core.test_journal import make_header

INO = keys.pack_u64(5)
OTHER = keys.pack_u64(6)
SELF = bytes(8)


def inode(ino: int, nlink: int, alloc: int = 0) -> bytes:
    mode = stat.S_IFREG | 0o644
    return InodeRec(ino, mode, 0, 0, nlink, 0, 0, alloc, 0, 0, 0, 0, 1, b"n", b"").encode()


def full(*inos: bytes) -> TableSet:
    tables = TableSet(is_local=False)
    for ino in inos:
        tables.inodes[ino] = inode(keys.unpack_u64(ino), 1)
        for rows in (tables.chunks, tables.xattrs, tables.links):
            rows[ino + b"0000" + b"00000000n"] = b"value"
    return tables


def test_a_place_in_this_segment_becomes_one_in_its_number() -> None:
    tables = TableSet()
    replaying.apply(tables, Frame(keys.T_CHUNKS, False, [b"a", b"b"], [SELF + b"x", OTHER]), 9)
    assert tables.chunks == {b"a": keys.pack_u64(9) + b"x", b"b": OTHER}


def test_an_inodes_tombstone_takes_what_hangs_on_it() -> None:
    tables = full(INO, OTHER)
    replaying.apply(tables, Frame(keys.T_INODES, True, [INO, keys.pack_u64(7)], []), 1)
    assert tables == full(OTHER)
    replaying.apply(tables, Frame(keys.T_XATTRS, True, list(tables.xattrs), []), 1)
    assert not tables.xattrs and tables.chunks == full(OTHER).chunks


def test_the_mirrors_to_do_is_no_table() -> None:
    tables = full(INO)
    replaying.apply(tables, Frame(journal.T_MTODO, False, [INO], [OTHER]), 1)
    assert tables == full(INO)


def test_orphans_go_and_are_not_counted() -> None:
    tables = full(INO, OTHER)
    tables.inodes[INO] = inode(5, 0, alloc=4096)
    replaying.finish(tables, replace(make_header(b"", b""), used_bytes=10_000, inodes=2))
    assert replaying.drop_orphans(tables) == 1
    assert tables.head is not None
    head = decode_head(tables.head)
    assert (head.used_bytes, head.inodes) == (5904, 1)
    tables.meta.clear()
    assert tables == full(OTHER)
    assert replaying.drop_orphans(tables) == 0
    tables.inodes[OTHER] = inode(6, 0)
    with pytest.raises(FormatError, match="head"):
        replaying.drop_orphans(tables)
