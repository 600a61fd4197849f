"""Opening, refusing, committing and the dirty set's bookkeeping."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache, Identity
from s3ws_fs.cache.ownership import IDENTITY_FILE
from s3ws_fs.core import keys
from s3ws_fs.core.errors import CacheError, ExitCode, FsError
from s3ws_fs.core.records import InodeRec, MirrorRow, encode_location
from s3ws_fs.core.types import Location

Opener = Callable[..., Cache]


def make_inode(ino: int = 2, name: bytes = b"f") -> InodeRec:
    return InodeRec(ino, stat.S_IFREG | 0o644, 1, 2, 1, 0, 0, 0, 3, 4, 5, 1, 1, name, b"")


def put(cache: Cache, rec: InodeRec, data: bytes | None = None) -> None:
    with cache.write() as tx:
        (tx.add_inode if tx.inode(rec.ino) is None else tx.put_inode)(rec)
        if data is not None:
            tx.put_extent(rec, 0, data, 0)


def dirty(cache: Cache) -> dict[tuple[int, bytes], tuple[int, int]]:
    with cache.read() as view:
        return {(table, key): (gen, first) for table, key, gen, first in view.dirty()}


def failing(number: int) -> Callable[[int], None]:
    """A system call on a descriptor that fails."""

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_one_change_is_one_generation(cache: Cache) -> None:
    before = cache.generation
    put(cache, make_inode())
    put(cache, make_inode())
    assert cache.generation == before + 2
    marks = dirty(cache)
    (generation, first_ns) = marks[keys.T_INODES, keys.pack_u64(2)]
    assert generation == before + 2
    put(cache, make_inode())
    assert dirty(cache)[keys.T_INODES, keys.pack_u64(2)] == (before + 3, first_ns)


def test_nothing_changed_uses_no_generation(cache: Cache) -> None:
    before = cache.generation
    with cache.write():
        pass
    assert cache.generation == before


def test_an_error_in_the_transaction_undoes_it(cache: Cache) -> None:
    before = cache.generation

    class BoomError(Exception):
        pass

    with pytest.raises(BoomError), cache.write() as tx:
        tx.put_inode(make_inode())
        raise BoomError
    with cache.read() as view:
        assert view.inode(2) is None
    assert cache.generation == before
    assert dirty(cache) == {}


def test_kept_over_a_close(opener: Opener) -> None:
    with opener() as cache:
        put(cache, make_inode())
        generation = cache.generation
    with opener() as cache:
        assert cache.recovery == "kept"
        assert cache.generation == generation
        with cache.read() as view:
            assert view.inode(2) == make_inode()


def test_another_workspace_is_refused_and_nothing_is_touched(
    opener: Opener, tmp_path: Path
) -> None:
    with opener() as cache:
        put(cache, make_inode())
    before = {p: p.read_bytes() for p in (tmp_path / "ws").rglob("*") if p.is_file()}
    other = Identity(prefix="conversations/u/other/workspace/", store="local:/somewhere")
    with pytest.raises(CacheError) as caught:
        opener(identity=other)
    assert caught.value.exit_code == ExitCode.BAD_CACHE
    assert "another workspace" in caught.value.message
    del before[tmp_path / "ws" / "lock"]
    assert {p: p.read_bytes() for p in before} == before


def test_another_format_is_refused(opener: Opener, tmp_path: Path) -> None:
    opener().close()
    path = tmp_path / "ws" / IDENTITY_FILE
    noted = json.loads(path.read_bytes())
    noted["format"] += 1
    path.write_text(json.dumps(noted))
    with pytest.raises(CacheError, match="format"):
        opener()


def test_a_cache_without_identity_is_refused(opener: Opener, tmp_path: Path) -> None:
    opener().close()
    (tmp_path / "ws" / IDENTITY_FILE).unlink()
    with pytest.raises(CacheError, match="does not say which workspace"):
        opener()


def test_in_use_by_another_process(cache: Cache, opener: Opener) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from s3ws_fs.cache.cache import Identity, open_cache
        from s3ws_fs.core.errors import CacheError
        try:
            open_cache(Path(sys.argv[1]), Identity(sys.argv[2], sys.argv[3]),
                       quota_bytes=1 << 20, now_ns=lambda: 0)
        except CacheError as exc:
            print(exc.message)
            sys.exit(exc.exit_code)
        """
    )
    identity = ["conversations/u/c/workspace/", "local:/somewhere"]
    done = subprocess.run(
        [sys.executable, "-c", program, str(cache.directory), *identity],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.ALREADY_MOUNTED, done.stderr
    assert "in use by the daemon" in done.stdout


def test_a_damaged_file_is_a_clear_error(opener: Opener, tmp_path: Path) -> None:
    opener().close()
    data = tmp_path / "ws" / "data" / "data.mdb"
    data.write_bytes(b"\xff" * 8192 + data.read_bytes()[8192:])
    with pytest.raises(CacheError, match="damaged"):
        opener()


def test_files_are_private(cache: Cache) -> None:
    for path in (cache.directory, *cache.directory.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, (path, oct(mode))


def test_a_full_map_is_enospc_and_the_cache_goes_on(cache: Cache) -> None:
    rec = make_inode()
    big = bytes(1 << 20)
    with pytest.raises(FsError) as caught, cache.write() as tx:
        for index in range(10_000):
            tx.put_extent(rec, index, big, 0)
    assert caught.value.errno == errno.ENOSPC
    put(cache, rec)
    with cache.read() as view:
        assert view.inode(2) is not None


LOCATION = Location(object_id=7, offset=0, length=3, digest=b"d" * 16)
CHUNK = keys.chunk_key(2, 0)


def test_forget_drops_only_what_was_sealed(cache: Cache) -> None:
    put(cache, make_inode(), b"abc")
    sealed = cache.generation
    put(cache, make_inode(3))
    cache.record_locations(sealed, [(CHUNK, encode_location(LOCATION))])
    assert cache.forget(sealed, freeze_ns=0) is None
    assert set(dirty(cache)) == {(keys.T_INODES, keys.pack_u64(3))}
    with cache.read() as view:
        assert view.chunk(2, 0) == LOCATION
        assert dict(view.mtodo()) == {2: sealed}


def test_an_extent_changed_after_the_freeze_stays_dirty(cache: Cache) -> None:
    put(cache, make_inode(), b"abc")
    frozen = cache.generation
    put(cache, make_inode(), b"abcd")
    cache.record_locations(frozen, [(CHUNK, encode_location(LOCATION))])
    cache.forget(frozen, freeze_ns=0)
    assert (keys.T_CHUNKS, CHUNK) in dirty(cache)
    with cache.read() as view:
        assert view.chunk(2, 0) is None


def test_bytes_of_extents_are_counted_without_reading_them(cache: Cache) -> None:
    put(cache, make_inode(), b"abc")
    put(cache, make_inode(3), b"x" * 5000)
    both = [keys.chunk_key(2, 0), keys.chunk_key(3, 0)]
    assert cache.extent_bytes(both) == 5003
    assert cache.extent_bytes([*both, keys.chunk_key(9, 0)]) == 5003
    assert cache.extent_bytes([]) == 0


def test_a_file_deleted_after_the_freeze_does_not_come_back(cache: Cache) -> None:
    put(cache, make_inode(), b"abc")
    frozen = cache.generation
    with cache.write() as tx:
        rec = tx.inode(2)
        assert rec is not None
        tx.drop_inode(rec)
    cache.record_locations(frozen, [(CHUNK, encode_location(LOCATION))])
    cache.forget(frozen, freeze_ns=0)
    with cache.read() as view:
        assert view.chunk(2, 0) is None
    assert set(dirty(cache)) == {(keys.T_INODES, keys.pack_u64(2))}


def test_data_that_got_no_location_is_not_forgotten(cache: Cache) -> None:
    put(cache, make_inode(), b"abc")
    cache.forget(cache.generation, freeze_ns=0)
    assert set(dirty(cache)) == {(keys.T_CHUNKS, CHUNK)}


def test_an_orphans_data_is_forgotten_although_it_was_not_shipped(cache: Cache) -> None:
    put(cache, make_inode(), b"abc")
    with cache.write() as tx:
        rec = tx.inode(2)
        assert rec is not None
        tx.remove_link(rec, rec.parent, rec.name)
        tx.put_inode(rec)
    cache.forget(cache.generation, freeze_ns=0)
    assert dirty(cache) == {}


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_forget_in_pieces(cache: Cache, limit: int) -> None:
    for ino in range(2, 12):
        put(cache, make_inode(ino))
    sealed = cache.generation
    put(cache, make_inode(5))
    resume: bytes | None = b""
    rounds = 0
    while resume is not None:
        resume = cache.forget(sealed, freeze_ns=0, resume=resume, limit=limit)
        rounds += 1
        assert rounds < 50
    assert set(dirty(cache)) == {(keys.T_INODES, keys.pack_u64(5))}


def test_first_dirt_moves_up_to_the_freeze(cache: Cache) -> None:
    put(cache, make_inode())
    sealed = cache.generation
    freeze_ns = cache.now_ns()
    put(cache, make_inode())
    cache.forget(sealed, freeze_ns=freeze_ns)
    assert dirty(cache)[keys.T_INODES, keys.pack_u64(2)] == (sealed + 1, freeze_ns)


def test_fetched_bytes_are_kept_only_while_cold_and_unchanged(cache: Cache) -> None:
    cache.load_records(keys.T_CHUNKS, [(CHUNK, encode_location(LOCATION))])
    other = Location(8, 0, 3, b"e" * 16)
    assert cache.store_fetched([(2, 0, other, b"xyz")]) == 0
    assert cache.store_fetched([(2, 0, LOCATION, b"abc")]) == 1
    assert cache.store_fetched([(2, 0, LOCATION, b"abc")]) == 0
    with cache.read() as view:
        assert view.extent(2, 0) == b"abc"
    assert dirty(cache) == {}


def test_mirror_rows_and_todo(cache: Cache) -> None:
    row = MirrorRow(b"a/b", 2, 5, 4, "etag", b"h" * 16)
    cache.add_mirror_todo([2, 3], 6)
    cache.record_mirrored([row], [], [(2, 6), (3, 5)])
    with cache.read() as view:
        assert view.mirror_at(b"a/b") == row
        assert list(view.mirror_of(2)) == [row]
        assert dict(view.mtodo()) == {3: 6}
    taken = MirrorRow(b"a/b", 9, 7, 7, "other", b"i" * 16)
    cache.record_mirrored([taken], [], [])
    with cache.read() as view:
        assert list(view.mirror_of(2)) == []
        assert list(view.mirror_of(9)) == [taken]
    cache.record_mirrored([], [b"a/b"], [])
    with cache.read() as view:
        assert view.mirror_at(b"a/b") is None
        assert list(view.mirror_of(9)) == []


def test_an_inode_tombstone_takes_all_along(cache: Cache) -> None:
    ino_key = keys.pack_u64(2)
    cache.load_records(keys.T_INODES, [(ino_key, make_inode().encode())])
    cache.load_records(keys.T_CHUNKS, [(CHUNK, encode_location(LOCATION))])
    cache.load_records(keys.T_XATTRS, [(keys.xattr_key(2, b"user.a"), b"v")])
    cache.load_records(keys.T_LINKS, [(keys.link_key(2, 1, b"n"), b"")])
    cache.drop_records(keys.T_INODES, [ino_key])
    with cache.read() as view:
        assert view.inode(2) is None
        assert view.chunk(2, 0) is None
        assert list(view.xattrs(2)) == []
        assert list(view.links(2)) == []


def test_restore_is_incomplete_until_said(opener: Opener) -> None:
    with opener() as cache:
        assert not cache.restore_complete
        cache.set_restore_complete()
    with opener() as cache:
        assert cache.restore_complete
        cache.clear_all()
        assert not cache.restore_complete


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk can only be mounted by root")
def test_a_full_disk_is_no_input_output_error(tmp_path: Path, opener: Opener) -> None:
    directory = tmp_path / "ws"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", directory], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        with opener() as cache:
            with pytest.raises(FsError) as caught:
                for number in range(2, 1000):
                    put(cache, make_inode(number, b"f%d" % number), os.urandom(32768))
            assert caught.value.errno == errno.ENOSPC
            with cache.read() as view:
                assert view.extent(2, 0) is not None
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_disk_that_fails_at_the_end(
    opener: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, everything is closed, and the next opening finds all of it."""
    cache = opener()
    put(cache, make_inode())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(errno.EIO))
        with pytest.raises(FsError) as caught:
            cache.close()
    assert caught.value.errno == errno.EIO
    cache.close()
    with opener() as again:
        assert again.generation == cache.generation
        assert again.recovery == "kept"


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EIO, "refuses"), (errno.ENOSPC, "no room")], ids=["eio", "enospc"]
)
def test_a_disk_that_fails_at_the_beginning(
    opener: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    """A person is told, nothing stays open, and it opens when the disk is well again."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(number))
        with pytest.raises(CacheError, match=says):
            opener()
    with opener() as cache:
        assert cache.generation == 0


def test_a_restore_whose_disk_fails_says_so(
    opener: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opener() as cache, monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(errno.EIO))
        with pytest.raises(FsError):
            cache.set_restore_complete()
        patch.undo()
