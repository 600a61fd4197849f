"""What a person may choose from on a mount.

Invariants
1. Choices are by the model and the seed alone: nothing of the program decides them.

Called by people.
"""

from __future__ import annotations

import random
from typing import Final

from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import ROOT_INO
from tests.sim.tree import Branch

NODES_MAX: Final = 120
FILE_BYTES_MAX: Final = 8 * EXTENT_BYTES
NAMES: Final = (
    b"a", b"b", b"c", b"d", b"e", b"f.txt", b"g.py", b"h", b"tmp", b"new",
    b"\xff\xfe", b"50%41", b"back\\slash", b"%2F", b"long" * 60,
)  # fmt: skip


class Choosing:
    """A person's choices, on the mount that has this model."""

    rng: random.Random

    @property
    def branch(self) -> Branch:
        """What the mount must hold."""
        raise NotImplementedError

    def dirs(self) -> list[int]:
        return [ino for ino, n in self.branch.nodes.items() if n.is_dir and n.nlink]

    def inodes(self) -> list[int]:
        """All but those that nobody can reach: files on their way in."""
        return [ino for ino in self.branch.nodes if ino not in self.branch.arriving]

    def a_file(self) -> int | None:
        files = [ino for ino in self.inodes() if self.branch.nodes[ino].is_file]
        return self.rng.choice(files) if files else None

    def a_dir(self) -> int:
        return self.rng.choice(self.dirs())

    def an_entry(self, *, dirs: bool | None = None) -> tuple[int, bytes, int] | None:
        """A name that is there: of a directory, of anything else, or of either."""
        nodes = self.branch.nodes
        found = [
            (parent, name, ino)
            for parent in self.dirs()
            for name, ino in nodes[parent].entries.items()
            if dirs is None or nodes[ino].is_dir == dirs
        ]
        return self.rng.choice(found) if found else None

    def is_below(self, ino: int, above: int) -> bool:
        while ino != ROOT_INO:
            if ino == above:
                return True
            ino = self.branch.nodes[ino].parent
        return above == ROOT_INO

    def some_bytes(self) -> bytes:
        rng = self.rng
        kind = rng.random()
        if kind < 0.75:
            return rng.randbytes(rng.randrange(1, 200))
        if kind < 0.9:
            return rng.randbytes(rng.randrange(200, 5000))
        if kind < 0.95:
            return bytes(rng.randrange(1, EXTENT_BYTES))
        return rng.randbytes(rng.choice([EXTENT_BYTES, rng.randrange(1, 3 * EXTENT_BYTES)]))
