"""Which objects the points of history name: read once from the journal, then remembered.

A *span* is what happened between two neighbouring checkpoints, B and E: it says of every object
that some point from B on named, and E does not, which point was the last to name it. With the
names of the newest point that is all that a window of any length needs. A snapshot's own names are
kept beside it.

Files of the cache's history directory: magic, length u32, JSON, numbers (u64 each), xxh3-128 of all
before. They hold nothing that can't be read from the bucket again.

Invariants
1. A file counts only for exactly the history it was made of, and when its digest holds: a span
   names the hashes of the segments at both ends, a point the ETag of its segment. Else it is made
   anew.
2. One look reads at most SEGMENTS_READ_MAX segments; beyond that it gives up (`TooMuchError`), and
   what it has read by then is remembered, so that later looks come to an end.
3. What is not readable in the bucket is an error: nobody concludes from it that nothing is named.

Called by garbage (in the worker).
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import xxhash

from s3ws_fs.core import jsontext, keys, layout
from s3ws_fs.core.errors import FormatError, TransientError
from s3ws_fs.core.journal import KIND_CHECKPOINT, KIND_SEGMENT, Frame
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.opened import Opened, open_records
from s3ws_fs.transfer.replaying import absolute
from s3ws_fs.transfer.windowed import windowed

SEGMENTS_READ_MAX: Final = 2048
FILE_BYTES_MAX: Final = 64 << 20
"""No file of ours is larger: some four million objects."""
MAGIC: Final = b"S3WSHIS1"
NOTHING: Final[Mapping[int, str]] = {}

_LENGTH: Final = struct.Struct(">I")
_DIGEST_BYTES: Final = 16


class TooMuchError(TransientError):
    """More of history has to be read than one look may."""


@dataclass(frozen=True, slots=True)
class Span:
    """What was named between two checkpoints. Hashes are those of the segments' headers."""

    begin: int
    end: int
    begin_hash: str
    end_hash: str
    lost: dict[int, int]
    """By object that a point from `begin` on named, and `end` does not: the last such point."""


class Names:
    """Which objects the tables name, as frames come: counted by chunk."""

    def __init__(self) -> None:
        self._of: dict[bytes, dict[bytes, int]] = {}
        self._counts: Counter[int] = Counter()
        self.touched: set[int] = set()
        """Objects whose count went to 0 at some time."""

    @property
    def named(self) -> set[int]:
        """Objects that are named now."""
        return set(self._counts)

    def __contains__(self, item: int) -> bool:
        return item in self._counts

    def apply(self, frame: Frame, number: int) -> None:
        """Apply a frame of object `number`."""
        if frame.table == keys.T_CHUNKS:
            if frame.tombs:
                for key in frame.keys:
                    self._drop(self._of.get(key[:8], {}).pop(key[8:], None))
                return
            for key, raw in zip(frame.keys, frame.values, strict=True):
                self._put(key, keys.unpack_u64(absolute(raw, number)))
        elif frame.table == keys.T_INODES and frame.tombs:
            for key in frame.keys:
                for item in self._of.pop(key, {}).values():
                    self._drop(item)

    def _put(self, key: bytes, item: int) -> None:
        extents = self._of.setdefault(key[:8], {})
        self._drop(extents.get(key[8:]))
        extents[key[8:]] = item
        self._counts[item] += 1

    def _drop(self, item: int | None) -> None:
        if item is None:
            return
        if self._counts[item] == 1:
            del self._counts[item]
            self.touched.add(item)
        else:
            self._counts[item] -= 1


def names_of(frames: Iterable[Frame], number: int) -> set[int]:
    """The objects that the records of one checkpoint name."""
    found: set[bytes] = set()
    for frame in frames:
        if frame.table == keys.T_CHUNKS:
            found.update(absolute(raw, number)[:8] for raw in frame.values)
    return {keys.unpack_u64(raw) for raw in found}


