"""The filesystem of a simulated mount: what nobody asked for is told to the model in step.

A person says beforehand what an operation makes of the model (`Branch.maybe`). What is done without
having been said is the program's own doing: orphans that are dropped, files that come from outside,
a tree that goes back.

Invariants
1. The model changes in the same step as the cache, and says what may have been committed if the
   process dies within it.

Called by life and people.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from s3ws_fs.cache.tx import Tx
from s3ws_fs.core.journal import Frame
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import Attr, Cred, NeedExtents, Outdated
from s3ws_fs.fs.arrivals import Arriving, Notes, Placed
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fs.rewinding import Rewind
from tests.sim.history import rewound
from tests.sim.tree import Branch, Change, Node, Wrong

if TYPE_CHECKING:
    from tests.sim.life import Life

T = TypeVar("T")


class SimFileSystem(FileSystem):
    """The real one, and the model beside it."""

    branch: Branch
    life: Life
    wrote = 0

    def _tell(self, change: Change, call: Callable[[], T]) -> T:
        """Do it; the model follows if something was committed."""
        branch, before = self.branch, self.cache.generation
        said, branch.maybe = branch.maybe, change
        try:
            return call()
        except Exception:
            change = _nothing
            raise
        finally:
            # Not when the process dies in it: then it is `maybe` that counts.
            if not self.life.host.is_gone:
                branch.maybe = said
                if self.cache.generation != before:
                    change(branch)
                    branch.generation += 1

    def _drop_orphans(self, inos: list[int]) -> None:
        def change(branch: Branch) -> None:
            for ino in inos:
                branch.nodes.pop(ino, None)

        self._tell(change, partial(super()._drop_orphans, inos))

    # --- what also people do -------------------------------------------------------------------

    def write(self, ino: int, offset: int, data: bytes | memoryview) -> int | NeedExtents:
        """Of a file that arrives; and noted is how much may have been written."""
        self.wrote = len(data)
        call = partial(super().write, ino, offset, data)
        if self.branch.maybe is not None:
            return call()

        def change(branch: Branch) -> None:
            node = branch.nodes[ino]
            held = node.data[:offset].ljust(offset, b"\0") + data + node.data[offset + len(data) :]
            branch.nodes[ino] = replace(node, data=held, mtime_ns=self.life.last_ns)

        return self._tell(change, call)

    def mkdir(self, parent: int, name: bytes, mode: int, cred: Cred) -> Attr:
        """Above a file that arrives."""
        call = partial(super().mkdir, parent, name, mode, cred)
        if self.branch.maybe is not None:
            return call()
        ino = self.cache.head.next_ino

        def change(branch: Branch) -> None:
            now_ns = self.life.last_ns
            branch.nodes[ino] = Node(stat.S_IFDIR | mode, 2, now_ns, parent=parent)
            branch.link(parent, name, ino, now_ns)
            branch.count(parent, 1)

        return self._tell(change, call)

    def unlink(self, parent: int, name: bytes) -> None:
        """What was deleted outside."""
        call = partial(super().unlink, parent, name)
        if self.branch.maybe is not None:
            return call()
        ino = self.branch.nodes[parent].entries[name]

        def change(branch: Branch) -> None:
            branch.unlink(parent, name, self.life.last_ns)
            branch.count(ino, -1)

        return self._tell(change, call)

    # --- files that arrive ---------------------------------------------------------------------

    def begin_arrival(self, wanted: Arriving, target: bytes = b"") -> int:
        ino = self.cache.head.next_ino

        def change(branch: Branch) -> None:
            branch.nodes[ino] = Node(wanted.mode, 0, wanted.mtime_ns, target)
            branch.arriving.add(ino)

        return self._tell(change, partial(super().begin_arrival, wanted, target))

    def place_beside(
        self, ino: int, wanted: Arriving, parent: int, names: Iterable[bytes], notes: Notes
    ) -> Placed:
        seen: dict[str, Any] = {}

        def change(branch: Branch) -> None:
            branch.link(parent, seen["name"], ino, seen["now_ns"])
            _name_it(branch, ino, wanted)

        placed = self._tell(
            change,
            partial(super().place_beside, ino, wanted, parent, names, _noting(notes, seen)),
        )
        self._taken(ino)
        return placed

    def place_at(
        self,
        ino: int,
        wanted: Arriving,
        parent: int,
        name: bytes,
        notes: Notes,
        *,
        keep_as: Iterable[bytes] | None = None,
    ) -> Placed:
        seen: dict[str, Any] = {}
        nodes = self.branch.nodes
        there = nodes[parent].entries.get(name) if parent in nodes else None
        if there is not None and keep_as is None and self.life.world.outsiders is not None:
            self.life.world.outsiders.gives_way(nodes, parent, name, nodes[there])

        def change(branch: Branch) -> None:
            if there is not None:
                old = branch.nodes[there]
                if old.is_file and stat.S_ISREG(wanted.mode):
                    branch.nodes[ino] = replace(branch.nodes[ino], xattrs=old.xattrs)
                if keep_as is None:
                    branch.count(there, -1)
                else:
                    branch.link(parent, seen["kept"], there, seen["now_ns"])
            branch.link(parent, name, ino, seen["now_ns"])
            _name_it(branch, ino, wanted)

        def keeping() -> Iterator[bytes]:
            for kept in keep_as or ():
                seen["kept"] = kept
                yield kept

        placed = self._tell(
            change,
            partial(
                super().place_at, ino, wanted, parent, name, _noting(notes, seen),
                keep_as=None if keep_as is None else keeping(),
            ),
        )  # fmt: skip
        self._taken(ino)
        return placed

    # --- restores ------------------------------------------------------------------------------

    def rewind(self, change: Rewind, frames: Iterable[Frame]) -> list[int] | None:
        if self.cache.generation != change.base:
            return super().rewind(change, frames)
        world = self.life.world
        rewinder = self.life.replica.rewinder
        assert rewinder is not None
        plan = list(frames)
        newest = world.newest
        if newest is None or newest.generation != change.base:
            raise Wrong(f"a restore at {change.base}, and sealed is {newest and newest.generation}")
        nodes = rewound(self.branch.nodes, world.history.states[rewinder._point], plan)

        def changed(branch: Branch) -> None:
            branch.nodes = dict(nodes)

        return self._tell(changed, partial(super().rewind, change, plan))

    # --- files that arrive, and the kernel -----------------------------------------------------

    def _taken(self, ino: int) -> None:
        outsiders = self.life.world.outsiders
        if outsiders is not None:
            outsiders.taken(self.life.host, self.branch.nodes[ino].data)

    async def unknown_of(self, inos: list[int]) -> list[int] | None:
        """There is no kernel: it knows what is open."""
        return [ino for ino in inos if not self.is_open(ino)]

    async def kernel_forget(self, outdated: Outdated) -> None:
        """There is no kernel: what it would let go of is let go."""
        for ino in outdated.inodes:
            node = self.branch.nodes.get(ino)
            if node is not None and node.nlink == 0:
                self.forget(ino)


def _nothing(_: Branch) -> None:
    """No change."""


def _noting(notes: Notes, seen: dict[str, Any]) -> Notes:
    """Within the transaction: when it is, and the name that was found."""

    def noted(tx: Tx, rec: InodeRec) -> None:
        seen["name"], seen["now_ns"] = rec.name, tx.now_ns
        notes(tx, rec)

    return noted


def _name_it(branch: Branch, ino: int, wanted: Arriving) -> None:
    node = branch.nodes[ino]
    branch.nodes[ino] = replace(node, mode=wanted.mode, nlink=1, mtime_ns=wanted.mtime_ns)
    branch.arriving.discard(ino)
