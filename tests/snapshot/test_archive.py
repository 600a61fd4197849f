"""Archives: GNU tar alone gives the tree back, and the index says where everything stands."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import acl
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot import archive
from s3ws_fs.snapshot.tree import take
from s3ws_fs.store.scoped import ScopedStore
from tests.support import trees
from tests.support.caches import CRED
from tests.support.loading import load
from tests.transfer.conftest import write

LIMIT_BYTES = 1 << 30


def no_store() -> ScopedStore:
    raise AssertionError("nothing is cold")


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("rich") / "tree"
    trees.build_rich_tree(top)
    yield top


def archived(
    cache: Cache, directory: Path, pool: ThreadPoolExecutor
) -> tuple[Path, list[dict[str, Any]], archive.Written]:
    """The archive of the cache as it is, and the lines of its index."""
    place = directory / "backup.tar.gz"
    with (
        take(cache, cache.spool_dir, no_store, limit_bytes=LIMIT_BYTES) as tree,
        place.open("w+b") as out,
        (directory / "index").open("w+b") as index,
    ):
        written = archive.write(tree, {"name": "backup"}, out, index, pool)
    with gzip.open(directory / "index") as lines:
        return place, [json.loads(line) for line in lines], written


def extract(place: Path, into: Path, *options: str, locale: str = "C.UTF-8") -> str:
    """What GNU tar alone makes of it; returns what it said."""
    into.mkdir()
    done = subprocess.run(
        ["tar", *options, "-xzf", place, "-C", into],
        env={**os.environ, "LC_ALL": locale},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, said
    return said


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_gnu_tar_gives_the_tree_back(
    cache: Cache, fs: FileSystem, rich: Path, tmp_path: Path, pool: ThreadPoolExecutor, locale: str
) -> None:
    load(fs, rich)
    place, _, written = archived(cache, tmp_path, pool)
    into = tmp_path / "out"
    extract(place, into, "--xattrs", "--xattrs-include=*", "--acls", locale=locale)
    before, after = trees.manifest(rich), trees.manifest(into)
    sockets = {path for path, node in before.items() if node.kind == "socket"}
    assert set(written.skipped) == sockets
    for path in sockets:
        del before[path]
    assert trees.differences(before, after, ignore=("holes",)) == []
    assert len(after) > 100


def test_holes_come_back_as_holes(
    cache: Cache, fs: FileSystem, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    ends = {}
    for name, writes, size in (
        (b"middle", [(0, b"a" * 70_000), (1 << 30, b"b" * 5)], 0),
        (b"end", [(0, b"a")], 1 << 30),
        (b"all", [], 1 << 30),
        (b"start", [(5 << 20, b"x" * 600)], 0),
        (b"small hole", [(0, b"a"), (20_000, b"b")], 0),
        (b"\xffodd" + b"n" * 200, [(1 << 25, b"c")], 0),
    ):
        ino = write(fs, name, b"")
        for offset, data in writes:
            fs.write(ino, offset, data)
        if size:
            fs.setattr(ino, size=size)
        ends[name] = (fs.getattr(ino).size, writes)
    place, _, written = archived(cache, tmp_path, pool)
    assert written.archive_bytes < 100_000
    extract(place, tmp_path / "out")
    for name, (size, writes) in ends.items():
        with open(os.path.join(os.fsencode(tmp_path / "out"), name), "rb") as file:
            assert os.fstat(file.fileno()).st_size == size
            assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 20
            for offset, data in writes:
                assert os.pread(file.fileno(), len(data), offset) == data
            assert sum(map(len, [d for _, d in writes])) == sum(
                1 for byte in os.pread(file.fileno(), 1 << 20, 0) if byte
            ) + sum(len(data) for offset, data in writes if offset >= 1 << 20)


def test_access_control_lists(
    cache: Cache, fs: FileSystem, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    entries = (
        acl.Entry(acl.USER_OBJ, 6),
        acl.Entry(acl.USER, 4, 1234),
        acl.Entry(acl.GROUP_OBJ, 4),
        acl.Entry(acl.GROUP, 6, 5678),
        acl.Entry(acl.MASK, 6),
        acl.Entry(acl.OTHER, 0),
    )
    made = fs.mkdir(ROOT_INO, b"dir", 0o755, CRED).ino
    for name in acl.NAMES:
        fs.setxattr(made, name, acl.encode(entries))
    place, _, _ = archived(cache, tmp_path, pool)
    probe = tmp_path / "probe"
    probe.mkdir()
    try:
        os.setxattr(probe, "system.posix_acl_access", acl.encode(entries))
    except OSError as exc:
        pytest.skip(f"no access control lists on {tmp_path}: {exc.strerror}")
    said = extract(place, tmp_path / "out", "--acls")
    if "POSIX ACL support is not available" in said:
        pytest.skip("this tar was built without access control lists")
    for name in acl.NAMES:
        found = os.getxattr(tmp_path / "out" / "dir", name)
        assert acl.decode(found) == entries


def test_the_index_says_where_everything_stands(
    cache: Cache, fs: FileSystem, rich: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    load(fs, rich)
    place, lines, written = archived(cache, tmp_path, pool)
    head, *middle, end = lines
    assert head == {"format": archive.INDEX_FORMAT, "name": "backup"}
    assert end["end"] is True
    assert end["archive_bytes"] == place.stat().st_size == written.archive_bytes
    pieces = [line for line in middle if "piece" in line]
    entries = [line for line in middle if "path" in line]
    assert len(entries) == end["entries"] == written.entries
    packed = place.read_bytes()
    raw = b""
    for piece in pieces:
        part = packed[piece["at"] : piece["at"] + piece["bytes"]]
        assert xxhash.xxh3_128_hexdigest(part) == piece["xxh3"]
        assert len(raw) == piece["piece"]
        raw += gzip.decompress(part)
        assert len(raw) == piece["piece"] + piece["raw_bytes"]
    assert len(raw) == end["tar_bytes"]
    assert raw == gzip.decompress(packed)
    for entry in entries:
        cut = raw[entry["at"] : entry["at"] + entry["bytes"]]
        with tarfile.open(fileobj=io.BytesIO(cut + bytes(1024)), encoding="utf-8") as one:
            found = one.next()
        assert found is not None
        assert found.name == (entry["path"] or ".")
        if entry["type"] == "file":
            assert found.size == entry["size"]
    with gzip.open(tmp_path / "index") as file:
        *before, last = file
    assert json.loads(last)["digest"] == xxhash.xxh3_128_hexdigest(b"".join(before))


def test_many_members_and_bounded_memory(
    cache: Cache, fs: FileSystem, tmp_path: Path, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(archive, "MEMBER_BYTES", 4096)
    waiting: list[int] = []
    original = archive._Members._write

    def counted(self: archive._Members) -> None:
        waiting.append(len(self._waiting))
        original(self)

    monkeypatch.setattr(archive._Members, "_write", counted)
    for number in range(40):
        write(fs, b"f%d" % number, os.urandom(1000 + 400 * number))
    place, lines, _ = archived(cache, tmp_path, pool)
    pieces = [line for line in lines if "piece" in line]
    assert len(pieces) > 40
    assert max(waiting) == archive.MEMBERS_AHEAD + 1
    extract(place, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 40


def test_the_same_tree_gives_the_same_bytes(
    cache: Cache, fs: FileSystem, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    write(fs, b"a", b"data" * 100_000)
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, lines, _ = archived(cache, tmp_path / "1", pool)
    two, again, _ = archived(cache, tmp_path / "2", pool)
    assert one.read_bytes() == two.read_bytes()
    assert lines == again
