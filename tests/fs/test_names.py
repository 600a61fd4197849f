"""The tree: what the model does not look at: times, ids, modes, limits, listing under change."""

from __future__ import annotations

import errno
import stat

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.limits import NAME_BYTES_MAX, SYMLINK_BYTES_MAX
from s3ws_fs.core.types import ROOT_INO, Cred
from s3ws_fs.fs.filesystem import FileSystem

CRED = Cred(uid=5, gid=6, umask=0o022)


def raises(number: int, call: object, *args: object, **kwargs: object) -> None:
    with pytest.raises(FsError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    assert caught.value.errno == number, caught.value


def test_owner_mode_and_umask(fs: FileSystem) -> None:
    attr = fs.create(ROOT_INO, b"f", 0o4777, CRED)
    assert (attr.uid, attr.gid) == (5, 6)
    assert attr.mode == stat.S_IFREG | 0o4755
    fifo = fs.mknod(ROOT_INO, b"p", stat.S_IFIFO | 0o666, 0, CRED)
    assert fifo.mode == stat.S_IFIFO | 0o644
    device = fs.mknod(ROOT_INO, b"c", stat.S_IFCHR | 0o600, 0x501, CRED)
    assert device.rdev == 0x501


def test_setgid_directory_hands_on_its_group(fs: FileSystem) -> None:
    above = fs.mkdir(ROOT_INO, b"d", 0o755, CRED).ino
    fs.setattr(above, mode=0o2775, gid=99)
    assert fs.create(above, b"f", 0o644, CRED).gid == 99
    below = fs.mkdir(above, b"sub", 0o755, CRED)
    assert below.gid == 99
    assert below.mode & stat.S_ISGID


def test_times_of_create_touch_the_directory(fs: FileSystem) -> None:
    before = fs.getattr(ROOT_INO)
    attr = fs.create(ROOT_INO, b"f", 0o644, CRED)
    after = fs.getattr(ROOT_INO)
    assert attr.atime_ns == attr.mtime_ns == attr.ctime_ns > before.mtime_ns
    assert after.mtime_ns == after.ctime_ns == attr.mtime_ns
    assert after.atime_ns == before.atime_ns


def test_rename_changes_ctime_but_not_mtime(fs: FileSystem) -> None:
    attr = fs.create(ROOT_INO, b"f", 0o644, CRED)
    fs.rename(ROOT_INO, b"f", ROOT_INO, b"g")
    moved = fs.lookup(ROOT_INO, b"g")
    assert moved.mtime_ns == attr.mtime_ns
    assert moved.ctime_ns > attr.ctime_ns


def test_link_and_unlink_change_the_ctime_of_the_inode(fs: FileSystem) -> None:
    attr = fs.create(ROOT_INO, b"f", 0o644, CRED)
    linked = fs.link(attr.ino, ROOT_INO, b"g")
    assert (linked.nlink, linked.ctime_ns > attr.ctime_ns) == (2, True)
    fs.unlink(ROOT_INO, b"f")
    left = fs.getattr(attr.ino)
    assert (left.nlink, left.ctime_ns > linked.ctime_ns) == (1, True)


def test_names_at_and_beyond_the_limit(fs: FileSystem) -> None:
    longest = b"n" * NAME_BYTES_MAX
    fs.create(ROOT_INO, longest, 0o644, CRED)
    assert fs.lookup(ROOT_INO, longest).ino
    for call in (fs.lookup, fs.unlink, fs.rmdir):
        raises(errno.ENAMETOOLONG, call, ROOT_INO, longest + b"n")
    raises(errno.ENAMETOOLONG, fs.create, ROOT_INO, longest + b"n", 0o644, CRED)
    for odd in (b"", b".", b"..", b"a/b", b"a\0b"):
        raises(errno.EINVAL, fs.create, ROOT_INO, odd, 0o644, CRED)


def test_symlink_target_at_and_beyond_the_limit(fs: FileSystem) -> None:
    target = b"t" * SYMLINK_BYTES_MAX
    attr = fs.symlink(ROOT_INO, b"l", target, CRED)
    assert (attr.size, fs.readlink(attr.ino)) == (SYMLINK_BYTES_MAX, target)
    raises(errno.ENAMETOOLONG, fs.symlink, ROOT_INO, b"m", target + b"t", CRED)
    plain = fs.create(ROOT_INO, b"f", 0o644, CRED)
    raises(errno.EINVAL, fs.readlink, plain.ino)


def test_inode_quota_at_and_beyond_the_limit(fs: FileSystem) -> None:
    for number in range(19):
        fs.create(ROOT_INO, b"f%d" % number, 0o644, CRED)
    assert fs.statfs().files_free == 0
    raises(errno.EDQUOT, fs.create, ROOT_INO, b"more", 0o644, CRED)
    fs.unlink(ROOT_INO, b"f0")
    fs.reap()
    gone = fs.lookup(ROOT_INO, b"f1").ino
    fs.unlink(ROOT_INO, b"f1")
    fs.forget(gone)
    fs.create(ROOT_INO, b"more", 0o644, CRED)


def test_hard_link_limit(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3ws_fs.fs.names.LINKS_MAX", 3)
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    fs.link(ino, ROOT_INO, b"g")
    fs.link(ino, ROOT_INO, b"h")
    raises(errno.EMLINK, fs.link, ino, ROOT_INO, b"i")
    fs.mkdir(ROOT_INO, b"d", 0o755, CRED)
    raises(errno.EMLINK, fs.mkdir, ROOT_INO, b"e", 0o755, CRED)


def test_a_removed_directory_takes_nothing_in(fs: FileSystem) -> None:
    ino = fs.mkdir(ROOT_INO, b"d", 0o755, CRED).ino
    fs.rmdir(ROOT_INO, b"d")
    assert fs.getattr(ino).nlink == 0
    raises(errno.ENOENT, fs.create, ino, b"f", 0o644, CRED)
    raises(errno.ENOENT, fs.lookup, ino, b"f")
    assert fs.readdir(ino, 0, 10) == []


def test_an_open_orphan_keeps_its_bytes_until_released_and_forgotten(fs: FileSystem) -> None:
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    fs.open(ino)
    fs.write(ino, 0, b"still here")
    fs.unlink(ROOT_INO, b"f")
    fs.forget(ino)
    fs.reap()
    assert fs.read(ino, 0, 100) == b"still here"
    fs.write(ino, 5, b"!")
    fs.release(ino)
    fs.forget(ino)
    fs.reap()
    raises(errno.ENOENT, fs.getattr, ino)


def test_a_forgotten_orphan_asks_to_be_dropped_once(cache: Cache) -> None:
    """Else the space of a large deleted file would wait for sixty-three others."""
    asked = []
    fs = FileSystem(
        cache, quota_bytes=1 << 20, quota_inodes=20, on_forgotten=lambda: asked.append(1)
    )
    fs.make_root(uid=0, gid=0, mode=0o755)
    inos = [fs.create(ROOT_INO, b"f%d" % number, 0o644, CRED).ino for number in range(3)]
    for number, ino in enumerate(inos):
        fs.unlink(ROOT_INO, b"f%d" % number)
        fs.forget(ino)
    assert asked == [1]
    fs.reap()
    raises(errno.ENOENT, fs.getattr, inos[0])


def test_orphans_of_a_dead_daemon_go_at_mount(fs: FileSystem, cache: Cache) -> None:
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    fs.write(ino, 0, b"x" * 5000)
    fs.open(ino)
    fs.unlink(ROOT_INO, b"f")
    again = FileSystem(cache, quota_bytes=1 << 20, quota_inodes=20)
    assert again.drop_orphans_unmounted() == 1
    assert again.drop_orphans_unmounted() == 0
    assert cache.head.used_bytes == 0
    raises(errno.ENOENT, again.getattr, ino)


def test_listing_neither_skips_nor_repeats_while_entries_come_and_go(fs: FileSystem) -> None:
    fs.quota_inodes = 10_000
    staying = {b"stay%d" % n for n in range(200)}
    for name in staying:
        fs.create(ROOT_INO, name, 0o644, CRED)
    for number in range(200):
        fs.create(ROOT_INO, b"old%d" % number, 0o644, CRED)
    seen: list[bytes] = []
    cookie, turn = 0, 0
    while page := fs.readdir(ROOT_INO, cookie, 7):
        seen += [entry.name for entry in page]
        cookie = page[-1].cookie
        fs.unlink(ROOT_INO, b"old%d" % turn)
        fs.create(ROOT_INO, b"new%d" % turn, 0o644, CRED)
        turn += 1
    assert len(seen) == len(set(seen))
    assert staying <= set(seen)


def test_a_listing_shows_what_a_lookup_shows(fs: FileSystem) -> None:
    above = fs.mkdir(ROOT_INO, b"d", 0o755, CRED).ino
    made = {
        b"dir": fs.mkdir(above, b"dir", 0o700, CRED),
        b"file": fs.create(above, b"file", 0o640, CRED),
        b"link": fs.symlink(above, b"link", b"t" * SYMLINK_BYTES_MAX, CRED),
        b"c": fs.mknod(above, b"c", stat.S_IFCHR | 0o600, 0x501, CRED),
        b"n" * NAME_BYTES_MAX: fs.create(above, b"n" * NAME_BYTES_MAX, 0o644, CRED),
    }
    assert {entry.name: entry.attr for entry in fs.readdir(above, 0, 10)} == made
    fs.write(made[b"file"].ino, 70_000, b"x")
    assert fs.getattr(made[b"file"].ino) in [entry.attr for entry in fs.readdir(above, 0, 10)]
    raises(errno.ENOTDIR, fs.readdir, made[b"file"].ino, 0, 10)


def test_a_listing_ends_where_it_was_asked_to(fs: FileSystem) -> None:
    fs.quota_inodes = 100
    above = fs.mkdir(ROOT_INO, b"d", 0o755, CRED).ino
    other = fs.mkdir(ROOT_INO, b"e", 0o755, CRED).ino
    for number in range(5):
        fs.create(above, b"f%d" % number, 0o644, CRED)
        fs.create(other, b"f%d" % number, 0o644, CRED)
    for limit in (1, 4, 5, 6):
        assert len(fs.readdir(above, 0, limit)) == min(limit, 5)
    last = fs.readdir(above, 0, 5)[-1].cookie
    assert fs.readdir(above, last, 1) == []


def test_a_name_of_no_inode_is_an_error_of_the_listing(fs: FileSystem, cache: Cache) -> None:
    with cache.write() as tx:
        tx.put_dentry(ROOT_INO, b"nobody", 77)
    raises(errno.ENOENT, fs.readdir, ROOT_INO, 0, 10)


def test_entries_of_other_directories_do_not_show(fs: FileSystem) -> None:
    first = fs.mkdir(ROOT_INO, b"a", 0o755, CRED).ino
    second = fs.mkdir(ROOT_INO, b"b", 0o755, CRED).ino
    fs.create(second, b"f", 0o644, CRED)
    assert fs.readdir(first, 0, 10) == []
    assert fs.parent_of(second) == ROOT_INO
    assert fs.lookup(second, b"..").ino == ROOT_INO
    assert fs.lookup(second, b".").ino == second


def test_rename_refuses_unknown_flags(fs: FileSystem) -> None:
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    raises(errno.EINVAL, fs.rename, ROOT_INO, b"f", ROOT_INO, b"g", 4)
    raises(errno.EINVAL, fs.rename, ROOT_INO, b"f", ROOT_INO, b"g", 3)


def test_link_refuses_directories_and_orphans(fs: FileSystem) -> None:
    directory = fs.mkdir(ROOT_INO, b"d", 0o755, CRED).ino
    raises(errno.EPERM, fs.link, directory, ROOT_INO, b"e")
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    fs.open(ino)
    fs.unlink(ROOT_INO, b"f")
    raises(errno.ENOENT, fs.link, ino, ROOT_INO, b"g")
