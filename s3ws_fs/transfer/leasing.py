"""The lease's traffic: take it, renew it, give it back; and shut out whoever had it before.

Invariants
1. The lease is written on a condition only: must-create when there is none, else on the ETag that
   was looked at. Of two who want it, one gets it; a holder who was passed over learns it at its
   next renewal.
2. Whether it has lapsed is judged by the store's clock alone: the date of the lease against that
   of an object put just now.
3. Who takes it from another writer seals an empty segment at once: the next journal number, which
   the stale writer would need, is taken. It can't seal any more, whatever it believes.
4. A lost answer is no loss: the lease that stands there names its writer and epoch.
5. A lease that is gone is made again by its holder only where the workspace still stands: whoever
   deletes it removes workspace.json first and the lease last.

Called by worker and gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from s3ws_fs.core import journal, layout
from s3ws_fs.core.bounds import LEASE_S
from s3ws_fs.core.errors import (
    ConflictError,
    ExitCode,
    FormatError,
    NotFoundError,
    PermanentError,
    TransientError,
    UserError,
)
from s3ws_fs.core.ids import RandBits
from s3ws_fs.core.journal import HOST_CHARS_MAX, KIND_SEGMENT, NO_RECORDS_HASH, Header
from s3ws_fs.core.lease import (
    GIVEN,
    HELD,
    LAPSED,
    NEW,
    OWN,
    RELEASED,
    TAKEN,
    Grant,
    Lease,
    decode_lease,
    fence_s,
)
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.store.scoped import PROBE_PREFIX, ScopedStore
from s3ws_fs.transfer.journaling import (
    JOURNAL_TYPE,
    JournalState,
    exists,
    make_workspace,
    survey,
)
from s3ws_fs.transfer.wire import FencedError

LEASE_TYPE: Final = "application/json"
TRIES_MAX: Final = 5
"""Lost races in a row after which we say that somebody else is at it."""
FENCE_TRIES_MAX: Final = 50
"""Segments that a stale writer may seal between our looking and our sealing."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who wants the lease."""

    writer: str
    host: str
    pid: int
    since_ns: int
    lease_s: float
    epoch_floor: int
    """An epoch that was used already, as the journal says."""
    take_over: bool = False


@dataclass(frozen=True, slots=True)
class Taking:
    """How we got it, and from whom."""

    grant: Grant
    how: str
    was: Lease | None

    @property
    def is_from_another(self) -> bool:
        """Whether somebody may be alive who believes that it is theirs."""
        return self.how in (LAPSED, TAKEN)

    @property
    def quiet_s(self) -> float:
        """How long the one before may still change the mirror."""
        if self.how != TAKEN:
            return 0.0
        return fence_s(LEASE_S) if self.was is None else self.was.fence_ms / 1e3


@dataclass(frozen=True, slots=True)
class _Found:
    lease: Lease | None
    etag: str
    put_ns: int
    fault: str = ""


def acquire(
    store: ScopedStore, claim: Claim, boot: Callable[[], float], randbits: RandBits
) -> Taking:
    """Take the lease. Raises UserError (exit 16) when another holds it, StoreError."""
    for _ in range(TRIES_MAX):
        found = _look(store)
        how = _may_take(store, claim, found, randbits)
        was = None if found is None else found.lease
        lease = Lease(
            epoch=max(claim.epoch_floor, 0 if was is None else was.epoch) + 1,
            state=HELD,
            writer=claim.writer,
            host=claim.host[:HOST_CHARS_MAX],
            pid=claim.pid,
            since_ns=claim.since_ns,
            lasts_ms=round(claim.lease_s * 1e3),
            fence_ms=round(fence_s(claim.lease_s) * 1e3),
            serial=1,
        )
        sent_s = boot()
        try:
            etag = _put(store, lease, None if found is None else found.etag)
        except ConflictError:
            continue
        return Taking(Grant(lease, etag, sent_s), how, was)
    raise TransientError("lease", layout.LEASE_KEY, "others are taking it at the same time")


def _may_take(store: ScopedStore, claim: Claim, found: _Found | None, randbits: RandBits) -> str:
    if found is None:
        return NEW
    lease = found.lease
    if lease is None:
        if claim.take_over:
            return TAKEN
        raise UserError(
            f"{layout.LEASE_KEY} is damaged: {found.fault}",
            remedy="Nothing was changed. When no other mount of this workspace is alive, mount "
            "with --take-over.",
            exit_code=ExitCode.STORE,
        )
    if lease.state == RELEASED:
        return GIVEN
    if lease.writer == claim.writer:
        return OWN
    left_s = lease.left_s(found.put_ns, _now_ns(store, randbits))
    if left_s <= 0:
        return LAPSED
    if claim.take_over:
        return TAKEN
    raise UserError(
        f"the workspace is mounted by {lease.who}; its lease lapses in {left_s:.0f} s unless that "
        "mount renews it",
        remedy="Unmount it there. If that host is gone: mount again when the lease has lapsed, or "
        "take it at once with `s3ws mount --take-over`; what the other mount has not sealed then "
        "stays in its cache only.",
        exit_code=ExitCode.HELD,
    )


