"""POSIX access control lists: their bytes, and what they mean for a file's mode.

The value of `system.posix_acl_access` and `system.posix_acl_default` is the kernel's layout,
version 2, little endian: u32 version, then entries of u16 tag, u16 permissions, u32 id.

Invariants
1. What `decode` returns is valid: owner, named users, owning group, named groups, mask, others, in
   this order; the first, the group and others exactly once; a mask at most once, and always where
   somebody is named. Or it is empty: no list at all.
2. `decode(encode(acl)) == acl`, and `encode(decode(value))` is what the kernel itself writes: an
   entry that names nobody has `UNDEFINED_ID`.
3. Group bits of a mode stand for the mask where there is one, else for the owning group. A list
   that says no more than a mode (`is_minimal`) is never stored: the mode says it.
4. Bytes that are no list raise FormatError, and nothing else.

Pure. Called by fs (keeping lists and modes in step) and fuse (ids shown and stored).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from s3ws_fs.core.errors import FormatError

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20
"""Tags: owner, a named user, owning group, a named group, mask, others."""

UNDEFINED_ID: Final = 0xFFFF_FFFF
"""The id in an entry that names nobody."""

ACL_BYTES_MAX: Final = 4096
"""The kernel asks for a list with room for a page; it could not read a longer one again, and would
refuse everybody it has to check."""

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_PERM_MASK: Final = 0o7
_NAMED: Final = (USER, GROUP)


class Entry(NamedTuple):
    """Permissions `perm` (rwx as 4, 2, 1) of whom `tag` and, for named ones, `id` stand for."""

    tag: int
    perm: int
    id: int = UNDEFINED_ID


Acl = tuple[Entry, ...]


def decode(value: bytes) -> Acl:
    """The list that these bytes hold. Raises FormatError."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise _bad("length")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise _bad("version")
    entries = []
    for tag, perm, number in _ENTRY.iter_unpack(value[_HEADER.size :]):
        entries.append(Entry(tag, perm, number if tag in _NAMED else UNDEFINED_ID))
    acl = tuple(entries)
    _check(acl)
    return acl


def encode(acl: Sequence[Entry]) -> bytes:
    """The bytes of a list, as the kernel writes them."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def mode_bits(acl: Acl) -> int:
    """The nine permission bits of a file that has this access list."""
    perms = {entry.tag: entry.perm for entry in acl}
    return perms[USER_OBJ] << 6 | perms[_group_class(acl)] << 3 | perms[OTHER]


def is_minimal(acl: Acl) -> bool:
    """Whether it says no more than `mode_bits` do."""
    return len(acl) <= 3


def chmod(acl: Acl, mode: int) -> Acl:
    """The access list after chmod(2): owner, others, and the mask (or the group) as in `mode`."""
    bits = {USER_OBJ: mode >> 6, _group_class(acl): mode >> 3, OTHER: mode}
    return tuple(
        entry._replace(perm=bits[entry.tag] & _PERM_MASK) if entry.tag in bits else entry
        for entry in acl
    )


def inherit(default: Acl, mode: int) -> tuple[int, Acl]:
    """(permission bits, access list or ()) of what is created below a directory with `default`.

    mode: what the program asked for. The umask plays no part.
    """
    asked = {USER_OBJ: mode >> 6, _group_class(default): mode >> 3, OTHER: mode}
    acl = tuple(
        entry._replace(perm=entry.perm & asked[entry.tag]) if entry.tag in asked else entry
        for entry in default
    )
    return mode_bits(acl), () if is_minimal(acl) else acl


def with_ids(acl: Acl, uid: Callable[[int], int], gid: Callable[[int], int]) -> Acl:
    """The list with other numbers for the named users and groups."""
    numbers = {USER: uid, GROUP: gid}
    return tuple(
        entry._replace(id=numbers[entry.tag](entry.id)) if entry.tag in numbers else entry
        for entry in acl
    )


def _group_class(acl: Acl) -> int:
    """The tag that the group bits of a mode stand for (invariant 3)."""
    return MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ


def _check(acl: Acl) -> None:
    """Invariant 1. Raises FormatError."""
    if not acl:
        return
    tags = [entry.tag for entry in acl]
    if tags != sorted(tags):
        raise _bad("order")
    if any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)):
        raise _bad("owner, group and others must stand there once")
    named = USER in tags or GROUP in tags
    if tags.count(MASK) > 1 or (named and MASK not in tags):
        raise _bad("mask")
    for tag, perm, number in acl:
        if tag not in (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER):
            raise _bad("tag")
        if perm & ~_PERM_MASK:
            raise _bad("permissions")
        if tag in _NAMED and number == UNDEFINED_ID:
            raise _bad("id")


def _bad(why: str) -> FormatError:
    return FormatError("access control list", why)
