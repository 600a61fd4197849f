"""A tree with everything a filesystem can hold, and manifests that say whether two trees are one.

Invariants
1. `build_rich_tree` makes the same tree each time (same seed), and names what it had to leave out.
2. A manifest knows nothing of s3ws: it is made with lstat, readlink, listxattr and the bytes alone.
3. Two trees without a difference have, for every name: type, mode, owner, size, mtime to the
   nanosecond, link count and the names that share the inode, extended attributes, symlink target,
   device number, SHA-256, and whether the file is mostly holes.

Called by the tests of e2e and crash, and by scripts/acceptance.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

SEED: Final = 20240607
SPARSE_BYTES: Final = 48 << 20
ISLAND: Final = b"an island in a sea of nothing"
NAME_BYTES_MAX: Final = 255
DEEP_LEVELS: Final = 6

NAMES: Final[tuple[bytes, ...]] = (
    b"plain.txt",
    b"spaces  in  it ",
    b" leading space",
    b"trailing dot.",
    b"...",
    b".hidden",
    b"-rf",
    b"~",
    b"~backup~",
    b"#hash#",
    b"100%",
    b"%",
    b"%%",
    b"%41",
    b"%2F and %2f",
    b"%25",
    b"a%0Ab",
    b"back\\slash",
    b"quote'\"`$(x)",
    b"colon: semicolon; comma, & + = ? * [x] {y} <z> |",
    b"tab\there",
    b"new\nline",
    b"bell\x07 delete\x7f escape\x1b[31m",
    b"\x01",
    b"latin-1 caf\xe9",
    b"\xff\xfe\xfd",
    b"broken \xc3( utf-8 \xed\xa0\x80 surrogate",
    "日本語 ✓ 😀 𐍈".encode(),
    "é composed".encode(),
    "é decomposed".encode(),
    "right-to-left \u202e\u200f".encode(),
    b"README",
    b"readme",
    b"con.txt",
    b"n" * NAME_BYTES_MAX,
    b"\xfe" * NAME_BYTES_MAX,
    ("ü" * 127).encode(),
)


@dataclass(frozen=True, slots=True)
class Node:
    """One name of a tree. `twins`: all names in the tree that share its inode, itself included."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    twins: tuple[bytes, ...]
    xattrs: tuple[tuple[str, bytes], ...]
    target: bytes
    rdev: int
    sha256: str
    holes: bool


Manifest = dict[bytes, Node]

_KINDS: Final[tuple[tuple[str, Callable[[int], bool]], ...]] = (
    ("file", stat.S_ISREG),
    ("directory", stat.S_ISDIR),
    ("symlink", stat.S_ISLNK),
    ("fifo", stat.S_ISFIFO),
    ("socket", stat.S_ISSOCK),
    ("character device", stat.S_ISCHR),
    ("block device", stat.S_ISBLK),
)


def manifest(top: str | os.PathLike[str]) -> Manifest:
    """What stands below `top` (the root itself as b".") by path relative to it. Raises OSError."""
    root = os.fsencode(top)
    stats = {path: os.lstat(os.path.join(root, path)) for path in (b".", *walk(root))}
    twins: dict[tuple[int, int], list[bytes]] = {}
    for path, info in stats.items():
        twins.setdefault((info.st_dev, info.st_ino), []).append(path)
    return {
        path: _node(os.path.join(root, path), info, twins[info.st_dev, info.st_ino])
        for path, info in stats.items()
    }


def walk(root: bytes) -> Iterator[bytes]:
    """All names below `root`, relative to it, parents before children. Raises OSError."""
    pending = [b""]
    while pending:
        below = pending.pop()
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = os.path.join(below, entry.name)
                yield path
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)


