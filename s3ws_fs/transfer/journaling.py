"""The journal's traffic: what stands in the bucket, sealing, checkpoints, restore, garbage.

Invariants
1. A segment's PUT is the last request of a seal: what it names stands already. So does the segment
   before it: `require_journal` comes first.
2. A lost answer is told from a fence by reading the header back: the same flush id is our own.
3. Garbage is removed only below journal/seg|ckpt|blob, only after a checkpoint stands, only what
   that checkpoint does not name, and only what was older than GC_GRACE_S at its seal, by the
   server's own clock; never when that checkpoint has another size in the bucket. The same holds
   for unfinished uploads, below the prefix, after a day.
4. Restored records are verified (header, records digest, chain of hashes) before anyone sees them.

Called by worker and following.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from s3ws_fs.core import failpoints, journal, jsontext, keys, layout
from s3ws_fs.core.errors import (
    ConflictError,
    ExitCode,
    FormatError,
    NotFoundError,
    PermanentError,
    StoreError,
    UserError,
)
from s3ws_fs.core.journal import HEADER_BYTES, Header
from s3ws_fs.core.limits import EXTENT_BYTES, FORMAT_VERSION
from s3ws_fs.core.types import BLOB_BIT
from s3ws_fs.store.base import DELETE_BATCH, Conditional
from s3ws_fs.store.body import FileSlice
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.fetch import read_twice
from s3ws_fs.transfer.freeze import Blob, Frozen
from s3ws_fs.transfer.spool import RecordsFile, create, open_records
from s3ws_fs.transfer.wire import FencedError, OwnSealError

WHOLE_GET_BYTES_MAX: Final = 1 << 20
"""Journal objects up to this size are fetched whole: one request instead of two."""
JSON_BYTES_MAX: Final = 64 << 10
"""No more is read of the small JSON objects: ours have some 200 bytes."""
GENERATION_MAX: Final = (1 << 64) - 1
SEGMENTS_MAX: Final = 100_000
"""More segments than this above a checkpoint is a damaged journal."""
GC_GRACE_S: Final = 3600
UPLOAD_GRACE_S: Final = 24 * 3600.0
"""An upload that takes longer than this is nobody's any more."""
RESTORE_TRIES_MAX: Final = 3
"""How often a restore begins anew when what it listed was collected as garbage meanwhile."""
CHECKPOINTS_KEPT: Final = 2
GARBAGE_BATCH: Final = DELETE_BATCH
"""Objects removed at once."""
JOURNAL_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class JournalState:
    """What stands in the bucket. `newest` 0: nothing sealed yet; then `header` is None."""

    workspace: str | None
    newest: int
    header: Header | None
    header_hash: str
    checkpoint: int
    segments: tuple[int, ...]
    segment_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As an answer's JSON."""
        return {
            "workspace": self.workspace,
            "newest": self.newest,
            "header": None if self.header is None else asdict(self.header),
            "header_hash": self.header_hash,
            "checkpoint": self.checkpoint,
            "segments": len(self.segments),
            "segment_bytes": self.segment_bytes,
        }


def _bucket_error(message: str) -> UserError:
    return UserError(
        message,
        remedy="Nothing was changed. Check bucket and ids; keep the bucket as it is for repair.",
        exit_code=ExitCode.STORE,
    )


def read_workspace(store: ScopedStore) -> str | None:
    """The uuid in journal/workspace.json; None when there is none. Raises UserError, StoreError."""
    try:
        raw = store.get(layout.WORKSPACE_KEY, 0, JSON_BYTES_MAX).data
    except NotFoundError:
        return None
    try:
        found = jsontext.object_of(raw, layout.WORKSPACE_KEY)
        uuid, version, extent = found["workspace"], found["format"], found["extent_bytes"]
        digest = found.get("digest")
    except (FormatError, KeyError) as exc:
        raise _bucket_error(f"{layout.WORKSPACE_KEY} is damaged: {exc}") from exc
    if version != FORMAT_VERSION or extent != EXTENT_BYTES or not isinstance(uuid, str):
        raise _bucket_error(
            f"the workspace in the bucket has format {version!r} with extents of {extent!r} bytes; "
            f"this program knows format {FORMAT_VERSION} with {EXTENT_BYTES}"
        )
    if digest != journal.json_digest(found):
        raise _bucket_error(f"{layout.WORKSPACE_KEY} is damaged: its digest does not match")
    return uuid


