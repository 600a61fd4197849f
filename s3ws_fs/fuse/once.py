"""Exactly once: what was done for a request that the kernel asks again, as its answer got lost.

A daemon that was killed may have committed an operation and not answered it; the kernel sends that
request again to its successor. Done anew, a mkdir would fail with EEXIST, a rename with ENOENT.
So just before a commit it is noted what is done and which generation it will be, in the holder's
memory; whether it was done, the cache's head tells after the crash.

Invariants
1. One thread commits and then answers before it reads the next request. So at most one operation
   is committed and not answered: slot 0. `reading` empties it before every read: what was answered
   is never taken for what was not.
2. Slot 0 counts only when its generation is the cache's head at the start: then the commit it
   announces took place, and nothing came after it.
3. What a daemon that died left owed (slot 0 that counts) moves to a slot of its own and stays there
   until the request is answered or is known not to come: also when its successors die as well.
4. Only a request that the kernel marked as sent again gets a stored result, and only when all its
   arguments agree. Two such requests at the same time can't be: the kernel holds the lock of the
   directory or the file.
5. Housekeeping (Tx.is_housekeeping) is nobody's request.

Called by `fuse.operations` (start), `fuse.device` and `fuse.wait` (reading), the cache's commit.
"""

from __future__ import annotations

import os
import struct
from typing import Final

import xxhash

from s3ws_fs.cache.tx import Tx
from s3ws_fs.holder import memory
from s3ws_fs.holder.memory import Memory

SETXATTR: Final = 10
"""First part of a setxattr's key; inode, name and value follow (`digest`)."""
SETXATTR_OPCODE: Final = 21
_IN_HEADER: Final = struct.Struct("=II")
_IN_HEADER_BYTES: Final = 40
_SETXATTR: Final = struct.Struct("=II")
"""Size and flags, behind the header of a raw request; the value is its last `size` bytes."""

digest: Final = xxhash.xxh3_64_intdigest
"""Stands for names and values in a key. Keys are of numbers only, for their hash is the same in
every process, and the quickest there is: this is on the way of every change.
"""

Key = tuple[int, ...]

_NUMBERS: Final = memory.SLOT_BYTES // 8
_GENERATION, _RESULT, _HASH = range(3)
"""Numbers of a slot; the generation is written last, and cleared to empty it."""


class Once:
    """The operation under way, and those owed, in the memory of a holder."""

    def __init__(self, held: Memory, head_generation: int) -> None:
        """Take over what the daemon before left; `head_generation` is the cache's as opened."""
        self._held = held
        at = memory.SLOTS_AT
        slots = memoryview(held.map)[at : at + memory.SLOTS * memory.SLOT_BYTES].cast("q")
        self._slots = slots
        self._is_new = False
        """What comes from now on did not come to the daemon before."""
        self._key: Key | None = None
        self._is_noted = True
        self._settling: int | None = None
        self.resent: bytes | None = None
        """The request being handled, if it is one that the kernel sent again."""
        self._owed: dict[int, tuple[int, int]] = {}
        """By hash of the key: where its slot begins, and the result."""
        free = []
        for begin in range(_NUMBERS, len(slots), _NUMBERS):
            if slots[begin + _GENERATION]:
                self._owed[slots[begin + _HASH]] = (begin, slots[begin + _RESULT])
            else:
                free.append(begin)
        is_done = 0 < slots[_GENERATION] == head_generation
        if is_done and slots[_HASH] not in self._owed and free:
            for number in (_HASH, _RESULT, _GENERATION):
                slots[free[0] + number] = slots[number]
            self._owed[slots[_HASH]] = (free[0], slots[_RESULT])
        self.reading()

    @property
    def owed(self) -> int:
        """How many operations are committed and not answered, as far as is known."""
        return len(self._owed)

    def start(self, *key: int) -> int | None:
        """A request is going to be done that `key` tells from others: None. Or it was done by a
        daemon before: its result (how much a write wrote, 0 for others).
        """
        self._key = key
        if self.resent is None:
            return None
        return self._settle(key)

    def owed_setxattr(self, ino: int, name: bytes) -> bool:
        """Whether this getxattr is pyfuse3's look before a setxattr that was done already, and that
        was to make the attribute.
        """
        raw = self.resent
        if raw is None or _IN_HEADER.unpack_from(raw)[1] != SETXATTR_OPCODE:
            return False
        size, flags = _SETXATTR.unpack_from(raw, _IN_HEADER_BYTES)
        value = raw[len(raw) - size :]
        key = (SETXATTR, ino, digest(name), digest(value))
        return bool(flags & os.XATTR_CREATE) and hash(key) in self._owed

    def _settle(self, key: Key) -> int | None:
        found = self._owed.pop(hash(key), None)
        if found is None:
            return None
        self._settling, result = found
        self._is_noted = True
        return result

    def committing(self, tx: Tx) -> None:
        """Just before a commit: note what it does (or that it is nobody's)."""
        if tx.is_housekeeping or self._key is None:
            self._slots[_GENERATION] = 0
            return
        slots = self._slots
        slots[_HASH] = hash(self._key)
        slots[_RESULT] = tx.answer
        slots[_GENERATION] = tx.generation
        self._is_noted = True

    def reading(self) -> None:
        """The next request is going to be read: whatever was done is answered."""
        if self._is_noted:
            self._slots[_GENERATION] = 0
            if self._settling is not None:
                self._slots[self._settling + _GENERATION] = 0
                self._settling = None
            self._is_noted = False
            if self._is_new:
                self._held.set_worked(True)
                self._is_new = False

    def all_came(self) -> None:
        """What the kernel had to send again has come: nothing is owed any more."""
        self._is_new = True
        for begin in range(_NUMBERS, len(self._slots), _NUMBERS):
            self._slots[begin + _GENERATION] = 0
        self._owed = {}
