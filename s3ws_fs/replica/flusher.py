"""One flush: freeze → sync point → ship and seal → forget; then the mirror behind it.

Invariants
1. A sync point covers G before G is sealed: a power cut can't leave a cache older than the bucket.
2. Dirt is forgotten only after its seal, record by record at the generation that was sealed.
3. After any error what is sealed is forgotten and learnt from the bucket again: a flush whose
   answer was lost is found there as our own (position.compare).
4. Once fenced, nothing is ever written to the bucket again by this mount.
5. A mirror pass whose results are not all known (the worker or we died, an answer was lost) is
   followed by a reconciliation, so that no object of ours is left that no row knows.
6. Every loop here is in bounded pieces with a checkpoint between: requests are served meanwhile.

Called by replicator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import failpoints, folding, keys
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import CacheError, S3wsError, StartOverError
from s3ws_fs.core.ids import RandBits, new_id
from s3ws_fs.core.outside import Found
from s3ws_fs.core.types import SELF_OBJECT
from s3ws_fs.replica import position
from s3ws_fs.replica.idle import IdleLooks
from s3ws_fs.replica.position import Sealed
from s3ws_fs.transfer import wire
from s3ws_fs.transfer.client import WorkerClient
from s3ws_fs.transfer.spool import RecordsFile, open_records

CHECKPOINT_EVERY_SEGMENTS: Final = folding.SEGMENTS_MIN
"""At least so many segments lie between two checkpoints; how many more, says `folding`."""
RECORD_BATCH: Final = 1000
UNMIRRORED_LISTED_MAX: Final = 1000
LOOKED_AT_MAX: Final = 10_000
"""Conflicts of one pass that are looked at; the next pass finds the others again."""
SHIP_SILENCE_S: Final = 3600.0
"""A blob may take this long on a slow line; the worker says something after each."""
MIRROR_SILENCE_S: Final = 3600.0
"""A large object may take this long before the mirror says anything."""

_SELF: Final = keys.pack_u64(SELF_OBJECT)


@dataclass(slots=True)
class Pass:
    """How a mirror pass ended."""

    stopped: bool = False
    error: Exception | None = None
    written: int = 0


class Flusher:
    """Seals and mirrors. `state` is what status shows; `on_state` is told of changes."""

    def __init__(
        self,
        cache: Cache,
        worker: WorkerClient,
        config: MountConfig,
        ensure: Callable[[int], Awaitable[None]],
        *,
        randbits: RandBits,
        host: str,
        epoch: Callable[[], int],
    ) -> None:
        self._cache = cache
        self._worker = worker
        self._config = config
        self._ensure = ensure
        self._randbits = randbits
        self._host = host
        self._epoch = epoch
        self._sealed: Sealed | None = None
        self._segments = 0
        self._segment_bytes = 0
        self._checkpoint_bytes = 0
        self._flush_id = ""
        self.state = "idle"
        self.fenced: wire.FencedError | None = None
        self.fenced_s = 0.0
        self.sealed_generation = 0
        self.mirrored_generation = 0
        self.last_sealed_s: float | None = None
        self.seals = 0
        self.seals_s = 0.0
        """How many segments were sealed, and how long that took from freeze to seal, in all."""
        self.unmirrored: dict[int, tuple[str, str]] = {}
        self.conflicts: dict[str, str] = {}
        self._conflict_inos: dict[str, list[int]] = {}
        self.missed: list[str] = []
        """Mirror paths at which our objects were gone, in the last pass."""
        self.checkpoint_error: str | None = None
        self.garbage_error: str | None = None
        """Why the last collection of garbage removed nothing; nothing depends on it but space."""
        self.idle = IdleLooks(cache, config.history_limits)
        self.history_from = 0
        """The number from which on all points are kept, as the last collection left it."""

    def load(self) -> None:
        """Take over what the cache remembers (after prepare)."""
        sealed = Sealed.from_json(self._cache.get_json("sealed"))
        self.sealed_generation = sealed.generation
        self.idle.load(sealed.number)
        mirrored = self._cache.get_json("mirrored")
        self.mirrored_generation = mirrored if isinstance(mirrored, int) else 0
        listed = self._cache.get_json("unmirrored")
        try:
            self.unmirrored = {ino: (path, why) for ino, path, why in listed or []}
        except (TypeError, ValueError):
            # It only tells a person; the next mirror pass notes it anew.
            self.unmirrored = {}

    @property
    def sealed(self) -> Sealed | None:
        """The newest segment, while it is known that it is ours and the newest."""
        return self._sealed

    async def flush(
        self, *, mirror: bool = True, collect: bool = True, idle: bool = False
    ) -> tuple[str, bool]:
        """Freeze and seal what is dirty; returns the flush's id and whether the mirror has work.

        Without `mirror` no pass follows, and nothing is planned for one; without `collect` no
        checkpoint is made, and so no garbage collected: a later flush does. With `idle` that is
        done, though nothing is dirty, when it is due (idle.py).
        Raises StoreError, FormatError, FencedError, FsError; then nothing was forgotten.
        """
        if self.fenced is not None:
            raise self.fenced
        # Before anything is waited for: `stop_mirror` is of this one from now on.
        self._flush_id = new_id(self._randbits)
        try:
            look = idle and self.idle.is_due()
            return await self._flush(self._flush_id, mirror, collect, look)
        except wire.FencedError as exc:
            self.fence(exc)
            raise
        except wire.OwnSealError as exc:
            self._sealed = None
            raise StartOverError("seal", "journal", str(exc)) from exc
        except BaseException:
            self._sealed = None
            raise
        finally:
            self.state = "idle"

    def fence(self, by: wire.FencedError) -> None:
        """Another writer has taken over (invariant 4)."""
        if self.fenced is None:
            self.fenced = by
            self.fenced_s = trio.current_time()
        self._sealed = None

    async def _flush(
        self, flush_id: str, mirror: bool, collect: bool, look: bool
    ) -> tuple[str, bool]:
        if not self._cache.restore_complete:
            # Never met: prepare refuses or makes it whole. The last lock on the door.
            raise CacheError("the cache holds no whole workspace: nothing is pushed from it")
        sealed = await self._learn()
        number = sealed.number + 1
        due = collect and (
            folding.is_due(
                self._segments + 1,
                self._segment_bytes,
                self._checkpoint_bytes,
                CHECKPOINT_EVERY_SEGMENTS,
            )
            or bool(self._cache.get_json(position.CHECKPOINT_DUE))
            or look
        )
        self.state = "freezing"
        begun_s = trio.current_time()
        freeze_ns = self._cache.now_ns()
        ask = {
            "workspace": self._cache.get_json("workspace"),
            "writer": position.writer_id(self._cache, self._randbits),
            "host": self._host,
            "flush_id": flush_id,
            "number": number,
            "prev_hash": sealed.hash,
            "mirrored": self.mirrored_generation,
            "created_ns": freeze_ns,
            "checkpoint": due,
            "prefix_bytes": len(self._config.workspace.prefix),
            "epoch": self._epoch(),
            "mirror": mirror,
            "alone": look,
        }
        frozen = await self._worker.ask("freeze", freeze=ask)
        generation = frozen["generation"]
        if frozen["seal"]:
            self.state = "shipping"
            await self._ensure(generation)
            await self._worker.ask("seal", flush_id=flush_id, deadline_s=SHIP_SILENCE_S)
            self.state = "sealing"
            failpoints.hit(failpoints.FORGET_BEFORE)
            path = Path(frozen["segment"])
            segment = open_records(path, f"segment {number}", whole=True)
            await self._forget(segment, number, generation, freeze_ns)
            self._sealed = Sealed(number, frozen["header_hash"], generation)
            position.remember(self._cache, self._sealed)
            failpoints.hit(failpoints.FLUSH_SEALED)
            self.last_sealed_s = trio.current_time()
            self.seals += 1
            self.seals_s += self.last_sealed_s - begun_s
            self._segments += 1
            self._segment_bytes += frozen["segment_bytes"]
            self.idle.sealed(number, is_change=bool(frozen["records"]))
        self.sealed_generation = generation
        if frozen["checkpoint"]:
            await self._checkpoint(flush_id)
        return flush_id, bool(frozen["todo"])

    async def _learn(self) -> Sealed:
        """Where the bucket stands; asked again after every error."""
        if self._sealed is not None:
            return self._sealed
        state = await self._worker.ask("survey")
        writer = position.writer_id(self._cache, self._randbits)
        if position.compare(self._cache, state, writer) != position.SAME:
            raise wire.FencedError(state["header"]["host"])
        self._segments = state["segments"]
        self._segment_bytes = state["segment_bytes"]
        self._checkpoint_bytes = state["checkpoint_bytes"]
        self._sealed = Sealed.from_json(self._cache.get_json("sealed"))
        return self._sealed

    async def _forget(
        self, segment: RecordsFile, number: int, generation: int, freeze_ns: int
    ) -> None:
        own = keys.pack_u64(number)
        for frame in segment.frames():
            if frame.table != keys.T_CHUNKS or frame.tombs:
                continue
            items = (
                (key, own + raw[8:] if raw[:8] == _SELF else raw)
                for key, raw in zip(frame.keys, frame.values, strict=True)
            )
            while batch := list(islice(items, RECORD_BATCH)):
                self._cache.record_locations(generation, batch)
                failpoints.hit(failpoints.FORGET_LOCATED)
                await trio.lowlevel.checkpoint()
        resume: bytes | None = b""
        while resume is not None:
            resume = self._cache.forget(generation, freeze_ns, resume)
            failpoints.hit(failpoints.FORGET_BATCH)
            await trio.lowlevel.checkpoint()
        failpoints.hit(failpoints.FORGET_AFTER)

    async def _checkpoint(self, flush_id: str) -> None:
        """Put the checkpoint; after a failure a later flush makes one, nothing depends on it."""
        try:
            limits = self._config.history_limits.to_json()
            done = await self._worker.ask("checkpoint", flush_id=flush_id, history=limits)
        except S3wsError as exc:
            self.checkpoint_error = str(exc)
        else:
            self.checkpoint_error = None
            self.garbage_error = done["garbage_error"] or None
            self.history_from = done["kept_from"] or self.history_from
            self._segments = 0
            self._segment_bytes = 0
            self._checkpoint_bytes = done["checkpoint_bytes"]
            if self._cache.get_json(position.CHECKPOINT_DUE):
                self._cache.put_json(position.CHECKPOINT_DUE, False)
                self._cache.put_json(position.DONE_WITHOUT, None)

    async def drop(self) -> None:
        """Let the worker give up the freeze under way (the mirror has nothing to do)."""
        await self._worker.ask("drop")

    async def reconcile(self, *, scan: bool = False) -> list[Found]:
        """After a restore, and after a pass that was cut off, learn what stands in the mirror; with
        `scan` also when that is known. Returns what somebody else did: once it is seen to,
        `reconciled` is to be called.
        """
        is_known = bool(self._cache.get_json("mirror_known"))
        if is_known and not scan:
            return []
        self.state = "mirroring"
        found: list[Found] = []

        async def on_part(part: dict[str, Any], _: memoryview) -> None:
            if "rows" in part:
                removed = wire.paths_from(part["removed"])
                self._cache.record_mirrored(wire.rows_from(part["rows"]), removed, ())
            elif "found" in part:
                found.extend(Found.from_json(item) for item in part["found"])
            else:
                self._cache.add_mirror_todo(part["look_at"], self._cache.generation)

        try:
            await self._worker.ask(
                "reconcile",
                on_part,
                workspace=self._cache.get_json("workspace"),
                prefix_bytes=len(self._config.workspace.prefix),
                sealed=self.sealed_generation,
                is_known=is_known,
                deadline_s=MIRROR_SILENCE_S,
            )
        finally:
            self.state = "idle"
        failpoints.hit(failpoints.RECONCILE_AFTER)
        return found

    def reconciled(self) -> None:
        """What a listing showed is noted, and seen to."""
        if not self._cache.get_json("mirror_known"):
            self._cache.put_json("mirror_known", True)

    async def check_writer(self) -> None:
        """Whether the bucket is still ours to follow. Raises FencedError, StoreError."""
        if self.fenced is not None:
            raise self.fenced
        self._sealed = None
        try:
            await self._learn()
        except wire.FencedError as exc:
            self.fenced = exc
            raise

    async def look_outside(self) -> list[Found]:
        """What stands at the paths of the last pass's conflicts and is not ours."""
        found: list[Found] = []

        async def on_part(part: dict[str, Any], _: memoryview) -> None:
            found.append(Found.from_json(part["found"]))

        await self._worker.ask(
            "look-outside",
            on_part,
            workspace=self._cache.get_json("workspace"),
            paths=list(self.conflicts)[:LOOKED_AT_MAX],
        )
        return found

    def settled(self, paths: Iterable[str]) -> None:
        """These conflicts were seen to: the next pass may put there."""
        for path in paths:
            self.conflicts.pop(path, None)
            self._conflict_inos.pop(path, None)

    @property
    def conflict_inos(self) -> int:
        """How many files wait for somebody else's object to go away."""
        return len(set(chain.from_iterable(self._conflict_inos.values())))

    async def mirror(self, flush_id: str, progress: Callable[[int], None]) -> Pass:
        """Bring files/ to what the flush froze. `progress` is told how many objects were written.

        Raises StoreError when the worker could not be asked; failures of objects are in the result.
        """
        generation = self.sealed_generation
        self.state = "mirroring"
        written = 0

        async def on_part(part: dict[str, Any], _: memoryview) -> None:
            nonlocal written
            if "done" in part:
                done = [(ino, gen) for ino, gen in part["done"]]
                self._cache.record_mirrored((), (), done)
                for ino, _ in done:
                    self.unmirrored.pop(ino, None)
            elif "look_at" in part:
                self._cache.add_mirror_todo(part["look_at"], generation)
            else:
                rows = wire.rows_from(part["rows"])
                removed = wire.paths_from(part["removed"])
                self._cache.record_mirrored(rows, removed, ())
                written += len(rows) + len(removed)
                progress(written)
            failpoints.hit(failpoints.MIRROR_NOTED)

        # Until all is noted, objects may stand that no row knows: invariant 5.
        self._cache.put_json("mirror_known", False)
        failpoints.hit(failpoints.MIRROR_BEFORE)
        try:
            result = await self._worker.ask(
                "mirror", on_part, flush_id=flush_id, deadline_s=MIRROR_SILENCE_S
            )
        finally:
            self.state = "idle"
        self._cache.put_json("mirror_known", not result["uncertain"])
        self._note(result)
        error = None if result["error"] is None else wire.error_from(result["error"])
        if error is None and not result["stopped"] and not result["failed"]:
            failpoints.hit(failpoints.MIRROR_AFTER)
            self.mirrored_generation = generation
            self._cache.put_json("mirrored", generation)
        return Pass(result["stopped"], error, result["written"])

    def _note(self, result: dict[str, Any]) -> None:
        for ino, path, why in result["unmirrored"]:
            if len(self.unmirrored) < UNMIRRORED_LISTED_MAX:
                self.unmirrored[ino] = (path, why)
        listed = [[ino, path, why] for ino, (path, why) in self.unmirrored.items()]
        if listed != (self._cache.get_json("unmirrored") or []):
            self._cache.put_json("unmirrored", listed)
        if not result["stopped"]:
            self.conflicts = {path: why for path, why, _ in result["conflicts"]}
            self._conflict_inos = {path: inos for path, _, inos in result["conflicts"]}
        self.missed = result["missed"]

    async def stop_mirror(self) -> None:
        """End the pass of the flush under way, or of the last one, early; none is planned if it is
        not yet."""
        await self._worker.ask("stop-mirror", flush_id=self._flush_id)
