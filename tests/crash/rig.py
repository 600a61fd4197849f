"""Every point, not random points: a workload is run once, and what a crash would leave is kept.

While a workload runs (in one thread: tests/support/inline.py), each failpoint it passes and each
request it makes is an event. At each event the durable state is kept: the cache's files as the
kernel has them, which is what SIGKILL leaves, and as the disk has them for sure, which is the least
that a power cut leaves; and the bucket. Then each state that differs from the one before is put
back, and all that must hold after a crash there is looked at.

Invariants
1. Nothing becomes durable between two events: the engine's commits, the side file's writes and the
   store's changes each have one before and one after.
2. States are put back into the same file (the same inode number): a copy of a cache is another
   writer by design (replica/position.py).
3. What a state must show comes from the model alone, by the generation that it says it has.

Called by test_every_point, ace, and the negative controls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from unittest import mock

import trio
from trio.testing import MockClock

from s3ws_fs.cache import bookkeeping, checking, syncpoint
from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.core import failpoints, history
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import FsError, UserError
from s3ws_fs.core.findings import Report, Severity
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.core.types import NeedExtents
from s3ws_fs.replica import flusher, restore
from s3ws_fs.replica.rewind import RewindAsk
from s3ws_fs.store.base import ObjectStore
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import freeze, garbage, journaling, points
from s3ws_fs.transfer import mirror as mirroring
from s3ws_fs.transfer.audit import LocalSide, audit
from tests.replica.conftest import Mount
from tests.support.armed import listening
from tests.support.faulty_store import Fault, FaultyStore, Request, nothing
from tests.support.files_model import Files, Op, State, differences, perform, shown
from tests.support.history import tree_of
from tests.support.inline import BOOT, START_NS, Ticks, at_once, inline_config, inline_mount

OTHER_BOOT: Final = "boot-2"
STORE_STEP_NS: Final = 600 * 10**9
"""The store's clock moves so far with each change: garbage gets older than an hour soon."""

SYNC: Final = "sync"
FINAL: Final = "final"
HYDRATE: Final = "hydrate"
DIE: Final = "die"
UNDO: Final = "undo"
Step = Op | str
"""An operation, or one of SYNC, FINAL, HYDRATE, DIE, UNDO, or one of these with a name behind it.

REWIND brings the snapshot of that name back, UNDO what was before.
"""
SNAPSHOT: Final = "snapshot "
MARK: Final = "mark "
DROP: Final = "drop "
REWIND: Final = "rewind "

DATA: Final = Path(DATA_DIR) / DATA_FILE
FILES: Final = (DATA, Path(syncpoint.SIDE_FILE), Path(syncpoint.BOOT_FILE), Path("identity.json"))
FINE: Final = (Severity.NOTE, Severity.PENDING)

INJECTED: Final = (errno.EIO, errno.ENOSPC)
"""What no operation of a workload says by itself."""

TRIES_MAX: Final = 4
"""How often a step is tried when faults are injected."""

Images = dict[Path, bytes]


def ignore(_: object) -> None:
    """Nothing happens at a point."""


def small_limits() -> contextlib.ExitStack:
    """Everything that comes in batches comes in several: small workloads reach every point."""
    stack = contextlib.ExitStack()
    for where, name, value in (
        (bookkeeping.Bookkeeping.forget, "__defaults__", (b"", 4)),
        (flusher, "CHECKPOINT_EVERY_SEGMENTS", 2),
        (flusher, "RECORD_BATCH", 3),
        (freeze, "BLOB_FILE_BYTES_MIN", 40_000),
        (garbage, "GARBAGE_BATCH", 1),
        (mirroring, "RESULTS_BATCH", 2),
        (restore, "BATCH_RECORDS", 5),
    ):
        stack.enter_context(mock.patch.object(where, name, value))
    return stack


class Died(BaseException):
    """The process of a rig is killed."""


class StoreClock:
    """The store's clock: a step a change."""

    def __init__(self) -> None:
        self._ns = START_NS

    def __call__(self) -> int:
        self._ns += STORE_STEP_NS
        return self._ns


@dataclass(slots=True, repr=False)
class Known:
    """What the outside was told so far, as generations, and the states they stand for."""

    states: dict[int, State] = field(default_factory=dict)
    acknowledged: int = 0
    synced: int = 0
    """Newest generation whose fsync was answered."""
    sealed: int = 0
    """Newest generation of which a sync said that it is in the bucket."""


