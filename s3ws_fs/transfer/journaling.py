"""The journal as it stands in the bucket: small JSON objects, numbers, one object's records.

Invariants
1. Records are verified (header, digest) before anyone sees them.
2. Of two hosts that make a workspace, one makes it: must-create decides whose uuid counts.

Called by the modules beside it: sealing, garbage, restoring, following, leasing, audit, requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from s3ws_fs.core import failpoints, journal, jsontext, layout
from s3ws_fs.core.errors import (
    ConflictError,
    ExitCode,
    FormatError,
    NotFoundError,
    PermanentError,
    UserError,
)
from s3ws_fs.core.journal import HEADER_BYTES, Header
from s3ws_fs.core.limits import EXTENT_BYTES, FORMAT_VERSION
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.fetch import read_twice
from s3ws_fs.transfer.spool import RecordsFile, create, open_records

WHOLE_GET_BYTES_MAX: Final = 1 << 20
"""Journal objects up to this size are fetched whole: one request instead of two."""
JSON_BYTES_MAX: Final = 64 << 10
"""No more is read of the small JSON objects: ours have some 200 bytes."""
GENERATION_MAX: Final = (1 << 64) - 1
SEGMENTS_MAX: Final = 100_000
"""More segments than this above a checkpoint is a damaged journal."""
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
    """Of the segments above the checkpoint."""
    checkpoint_bytes: int = 0

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
            "checkpoint_bytes": self.checkpoint_bytes,
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


def workspace_body(uuid: str, created_ns: int, **more: Any) -> bytes:
    """The bytes of journal/workspace.json."""
    body = {
        "format": FORMAT_VERSION,
        "workspace": uuid,
        "extent_bytes": EXTENT_BYTES,
        "created_ns": created_ns,
        **more,
    }
    return json.dumps(body | {"digest": journal.json_digest(body)}, indent=1).encode()


def make_workspace(store: ScopedStore, uuid: str, created_ns: int) -> str:
    """Create journal/workspace.json unless it exists; returns the uuid that counts."""
    raw = workspace_body(uuid, created_ns)
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


def numbers(store: ScopedStore, prefix: str, after: str = "") -> Iterator[tuple[int, int, int]]:
    """Journal objects below `prefix`, behind key `after`: number, size, time of the server."""
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


def exists(store: ScopedStore, key: str) -> bool:
    """Whether an object stands there."""
    try:
        store.head(key)
    except NotFoundError:
        return False
    return True


def require_nothing_half(store: ScopedStore) -> None:
    """Without a workspace.json: raise UserError where a fork or a deletion was not finished."""
    if exists(store, layout.DELETED_KEY):
        raise UserError(
            "the workspace is being deleted, or its deletion was not finished",
            remedy="`s3ws delete` again finishes it; then the conversation can have a new one.",
            exit_code=ExitCode.STORE,
        )
    if not exists(store, layout.FORK_KEY):
        return
    raise UserError(
        "a fork into this conversation is under way, or was not finished",
        remedy="Run `s3ws fork` again to finish it. To give it up, remove everything below "
        f"{store.prefix}journal/ (there is nothing else of it).",
        exit_code=ExitCode.STORE,
    )


def survey(store: ScopedStore) -> JournalState:
    """What stands in the bucket, by four requests. Raises StoreError, FormatError, UserError."""
    workspace = read_workspace(store)
    if workspace is None:
        require_nothing_half(store)
    checkpoint, checkpoint_bytes = max(
        ((n, size) for n, size, _ in numbers(store, layout.CKPT_PREFIX)), default=(0, 0)
    )
    after = layout.seg_key(checkpoint - 1) if checkpoint > 1 else ""
    found = sorted(
        (n, size) for n, size, _ in numbers(store, layout.SEG_PREFIX, after) if n >= checkpoint
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
    return JournalState(
        workspace, newest, header, digest, checkpoint, above, size, checkpoint_bytes
    )


def check_end(store: ScopedStore, newest: int, generation: int, mirrored: int) -> None:
    """Raise FormatError when the mirror was complete at a later seal than the journal ends with.

    The end of a chain is the one part of it that nothing behind it vouches for.
    """
    if mirrored <= generation:
        return
    after = layout.seg_key(newest) if newest else ""
    if any(number > newest for number, _, _ in numbers(store, layout.SEG_PREFIX, after)):
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
