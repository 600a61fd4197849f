"""Sync points: power-loss-safe states of a cache whose commits are not synced.

A power cut can leave unsynced LMDB corrupt: a new meta page may reach the disk before the pages it
names, and pages freed since may be overwritten already. So, for a state N:
    begin   right after commit N: open a read transaction on N (the *pin*: its pages stay)
            and copy the two meta pages, while nothing else can commit;
    write   in a helper thread, while commits go on: sync the environment, then write that copy with
            its checksum into the older of two preallocated slots of the side file; fdatasync;
    finish  drop the pin before this one; N is durable.
After an unclean boot (the boot id differs and there is no clean-close mark) the newest valid slot's
meta pages are put back before the environment is opened: the cache is exactly N.

Invariants
1. The pin of the newest finished sync point stands until the next one is finished.
2. A slot is overwritten only while the other one is valid and on disk (or none was ever written).
3. `write` touches no transaction: it may run beside commits. At most one sync point is under way.
4. A process kill on a running kernel needs none of this: same boot id, nothing is put back.
5. After a flush of the environment failed there is no sync point any more, from no process under
   this boot: the kernel may have dropped what it could not write, and a later flush may succeed
   without it. The cache is *spoilt*, and boot.json says so. The sync points before stand.

Side file (two slots of SLOT_BYTES): magic 8 bytes, sequence u64, generation u64, meta length u32,
meta pages, xxh3-128 of all before; big endian.

Called by cache.cache and cache.durability.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb
import xxhash

from s3ws_fs.core import failpoints

SIDE_FILE: Final = "sync.side"
BOOT_FILE: Final = "boot.json"
BOOT_BYTES: Final = 256
BOOT_ID_PATH: Final = Path("/proc/sys/kernel/random/boot_id")

SPOILT: Final = (
    "a flush to the cache's disk failed, and a later one would prove nothing: what was written "
    "since may be on no disk"
)
SLOT_BYTES: Final = 64 * 1024
META_PAGES: Final = 2
_MAGIC: Final = b"S3WSSYN1"
_SLOT: Final = struct.Struct(">8sQQI")
META_BYTES_MAX: Final = SLOT_BYTES - _SLOT.size - 16
"""What a slot has room for: database pages of up to 16 KiB."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One valid slot of the side file."""

    sequence: int
    generation: int
    meta: bytes


def encode_slot(slot: Slot) -> bytes:
    """The slot's bytes, without padding."""
    body = _SLOT.pack(_MAGIC, slot.sequence, slot.generation, len(slot.meta)) + slot.meta
    return body + xxhash.xxh3_128_digest(body)


def decode_slot(raw: bytes) -> Slot | None:
    """Decode a slot; None when it is torn, empty or foreign."""
    if len(raw) < _SLOT.size:
        return None
    magic, sequence, generation, length = _SLOT.unpack_from(raw)
    end = _SLOT.size + length
    if magic != _MAGIC or end + 16 > len(raw):
        return None
    if xxhash.xxh3_128_digest(raw[:end]) != raw[end : end + 16]:
        return None
    return Slot(sequence, generation, raw[_SLOT.size : end])


def read_slots(directory: Path) -> list[Slot | None]:
    """Both slots of the side file (None: not valid). A missing file is two invalid slots."""
    try:
        raw = (directory / SIDE_FILE).read_bytes()
    except FileNotFoundError:
        return [None, None]
    return [decode_slot(raw[i * SLOT_BYTES : (i + 1) * SLOT_BYTES]) for i in range(2)]


def current_boot_id() -> str:
    """The kernel's id of this boot."""
    return BOOT_ID_PATH.read_text().strip()


