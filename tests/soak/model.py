"""A tree in memory, changed by the same single calls as the one on the mount.

Invariants
1. `apply` is pure: the same steps give the same tree, in the program that makes them and in the one
   that judges what a killed mount kept.
2. A step is one system call that changes the tree: after a kill it is there whole, or not at all;
   but a write may end at a page's boundary, where the kernel parts it into requests.

Called by actors and verify.
"""

from __future__ import annotations

import copy
import os
import random
import stat
from dataclasses import dataclass, field
from typing import Any, Final

Step = list[Any]
"""Name of the call and its arguments, as JSON has them. Paths are relative."""

FILE_BYTES_MAX: Final = 200_000
PIECE_BYTES_MAX: Final = 40_000
NAMES: Final = tuple("abcdefgh")
PAGE_BYTES: Final = 4096
XATTR: Final = "user.soak"
WEIGHTS: Final = {
    "create": 12,
    "write": 20,
    "append": 20,
    "truncate": 4,
    "rename": 8,
    "replace": 10,
    "link": 4,
    "unlink": 8,
    "mkdir": 8,
    "rmdir": 3,
    "symlink": 3,
    "chmod": 5,
    "setxattr": 5,
}


@dataclass
class Node:
    """A file (`data`), a directory (`entries`) or a symbolic link (`target`)."""

    data: bytearray | None = None
    entries: dict[str, Node] | None = None
    target: str | None = None
    mode: int = 0o644
    xattr: str | None = None


def bytes_of(seed: int, length: int) -> bytes:
    """What a step with this seed writes."""
    return random.Random(seed).randbytes(length)


@dataclass
class Tree:
    """The tree below one directory."""

    root: Node = field(default_factory=lambda: Node(entries={}, mode=0o755))

    def _dir_of(self, path: str) -> tuple[dict[str, Node], str]:
        *above, last = path.split("/")
        node = self.root
        for name in above:
            assert node.entries is not None
            node = node.entries[name]
        assert node.entries is not None
        return node.entries, last

    def node(self, path: str) -> Node:
        """What stands at a path. Raises KeyError."""
        entries, name = self._dir_of(path)
        return entries[name]

    def paths(self) -> list[tuple[str, Node]]:
        """Every path with its node, sorted."""
        found: list[tuple[str, Node]] = []

        def walk(node: Node, prefix: str) -> None:
            for name, child in sorted((node.entries or {}).items()):
                found.append((prefix + name, child))
                walk(child, f"{prefix}{name}/")

        walk(self.root, "")
        return found

    def apply(self, step: Step) -> None:
        """Do what the call does. The step must be possible."""
        kind, *arguments = step
        getattr(self, f"_{kind}")(*arguments)

    def after(self, step: Step) -> Tree:
        """A copy on which the step was done."""
        other = copy.deepcopy(self)
        other.apply(step)
        return other

    def _create(self, path: str) -> None:
        entries, name = self._dir_of(path)
        entries[name] = Node(data=bytearray())

    def _mkdir(self, path: str) -> None:
        entries, name = self._dir_of(path)
        entries[name] = Node(entries={}, mode=0o755)

    def _symlink(self, target: str, path: str) -> None:
        entries, name = self._dir_of(path)
        entries[name] = Node(target=target, mode=0o777)

    def _write(
        self, path: str, offset: int, seed: int, length: int, kept: int | None = None
    ) -> None:
        """`kept`: so many of its bytes were taken (all, when not said)."""
        data = self.node(path).data
        assert data is not None
        piece = bytes_of(seed, length)[:kept]
        if piece and len(data) < offset:
            data.extend(bytes(offset - len(data)))
        data[offset : offset + len(piece)] = piece

    def _truncate(self, path: str, size: int) -> None:
        data = self.node(path).data
        assert data is not None
        if size > len(data):
            data.extend(bytes(size - len(data)))
        del data[size:]

    def _unlink(self, path: str) -> None:
        entries, name = self._dir_of(path)
        del entries[name]

    _rmdir = _unlink

    def _link(self, path: str, new: str) -> None:
        node = self.node(path)
        entries, name = self._dir_of(new)
        entries[name] = node

    def _rename(self, path: str, new: str) -> None:
        entries, name = self._dir_of(path)
        node = entries[name]
        others, other = self._dir_of(new)
        if others.get(other) is node:
            # Two names of one file: rename(2) does nothing.
            return
        del entries[name]
        others[other] = node

    def _chmod(self, path: str, mode: int) -> None:
        self.node(path).mode = mode

    def _setxattr(self, path: str, value: str) -> None:
        self.node(path).xattr = value


