"""The filesystem against a plain model: same results, same errors, same tree, same bytes.

The machine also seals (so that extents get locations), evicts (so that reads find them cold),
closes and reopens, and goes on from a copy taken without closing (what SIGKILL leaves).
"""

from __future__ import annotations

import errno
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import encode_location
from s3ws_fs.core.types import ROOT_INO, Cred, Location, NeedExtents
from s3ws_fs.fs.filesystem import FileSystem

QUOTA_BYTES = 1 << 40
CRED = Cred(uid=7, gid=8, umask=0o022)
IDENTITY = Identity(prefix="conversations/u/c/workspace/", store="local:/somewhere")

names = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe", b"long" * 60])
dirs = st.integers(0, 5)
offsets = st.one_of(st.integers(0, 200), st.integers(EXTENT_BYTES - 50, 3 * EXTENT_BYTES))
datas = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.integers(1, 3).map(lambda n: bytes([n]) * (n * EXTENT_BYTES // 2 + 7)),
    st.just(b"x" * EXTENT_BYTES),
)


@dataclass
class Node:
    kind: str
    mode: int
    entries: dict[bytes, Node] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    nlink: int = 1
    ino: int = 0


class ModelError(Exception):
    def __init__(self, number: int) -> None:
        self.errno = number


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "ok", call()
    except (FsError, ModelError) as exc:
        return "error", errno.errorcode[exc.errno]


class FilesystemMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="s3ws-model-"))
        self.directory = self.base / "0"
        self.copies = 0
        self.clock = 0
        self.bucket: dict[Location, bytes] = {}
        self.root = Node("dir", 0o755, nlink=2, ino=ROOT_INO)
        self.held: list[Node] = []
        self._open()

    def _now(self) -> int:
        self.clock += 1
        return self.clock

    def _open(self) -> None:
        self.cache: Cache = open_cache(
            self.directory, IDENTITY, quota_bytes=1 << 28, now_ns=self._now, boot_id="boot"
        )
        self.fs = FileSystem(self.cache, quota_bytes=QUOTA_BYTES, quota_inodes=1000)
        self.fs.make_root(uid=0, gid=0, mode=0o755)
        self.fs.drop_orphans_unmounted()
        self.held = []

    def teardown(self) -> None:
        self.cache.close()
        shutil.rmtree(self.base)

    # -- finding things in the model

    def all_dirs(self) -> list[Node]:
        found, queue = [], [self.root]
        while queue:
            node = queue.pop(0)
            found.append(node)
            queue.extend(n for n in node.entries.values() if n.kind == "dir")
        return found

    def pick_dir(self, number: int) -> Node:
        every = self.all_dirs()
        return every[number % len(every)]

    def files(self) -> list[Node]:
        found: dict[int, Node] = {}
        for directory in self.all_dirs():
            found.update((n.ino, n) for n in directory.entries.values() if n.kind == "file")
        found.update((n.ino, n) for n in self.held)
        return list(found.values())

    def warm(self, call: Callable[[], Any]) -> Any:
        for _ in range(20):
            result = call()
            if not isinstance(result, NeedExtents):
                return result
            self.cache.store_fetched(
                [(result.ino, index, loc, self.bucket[loc]) for index, loc in result.locations]
            )
        raise AssertionError("still cold after 20 fetches")

    # -- operations

    def _make(self, kind: str, parent: Node, name: bytes, call: Callable[[], Any]) -> None:
        expected: tuple[str, Any] = ("ok", None)
        if name in parent.entries:
            expected = ("error", "EEXIST")
        got = outcome(call)
        assert got[0] == expected[0], (got, expected)
        if got[0] == "error":
            assert got[1] == expected[1]
            return
        node = Node(kind, got[1].mode, ino=got[1].ino)
        parent.entries[name] = node
        if kind == "dir":
            node.nlink = 2
            parent.nlink += 1
        if kind == "link":
            node.target = self.fs.readlink(node.ino)

    @rule(at=dirs, name=names, mode=st.sampled_from([0o644, 0o600, 0o4755]))
    def create(self, at: int, name: bytes, mode: int) -> None:
        parent = self.pick_dir(at)
        self._make("file", parent, name, lambda: self.fs.create(parent.ino, name, mode, CRED))

    @rule(at=dirs, name=names)
    def mkdir(self, at: int, name: bytes) -> None:
        parent = self.pick_dir(at)
        self._make("dir", parent, name, lambda: self.fs.mkdir(parent.ino, name, 0o755, CRED))

    @rule(at=dirs, name=names, pointee=st.binary(min_size=1, max_size=20))
    def symlink(self, at: int, name: bytes, pointee: bytes) -> None:
        parent = self.pick_dir(at)
        self._make("link", parent, name, lambda: self.fs.symlink(parent.ino, name, pointee, CRED))

    @rule(at=dirs, name=names)
    def mkfifo(self, at: int, name: bytes) -> None:
        parent = self.pick_dir(at)
        mode = stat.S_IFIFO | 0o600
        self._make("fifo", parent, name, lambda: self.fs.mknod(parent.ino, name, mode, 0, CRED))

    @rule(at=dirs, name=names, hold=st.booleans())
    def unlink(self, at: int, name: bytes, hold: bool) -> None:
        parent = self.pick_dir(at)
        node = parent.entries.get(name)

        def model() -> None:
            if node is None:
                raise ModelError(errno.ENOENT)
            if node.kind == "dir":
                raise ModelError(errno.EISDIR)

        expected = outcome(model)
        if node is not None and hold and node.kind == "file":
            self.fs.open(node.ino)
            self.held.append(node)
        assert outcome(lambda: self.fs.unlink(parent.ino, name)) == expected
        if node is not None and expected[0] == "ok":
            del parent.entries[name]
            node.nlink -= 1
            self.fs.forget(node.ino)

    @rule(at=dirs, name=names)
    def rmdir(self, at: int, name: bytes) -> None:
        parent = self.pick_dir(at)
        node = parent.entries.get(name)

        def model() -> None:
            if node is None:
                raise ModelError(errno.ENOENT)
            if node.kind != "dir":
                raise ModelError(errno.ENOTDIR)
            if node.entries:
                raise ModelError(errno.ENOTEMPTY)

        expected = outcome(model)
        assert outcome(lambda: self.fs.rmdir(parent.ino, name)) == expected
        if node is not None and expected[0] == "ok":
            del parent.entries[name]
            parent.nlink -= 1
            node.nlink = 0
            self.fs.forget(node.ino)

    @rule(source=dirs, name=names, dest=dirs, new_name=names)
    def link(self, source: int, name: bytes, dest: int, new_name: bytes) -> None:
        node = self.pick_dir(source).entries.get(name)
        if node is None:
            return
        parent = self.pick_dir(dest)

        def model() -> None:
            if node.kind == "dir":
                raise ModelError(errno.EPERM)
            if new_name in parent.entries:
                raise ModelError(errno.EEXIST)

        expected = outcome(model)
        got = outcome(lambda: self.fs.link(node.ino, parent.ino, new_name))
        assert got[0] == expected[0], (got, expected)
        if got[0] == "error":
            assert got[1] == expected[1]
            return
        parent.entries[new_name] = node
        node.nlink += 1

    def _is_below(self, node: Node, above: Node) -> bool:
        return node is above or any(
            self._is_below(node, child) for child in above.entries.values() if child.kind == "dir"
        )

    @rule(source=dirs, name=names, dest=dirs, new_name=names, flags=st.sampled_from([0, 0, 1, 2]))
    def rename(self, source: int, name: bytes, dest: int, new_name: bytes, flags: int) -> None:
        parent, new_parent = self.pick_dir(source), self.pick_dir(dest)
        node, old = parent.entries.get(name), new_parent.entries.get(new_name)

        def model() -> None:
            if node is None:
                raise ModelError(errno.ENOENT)
            if old is None and flags == 2:
                raise ModelError(errno.ENOENT)
            if old is not None and flags == 1:
                raise ModelError(errno.EEXIST)
            if old is node:
                return
            if node.kind == "dir" and self._is_below(new_parent, node):
                raise ModelError(errno.EINVAL)
            if flags == 2:
                if old is not None and old.kind == "dir" and self._is_below(parent, old):
                    raise ModelError(errno.EINVAL)
                return
            if old is not None and old.kind == "dir":
                if node.kind != "dir":
                    raise ModelError(errno.EISDIR)
                if old.entries:
                    raise ModelError(errno.ENOTEMPTY)
            elif old is not None and node.kind == "dir":
                raise ModelError(errno.ENOTDIR)

        expected = outcome(model)
        got = outcome(lambda: self.fs.rename(parent.ino, name, new_parent.ino, new_name, flags))
        assert got == expected
        if got[0] == "error" or node is None or old is node:
            return
        del parent.entries[name]
        self._count_dir(node, parent, -1)
        if old is not None:
            self._count_dir(old, new_parent, -1)
            if flags == 2:
                parent.entries[name] = old
                self._count_dir(old, parent, 1)
            else:
                old.nlink = 0 if old.kind == "dir" else old.nlink - 1
                self.fs.forget(old.ino)
        new_parent.entries[new_name] = node
        self._count_dir(node, new_parent, 1)

    @staticmethod
    def _count_dir(node: Node, parent: Node, delta: int) -> None:
        if node.kind == "dir":
            parent.nlink += delta

    @precondition(lambda self: self.files())
    @rule(pick=st.integers(0, 9), offset=offsets, data=datas)
    def write(self, pick: int, offset: int, data: bytes) -> None:
        node = self.files()[pick % len(self.files())]
        assert self.warm(lambda: self.fs.write(node.ino, offset, data)) == len(data)
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data

    @precondition(lambda self: self.files())
    @rule(pick=st.integers(0, 9), size=offsets)
    def truncate(self, pick: int, size: int) -> None:
        node = self.files()[pick % len(self.files())]
        attr = self.warm(lambda: self.fs.setattr(node.ino, size=size))
        assert attr.size == size
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))

    @precondition(lambda self: self.files())
    @rule(pick=st.integers(0, 9), offset=offsets, length=st.integers(0, 2 * EXTENT_BYTES))
    def read(self, pick: int, offset: int, length: int) -> None:
        node = self.files()[pick % len(self.files())]
        got = self.warm(lambda: self.fs.read(node.ino, offset, length))
        assert got == bytes(node.data[offset : offset + length])

    @precondition(lambda self: self.files())
    @rule(
        pick=st.integers(0, 9),
        name=st.sampled_from([b"user.a", b"user.b", b"system.x"]),
        value=st.one_of(st.none(), st.binary(max_size=20)),
        flags=st.sampled_from([0, 1, 2]),
    )
    def xattr(self, pick: int, name: bytes, value: bytes | None, flags: int) -> None:
        node = self.files()[pick % len(self.files())]

        def model() -> None:
            if name == b"system.x":
                raise ModelError(errno.EOPNOTSUPP)
            there = name in node.xattrs
            if value is None:
                if not there:
                    raise ModelError(errno.ENODATA)
                del node.xattrs[name]
                return
            if there and flags == 1:
                raise ModelError(errno.EEXIST)
            if not there and flags == 2:
                raise ModelError(errno.ENODATA)
            node.xattrs[name] = value

        if value is None:
            got = outcome(lambda: self.fs.removexattr(node.ino, name))
        else:
            got = outcome(lambda: self.fs.setxattr(node.ino, name, value, flags))
        assert got == outcome(model)

    # -- what happens beside the operations

    @rule(behind=st.integers(0, 2))
    def seal(self, behind: int) -> None:
        """As the replica does: locations for what is dirty up to a generation, then forget."""
        generation = self.cache.generation - behind
        items = []
        with self.cache.read() as view:
            for table, key, marked, _ in view.dirty():
                if table != keys.T_CHUNKS or marked > generation:
                    continue
                data = view.txn.get(key, db=view.db.extents)
                if data is not None:
                    digest = xxhash.xxh3_128_digest(data + key)
                    loc = Location(1, len(self.bucket), len(data), digest)
                    self.bucket[loc] = data
                    items.append((key, encode_location(loc)))
        self.cache.record_locations(generation, items)
        resume: bytes | None = b""
        while resume is not None:
            resume = self.cache.forget(generation, self._now(), resume, limit=3)
        if behind == 0:
            with self.cache.read() as view:
                assert view.dirty_count() == 0

    @rule()
    def evict(self) -> None:
        """Make every clean extent cold."""
        with self.cache.read() as view:
            clean = [
                key
                for key, _ in view.txn.cursor(db=view.db.extents)
                if not view.is_dirty(keys.T_CHUNKS, key)
            ]
        with self.cache.env.begin(write=True) as txn:
            for key in clean:
                txn.delete(key, db=self.cache.tables.extents)

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        self._open()

    @rule()
    def killed(self) -> None:
        """Go on from a copy of the files as they are: nothing was closed or synced."""
        self.copies += 1
        copy = self.base / str(self.copies)
        shutil.copytree(self.directory, copy)
        self.cache.close()
        shutil.rmtree(self.directory)
        self.directory = copy
        self._open()

    # -- what must hold all the time

    @invariant()
    def tree_is_the_same(self) -> None:
        for directory in self.all_dirs():
            self._check_dir(directory)

    def _check_dir(self, directory: Node) -> None:
        listed: dict[bytes, int] = {}
        cookie = 0
        while page := self.fs.readdir(directory.ino, cookie, 2):
            for entry in page:
                assert entry.name not in listed
                assert entry.cookie > cookie
                listed[entry.name] = entry.attr.ino
                cookie = entry.cookie
        assert listed == {name: node.ino for name, node in directory.entries.items()}
        assert self.fs.getattr(directory.ino).nlink == directory.nlink
        for name, node in directory.entries.items():
            attr = self.fs.lookup(directory.ino, name)
            assert attr.ino == node.ino
            assert attr.nlink == node.nlink
            if node.kind == "file":
                assert attr.size == len(node.data)
            if node.kind == "link":
                assert self.fs.readlink(node.ino) == node.target

    @invariant()
    def accounts_are_right(self) -> None:
        self.fs.reap()
        with self.cache.read() as view:
            head = view.head()
            held: dict[bytes, int] = {
                key: int.from_bytes(raw[16:20], "big")
                for key, raw in view.txn.cursor(db=view.db.chunks)
            }
            held.update((key, len(raw)) for key, raw in view.txn.cursor(db=view.db.extents))
            used = sum(-(-length // 4096) * 4096 for length in held.values())
            assert head.used_bytes == used
            assert head.inodes == view.txn.stat(view.db.inodes)["entries"]

    @invariant()
    def every_inode_knows_its_paths(self) -> None:
        expected: dict[int, set[bytes]] = {}
        queue = [(self.root, b"")]
        while queue:
            directory, path = queue.pop()
            for name, node in directory.entries.items():
                below = path + b"/" + name if path else name
                expected.setdefault(node.ino, set()).add(below)
                if node.kind == "dir":
                    queue.append((node, below))
        with self.cache.read() as view:
            for ino, paths in expected.items():
                rec = view.inode(ino)
                assert rec is not None
                assert set(view.paths_of(rec)) == paths
            live = {keys.unpack_u64(key) for key, _ in view.txn.cursor(db=view.db.links)}
            assert all(len(expected.get(ino, ())) > 1 for ino in live)

    @initialize()
    def start(self) -> None:
        self.create(0, b"a", 0o644)


FilesystemMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None
)
TestFilesystem = FilesystemMachine.TestCase
