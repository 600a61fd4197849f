"""A disk that really loses pages: the kernel tells it once, and the next flush succeeds.

An ext4 in a file on a tmpfs that gets full: what ext4 writes back then is refused by the loop
device and dropped. Nothing here is injected.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.limits import EXTENT_BYTES
from tests.cache.test_durability import change
from tests.support.small_disk import hog, small_disk

PAGE_BYTES = 4096
FILES = range(3, 103)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(a directory on the ext4, the tmpfs below it)."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("not installed: mkfs.ext4")
    with small_disk(tmp_path / "small", 48) as below, contextlib.ExitStack() as undo:
        image, place = below / "image", tmp_path / "disk"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(128 << 20)
        # Without a journal, whose own errors would end the filesystem.
        options = ["-q", "-O", "^has_journal", "-E", "lazy_itable_init=0"]
        subprocess.run(["mkfs.ext4", *options, str(image)], check=True, capture_output=True)
        command = ["mount", "-o", "loop,errors=continue", str(image), str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a loop device can't be mounted here: {done.stderr.strip()}")
        undo.callback(lambda: subprocess.run(["umount", "-l", str(place)], check=True))
        yield place, below


def _opened(place: Path, boot_id: str) -> Cache:
    return open_cache(
        place / "ws",
        Identity("test/", "test"),
        quota_bytes=32 << 20,
        now_ns=lambda: 1_000_000_000,
        boot_id=boot_id,
    )


def _lost_pages(path: Path) -> int:
    """How many pages of the file are other on the disk than in the kernel's memory, which drops
    its own for that."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        before = os.pread(fd, size, 0)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        after = os.pread(fd, size, 0)
    finally:
        os.close(fd)
    pages = range(0, size, PAGE_BYTES)
    return sum(before[at : at + PAGE_BYTES] != after[at : at + PAGE_BYTES] for at in pages)


async def test_no_sync_point_vouches_for_what_the_kernel_dropped(disk: tuple[Path, Path]) -> None:
    place, below = disk
    cache = _opened(place, "boot-1")
    durability = Durability(cache)
    before = change(cache, data=b"d" * EXTENT_BYTES)
    await durability.ensure()
    hog(below / "hog")
    for ino in FILES:
        change(cache, ino, b"x" * EXTENT_BYTES)
    with pytest.raises(FsError) as caught:
        await durability.ensure()
    assert caught.value.errno == errno.EIO
    (below / "hog").unlink()
    # The control: the kernel is content, and has lost them.
    cache.env.sync(True)
    with pytest.raises(FsError):
        await durability.ensure()
    assert cache.points.durable_generation == before
    await durability.ensure(before)
    cache.close()
    lost = _lost_pages(place / "ws" / DATA_DIR / DATA_FILE)
    print(f"{lost} pages lost")
    assert lost > len(FILES)
    with _opened(place, "boot-2") as again:
        assert (again.recovery, again.generation) == ("sync-point", before)
        with again.read() as view:
            assert dict(view.extents(2)) == {0: b"d" * EXTENT_BYTES}
        change(again)
        await Durability(again).ensure()
