"""Reading by index: only the pieces that are needed, only verified bytes, nothing beyond limits."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import backups
from s3ws_fs.core.errors import ExitCode, FormatError, NotFoundError, UserError
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot import archive, reading
from s3ws_fs.snapshot.reading import list_backups, open_backup, open_local, parse_index
from s3ws_fs.store.scoped import ScopedStore
from tests.snapshot.backups import NAME, make
from tests.transfer.conftest import write

Lines = list[dict[str, Any]]


def lines_of(store: ScopedStore) -> Lines:
    packed = store.get(backups.index_key(NAME)).data
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


def packed_index(lines: Lines, digest: str | None = None) -> bytes:
    """An index of these lines, with a digest that is right, or the one given."""
    *before, end = lines
    raw = b"".join(json.dumps(line).encode() + b"\n" for line in before)
    end = end | {"digest": xxhash.xxh3_128_hexdigest(raw) if digest is None else digest}
    return gzip.compress(raw + json.dumps(end).encode() + b"\n")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MEMBER_BYTES", 8192)


def test_one_file_costs_one_get(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path, small_pieces: None
) -> None:
    for number in range(200):
        write(fs, b"f%03d" % number, os.urandom(3000))
    make(cache, store, tmp_path / "spool")
    reader = open_backup(store, NAME)
    assert len(reader.index.pieces) > 50
    entry = next(entry for entry in reader.index.entries if entry.path == b"f100")
    before = store.counters.by_op()["get"]
    raw = b"".join(reader.raw([(entry.at, entry.length)]))
    assert len(raw) == entry.length
    assert store.counters.by_op()["get"] == before + 1


def test_ranges_are_joined_and_gets_are_bounded(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path, small_pieces: None,
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for number in range(50):
        write(fs, b"f%03d" % number, os.urandom(5000))
    make(cache, store, tmp_path / "spool")
    whole = gzip.decompress(store.get(backups.archive_key(NAME)).data)
    reader = open_backup(store, NAME)
    ranges = [(entry.at, entry.length) for entry in reader.index.entries[5:20]]
    expected = whole[ranges[0][0] : sum(ranges[-1])]
    monkeypatch.setattr(reading, "FETCH_BYTES_MAX", 30_000)
    asked: list[int] = []
    read_at = reader._read_at

    def counted(offset: int, length: int) -> bytes:
        asked.append(length)
        return read_at(offset, length)

    reader._read_at = counted
    assert b"".join(reader.raw(ranges, pool)) == expected
    assert max(asked) <= 30_000
    assert 2 <= len(asked) <= 6
    assert b"".join(reader.raw([(0, len(whole))])) == whole
    assert b"".join(reader.raw([(700, 0), (0, 10), (10, 3), (50, 1)])) == whole[:13] + whole[50:51]


def test_damaged_bytes_never_come_out(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    write(fs, b"file", os.urandom(50_000))
    make(cache, store, tmp_path / "spool")
    key = backups.archive_key(NAME)
    data = bytearray(store.get(key).data)
    data[20_000] ^= 1
    store.put(key, data)
    reader = open_backup(store, NAME)
    with pytest.raises(FormatError, match="compressed/backup-"):
        list(reader.raw([(0, reader.index.tar_bytes)]))


def test_bytes_spoilt_on_the_way_are_read_again(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    write(fs, b"file", os.urandom(50_000))
    make(cache, store, tmp_path / "spool")
    reader = open_backup(store, NAME)
    read_at, spoilt = reader._read_at, [True]

    def once(offset: int, length: int) -> bytes:
        data = read_at(offset, length)
        return bytes(len(data)) if spoilt.pop() else data

    spoilt.insert(0, False)
    reader._read_at = once
    assert len(b"".join(reader.raw([(0, 1000)]))) == 1000


def test_a_piece_never_unpacks_to_more_than_its_index_says(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    write(fs, b"file", b"x")
    make(cache, store, tmp_path / "spool")
    lines = lines_of(store)
    bomb = archive.compress(bytes(1 << 26))
    (piece,) = (line for line in lines if "piece" in line)
    piece |= {"bytes": len(bomb), "xxh3": xxhash.xxh3_128_hexdigest(bomb)}
    lines[-1]["archive_bytes"] = len(bomb)
    store.put(backups.archive_key(NAME), bomb)
    store.put(backups.index_key(NAME), packed_index(lines))
    reader = open_backup(store, NAME)
    with pytest.raises(FormatError, match="not as long"):
        list(reader.raw([(0, 10)]))


def _drop_last_piece(lines: Lines) -> None:
    del lines[next(at for at, line in enumerate(lines) if "piece" in line)]


def _set(name: str, value: object, which: str = "path") -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        next(line for line in lines if which in line and line.get("path") != "")[name] = value

    return change


@pytest.mark.parametrize(
    "damage",
    [
        _drop_last_piece,
        lambda lines: lines.pop(),
        lambda lines: lines.pop(1),
        lambda lines: lines.insert(0, {"format": 2}),
        lambda lines: lines.append(lines[-1]),
        lambda lines: lines.clear(),
        _set("at", 5),
        _set("bytes", 1 << 40),
        _set("bytes", -1),
        _set("mode", "0644"),
        _set("type", "door"),
        _set("type", ["file"]),
        _set("path", 5),
        _set("path", "\ud800"),
        _set("xxh3", None, "piece"),
        _set("at", 1.5, "piece"),
        _set("entries", 1, "end"),
        _set("archive_bytes", 3, "end"),
    ],
)
def test_a_damaged_index_is_refused(
    cache: Cache,
    fs: FileSystem,
    store: ScopedStore,
    tmp_path: Path,
    damage: Callable[[Lines], object],
) -> None:
    write(fs, b"file", b"x" * 100)
    make(cache, store, tmp_path / "spool")
    lines = lines_of(store)
    assert parse_index(packed_index(lines), "index").entries[1].path == b"file"
    damage(lines)
    packed = packed_index(lines) if lines else gzip.compress(b"")
    with pytest.raises(FormatError):
        parse_index(packed, "index")


def test_an_index_that_is_cut_off_or_changed_is_refused(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    write(fs, b"file", b"x" * 100)
    make(cache, store, tmp_path / "spool")
    packed = store.get(backups.index_key(NAME)).data
    for cut in (0, 5, len(packed) // 2, len(packed) - 1):
        with pytest.raises(FormatError):
            parse_index(packed[:cut], "index")
    with pytest.raises(FormatError, match="digest"):
        parse_index(packed_index(lines_of(store), "0" * 32), "index")
    with pytest.raises(FormatError):
        parse_index(b"not gzip at all", "index")


def test_the_limits_of_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(b'{"format":1}\n{"x":1}\n')
    for name, limit in (("LINE_BYTES_MAX", 10), ("INDEX_BYTES_MAX", 15)):
        with monkeypatch.context() as patch:
            patch.setattr(reading, name, limit)
            with pytest.raises(FormatError, match="longer than"):
                parse_index(packed, "index")
    with pytest.raises(FormatError, match="no end"):
        parse_index(packed, "index")


def test_listing(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    write(fs, b"file", b"x")
    assert list_backups(store) == []
    names = [f"backup-2026013{n}T120000Z" for n in (0, 1)]
    for name in names:
        make(cache, store, tmp_path / "spool", name)
    store.put(backups.archive_key("backup-20260101T000000Z"), b"no index")
    store.put("compressed/notes.txt", b"mine")
    found = list_backups(store, pool)
    assert [(b.name, b.good) for b in found] == [
        (names[1], True),
        (names[0], True),
        ("backup-20260101T000000Z", False),
    ]
    assert found[0].to_json()["entries"] == 2
    with pytest.raises(UserError) as caught:
        open_backup(store, "backup-20260101T000000Z")
    assert caught.value.exit_code == ExitCode.DAMAGED


def test_a_backup_in_a_directory(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    write(fs, b"file", b"x" * 100_000)
    make(cache, store, tmp_path / "spool")
    place = tmp_path / f"{NAME}.tar.gz"
    place.write_bytes(store.get(backups.archive_key(NAME)).data)
    with pytest.raises(UserError, match="index"):
        open_local(place)
    beside = tmp_path / f"{NAME}.index.jsonl.gz"
    beside.write_bytes(store.get(backups.index_key(NAME)).data)
    reader = open_local(place)
    assert reader.name == NAME
    total = reader.index.tar_bytes
    assert len(b"".join(reader.raw([(0, total)]))) == total


def test_an_archive_that_is_gone_is_not_found(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    write(fs, b"file", b"x")
    make(cache, store, tmp_path / "spool")
    reader = open_backup(store, NAME)
    store.delete(backups.archive_key(NAME))
    with pytest.raises(NotFoundError):
        list(reader.raw([(0, 1)]))
