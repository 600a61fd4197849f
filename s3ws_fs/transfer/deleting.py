"""A deletion: a workspace goes from the bucket, whole, and nothing half ever mounts.

    lease → deleted.json → workspace.json goes → everything else, segments last and by rising number
    → (the quiet time of a writer that was taken over) → what came meanwhile → uploads given up
    → deleted.json goes → the lease goes

Invariants
1. Until workspace.json is gone the workspace is whole. From then on deleted.json says so, and
   nobody mounts, restores or makes a workspace there (journaling.require_nothing_half).
2. A program that knows no deleted.json refuses what is left too: as long as anything else stands,
   so does a segment, and a journal without workspace.json is an error to it.
3. It can be done again at any time, and goes on where it was. deleted.json goes only after a
   listing that shows nothing else.
4. A writer that was passed over can't come back: it finds another's lease, or no lease and no
   workspace.json (leasing.renew), and its segment's predecessor is missing (sealing).
5. Nothing outside of the prefix is touched. What can't be deleted is told, and deleted.json stays.

Called by the cli.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from s3ws_fs.core import failpoints, layout
from s3ws_fs.core.bounds import LEASE_S_MIN
from s3ws_fs.core.errors import ConflictError, PermanentError, StoreError, TransientError, UserError
from s3ws_fs.core.ids import RandBits, new_id
from s3ws_fs.core.journal import HOST_CHARS_MAX
from s3ws_fs.core.lease import LAPSE_SLACK_S
from s3ws_fs.core.tombstone import Tombstone
from s3ws_fs.store.base import DELETE_BATCH, DeleteFailure, ListEntry
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling
from s3ws_fs.transfer.forking import FORK_LEASE_S, Who
from s3ws_fs.transfer.gate import Gate, GatedStore
from s3ws_fs.transfer.leasing import Claim
from s3ws_fs.transfer.windowed import windowed
from s3ws_fs.transfer.wire import FencedError

ROUNDS_MAX: Final = 5
"""Listings that still show something new before we say that somebody goes on writing."""
WINDOW: Final = 8
"""Batches of DELETE_BATCH keys that are held at once."""
FAILURES_MAX: Final = 1000
"""More keys than this that can't be deleted end it at once."""

_KEPT: Final = (layout.DELETED_KEY, layout.LEASE_KEY)
_LAST: Final = (layout.CKPT_PREFIX, layout.SEG_PREFIX)

Progress = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Deleted:
    """What came of it. `failures`: what could not be deleted; then the deletion is not complete."""

    objects: int = 0
    bytes: int = 0
    failures: list[DeleteFailure] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many objects are left."""
        return len(self.failures)


class Deleter:
    """Deletes one workspace. `bare` is the store of its prefix."""

    def __init__(
        self,
        bare: ScopedStore,
        who: Who,
        *,
        take_over: bool = False,
        gate: Gate | None = None,
        randbits: RandBits = secrets.randbits,
        pool: Callable[[], AbstractContextManager[Executor]] = lambda: ThreadPoolExecutor(WINDOW),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bare = bare
        self._gate = Gate(bare, randbits=randbits) if gate is None else gate
        self._target = GatedStore(bare, self._gate)
        self._who = who
        self._take_over = take_over
        self._randbits = randbits
        self._pool = pool
        self._sleep = sleep
        self._done = Deleted()
        self._lost: set[str] = set()

    def run(self, progress: Progress) -> Deleted:
        """Delete it. Raises UserError (exit 16 when it is held), StoreError, FencedError."""
        lease_s = max(LEASE_S_MIN, min(self._who.lease_s, FORK_LEASE_S))
        who = self._who
        taking = self._gate.take(
            Claim(
                new_id(self._randbits), who.host, who.pid, who.now_ns, lease_s, 0, self._take_over
            )
        )
        try:
            self._mark()
            self._target.delete(layout.WORKSPACE_KEY)
            failpoints.hit(failpoints.DELETE_BEGUN)
            self._empty(progress)
            if taking.quiet_s:
                progress({"phase": "waiting until the writer before can't write any more"})
                self._sleep(taking.quiet_s + LAPSE_SLACK_S)
                self._empty(progress)
            if not self._done.failures:
                # A server that does not let us list them has them go by a rule of the bucket.
                with contextlib.suppress(PermanentError):
                    self._bare.abort_uploads(0.0)
                failpoints.hit(failpoints.DELETE_EMPTIED)
                self._target.delete(layout.DELETED_KEY)
                failpoints.hit(failpoints.DELETE_LEASE)
                self._gate.remove()
                return self._done
        except BaseException:
            self._give_back()
            raise
        self._give_back()
        return self._done

    def _give_back(self) -> None:
        """So that it can be tried again at once; what stands there is no workspace."""
        with contextlib.suppress(StoreError, FencedError):
            self._gate.release()

    def _mark(self) -> None:
        uuid = ""
        with contextlib.suppress(UserError):
            # A damaged workspace can be deleted too.
            uuid = journaling.read_workspace(self._bare) or ""
        mark = Tombstone(uuid, self._who.host[:HOST_CHARS_MAX], self._who.now_ns)
        with contextlib.suppress(ConflictError):
            # One that stands is of an earlier try.
            self._target.put(
                layout.DELETED_KEY,
                mark.encode(),
                content_type="application/json",
                if_none_match=True,
            )
        failpoints.hit(failpoints.DELETE_MARKED)

    def _empty(self, progress: Progress) -> None:
        """Until a listing shows nothing else but what failed."""
        done = self._done
        for _ in range(ROUNDS_MAX):
            before = done.objects + done.failed
            with self._pool() as pool:
                batches = windowed(pool, self._purge, _batches(self._others()), WINDOW)
                for batch, failures in batches:
                    self._count(batch, failures, progress)
            for prefix in _LAST:
                for batch in _batches(self._still(self._bare.list(prefix))):
                    self._count(*self._purge(batch), progress)
            if done.objects + done.failed == before:
                return
        raise TransientError("delete", self._bare.prefix, "somebody goes on writing there")

    def _others(self) -> Iterator[ListEntry]:
        for entry in self._still(self._bare.everything()):
            if entry.key not in _KEPT and not entry.key.startswith(_LAST):
                yield entry

    def _still(self, entries: Iterable[ListEntry]) -> Iterator[ListEntry]:
        return (entry for entry in entries if entry.key not in self._lost)

    def _purge(self, batch: list[ListEntry]) -> tuple[list[ListEntry], list[DeleteFailure]]:
        failures = self._target.purge(entry.key for entry in batch)
        failpoints.hit(failpoints.DELETE_BATCH)
        return batch, failures

    def _count(
        self, batch: list[ListEntry], failures: list[DeleteFailure], progress: Progress
    ) -> None:
        self._lost |= {failure.key for failure in failures}
        done = self._done
        gone = [entry.size_bytes for entry in batch if entry.key not in self._lost]
        done.objects += len(gone)
        done.bytes += sum(gone)
        done.failures += failures
        if done.failed > FAILURES_MAX:
            raise done.failures[0].error
        progress({"phase": "deleting", "done": done.objects})


def _batches(items: Iterable[ListEntry]) -> Iterator[list[ListEntry]]:
    source = iter(items)
    while batch := list(islice(source, DELETE_BATCH)):
        yield batch
