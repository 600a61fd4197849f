"""A directory of this machine, brought into a cache as programs on a mount would have.

Called by tests/snapshot.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from tests.support.caches import CRED


def bring_in(fs: FileSystem, top: Path, parent: int = ROOT_INO) -> None:
    """Make the filesystem's tree below `parent` that of the directory: changes only."""
    known = {entry.name: entry.attr for entry in fs.readdir(parent, 0, 1 << 20)}
    for name, attr in known.items():
        at = os.fsencode(top) + b"/" + name
        here = os.lstat(at) if os.path.lexists(at) else None
        if here is None or stat.S_IFMT(here.st_mode) != stat.S_IFMT(attr.mode):
            _remove(fs, parent, name, attr.ino, stat.S_ISDIR(attr.mode))
    with os.scandir(os.fsencode(top)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            _bring(fs, parent, entry)


def _bring(fs: FileSystem, parent: int, entry: os.DirEntry[bytes]) -> None:
    st = entry.stat(follow_symlinks=False)
    found = {e.name: e.attr for e in fs.readdir(parent, 0, 1 << 20)}.get(entry.name)
    if stat.S_ISDIR(st.st_mode):
        ino = found.ino if found else fs.mkdir(parent, entry.name, 0o755, CRED).ino
        bring_in(fs, Path(os.fsdecode(entry.path)), ino)
        return
    if stat.S_ISLNK(st.st_mode):
        if not found:
            fs.symlink(parent, entry.name, os.readlink(entry.path), CRED)
        return
    if not stat.S_ISREG(st.st_mode):
        return
    data = Path(os.fsdecode(entry.path)).read_bytes()
    ino = found.ino if found else fs.create(parent, entry.name, 0o644, CRED).ino
    if not found or found.size != len(data) or fs.read(ino, 0, len(data)) != data:
        fs.setattr(ino, size=0)
        if data:
            fs.write(ino, 0, data)
    fs.setattr(ino, mode=stat.S_IMODE(st.st_mode), mtime_ns=st.st_mtime_ns)


def _remove(fs: FileSystem, parent: int, name: bytes, ino: int, is_dir: bool) -> None:
    if not is_dir:
        fs.unlink(parent, name)
        return
    for entry in list(fs.readdir(ino, 0, 1 << 20)):
        _remove(fs, ino, entry.name, entry.attr.ino, stat.S_ISDIR(entry.attr.mode))
    fs.rmdir(parent, name)
