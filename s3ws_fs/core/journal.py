"""The codec of journal objects: segments and checkpoints. Sans-I/O.

Layout of an object (big endian; docs/format.md has the MUST rules)
    header    HEADER_BYTES: magic 8, length u32, JSON, zeros, xxh3-128 of the header before it
    data      bytes of extents, one after the other; a Location of this object points into it
    records   frames, one after the other; the header names their place and their xxh3-128
    trailer   xxh3-128 of everything before it

A frame: compressed length u32, raw length u32, zlib bytes of
    table u8, kind u8 (0 puts, 1 tombstones), zero u16, count u32,
    key lengths u16 each, value lengths u32 each (puts only), keys, values

Invariants
1. Header digest -> records digest -> each extent's digest: who has verified a header's digest can
   verify any part of the object alone. `prev_hash` is the header digest of the segment before, so
   that a chain of headers vouches for the whole history.
2. Bytes that were cut or changed anywhere raise FormatError naming the object; nothing else comes
   out.
3. Columns: decoding a frame is slicing, with no parsing of single fields. Keys and values that
   come out have lengths that their table allows: whoever takes them apart can't run beyond them.
4. Replay: frames in order. A tombstone of an inode drops its chunks, xattrs and links as well;
   inode numbers are never used again, and inode tombstones come before everything else.

Called by transfer and replica.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise
from typing import Any, Final

import xxhash

from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.keys import (
    JOURNAL_TABLES,
    T_CHUNKS,
    T_DENTRIES,
    T_INODES,
    T_LINKS,
    T_XATTRS,
)
from s3ws_fs.core.limits import (
    FORMAT_VERSION,
    NAME_BYTES_MAX,
    SYMLINK_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from s3ws_fs.core.records import CHUNK_RECORD_BYTES, INODE_RECORD_BYTES_MIN

MAGIC: Final = b"S3WSJRN1"
HEADER_BYTES: Final = 1024
DIGEST_BYTES: Final = 16
TRAILER_BYTES: Final = DIGEST_BYTES

KIND_SEGMENT: Final = "segment"
KIND_CHECKPOINT: Final = "checkpoint"

T_MTODO: Final = 6
"""Only in checkpoints: inodes (ino -> generation) whose mirror objects were still behind."""
TABLES: Final = (*JOURNAL_TABLES, T_MTODO)

FRAME_RAW_BYTES: Final = 1 << 20
"""A frame is closed when it holds this much."""
FRAME_RAW_BYTES_MAX: Final = FRAME_RAW_BYTES + (1 << 18)
"""No frame is larger: a larger one is refused before it is unpacked."""
ZLIB_LEVEL: Final = 1
HOST_CHARS_MAX: Final = 64
FRAME_HEAD_BYTES: Final = 8

_SHAPES: Final = {
    T_INODES: (8, 0, INODE_RECORD_BYTES_MIN, NAME_BYTES_MAX + SYMLINK_BYTES_MAX),
    T_DENTRIES: (17, NAME_BYTES_MAX - 1, 8, 0),
    T_CHUNKS: (12, 0, CHUNK_RECORD_BYTES, 0),
    T_XATTRS: (9, XATTR_NAME_BYTES_MAX - 1, 0, XATTR_VALUE_BYTES_MAX),
    T_LINKS: (17, NAME_BYTES_MAX - 1, 0, 0),
    T_MTODO: (8, 0, 8, 0),
}
"""By table: shortest key, how much longer it may be, and the same of values."""

_LENGTH: Final = struct.Struct(">I")
_FRAME: Final = struct.Struct(">II")
_BLOCK: Final = struct.Struct(">BBHI")
_JSON_AT: Final = len(MAGIC) + _LENGTH.size
_JSON_BYTES_MAX: Final = HEADER_BYTES - _JSON_AT - DIGEST_BYTES
_U64_MAX: Final = (1 << 64) - 1

_digest = xxhash.xxh3_128_digest


@dataclass(frozen=True, slots=True)
class Header:
    """What an object says about itself. Offsets and lengths are bytes; hashes are hex.

    `generation`, `next_ino`, `used_bytes`, `inodes` are the counters at the freeze; `mirrored` is
    the generation up to which the mirror was known complete then. `flush_id` names one attempt to
    seal, `writer` the cache that made it, `host` is what a person would call that. `epoch` is that
    of the writer's lease, 0 before there were leases.
    """

    kind: str
    workspace: str
    writer: str
    host: str
    flush_id: str
    number: int
    prev_number: int
    prev_hash: str
    generation: int
    next_ino: int
    used_bytes: int
    inodes: int
    mirrored: int
    created_ns: int
    extent_bytes: int
    data_bytes: int
    records_bytes: int
    records_hash: str
    puts: int
    tombs: int
    epoch: int = 0
    format: int = FORMAT_VERSION
    codec: str = "zlib"

    @property
    def records_offset(self) -> int:
        """Where the frames begin."""
        return HEADER_BYTES + self.data_bytes

    @property
    def total_bytes(self) -> int:
        """Size of the whole object."""
        return self.records_offset + self.records_bytes + TRAILER_BYTES


_INT_FIELDS: Final = tuple(f.name for f in fields(Header) if f.type in (int, "int"))
_STR_FIELDS: Final = tuple(f.name for f in fields(Header) if f.type in (str, "str"))
_ALL_FIELDS: Final = frozenset((*_INT_FIELDS, *_STR_FIELDS))


def encode_header(header: Header) -> bytes:
    """The first HEADER_BYTES of an object."""
    body = json.dumps(asdict(header), separators=(",", ":"), ensure_ascii=True).encode()
    if len(body) > _JSON_BYTES_MAX:
        raise ValueError(f"header of {len(body)} bytes; {_JSON_BYTES_MAX} fit")
    raw = (MAGIC + _LENGTH.pack(len(body)) + body).ljust(HEADER_BYTES - DIGEST_BYTES, b"\0")
    return raw + _digest(raw)


def empty_object(header: Header) -> bytes:
    """A whole object of `header` that has neither data nor records."""
    raw = encode_header(header)
    return raw + _digest(raw)


NO_RECORDS_HASH: Final = _digest(b"").hex()
"""`records_hash` of an object without records."""


def json_digest(value: dict[str, Any]) -> str:
    """Digest (hex) of a JSON object's members but `digest`: sorted by name, without spaces."""
    members = {name: member for name, member in value.items() if name != "digest"}
    text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def header_hash(raw: bytes) -> str:
    """The digest (hex) at the end of an encoded header: what the next segment calls `prev_hash`."""
    return bytes(raw[HEADER_BYTES - DIGEST_BYTES : HEADER_BYTES]).hex()


