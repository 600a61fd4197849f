"""A directory of the disk put into a filesystem of ours as it is, without a mount.

Called by tests that compare what comes out with what went in.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from s3ws_fs.core.types import ROOT_INO, Cred
from s3ws_fs.fs.filesystem import FileSystem
from tests.support.trees import walk

ROOT = Cred(uid=0, gid=0, umask=0)
PIECE_BYTES = 1 << 20


def load(fs: FileSystem, top: Path) -> dict[bytes, int]:
    """Everything below `top`, with owners, modes, times, links, attributes and holes.

    Returns the inodes by path.
    """
    root = os.fsencode(top)
    inos = {b"": ROOT_INO}
    first: dict[tuple[int, int], int] = {}
    for path in walk(root):
        above, _, name = path.rpartition(b"/")
        full = os.path.join(root, path)
        info = os.lstat(full)
        known = first.get((info.st_dev, info.st_ino))
        if known is not None:
            fs.link(known, inos[above], name)
            inos[path] = known
            continue
        ino = inos[path] = _make(fs, inos[above], name, full, info)
        if not stat.S_ISDIR(info.st_mode):
            first[info.st_dev, info.st_ino] = ino
    for path, ino in inos.items():
        _attributes(fs, ino, os.path.join(root, path))
    return inos


def _make(fs: FileSystem, parent: int, name: bytes, full: bytes, info: os.stat_result) -> int:
    if stat.S_ISDIR(info.st_mode):
        return fs.mkdir(parent, name, 0o700, ROOT).ino
    if stat.S_ISLNK(info.st_mode):
        return fs.symlink(parent, name, os.readlink(full), ROOT).ino
    if not stat.S_ISREG(info.st_mode):
        return fs.mknod(parent, name, info.st_mode, info.st_rdev, ROOT).ino
    ino = fs.create(parent, name, 0o600, ROOT).ino
    with open(full, "rb") as file:
        at = 0
        while at < info.st_size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += int(fs.write(ino, at, os.pread(file.fileno(), PIECE_BYTES, at)))  # type: ignore[arg-type]
    fs.setattr(ino, size=info.st_size)
    return ino


def _attributes(fs: FileSystem, ino: int, full: bytes) -> None:
    info = os.lstat(full)
    for name in os.listxattr(full, follow_symlinks=False):
        value = os.getxattr(full, name, follow_symlinks=False)
        fs.setxattr(ino, os.fsencode(name), value)
    fs.setattr(ino, uid=info.st_uid, gid=info.st_gid)
    if not stat.S_ISLNK(info.st_mode):
        fs.setattr(ino, mode=stat.S_IMODE(info.st_mode))
    fs.setattr(ino, atime_ns=info.st_atime_ns, mtime_ns=info.st_mtime_ns)
