"""Unpacks a tar archive and tells, member by member, what is finished: a witness.

`python -m tests.support.extractor ARCHIVE DIRECTORY`: each member is made with its mode and
modification time; when the last call on it (close included) has returned, its name goes to standard
output, which is a pipe to somebody who outlives the filesystem. Exit status 3: a call failed.

Called by `unpack_and_witness`, that is by the tests of crash and scripts/acceptance.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support.mounting import REPOSITORY

FAILED: Final = 3
PIECE_BYTES: Final = 48 << 10
"""Not a multiple of an extent, so that files are written in overlapping steps."""


def extract(archive: str, directory: str) -> None:
    """Unpack, announcing each finished member. Raises OSError."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = os.path.join(directory, member.name)
            if member.isdir():
                os.mkdir(path)
                os.chmod(path, member.mode)
            elif member.issym():
                os.symlink(member.linkname, path)
            elif member.isreg():
                _write(tar, member, path)
            else:
                continue
            os.write(1, os.fsencode(member.name) + b"\0")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    source = tar.extractfile(member)
    assert source is not None
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        while piece := source.read(PIECE_BYTES):
            os.write(fd, piece)
        os.fchmod(fd, member.mode)
        os.utime(fd, ns=(int(member.mtime) * 10**9, int(member.mtime) * 10**9))
    finally:
        os.close(fd)


def unpack_and_witness(
    archive: Path, directory: Path, on_finished: Callable[[int], None]
) -> tuple[list[str], int]:
    """Unpack in a process of its own; the names that were finished, and its exit status.

    `on_finished` is called with their number as they come, and may kill what is below `directory`.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.extractor", str(archive), str(directory)],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    names: list[str] = []
    rest = b""
    try:
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            *whole, rest = (rest + piece).split(b"\0")
            for name in whole:
                names.append(os.fsdecode(name))
                on_finished(len(names))
        return names, process.wait()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def damaged(archive: Path, directory: Path, names: list[str]) -> list[str]:
    """Which of the finished members do not stand below `directory` as the archive has them."""
    finished = set(names)
    found = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name not in finished:
                continue
            try:
                wrong = _wrong(tar, member, directory / member.name)
            except OSError as exc:
                wrong = str(exc)
            if wrong:
                found.append(f"{member.name}: {wrong}")
    return found


def _wrong(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> str:
    info = path.lstat()
    if member.issym():
        return "" if os.readlink(path) == member.linkname else "another target"
    if info.st_mode & 0o7777 != member.mode & 0o7777:
        return f"mode {info.st_mode:o}"
    if member.isdir():
        return "" if path.is_dir() else "not a directory"
    if info.st_mtime_ns != int(member.mtime) * 10**9:
        return f"mtime {info.st_mtime_ns}"
    source = tar.extractfile(member)
    assert source is not None
    return "" if path.read_bytes() == source.read() else "other bytes"


def main() -> int:
    """See the module's docstring."""
    try:
        extract(sys.argv[1], sys.argv[2])
    except OSError as exc:
        print(exc, file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