def make_workspace(store: ScopedStore, uuid: str, created_ns: int) -> str:
    """Create journal/workspace.json unless it exists; returns the uuid that counts."""
    body = {
        "format": FORMAT_VERSION,
        "workspace": uuid,
        "extent_bytes": EXTENT_BYTES,
        "created_ns": created_ns,
    }
    raw = json.dumps(body | {"digest": journal.json_digest(body)}, indent=1).encode()
    try:
        store.put(layout.WORKSPACE_KEY, raw, content_type="application/json", if_none_match=True)
    except ConflictError:
        found = read_workspace(store)
        if found is None:
            raise PermanentError("put", layout.WORKSPACE_KEY, "exists, but can't be read") from None
        return found
    failpoints.hit(failpoints.WORKSPACE_MADE)
    return uuid


def note_mirrored(store: ScopedStore, workspace: str, generation: int) -> None:
    """Note that the mirror was complete at a generation. Raises StoreError.

    A hint that saves a restored cache from looking at every object: what is older than it stands.
    Overwritten without condition: who writes it late (a fenced writer) names a smaller generation.
    """
    body = {"format": FORMAT_VERSION, "workspace": workspace, "generation": generation}
    raw = json.dumps(body | {"digest": journal.json_digest(body)}).encode()
    failpoints.hit(failpoints.MIRROR_HINT)
    store.put(layout.MIRRORED_KEY, raw, content_type="application/json")


def read_mirrored(store: ScopedStore, workspace: str | None) -> int:
    """What `note_mirrored` noted; 0 when there is none, or none that we understand."""
    try:
        raw = store.get(layout.MIRRORED_KEY, 0, JSON_BYTES_MAX).data
        found = jsontext.object_of(raw, layout.MIRRORED_KEY)
    except (NotFoundError, FormatError):
        return 0
    if found.get("format") != FORMAT_VERSION:
        return 0
    generation = found.get("generation")
    if found.get("workspace") != workspace or type(generation) is not int:
        return 0
    if found.get("digest") != journal.json_digest(found):
        return 0
    return min(max(0, generation), GENERATION_MAX)


def _numbers(store: ScopedStore, prefix: str, after: str = "") -> Iterator[tuple[int, int, int]]:
    for entry in store.list(prefix, after):
        number = layout.key_number(entry.key, prefix)
        if number is not None:
            yield number, entry.size_bytes, entry.modified_ns


def read_header(store: ScopedStore, key: str) -> tuple[Header, str]:
    """Header and its hash. Raises NotFoundError, FormatError."""

    def read() -> tuple[Header, str]:
        raw = store.get(key, 0, HEADER_BYTES).data
        return journal.decode_header(raw, key), journal.header_hash(raw)

    return read_twice(read)


def survey(store: ScopedStore) -> JournalState:
    """What stands in the bucket, by four requests. Raises StoreError, FormatError, UserError."""
    workspace = read_workspace(store)
    checkpoint = max((n for n, _, _ in _numbers(store, layout.CKPT_PREFIX)), default=0)
    after = layout.seg_key(checkpoint - 1) if checkpoint > 1 else ""
    found = sorted(
        (n, size) for n, size, _ in _numbers(store, layout.SEG_PREFIX, after) if n >= checkpoint
    )
    above = tuple(n for n, _ in found if n > checkpoint)
    if len(above) > SEGMENTS_MAX or above != tuple(
        range(checkpoint + 1, checkpoint + 1 + len(above))
    ):
        raise FormatError(layout.SEG_PREFIX, f"segments are missing above checkpoint {checkpoint}")
    newest = above[-1] if above else checkpoint
    if workspace is None and newest:
        raise _bucket_error(f"{layout.WORKSPACE_KEY} is missing beside a journal")
    header, digest = None, ""
    if not newest and workspace is not None:
        check_end(store, 0, 0, read_mirrored(store, workspace))
    if newest:
        header, digest = _newest_header(store, newest, bool(above))
        check_place(header, layout.seg_key(newest), workspace, newest)
    size = sum(size for n, size in found if n > checkpoint)
    return JournalState(workspace, newest, header, digest, checkpoint, above, size)


