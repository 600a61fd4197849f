"""What the large objects of the mirror are made of: so that the next version of a file is made of
the one before.

A file for each, in a directory of the cache: magic, xxh3-128 of whose it is (workspace, path, ETag
and content hash), runs (start u64, end u64, object u64, shift i64 each), xxh3-128 of all before.

Invariants
1. A layout counts for exactly the object it was made for: another ETag or hash is another object.
2. It is a hint, and nothing depends on it: where there is none, the object is made of the journal.
3. At most FILES_MAX are kept, of at most RUNS_MAX runs; the oldest go.

Called by objects (in the worker), from several threads, for one path from one at a time.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import xxhash

from s3ws_fs.core.ranges import Run
from s3ws_fs.core.records import MirrorRow

RUNS_MAX: Final = 20_000
"""More than a file of 500 MiB has that was written in pieces of an extent."""
FILES_MAX: Final = 256
MAGIC: Final = b"S3WSLAY1"

_RUN: Final = struct.Struct(">QQQq")
_LENGTH: Final = struct.Struct(">I")
_DIGEST_BYTES: Final = 16
_FILE_BYTES_MAX: Final = len(MAGIC) + 2 * _DIGEST_BYTES + RUNS_MAX * _RUN.size


class Layouts:
    """The layouts of one workspace, in a directory of their own."""

    def __init__(self, directory: Path, workspace: str) -> None:
        self._directory = directory
        self._workspace = workspace

    def of(self, row: MirrorRow) -> list[Run]:
        """The runs of the object that stands there; none when they are not known."""
        try:
            with self._file(row.path).open("rb") as file:
                raw = file.read(_FILE_BYTES_MAX + 1)
        except OSError:
            return []
        begin = MAGIC + self._whose(row)
        body = raw[:-_DIGEST_BYTES]
        runs = body[len(begin) :]
        if not body.startswith(begin) or len(raw) > _FILE_BYTES_MAX or len(runs) % _RUN.size:
            return []
        if xxhash.xxh3_128_digest(body) != raw[-_DIGEST_BYTES:]:
            return []
        return [Run(*fields) for fields in _RUN.iter_unpack(runs)]

    def note(self, row: MirrorRow, runs: Sequence[Run]) -> None:
        """This object was made of these. Best effort (invariant 2)."""
        path = self._file(row.path)
        with contextlib.suppress(OSError):
            if len(runs) > RUNS_MAX:
                path.unlink(missing_ok=True)
                return
            body = MAGIC + self._whose(row) + b"".join(_RUN.pack(*run) for run in runs)
            self._directory.mkdir(mode=0o700, exist_ok=True)
            scratch = path.with_name(path.name + ".new")
            scratch.unlink(missing_ok=True)
            fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(body + xxhash.xxh3_128_digest(body))
            scratch.replace(path)
            self._trim()

    def carry(self, old: MirrorRow, new: MirrorRow) -> None:
        """The object `new` was copied from `old` as a whole."""
        runs = self.of(old)
        if runs:
            self.note(new, runs)

    def _trim(self) -> None:
        """Invariant 3."""
        kept = sorted((path.stat().st_mtime_ns, path) for path in self._directory.iterdir())
        for _, path in kept[: max(0, len(kept) - FILES_MAX)]:
            path.unlink()

    def _file(self, path: bytes) -> Path:
        return self._directory / f"{xxhash.xxh3_64_intdigest(path):016x}"

    def _whose(self, row: MirrorRow) -> bytes:
        said = (self._workspace.encode(), row.path, row.etag.encode(), row.hash)
        return xxhash.xxh3_128_digest(b"".join(_LENGTH.pack(len(item)) + item for item in said))
