"""Git objects written by ourselves: no git runs, and no byte of a file passes a filter.

Invariants
1. The same content gives the same object names, at any time and on any machine: commits have a
   fixed author and no time.
2. An object appears under its name only when it is whole.

Called by snapshot.git.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from s3ws_fs.core.errors import FormatError

TREE: Final = 0o040000
FILE: Final = 0o100644
EXECUTABLE: Final = 0o100755
SYMLINK: Final = 0o120000
GITLINK: Final = 0o160000

SHA1: Final = "sha1"
SHA256: Final = "sha256"
OBJECT_FORMATS: Final = (SHA1, SHA256)

_AUTHOR: Final = b"s3ws-fs <> 0 +0000"
_ZLIB_LEVEL: Final = 1
"""They are packed again for the bundle."""

Files = Mapping[bytes, tuple[int, str]]
"""By path: mode and object name."""


def _new_hash(object_format: str) -> Any:
    if object_format == SHA1:
        return hashlib.sha1(usedforsecurity=False)
    return hashlib.new(object_format)


def hash_blob(object_format: str, size: int, pieces: Iterable[bytes]) -> str:
    """The name of a blob. Raises FormatError when the pieces have another size."""
    state = _new_hash(object_format)
    state.update(b"blob %d\0" % size)
    done = 0
    for piece in pieces:
        state.update(piece)
        done += len(piece)
    if done != size:
        raise FormatError("file", f"{done} bytes instead of {size}")
    name: str = state.hexdigest()
    return name


class ObjectWriter:
    """Writes loose objects below `directory` (an `objects` directory of git)."""

    def __init__(self, directory: Path, object_format: str) -> None:
        self.directory = directory
        self.object_format = object_format
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def blob(self, size: int, pieces: Iterable[bytes]) -> str:
        """Write a blob; its name. Raises FormatError when the pieces have another size."""
        return self._put(b"blob", size, pieces)

    def data(self, content: bytes) -> str:
        """Write a blob that is in memory; its name."""
        return self._put(b"blob", len(content), (content,))

    def tree(self, entries: Iterable[tuple[int, bytes, str]]) -> str:
        """Write a tree of (mode, name, object); its name."""
        ordered = sorted(entries, key=lambda e: e[1] + b"/" if e[0] == TREE else e[1])
        body = b"".join(
            b"%o %s\0" % (mode, name) + bytes.fromhex(oid) for mode, name, oid in ordered
        )
        return self._put(b"tree", len(body), (body,))

    def commit(self, tree: str, parents: Iterable[str], message: str) -> str:
        """Write a commit; its name."""
        lines = [b"tree " + tree.encode()]
        lines += [b"parent " + parent.encode() for parent in parents]
        lines += [b"author " + _AUTHOR, b"committer " + _AUTHOR, b"", message.encode(), b""]
        body = b"\n".join(lines)
        return self._put(b"commit", len(body), (body,))

    def trees(self, files: Files) -> str:
        """Write the trees over these files; the name of the topmost."""
        entries: dict[bytes, list[tuple[int, bytes, str]]] = {b"": []}
        for path, (mode, oid) in files.items():
            above, _, name = path.rpartition(b"/")
            _directory(entries, above).append((mode, name, oid))
        for path in sorted(entries, key=lambda path: -path.count(b"/")):
            if path:
                above, _, name = path.rpartition(b"/")
                entries[above].append((TREE, name, self.tree(entries[path])))
        return self.tree(entries[b""])

    def _put(self, kind: bytes, size: int, pieces: Iterable[bytes]) -> str:
        head = kind + b" %d\0" % size
        state = _new_hash(self.object_format)
        state.update(head)
        packer = zlib.compressobj(_ZLIB_LEVEL)
        fd, name = tempfile.mkstemp(prefix="tmp_obj_", dir=self.directory)
        temporary = Path(name)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(packer.compress(head))
                done = 0
                for piece in pieces:
                    state.update(piece)
                    file.write(packer.compress(piece))
                    done += len(piece)
                file.write(packer.flush())
            if done != size:
                raise FormatError("file", f"{done} bytes instead of {size}")
            oid: str = state.hexdigest()
            place = self.directory / oid[:2] / oid[2:]
            place.parent.mkdir(exist_ok=True, mode=0o700)
            temporary.replace(place)
            return oid
        finally:
            temporary.unlink(missing_ok=True)


def _directory(
    entries: dict[bytes, list[tuple[int, bytes, str]]], path: bytes
) -> list[tuple[int, bytes, str]]:
    """The entries of a directory; those above it come to be along."""
    found = entries.get(path)
    if found is None:
        found = entries[path] = []
        above = path
        while above:
            above = above.rpartition(b"/")[0]
            if above in entries:
                break
            entries[above] = []
    return found
