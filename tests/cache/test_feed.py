"""What is noted for those who look on: all that was committed, and nothing else."""

from __future__ import annotations

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.feed import STAGED_MAX, Feed
from s3ws_fs.cache.following import Sealed, apply_segment, rebuild
from s3ws_fs.cache.rewinding import BulkChanges
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import keys
from s3ws_fs.core.changefeed import (
    ATTRIBUTES,
    BULK,
    CONTENT,
    CREATED,
    GONE,
    LINKED,
    NAME,
    NEW,
    REMOVED,
    RENAMED,
    Mark,
    Marks,
    Teller,
)
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.journal import Frame
from s3ws_fs.core.types import ROOT_INO, Cred
from s3ws_fs.fs.filesystem import FileSystem
from tests.cache import test_following as following

CRED = Cred(uid=1, gid=2)


@pytest.fixture
def fs(cache: Cache) -> FileSystem:
    made = FileSystem(cache, quota_bytes=1 << 20, quota_inodes=50)
    made.make_root(uid=0, gid=0, mode=0o755)
    return made


def taken(feed: Feed, marks: Marks) -> list[tuple[int, Mark]]:
    feed.settle()
    found, lost = marks.take()
    assert lost == 0
    return [(generation, Mark(*mark)) for generation, mark in found]


def test_nobody_looks_on_nothing_is_in_the_way(cache: Cache, fs: FileSystem) -> None:
    feed = Feed(cache)
    assert cache.tx_type is Tx
    one, two = feed.watch(), feed.watch()
    assert cache.tx_type is not Tx
    feed.unwatch(one)
    ino = fs.create(ROOT_INO, b"a", 0o644, CRED).ino
    feed.settle()
    assert one.take() == ([], 0) and two.take()[0]
    feed.unwatch(two)
    assert cache.tx_type is Tx and cache.on_followed is None
    fs.write(ino, 0, b"x")
    assert taken(feed, two) == []


def test_each_operation_says_what_it_did(cache: Cache, fs: FileSystem) -> None:
    feed = Feed(cache)
    marks = feed.watch()
    base = cache.generation
    ino = fs.create(ROOT_INO, b"a", 0o644, CRED).ino
    fs.write(ino, 0, b"x")
    fs.setattr(ino, mode=0o600)
    fs.setxattr(ino, b"user.x", b"1")
    fs.link(ino, ROOT_INO, b"b")
    fs.unlink(ROOT_INO, b"b")
    below = fs.mkdir(ROOT_INO, b"d", 0o755, CRED).ino
    fs.rename(ROOT_INO, b"a", below, b"a")
    found = taken(feed, marks)
    kinds = {(generation - base, mark.kind) for generation, mark in found}
    assert {(1, NEW), (1, NAME), (2, CONTENT), (4, ATTRIBUTES), (5, NAME), (6, GONE)} <= kinds
    assert {(7, NEW), (7, NAME), (8, GONE), (8, NAME)} <= kinds
    # The one mark of its attributes has the newest generation.
    assert (3, ATTRIBUTES) not in kinds

    def paths(ino: int) -> list[bytes]:
        with cache.read() as view:
            rec = view.inode(ino)
            return [] if rec is None else view.paths_of(rec)

    def dir_path(ino: int) -> bytes | None:
        with cache.read() as view:
            return view.dir_path(ino)

    assert [(c.what, c.path) for c in Teller(dir_path, paths).changes(found)] == [
        (CREATED, b"a"),
        (LINKED, b"b"),
        (REMOVED, b"b"),
        (CREATED, b"d"),
        (RENAMED, b"d/a"),
    ]


