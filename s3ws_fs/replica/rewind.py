"""A restore on a living mount: plan, snapshot of before, one transaction, and the kernel forgets.

    1. what would change is found out, and refused where it can't be: nothing was done
    2. all that is not sealed is sealed, and that point becomes a snapshot (before-restore)
    3. the plan is made for exactly that generation, and the cache changes in one transaction
    4. the kernel forgets the names and attributes concerned

Invariants
1. The tree changes only when a snapshot of exactly the generation before stands in the bucket: so
   whatever the restore takes away, `undo` brings back.
2. Where programs write on, so that 2 and 3 never see the same generation, their requests are held
   meanwhile (`stopped`), for STOPPED_S_MAX at most; then it is given up, and nothing was changed.
3. The whole of it holds the history lock: no garbage is collected that then still needs, and no
   flush comes between.
4. What the kernel has to forget is noted in the cache with the change, by its dirt: a daemon that
   takes over after a crash has it forgotten before anything is flushed.

Called by replicator, and the daemon (through it).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import mmap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import failpoints, journal, keys
from s3ws_fs.core.errors import ExitCode, FsError, S3wsError, UserError
from s3ws_fs.core.history import BEFORE_RESTORE, BEFORE_UNDO, SNAP_PATHS_BYTES_MAX, UNDO
from s3ws_fs.core.journal import Frame
from s3ws_fs.core.types import Outdated
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fs.rewinding import REWOUND, Rewind
from s3ws_fs.replica.base import Progress
from s3ws_fs.transfer import wire
from s3ws_fs.transfer.client import WorkerClient

TRIES_MAX: Final = 6
"""Snapshots and plans at most, until none was overtaken by a change; all but the first of them
with requests held."""
STOPPED_S_MAX: Final = 30.0
TIDY_S_MAX: Final = 10.0
"""How long the worker may take to let go of what a restore needed: nothing depends on it."""
PLAN_SILENCE_S: Final = 600.0
"""A plan of a large tree, on a slow store, may take the worker this long."""
PAIR_BYTES: Final = 24

Forget = Callable[[Outdated], Awaitable[None]]
Snap = Callable[[str, str, dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class RewindAsk:
    """What somebody wants back. `everything`: names that a restore leaves alone, too."""

    ref: str
    paths: tuple[bytes, ...] = ()
    everything: bool = False
    undoes: int | None = None
    """Of an undo, once it is known what it is of: the generation of before."""
    dry_run: bool = False

    @property
    def kind(self) -> str:
        """The kind of the snapshot of before."""
        return BEFORE_UNDO if self.ref == UNDO else BEFORE_RESTORE


@dataclass(slots=True)
class Means:
    """What the rest of the replica, and the daemon, do for a restore.

    history: while it is held, no cycle is under way. snapshot: seals, and makes that point a
    snapshot. sealed_generation: the generation of the cache that it froze. unsnap: takes a snapshot
    away that was for nothing. forget: the kernel forgets; renew: it asks anew for all names, at
    once. stopped: while it is entered, no request of the kernel is taken. chilled: some extents are
    in the bucket only.
    """

    history: Callable[[], AbstractAsyncContextManager[Any]]
    snapshot: Snap
    sealed_generation: Callable[[], int]
    unsnap: Callable[[int, str], Awaitable[None]]
    forget: Forget
    renew: Callable[[], bool]
    stopped: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    chilled: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class _Done:
    """What whoever asked is told; the changes made (None: there were none)."""

    answer: dict[str, Any]
    path: Path | None = None
    first_new: int = 0
    """Inodes from here on are new: the kernel does not know them."""


class Rewinder:
    """Restores of one mount, one at a time."""

    def __init__(self, cache: Cache, worker: WorkerClient, fs: FileSystem, means: Means) -> None:
        self._cache = cache
        self._worker = worker
        self._fs = fs
        self.means = means
        self._point = 0
        self._left: list[Outdated] = []
        self.forgotten = trio.Event()
        """The kernel has nothing cached that a restore made stale."""
        self.forgotten.set()

    # --- a restore -------------------------------------------------------------------------------

    async def run(self, ask: RewindAsk, progress: Progress) -> dict[str, Any]:
        """Bring it back (or say what that would change). Raises UserError, StoreError, FormatError,
        FsError, FencedError; then the tree is as it was.
        """
        async with self.means.history():
            progress({"phase": "comparing"})
            try:
                planned = await self._plan(ask, ask.ref)
                ask = _as_planned(ask, planned)
                if ask.dry_run or planned["is_empty"]:
                    return _answer(planned, None)
                self._require_room(planned)
                return await self._make(ask, progress)
            finally:
                with trio.CancelScope(shield=True), contextlib.suppress(S3wsError, OSError):
                    await self._worker.ask("rewound", deadline_s=TIDY_S_MAX)

    async def _plan(
        self, ask: RewindAsk, ref: str | None, warm: list[tuple[bytes, bytes]] | None = None
    ) -> dict[str, Any]:
        async def on_part(part: dict[str, Any], payload: memoryview) -> None:
            if warm is not None and "warm" in part:
                flat = bytes(payload)
                for at in range(0, len(flat), PAIR_BYTES):
                    half = at + PAIR_BYTES // 2
                    warm.append((flat[at:half], flat[half : at + PAIR_BYTES]))

        answer = await self._worker.ask(
            "rewind",
            on_part,
            ref=ref,
            number=self._point,
            paths=wire.paths_json(ask.paths),
            everything=ask.everything,
            undoes=ask.undoes,
            now_ns=self._cache.now_ns(),
            write=warm is not None,
            deadline_s=PLAN_SILENCE_S,
        )
        self._point = answer["point"]["number"]
        return answer

    def _require_room(self, planned: dict[str, Any]) -> None:
        why = self._fs.room_to_rewind(_change(planned, []))
        if why:
            raise _too_large(why)

    async def _make(self, ask: RewindAsk, progress: Progress) -> dict[str, Any]:
        until_s = math.inf
        with contextlib.ExitStack() as held:
            for attempt in range(TRIES_MAX):
                if attempt == 1:
                    # Programs write on: the next ones are made while nothing can.
                    held.enter_context(self.means.stopped())
                    until_s = trio.current_time() + STOPPED_S_MAX
                done: _Done | None = None
                with trio.CancelScope(deadline=until_s) as scope:
                    done = await self._try(ask, progress)
                if scope.cancelled_caught:
                    raise _too_slow()
                if done is not None:
                    held.close()
                    return done.answer | {"is_shown": await self._finish(done)}
        raise _too_busy()

    async def _try(self, ask: RewindAsk, progress: Progress) -> _Done | None:
        """One snapshot, plan and transaction; None when a change came between."""
        progress({"phase": "taking a snapshot of before"})
        snap = await self.means.snapshot(ask.kind, "", _said(ask))
        is_kept = False
        try:
            failpoints.hit(failpoints.REWIND_SNAPPED)
            progress({"phase": "restoring"})
            warm: list[tuple[bytes, bytes]] = []
            planned = await self._plan(ask, None, warm)
            if planned["base"] != self.means.sealed_generation():
                # Changed since it was sealed: the snapshot is not of what would be replaced.
                return None
            if planned["is_empty"]:
                return _Done(_answer(planned, None))
            path = Path(planned["file"])
            first_new = self._cache.head.next_ino
            try:
                orphans = self._fs.rewind(_change(planned, warm), _frames(path))
            except FsError as exc:
                raise _too_large(str(exc)) if exc.errno == errno.EDQUOT else exc from exc
            if orphans is None:
                return None
            # No request is served between the two: whoever asks for names sees all as it is now.
            self.means.renew()
            is_kept = True
        finally:
            if not is_kept:
                await self.means.unsnap(snap["number"], snap["id"])
        return _Done(_answer(planned, snap), path, first_new)

    async def _finish(self, done: _Done) -> bool:
        """After the commit: the kernel forgets, whatever happens to who asked; False: not all."""
        path = done.path
        if path is None:
            return True
        with trio.CancelScope(shield=True):
            is_told = True
            try:
                for frame in _frames(path):
                    is_told = await self._tell(_outdated(frame, done.first_new)) and is_told
            finally:
                path.unlink(missing_ok=True)
            if is_told:
                with contextlib.suppress(FsError):
                    self._cache.put_json(REWOUND, None)
        self._fs.look_at_orphans()
        self.means.chilled()
        return is_told

    async def _tell(self, outdated: Outdated) -> bool:
        """The kernel forgets; False when it could not be told, or the note that it has to could not
        be taken away. Then the next daemon has it forget. The restore is made, and nothing else
        may be said of it.
        """
        try:
            await self.means.forget(outdated)
        except (FsError, OSError):
            return False
        return True

    # --- after a crash ---------------------------------------------------------------------------

    def take_over(self) -> None:
        """The mount stands: note what a restore of the daemon before left to forget."""
        generation = self._cache.get_json(REWOUND)
        if generation is None:
            return
        names: list[tuple[int, bytes]] = []
        inodes: list[int] = []
        with self._cache.read() as view:
            for table, key, noted, _ in view.dirty():
                if noted < generation:
                    continue
                if table == keys.T_DENTRIES:
                    parent, _, name = keys.split_dentry_key(key)
                    names.append((parent, name))
                elif table == keys.T_INODES:
                    inodes.append(keys.unpack_u64(key))
        # What was made later is below what was made before, mostly: from the leaves up.
        self._left = [Outdated(names=tuple(reversed(names))), Outdated(attributes=tuple(inodes))]
        self.forgotten = trio.Event()

    async def finish(self) -> None:
        """Have the kernel forget what `take_over` found; it must be served by now."""
        if not self._left:
            return
        for outdated in self._left:
            await self.means.forget(outdated)
        self._left = []
        self._cache.put_json(REWOUND, None)
        self.forgotten.set()


def _as_planned(ask: RewindAsk, planned: dict[str, Any]) -> RewindAsk:
    """An undo's snapshot says what it is of; a restore is of what was asked for."""
    asked = planned["asked"]
    return replace(
        ask,
        paths=tuple(wire.paths_from(asked["paths"])),
        everything=asked["everything"],
        undoes=asked["undoes"],
    )


