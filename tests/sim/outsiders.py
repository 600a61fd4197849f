"""Somebody else, who changes the mirror with a tool of his own; and what may never come of it.

Invariants
1. What he put is overwritten or removed by the program only when a seal holds those bytes, or the
   workspace had them and a person took them out again, or they are bytes of ours for that very
   path, or the policy gives them up (workspace-wins).
2. A file of ours gives way to his (bucket-wins) without a copy only when the bucket has shown
   exactly those bytes at that path.
3. He does nothing while everything is to come into step; nor before anything is sealed, since what
   stands then is imported (tests/replica/test_importing.py).

Called by world; told by the bucket and by the filesystem of the simulation.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio
import xxhash

from s3ws_fs.core.bounds import POLICIES, WORKSPACE_WINS
from s3ws_fs.core.layout import FILES_PREFIX, mirror_path
from tests.sim.tree import Node, Nodes, Wrong, path_of

if TYPE_CHECKING:
    from tests.sim.hosts import Host
    from tests.sim.world import World

OUTSIDERS_CHANCE: Final = 0.5
"""Of runs, so many have one."""
PACE_S: Final = 40.0
NAMES: Final = ("a", "b", "c", "f.txt", "g.py", "tmp", "out", "other", "50%2541", "bad%41name")
"""The last one is the path of no file."""
EVERYTHING_CHANCE: Final = 0.02
"""Of what he does, so often it is `rm -r`."""


@dataclass
class Version:
    """What he put somewhere, as long as it stands."""

    data: bytes
    is_sealed: bool = False
    taken_by: list[Host] = field(default_factory=list)


class Outsiders:
    """See the module. `policy` is the workspace's."""

    def __init__(self, world: World, rng: random.Random, policy: str = "") -> None:
        self._world = world
        self._rng = rng
        self.policy = policy or rng.choice(POLICIES)
        self._files = world.prefix + FILES_PREFIX
        self._is_acting = False
        self.standing: dict[str, Version] = {}
        """By whole key."""
        self._shown: dict[str, set[bytes]] = {}
        """Digests of what the program ever put at a key."""

    async def run(self) -> None:
        """Now and then he does something, for ever."""
        while True:
            await trio.sleep(self._rng.expovariate(1 / PACE_S))
            newest = self._world.newest
            if newest is not None and newest.generation and not self._world.weather.stays_fair:
                self._act()

    def _act(self) -> None:
        rng = self._rng
        keys = sorted(key for key in self._world.bucket._objects if key.startswith(self._files))
        kind = rng.random()
        if keys and kind < EVERYTHING_CHANCE:
            self._delete(*keys)
        elif keys and kind < 0.2:
            self._delete(rng.choice(keys))
        elif keys and kind < 0.65:
            self._put(rng.choice(keys))
        else:
            depth = rng.choice([1, 1, 2, 3])
            self._put(self._files + "/".join(rng.choices(NAMES, k=depth)))

    def _delete(self, *keys: str) -> None:
        self._begin("outside deletes", *keys)
        for key in keys:
            self._world.bucket.delete(key)
        self._is_acting = False

    def _put(self, key: str) -> None:
        rng = self._rng
        self._begin("outside puts", key)
        there = self._world.bucket._objects.get(key)
        said = rng.choice(
            [
                {},
                {} if there is None else there.info.metadata,
                {"mode": str(0o100600), "uid": "7", "mtime": "1700000000.5"},
                {"mode": str(0o120777)},
            ]
        )
        size = rng.choice([8, rng.randrange(8, 3000), rng.randrange(8, 3000), 70_000])
        self._world.bucket.put(key, rng.randbytes(size), metadata=said)
        self._is_acting = False

    def _begin(self, what: str, *keys: str) -> None:
        self._world.note(what, *(key.removeprefix(self._files) for key in keys))
        self._world.count(what)
        # Whoever is in the middle of something about these objects may fail, and try again.
        self._world.weather.trouble()
        self._is_acting = True

    # --- told ----------------------------------------------------------------------------------

    def was_put(self, key: str, data: bytes) -> None:
        """By him, or by the program."""
        if not key.startswith(self._files):
            return
        if self._is_acting:
            self.standing[key] = Version(data)
            return
        self._replaced(key, data)
        self._shown.setdefault(key, set()).add(_digest(data))

    def was_removed(self, key: str) -> None:
        """By him, or by the program."""
        if self._is_acting:
            self.standing.pop(key, None)
        else:
            self._replaced(key, None)

    def _replaced(self, key: str, data: bytes | None) -> None:
        """Invariant 1."""
        version = self.standing.pop(key, None)
        if version is None or version.data == data or version.is_sealed:
            return
        if self.policy == WORKSPACE_WINS or _digest(version.data) in self._shown.get(key, ()):
            return
        if any(_took_out(host, version.data) for host in version.taken_by):
            return
        what = "removed" if data is None else "overwritten"
        raise Wrong(f"{key} was put by somebody else, is nowhere else, and was {what}")

    def sealed(self, nodes: Nodes) -> None:
        """A seal stands that holds this."""
        if self.standing:
            held = {node.data for node in nodes.values()}
            for version in self.standing.values():
                version.is_sealed = version.is_sealed or version.data in held

    def taken(self, host: Host, data: bytes) -> None:
        """A file with these bytes, brought in, has its name now."""
        self._world.count("outside taken over")
        for version in self.standing.values():
            if version.data == data:
                version.taken_by.append(host)

    def gives_way(self, nodes: Nodes, parent: int, name: bytes, node: Node) -> None:
        """Invariant 2: this file of ours is replaced, and no copy is kept."""
        path = path_of(nodes, parent, name)
        text, _ = mirror_path(path, len(self._world.prefix))
        data = b"" if node.is_special else node.data
        if _digest(data) not in self._shown.get(self._files + text, ()):
            raise Wrong(f"{path!r} gave way, and the bucket never showed it")


def _took_out(host: Host, data: bytes) -> bool:
    """Whether this host, which brought the bytes in, has them no more."""
    branch = host.branch
    return branch is not None and all(node.data != data for node in branch.nodes.values())


def _digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)
