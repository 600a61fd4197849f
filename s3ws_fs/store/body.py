"""What can be put: bytes, (a part of) an open file, read by position, or what is made meanwhile.

Invariants
1. `read_at` is thread-safe and moves no file position: parts of one body are read in parallel and
   again on a retry.
2. A file that became shorter than it was said to be is an error, never a short object.
3. What a Composed body says of ranges that stand in the store already is a hint: a store that can't
   copy them takes all of it from `read_at`, and the object is the same.

Called by the stores; `FileSlice` by everyone who puts from a file, `Composed` by the mirror.
"""

from __future__ import annotations

import abc
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from s3ws_fs.core.errors import PermanentError


@dataclass(frozen=True, slots=True)
class FileSlice:
    """`length_bytes` from `offset_bytes` of the file `fd`, which the caller keeps open."""

    fd: int
    offset_bytes: int
    length_bytes: int


class Pieces(abc.ABC):
    """A body that is made while it is read: for what fits neither memory nor a disk."""

    size_bytes: int

    @abc.abstractmethod
    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, short at the end only. Thread-safe, and the same each time."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A range of a body that an object has from its byte `key_bytes` on. That object is never
    overwritten; or, with an ETag, it is the one that the body replaces.
    """

    offset_bytes: int
    length_bytes: int
    key: str
    key_bytes: int
    etag: str | None = None


class Composed(Pieces):
    """Pieces of which some ranges stand in the store already; these rise and don't overlap."""

    def __init__(self, pieces: Pieces, standing: Sequence[Standing]) -> None:
        self.size_bytes = pieces.size_bytes
        self.standing = tuple(standing)
        self._pieces = pieces

    def read_at(self, offset: int, length: int) -> bytes:
        """See Pieces.read_at."""
        return self._pieces.read_at(offset, length)

    def usable(self, key: str, if_match: str | None) -> list[Standing]:
        """What may be copied into `key` when it is replaced on this condition.

        Of the object that is replaced only where the same condition holds until the end: not every
        server keeps the one on the source.
        """
        return [
            item
            for item in self.standing
            if item.etag is None or (item.key, item.etag) == (key, if_match)
        ]

    def with_keys(self, full: Callable[[str], str]) -> Composed:
        """The same with other names for the objects."""
        renamed = [replace(item, key=full(item.key)) for item in self.standing]
        return Composed(self._pieces, renamed)


Body = bytes | bytearray | memoryview | FileSlice | Pieces | BinaryIO


class Source:
    """A body with a known size that is read by position."""

    def __init__(self, op: str, key: str, body: Body) -> None:
        """A BinaryIO stands for its whole file; one without a descriptor is read into memory."""
        self._op, self._key = op, key
        self._view: memoryview | None = None
        self._slice: FileSlice | None = None
        self._pieces: Pieces | None = None
        if isinstance(body, Pieces):
            self._pieces = body
        elif isinstance(body, FileSlice):
            self._slice = body
        elif isinstance(body, bytes | bytearray | memoryview):
            self._view = memoryview(body).cast("B")
        else:
            self._slice, self._view = _from_file(body)
        self.size_bytes = self._slice.length_bytes if self._slice else len(self._view or b"")
        if self._pieces is not None:
            self.size_bytes = self._pieces.size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises PermanentError when they are not there."""
        if self._view is not None:
            data = bytes(self._view[offset : offset + length])
        elif self._pieces is not None:
            data = self._pieces.read_at(offset, length)
        else:
            data = self._pread(offset, length)
        if len(data) != length:
            raise PermanentError(self._op, self._key, "the file to put became shorter meanwhile")
        return data

    def read_all(self) -> bytes:
        """All of it."""
        return self.read_at(0, self.size_bytes)

    def stream(self) -> bytes | BinaryIO:
        """For an HTTP client: the bytes, or a seekable reader of its own that loads none ahead."""
        if self._view is not None:
            return self._view.obj if isinstance(self._view.obj, bytes) else bytes(self._view)
        return cast(BinaryIO, _Reader(self))

    def _pread(self, offset: int, length: int) -> bytes:
        assert self._slice is not None
        start, pieces = self._slice.offset_bytes + offset, []
        try:
            while length:
                piece = os.pread(self._slice.fd, length, start)
                if not piece:
                    break
                pieces.append(piece)
                start += len(piece)
                length -= len(piece)
        except OSError as exc:
            detail = f"can't read the file to put: {exc.strerror}"
            raise PermanentError(self._op, self._key, detail) from exc
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Reader(io.RawIOBase):
    """A file-like view of a Source with a position of its own."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size_bytes}
        self._at = base[whence] + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._source.size_bytes - self._at)
        length = left if size is None or size < 0 else min(size, left)
        data = self._source.read_at(self._at, length)
        self._at += length
        return data


def _from_file(file: BinaryIO) -> tuple[FileSlice | None, memoryview | None]:
    try:
        fd = file.fileno()
    except OSError:
        file.seek(0)
        return None, memoryview(file.read())
    file.flush()
    return FileSlice(fd, 0, os.fstat(fd).st_size), None