@dataclass(slots=True)
class History:
    """Spans and snapshots of one workspace, over its store and a directory.

    `segments`: those that stand.
    """

    store: ScopedStore
    workspace: str
    segments: Collection[int]
    directory: Path
    pool: Executor
    segments_read: int = 0
    checkpoints_read: int = 0
    _used: set[str] = field(default_factory=set)

    def spans(
        self, folds: list[int], end_hash: str, marked: Mapping[int, str] = NOTHING
    ) -> list[Span]:
        """The spans between these checkpoints (rising; a first 0 is the empty beginning).

        `end_hash`: of the segment that the last one folds. `marked`: points whose names are
        remembered on the way, with their ETags. Raises StoreError, FormatError, TooMuchError.
        """
        found: list[Span] = []
        for begin, end in zip(reversed(folds[:-1]), reversed(folds[1:]), strict=True):
            span = self._known_span(begin, end, end_hash)
            if span is None:
                span = self._read_span(begin, end, end_hash, marked)
            found.append(span)
            end_hash = span.begin_hash
        return found[::-1]

    def names_at(self, base: int, number: int, etag: str) -> set[int]:
        """The objects that point `number` names; `base` is its checkpoint (0: none).

        `etag`: of its segment. Raises StoreError, FormatError, TooMuchError.
        """
        known = self._load(_point_file(number))
        if known is not None and known[0].get("etag") == etag:
            return set(known[1])
        names, base_hash = self._begin(base)
        for at, _, frames in self._segments(base, number, base_hash):
            for frame in frames:
                names.apply(frame, at)
        self._note_point(number, etag, names.named)
        return names.named

    def keep(self, numbers: Iterable[int]) -> None:
        """What is remembered of these points is needed again."""
        self._used.update(map(_point_file, numbers))

    def forget_others(self) -> None:
        """Remove files that this look did not use."""
        for path in self._files():
            if path.name not in self._used:
                path.unlink(missing_ok=True)

    # --- reading

    def _begin(self, base: int) -> tuple[Names, str]:
        """The names at a checkpoint, and the hash of the segment that it folds."""
        names = Names()
        if not base:
            return names, ""
        self.checkpoints_read += 1
        key = layout.ckpt_key(base)
        opened = open_records(self.store, key, self.workspace, base, KIND_CHECKPOINT)
        for frame in opened.frames():
            names.apply(frame, base)
        return names, opened.header.prev_hash

    def _segments(
        self, base: int, end: int, before: str
    ) -> Iterator[tuple[int, str, Iterator[Frame]]]:
        """Number, header hash and frames of the segments above `base`, a chain."""
        if self.segments_read + end - base > SEGMENTS_READ_MAX:
            raise TooMuchError("read", layout.SEG_PREFIX, "history is long: gone on with later")

        def read(number: int) -> Opened:
            key = layout.seg_key(number)
            return open_records(self.store, key, self.workspace, number, KIND_SEGMENT)

        for opened in windowed(self.pool, read, range(base + 1, end + 1)):
            self.segments_read += 1
            if opened.header.prev_hash != before:
                raise FormatError(opened.key, "does not continue the segment before it")
            before = opened.header_hash
            yield opened.header.number, before, opened.frames()

    def _read_span(self, begin: int, end: int, end_hash: str, marked: Mapping[int, str]) -> Span:
        names, begin_hash = self._begin(begin)
        lost: dict[int, int] = {}
        points: dict[int, set[int]] = {begin: names.named} if begin in marked else {}
        # The segment that a checkpoint folds may be gone: then the checkpoint tells.
        last = end if end in self.segments else end - 1
        last_hash = begin_hash
        for number, digest, frames in self._segments(begin, last, begin_hash):
            last_hash = digest
            names.touched.clear()
            for frame in frames:
                names.apply(frame, number)
            lost.update((item, number - 1) for item in names.touched if item not in names)
            if number in marked and number < end:
                points[number] = names.named
        if last < end:
            before = names.named
            names, last_hash = self._begin(end)
            lost.update((item, last) for item in before if item not in names)
        if last_hash != end_hash:
            raise FormatError(layout.ckpt_key(end), "folds another segment than the one known")
        # What was put in again after it went is not lost.
        lost = {item: gone for item, gone in lost.items() if item not in names}
        span = Span(begin, end, begin_hash, end_hash, lost)
        for number, named in points.items():
            self._note_point(number, marked[number], named)
        self._note_span(span)
        return span

    # --- remembering

    def _files(self) -> list[Path]:
        return list(self.directory.iterdir()) if self.directory.is_dir() else []

    def _known_span(self, begin: int, end: int, end_hash: str) -> Span | None:
        known = self._load(_span_file(begin, end))
        if known is None:
            return None
        said, numbers = known
        begin_hash = said.get("begin_hash")
        if said.get("end_hash") != end_hash or not isinstance(begin_hash, str):
            return None
        half = len(numbers) // 2
        lost = dict(zip(numbers[:half], numbers[half:], strict=True))
        return Span(begin, end, begin_hash, end_hash, lost)

    def _note_span(self, span: Span) -> None:
        said = {"begin_hash": span.begin_hash, "end_hash": span.end_hash}
        numbers = [*span.lost, *span.lost.values()]
        self._save(_span_file(span.begin, span.end), said, numbers)

    def _note_point(self, number: int, etag: str, named: set[int]) -> None:
        self._save(_point_file(number), {"etag": etag}, sorted(named))

    def _load(self, name: str) -> tuple[dict[str, Any], list[int]] | None:
        """What a file holds; None when there is none that can be trusted."""
        self._used.add(name)
        try:
            with (self.directory / name).open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
            return _decode(raw, self.workspace, name)
        except (OSError, FormatError):
            return None

    def _save(self, name: str, said: dict[str, Any], numbers: list[int]) -> None:
        """Best effort: it spares the next look from reading, and nothing depends on it."""
        self._used.add(name)
        raw = _encode(said | {"workspace": self.workspace}, numbers)
        path = self.directory / name
        scratch = path.with_name(name + ".new")
        with contextlib.suppress(OSError):
            self.directory.mkdir(mode=0o700, exist_ok=True)
            scratch.unlink(missing_ok=True)
            fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(raw)
            scratch.replace(path)


def _span_file(begin: int, end: int) -> str:
    return f"span-{begin:016x}-{end:016x}"


def _point_file(number: int) -> str:
    return f"point-{number:016x}"


def _encode(said: dict[str, Any], numbers: list[int]) -> bytes:
    text = json.dumps(said).encode()
    body = MAGIC + _LENGTH.pack(len(text)) + text + struct.pack(f">{len(numbers)}Q", *numbers)
    return body + xxhash.xxh3_128_digest(body)


def _decode(raw: bytes, workspace: str, where: str) -> tuple[dict[str, Any], list[int]]:
    body = raw[:-_DIGEST_BYTES]
    at = len(MAGIC) + _LENGTH.size
    if len(body) < at or not raw.startswith(MAGIC):
        raise FormatError(where, "not a file of this program")
    if xxhash.xxh3_128_digest(body) != raw[-_DIGEST_BYTES:]:
        raise FormatError(where, "its digest does not match")
    (length,) = _LENGTH.unpack_from(body, len(MAGIC))
    said = jsontext.object_of(body[at : at + length], where)
    rest = body[at + length :]
    if said.get("workspace") != workspace or len(rest) % 8:
        raise FormatError(where, "of another workspace, or cut off")
    return said, list(struct.unpack(f">{len(rest) // 8}Q", rest))
