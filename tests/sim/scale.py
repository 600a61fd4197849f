"""The program's limits, so small that small workspaces reach them all.

A workspace of a hundred files would never make a blob, a second page or a checkpoint. What holds
does not depend on these numbers; what happens at them is where mistakes are.

Called by world.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from s3ws_fs.replica import cold, flusher, hydrate, restore
from s3ws_fs.transfer import (
    ahead,
    fetch,
    freeze,
    garbage,
    journaling,
    mirror,
    objects,
    reconcile,
    spool,
)
from s3ws_fs.transfer.requests import flush

SMALL: Final[tuple[tuple[ModuleType, str, int], ...]] = (
    (freeze, "SEGMENT_INLINE_BYTES_MAX", 64 << 10),
    (freeze, "BLOB_BYTES_MAX", 100_000),
    (freeze, "BLOB_FILE_BYTES_MIN", 40_000),
    (freeze, "WHOLE_FILE_BLOB_BYTES_MAX", 150_000),
    (flusher, "CHECKPOINT_EVERY_SEGMENTS", 6),
    (flusher, "RECORD_BATCH", 7),
    (garbage, "GC_GRACE_S", 300),
    (journaling, "WHOLE_GET_BYTES_MAX", 20_000),
    (mirror, "RESULTS_BATCH", 3),
    (mirror, "SUBMIT_WINDOW", 6),
    (objects, "MEMORY_BODY_BYTES_MAX", 50_000),
    (reconcile, "PAGE", 5),
    (hydrate, "SCAN_KEYS", 20),
    (cold, "PIECE_EXTENTS", 4),
    (hydrate, "READ_AHEAD_EXTENTS", 5),
    (restore, "BATCH_RECORDS", 10),
    (flush, "LIST_BATCH", 5),
    (fetch, "GAP_BYTES_MAX", 1000),
)
"""Module, limit, its value in a run."""
SHORT_SPOOL_CHANCE: Final = 0.2
"""Of runs, so many have hardly any room to spool."""
SHORT_SPOOL_BYTES: Final = 60_000


class SpoolDisk:
    """The disk that spools stand on: while it is full, no file is made there."""

    is_full = False

    def __init__(self) -> None:
        self.on_refused: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        # All else of the module os, which this stands for in transfer.spool.
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """As os.open."""
        if self.is_full:
            self.on_refused()
            raise OSError(errno.ENOSPC, "simulated", str(path))
        return os.open(path, flags, mode)


@contextlib.contextmanager
def small_limits(seed: int, disk: SpoolDisk) -> Iterator[None]:
    """Within the block, and for this seed."""
    is_short = random.Random(f"{seed} spool").random() < SHORT_SPOOL_CHANCE

    def room_bytes(_: Path) -> int:
        if disk.is_full:
            return 0
        return SHORT_SPOOL_BYTES if is_short else 1 << 30

    values: list[tuple[ModuleType, str, Any]] = [
        *SMALL,
        (spool, "os", disk),
        (ahead, "spool_room_bytes", room_bytes),
        (objects, "spool_room_bytes", room_bytes),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in values]
    for module, name, value in values:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
