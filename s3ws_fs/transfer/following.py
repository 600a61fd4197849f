"""What a read-only mount asks of the journal: the segments behind the one it shows.

Invariants
1. Segments come out in order, each verified (header, records digest) and continuing the one before
   by number and hash; the first that does not is an error, and nothing behind it comes out.
2. That a number is missing means "not sealed yet" only for who looked less than GC_GRACE_S ago:
   an older one may have been collected as garbage. `survey` then says which.

Called by worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from s3ws_fs.core import journal, layout
from s3ws_fs.core.errors import FormatError, NotFoundError
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.journaling import check_place, fetch_records, survey
from s3ws_fs.transfer.spool import RecordsFile

SEGMENTS_MAX: Final = 32
"""Segments of one answer: each is a spool file until the daemon has applied it."""

SPOOL_NAME: Final = "follow-"


class _ForkedError(FormatError):
    """A segment that continues another one than the one before it."""


@dataclass
class Look:
    """What a look found. `end`: there is nothing newer. `lost`: the next one is gone for good."""

    files: list[RecordsFile] = field(default_factory=list)
    end: bool = False
    lost: str = ""


def follow(
    store: ScopedStore, workspace: str, number: int, digest: str, directory: Path, *, surely: bool
) -> Look:
    """Segments after `number`, whose header hash is `digest`. Raises StoreError, FormatError.

    `surely`: it is long since the last look, so that a missing number may be garbage.
    """
    look = Look()
    try:
        for file in _segments(store, workspace, number, digest, directory):
            look.files.append(file)
    except _ForkedError as exc:
        if not look.files:
            look.lost = str(exc)
        return look
    except FormatError:
        # What came before it is good, and is not held up by it.
        if not look.files:
            raise
        return look
    if len(look.files) == SEGMENTS_MAX:
        return look
    look.end = True
    if surely and not look.files:
        look.lost = _why_lost(store, workspace, number, digest)
    return look


def _segments(
    store: ScopedStore, workspace: str, number: int, digest: str, directory: Path
) -> Iterator[RecordsFile]:
    for at in range(number + 1, number + 1 + SEGMENTS_MAX):
        key = layout.seg_key(at)
        try:
            file = fetch_records(store, key, directory, f"{SPOOL_NAME}{at:016x}")
        except NotFoundError:
            return
        check_place(file.header, key, workspace, at)
        if file.header.kind != journal.KIND_SEGMENT:
            raise FormatError(key, f"is a {file.header.kind}")
        if file.header.prev_hash != digest:
            raise _ForkedError(key, "does not continue the segment before it")
        digest = file.header_hash
        yield file


def _why_lost(store: ScopedStore, workspace: str, number: int, digest: str) -> str:
    """Why a mount at `number` can't go on from there; "" when it can."""
    state = survey(store)
    if state.workspace != workspace:
        return f"the bucket holds workspace {state.workspace}"
    if state.newest < number:
        return f"the journal ends at segment {state.newest}, before {number}"
    if state.newest > number:
        return f"segment {number + 1} is gone, the newest is {state.newest}"
    if state.header_hash != digest:
        return f"segment {number} is another one"
    return ""
