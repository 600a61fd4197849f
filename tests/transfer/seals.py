"""Seals made by hand, one after another, as a flusher makes them.

Called by the tests of freeze, sealing, garbage and restoring.
"""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import freeze as freezing
from s3ws_fs.transfer import sealing, spool
from s3ws_fs.transfer.freeze import FreezeRequest, Frozen

WORKSPACE = "w" * 32

_frozen: list[Frozen] = []


def close_all() -> None:
    """Close every freeze that was made here."""
    while _frozen:
        _frozen.pop().close()


def freeze(cache: Cache, directory: Path, request: FreezeRequest) -> Frozen:
    frozen = freezing.freeze(cache, directory, request)
    _frozen.append(frozen)
    return frozen


def ask(number: int, prev_hash: str = "", writer: str = "me", **more: object) -> FreezeRequest:
    return FreezeRequest.from_json(
        {
            "workspace": WORKSPACE,
            "writer": writer,
            "host": f"host-of-{writer}",
            "flush_id": uuid.uuid4().hex,
            "number": number,
            "prev_hash": prev_hash,
            "mirrored": 0,
            "created_ns": time.time_ns(),
            "checkpoint": False,
            "prefix_bytes": 30,
            **more,
        }
    )


def records(frozen: Frozen) -> dict[tuple[int, bytes], bytes | None]:
    """All records of a frozen segment: value, or None for a tombstone."""
    assert frozen.segment is not None
    found: dict[tuple[int, bytes], bytes | None] = {}
    for frame in spool.open_records(frozen.segment, "seg", whole=True).frames():
        values = [None] * len(frame.keys) if frame.tombs else frame.values
        found.update({(frame.table, k): v for k, v in zip(frame.keys, values, strict=True)})
    return found


def seal_one(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    number: int,
    prev_hash: str,
    *,
    checkpoint: bool = False,
) -> Frozen:
    """Freeze, seal and forget, as the flusher does."""
    frozen = freeze(cache, tmp_path, ask(number, prev_hash, checkpoint=checkpoint))
    with ThreadPoolExecutor(2) as pool:
        sealing.ship_blobs(store, frozen, pool, lambda _: None)
    sealing.seal(store, frozen)
    own = keys.pack_u64(number)
    located = [
        (key, own + raw[8:] if raw[:8] == bytes(8) else raw)
        for (table, key), raw in records(frozen).items()
        if table == keys.T_CHUNKS and raw is not None
    ]
    cache.record_locations(frozen.generation, located)
    assert cache.forget(frozen.generation, 0) is None
    if checkpoint:
        sealing.put_checkpoint(store, frozen)
    return frozen
