"""Before the mount: bring the workspace into a fresh cache, or verify that an old one belongs.

Invariants
1. `restore_complete` is set last, in a sync point of its own: until then nothing may be flushed,
   and a restore that was cut off starts anew.
2. The lease is taken before anything else is written to the bucket, and never for a mount that is
   refused then.
3. A whole cache needs no store to be mounted: it is verified later, before the first flush.
4. Records come from the worker verified; they are put as they are, in bulk.
5. A workspace without a journal is new: what stands below files/ was put by hand, and is imported
   before anything is put (importing.py).
6. After a restore all data is cold, all mirror rows are unknown, and whatever the mirror may lack
   is on its to-do.

Called by replicator; `readable` by follower too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import failpoints, journal, keys
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import (
    CacheError,
    ExitCode,
    FormatError,
    StoreError,
    TransientError,
    UserError,
)
from s3ws_fs.core.ids import RandBits, new_id
from s3ws_fs.core.journal import Frame, Header
from s3ws_fs.core.records import Head
from s3ws_fs.core.types import ROOT_INO, SELF_OBJECT
from s3ws_fs.replica import position
from s3ws_fs.replica.lease import QUIET, LeaseKeeper
from s3ws_fs.replica.position import Sealed
from s3ws_fs.transfer.client import REQUEST_DEADLINE_S, WorkerClient
from s3ws_fs.transfer.spool import RecordsFile, open_records
from s3ws_fs.transfer.wire import FencedError

BATCH_RECORDS: Final = 5000
"""Records put in one transaction."""
OFFLINE_AFTER_S: Final = 10.0
"""A mount with a whole cache waits so long for each answer of the store, then goes on without."""
NLINK_OFFSET: Final = 12
"""Where an inode record has its link count (core/records.py)."""

_CONDITIONAL: Final = "conditional"
"""In the cache: which conditions the store keeps, as last probed."""

Progress = Callable[[dict[str, Any]], None]
Importer = Callable[[Progress], Awaitable[bool]]

_SELF: Final = keys.pack_u64(SELF_OBJECT)
_NO_LINKS: Final = bytes(4)


async def prepare(
    cache: Cache,
    worker: WorkerClient,
    config: MountConfig,
    lease: LeaseKeeper,
    progress: Progress,
    *,
    randbits: RandBits,
    bring_in: Importer,
) -> TransientError | None:
    """Make the cache whole, or verify it. Raises UserError (exit 3, 6, 8, 9, 16).

    Returns the error when the cache is whole, but the store does not answer: `verify` it later.
    `bring_in` is called where there is no journal, to import what somebody put by hand.
    """
    if cache.restore_complete:
        worker.hello["workspace"] = cache.get_json("workspace")
        worker.hello["conditional"] = cache.get_json(_CONDITIONAL)
    try:
        await _prepare(cache, worker, config, lease, progress, randbits, bring_in)
    except (StoreError, FormatError) as exc:
        if isinstance(exc, TransientError) and cache.restore_complete:
            progress({"phase": "the store does not answer; mounting the cache", "error": str(exc)})
            return exc
        raise readable(exc, config) from exc
    except FencedError as exc:
        # Somebody was quicker between our look and our taking.
        raise position.fenced_error(exc) from exc
    return None


def readable(exc: StoreError | FormatError, config: MountConfig) -> UserError:
    """What a person reads when a mount can't be made for this."""
    if isinstance(exc, StoreError):
        return UserError(
            f"the store {config.store.location} can't be used: {exc}",
            remedy=(
                "Check endpoint, credentials and bucket. Nothing was changed."
                if config.store.type == "s3"
                else "Check that the directory exists and may be written. Nothing was changed."
            ),
            exit_code=ExitCode.STORE,
        )
    return UserError(
        f"the workspace in {config.store.location} is damaged: {exc}",
        remedy="Nothing was changed in the bucket. Keep it as it is; put that object back from "
        "an older version or a backup of the bucket, if there is one.",
        exit_code=ExitCode.STORE,
    )


def take_over(cache: Cache, worker: WorkerClient) -> None:
    """Instead of `prepare`, when the mount stands already: the cache is the workspace, and what
    the store can was found out before. `verify` comes before the first flush.

    Raises CacheError when it is not.
    """
    need_whole(cache)
    worker.hello["workspace"] = cache.get_json("workspace")
    worker.hello["conditional"] = cache.get_json(_CONDITIONAL)


