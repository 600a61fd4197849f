"""Restoring: the same tree again, a part of it, and never anything outside of the directory."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xxhash

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import acl
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot import archive, extract
from s3ws_fs.snapshot.extract import Restored, restore
from s3ws_fs.snapshot.reading import BackupReader, Entry, Index, Piece, open_backup
from s3ws_fs.store.scoped import ScopedStore
from tests.snapshot.backups import NAME, make
from tests.support import trees
from tests.support.caches import CRED
from tests.support.loading import load
from tests.transfer.conftest import write


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    directory.mkdir(exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def restored(
    reader: BackupReader, directory: Path, *paths: bytes, trusted: bool = False
) -> Restored:
    with opened(directory) as fd:
        return restore(reader, fd, list(paths), trusted=trusted)


def test_the_same_tree_again(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    rich = tmp_path / "rich"
    trees.build_rich_tree(rich)
    load(fs, rich)
    make(cache, store, tmp_path / "spool")
    done = restored(open_backup(store, NAME), tmp_path / "out", trusted=True)
    assert done.failed == {}
    before, after = trees.manifest(rich), trees.manifest(tmp_path / "out")
    for path in [path for path, node in before.items() if node.kind == "socket"]:
        del before[path]
    assert trees.differences(before, after, ignore=("holes",)) == []
    assert done.entries == len(after)


def test_without_trust_nothing_comes_with_rights(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    rich = tmp_path / "rich"
    trees.build_rich_tree(rich)
    load(fs, rich)
    make(cache, store, tmp_path / "spool")
    done = restored(open_backup(store, NAME), tmp_path / "out")
    for path, node in trees.manifest(tmp_path / "out").items():
        assert not node.mode & 0o6000, path
        assert "device" not in node.kind
    devices = {path for path, n in trees.manifest(rich).items() if n.kind.endswith("device")}
    assert set(done.failed) == devices
    assert any("setuid" in note for note in done.notes.values())


def test_some_paths(cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path) -> None:
    rich = tmp_path / "rich"
    trees.build_rich_tree(rich)
    load(fs, rich)
    make(cache, store, tmp_path / "spool")
    reader = open_backup(store, NAME)
    restored(reader, tmp_path / "one", b"./modes/file 0644", b"links/a/")
    found = set(trees.manifest(tmp_path / "one"))
    assert found == {b".", b"modes", b"modes/file 0644", b"links", b"links/a"} | {
        b"links/a/first",
        b"links/a/second",
    }
    assert (tmp_path / "one/links/a/first").stat().st_nlink == 2
    # A link alone, whose first name was not asked for: its bytes come under its own name.
    done = restored(reader, tmp_path / "two", b"links/b/third", b"links/a/second")
    assert done.failed == {}
    assert (tmp_path / "two/links/b/third").read_text() == "one inode, three names\n"
    assert (tmp_path / "two/links/b/third").samefile(tmp_path / "two/links/a/second")
    assert not (tmp_path / "two/links/a/first").exists()
    with pytest.raises(UserError) as caught:
        restored(reader, tmp_path / "three", b"modes", b"no/such")
    assert caught.value.exit_code == ExitCode.BAD_SETTINGS
    assert list((tmp_path / "three").iterdir()) == []


def test_holes_and_lists(cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path) -> None:
    ino = write(fs, b"sparse", b"a" * 40_001)
    fs.write(ino, 1 << 30, b"b" * 40_001)
    fs.setattr(ino, size=1 << 31)
    listed = acl.encode(
        (
            acl.Entry(acl.USER_OBJ, 6),
            acl.Entry(acl.USER, 4, 77),
            acl.Entry(acl.GROUP_OBJ, 4),
            acl.Entry(acl.MASK, 4),
            acl.Entry(acl.OTHER, 0),
        )
    )
    fs.setxattr(write(fs, b"listed", b""), acl.ACCESS, listed)
    make(cache, store, tmp_path / "spool")
    done = restored(open_backup(store, NAME), tmp_path / "out")
    assert done.failed == {}
    with (tmp_path / "out/sparse").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == 1 << 31
        assert os.fstat(file.fileno()).st_blocks * 512 < 1 << 20
        assert os.pread(file.fileno(), 40_003, (1 << 30) - 1) == b"\0" + b"b" * 40_001 + b"\0"
    assert done.data_bytes < 1 << 20
    try:
        assert os.getxattr(tmp_path / "out/listed", acl.ACCESS) == listed
    except OSError:
        assert b"listed" in done.notes


def test_what_stands_there_stays(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    write(fs, b"file", b"from the backup")
    write(fs, b"other", b"from the backup")
    fs.mkdir(ROOT_INO, b"dir", 0o755, CRED)
    make(cache, store, tmp_path / "spool")
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("mine")
    (out / "dir").write_text("mine too")
    done = restored(open_backup(store, NAME), out)
    assert (out / "file").read_text() == "mine"
    assert (out / "dir").read_text() == "mine too"
    assert (out / "other").read_text() == "from the backup"
    assert set(done.failed) == {b"file", b"dir"}


# --- what an attacker would write


def crafted(members: list[tuple[tarfile.TarInfo, bytes]]) -> BackupReader:
    """A backup of an archive with exactly these members, its index in order."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    tar_bytes = raw.getvalue()
    packed = archive.compress(tar_bytes)
    piece = Piece(0, len(tar_bytes), 0, len(packed), xxhash.xxh3_128_hexdigest(packed))
    entry = Entry(b"", "dir", 0o755, 0, 0, 0, 0, len(tar_bytes))
    index = Index({}, [entry], [piece], len(packed), len(tar_bytes))
    return BackupReader(NAME, index, lambda offset, length: packed[offset : offset + length])


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    info.mode = 0o4755
    return info


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        ([(member("../evil"), b"x")], b"../evil"),
        ([(member("/evil"), b"x")], b"/evil"),
        ([(member("a/../../evil"), b"x")], b"a/../../evil"),
        ([(member("a//evil"), b"x")], b"a//evil"),
        ([(member("..", tarfile.DIRTYPE), b"")], b".."),
        ([(member("s", tarfile.SYMTYPE, "../outside"), b""), (member("s/evil"), b"x")], b"s/evil"),
        ([(member("s", tarfile.SYMTYPE, ".."), b""), (member("s", tarfile.DIRTYPE), b"")], b"s"),
        ([(member("h", tarfile.LNKTYPE, "../outside/secret"), b"")], b"h"),
        ([(member("h", tarfile.LNKTYPE, "/etc/passwd"), b"")], b"h"),
        (
            [
                (member("s", tarfile.SYMTYPE, "../outside"), b""),
                (member("h", tarfile.LNKTYPE, "s/secret"), b""),
            ],
            b"h",
        ),
        ([(member("d", tarfile.CHRTYPE), b"")], b"d"),
        ([(member("f", tarfile.SYMTYPE, "../outside/secret"), b""), (member("f"), b"x")], b"f"),
    ],
)
def test_nothing_outside_is_touched(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], refused: bytes
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    before = trees.manifest(outside)
    out = tmp_path / "out"
    done = restored(crafted([*members, (member("good"), b"good")]), out)
    assert refused in done.failed
    assert (out / "good").read_text() == "good"
    assert stat.S_IMODE((out / "good").stat().st_mode) == 0o755
    assert trees.manifest(outside) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "outside"]
    found = [path for path in out.iterdir() if path.is_file() and not path.is_symlink()]
    assert all(path.read_text() != "secret" for path in found)


