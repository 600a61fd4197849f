"""Entries of a pax tar archive, as GNU tar reads them. Pure: headers from records, no I/O.

Everything that a ustar header can't say exactly is in a pax header before it: times with
nanoseconds, long and odd names (raw bytes), large numbers, extended attributes
(`SCHILY.xattr.NAME`), access control lists as text (`SCHILY.acl.access`, `.default`), and holes
(GNU sparse format 1.0: a map in front of the data).

Invariants
1. An entry is whole 512-byte blocks; its header says how many bytes follow.
2. What GNU tar restores from it with --xattrs --acls is the inode: type, owner, mode, times to the
   nanosecond, target, attributes, bytes, holes.
3. No text of the entry depends on the machine: numbers only, no names of users or groups.

Called by archive (writes); acl_value by extract (reads).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final

from s3ws_fs.core import acl
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.records import InodeRec

BLOCK_BYTES: Final = 512
END: Final = bytes(2 * BLOCK_BYTES)
"""What ends an archive."""

XATTR: Final = "SCHILY.xattr."
ACL_NAMES: Final = {acl.ACCESS: b"SCHILY.acl.access", acl.DEFAULT: b"SCHILY.acl.default"}

_TYPES: Final = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_HARDLINK: Final = b"1"
_NAME_BYTES: Final = 100
_ID_MAX: Final = 0o7777777
_SIZE_MAX: Final = 0o77777777777
_TAGS: Final = {
    acl.USER_OBJ: "user",
    acl.USER: "user",
    acl.GROUP_OBJ: "group",
    acl.GROUP: "group",
    acl.MASK: "mask",
    acl.OTHER: "other",
}
_LIST_TAGS: Final = {
    ("user", False): acl.USER_OBJ,
    ("user", True): acl.USER,
    ("group", False): acl.GROUP_OBJ,
    ("group", True): acl.GROUP,
    ("mask", False): acl.MASK,
    ("other", False): acl.OTHER,
}
_ACL_ENTRIES_MAX: Final = 1024

Pairs = list[tuple[bytes, bytes]]


def type_of(rec: InodeRec) -> bytes | None:
    """The tar type of an inode; None for what tar can't hold (sockets)."""
    return _TYPES.get(stat.S_IFMT(rec.mode))


def padding(length: int) -> bytes:
    """Zeros that fill up the last block."""
    return bytes(-length % BLOCK_BYTES)


def entry(
    path: bytes,
    rec: InodeRec,
    xattrs: Iterable[tuple[bytes, bytes]],
    *,
    stored_bytes: int = 0,
    is_sparse: bool = False,
) -> bytes:
    """Headers of a file, directory, symlink or special file; its `stored_bytes` follow.

    A sparse one's stored bytes are its map and the data.
    """
    kind = type_of(rec)
    assert kind is not None
    name = b"./" if not path else path + b"/" if rec.is_dir else path
    pairs: Pairs = [
        (b"mtime", _seconds(rec.mtime_ns)),
        (b"atime", _seconds(rec.atime_ns)),
        (b"ctime", _seconds(rec.ctime_ns)),
    ]
    for attribute, value in xattrs:
        pairs.append(_attribute(attribute, value))
    if is_sparse:
        pairs += [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name),
            (b"GNU.sparse.realsize", b"%d" % rec.size),
        ]
        name = b"GNUSparseFile.0/%d" % rec.ino
    return _headers(name, kind, rec, pairs, size=stored_bytes, target=rec.target)


def hardlink(path: bytes, rec: InodeRec, first: bytes) -> bytes:
    """Headers of a further link to what stands at `first`."""
    return _headers(path, _HARDLINK, rec, [], size=0, target=first)


