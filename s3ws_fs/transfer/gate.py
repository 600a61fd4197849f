"""The gate before every request that changes the bucket: is the lease still ours?

    journal/probe/, journal/lease.json   pass (scratch; the lease itself is conditional)
    journal/seg/, journal/blob/          pass with a proof: the number is the fence, blobs are new
    everything else                      passes with a proof, under the kernel's deadline

A proof is a renewal that succeeded; it is good for `fence_s` from its *sending*. When half of that
has passed, the next request renews first, and a thread does while requests are under way.

Invariants
1. Without a lease nothing passes. After a refused renewal nothing passes ever again.
2. While a request of the last kind is under way, the kernel kills this process at the end of its
   newest proof (deadline.py). So no such request, nor a retry of one, is sent later than that, even
   if this process was stopped between the gate and the send.
3. What is left are bytes that the kernel or the network had already. They are sent before the end
   of a proof, so before a successor touches the mirror (replica.lease waits that long after a
   take-over); one that is delivered later still is conditional on what stood there before, and what
   it may have done is found by the successor's reconciliation.
4. Renewal, by whatever thread, is one at a time.

Called by worker.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final

from s3ws_fs.core import layout
from s3ws_fs.core.errors import PermanentError, StoreError, TransientError
from s3ws_fs.core.ids import RandBits
from s3ws_fs.core.lease import FENCE_PARTS, HELD, RELEASED, Grant
from s3ws_fs.store.base import DeleteFailure
from s3ws_fs.store.body import Body
from s3ws_fs.store.scoped import PROBE_PREFIX, ScopedStore
from s3ws_fs.transfer import leasing
from s3ws_fs.transfer.deadline import Deadline, boot_s
from s3ws_fs.transfer.leasing import Claim, Taking
from s3ws_fs.transfer.wire import FencedError

PROOF_PARTS: Final = 2
"""A proof is renewed when this part of its time has passed."""
PROOFS_MAX: Final = 4
"""A renewal that the store answered, but so late that it proves nothing any more, is made again so
often: each says that the lease is ours, and only a young one lets anything pass."""
RETRY_S: Final = 1.0
"""Pause between renewals of the thread when the store does not answer."""

_FREE: Final = (PROBE_PREFIX, layout.LEASE_KEY)
_FENCED_BY_NAME: Final = (layout.SEG_PREFIX, layout.BLOB_PREFIX)


class Gate:
    """Knows the lease of this worker. Thread-safe."""

    def __init__(
        self,
        store: ScopedStore,
        *,
        boot: Callable[[], float] = boot_s,
        deadline: Deadline | None = None,
        randbits: RandBits = secrets.randbits,
        lock: Callable[[], AbstractContextManager[Any]] = threading.Lock,
    ) -> None:
        """`store` has no gate: the lease's own requests go there.

        Without `deadline` no kernel watches, and no thread renews the lease under a long request.
        `lock` makes a lock that may be held over requests.
        """
        self._randbits = randbits
        self._store = store
        self._boot = boot
        self._deadline = deadline
        self._renewing = lock()
        self._state = threading.Condition()
        self._changing = 0
        self._grant: Grant | None = None
        self._fenced: FencedError | None = None
        self._watcher: threading.Thread | None = None

    @property
    def grant(self) -> Grant | None:
        """The newest proof."""
        return self._grant

    def take(self, claim: Claim) -> Taking:
        """Acquire the lease. Raises UserError (exit 16), StoreError."""
        with self._renewing:
            taking = leasing.acquire(self._store, claim, self._boot, self._randbits)
            self.hold(taking.grant)
        return taking

    def hold(self, grant: Grant) -> None:
        """Take over a lease that was acquired (perhaps by a worker before this one)."""
        self._grant = grant
        self._fenced = None

    def renew(self, lasts_s: float | None = None) -> None:
        """Prove the lease now. Raises FencedError, StoreError."""
        with self._renewing:
            self._put(lasts_s, HELD)

    def release(self) -> None:
        """Give the lease back; afterwards nothing passes. Raises FencedError, StoreError."""
        with self._renewing:
            self._put(None, RELEASED)
            self._grant = None

    def remove(self) -> None:
        """Remove the lease itself, when nothing is left that it guards; afterwards nothing passes.

        Raises FencedError, StoreError; ConflictError when it is not ours any more.
        """
        with self._renewing:
            self._store.delete(layout.LEASE_KEY, if_match=self._mine().etag)
            self._grant = None

    def _put(self, lasts_s: float | None, state: str) -> None:
        """Invariant 4: the lock is held."""
        grant = self._mine()
        lasts_s = self._fence_s(grant) * FENCE_PARTS if lasts_s is None else lasts_s
        try:
            proof = leasing.renew(self._store, grant, lasts_s, self._boot, state=state)
        except FencedError as exc:
            self._fenced = exc
            raise
        with self._state:
            self._grant = proof
            self._arm()

    def _mine(self) -> Grant:
        if self._fenced is not None:
            raise self._fenced
        if self._grant is None:
            raise PermanentError("lease", layout.LEASE_KEY, "this worker has no lease")
        return self._grant

    @staticmethod
    def _fence_s(grant: Grant) -> float:
        return grant.lease.fence_ms / 1e3

    def _is_fresh(self, grant: Grant) -> bool:
        return self._boot() - grant.sent_s < self._fence_s(grant) / PROOF_PARTS

    def prove(self) -> None:
        """Return with a proof that is fresh. Raises FencedError, StoreError."""
        if self._is_fresh(self._mine()):
            return
        with self._renewing:
            for _ in range(PROOFS_MAX):
                if self._is_fresh(self._mine()):
                    return
                self._put(None, HELD)
            if not self._is_fresh(self._mine()):
                raise TransientError("lease", layout.LEASE_KEY, "renewing it took too long")

    @contextlib.contextmanager
    def passing(self, keys: Iterable[str], *, strict: bool = False) -> Iterator[None]:
        """The block sends a request that changes these keys. Raises FencedError, StoreError.

        `strict`: under the kernel's deadline whatever the keys are.
        """
        keys = [key for key in keys if not key.startswith(_FREE)]
        if not keys:
            yield
            return
        self.prove()
        if not strict and all(key.startswith(_FENCED_BY_NAME) for key in keys):
            yield
            return
        with self._state:
            self._changing += 1
            self._arm()
            self._watch()
        try:
            yield
        finally:
            with self._state:
                self._changing -= 1
                self._arm()

    def _arm(self) -> None:
        """Set the kernel's deadline to the end of the proof, or take it away (invariant 2)."""
        if self._deadline is not None:
            grant = self._grant
            at_s = grant.sent_s + self._fence_s(grant) if self._changing and grant else None
            self._deadline.set(at_s)

    def _watch(self) -> None:
        if self._deadline is None:
            return
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._keep_proven, name="lease", daemon=True)
            self._watcher.start()
        self._state.notify_all()

    def _keep_proven(self) -> None:
        """Renew while changes are under way, however long one takes."""
        while True:
            with self._state:
                while not self._changing or self._fenced is not None or self._grant is None:
                    self._state.wait()
                grant = self._grant
                due_s = grant.sent_s + self._fence_s(grant) / PROOF_PARTS - self._boot()
                if due_s > 0:
                    self._state.wait(due_s)
                    continue
            try:
                self.prove()
            except FencedError:
                continue
            except StoreError:
                with self._state:
                    self._state.wait(RETRY_S)


