"""The transfer worker: a child process that talks to the store, so that the daemon never does.

Run as `python -m s3ws_fs.transfer.worker --fd N`, N being one end of a socketpair (wire.py).

Invariants
1. It opens the cache read-only and writes only below the cache's spool directory.
2. It may be killed at any moment: what it knows is in the cache, the bucket, or not yet promised.
3. It ends by itself: when the parent's end closes (at once, whatever is under way), or after IDLE_S
   without a request (at once after `renew` with `then_end`, unless something else was asked for).
4. Flush work (freeze, seal, mirror, …) runs one at a time in its lane; fetches (and renewals of the
   lease) have lanes of their own, so that a person's read never waits behind a flush.
5. "ping" is answered at once, whatever is under way, with the request that waits longest for the
   store: silence means that this process is stopped or stuck.
6. A fetch that nobody waits for any more is not begun.
7. What changes the bucket passes the gate (gate.py): without a proven lease nothing is sent, and
   the kernel ends this process when a proof ends under a change.

Started by client; called by nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import queue
import secrets
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from s3ws_fs.cache.headroom import give_reserve
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.core import failpoints
from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import (
    ExitCode,
    FormatError,
    NotFoundError,
    PermanentError,
    S3wsError,
    TransientError,
    UserError,
)
from s3ws_fs.core.ids import RandBits, new_id
from s3ws_fs.core.lease import GIVEN, OWN, Grant
from s3ws_fs.core.types import Location
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import following, journaling, leasing, outside, reconcile, spool, wire
from s3ws_fs.transfer.ahead import Ahead
from s3ws_fs.transfer.deadline import Deadline, boot_s
from s3ws_fs.transfer.fetch import ExtentSource, coalesce, fetch_from_mirror, fetch_group
from s3ws_fs.transfer.freeze import FreezeRequest, Frozen, Readable, freeze
from s3ws_fs.transfer.gate import Gate, GatedStore
from s3ws_fs.transfer.leasing import Claim
from s3ws_fs.transfer.mirror import Batch, MirrorPass

IDLE_S: Final = 60.0
END_SOON_S: Final = 1.0
"""After a renewal for a mount with nothing else to do."""
NICENESS: Final = 5
FETCH_LANES: Final = 3
"""Threads for reads asked for; of the store's connections they leave the rest to the flush."""
LIST_BATCH: Final = 2000

Reply = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Means:
    """What a worker reaches the world by; a simulation passes its own."""

    open_store: Callable[..., ScopedStore] = open_store
    open_reader: Callable[[Path], Readable] = open_reader
    pool: Callable[[int, str], Executor] = ThreadPoolExecutor
    randbits: RandBits = secrets.randbits
    boot: Callable[[], float] = boot_s
    deadline: Callable[[], Deadline | None] = lambda: None
    lock: Callable[[], AbstractContextManager[Any]] = threading.Lock
    """The last three: see Gate."""


