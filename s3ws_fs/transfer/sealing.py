"""What a flush puts into the journal: blobs, the segment that seals, a checkpoint.

Invariants
1. A segment's PUT is the last request of a seal: what it names stands already. So does the segment
   before it: `require_journal` comes first.
2. A lost answer is told from a fence by reading the header back: the same flush id is our own.

Called by requests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor

from s3ws_fs.core import failpoints, layout
from s3ws_fs.core.errors import ConflictError, FormatError, NotFoundError
from s3ws_fs.store.body import FileSlice
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.freeze import Blob, Frozen
from s3ws_fs.transfer.journaling import JOURNAL_TYPE, read_header
from s3ws_fs.transfer.wire import FencedError, OwnSealError


def ship_blobs(
    store: ScopedStore, frozen: Frozen, pool: Executor, shipped: Callable[[int], None]
) -> None:
    """Put all blobs of a freeze, in parallel; `shipped` is told of each. Raises StoreError."""

    def ship(blob: Blob) -> None:
        failpoints.hit(failpoints.SHIP_BEFORE)
        store.put(
            layout.blob_key(blob.object_id),
            FileSlice(blob.file.fileno(), 0, blob.length),
            content_type=JOURNAL_TYPE,
        )
        failpoints.hit(failpoints.SHIP_AFTER)

    jobs = [pool.submit(ship, blob) for blob in frozen.blobs.values()]
    # A failure is raised when none is under way any more: so long their files must stay open.
    for number, job in enumerate(jobs):
        job.exception()
        shipped(number + 1)
    for job in jobs:
        job.result()


def require_journal(store: ScopedStore, number: int) -> None:
    """Raise FormatError unless what segment `number` continues stands in the bucket.

    The must-create PUT tells when somebody is ahead of us. A bucket that was emptied or put back
    under a mount it can't tell: the PUT would succeed, and later ones after it.
    """
    before = number - 1
    names = [layout.seg_key(before), layout.ckpt_key(before)] if before else [layout.WORKSPACE_KEY]
    for key in names:
        try:
            store.head(key)
        except NotFoundError:
            continue
        return
    raise FormatError(names[0], "is gone: the bucket was emptied or replaced under this mount")


def seal(store: ScopedStore, frozen: Frozen) -> None:
    """The one PUT that commits. Raises FencedError, OwnSealError, StoreError."""
    header = frozen.header
    assert header is not None and frozen.segment_file is not None
    key = layout.seg_key(frozen.number)
    body = FileSlice(frozen.segment_file.fileno(), 0, header.total_bytes)
    failpoints.hit(failpoints.SEAL_BEFORE)
    try:
        store.put(key, body, content_type=JOURNAL_TYPE, if_none_match=True)
    except ConflictError:
        there, _ = read_header(store, key)
        if there.flush_id == frozen.flush_id:
            return
        if there.writer == header.writer:
            raise OwnSealError(f"{key} is our own flush {there.flush_id}") from None
        raise FencedError(there.host) from None
    failpoints.hit(failpoints.SEAL_AFTER)


def put_checkpoint(store: ScopedStore, frozen: Frozen) -> int:
    """Put the checkpoint of a sealed freeze; returns its bytes. Raises StoreError."""
    assert frozen.checkpoint is not None
    failpoints.hit(failpoints.CHECKPOINT_BEFORE)
    with frozen.checkpoint.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        body = FileSlice(file.fileno(), 0, size_bytes)
        try:
            store.put(
                layout.ckpt_key(frozen.number), body, content_type=JOURNAL_TYPE, if_none_match=True
            )
        except ConflictError:
            # Our own, by an attempt whose answer was lost: nobody else sealed this number.
            return size_bytes
    failpoints.hit(failpoints.CHECKPOINT_AFTER)
    return size_bytes