def read_boot(directory: Path) -> tuple[str, bool] | None:
    """(boot id, cleanly closed) as last noted; None when missing or unreadable.

    Only BOOT_BYTES count: that is what `note_boot` writes over whatever stands there.
    """
    try:
        with (directory / BOOT_FILE).open("rb") as file:
            noted = json.loads(file.read(BOOT_BYTES))
        boot_id, clean = noted["boot_id"], noted["clean"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return (boot_id, clean) if isinstance(boot_id, str) and isinstance(clean, bool) else None


def read_spoilt(directory: Path, boot_id: str) -> bool:
    """Whether a flush of the environment failed under this boot."""
    try:
        with (directory / BOOT_FILE).open("rb") as file:
            noted = json.loads(file.read(BOOT_BYTES))
        return bool(noted["boot_id"] == boot_id and noted.get("spoilt"))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False


def note_boot(directory: Path, boot_id: str, *, clean: bool, spoilt: bool = False) -> None:
    """Durably note under which boot the cache is open, or that it was closed cleanly.

    In place, so that a full disk does not keep a cache from being opened. Should a power cut tear
    it, it is unreadable, and the sync point decides: which it does after a power cut anyway.
    """
    value: dict[str, object] = {"boot_id": boot_id, "clean": clean}
    if spoilt:
        value["spoilt"] = True
    try:
        fd = os.open(directory / BOOT_FILE, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        write_json(directory / BOOT_FILE, value, BOOT_BYTES)
        return
    try:
        os.pwrite(fd, json.dumps(value).encode().ljust(BOOT_BYTES), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, value: dict[str, object], padded_bytes: int = 0) -> None:
    """Replace a private file by a JSON object, durably: the old one or the new one, never less."""
    temp = path.with_name(path.name + ".tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, json.dumps(value).encode().ljust(padded_bytes))
        os.fsync(fd)
    finally:
        os.close(fd)
    temp.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_back(directory: Path, data_file: Path) -> Slot | None:
    """Put the newest valid slot's meta pages back; None, nothing touched, when there is none."""
    valid = [slot for slot in read_slots(directory) if slot is not None]
    if not valid:
        return None
    newest = max(valid, key=lambda slot: slot.sequence)
    fd = os.open(data_file, os.O_WRONLY)
    try:
        os.pwrite(fd, newest.meta, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    return newest


@dataclass(slots=True)
class Pending:
    """A sync point under way."""

    generation: int
    meta: bytes
    pin: lmdb.Transaction[bytes]


class SyncPoints:
    """Makes sync points of one open environment. See the module's invariants."""

    def __init__(
        self,
        env: lmdb.Environment,
        directory: Path,
        data_file: Path,
        *,
        spoilt: bool = False,
        on_spoilt: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_spoilt` notes it for who comes next, from whichever thread."""
        self._env = env
        self.spoilt = spoilt
        self._on_spoilt = on_spoilt
        self._data_fd = os.open(data_file, os.O_RDONLY | os.O_CLOEXEC)
        self._meta_bytes = META_PAGES * env.stat()["psize"]
        assert self._meta_bytes <= META_BYTES_MAX, "the pages are too large for a slot"
        slots = read_slots(directory)
        self._sequence = max((slot.sequence for slot in slots if slot), default=0)
        newest = max(range(2), key=lambda i: s.sequence if (s := slots[i]) else -1)
        self._next_slot = 1 - newest if slots[newest] else 0
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._side_fd = os.open(directory / SIDE_FILE, flags, 0o600)
        if os.fstat(self._side_fd).st_size < 2 * SLOT_BYTES:
            os.posix_fallocate(self._side_fd, 0, 2 * SLOT_BYTES)
            os.fsync(self._side_fd)
            sync_directory(directory)
        self._pin: lmdb.Transaction[bytes] | None = None
        self.durable_generation = -1

    @property
    def sequence(self) -> int:
        """Of the newest finished sync point, or of one before this process."""
        return self._sequence

    def begin(self, generation: int) -> Pending:
        """Pin the newest commit, which is `generation`. On the loop's thread, between commits."""
        pin = self._env.begin()
        return Pending(generation, os.pread(self._data_fd, self._meta_bytes, 0), pin)

    def write(self, pending: Pending) -> None:
        """Make the pinned state durable. In a helper thread. Raises OSError, lmdb.Error."""
        failpoints.hit(failpoints.SYNC_BEGUN)
        if self.spoilt:
            raise OSError(errno.EIO, SPOILT)
        try:
            self._flush()
        except (OSError, lmdb.Error):
            self.spoil()
            raise
        failpoints.hit(failpoints.SYNC_FLUSHED)
        slot = Slot(self._sequence + 1, pending.generation, pending.meta)
        os.pwrite(self._side_fd, encode_slot(slot), self._next_slot * SLOT_BYTES)
        failpoints.hit(failpoints.SYNC_WRITTEN)
        os.fdatasync(self._side_fd)

    def spoil(self) -> None:
        """A flush to this disk failed: there is no sync point any more (invariant 5)."""
        self.spoilt = True
        # What can't be written now is in the kernel's memory, which is all that it is for.
        with contextlib.suppress(OSError):
            self._on_spoilt()

    def _flush(self) -> None:
        self._env.sync(True)

    def finish(self, pending: Pending) -> None:
        """The write succeeded: drop the pin before. On the loop's thread."""
        self._sequence += 1
        self._next_slot = 1 - self._next_slot
        if self._pin is not None:
            self._pin.abort()
        self._pin = pending.pin
        self.durable_generation = max(self.durable_generation, pending.generation)
        failpoints.hit(failpoints.SYNC_AFTER)

    def abandon(self, pending: Pending) -> None:
        """The write failed: the state before stays the durable one. On the loop's thread."""
        pending.pin.abort()

    def close(self) -> None:
        """Drop the pin and the descriptors."""
        if self._pin is not None:
            self._pin.abort()
            self._pin = None
        os.close(self._data_fd)
        os.close(self._side_fd)