def check_end(store: ScopedStore, newest: int, generation: int, mirrored: int) -> None:
    """Raise FormatError when the mirror was complete at a later seal than the journal ends with.

    The end of a chain is the one part of it that nothing behind it vouches for.
    """
    if mirrored <= generation:
        return
    after = layout.seg_key(newest) if newest else ""
    if any(number > newest for number, _, _ in _numbers(store, layout.SEG_PREFIX, after)):
        # Sealed while we looked.
        return
    raise FormatError(
        layout.SEG_PREFIX,
        f"it ends at generation {generation}, but the mirror was complete at {mirrored}: what was "
        f"sealed last is missing (to go on without it, remove {layout.MIRRORED_KEY})",
    )


def _newest_header(store: ScopedStore, newest: int, above: bool) -> tuple[Header, str]:
    try:
        return read_header(store, layout.seg_key(newest))
    except NotFoundError:
        if above:
            raise
    # The segment a checkpoint folded is gone: the checkpoint names its hash.
    header, _ = read_header(store, layout.ckpt_key(newest))
    return header, header.prev_hash


def check_place(header: Header, where: str, workspace: str | None, number: int) -> None:
    """Raise FormatError unless the object belongs at that number of this workspace."""
    if header.workspace != workspace:
        raise FormatError(where, f"belongs to workspace {header.workspace}, not {workspace}")
    if header.number != number:
        raise FormatError(where, f"says it is number {header.number}")
    if header.extent_bytes != EXTENT_BYTES:
        raise FormatError(where, f"has extents of {header.extent_bytes} bytes")


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