def test_a_directory_swapped_for_a_symlink_gets_no_attributes_through_it(tmp_path: Path) -> None:
    """The last step goes back to directories: not by way of what stands there then."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    info = member("d", tarfile.DIRTYPE)
    info.mode = 0o777
    out = tmp_path / "out"
    with opened(out) as fd:
        selection = extract.Selection([], {}, is_all=True)
        writer = extract._Writer(fd, selection, trusted=False)
        with tarfile.open(fileobj=io.BytesIO(), mode="w") as tar:
            writer.add(tar, info)
        (out / "d").rmdir()
        (out / "d").symlink_to("../outside")
        writer.finish()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700
    assert b"d" in writer.report.notes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mtime", "9" * 30),
        ("mtime", "x"),
        ("uid", "9" * 30),
        ("SCHILY.acl.access", "user::rw-"),
        ("SCHILY.acl.access", "owner::rw-"),
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, key: str, value: str) -> None:
    info = member("f")
    info.pax_headers = {key: value}
    done = restored(crafted([(info, b"x"), (member("good"), b"good")]), tmp_path / "out")
    assert set(done.failed) == {b"f"}
    assert (tmp_path / "out/good").read_text() == "good"


def test_what_is_no_tar_is_an_error(tmp_path: Path) -> None:
    raw = os.urandom(4096)
    packed = archive.compress(raw)
    piece = Piece(0, len(raw), 0, len(packed), xxhash.xxh3_128_hexdigest(packed))
    index = Index({}, [], [piece], len(packed), len(raw))
    reader = BackupReader(NAME, index, lambda offset, length: packed[offset : offset + length])
    with pytest.raises(FormatError, match="no tar"):
        restored(reader, tmp_path / "out")


def test_a_sparse_map_that_is_none(tmp_path: Path) -> None:
    """Found by fuzzing: tarfile then raises ValueError, and no error of its own."""
    info = member("f")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f"}
    with pytest.raises(FormatError, match="no tar"):
        restored(crafted([(info, bytes(512))]), tmp_path / "out")


def test_so_many_failures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "FAILED_MAX", 2)
    done = restored(crafted([(member(f"../{n}"), b"x") for n in range(5)]), tmp_path / "out")
    assert len(done.failed) == 2
    assert done.entries == 0


def test_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "DEPTH_MAX", 3)
    done = restored(crafted([(member("a/b/c/d"), b""), (member("a/b/c/d/e"), b"")]), tmp_path / "o")
    assert set(done.failed) == {b"a/b/c/d/e"}