def need_whole(cache: Cache) -> None:
    """Raise CacheError unless the cache holds the workspace whose mount is taken over."""
    if not cache.restore_complete:
        raise CacheError(
            f"the cache in {cache.directory} does not hold the workspace that is mounted",
            remedy="Unmount, and mount again.",
        )


async def verify(
    cache: Cache,
    worker: WorkerClient,
    config: MountConfig,
    lease: LeaseKeeper,
    *,
    randbits: RandBits,
    is_adopted: bool,
) -> None:
    """For a mount that began without: may it write to the bucket? Raises StoreError, UserError,
    FencedError when the bucket went on meanwhile.

    `is_adopted`: by `take_over`, from a daemon that had found out what the store can.
    """
    if is_adopted:
        state = await worker.ask("survey")
    else:
        state = await _look(cache, worker, config, REQUEST_DEADLINE_S)
    writer = position.writer_id(cache, randbits)
    _require_same(cache, state, writer)
    may_take_over = config.take_over and not is_adopted
    fresh = await lease.take(state, take_over=may_take_over, deadline_s=REQUEST_DEADLINE_S)
    if fresh is not None:
        _require_same(cache, fresh, writer)


def _require_same(cache: Cache, state: dict[str, Any], writer: str) -> None:
    if position.compare(cache, state, writer) != position.SAME:
        raise FencedError(state["header"]["host"])


async def _look(
    cache: Cache, worker: WorkerClient, config: MountConfig, deadline_s: float
) -> dict[str, Any]:
    """Probe the store, and survey the journal."""
    found = await worker.ask(
        "probe", allow_unconditional=config.store.allow_unconditional, deadline_s=deadline_s
    )
    worker.hello["conditional"] = found["conditional"]
    cache.put_json(_CONDITIONAL, found["conditional"])
    return await worker.ask("survey", deadline_s=deadline_s)


async def _prepare(
    cache: Cache,
    worker: WorkerClient,
    config: MountConfig,
    lease: LeaseKeeper,
    progress: Progress,
    randbits: RandBits,
    bring_in: Importer,
) -> None:
    progress({"phase": "checking the store"})
    deadline_s = OFFLINE_AFTER_S if cache.restore_complete else REQUEST_DEADLINE_S
    state = await _look(cache, worker, config, deadline_s)
    writer = position.writer_id(cache, randbits)
    _stands(cache, state, writer)
    fresh = await lease.take(state, take_over=config.take_over, deadline_s=deadline_s)
    state = fresh or state
    if _stands(cache, state, writer):
        if cache.recovery == "sync-point":
            # What the mirror was told after that point is forgotten.
            cache.put_json("mirror_known", False)
        return
    await _rebuild(cache, worker, state, progress, randbits, bring_in)


def _stands(cache: Cache, state: dict[str, Any], writer: str) -> bool:
    """Whether the cache is whole and goes on from the bucket's state; False: it can be made anew.

    Raises UserError (exit 9) when neither is so.
    """
    if not cache.restore_complete:
        return False
    if position.compare(cache, state, writer) == position.SAME:
        return True
    if position.is_own_past(cache, state, writer):
        return False
    with cache.read() as view:
        unsealed = view.dirty_count()
    if unsealed:
        host = state["header"]["host"]
        raise UserError(
            f"the bucket was written by another mount ({host}), and the cache in "
            f"{cache.directory} holds {unsealed} changes that were never sealed",
            remedy="Nothing was changed. `s3ws rescue` exports those changes. To go on with the "
            "bucket's state, move that cache directory away (keep it: they are only there), and "
            "mount again.",
            exit_code=ExitCode.FENCED,
        )
    return False