def whole_blocks(spans: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Pieces of data as a sparse entry stores them: whole blocks, but at the file's end.

    GNU tar begins each piece at a block; who reads them as one stream finds the same then.
    """
    return [(offset, min(size - offset, length + len(padding(length)))) for offset, length in spans]


def sparse_map(spans: list[tuple[int, int]], size: int) -> bytes:
    """The map of a sparse file's data, in whole blocks."""
    if not spans or sum(spans[-1]) < size:
        spans = [*spans, (size, 0)]
    text = b"%d\n" % len(spans) + b"".join(b"%d\n%d\n" % span for span in spans)
    return text + padding(len(text))


def _headers(
    name: bytes, kind: bytes, rec: InodeRec, pairs: Pairs, *, size: int, target: bytes
) -> bytes:
    if not _is_plain(name):
        pairs = [(b"path", name), *pairs]
    if target and not _is_plain(target):
        pairs = [(b"linkpath", target), *pairs]
    if size > _SIZE_MAX:
        pairs = [(b"size", b"%d" % size), *pairs]
    for key, value in ((b"uid", rec.uid), (b"gid", rec.gid)):
        if value > _ID_MAX:
            pairs = [(key, b"%d" % value), *pairs]
    head = _ustar(name, kind, rec, size=size, target=target)
    if not pairs:
        return head
    body = b"".join(_record(key, value) for key, value in pairs)
    extended = _ustar(b"PaxHeaders/%d" % rec.ino, b"x", rec, size=len(body), target=b"")
    return extended + body + padding(len(body)) + head


def _is_plain(name: bytes) -> bool:
    return len(name) <= _NAME_BYTES and name.isascii()


def _ustar(name: bytes, kind: bytes, rec: InodeRec, *, size: int, target: bytes) -> bytes:
    mtime_s = rec.mtime_ns // 1_000_000_000
    special = kind in (b"3", b"4")
    raw = b"".join(
        (
            _fit(name, _NAME_BYTES),
            b"%07o\0" % stat.S_IMODE(rec.mode),
            b"%07o\0" % (rec.uid if rec.uid <= _ID_MAX else 0),
            b"%07o\0" % (rec.gid if rec.gid <= _ID_MAX else 0),
            b"%011o\0" % (size if size <= _SIZE_MAX else 0),
            b"%011o\0" % min(max(mtime_s, 0), _SIZE_MAX),
            b"        ",
            kind,
            _fit(target, _NAME_BYTES),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0" % (_major(rec.rdev) if special else 0),
            b"%07o\0" % (_minor(rec.rdev) if special else 0),
            bytes(167),
        )
    )
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def _fit(name: bytes, length: int) -> bytes:
    """A name, or as much of it as fits: then the pax header has the whole."""
    plain = name if name.isascii() else bytes(b if b < 0x80 else ord("_") for b in name)
    return plain[:length].ljust(length, b"\0")


def _major(rdev: int) -> int:
    return (rdev >> 8 & 0xFFF) | (rdev >> 32 & ~0xFFF & 0xFFFFFFFF)


def _minor(rdev: int) -> int:
    return (rdev & 0xFF) | (rdev >> 12 & ~0xFF & 0xFFFFFFFF)


def _record(key: bytes, value: bytes) -> bytes:
    """`length key=value`, the length counting itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _seconds(time_ns: int) -> bytes:
    seconds, rest_ns = divmod(abs(time_ns), 1_000_000_000)
    sign = b"-" if time_ns < 0 else b""
    return b"%s%d.%09d" % (sign, seconds, rest_ns) if rest_ns else b"%s%d" % (sign, seconds)


def time_ns_of(text: str) -> int:
    """The inverse of a time's text. Raises FormatError."""
    whole, _, fraction = text.removeprefix("-").partition(".")
    if not (whole.isascii() and whole.isdigit()) or not (fraction or "0").isdigit():
        raise FormatError("archive", f"{text[:40]!a} is no time")
    time_ns = int(whole[:20]) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
    return -time_ns if text.startswith("-") else time_ns


# --- attributes ----------------------------------------------------------------------------


def _attribute(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    if name in ACL_NAMES:
        return ACL_NAMES[name], _acl_text(acl.decode(value)).encode("ascii")
    # As GNU tar: a record's key can't hold an equals sign.
    escaped = name.replace(b"%", b"%25").replace(b"=", b"%3D")
    return XATTR.encode() + escaped, value


def xattr_name(key: str) -> bytes:
    """The attribute behind a record's key, which begins with XATTR."""
    name = key.removeprefix(XATTR).encode("utf-8", "surrogateescape")
    return name.replace(b"%3D", b"=").replace(b"%25", b"%")


def _acl_text(entries: acl.Acl) -> str:
    lines = []
    for item in entries:
        who = str(item.id) if item.tag in (acl.USER, acl.GROUP) else ""
        perm = "".join(c if item.perm & bit else "-" for c, bit in (("r", 4), ("w", 2), ("x", 1)))
        lines.append(f"{_TAGS[item.tag]}:{who}:{perm}")
    return "\n".join(lines) + "\n"


def acl_value(text: str) -> bytes:
    """The attribute's value for a list as text. Raises FormatError."""
    entries = []
    for line in text.split("\n")[: _ACL_ENTRIES_MAX + 1]:
        if not line:
            continue
        kind, _, rest = line.partition(":")
        who, _, perm = rest.partition(":")
        tag = _LIST_TAGS.get((kind, who != ""))
        if tag is None or len(perm) != 3 or (who and not (who.isascii() and who.isdigit())):
            raise FormatError("archive", f"{line[:80]!a} is no entry of an access control list")
        bits = sum(bit for c, bit in zip(perm, (4, 2, 1), strict=True) if c != "-")
        number = int(who) if who else acl.UNDEFINED_ID
        if number > acl.UNDEFINED_ID:
            raise FormatError("archive", "an access control list names an impossible id")
        entries.append(acl.Entry(tag, bits, number))
    value = acl.encode(entries)
    acl.decode(value)
    return value