def _look(store: ScopedStore) -> _Found | None:
    """What stands there. What does not decode is read again: an answer may have been cut off."""
    damaged: _Found | None = None
    for _ in range(TRIES_MAX):
        try:
            raw = store.get(layout.LEASE_KEY)
            info = store.head(layout.LEASE_KEY)
        except NotFoundError:
            return None
        if info.etag != raw.etag:
            continue
        try:
            lease = decode_lease(raw.data, layout.LEASE_KEY)
        except FormatError as exc:
            damaged = _Found(None, raw.etag, info.modified_ns, exc.why)
            continue
        return _Found(lease, raw.etag, info.modified_ns)
    if damaged is not None:
        return damaged
    raise TransientError("lease", layout.LEASE_KEY, "it changes while it is read")


def _now_ns(store: ScopedStore, randbits: RandBits) -> int:
    """The store's clock: when does it say that an object was put that we put now?"""
    key = f"{PROBE_PREFIX}{randbits(64):016x}"
    store.put(key, b"what time is it?", if_none_match=True)
    try:
        return store.head(key).modified_ns
    finally:
        store.delete(key)


def _put(store: ScopedStore, lease: Lease, etag: str | None) -> str:
    return store.put(
        layout.LEASE_KEY,
        lease.encode(),
        content_type=LEASE_TYPE,
        if_none_match=etag is None,
        if_match=etag,
    )


def renew(
    store: ScopedStore,
    grant: Grant,
    lasts_s: float,
    boot: Callable[[], float],
    *,
    state: str = HELD,
) -> Grant:
    """Prove that the lease is ours, by putting it again. Raises FencedError, StoreError."""
    etag: str | None = grant.etag
    lease = grant.lease
    for _ in range(TRIES_MAX):
        new = replace(lease, serial=lease.serial + 1, lasts_ms=round(lasts_s * 1e3), state=state)
        sent_s = boot()
        try:
            return Grant(new, _put(store, new, etag), sent_s)
        except ConflictError:
            found = _look(store)
        if found is None:
            if not exists(store, layout.WORKSPACE_KEY):
                # Whoever deletes a workspace removes the lease last. Or the bucket was emptied by
                # mistake, and will be filled again: nobody has taken over, and nothing is written.
                raise PermanentError(
                    "lease", layout.LEASE_KEY, "is gone, and the bucket holds none of the workspace"
                )
            # Somebody removed it; nobody else has it, or the must-create will tell.
            etag = None
            continue
        there = found.lease
        if there is None:
            # Whose it is, nobody knows: nothing is sent while it is so.
            raise TransientError("lease", layout.LEASE_KEY, f"it is damaged: {found.fault}")
        if (there.writer, there.epoch, there.state) != (lease.writer, lease.epoch, HELD):
            raise FencedError(there.who)
        # Ours: an earlier attempt whose answer was lost.
        etag, lease = found.etag, there
    raise TransientError("lease", layout.LEASE_KEY, "it changes while it is renewed")


def seal_fence(
    store: ScopedStore, claim: Claim, epoch: int, *, uuid: str, flush_id: str
) -> JournalState:
    """Seal an empty segment in the stale writer's place; returns what stands then (invariant 3).

    `uuid`: of the workspace, should there be none yet.
    """
    for _ in range(FENCE_TRIES_MAX):
        state = survey(store)
        if state.workspace is None:
            make_workspace(store, uuid, claim.since_ns)
            continue
        header = _fence_header(state, claim, epoch, flush_id)
        try:
            store.put(
                layout.seg_key(header.number),
                journal.empty_object(header),
                content_type=JOURNAL_TYPE,
                if_none_match=True,
            )
        except ConflictError:
            continue
        return survey(store)
    raise TransientError("lease", layout.SEG_PREFIX, "another writer seals faster than we look")


def _fence_header(state: JournalState, claim: Claim, epoch: int, flush_id: str) -> Header:
    assert state.workspace is not None
    last = state.header
    return Header(
        kind=KIND_SEGMENT,
        workspace=state.workspace,
        writer=claim.writer,
        host=claim.host[:HOST_CHARS_MAX],
        flush_id=flush_id,
        number=state.newest + 1,
        prev_number=state.newest,
        prev_hash=state.header_hash,
        generation=0 if last is None else last.generation,
        next_ino=ROOT_INO + 1 if last is None else last.next_ino,
        used_bytes=0 if last is None else last.used_bytes,
        inodes=0 if last is None else last.inodes,
        mirrored=0 if last is None else last.mirrored,
        created_ns=claim.since_ns,
        extent_bytes=EXTENT_BYTES,
        data_bytes=0,
        records_bytes=0,
        records_hash=NO_RECORDS_HASH,
        puts=0,
        tombs=0,
        epoch=epoch,
    )