class GatedStore(ScopedStore):
    """A scoped store whose changes pass the gate."""

    def __init__(self, scoped: ScopedStore, gate: Gate) -> None:
        super().__init__(scoped._inner, scoped.prefix, randbits=scoped._randbits)
        self._gate = gate

    def put(self, key: str, body: Body, **more: Any) -> str:
        """See ObjectStore.put."""
        with self._gate.passing((key,)):
            return super().put(key, body, **more)

    def purge(self, keys: Iterable[str]) -> list[DeleteFailure]:
        """See ObjectStore.purge. Numbers of segments begin anew in the workspace after this one."""
        listed = list(keys)
        with self._gate.passing(listed, strict=True):
            return super().purge(listed)

    def copy(self, src: str, dst: str, **more: Any) -> str:
        """See ObjectStore.copy."""
        with self._gate.passing((dst,)):
            return super().copy(src, dst, **more)

    def copy_from(self, source: ScopedStore, src: str, dst: str) -> str:
        """See ScopedStore.copy_from."""
        with self._gate.passing((dst,)):
            return super().copy_from(source, src, dst)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """See ObjectStore.delete."""
        with self._gate.passing((key,)):
            super().delete(key, if_match=if_match)

    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        """See ObjectStore.delete_many."""
        listed = list(keys)
        with self._gate.passing(item if isinstance(item, str) else item[0] for item in listed):
            return super().delete_many(listed)