class Worker:
    """State of the process: the store, the cache's reader, and the freeze under way."""

    def __init__(
        self, sock: socket.socket, idle_s: float = IDLE_S, means: Means | None = None
    ) -> None:
        self._means = Means() if means is None else means
        self._sock = sock
        self._idle_s = idle_s
        self._send_lock = threading.Lock()
        self._busy = 0
        self._busy_lock = threading.Lock()
        self._flush_lane: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._store: ScopedStore | None = None
        self._gate: Gate | None = None
        self._end_soon = False
        self._reader: Readable | None = None
        self._frozen: Frozen | None = None
        self._ahead: Ahead | None = None
        self._stop_mirror = threading.Event()
        self._spool = Path()
        self._cache_dir = Path()
        self._workspace = ""
        self._transfers: Executor | None = None
        self._fetches = self._means.pool(FETCH_LANES, "fetch")

    def run(self) -> None:
        """Serve until the parent's end closes or nothing was asked for IDLE_S."""
        threading.Thread(target=self._flush_loop, name="flush", daemon=True).start()
        while True:
            idle_s = min(END_SOON_S, self._idle_s) if self._end_soon else self._idle_s
            ready, _, _ = select.select([self._sock], [], [], idle_s)
            if not ready:
                with self._busy_lock:
                    if self._busy == 0 and self._frozen is None:
                        return
                continue
            head = self._read(wire.HEAD_BYTES)
            if head is None:
                return
            rest = self._read(wire.rest_bytes(head))
            if rest is None:
                return
            self._dispatch(*wire.decode(head, rest))

    def _read(self, count: int) -> bytes | None:
        parts = []
        while count:
            part = self._sock.recv(min(count, 1 << 20))
            if not part:
                return None
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _flush_loop(self) -> None:
        while True:
            self._flush_lane.get()()

    def _dispatch(self, ask: dict[str, Any], _: memoryview) -> None:
        if "patience_s" in ask:
            ask["until_s"] = time.monotonic() + ask["patience_s"]
        with self._busy_lock:
            self._busy += 1
        if ask["cmd"] != "ping":
            self._end_soon = bool(ask.get("then_end"))

        def job() -> None:
            self._answer(ask)

        if ask["cmd"] == "stop-mirror":
            self._stop_mirror.set()
            job()
        elif ask["cmd"] == "ping":
            job()
        elif ask["cmd"] in ("fetch", "fetch-mirror", "check", "renew"):
            self._fetches.submit(job)
        else:
            self._flush_lane.put(job)

    def _send(self, message: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        frame = wire.encode(message, payload)
        with self._send_lock:
            self._sock.sendall(frame)

    def _answer(self, ask: dict[str, Any]) -> None:
        number = ask["id"]

        def part(body: dict[str, Any], payload: bytes | memoryview = b"") -> None:
            self._send({"id": number, "part": body}, payload)

        try:
            result = getattr(self, "do_" + ask["cmd"].replace("-", "_"))(ask, part)
            message = {"id": number, "ok": result or {}}
        except (S3wsError, OSError) as exc:
            message = {"id": number, "error": wire.error_json(exc)}
        except Exception as exc:
            traceback.print_exc(file=sys.stderr)
            message = {"id": number, "error": wire.error_json(exc)}
        if self._store is not None:
            message["requests"] = self._store.counters.by_op()
        if self._gate is not None and self._gate.grant is not None:
            message["lease"] = self._gate.grant.to_json()
        with self._busy_lock:
            self._busy -= 1
        try:
            self._send(message)
        except OSError:
            os._exit(0)

    @property
    def store(self) -> ScopedStore:
        """The store. Raises PermanentError before `hello`."""
        if self._store is None:
            raise PermanentError("worker", "", "hello comes first")
        return self._store

    @property
    def gate(self) -> Gate:
        """The gate. Raises PermanentError before `hello`."""
        if self._gate is None:
            raise PermanentError("worker", "", "hello comes first")
        return self._gate

    @property
    def reader(self) -> Readable:
        """The cache. Raises PermanentError before `hello`."""
        if self._reader is None:
            raise PermanentError("worker", "", "hello comes first")
        return self._reader

    def _kept(self, ask: dict[str, Any]) -> Frozen:
        if self._frozen is None or self._frozen.flush_id != ask["flush_id"]:
            raise wire.OwnSealError("this worker does not hold that freeze")
        return self._frozen

    def do_hello(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Open store and cache; no request is made."""
        config = StoreConfig.from_json(ask["store"])
        directory = self._cache_dir = Path(ask["cache_dir"])
        self._spool = Path(ask["spool_dir"])
        means = self._means
        self._reader = means.open_reader(directory)
        self._ahead = Ahead(self._reader, directory, self._spool, means.randbits)
        how = {"read_only": True} if ask.get("read_only") else {}
        store = means.open_store(config, ask["prefix"], **how)
        self._gate = Gate(
            store,
            boot=means.boot,
            deadline=means.deadline(),
            randbits=means.randbits,
            lock=means.lock,
        )
        if ask.get("lease") is not None:
            self._gate.hold(Grant.from_json(ask["lease"]))
        self._store = store if how else GatedStore(store, self._gate)
        self._transfers = means.pool(max(1, config.max_parallel - FETCH_LANES), "transfer")
        self._workspace = ask.get("workspace", "")
        if ask.get("conditional") is not None:
            self.store.assume(journaling.conditional_from(ask["conditional"]))
        return {"pid": os.getpid()}

    def do_lease(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Take the lease, and shut out who had it. `state`: what stands then, unless as before."""
        claim = Claim(**ask["claim"])
        taking = self.gate.take(claim)
        state = None
        # Also when an earlier start of ours took it, and died before it had sealed.
        if taking.is_from_another or (taking.how == OWN and not ask["ours"]):
            state = leasing.seal_fence(
                self.store,
                claim,
                taking.grant.lease.epoch,
                uuid=ask["uuid"],
                flush_id=new_id(self._means.randbits),
            )
        elif taking.how == GIVEN:
            state = journaling.survey(self.store)
        return {
            "how": taking.how,
            "was": None if taking.was is None else taking.was.who,
            "quiet_s": taking.quiet_s,
            "state": None if state is None else state.to_json(),
        }

    def do_renew(self, ask: dict[str, Any], part: Reply) -> None:
        """Prove the lease; it lasts `lasts_s` from now on."""
        self.gate.renew(ask["lasts_s"])

    def do_release(self, ask: dict[str, Any], part: Reply) -> None:
        """Give the lease back: all is done."""
        self.gate.release()

    def do_probe(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Does it answer, and does it keep conditions? Raises UserError exit 6."""
        self.store.check()
        found = self.store.probe_conditional()
        if not found.safe and not ask["allow_unconditional"]:
            raise UserError(
                "the store ignores conditional writes: two writers could overwrite each other",
                remedy="Use a store that keeps If-None-Match and If-Match on PUT (AWS S3, MinIO, "
                "SeaweedFS), or allow it with WORKSPACE_ALLOW_UNCONDITIONAL=1 and one writer only.",
                exit_code=ExitCode.STORE,
            )
        return {"conditional": journaling.conditional_json(found)}

    def do_ping(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """We are there; and what the store has not answered that it should have."""
        late = None if self._store is None else self._store.waits.overdue()
        return {"late": None if late is None else asdict(late)}

    def do_check(self, ask: dict[str, Any], part: Reply) -> None:
        """Does it answer?"""
        self.store.check()

    def do_survey(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """What stands in the journal."""
        return journaling.survey(self.store).to_json()

    def do_make_workspace(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Create or read journal/workspace.json."""
        self._workspace = journaling.make_workspace(self.store, ask["uuid"], ask["created_ns"])
        return {"workspace": self._workspace}

    def do_restore(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Bring the records into the spool; one part a file, in order of replay."""
        assert self._transfers is not None
        restored = journaling.restore(
            self.store,
            self._spool,
            self._transfers,
            lambda done, of: part({"progress": [done, of]}),
        )
        state, files = restored.state, restored.files
        self._workspace = state.workspace or ""
        for file in files:
            part({"file": str(file.path), "where": file.where, "kind": file.header.kind})
        mirrored = journaling.read_mirrored(self.store, state.workspace)
        if files:
            generation = files[-1].header.generation
            journaling.check_end(self.store, state.newest, generation, mirrored)
        return state.to_json() | {"mirrored": mirrored, "damaged": restored.damaged}

    def do_follow(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Segments that a read-only mount does not show yet into the spool, one part a file."""
        look = following.follow(
            self.store,
            ask["workspace"],
            ask["number"],
            ask["hash"],
            self._spool,
            surely=ask["surely"],
        )
        for file in look.files:
            part({"file": str(file.path), "where": file.where})
        return {"end": look.end, "lost": look.lost}

    def do_freeze(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Copy out what is unsealed and what the mirror has to look at."""
        if self._frozen is not None:
            self._frozen.close()
            self._frozen = None
        spool.clean(self._spool)
        request = FreezeRequest.from_json(ask["freeze"])
        ahead = self._ahead
        assert ahead is not None
        if ahead.make_fit(self.store, lambda count: part({"shipped": count})):
            # It may have no room either, and nothing depends on it: a later flush makes it.
            request = replace(request, checkpoint=False)
            give_reserve(self._cache_dir)
        frozen = freeze(
            self.reader, self._spool, request, ahead.known, randbits=self._means.randbits
        )
        self._frozen = frozen
        failpoints.hit(failpoints.FREEZE_AFTER)
        self._workspace = ask["freeze"]["workspace"]
        header = frozen.header
        plan = frozen.todo.plan
        return {
            "generation": frozen.generation,
            "seal": header is not None,
            "checkpoint": frozen.checkpoint is not None,
            "segment": None if frozen.segment is None else str(frozen.segment),
            "header_hash": frozen.header_hash,
            "segment_bytes": 0 if header is None else header.total_bytes,
            "records": 0 if header is None else header.puts + header.tombs,
            "blobs": len(frozen.blobs),
            "mirror_files": len(plan.ops) + len(plan.early) + len(plan.late),
            "todo": len(frozen.todo.files),
        }

    def do_seal(self, ask: dict[str, Any], part: Reply) -> None:
        """Ship blobs, then the segment."""
        frozen = self._kept(ask)
        assert self._transfers is not None
        if frozen.blobs:
            journaling.ship_blobs(
                self.store, frozen, self._transfers, lambda count: part({"shipped": count})
            )
        journaling.require_journal(self.store, frozen.number)
        journaling.seal(self.store, frozen)
        assert self._ahead is not None
        self._ahead.known.clear()

    def do_checkpoint(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Put the checkpoint of the sealed freeze, then remove garbage."""
        frozen = self._kept(ask)
        journaling.put_checkpoint(self.store, frozen)
        removed = journaling.collect_garbage(self.store, frozen)
        return {"removed": removed, "uploads": journaling.give_up_uploads(self.store)}

    def do_mirror(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Bring files/ to the frozen point; results come in parts. Ends the freeze."""
        frozen = self._kept(ask)
        assert self._transfers is not None
        self._stop_mirror.clear()
        mirroring = MirrorPass(
            self.store,
            ExtentSource(self.store, self.reader, frozen),
            frozen,
            workspace=self._workspace,
            directory=self._spool,
            pool=self._transfers,
            report=lambda batch: part(_batch_json(batch)),
            stop=self._stop_mirror,
        )
        outcome = mirroring.run()
        mirroring.finish_dirs()
        done = list(mirroring.done())
        for at in range(0, len(done), LIST_BATCH):
            part({"done": done[at : at + LIST_BATCH]})
        # One whose new place is taken by somebody else may have been found by walking only.
        again = outcome.stale_inos.union(*outcome.conflict_inos.values())
        part({"look_at": sorted(again)})
        todo = frozen.todo
        result = {
            "written": outcome.written,
            "stopped": self._stop_mirror.is_set(),
            "failed": len(outcome.failed_inos),
            "uncertain": outcome.is_uncertain,
            "conflicts": [
                [path, why, sorted(outcome.conflict_inos[path])]
                for path, why in outcome.conflicts.items()
            ],
            "missed": outcome.missed[:LIST_BATCH],
            "unmirrored": [
                [ino, path.decode("latin-1"), why]
                for ino, path, why in todo.unmirrored[:LIST_BATCH]
            ],
            "error": None if outcome.error is None else wire.error_json(outcome.error),
        }
        frozen.close()
        self._frozen = None
        if not (result["error"] or result["stopped"] or result["failed"]):
            journaling.note_mirrored(self.store, self._workspace, frozen.generation)
        return result

    def do_reconcile(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Learn from a listing what stands in the mirror, and what somebody else did to it."""
        assert self._transfers is not None
        scan = reconcile.Scan(
            self.store,
            self.reader,
            self._transfers,
            workspace=ask["workspace"],
            prefix_bytes=ask["prefix_bytes"],
            sealed=ask["sealed"],
            is_known=ask["is_known"],
        )
        result = scan.run(part)
        if not ask["is_known"]:
            journaling.give_up_uploads(self.store)
        return result

    def do_look_outside(self, ask: dict[str, Any], part: Reply) -> None:
        """What stands at these mirror paths that is not ours."""
        for text in ask["paths"]:
            found = outside.look(self.store, text, ask["workspace"])
            if found is not None:
                part({"found": found.to_json()})

    def do_fetch_outside(self, ask: dict[str, Any], part: Reply) -> None:
        """The bytes of one object that is not ours, in pieces; only while it is that one."""
        for data in outside.read(self.store, ask["path"], ask["etag"], ask["size_bytes"]):
            part({}, data)

    def do_measure_outside(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """How much an import of the whole mirror would bring."""
        return outside.measure(self.store)

    def do_import(self, ask: dict[str, Any], part: Reply) -> None:
        """Everything below files/, object by object, with the directories above them."""
        assert self._transfers is not None
        outside.send_all(self.store, self._transfers, part)

    def do_stop_mirror(self, ask: dict[str, Any], part: Reply) -> None:
        """End the mirror pass under way early; what is left stays on the to-do."""

    def do_drop(self, ask: dict[str, Any], part: Reply) -> None:
        """Give up the freeze under way."""
        if self._frozen is not None:
            self._frozen.close()
            self._frozen = None

    def do_fetch(self, ask: dict[str, Any], part: Reply) -> None:
        """Bytes of locations, verified, a part a GET."""
        _require_patience(ask)
        wanted = [
            Location(object_id, offset, length, bytes.fromhex(digest))
            for object_id, offset, length, digest in ask["locations"]
        ]
        for group in coalesce(wanted):
            found = fetch_group(self.store, group)
            items = [[loc.object_id, loc.offset, loc.length] for loc in found]
            part({"items": items}, b"".join(found.values()))

    def do_fetch_mirror(self, ask: dict[str, Any], part: Reply) -> None:
        """Bytes of one location from the first mirror object that has them."""
        _require_patience(ask)
        object_id, offset, length, digest = ask["location"]
        wanted = Location(object_id, offset, length, bytes.fromhex(digest))
        for text in ask["paths"]:
            try:
                data = fetch_from_mirror(self.store, text, ask["index"], wanted)
            except (NotFoundError, PermanentError, FormatError):
                continue
            part({}, data)
            return
        raise FormatError("files/", "no object of the mirror has these bytes")


def _require_patience(ask: dict[str, Any]) -> None:
    if time.monotonic() > ask.get("until_s", math.inf):
        raise TransientError(ask["cmd"], "", "nobody waits for it any more")


def _batch_json(batch: Batch) -> dict[str, Any]:
    return {"rows": wire.rows_json(batch.rows), "removed": wire.paths_json(batch.removed)}


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    args = parser.parse_args()
    os.nice(NICENESS)
    with (
        socket.socket(fileno=args.fd) as sock,
        contextlib.suppress(ConnectionError, KeyboardInterrupt),
    ):
        Worker(sock, args.idle_s, Means(deadline=Deadline)).run()
    # Threads may hang in the network for as long as its timeouts: nothing of theirs is needed.
    os._exit(0)


if __name__ == "__main__":
    main()