def test_only_what_was_committed_is_told(cache: Cache, fs: FileSystem) -> None:
    feed = Feed(cache)
    marks = feed.watch()

    def fail(_: Tx) -> None:
        raise FsError(5, "injected")

    cache.before_commit = fail
    with pytest.raises(FsError):
        fs.create(ROOT_INO, b"never", 0o644, CRED)
    cache.before_commit = None
    assert taken(feed, marks) == []
    fs.create(ROOT_INO, b"there", 0o644, CRED)
    names = [mark.name for _, mark in taken(feed, marks) if mark.kind == NAME]
    assert names == [b"there"]
    # The number of one that failed goes to the next, also when that has nothing to tell.
    cache.before_commit = fail
    with pytest.raises(FsError):
        fs.create(ROOT_INO, b"never", 0o644, CRED)
    cache.before_commit = None
    with cache.write() as tx:
        tx.is_housekeeping = True
        tx.new_ino()
        tx.changed = True
    assert taken(feed, marks) == []


def test_many_transactions_wait_together_and_none_is_missed(cache: Cache, fs: FileSystem) -> None:
    feed = Feed(cache)
    marks = feed.watch()
    ino = fs.create(ROOT_INO, b"a", 0o644, CRED).ino
    first = cache.generation
    count = STAGED_MAX + 2
    for number in range(count):
        fs.link(ino, ROOT_INO, b"%d" % number)
    found = taken(feed, marks)
    assert [(generation - first, mark.name) for generation, mark in found if mark.name][1:] == [
        (number + 1, b"%d" % number) for number in range(count)
    ]


def test_it_is_told_at_once(cache: Cache, fs: FileSystem) -> None:
    feed = Feed(cache)
    told: list[int] = []
    feed.on_marks = lambda: told.append(1)
    feed.watch()
    fs.create(ROOT_INO, b"a", 0o644, CRED)
    assert told == [1]


def test_housekeeping_is_nobodys_change_but_a_restore_is(cache: Cache, fs: FileSystem) -> None:
    feed = Feed(cache)
    marks = feed.watch()
    ino = fs.create(ROOT_INO, b"a", 0o644, CRED).ino
    fs.unlink(ROOT_INO, b"a")
    fs.forget(ino)
    taken(feed, marks)
    fs.reap()
    assert taken(feed, marks) == []
    with cache.write() as tx:
        tx.is_housekeeping = True
        key = keys.dentry_key(ROOT_INO, b"x")
        BulkChanges(tx).add(Frame(keys.T_DENTRIES, False, [key], [keys.pack_u64(77)]))
    assert [mark for _, mark in taken(feed, marks)] == [Mark(BULK, 0)]


def test_what_a_read_only_mount_takes_over(cache: Cache) -> None:
    feed = Feed(cache)
    marks = feed.watch()

    def follow(number: int, *frames: Frame) -> list[tuple[int, Mark]]:
        sealed = Sealed(following._header("segment", number), frames)
        apply_segment(cache, sealed, {**following.HERE, "number": number}, lambda _: False)
        return taken(feed, marks)

    first = follow(1, following._root(), *following._file(5))
    assert (1, Mark(NEW, 5)) in first and (1, Mark(NAME, 5, ROOT_INO, b"f")) in first
    again = follow(2, *following._file(5, b"other bytes", data_gen=2))
    assert [mark for _, mark in again] == [Mark(CONTENT, 5)]
    # Another file takes the name; the old one goes.
    replaced = follow(3, Frame(keys.T_INODES, True, [keys.pack_u64(5)], []), *following._file(6))
    assert (3, Mark(GONE, 5, ROOT_INO, b"f")) in replaced
    assert (3, Mark(NAME, 6, ROOT_INO, b"f")) in replaced
    gone = follow(4, Frame(keys.T_DENTRIES, True, [keys.dentry_key(ROOT_INO, b"f")], []))
    assert gone == [(4, Mark(GONE, 6, ROOT_INO, b"f"))]
    whole = Sealed(following._header("checkpoint", 9), [following._root()])
    rebuild(cache, iter([whole]), following.HERE, following.ROOT, lambda _: False)
    assert taken(feed, marks) == [(9, Mark(BULK, 0))]
