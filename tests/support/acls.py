"""Access control lists in tests: written as setfacl takes them, and whether a directory knows them.

`acl("u::rwx,u:7:r-x,g::r-x,m::rwx,o::---")` is the value of an extended attribute; `text` is the
way back. Built by hand here, so that it does not repeat what it tests.

Called by the tests of core, fs, fuse and e2e.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import Final

import pytest

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"

_NOBODY: Final = 2**32 - 1
_TAGS: Final = {"u": 1, "g": 4, "m": 16, "o": 32}


def acl(text: str) -> bytes:
    """The bytes of a list."""
    value = struct.pack("<I", 2)
    for entry in text.split(","):
        kind, name, letters = entry.split(":")
        perm = sum(1 << "xwr".index(letter) for letter in letters if letter != "-")
        tag = _TAGS[kind] << 1 if name else _TAGS[kind]
        value += struct.pack("<HHI", tag, perm, int(name) if name else _NOBODY)
    return value


def text(value: bytes) -> str:
    """The list that bytes hold."""
    assert value[:4] == struct.pack("<I", 2), value
    entries = []
    for tag, perm, number in struct.iter_unpack("<HHI", value[4:]):
        kind = {1: "u", 2: "u", 4: "g", 8: "g", 16: "m", 32: "o"}[tag]
        letters = "".join("rwx"[i] if perm & (4 >> i) else "-" for i in range(3))
        entries.append(f"{kind}:{number if number != _NOBODY else ''}:{letters}")
    return ",".join(entries)


def seen(path: str | os.PathLike[str]) -> tuple[str, str | None, str | None]:
    """(mode, access list, default list) of a path as the system calls tell it."""
    lists: list[str | None] = []
    for name in (ACCESS, DEFAULT):
        try:
            lists.append(text(os.getxattr(path, name, follow_symlinks=False)))
        except OSError as exc:
            if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
            lists.append(None)
    assert set(os.listxattr(path, follow_symlinks=False)) == {
        name for name, found in zip((ACCESS, DEFAULT), lists, strict=True) if found
    }
    return stat.filemode(os.lstat(path).st_mode), lists[0], lists[1]


def require_acls(directory: Path) -> None:
    """Skip the test, saying why, where the plain filesystem has no access control lists."""
    try:
        os.setxattr(directory, DEFAULT, acl("u::rwx,g::r-x,o::r-x"))
        os.removexattr(directory, DEFAULT)
    except OSError as exc:
        pytest.skip(f"{directory}: the native filesystem has no access control lists: {exc}")