def _node(path: bytes, info: os.stat_result, twins: list[bytes]) -> Node:
    kind = next(name for name, test in _KINDS if test(info.st_mode))
    is_file = kind == "file"
    return Node(
        kind=kind,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        size=info.st_size if kind in ("file", "symlink") else 0,
        mtime_ns=info.st_mtime_ns,
        nlink=info.st_nlink,
        twins=tuple(sorted(twins)),
        xattrs=_xattrs(path),
        target=os.readlink(path) if kind == "symlink" else b"",
        rdev=info.st_rdev if kind.endswith("device") else 0,
        sha256=sha256_of(path) if is_file else "",
        holes=is_file and info.st_blocks * 1024 < info.st_size,
    )


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def sha256_of(path: str | bytes | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def differences(before: Manifest, after: Manifest, *, ignore: Collection[str] = ()) -> list[str]:
    """Every difference in words; empty when the trees are one. `ignore`: fields of Node."""
    unknown = set(ignore) - {field.name for field in fields(Node)} - {"directory nlink"}
    if unknown:
        raise ValueError(f"no such fields: {unknown}")
    found = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found.append(f"{path!r}: {'appeared' if old is None else 'is missing'}")
            continue
        for field in fields(Node):
            name = field.name
            if name in ignore or (
                name == "nlink" and old.kind == "directory" and "directory nlink" in ignore
            ):
                continue
            was, now = getattr(old, name), getattr(new, name)
            if was != now:
                found.append(f"{path!r}: {name} was {was!r}, is {now!r}")
    return found


OTHER_FILESYSTEM: Final = ("directory nlink", "holes")
"""What two different filesystems may show differently for the same tree."""


def build_rich_tree(top: Path, *, big_bytes: int = 0) -> list[str]:
    """Make the tree below `top`, which must not exist; `big_bytes` > 0 adds one file that large.

    Returns what could not be made here (no root, no xattrs), in words.
    """
    rng = random.Random(SEED)
    top.mkdir()
    left_out: list[str] = []
    _odd_names(top / "names", rng)
    _deep(top / "deep", rng)
    _sizes(top / "sizes", rng, big_bytes)
    _modes(top / "modes")
    _links(top / "links")
    _special(top / "special", left_out)
    _attributes(top / "attributes", rng, left_out)
    _times(top / "times")
    # Directories of these names must not be confused with the bucket's own.
    for name in ("journal", "files", "events", "empty"):
        (top / "empty" / name).mkdir(parents=True)
    os.utime(top, ns=(0, 1_600_000_000_123_456_789))
    return left_out


def _odd_names(top: Path, rng: random.Random) -> None:
    top.mkdir()
    base = os.fsencode(top)
    for name in NAMES:
        with open(os.path.join(base, name), "xb") as out:
            out.write(name + rng.randbytes(rng.randrange(200)))
    inside = os.path.join(base, b"directory \xff\n%2e")
    os.mkdir(inside)
    os.symlink(b"../\xff\xfe\xfd", os.path.join(inside, b"link \xe9"))
    with open(os.path.join(inside, b"leaf"), "xb") as out:
        out.write(b"below an odd directory")


def _deep(top: Path, rng: random.Random) -> None:
    """Beyond 1,024 bytes, which no key can carry."""
    path = top
    for level in range(DEEP_LEVELS):
        path = path / (f"level {level} " + "d" * 200)
    path.mkdir(parents=True)
    (path / "bottom").write_bytes(rng.randbytes(3000))


def _sizes(top: Path, rng: random.Random, big_bytes: int) -> None:
    top.mkdir()
    extent = 32 << 10
    for size in (0, 1, 511, 4096, extent - 1, extent, extent + 1, 5 * extent + 7, 3 << 20):
        (top / f"{size} bytes").write_bytes(rng.randbytes(size))
    (top / "zeros").write_bytes(bytes(1 << 20))
    with (top / "sparse.img").open("xb") as out:
        out.truncate(SPARSE_BYTES)
        out.seek(SPARSE_BYTES // 3)
        out.write(ISLAND)
    with (top / "only a hole").open("xb") as out:
        out.truncate((1 << 20) + 5)
    with (top / "hole at the end").open("xb") as out:
        out.write(b"begins")
        out.truncate(4 << 20)
    if big_bytes:
        with (top / "big.bin").open("xb") as out:
            for _ in range(big_bytes >> 20):
                out.write(rng.randbytes(1 << 20))
            out.write(rng.randbytes(big_bytes & 0xFFFFF))


def _modes(top: Path) -> None:
    top.mkdir()
    modes = [0o400, 0o444, 0o600, 0o644, 0o664, 0o700, 0o755, 0o777, 0o4755, 0o2755, 0o1644, 0o6711]
    if os.geteuid() == 0:
        modes += [0o000, 0o111, 0o222]
    for mode in modes:
        path = top / f"file {mode:04o}"
        path.write_text(f"{mode:o}\n")
        path.chmod(mode)
    for mode in (0o700, 0o711, 0o755, 0o1777, 0o2775, 0o3770):
        path = top / f"directory {mode:04o}"
        path.mkdir()
        path.chmod(mode)
    if os.geteuid() == 0:
        for uid, gid in ((1000, 1000), (10001, 0), (0, 10001), (4_000_000_000, 4_000_000_001)):
            path = top / f"owner {uid}-{gid}"
            path.write_text("owned\n")
            os.chown(path, uid, gid)
        os.symlink("nowhere", top / "owned link")
        os.chown(top / "owned link", 1234, 5678, follow_symlinks=False)
        # After chown, which takes the bit away.
        (top / "owner 1000-1000").chmod(0o4711)


def _links(top: Path) -> None:
    (top / "a").mkdir(parents=True)
    (top / "b").mkdir()
    (top / "a" / "first").write_text("one inode, three names\n")
    os.link(top / "a" / "first", top / "a" / "second")
    os.link(top / "a" / "first", top / "b" / "third")
    (top / "to file").symlink_to("a/first")
    (top / "to directory").symlink_to("b")
    (top / "dangling").symlink_to("no/such/place")
    (top / "absolute").symlink_to("/etc/hostname")
    (top / "loop").symlink_to("loop")
    os.symlink(b"x" * 4000, os.fsencode(top / "long target"))
    os.symlink(b"\xff\n target", os.fsencode(top / "odd target"))
    os.link(top / "dangling", top / "dangling too", follow_symlinks=False)


def _special(top: Path, left_out: list[str]) -> None:
    top.mkdir()
    os.mkfifo(top / "fifo", 0o640)
    os.link(top / "fifo", top / "fifo too")
    # The address of a socket is short: bound from inside its directory.
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"/proc/self/fd/{here}/socket")
    finally:
        os.close(here)
    try:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    except PermissionError:
        left_out.append("device nodes (not allowed here)")


def _attributes(top: Path, rng: random.Random, left_out: list[str]) -> None:
    (top / "directory").mkdir(parents=True)
    (top / "file").write_text("has attributes\n")
    (top / "bare").write_text("has none\n")
    try:
        for path in (top / "directory", top / "file"):
            os.setxattr(path, "user.origin", b"rich tree")
            os.setxattr(path, "user.empty", b"")
            os.setxattr(path, "user.binary", rng.randbytes(1000))
            os.setxattr(path, "user." + "n" * 200, b"long name")
    except OSError as exc:
        left_out.append(f"extended attributes ({exc.strerror})")


def _times(top: Path) -> None:
    top.mkdir()
    for name, when_ns in (
        ("epoch", 0),
        ("one nanosecond", 1),
        ("before 1970", -1_000_000_001),
        ("2038 and later", 2_200_000_000_999_999_999),
        ("exact", 946_684_800_123_456_789),
    ):
        path = top / name
        path.write_text(name)
        os.utime(path, ns=(when_ns, when_ns))
    (top / "link").symlink_to("epoch")
    os.utime(top / "link", ns=(5, 1_234_567_890_000_000_042), follow_symlinks=False)
    (top / "directory").mkdir()
    os.utime(top / "directory", ns=(7, 1_111_111_111_111_111_111))


def build_source_tree(top: Path, *, files: int) -> None:
    """`files` small source-like files in nested directories: a stand-in for a real project."""
    rng = random.Random(SEED)
    words = [f"word{number}" for number in range(500)]
    for number in range(files):
        directory = top / f"package{number % 23}" / f"module{number % 7}"
        directory.mkdir(parents=True, exist_ok=True)
        lines = (
            " ".join(rng.choices(words, k=rng.randrange(2, 12)))
            for _ in range(rng.randrange(1, 90))
        )
        path = directory / f"source_{number:05d}.py"
        path.write_text("\n".join(f"# {line}" for line in lines) + "\n")
        if number % 40 == 0:
            path.chmod(0o755)
