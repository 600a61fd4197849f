"""A real ext4 on a loop device whose power can be cut.

The cut is the filesystem's own: EXT4_IOC_SHUTDOWN without flushing its journal. From then on
nothing reaches the device any more; what had not been written is gone, and the next mount replays
the journal, as after a crash. Before it, `write_back` has the kernel write any pages of a file, so
that what is on the device is any subset of what was written.

Invariants
1. `CrashDisk` leaves no mount and no loop device, whatever happened.

Root only. Called by tests.crash.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

EXT4_IOC_SHUTDOWN: Final = 0x8004587D
GOING_FLAGS_NOLOGFLUSH: Final = 2
SYNC_FILE_RANGE_WRITE: Final = 2
RANGE_BYTES: Final = 4096
GONE_S_MAX: Final = 60.0

_libc = ctypes.CDLL(None, use_errno=True)


class CrashDisk:
    """A filesystem of `mib` MiB, mounted at `place`."""

    def __init__(self, image: Path, place: Path, mib: int) -> None:
        self.image = image
        self.place = place
        with image.open("wb") as file:
            file.truncate(mib << 20)
        _run("mkfs.ext4", "-q", image)
        place.mkdir()
        self.mount()

    def mount(self) -> None:
        """Mount it; after a cut this replays the journal."""
        _run("mount", "-o", "loop,commit=1", self.image, self.place)

    def umount(self) -> None:
        """Nobody may have anything open on it.

        Waits until the filesystem is really gone: while a process that was killed is being taken
        apart, it is not, and a new mount would be the same one, shut down.
        """
        _run("umount", self.place)
        deadline = time.monotonic() + GONE_S_MAX
        while _loops_of(self.image):
            assert time.monotonic() < deadline, f"{self.image} is still in use"
            time.sleep(0.05)

    def cut(self) -> None:
        """The power goes."""
        fd = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(fd)

    def end(self) -> None:
        """Invariant 1."""
        if os.path.ismount(self.place):
            subprocess.run(["umount", "-l", self.place], check=False)


def write_back(path: Path, rng: random.Random) -> int:
    """Have some pages of the file written to the disk, and no others; how many."""
    fd = os.open(path, os.O_RDONLY)
    try:
        count = os.fstat(fd).st_size // RANGE_BYTES
        chosen = rng.sample(range(count), rng.randrange(min(count, 200) + 1))
        for number in chosen:
            at = ctypes.c_int64(number * RANGE_BYTES)
            length = ctypes.c_int64(RANGE_BYTES)
            _libc.sync_file_range(fd, at, length, ctypes.c_uint(SYNC_FILE_RANGE_WRITE))
    finally:
        os.close(fd)
    return len(chosen)


def _loops_of(image: Path) -> str:
    done = subprocess.run(["losetup", "-j", image], check=True, capture_output=True, text=True)
    return done.stdout


def _run(*command: str | Path) -> None:
    subprocess.run([os.fspath(word) for word in command], check=True, capture_output=True)


@contextlib.contextmanager
def crash_disk(base: Path, mib: int = 256) -> Iterator[CrashDisk]:
    """A disk below `base`. Skips the test, saying why, where it can't be made."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk to cut its power")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("not installed: mkfs.ext4")
    try:
        disk = CrashDisk(base / "disk.img", base / "disk", mib)
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"a loop device can't be mounted here: {exc.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        disk.end()
