"""The database file, looked at from outside the engine, before anything of it is believed.

Invariants
1. `walk` reads the file as bytes: whatever is in it, this process neither crashes nor changes it.
   Only a file that passed is read through the engine, which trusts what it reads.
2. While it walks, a read transaction pins the newest commit, so that a living daemon can't use
   these pages again; that is why a large file in use is left out (IN_USE_BYTES_MAX).
3. After a reboot without a clean close the newest commit may be torn: what counts then is the sync
   point. `recovered` makes a copy that stands there (beside it: a cache may be large); the cache
   itself is left for the next mount.

Called by cache.checking.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from s3ws_fs.cache import recovery, syncpoint
from s3ws_fs.cache.ownership import IDENTITY_FILE, LOCK_FILE
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.redo import LOG_FILES
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE, map_bytes
from s3ws_fs.core.errors import CacheError

IN_USE_BYTES_MAX: Final = 1 << 30
"""The walk takes some 2 s a GiB: in a larger file a busy daemon would grow for want of pages."""
META_BYTES: Final = 64 << 10
"""Enough of the file to hold both meta pages, whatever the size of a page."""
_LOCK_TEXT_BYTES: Final = 32


def holder(directory: Path) -> int | None:
    """Process id of the daemon that has the cache open, as far as can be told; else None.

    A guess for how careful to be, never a lock: trying the lock would be in a daemon's way.
    """
    try:
        text = (directory / LOCK_FILE).read_bytes()[:_LOCK_TEXT_BYTES]
        pid = int(text)
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError, OverflowError):
        return None
    return pid if pid != os.getpid() else None


def walk(directory: Path, *, in_use: bool) -> list[str] | None:
    """What is structurally wrong with the file; None when it was left out (invariant 2)."""
    data_file = directory / DATA_DIR / DATA_FILE
    if in_use and data_file.stat().st_size > IN_USE_BYTES_MAX:
        return None
    before = _meta_pages(data_file)
    with _pinned(directory) if in_use else contextlib.nullcontext():
        found = recovery.walk(data_file)
    if found and not in_use and _meta_pages(data_file) != before:
        # Somebody does use it, from where we can't see: another container.
        return walk(directory, in_use=True)
    return found


def _meta_pages(data_file: Path) -> bytes:
    with data_file.open("rb") as file:
        return file.read(META_BYTES)


@contextlib.contextmanager
def _pinned(directory: Path) -> Iterator[None]:
    with open_reader(directory) as reader, reader.read():
        yield


@contextlib.contextmanager
def recovered(directory: Path) -> Iterator[Path | None]:
    """A copy of the cache as the next mount makes it; None when no sync point is valid.

    Raises CacheError when it can't be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            copy = _copy_of(directory, stack)
        except OSError as exc:
            raise CacheError(
                f"the cache in {directory} has to be copied to be checked: {exc}",
                remedy="Make room beside it, or mount it: the mount goes back to its sync point.",
            ) from exc
        yield copy if _brought_up(copy) else None


def _brought_up(copy: Path) -> bool:
    """Do with a copy what the next mount does; whether a sync point is valid."""
    data_file = copy / DATA_DIR / DATA_FILE
    slot = syncpoint.put_back(copy, data_file)
    # What does not pass is not for the engine: it is found by who walks it.
    if slot is not None and not recovery.walk(data_file):
        size_bytes = data_file.stat().st_size
        recovery.replay(copy, size_bytes + map_bytes(size_bytes), slot.sequence)
    return slot is not None


def _copy_of(directory: Path, stack: contextlib.ExitStack) -> Path:
    base = tempfile.TemporaryDirectory(prefix="s3ws-check-", dir=directory)
    copy = Path(stack.enter_context(base))
    (copy / DATA_DIR).mkdir()
    shutil.copyfile(directory / DATA_DIR / DATA_FILE, copy / DATA_DIR / DATA_FILE)
    for name in (syncpoint.SIDE_FILE, syncpoint.BOOT_FILE, IDENTITY_FILE, *LOG_FILES):
        if (directory / name).exists():
            shutil.copyfile(directory / name, copy / name)
    return copy