def decode_header(raw: bytes | memoryview, where: str) -> Header:
    """Decode and verify a header from the first HEADER_BYTES. Raises FormatError."""
    raw = bytes(raw[:HEADER_BYTES])
    if len(raw) < HEADER_BYTES:
        raise FormatError(where, f"only {len(raw)} bytes; its header has {HEADER_BYTES}")
    if not raw.startswith(MAGIC):
        raise FormatError(where, "not a journal object of this program")
    if _digest(raw[:-DIGEST_BYTES]) != raw[-DIGEST_BYTES:]:
        raise FormatError(where, "its header is damaged: the digest does not match")
    (length,) = _LENGTH.unpack_from(raw, len(MAGIC))
    found = jsontext.value_of(raw[_JSON_AT : _JSON_AT + min(length, _JSON_BYTES_MAX)], where)
    return _check_header(found, where)


def _check_header(found: Any, where: str) -> Header:
    if not isinstance(found, dict):
        raise FormatError(where, "its header is not a JSON object")
    if found.get("format") != FORMAT_VERSION or found.get("codec") != "zlib":
        version = f"format {found.get('format')!r}, codec {found.get('codec')!r}"
        raise FormatError(where, f"written by another version of this program ({version})")
    found.setdefault("epoch", 0)
    if not found.keys() >= _ALL_FIELDS:
        missing = ", ".join(sorted(_ALL_FIELDS - found.keys()))
        raise FormatError(where, f"its header lacks {missing}")
    for name in _INT_FIELDS:
        value = found[name]
        if type(value) is not int or not 0 <= value <= _U64_MAX:
            raise FormatError(where, f"its header's {name} is {value!r}")
    for name in _STR_FIELDS:
        if type(found[name]) is not str:
            raise FormatError(where, f"its header's {name} is {found[name]!r}")
    if found["kind"] not in (KIND_SEGMENT, KIND_CHECKPOINT):
        raise FormatError(where, f"its kind is {found['kind']!r}")
    # Fields of a later version that this one does not know are left alone.
    return Header(**{name: found[name] for name in _ALL_FIELDS})


def _pack_frame(table: int, tombs: bool, keys: list[bytes], values: list[bytes]) -> bytes:
    parts = [
        _BLOCK.pack(table, int(tombs), 0, len(keys)),
        struct.pack(f">{len(keys)}H", *map(len, keys)),
        struct.pack(f">{len(values)}I", *map(len, values)),
        *keys,
        *values,
    ]
    raw = b"".join(parts)
    packed = zlib.compress(raw, ZLIB_LEVEL)
    return _FRAME.pack(len(packed), len(raw)) + packed