def _said(ask: RewindAsk) -> dict[str, Any]:
    """What the snapshot of before says, so that an undo is of the same."""
    paths = wire.paths_json(ask.paths)
    if len(json.dumps(paths)) > SNAP_PATHS_BYTES_MAX:
        paths = []
    return {"paths": paths, "everything": ask.everything}


def _change(planned: dict[str, Any], warm: list[tuple[bytes, bytes]]) -> Rewind:
    return Rewind(
        base=planned["base"],
        next_ino=planned["next_ino"],
        new_inodes=planned["new_inodes"],
        new_bytes=planned["new_bytes"],
        orphan_inodes=planned["orphan_inodes"],
        orphan_bytes=planned["orphan_bytes"],
        warm=tuple(warm),
    )


def _frames(path: Path) -> Iterator[Frame]:
    """The plan's frames, one at a time; the file is mapped, not read into memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        at, end = 0, len(mapped)
        while at < end:
            head = mapped[at : at + journal.FRAME_HEAD_BYTES]
            size = journal.FRAME_HEAD_BYTES + journal.frame_bytes(head, path.name)
            yield journal.decode_frame(mapped[at : at + size], path.name)
            at += size


def _outdated(frame: Frame, first_new: int) -> Outdated:
    if frame.table == keys.T_DENTRIES:
        split = map(keys.split_dentry_key, frame.keys)
        return Outdated(names=tuple((parent, name) for parent, _, name in split))
    if frame.table == keys.T_INODES:
        inodes = map(keys.unpack_u64, frame.keys)
        return Outdated(attributes=tuple(ino for ino in inodes if ino < first_new))
    return Outdated()


_SHOWN: Final = (
    "point", "added", "changed", "deleted", "kept", "bytes_back", "bytes_gone",
)  # fmt: skip


def _answer(planned: dict[str, Any], snapshot: dict[str, Any] | None) -> dict[str, Any]:
    """What whoever asked is told. `snapshot`: that of before; None when nothing was changed."""
    shown: dict[str, Any] = {name: planned[name] for name in _SHOWN}
    return shown | {
        "is_nothing": planned["is_empty"],
        "restored": snapshot is not None,
        "snapshot": snapshot,
        "is_shown": True,
    }


def _too_large(why: str) -> UserError:
    return UserError(
        f"the tree as it was does not fit: {why}",
        remedy="Nothing was changed. Raise WORKSPACE_MAX_SIZE_MB or WORKSPACE_MAX_FILES and mount "
        "again, or restore some paths only.",
        exit_code=ExitCode.USAGE,
    )


def _too_slow() -> UserError:
    return UserError(
        f"the state before could not be saved within {STOPPED_S_MAX:g} s while programs waited",
        remedy="Nothing was changed. Try again when the store answers faster, or less is written.",
        exit_code=ExitCode.STORE,
    )


def _too_busy() -> UserError:
    return UserError(
        "the workspace kept changing while its state was being saved",
        remedy="Nothing was changed. Stop what writes into it, and try again.",
        exit_code=ExitCode.BUSY,
    )
