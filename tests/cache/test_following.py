"""A cache that follows: steps, counters, what stays warm, and what it is not for."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import check_cache
from s3ws_fs.cache.following import Applied, Sealed, apply_segment, drop_quietly, rebuild
from s3ws_fs.cache.repair import repair_cache
from s3ws_fs.core import keys
from s3ws_fs.core.errors import CacheError, FormatError
from s3ws_fs.core.journal import KIND_CHECKPOINT, KIND_SEGMENT, Frame, Header
from s3ws_fs.core.records import InodeRec, encode_location
from s3ws_fs.core.types import ROOT_INO, Location

BYTES = b"some bytes"
HERE = {"number": 1, "hash": "", "generation": 1}


def _rec(ino: int, nlink: int = 1, *, name: bytes = b"f", data_gen: int = 1) -> InodeRec:
    kind = stat.S_IFDIR if ino == ROOT_INO else stat.S_IFREG
    size = 0 if ino == ROOT_INO else len(BYTES)
    alloc = 4096 if size else 0
    parent = ROOT_INO if nlink else 0
    return InodeRec(
        ino, kind | 0o755, 0, 0, nlink, 0, size, alloc, 1, 1, 1, data_gen, parent,
        name if nlink else b"", b"",
    )  # fmt: skip


ROOT = _rec(ROOT_INO, 2, name=b"")


def _place(ino: int, data: bytes = BYTES, object_id: int = 0) -> tuple[bytes, bytes]:
    digest = xxhash.xxh3_128_digest(data)
    return keys.chunk_key(ino, 0), encode_location(Location(object_id, 2000, len(data), digest))


def _header(kind: str, number: int) -> Header:
    return Header(
        kind, "w", "x", "host", "f", number, number - 1, "", number, 100, 0, 0, 0, 1, 32768, 0, 0,
        "", 0, 0,
    )  # fmt: skip


def _puts(table: int, *items: tuple[bytes, bytes]) -> Frame:
    return Frame(table, False, [key for key, _ in items], [value for _, value in items])


def _file(ino: int, data: bytes = BYTES, *, data_gen: int = 1) -> list[Frame]:
    return [
        _puts(keys.T_INODES, (keys.pack_u64(ino), _rec(ino, data_gen=data_gen).encode())),
        _puts(keys.T_DENTRIES, (keys.dentry_key(ROOT_INO, b"f"), keys.pack_u64(ino))),
        _puts(keys.T_CHUNKS, _place(ino, data)),
    ]


def _root() -> Frame:
    return _puts(keys.T_INODES, (keys.pack_u64(ROOT_INO), ROOT.encode()))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with open_cache(
        tmp_path / "ws", Identity("p/", "s"), quota_bytes=1 << 24, now_ns=lambda: 5, boot_id="b"
    ) as opened:
        yield opened


Apply = Callable[..., Applied]


@pytest.fixture
def apply(cache: Cache) -> Apply:
    """`apply(frame, …, open=…)`: one segment."""
    number = 0

    def step(*frames: Frame, is_open: tuple[int, ...] = ()) -> Applied:
        nonlocal number
        number += 1
        sealed = Sealed(_header(KIND_SEGMENT, number), frames)
        position = {**HERE, "number": number}
        return apply_segment(cache, sealed, position, lambda ino: ino in is_open)

    return step


def _warm(cache: Cache, ino: int) -> bytes | None:
    with cache.read() as view:
        return view.extent(ino, 0)


def _fetch(cache: Cache, ino: int, data: bytes = BYTES) -> None:
    with cache.read() as view:
        location = view.chunk(ino, 0)
    assert location is not None
    assert cache.store_fetched([(ino, 0, location, data)]) == 1


def test_a_step_counts_and_carries_its_position(cache: Cache, apply: Apply) -> None:
    applied = apply(_root(), *_file(5))
    assert (cache.head.inodes, cache.head.used_bytes, cache.head.generation) == (2, 4096, 1)
    assert cache.get_json("sealed")["number"] == 1
    assert applied.cold == [keys.chunk_key(5, 0)]
    with cache.read() as view:
        assert view.chunk(5, 0) is not None
        assert view.chunk(5, 0).object_id == 1  # type: ignore[union-attr]
        assert view.dirty_count() == 0


def test_warm_bytes_stay_where_the_digest_is_the_same(cache: Cache, apply: Apply) -> None:
    apply(_root(), *_file(5))
    _fetch(cache, 5)
    moved = apply(_puts(keys.T_CHUNKS, _place(5, object_id=9)))
    assert (_warm(cache, 5), moved.cold) == (BYTES, [])
    changed = apply(*_file(5, b"other byte", data_gen=3))
    assert (_warm(cache, 5), changed.cold) == (None, [keys.chunk_key(5, 0)])
    assert (moved.rewritten, changed.rewritten) == ([], [5])


def test_what_went_is_gone_unless_it_is_open(cache: Cache, apply: Apply) -> None:
    apply(_root(), *_file(5))
    _fetch(cache, 5)
    gone = Frame(keys.T_INODES, True, [keys.pack_u64(5)], [])
    name = Frame(keys.T_DENTRIES, True, [keys.dentry_key(ROOT_INO, b"f")], [])
    assert apply(gone, name, is_open=(5,)).orphans == [5]
    assert _warm(cache, 5) == BYTES
    assert cache.head.inodes == 2
    drop_quietly(cache, [5])
    assert _warm(cache, 5) is None
    assert (cache.head.inodes, cache.head.used_bytes) == (1, 0)
    with cache.read() as view:
        assert (view.dirty_count(), view.inode(5)) == (0, None)


def test_an_orphan_of_the_writer_is_none_of_ours(cache: Cache, apply: Apply) -> None:
    apply(_root(), _puts(keys.T_INODES, (keys.pack_u64(7), _rec(7, 0).encode())))
    with cache.read() as view:
        assert view.inode(7) is None
    assert cache.head.inodes == 1


def test_a_step_that_fails_changed_nothing(cache: Cache, apply: Apply) -> None:
    apply(_root(), *_file(5))
    with pytest.raises(FormatError, match="no key of this table"):
        apply(*_file(6), _puts(keys.T_INODES, (b"short", _rec(8).encode())))
    assert cache.get_json("sealed")["number"] == 1
    assert cache.head.inodes == 2
    with cache.read() as view:
        assert view.inode(6) is None


def test_a_rebuild_keeps_warm_bytes_and_open_files(cache: Cache, apply: Apply) -> None:
    apply(_root(), *_file(5))
    _fetch(cache, 5)
    other = _puts(keys.T_INODES, (keys.pack_u64(6), _rec(6).encode()))
    apply(other, _puts(keys.T_CHUNKS, _place(6)))
    _fetch(cache, 6)
    objects = iter([Sealed(_header(KIND_CHECKPOINT, 9), [_root(), *_file(5)])])
    applied = rebuild(cache, objects, {**HERE, "number": 9}, ROOT, lambda ino: ino == 6)
    assert (_warm(cache, 5), _warm(cache, 6)) == (BYTES, BYTES)
    assert applied.orphans == [6]
    assert (cache.head.inodes, cache.head.used_bytes, cache.head.generation) == (3, 8192, 9)
    rebuild(cache, iter(()), HERE, ROOT, lambda _: False)
    assert cache.head.inodes == 1
    assert (_warm(cache, 5), _warm(cache, 6)) == (None, None)


def test_it_is_not_repaired(cache: Cache, apply: Apply) -> None:
    apply(_root(), *_file(5))
    cache.set_restore_complete()
    directory = cache.directory
    cache.close()
    checked = check_cache(directory, lambda _: None, boot_id="b")
    assert checked.report.ok
    with pytest.raises(CacheError, match="of a read-only mount"):
        repair_cache(directory, checked, lambda _: None, boot_id="b")