def encode_puts(table: int, items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Frames of (key, value) records, as (records in it, bytes); memory is bounded by a frame."""
    keys: list[bytes] = []
    values: list[bytes] = []
    size = 0
    for key, value in items:
        keys.append(key)
        values.append(value)
        size += len(key) + len(value) + 6
        if size >= FRAME_RAW_BYTES:
            yield len(keys), _pack_frame(table, False, keys, values)
            keys, values, size = [], [], 0
    if keys:
        yield len(keys), _pack_frame(table, False, keys, values)


def encode_tombs(table: int, gone: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Frames of tombstones, as (tombstones in it, bytes)."""
    keys: list[bytes] = []
    size = 0
    for key in gone:
        keys.append(key)
        size += len(key) + 2
        if size >= FRAME_RAW_BYTES:
            yield len(keys), _pack_frame(table, True, keys, [])
            keys, size = [], 0
    if keys:
        yield len(keys), _pack_frame(table, True, keys, [])


@dataclass(frozen=True, slots=True)
class Frame:
    """Decoded records of one table: puts (`values` as long as `keys`) or tombstones (no values)."""

    table: int
    tombs: bool
    keys: list[bytes]
    values: list[bytes]


def frame_bytes(head: bytes | memoryview, where: str) -> int:
    """Bytes that follow a frame's FRAME_HEAD_BYTES. Raises FormatError."""
    if len(head) < FRAME_HEAD_BYTES:
        raise FormatError(where, "a frame is cut off")
    packed, raw = _FRAME.unpack_from(head)
    if raw > FRAME_RAW_BYTES_MAX or packed > FRAME_RAW_BYTES_MAX + 4096:
        raise FormatError(where, f"a frame of {raw} bytes is larger than any we write")
    return int(packed)


def decode_frame(frame: bytes | memoryview, where: str) -> Frame:
    """Decode a whole frame (head and packed bytes). Raises FormatError."""
    packed = frame_bytes(frame, where)
    _, raw_bytes = _FRAME.unpack_from(frame)
    if len(frame) != FRAME_HEAD_BYTES + packed:
        raise FormatError(where, "a frame is cut off")
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(frame[FRAME_HEAD_BYTES:], raw_bytes + 1)
    except zlib.error as exc:
        raise FormatError(where, f"a frame does not unpack: {exc}") from exc
    if len(raw) != raw_bytes or not unpacker.eof or unpacker.unused_data:
        raise FormatError(where, "a frame unpacks to another length than it says")
    return _split_frame(raw, where)


def _split_frame(raw: bytes, where: str) -> Frame:
    if len(raw) < _BLOCK.size:
        raise FormatError(where, "a frame is too short")
    table, kind, zero, count = _BLOCK.unpack_from(raw)
    if table not in TABLES or kind > 1 or zero:
        raise FormatError(where, f"a frame is of table {table}, kind {kind}")
    at = _BLOCK.size
    lengths_end = at + count * (2 if kind else 6)
    if lengths_end > len(raw):
        raise FormatError(where, f"a frame says it has {count} records")
    key_lengths = struct.unpack_from(f">{count}H", raw, at)
    value_lengths = () if kind else struct.unpack_from(f">{count}I", raw, at + 2 * count)
    if not (_fits(key_lengths, *_SHAPES[table][:2]) and _fits(value_lengths, *_SHAPES[table][2:])):
        raise FormatError(where, f"records of a frame are not of the shape of table {table}")
    keys_end = lengths_end + sum(key_lengths)
    if keys_end + sum(value_lengths) != len(raw):
        raise FormatError(where, "the records of a frame do not fill it")
    return Frame(
        table,
        bool(kind),
        _slices(raw, lengths_end, key_lengths),
        _slices(raw, keys_end, value_lengths),
    )


def _fits(lengths: tuple[int, ...], least: int, beyond: int) -> bool:
    return not lengths or (min(lengths) >= least and max(lengths) <= least + beyond)


def _slices(raw: bytes, start: int, lengths: tuple[int, ...]) -> list[bytes]:
    ends = list(accumulate(lengths, initial=start))
    return [raw[a:b] for a, b in pairwise(ends)]


def decode_frames(records: bytes | memoryview, where: str) -> Iterator[Frame]:
    """All frames of a records block, in order. Raises FormatError."""
    view = memoryview(records)
    at = 0
    while at < len(view):
        end = at + FRAME_HEAD_BYTES + frame_bytes(view[at : at + FRAME_HEAD_BYTES], where)
        yield decode_frame(view[at:end], where)
        at = end


def check_records(header: Header, records: bytes | memoryview, where: str) -> None:
    """Verify a records block that was read by itself. Raises FormatError."""
    if len(records) != header.records_bytes:
        raise FormatError(where, f"{len(records)} bytes of records, not {header.records_bytes}")
    if _digest(records).hex() != header.records_hash:
        raise FormatError(where, "its records are damaged: the digest does not match")


def open_object(raw: bytes | memoryview, where: str) -> tuple[Header, memoryview]:
    """Verify a whole object; returns its header and its records block. Raises FormatError."""
    view = memoryview(raw)
    header = decode_header(view[:HEADER_BYTES], where)
    if len(view) != header.total_bytes:
        raise FormatError(where, f"{len(view)} bytes, but its header says {header.total_bytes}")
    if _digest(view[:-TRAILER_BYTES]) != view[-TRAILER_BYTES:]:
        raise FormatError(where, "it is damaged: the digest at its end does not match")
    records = view[header.records_offset : -TRAILER_BYTES]
    check_records(header, records, where)
    return header, records
