"""Who uses a mount: random operations, each on the filesystem and on the model in one step.

Invariants
1. What is asked for is possible by the model, so it must work; save that bytes which are only in
   the bucket may not come while something is wrong with it (EIO): then nothing was changed.
2. An operation and its change of the model happen without the loop in between.
3. Every byte that is read is compared with the model.

Called by the modules of sim only.
"""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import trio

from s3ws_fs.core.errors import ExitCode, FsError, UserError
from s3ws_fs.core.history import NAMED, UNDO
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import Cred, NeedExtents
from s3ws_fs.replica.rewind import RewindAsk
from tests.sim.choosing import FILE_BYTES_MAX, NAMES, NODES_MAX, Choosing
from tests.sim.filesystem import SimFileSystem
from tests.sim.history import SNAPS_MAX
from tests.sim.tree import Branch, Node, Wrong

if TYPE_CHECKING:
    from tests.sim.life import Life

CRED: Final = Cred(uid=1000, gid=1000, umask=0o022)
EXCUSE_S: Final = 90.0
"""What went wrong so long ago explains an EIO: a reader's patience, and more."""


class Person(Choosing):
    """One who works on a mount, at random."""

    def __init__(self, life: Life, rng: random.Random) -> None:
        self._life = life
        self.rng = rng
        self._open: list[int] = []
        self._actions: list[tuple[Callable[[], Any], int]] = [
            (self._create, 12), (self._write, 30), (self._append, 8), (self._truncate, 5),
            (self._unlink, 8), (self._mkdir, 5), (self._rmdir, 3), (self._rename, 10),
            (self._exchange, 1), (self._link, 4), (self._symlink, 3), (self._fifo, 1),
            (self._xattr, 3), (self._chmod, 3), (self._read, 15), (self._fsync, 3),
            (self._sync, 1), (self._evict, 1), (self._hold, 1), (self._let_go, 2),
        ]  # fmt: skip
        if life.world.has_history:
            self._actions += [(self._snapshot, 1), (self._restore, 1), (self._undo, 1)]

    @property
    def branch(self) -> Branch:
        return self._life.branch

    @property
    def _fs(self) -> SimFileSystem:
        return self._life.fs

    async def run(self, operations: int) -> None:
        """So many operations, in bursts."""
        rng = self.rng
        life = self._life
        actions, weights = zip(*self._actions, strict=True)
        pace_s = 1.0
        for number in range(operations):
            if number % 20 == 0:
                pace_s = rng.choice([0.003, 0.003, 0.05, 0.05, 0.3, 0.3, 2.0])
            await trio.sleep(rng.expovariate(1 / pace_s))
            if rng.random() < 0.002:
                await trio.sleep(rng.uniform(60, 600))
            await life.durability.hold()
            action = rng.choices(actions, weights)[0]
            if len(self.branch.nodes) > NODES_MAX and rng.random() < 0.5:
                action = rng.choice([self._unlink, self._unlink, self._rmdir])
            life.done += 1
            life.world.operation(action.__name__, life.host.name)
            await action()

    # --- doing ---------------------------------------------------------------------------------

    def _do(
        self, call: Callable[[], Any], change: Callable[[Branch], None], room_bytes: int = 0
    ) -> Any:
        """Invariant 2. Returns what the call returned; None when there was no room for it.

        `room_bytes`: what it takes at most.
        """
        branch = self.branch
        branch.maybe = change
        try:
            result = call()
        except FsError as exc:
            branch.maybe = None
            if self._life.may_refuse(exc, room_bytes):
                return None
            raise Wrong(f"refused: {errno.errorcode[exc.errno]} {exc}") from exc
        branch.maybe = None
        if isinstance(result, NeedExtents):
            return result
        change(branch)
        branch.generation += 1
        if branch.generation != self._life.cache.generation:
            raise Wrong(f"generation {self._life.cache.generation}, not {branch.generation}")
        return result

    async def _warm(self, attempt: Callable[[], Any]) -> None:
        """Until it needs no cold bytes (invariant 1)."""
        began_s = trio.current_time()
        for _ in range(50):
            need = attempt()
            if not isinstance(need, NeedExtents):
                return
            try:
                await self._life.replica.fetch(need)
            except FsError as exc:
                self._life.excuse(f"reading failed: {exc}", began_s - EXCUSE_S)
                return
        raise Wrong("cold again and again")

    def _make(self, mode: int, call: Callable[[int, bytes], Any], data: bytes = b"") -> None:
        parent, name = self.a_dir(), self.rng.choice(NAMES)
        if name in self.branch.nodes[parent].entries:
            return
        ino = self._life.cache.head.next_ino

        def change(branch: Branch) -> None:
            now_ns = self._life.last_ns
            is_dir = stat.S_ISDIR(mode)
            branch.nodes[ino] = Node(
                mode, 2 if is_dir else 1, now_ns, data, parent=parent if is_dir else 0
            )
            branch.link(parent, name, ino, now_ns)
            if is_dir:
                branch.count(parent, 1)

        attr = self._do(lambda: call(parent, name), change)
        if attr is not None and attr.ino != ino:
            raise Wrong(f"inode {attr.ino} was given out, not {ino}")

    async def _create(self) -> None:
        self._make(stat.S_IFREG | 0o644, lambda p, n: self._fs.create(p, n, 0o644, CRED))

    async def _mkdir(self) -> None:
        self._make(stat.S_IFDIR | 0o755, lambda p, n: self._fs.mkdir(p, n, 0o755, CRED))

    async def _fifo(self) -> None:
        mode = stat.S_IFIFO | 0o600
        self._make(mode, lambda p, n: self._fs.mknod(p, n, mode, 0, CRED))

    async def _symlink(self) -> None:
        target = self.rng.choice([b"a", b"../x", b"\xff", b"/etc/passwd"])
        mode = stat.S_IFLNK | 0o777
        self._make(mode, lambda p, n: self._fs.symlink(p, n, target, CRED), target)

    async def _write(self) -> None:
        ino = self.a_file()
        if ino is not None:
            size = len(self.branch.nodes[ino].data)
            offset = self.rng.choice([0, 0, size, self.rng.randrange(size + 3 * EXTENT_BYTES)])
            await self._write_at(ino, offset)

    async def _append(self) -> None:
        ino = self.a_file()
        if ino is not None:
            await self._write_at(ino, len(self.branch.nodes[ino].data))

    async def _write_at(self, ino: int, offset: int) -> None:
        data = self.some_bytes()
        if offset + len(data) > FILE_BYTES_MAX:
            return

        def change(branch: Branch) -> None:
            node = branch.nodes[ino]
            old = node.data.ljust(offset, b"\0")
            # Where the quota ends, less than all.
            wrote = data[: self._fs.wrote]
            new = old[:offset] + wrote + old[offset + len(wrote) :]
            branch.nodes[ino] = replace(node, data=new, mtime_ns=self._life.last_ns)

        def attempt() -> Any:
            if ino in self.branch.nodes:
                room_bytes = len(data) + 2 * EXTENT_BYTES
                return self._do(lambda: self._fs.write(ino, offset, data), change, room_bytes)
            return None

        await self._warm(attempt)

    async def _truncate(self) -> None:
        ino = self.a_file()
        if ino is None:
            return
        size = self.rng.choice([0, self.rng.randrange(FILE_BYTES_MAX), EXTENT_BYTES, 1])

        def change(branch: Branch) -> None:
            node = branch.nodes[ino]
            data = node.data[:size].ljust(size, b"\0")
            branch.nodes[ino] = replace(node, data=data, mtime_ns=self._life.last_ns)

        def attempt() -> Any:
            if ino in self.branch.nodes:
                return self._do(lambda: self._fs.setattr(ino, size=size), change)
            return None

        await self._warm(attempt)

    async def _unlink(self) -> None:
        entry = self.an_entry(dirs=False)
        if entry is None:
            return
        parent, name, ino = entry

        def change(branch: Branch) -> None:
            branch.unlink(parent, name, self._life.last_ns)
            branch.count(ino, -1)

        self._do(lambda: self._fs.unlink(parent, name), change)
        self._forget(ino)

    def _forget(self, ino: int) -> None:
        """The kernel lets go of what nobody has open."""
        node = self.branch.nodes.get(ino)
        if node is not None and node.nlink == 0:
            self._fs.forget(ino)

    async def _rmdir(self) -> None:
        nodes = self.branch.nodes
        empty = [
            (parent, name, ino)
            for parent in self.dirs()
            for name, ino in nodes[parent].entries.items()
            if nodes[ino].is_dir and not nodes[ino].entries
        ]
        if not empty:
            return
        parent, name, ino = self.rng.choice(empty)

        def change(branch: Branch) -> None:
            branch.unlink(parent, name, self._life.last_ns)
            branch.count(parent, -1)
            branch.count(ino, -2)

        self._do(lambda: self._fs.rmdir(parent, name), change)
        self._forget(ino)

    async def _rename(self) -> None:
        entry = self.an_entry()
        if entry is None:
            return
        parent, name, ino = entry
        new_parent, new_name = self.a_dir(), self.rng.choice(NAMES)
        nodes = self.branch.nodes
        node, old_ino = nodes[ino], nodes[new_parent].entries.get(new_name)
        old = None if old_ino is None else nodes[old_ino]
        if old_ino == ino or (node.is_dir and self.is_below(new_parent, ino)):
            return
        if old is not None and (old.is_dir != node.is_dir or old.entries):
            return

        def change(branch: Branch) -> None:
            now_ns = self._life.last_ns
            if old_ino is not None and old is not None:
                branch.count(old_ino, -2 if old.is_dir else -1)
                if old.is_dir:
                    branch.count(new_parent, -1)
            branch.unlink(parent, name, now_ns)
            branch.link(new_parent, new_name, ino, now_ns)
            self._moved(branch, ino, parent, new_parent)

        self._do(lambda: self._fs.rename(parent, name, new_parent, new_name, 0), change)
        if old_ino is not None:
            self._forget(old_ino)

    @staticmethod
    def _moved(branch: Branch, ino: int, parent: int, new_parent: int) -> None:
        if branch.nodes[ino].is_dir and parent != new_parent:
            branch.count(parent, -1)
            branch.count(new_parent, 1)
            branch.nodes[ino] = replace(branch.nodes[ino], parent=new_parent)

    async def _exchange(self) -> None:
        one, two = self.an_entry(), self.an_entry()
        if one is None or two is None or one[2] == two[2]:
            return
        (parent, name, ino), (new_parent, new_name, new_ino) = one, two
        nodes = self.branch.nodes
        if nodes[ino].is_dir and self.is_below(new_parent, ino):
            return
        if nodes[new_ino].is_dir and self.is_below(parent, new_ino):
            return

        def change(branch: Branch) -> None:
            branch.link(parent, name, new_ino, self._life.last_ns)
            branch.link(new_parent, new_name, ino, self._life.last_ns)
            self._moved(branch, ino, parent, new_parent)
            self._moved(branch, new_ino, new_parent, parent)

        self._do(lambda: self._fs.rename(parent, name, new_parent, new_name, 2), change)

    async def _link(self) -> None:
        entry = self.an_entry(dirs=False)
        parent, name = self.a_dir(), self.rng.choice(NAMES)
        if entry is None or name in self.branch.nodes[parent].entries:
            return
        ino = entry[2]

        def change(branch: Branch) -> None:
            branch.link(parent, name, ino, self._life.last_ns)
            branch.count(ino, 1)

        self._do(lambda: self._fs.link(ino, parent, name), change)

    async def _xattr(self) -> None:
        ino = self.rng.choice(self.inodes())
        name = self.rng.choice([b"user.a", b"user.b"])
        value = self.rng.randbytes(self.rng.randrange(40))
        there = dict(self.branch.nodes[ino].xattrs)
        if there.get(name) == value:
            return
        if name in there and self.rng.random() < 0.5:
            del there[name]
            call: Callable[[], Any] = lambda: self._fs.removexattr(ino, name)  # noqa: E731
        else:
            there[name] = value
            call = lambda: self._fs.setxattr(ino, name, value)  # noqa: E731
        wanted = tuple(sorted(there.items()))

        def change(branch: Branch) -> None:
            branch.nodes[ino] = replace(branch.nodes[ino], xattrs=wanted)

        self._do(call, change)

    async def _chmod(self) -> None:
        ino = self.rng.choice(self.inodes())
        node = self.branch.nodes[ino]
        if stat.S_ISLNK(node.mode):
            return
        bits = self.rng.choice([0o600, 0o644, 0o755, 0o700])
        mode = stat.S_IFMT(node.mode) | bits

        def change(branch: Branch) -> None:
            branch.nodes[ino] = replace(branch.nodes[ino], mode=mode)

        self._do(lambda: self._fs.setattr(ino, mode=bits), change)

    async def _read(self) -> None:
        ino = self.a_file()
        if ino is None:
            return
        offset = self.rng.choice([0, self.rng.randrange(FILE_BYTES_MAX)])
        length = self.rng.choice([100, EXTENT_BYTES, FILE_BYTES_MAX])

        def attempt() -> Any:
            node = self.branch.nodes.get(ino)
            if node is None:
                return None
            got = self._fs.read(ino, offset, length)
            if not isinstance(got, NeedExtents) and got != node.data[offset : offset + length]:
                raise Wrong(f"inode {ino}: wrong bytes at {offset}")
            return got

        await self._warm(attempt)

    # --- other than files ----------------------------------------------------------------------

    async def _fsync(self) -> None:
        generation, began_s = self._life.cache.generation, trio.current_time()
        try:
            await self._life.durability.ensure()
        except FsError as exc:
            self._life.excuse(f"fsync failed: {exc}", began_s)
            return
        host = self._life.host
        host.fsynced = max(host.fsynced, generation)

    async def _sync(self) -> None:
        """s3ws sync."""
        began_s = trio.current_time()
        wanted = self._life.cache.generation
        try:
            done = await self._life.replica.sync(lambda _: None)
        except UserError as exc:
            self._life.sync_failed(exc, began_s - EXCUSE_S)
            return
        if done["sealed"] < wanted or self._life.world.newest_of(self._life.host) < wanted:
            raise Wrong(f"sync said that {wanted} is sealed: {done}")

    async def _snapshot(self) -> None:
        """s3ws snapshot, and at times one is removed."""
        life, history = self._life, self._life.world.history
        began_s = trio.current_time()
        try:
            if len(history.snaps) >= SNAPS_MAX:
                name = self.rng.choice(sorted(history.snaps))
                # From now on it may be gone, whatever is answered.
                del history.snaps[name]
                await life.replica.history.drop(name)
                return
            name, wanted = history.new_name(), life.cache.generation
            snap = await life.replica.snapshot(NAMED, name)
        except UserError as exc:
            life.sync_failed(exc, began_s - EXCUSE_S)
        else:
            history.took(name, snap["number"], wanted)

    async def _restore(self) -> None:
        """s3ws restore."""
        snaps = self._life.world.history.snaps
        if snaps:
            await self._go_back(self.rng.choice(sorted(snaps)))

    async def _undo(self) -> None:
        """s3ws undo."""
        await self._go_back(UNDO)

    async def _go_back(self, ref: str) -> None:
        life = self._life
        began_s = trio.current_time()
        try:
            done = await life.replica.rewind(RewindAsk(ref, everything=True), lambda _: None)
        except UserError as exc:
            known = ref in life.world.history.snaps
            if exc.exit_code == ExitCode.NO_SUCH_POINT and not known:
                # Automatic ones go with their time, and somebody may just have removed it.
                return
            life.sync_failed(exc, began_s - EXCUSE_S)
            return
        life.world.count("restored" if done["restored"] else "restored nothing")
        life.world.history.went_back(ref, done["point"]["number"])

    async def _evict(self) -> None:
        """As when room is short: clean bytes go."""
        self._life.cache.put_json("hydrated", False)
        self._life.cache.evict()

    async def _hold(self) -> None:
        ino = self.a_file()
        if ino is not None and self.branch.nodes[ino].nlink:
            self._fs.open(ino)
            self._open.append(ino)

    async def _let_go(self) -> None:
        if self._open:
            ino = self._open.pop(0)
            self._fs.release(ino)
            self._forget(ino)