def choose(tree: Tree, rng: random.Random) -> Step:
    """A step that is possible now: mostly small writes, saves and appends, as an agent makes."""
    paths = tree.paths()
    files = [path for path, node in paths if node.data is not None]
    dirs = [path for path, node in paths if node.entries is not None]
    empty = [path for path, node in paths if node.entries == {}]
    place = rng.choice(["", *(f"{path}/" for path in dirs if path.count("/") < 3)])
    free = [name for name in NAMES if f"{place}{name}" not in dict(paths)]
    kind = rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
    if free and (kind == "mkdir" or kind == "create" or not files):
        return ["mkdir" if kind == "mkdir" else "create", place + free[0]]
    if free and kind == "symlink":
        return ["symlink", rng.choice(["nowhere", "../a", "b"]), place + free[0]]
    if kind == "rmdir" and empty:
        return ["rmdir", rng.choice(empty)]
    if not files:
        # Another place has a free name, or something to remove.
        return choose(tree, rng)
    path = rng.choice(files)
    data = tree.node(path).data
    assert data is not None
    size = len(data)
    match kind:
        case "truncate":
            return ["truncate", path, rng.randrange(size + 1)]
        case "replace":
            return ["rename", path, rng.choice(files)]
        case "rename" if free:
            moved = rng.choice([path, *(p for p in dirs if not place.startswith(p + "/"))])
            return ["rename", moved, place + free[0]]
        case "link" if free:
            return ["link", path, place + free[0]]
        case "unlink":
            return ["unlink", path]
        case "chmod":
            return ["chmod", path, rng.choice([0o600, 0o640, 0o755])]
        case "setxattr":
            return ["setxattr", path, f"{rng.randrange(1 << 30):x}"]
    length = rng.randint(1, 64) if rng.random() < 0.6 else rng.randint(1, PIECE_BYTES_MAX)
    offset = size if kind == "append" else rng.randrange(size + 1)
    if offset + length > FILE_BYTES_MAX:
        return ["truncate", path, 0]
    return ["write", path, offset, rng.randrange(1 << 30), length]


def partly(step: Step) -> list[Step]:
    """What a step that was cut off may have come to, besides all or nothing."""
    if step[0] != "write":
        return []
    _, _, offset, _, length = step
    first = PAGE_BYTES - offset % PAGE_BYTES
    return [[*step, kept] for kept in range(first, length, PAGE_BYTES)]


class ShortWriteError(Exception):
    """A write took only the first `kept` bytes."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        super().__init__(kept)


def carry_out(step: Step, directory: str) -> None:
    """The system call of a step, below `directory`. Raises OSError, ShortWriteError."""
    kind, *arguments = step
    at = [f"{directory}/{item}" for item in arguments if isinstance(item, str)]
    match kind:
        case "create":
            os.close(os.open(at[0], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        case "write":
            _, offset, seed, length = arguments
            fd = os.open(at[0], os.O_WRONLY)
            try:
                written = os.pwrite(fd, bytes_of(seed, length), offset)
                if written < length:
                    raise ShortWriteError(written)
            finally:
                os.close(fd)
        case "symlink":
            os.symlink(arguments[0], at[1])
        case "setxattr":
            os.setxattr(at[0], XATTR, arguments[1].encode())
        case "chmod" | "truncate":
            getattr(os, kind)(at[0], arguments[1])
        case _:
            getattr(os, kind)(*at)


def tree_differences(tree: Tree, directory: str) -> list[str]:
    """Where the tree on disk is not the model's, in words."""
    found: list[str] = []
    wanted = dict(tree.paths())
    seen = set()
    for above, dirs, files in os.walk(directory):
        for name in (*dirs, *files):
            seen.add(os.path.relpath(f"{above}/{name}", directory))
    found += [f"{path}: should not be there" for path in sorted(seen - wanted.keys())]
    for path, node in wanted.items():
        if path not in seen:
            found.append(f"{path}: missing")
            continue
        found += [f"{path}: {wrong}" for wrong in _wrong(f"{directory}/{path}", node)]
    return found


def _wrong(path: str, node: Node) -> list[str]:
    info = os.lstat(path)
    if node.target is not None:
        same = stat.S_ISLNK(info.st_mode) and os.readlink(path) == node.target
        return [] if same else ["another link"]
    if stat.S_IMODE(info.st_mode) != node.mode:
        return [f"mode {info.st_mode:o}"]
    if node.entries is not None:
        return [] if stat.S_ISDIR(info.st_mode) else ["no directory"]
    with open(path, "rb") as file:
        data = file.read()
    found = (
        []
        if data == bytes(node.data or b"")
        else [f"{len(data)} bytes, other ones than were written"]
    )
    value = os.getxattr(path, XATTR).decode() if XATTR in os.listxattr(path) else None
    return found if value == node.xattr else [*found, f"attribute {value}"]
