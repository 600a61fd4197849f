"""Targets: the index of a backup, and the tar in its archive as it is restored.

Called by tests.fuzz.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final

import xxhash

from s3ws_fs.core import acl
from s3ws_fs.core.records import InodeRec
from s3ws_fs.snapshot import archive, tarformat
from s3ws_fs.snapshot.extract import restore
from s3ws_fs.snapshot.reading import BackupReader, Entry, Index, Piece, parse_index
from tests.fuzz.mutate import changed_value, json_bytes, mutated
from tests.fuzz.target import Target

NAME: Final = "backup-20260131T120000Z"
LINES: Final[tuple[dict[str, Any], ...]] = (
    {"format": 1, "name": NAME, "workspace": "w", "generation": 5, "left_out": []},
    {"path": "", "type": "dir", "mode": 493, "uid": 0, "gid": 0, "mtime_ns": 5, "at": 0}
    | {"bytes": 1024},
    {"path": "a\udcff", "type": "file", "mode": 420, "uid": 1, "gid": 2, "mtime_ns": -5}
    | {"at": 1024, "bytes": 2048, "size": 3},
    {"path": "l", "type": "symlink", "mode": 511, "uid": 0, "gid": 0, "mtime_ns": 0, "at": 3072}
    | {"bytes": 1024, "target": "a"},
    {"piece": 0, "raw_bytes": 5120, "at": 0, "bytes": 300, "xxh3": "0" * 32},
    {"end": True, "archive_bytes": 300, "tar_bytes": 5120, "entries": 3, "raw_bytes": 3},
)


def make_index(rng: random.Random) -> bytes:
    """Lines changed, mostly with the digest made anew; or the packed bytes."""
    how = rng.randrange(5)
    lines = [dict(line) for line in LINES]
    if how > 1:
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(lines))
            changed = changed_value(rng, lines[at])
            lines[at] = changed if isinstance(changed, dict) else lines[at]
    if how > 3:
        rng.shuffle(lines)
    *before, end = (
        json_bytes(rng, line) if how == 1 else json.dumps(line).encode() for line in lines
    )
    raw = b"".join(line + b"\n" for line in before)
    if how:
        with_digest = json.loads(json.dumps(lines[-1])) | {"digest": xxhash.xxh3_128_hexdigest(raw)}
        end = json.dumps(with_digest).encode()
    packed = gzip.compress(raw + end + b"\n", mtime=0)
    return packed if how else mutated(rng, packed)


def run_index(packed: bytes) -> None:
    """A whole index, or a FormatError."""
    index = parse_index(packed, "index")
    assert sum(piece.length for piece in index.pieces) == index.archive_bytes
    assert all(entry.at + entry.length <= index.tar_bytes for entry in index.entries)


@functools.cache
def _tar() -> bytes:
    listed = acl.encode(
        tuple(acl.Entry(tag, 6) for tag in (acl.USER_OBJ, acl.GROUP_OBJ, acl.OTHER))
    )
    made = b""
    for ino, (path, mode, size, target) in enumerate(
        (
            (b"", 0o040755, 0, b""),
            (b"d", 0o040700, 0, b""),
            (b"d/file", 0o104755, 700, b""),
            (b"d/\xff" + b"n" * 120, 0o100644, 1 << 20, b""),
            (b"up", 0o120777, 0, b"../outside"),
            (b"fifo", 0o010644, 0, b""),
            (b"device", 0o020666, 0, b""),
        ),
        1,
    ):
        rec = InodeRec(ino, mode, 1, 2, 1, 0x103, size, 0, 1, -2, 3, 1, 1, b"", target)
        if size > 10_000:
            spans = [(4096, 512)]
            table = tarformat.sparse_map(spans, size)
            made += tarformat.entry(path, rec, [], stored_bytes=len(table) + 512, is_sparse=True)
            made += table + b"s" * 512
            continue
        xattrs = [(b"user.a", b"\xff\n"), (acl.ACCESS, listed)] if size else []
        made += tarformat.entry(path, rec, xattrs, stored_bytes=size)
        made += b"x" * size + tarformat.padding(size)
    return made + tarformat.hardlink(b"link", rec, b"d/file") + tarformat.END


def make_tar(rng: random.Random) -> bytes:
    """A tar of all kinds, changed anywhere, or in its headers with their sums made anew."""
    raw = _tar()
    if rng.random() < 0.4:
        return mutated(rng, raw)
    changed = bytearray(raw)
    at = 512 * rng.randrange(len(raw) // 512)
    changed[at : at + 512] = mutated(rng, bytes(changed[at : at + 512])).ljust(512, b"\0")[:512]
    head = changed[at : at + 148] + b"        " + changed[at + 156 : at + 512]
    if changed[at + 257 : at + 262] == b"ustar":
        changed[at + 148 : at + 156] = b"%06o\0 " % sum(head)
    return bytes(changed)


def run_tar(raw: bytes) -> None:
    """Something is restored, or refused; nothing outside is touched, and nothing has rights."""
    packed = archive.compress(raw)
    piece = Piece(0, len(raw), 0, len(packed), xxhash.xxh3_128_hexdigest(packed))
    index = Index({}, [Entry(b"", "dir", 0, 0, 0, 0, 0, len(raw))], [piece])
    index.archive_bytes, index.tar_bytes = len(packed), len(raw)
    reader = BackupReader(NAME, index, lambda offset, length: packed[offset : offset + length])
    base = Path(tempfile.mkdtemp(prefix="s3ws-fuzz-"))
    try:
        (base / "in").mkdir()
        fd = os.open(base / "in", os.O_RDONLY | os.O_DIRECTORY)
        try:
            restore(reader, fd, [])
        finally:
            os.close(fd)
        assert [path.name for path in base.iterdir()] == ["in"]
        for path in (base / "in").rglob("*"):
            assert not path.lstat().st_mode & 0o6000 or path.is_symlink()
    finally:
        shutil.rmtree(base)


def check_the_material() -> None:
    """What is changed is a tar that is whole."""
    with tarfile.open(fileobj=io.BytesIO(_tar())) as tar:
        assert len(tar.getmembers()) == 8


TARGETS: Final = (
    Target("backup indexes", make_index, run_index),
    Target("backup archives", make_tar, run_tar),
)