@dataclass(frozen=True, slots=True, repr=False)
class Crash:
    """What a crash at one event would leave. `at_least` is the disk's part of it."""

    number: int
    event: str
    files: Images
    at_least: Images
    store: MemoryStore
    acknowledged: int
    synced: int
    sealed: int
    slack: int = 1


@dataclass(repr=False)
class Rig:
    """A workload's run. `base` is an empty directory, best one in memory."""

    base: Path
    store: Any = field(default_factory=lambda: MemoryStore(now_ns=StoreClock()))
    """A MemoryStore; any other while crashes are not kept."""
    files: Files = field(default_factory=Files)
    known: Known = field(default_factory=Known)
    crashes: list[Crash] = field(default_factory=list)
    events: int = 0
    opened: int = 0
    """The event at which the cache was open for the first time."""
    passed: Counter[str] = field(default_factory=Counter)
    on_known: Callable[[Known], None] = ignore
    is_watching: bool = True
    """Whether crashes are kept. When not, faults may be injected, and are borne."""
    slack: int = 1
    """How many changes may be under way unanswered: more than one when the daemon makes them."""
    allowed: int = 1
    """The same, of the crash that is looked at."""
    fine: tuple[Severity, ...] = FINE
    """What may be found in the bucket after a crash."""
    seed: int = 1
    snapshots_seen: int = 0
    choose: Callable[[Request], Fault | None] = nothing
    on_point: Callable[[str], None] = ignore

    def __post_init__(self) -> None:
        # History goes at the next collection, but for what was named.
        self.config = replace(inline_config(self.base), history_hours=0.0, snapshot_days=0.0)
        self.faulty = FaultyStore(self.store, self._on_request)
        self.known.states[0] = Files().state()
        self._disk: Images = {}
        self._before: tuple[object, ...] = ()
        self._left: list[Step] = []
        self._taken: dict[str, Files] = {}
        self._undone = Files()
        self._is_mounted = False
        self.refused: list[str] = []

    @classmethod
    def after(cls, other: Rig, base: Path, **more: Any) -> Rig:
        """A fresh cache on what another one left in its bucket."""
        made = cls(base, other.store.fork(), other.files.copy(), seed=other.seed + 1, **more)
        sealed = newest_generation(other.store)
        made.known = Known({sealed: other.files.state()}, sealed, sealed, sealed)
        return made

    @property
    def directory(self) -> Path:
        """The cache's."""
        return Path(self.config.workspace_cache_dir)

    # --- running ---------------------------------------------------------------------------

    def run(self, steps: Sequence[Step]) -> None:
        """Mount, do the steps, close. Events are kept."""
        with small_limits(), listening(self._on_point):
            trio.run(self._run, steps, clock=MockClock(autojump_threshold=0))
        self._keep("the end")

    def remount(self) -> None:
        """Verify after a remount, without faults: never only through the same mount."""
        self.choose, self.on_point = nothing, ignore
        self.run(())

    def run_and_die(self, steps: Sequence[Step]) -> None:
        """The same, but at the end nothing is closed: the process is killed there."""
        with contextlib.suppress(Died):
            self.run([*steps, DIE])

    async def _run(self, steps: Sequence[Step]) -> None:
        self._left = list(steps)
        for tries in range(1, TRIES_MAX + 1):
            try:
                await self._life()
            except (UserError, FsError, OSError) as exc:
                # Opening or closing was refused, as it may be when something failed: once more.
                if not self._struck() or tries == TRIES_MAX or self._is_mounted:
                    raise
                self.refused.append(f"{type(exc).__name__}: {exc}")
            else:
                return

    async def _life(self) -> None:
        """One mount, doing what is left to do."""
        async with inline_mount(self.config, self.faulty, seed=self.seed) as mount:
            self._is_mounted = True
            self._acknowledge(mount)
            while self._left:
                await self._patiently(mount, self._left[0])
                del self._left[0]
            if not self.is_watching:
                self.faulty.settle()
                _require_same(self.files.state(), await seen(mount), "the mount")
                self.require_in_step(mount, self.store, self.files.state())
            self._is_mounted = False

    async def _patiently(self, mount: Mount, step: Step) -> None:
        """A step; when a fault that was injected is told, it is tried again, as a person does."""
        for tries in range(1, TRIES_MAX + 1):
            try:
                await self.step(mount, step)
            except (UserError, FsError, OSError) as exc:
                if not self._struck() or tries == TRIES_MAX:
                    raise
                self.refused.append(f"{type(exc).__name__}: {exc}")
            else:
                return

    def _struck(self) -> bool:
        return not self.is_watching

    async def step(self, mount: Mount, step: Step) -> None:
        """One step, with the model beside it."""
        known = self.known
        if isinstance(step, Op):
            await self._operate(mount, step)
        elif step == SYNC:
            result = await mount.sync()
            assert not result["conflicts"], result
            known.sealed = max(known.sealed, result["sealed"])
            self.on_known(known)
        elif step.startswith((SNAPSHOT, MARK)):
            kind = history.NAMED if step.startswith(SNAPSHOT) else history.TURN_BEGIN
            taken = await mount.replica.snapshot(kind, step.split()[1])
            self._taken[step.split()[1]] = self.files.copy()
            known.sealed = max(known.sealed, taken["generation"])
            self.on_known(known)
        elif step.startswith(DROP):
            await mount.replica.history.drop(step.split()[1])
        elif step == DIE:
            self._keep("killed")
            self.is_watching = False
            raise Died
        elif step == FINAL:
            assert await mount.replica.final_flush(ignore) == []
            known.sealed = known.acknowledged
            self.on_known(known)
        elif step.startswith(REWIND):
            name = step.split()[1]
            await self._rewind(mount, name, self._taken[name])
        elif step == UNDO:
            await self._rewind(mount, UNDO, self._undone)
        else:
            assert step == HYDRATE
            await mount.replica.hydrate()

    async def _rewind(self, mount: Mount, ref: str, back: Files) -> None:
        # Before it is done, as in `_operate`.
        self.known.states[mount.cache.generation + 1] = back.state()
        result = await mount.replica.rewind(RewindAsk(ref), ignore)
        assert result["restored"], result
        self.files, self._undone = back.copy(), self.files
        self._acknowledge(mount)
        self._drop_orphans(mount)

    async def _operate(self, mount: Mount, op: Op) -> None:
        wanted = self.files.apply(op)
        state = self.files.state()
        # Before it is done: a crash in the midst of it may show it.
        self.known.states[mount.cache.generation + 1] = state
        got = await self._perform(mount, op)
        assert got == wanted, f"{op}: {got}, the model says {wanted}"
        if op.kind == "fsync" and not got:
            mount.cache.sync_point()
            self.known.synced = mount.cache.generation
        self._acknowledge(mount)
        self._drop_orphans(mount)

    def _drop_orphans(self, mount: Mount) -> None:
        if mount.fs._orphans:
            self.known.states[mount.cache.generation + 1] = self.files.state()
            for ino in list(mount.fs._orphans):
                mount.fs.forget(ino)
            mount.fs.reap()
            self._acknowledge(mount)

    async def _perform(self, mount: Mount, op: Op) -> int:
        """Do it, fetching what is cold; once more when it failed by an injected fault."""
        for _ in range(TRIES_MAX):
            got = perform(mount.fs, op)
            if isinstance(got, NeedExtents):
                try:
                    await mount.replica.fetch(got)
                except FsError as exc:
                    got = exc.errno
            if got in INJECTED and self._struck():
                self.refused.append(f"{op}: {errno.errorcode[got]}")
            elif not isinstance(got, NeedExtents):
                return got
        raise AssertionError(f"{op} does not come to an end")

    def _acknowledge(self, mount: Mount) -> None:
        self.known.acknowledged = mount.cache.generation
        self.known.states[mount.cache.generation] = self.files.state()
        self._keep("answered")
        self.on_known(self.known)

    # --- keeping ---------------------------------------------------------------------------

    def _on_request(self, request: Request) -> Fault | None:
        self._keep(f"request {request.number} {request.op} {request.key}")
        return self.choose(request)

    def _on_point(self, point: str) -> None:
        self.passed[point] += 1
        self._keep(point)
        self.on_point(point)

    def _keep(self, event: str) -> None:
        self.events += 1
        if event == failpoints.OPEN_AFTER and not self.opened:
            self.opened = self.events
        if not self.is_watching or not (self.directory / DATA).exists():
            return
        files = read_files(self.directory)
        self._disk.setdefault(DATA, files[DATA])
        if event == failpoints.SYNC_FLUSHED:
            self._disk[DATA] = files[DATA]
        if event != failpoints.SYNC_WRITTEN:
            # Written and flushed in one go, but for a slot that is written just now.
            self._disk |= {path: raw for path, raw in files.items() if path != DATA}
        state = (files, dict(self._disk), self.store.version)
        known = self.known
        crash = Crash(
            self.events,
            event,
            files,
            dict(self._disk),
            self.store.fork(),
            known.acknowledged,
            known.synced,
            known.sealed,
            self.slack,
        )
        if state == self._before:
            # The same state, but perhaps more was promised of it.
            self.crashes[-1] = crash
        else:
            self.crashes.append(crash)
            self._before = state

    # --- looking ---------------------------------------------------------------------------

    def killed(self, crash: Crash) -> None:
        """What must hold after SIGKILL there. Raises AssertionError."""
        with self._about(crash, "killed"):
            write_files(self.directory, crash.files)
            self.allowed = crash.slack
            self.look(crash.store.fork(), crash.store.fork(), crash.acknowledged, crash.sealed)

    def look(self, bucket: ObjectStore, again: ObjectStore, acknowledged: int, sealed: int) -> None:
        """What must hold now that the process was killed: of the cache that stands here, and of the
        bucket, once to be read and changed by others, and once to go on with."""
        with small_limits():
            if (self.directory / DATA).exists():
                self._check_cache(BOOT)
            there = self._check_bucket(bucket, sealed)
            generation = self._go_on(again, BOOT)
            low, high = acknowledged, acknowledged + self.allowed
            assert low <= generation <= high, f"head is {generation}, {low} was answered"
            assert generation >= there

    def power_cut(self, crash: Crash, *, least: bool) -> None:
        """What must hold after a power cut there; `least`: nothing reached the disk by itself."""
        files = crash.at_least if least else crash.files
        with self._about(crash, "power cut" + " (least)" * least), small_limits():
            write_files(self.directory, files)
            if any(syncpoint.read_slots(self.directory)):
                self._check_cache(OTHER_BOOT)
            else:
                assert crash.number < self.opened, "it was open, and there is no sync point"
            sealed = newest_generation(crash.store)
            generation = self._go_on(crash.store.fork(), OTHER_BOOT)
            low, answered = crash.synced, crash.acknowledged
            high = answered + crash.slack
            assert low <= generation <= high, f"{generation}, synced {low}, answered {answered}"
            assert generation >= sealed, f"the cache is at {generation}, the bucket at {sealed}"

    @contextlib.contextmanager
    def _about(self, crash: Crash, how: str) -> Iterator[None]:
        try:
            yield
        except BaseException as exc:
            where = failpoints.POINTS.get(crash.event, "")
            raise AssertionError(f"{how} at event {crash.number}, {crash.event}: {where}") from exc

    def _check_cache(self, boot_id: str) -> None:
        checked = checking.check_cache(self.directory, ignore, boot_id=boot_id)
        require_fine(checked.report)

    def _check_bucket(self, store: ObjectStore, sealed: int) -> int:
        """The bucket alone: sound, and one instant, at or after what was promised."""
        generation = newest_generation(store)
        assert generation >= sealed, f"{generation} is sealed, {sealed} was said to be"
        require_fine(audit(self._scoped(store), at_once(), ignore).report, self.fine)
        self._check_snapshots(self._scoped(store))
        if generation:
            wanted = self.known.states[generation]
            found = restored(self.base / "second", store, self.config)
            _require_same(wanted, found, "restored from the bucket")
        return generation

    def _check_snapshots(self, store: ScopedStore) -> None:
        """Each that stands shows the files of its moment, every byte of them."""
        if journaling.read_workspace(store) is None:
            return
        survey = points.survey_points(store)
        for snap in survey.snapshots(store, at_once()):
            assert isinstance(snap, history.Snapshot), snap
            found = tree_of(points.load(store, snap.number, survey, at_once()), store)
            # Of an earlier host's no state is known: then its bytes' digests say enough.
            state = self.known.states.get(snap.generation, {})
            wanted = {path: shown[1] for path, shown in state.items() if shown[0] == "file"}
            assert {path: found.get(os.fsencode(path)) for path in wanted} == wanted, snap
            self.snapshots_seen += 1

    def _scoped(self, store: ObjectStore) -> ScopedStore:
        return ScopedStore(store, self.config.workspace.prefix)

    def _go_on(self, store: ObjectStore, boot_id: str) -> int:
        """The next mount: it shows what it must, saves all of it, and ends. Its generation."""
        return trio.run(self._next_mount, store, boot_id, clock=MockClock(autojump_threshold=0))

    async def _next_mount(self, store: ObjectStore, boot_id: str) -> int:
        generations: list[int] = []

        def on_open(cache: Cache) -> None:
            generations.append(cache.generation if cache.restore_complete else -1)

        clock = Ticks()
        clock.ns += 10**12
        async with inline_mount(
            self.config, store, boot_id=boot_id, seed=99, now_ns=clock, on_open=on_open
        ) as mount:
            generation = generations[0]
            if generation < 0:
                # It was not whole: the workspace is what the bucket says.
                generation = newest_generation(store)
            wanted = self.known.states[generation]
            _require_same(wanted, await seen(mount), "the next mount")
            await mount.sync()
            wanted = await self.saved(mount, store, wanted)
            assert await mount.replica.final_flush(ignore) == []
            self.require_in_step(mount, store, wanted)
        return generation

    async def saved(self, mount: Mount, store: ObjectStore, wanted: State) -> State:
        """What the next mount has saved by its first sync, of which it showed `wanted`."""
        return wanted

    def require_in_step(self, mount: Mount, store: ObjectStore, wanted: State) -> None:
        """The bucket is the cache: journal by audit, mirror by the model."""
        local = self._local_side(mount.cache)
        done = audit(self._scoped(store), at_once(), ignore, local=local)
        require_fine(done.report, (Severity.NOTE,))
        require_mirror(self._scoped(store), wanted)

    def _local_side(self, cache: Cache) -> LocalSide:
        checked = checking.Checked(Report(), prefix=self.config.workspace.prefix)
        checking.check_records(cache, checked, ignore)
        require_fine(checked.report, (Severity.NOTE,))
        assert checked.tables is not None and checked.values is not None
        return LocalSide(cache, checked.tables, checked.values)


