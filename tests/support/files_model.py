"""Files as they should be: a pure model of what operations do, and what a mount really shows.

Invariants
1. An operation is one call of the filesystem, so one transaction: the model's states are the only
   ones that a cache may ever show.
2. `Files.apply` says the errno that the filesystem must say, and changes nothing when it is not 0.
3. A `State` is a plain value: by path kind, bytes, extended attributes, and all paths of the inode.

Called by the tests of crash.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from s3ws_fs.core.errors import FsError
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import ROOT_INO, Cred, NeedExtents
from s3ws_fs.fs.filesystem import FileSystem

CRED: Final = Cred(uid=1000, gid=1000)
XATTR: Final = b"user.note"

Shown = tuple[str, bytes, tuple[tuple[bytes, bytes], ...], tuple[str, ...]]
State = Mapping[str, Shown]
"""By path below the root ("" is the root): kind, bytes (or target), xattrs, paths of the inode."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `other` is a second path; `at` an offset or a size."""

    kind: str
    path: str
    other: str = ""
    at: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        words = [self.kind, self.path or "/"]
        words += [self.other] if self.other else []
        words += [f"@{self.at}"] if self.at else []
        words += [f"{len(self.data)}B"] if self.data else []
        return " ".join(words)


@dataclass(eq=False, slots=True)
class _Node:
    kind: str
    data: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Files:
    """The model: a flat table of paths."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {"": _Node("dir")}

    def copy(self) -> Files:
        """Another one in the same state."""
        made = Files()
        twins = {id(n): _Node(n.kind, n.data, dict(n.xattrs)) for n in self._nodes.values()}
        made._nodes = {path: twins[id(node)] for path, node in self._nodes.items()}
        return made

    def state(self) -> State:
        """What a mount must show."""
        paths: dict[int, list[str]] = {}
        for path, node in sorted(self._nodes.items()):
            paths.setdefault(id(node), []).append(path)
        return {
            path: (n.kind, n.data, tuple(sorted(n.xattrs.items())), tuple(paths[id(n)]))
            for path, n in self._nodes.items()
        }

    def apply(self, op: Op) -> int:
        """Do it; returns 0, or the errno for which nothing was changed."""
        method = getattr(self, f"_{op.kind}")
        code: int = method(op)
        return code

    def _above(self, path: str) -> int:
        above = self._nodes.get(path.rpartition("/")[0])
        if above is None:
            return errno.ENOENT
        return 0 if above.kind == "dir" else errno.ENOTDIR

    def _new(self, path: str, node: _Node) -> int:
        code = self._above(path)
        if code or path in self._nodes:
            return code or errno.EEXIST
        self._nodes[path] = node
        return 0

    def _create(self, op: Op) -> int:
        return self._new(op.path, _Node("file"))

    def _mkdir(self, op: Op) -> int:
        return self._new(op.path, _Node("dir"))

    def _symlink(self, op: Op) -> int:
        return self._new(op.path, _Node("symlink", op.data))

    def _file(self, path: str) -> tuple[_Node | None, int]:
        node = self._nodes.get(path)
        if node is None:
            return None, self._above(path) or errno.ENOENT
        return (node, 0) if node.kind == "file" else (None, errno.EISDIR)

    def _write(self, op: Op) -> int:
        node, code = self._file(op.path)
        if node is not None:
            before = node.data[: op.at].ljust(op.at, b"\0")
            node.data = before + op.data + node.data[op.at + len(op.data) :]
        return code

    def _append(self, op: Op) -> int:
        node, code = self._file(op.path)
        if node is not None:
            node.data += op.data
        return code

    def _truncate(self, op: Op) -> int:
        node, code = self._file(op.path)
        if node is not None:
            node.data = node.data[: op.at].ljust(op.at, b"\0")
        return code

    def _setxattr(self, op: Op) -> int:
        node = self._nodes.get(op.path)
        if node is None:
            return self._above(op.path) or errno.ENOENT
        node.xattrs[XATTR] = op.data
        return 0

    def _link(self, op: Op) -> int:
        node = self._nodes.get(op.path)
        if node is None:
            return self._above(op.path) or errno.ENOENT
        return errno.EPERM if node.kind == "dir" else self._new(op.other, node)

    def _unlink(self, op: Op) -> int:
        node = self._nodes.get(op.path)
        if node is None:
            return self._above(op.path) or errno.ENOENT
        if node.kind == "dir":
            return errno.EISDIR
        del self._nodes[op.path]
        return 0

    def _rmdir(self, op: Op) -> int:
        node = self._nodes.get(op.path)
        if node is None:
            return self._above(op.path) or errno.ENOENT
        if node.kind != "dir":
            return errno.ENOTDIR
        if self._below(op.path):
            return errno.ENOTEMPTY
        del self._nodes[op.path]
        return 0

    def _below(self, path: str) -> list[str]:
        return [name for name in self._nodes if name.startswith(path + "/")]

    def _rename(self, op: Op) -> int:
        node, there = self._nodes.get(op.path), self._nodes.get(op.other)
        if node is None:
            return self._above(op.path) or errno.ENOENT
        code = self._above(op.other)
        if code or node is there:
            return code
        if node.kind == "dir" and op.other.startswith(op.path + "/"):
            return errno.EINVAL
        if there is not None:
            if (there.kind == "dir") != (node.kind == "dir"):
                return errno.EISDIR if there.kind == "dir" else errno.ENOTDIR
            if self._below(op.other):
                return errno.ENOTEMPTY
        moved = {p: p.replace(op.path, op.other, 1) for p in [op.path, *self._below(op.path)]}
        self._nodes.update({new: self._nodes.pop(old) for old, new in moved.items()})
        return 0

    def _fsync(self, op: Op) -> int:
        return 0 if op.path in self._nodes else errno.ENOENT


def perform(fs: FileSystem, op: Op) -> int | NeedExtents:
    """The same on a filesystem: 0, an errno, or what has to be fetched first.

    fsync changes nothing here: making a sync point is the caller's.
    """
    try:
        return _perform(fs, op)
    except FsError as exc:
        return exc.errno


def _perform(fs: FileSystem, op: Op) -> int | NeedExtents:
    if op.kind in ("create", "mkdir", "symlink"):
        parent, name = _place(fs, op.path)
        if op.kind == "create":
            fs.create(parent, name, 0o644, CRED)
        elif op.kind == "mkdir":
            fs.mkdir(parent, name, 0o755, CRED)
        else:
            fs.symlink(parent, name, op.data, CRED)
    elif op.kind in ("unlink", "rmdir"):
        getattr(fs, op.kind)(*_place(fs, op.path))
    elif op.kind == "rename":
        fs.rename(*_place(fs, op.path), *_place(fs, op.other), 0)
    elif op.kind == "link":
        fs.link(_ino(fs, op.path), *_place(fs, op.other))
    elif op.kind == "setxattr":
        fs.setxattr(_ino(fs, op.path), XATTR, op.data)
    elif op.kind == "fsync":
        _ino(fs, op.path)
    else:
        return _change_bytes(fs, op)
    return 0


def _change_bytes(fs: FileSystem, op: Op) -> int | NeedExtents:
    ino = _ino(fs, op.path)
    if op.kind == "truncate":
        done: object = fs.setattr(ino, size=op.at)
    else:
        offset = fs.getattr(ino).size if op.kind == "append" else op.at
        done = fs.write(ino, offset, op.data)
        assert isinstance(done, NeedExtents) or done == len(op.data)
    return done if isinstance(done, NeedExtents) else 0


def _ino(fs: FileSystem, path: str) -> int:
    ino = ROOT_INO
    for name in path.encode().split(b"/"):
        if name:
            ino = fs.lookup(ino, name).ino
    return ino


def _place(fs: FileSystem, path: str) -> tuple[int, bytes]:
    above, _, name = path.rpartition("/")
    return _ino(fs, above), name.encode()


def shown(fs: FileSystem) -> State | NeedExtents:
    """What a filesystem shows, or the first thing that is cold."""
    paths: dict[int, list[str]] = {}
    recs: dict[int, InodeRec] = {}
    with fs.cache.read() as view:
        todo = [(ROOT_INO, "")]
        while todo:
            ino, path = todo.pop()
            rec = view.inode(ino)
            assert rec is not None, path
            recs[ino] = rec
            paths.setdefault(ino, []).append(path)
            if rec.is_dir:
                above = f"{path}/" if path else ""
                todo += [(child, above + name.decode()) for _, name, child in view.entries(ino)]
        xattrs = {ino: tuple(sorted(view.xattrs(ino))) for ino in recs}
    found: dict[str, Shown] = {}
    for ino, rec in recs.items():
        kind, data = ("dir", b"") if rec.is_dir else ("symlink", rec.target)
        if not rec.is_dir and not rec.target:
            kind = "file"
            got = fs.read(ino, 0, rec.size)
            if isinstance(got, NeedExtents):
                return got
            data = got
        together = tuple(sorted(paths[ino]))
        for path in together:
            found[path] = (kind, data, xattrs[ino], together)
    return found


def differences(wanted: State, got: State) -> list[str]:
    """In words; empty when there are none."""
    found = [f"{path!r} is missing" for path in sorted(wanted.keys() - got.keys())]
    found += [f"{path!r} should not be" for path in sorted(got.keys() - wanted.keys())]
    for path in sorted(wanted.keys() & got.keys()):
        for what, a, b in zip(
            ("kind", "bytes", "xattrs", "links"), wanted[path], got[path], strict=True
        ):
            if a != b:
                found.append(f"{path!r}: {what} {_short(b)}, wanted {_short(a)}")
    return found


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 24:
        return f"{len(value)} bytes {value[:12]!r}…"
    return repr(value)