async def _rebuild(
    cache: Cache,
    worker: WorkerClient,
    state: dict[str, Any],
    progress: Progress,
    randbits: RandBits,
    bring_in: Importer,
) -> None:
    # The lease is ours under this name, also when we are killed in here and start anew.
    kept = {name: cache.get_json(name) for name in ("writer", QUIET, _CONDITIONAL)}
    cache.clear_all()
    for name, value in kept.items():
        cache.put_json(name, value)
    failpoints.hit(failpoints.RESTORE_CLEARED)
    # Fences alone are no journal yet: whoever was first has sealed nothing.
    is_new = not state["newest"] or not state["header"]["generation"]
    if not is_new:
        state = await _load(cache, worker, progress)
        uuid_text = state["workspace"]
    else:
        cache.set_head(Head(generation=0, next_ino=ROOT_INO + 1, used_bytes=0, inodes=0))
        await bring_in(progress)
        # The first object that is put, but for the lease: all of an import is in the cache.
        made = await worker.ask("make-workspace", uuid=new_id(randbits), created_ns=cache.now_ns())
        uuid_text = made["workspace"]
    header = state["header"]
    generation = 0 if header is None else header["generation"]
    cache.put_json("workspace", uuid_text)
    if state.get("damaged"):
        cache.put_json(position.DONE_WITHOUT, state["damaged"])
        cache.put_json(position.CHECKPOINT_DUE, True)
    cache.put_json("mirror_known", is_new)
    cache.put_json("hydrated", is_new)
    cache.put_json("mirrored", 0 if is_new else min(state["mirrored"], generation))
    position.remember(cache, Sealed(state["newest"], state["header_hash"], generation))
    worker.hello["workspace"] = uuid_text
    failpoints.hit(failpoints.RESTORE_LOADED)
    cache.set_restore_complete()
    failpoints.hit(failpoints.RESTORE_AFTER)


async def fetch_records(
    worker: WorkerClient, progress: Progress
) -> tuple[dict[str, Any], list[RecordsFile]]:
    """What stands in the bucket, and its records in the spool, verified, in order of replay.

    Raises StoreError, FormatError.
    """
    files: list[RecordsFile] = []

    async def on_part(part: dict[str, Any], _: memoryview) -> None:
        if "progress" in part:
            done, total = part["progress"]
            progress({"phase": "fetching metadata", "done": done, "total": total})
        else:
            files.append(open_records(Path(part["file"]), part["where"], whole=False))

    state = await worker.ask("restore", on_part)
    return state, files


async def _load(cache: Cache, worker: WorkerClient, progress: Progress) -> dict[str, Any]:
    """Records of the bucket into the empty cache."""
    state, files = await fetch_records(worker, progress)
    failpoints.hit(failpoints.RESTORE_FETCHED)
    state["mirrored"] = max(state["mirrored"], files[-1].header.mirrored)
    orphans: set[bytes] = set()
    for done, file in enumerate(files):
        progress({"phase": "loading metadata", "done": done, "total": len(files)})
        await _load_file(cache, file, orphans, state["mirrored"])
        file.path.unlink(missing_ok=True)
    progress({"phase": "loading metadata", "done": len(files), "total": len(files)})
    header: Header = files[-1].header
    cache.set_head(Head(header.generation, header.next_ino, header.used_bytes, header.inodes))
    with cache.write() as tx:
        for key in orphans:
            # Open without a name when its host went: nobody can reach it any more.
            rec = tx.inode(keys.unpack_u64(key))
            if rec is not None and rec.nlink == 0:
                tx.drop_inode(rec)
    return state


async def _load_file(cache: Cache, file: RecordsFile, orphans: set[bytes], mirrored: int) -> None:
    """Records of one file; what changed after generation `mirrored` may lack in the mirror."""
    header = file.header
    is_checkpoint = header.kind == journal.KIND_CHECKPOINT
    is_behind = header.generation > mirrored
    own = keys.pack_u64(header.number)
    for frame in file.frames():
        if frame.tombs:
            cache.drop_records(frame.table, frame.keys)
            continue
        values = frame.values
        if frame.table == keys.T_CHUNKS:
            values = [own + raw[8:] if raw[:8] == _SELF else raw for raw in values]
        elif frame.table == keys.T_INODES:
            _note_orphans(frame, orphans)
            if is_behind and not is_checkpoint:
                _look_at(cache, header, frame)
        if frame.table == journal.T_MTODO:
            if is_behind:
                _look_at(cache, header, frame)
            continue
        items = zip(frame.keys, values, strict=True)
        while batch := list(islice(items, BATCH_RECORDS)):
            cache.load_records(frame.table, batch, append=is_checkpoint)
            failpoints.hit(failpoints.RESTORE_BATCH)
            await trio.lowlevel.checkpoint()


def _note_orphans(frame: Frame, orphans: set[bytes]) -> None:
    for key, raw in zip(frame.keys, frame.values, strict=True):
        if raw[NLINK_OFFSET : NLINK_OFFSET + 4] == _NO_LINKS:
            orphans.add(key)


def _look_at(cache: Cache, header: Header, frame: Frame) -> None:
    cache.add_mirror_todo((keys.unpack_u64(key) for key in frame.keys), header.generation)