async def seen(mount: Mount) -> State:
    """What a mount shows; cold bytes are fetched."""
    while isinstance(found := shown(mount.fs), NeedExtents):
        await mount.replica.fetch(found)
    return found


def restored(directory: Path, store: ObjectStore, config: MountConfig) -> State:
    """What a fresh cache shows that is hydrated from the bucket."""

    async def look() -> State:
        own = inline_config(directory)
        async with inline_mount(own, store, seed=7) as mount:
            await mount.replica.hydrate()
            return await seen(mount)

    shutil.rmtree(directory, ignore_errors=True)
    return trio.run(look, clock=MockClock(autojump_threshold=0))


def newest_generation(store: ObjectStore) -> int:
    """What the bucket is at: the generation that its newest segment says; 0 before the first."""
    config = inline_config(Path("/"))
    state = journaling.survey(ScopedStore(store, config.workspace.prefix))
    return 0 if state.header is None else state.header.generation


def _require_same(wanted: State, got: State, what: str) -> None:
    found = differences(wanted, got)
    assert not found, f"{what}: " + "; ".join(found[:10])


def require_fine(report: Report, fine: Sequence[Severity] = FINE) -> None:
    bad = [finding for finding in report.findings if finding.severity not in fine]
    assert not bad, bad


def require_mirror(store: ScopedStore, wanted: State) -> None:
    names = {FILES_PREFIX + path: shown for path, shown in wanted.items() if shown[0] != "dir"}
    standing = {entry.key for entry in store.list(FILES_PREFIX)}
    assert standing == set(names), f"mirror: {sorted(standing ^ set(names))}"
    for key, (_, data, _, _) in names.items():
        assert store.get(key).data == data, f"mirror: {key} has other bytes"


def read_files(directory: Path) -> Images:
    """A cache's files, as the kernel has them."""
    found = {}
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            found[name] = (directory / name).read_bytes()
    return found


def write_files(directory: Path, files: Images) -> None:
    """Put a cache's files back, into the same inode (invariant 2): it is kept aside, should a
    mount put the database elsewhere."""
    kept, data = directory.parent / "kept.mdb", directory / DATA
    if not kept.exists():
        kept.hardlink_to(data)
    if not data.exists() or not data.samefile(kept):
        shutil.rmtree(directory)
        data.parent.mkdir(parents=True)
        data.hardlink_to(kept)
    for other in (Path(DATA_DIR) / "lock.mdb", *FILES):
        if other not in files:
            (directory / other).unlink(missing_ok=True)
    for name, raw in files.items():
        fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(fd, 0)
        os.pwrite(fd, raw, 0)
        os.close(fd)


def close_lock(cache: Cache) -> None:
    """Release the lock of a cache that was let go, as the end of its process does."""
    os.close(cache._lock_fd)


def fast_directory(name: str) -> Any:
    """A directory in memory, where fsync costs nothing; elsewhere when there is none."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix=name, dir=place)