def put_checkpoint(store: ScopedStore, frozen: Frozen) -> None:
    """Put the checkpoint of a sealed freeze. Raises StoreError."""
    assert frozen.checkpoint is not None
    failpoints.hit(failpoints.CHECKPOINT_BEFORE)
    with frozen.checkpoint.open("rb") as file:
        body = FileSlice(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        try:
            store.put(
                layout.ckpt_key(frozen.number), body, content_type=JOURNAL_TYPE, if_none_match=True
            )
        except ConflictError:
            # Our own, by an attempt whose answer was lost: nobody else sealed this number.
            return
    failpoints.hit(failpoints.CHECKPOINT_AFTER)


def collect_garbage(store: ScopedStore, frozen: Frozen) -> int:
    """Delete what the checkpoint just put does not name (invariant 3); returns how many."""
    assert frozen.checkpoint is not None
    records = open_records(frozen.checkpoint, "checkpoint", whole=True)
    named = {frozen.number}
    for frame in records.frames():
        if frame.table == keys.T_CHUNKS:
            named.update(int.from_bytes(raw[:8], "big") for raw in frame.values)
    segments = list(_numbers(store, layout.SEG_PREFIX))
    sealed_ns = next((modified for n, _, modified in segments if n == frozen.number), 0)
    # What later seals name was put after this one: however long we were stopped meanwhile, and
    # whoever goes on now, it is younger than the limit.
    limit_ns = sealed_ns - GC_GRACE_S * 1_000_000_000
    checkpoints = sorted(_numbers(store, layout.CKPT_PREFIX))
    _require_checkpoint(store, frozen, {number: size for number, size, _ in checkpoints})
    gone = [
        layout.ckpt_key(n)
        for n, _, modified in checkpoints[:-CHECKPOINTS_KEPT]
        if modified < limit_ns
    ]
    for number, _, modified in (*segments, *_numbers(store, layout.BLOB_PREFIX)):
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


def fetch_records(store: ScopedStore, key: str, directory: Path, name: str) -> RecordsFile:
    """Header and records of a journal object into a spool file, verified."""
    return read_twice(lambda: _fetch_records(store, key, directory, name))


def _fetch_records(store: ScopedStore, key: str, directory: Path, name: str) -> RecordsFile:
    first = store.get(key, 0, WHOLE_GET_BYTES_MAX)
    header = journal.decode_header(first.data, key)
    if first.total_bytes != header.total_bytes:
        raise FormatError(key, f"{first.total_bytes} bytes; its header says {header.total_bytes}")
    if len(first.data) == header.total_bytes:
        _, records = journal.open_object(first.data, key)
        raw: bytes | memoryview = records
    else:
        raw = store.get(key, header.records_offset, header.records_bytes).data
        journal.check_records(header, raw, key)
    path = directory / name
    path.unlink(missing_ok=True)
    with create(path) as file:
        file.write(first.data[:HEADER_BYTES])
        file.write(raw)
    return open_records(path, key, whole=False)


@dataclass(frozen=True, slots=True)
class Restored:
    """Files in order of replay; `damaged`: an object that could be done without, and why."""

    state: JournalState
    files: list[RecordsFile]
    damaged: tuple[str, str] | None = None


def restore(
    store: ScopedStore,
    directory: Path,
    pool: Executor,
    progress: Callable[[int, int], None],
) -> Restored:
    """Bring checkpoint and later segments into the spool, verified, in order of replay.

    A newest checkpoint that is damaged is done without, when the one before it and all segments
    above that still stand.
    """
    for tries in range(1, RESTORE_TRIES_MAX + 1):
        state = survey(store)
        try:
            files = _fetch_all(store, state, state.checkpoint, directory, pool, progress)
            return Restored(state, files)
        except NotFoundError:
            # Collected as garbage since it was listed: the journal went on.
            if tries == RESTORE_TRIES_MAX:
                raise
        except FormatError as exc:
            older = None
            if exc.where == layout.ckpt_key(state.checkpoint):
                older = _older_base(store, state)
            if older is None:
                raise
            files = _fetch_all(store, state, older, directory, pool, progress)
            return Restored(state, files, (exc.where, exc.why))
    raise AssertionError("unreachable: the last try returns or raises")


def _older_base(store: ScopedStore, state: JournalState) -> int | None:
    """A checkpoint before the newest (0: none at all) above which every segment stands."""
    older = [n for n, _, _ in _numbers(store, layout.CKPT_PREFIX) if n < state.checkpoint]
    standing = {n for n, _, _ in _numbers(store, layout.SEG_PREFIX)}
    for base in (*sorted(older, reverse=True), 0):
        if standing.issuperset(range(base + 1, state.newest + 1)):
            return base
    return None


def _fetch_all(
    store: ScopedStore,
    state: JournalState,
    base: int,
    directory: Path,
    pool: Executor,
    progress: Callable[[int, int], None],
) -> list[RecordsFile]:
    """The checkpoint `base` (0: none) and the segments above it. Raises StoreError, FormatError."""
    above = range(base + 1, state.newest + 1)
    jobs = [(layout.seg_key(n), n, journal.KIND_SEGMENT) for n in above]
    if base:
        jobs.insert(0, (layout.ckpt_key(base), base, journal.KIND_CHECKPOINT))
    futures = [
        pool.submit(fetch_records, store, key, directory, f"restore-{kind}-{n:016x}")
        for key, n, kind in jobs
    ]
    files: list[RecordsFile] = []
    before = ""
    try:
        for (key, number, kind), future in zip(jobs, futures, strict=True):
            file = future.result()
            header = file.header
            check_place(header, key, state.workspace, number)
            if header.kind != kind:
                raise FormatError(key, f"is a {header.kind}")
            if kind == journal.KIND_SEGMENT and before and header.prev_hash != before:
                raise FormatError(key, "does not continue the segment before it")
            before = header.prev_hash if kind == journal.KIND_CHECKPOINT else file.header_hash
            files.append(file)
            progress(len(files), len(jobs))
    finally:
        # None of them may go on writing where a second try writes.
        for future in futures:
            future.exception()
    return files


def conditional_json(found: Conditional) -> dict[str, bool]:
    """What the probe found, as JSON."""
    return asdict(found)


def conditional_from(value: dict[str, bool]) -> Conditional:
    """The inverse of `conditional_json`."""
    return Conditional(**value)
