"""Garbage of the journal: what nothing needs any more is removed.

Invariants
1. Garbage is removed only below journal/seg|ckpt|blob, only after a checkpoint stands, only what
   that checkpoint does not name, and only what was older than GC_GRACE_S at its seal, by the
   server's own clock; never when that checkpoint has another size in the bucket. The same holds
   for unfinished uploads, below the prefix, after a day.

Called by requests.
"""

from __future__ import annotations

from typing import Final

from s3ws_fs.core import failpoints, keys, layout
from s3ws_fs.core.errors import FormatError, StoreError
from s3ws_fs.core.types import BLOB_BIT
from s3ws_fs.store.base import DELETE_BATCH
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.freeze import Frozen
from s3ws_fs.transfer.journaling import numbers
from s3ws_fs.transfer.spool import open_records

GC_GRACE_S: Final = 3600
UPLOAD_GRACE_S: Final = 24 * 3600.0
"""An upload that takes longer than this is nobody's any more."""
CHECKPOINTS_KEPT: Final = 2
GARBAGE_BATCH: Final = DELETE_BATCH
"""Objects removed at once."""


def collect_garbage(store: ScopedStore, frozen: Frozen) -> int:
    """Delete what the checkpoint just put does not name (invariant 1); returns how many."""
    assert frozen.checkpoint is not None
    records = open_records(frozen.checkpoint, "checkpoint", whole=True)
    named = {frozen.number}
    for frame in records.frames():
        if frame.table == keys.T_CHUNKS:
            named.update(int.from_bytes(raw[:8], "big") for raw in frame.values)
    segments = list(numbers(store, layout.SEG_PREFIX))
    sealed_ns = next((modified for n, _, modified in segments if n == frozen.number), 0)
    # What later seals name was put after this one: however long we were stopped meanwhile, and
    # whoever goes on now, it is younger than the limit.
    limit_ns = sealed_ns - GC_GRACE_S * 1_000_000_000
    checkpoints = sorted(numbers(store, layout.CKPT_PREFIX))
    _require_checkpoint(store, frozen, {number: size for number, size, _ in checkpoints})
    gone = [
        layout.ckpt_key(n)
        for n, _, modified in checkpoints[:-CHECKPOINTS_KEPT]
        if modified < limit_ns
    ]
    for number, _, modified in (*segments, *numbers(store, layout.BLOB_PREFIX)):
        if number in named or modified >= limit_ns:
            continue
        if number > frozen.number and not number & BLOB_BIT:
            continue
        gone.append(layout.object_key(number))
    removed = 0
    for at in range(0, len(gone), GARBAGE_BATCH):
        batch = gone[at : at + GARBAGE_BATCH]
        removed += len(batch) - len(store.delete_many(batch))
        failpoints.hit(failpoints.GARBAGE_BATCH)
    failpoints.hit(failpoints.GARBAGE_AFTER)
    return removed


def _require_checkpoint(store: ScopedStore, frozen: Frozen, sizes: dict[int, int]) -> None:
    """Raise FormatError unless the checkpoint stands with its size; a wrong one is taken away.

    Without it all segments are needed, and with them its loss is none.
    """
    assert frozen.checkpoint is not None
    wanted = frozen.checkpoint.stat().st_size
    found = sizes.get(frozen.number)
    if found == wanted:
        return
    key = layout.ckpt_key(frozen.number)
    if found is not None:
        store.delete(key)
    raise FormatError(key, f"has {found or 0} bytes in the bucket, not the {wanted} that were put")


def give_up_uploads(store: ScopedStore) -> int:
    """Abort what killed workers left of multipart uploads; returns how many, as far as it got.

    Never raises: not every server knows the request, not every policy allows it, and nothing
    depends on it but a bill.
    """
    try:
        return store.abort_uploads(UPLOAD_GRACE_S)
    except StoreError:
        return 0
