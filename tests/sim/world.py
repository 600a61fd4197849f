"""One run: hosts, a store, the weather, and what everybody must agree on. One seed is one run.

Invariants
1. Everything that is random comes from the seed, and all time is simulated: the same seed, with the
   same number of operations, is the same run to the last request (`digest`).
2. What is sealed is noted at the moment its segment stands (`newest`), from the model of the host
   that froze it.

Called by the command (`python -m tests.sim`) and the tests of sim.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio
import trio.testing

from s3ws_fs.core import failpoints, journal
from s3ws_fs.core.bounds import KEEP_BOTH
from s3ws_fs.core.config import SIZE_BYTES_MIN, MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import ExitCode, StoreError
from tests.sim import quiet, strands
from tests.sim.bucket import Bucket
from tests.sim.history import HISTORY_CHANCE, History
from tests.sim.hosts import Host, Killed
from tests.sim.life import ENDS, KILL, LOSS, POWER, UNMOUNT, Life, Plan, Refused, living, only
from tests.sim.outsiders import OUTSIDERS_CHANCE, Outsiders
from tests.sim.scale import SpoolDisk, small_limits
from tests.sim.tree import Nodes, Wrong, without_orphans
from tests.sim.weather import Weather
from tests.support.faulty_store import FaultyStore

EPOCH_NS: Final = 1_700_000_000 * 10**9
TICK_NS: Final = 4_000_000
"""What the kernel's coarse clock steps by."""
FLUSHES_KEPT: Final = 64
REQUESTS_KEPT: Final = 5000
LIFE_OPERATIONS: Final = (20, 400)
SKEW_S_MAX: Final = 7200
LATE_S_MAX: Final = 20.0
"""So long a request of a dead process may still be on its way."""
QUOTA_BYTES: Final = 64 << 20
QUOTA_INODES: Final = 1_000_000
SHORT_QUOTA_CHANCE: Final = 0.3
"""Of runs, so many reach their quota all the time."""
FULL_DISK_CHANCE: Final = 0.2
"""Of runs, in so many the disk of the spools is full at times."""
ROOMY_S: Final = 200.0
FULL_S: Final = 60.0
"""So long there is room, and none, on average."""
SHORT_QUOTA_BYTES: Final = SIZE_BYTES_MIN
RETRY_MOUNT_S: Final = 20.0
RIVALS_CHANCE: Final = 0.15
AUDITED_CHANCE: Final = 0.1
"""Of ends of lives, so many are followed by an audit of the bucket as it then is."""
DEATH_CHANCE: Final = 0.3
POINTS: Final = tuple(failpoints.POINTS)
RIVAL_ENDS: Final = (UNMOUNT, KILL, POWER)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A state that was frozen, or that is sealed."""

    host: Host
    generation: int
    nodes: Nodes
    number: int = 0


class World:
    """See the module."""

    def __init__(self, seed: int, operations: int, base: Path, disk: SpoolDisk) -> None:
        self.seed = seed
        self.base = base
        self._left = operations
        self.rng = random.Random(f"{seed} world")
        self.ids = random.Random(f"{seed} ids")
        self.clock = trio.testing.MockClock(autojump_threshold=0)
        self.weather = Weather(random.Random(f"{seed} weather"), self.now_s)
        self.counts: Counter[str] = Counter()
        self._hash = hashlib.sha256()
        self.trace: list[str] | None = None
        self.lives = 0
        self.oldest_s = 0.0
        self.nursery: trio.Nursery
        self._hosts: dict[str, Host] = {}
        self._pid = 0
        self._flushes: dict[str, Frozen] = {}
        self.newest: Frozen | None = None
        self.sealed: dict[int, Frozen] = {}
        """The newest ones, by number."""
        self._lates_known = 0
        self._late: list[Callable[[], object]] = []
        self.quota_bytes, self.quota_inodes = QUOTA_BYTES, QUOTA_INODES
        self.disk = disk
        disk.on_refused = self._spool_refused
        self._disk_rng = random.Random(f"{seed} disk")
        self.fills_disk = self._disk_rng.random() < FULL_DISK_CHANCE
        """Whether the disk of the spools is full at times."""
        room = random.Random(f"{seed} room")
        if room.random() < SHORT_QUOTA_CHANCE:
            self.quota_bytes = SHORT_QUOTA_BYTES
            self.quota_inodes = room.choice([30, 60, QUOTA_INODES])
        past = random.Random(f"{seed} history")
        self.has_history = past.random() < HISTORY_CHANCE
        """Whether people take snapshots and restore in this run."""
        self.history = History(self, past)
        prefix = self._workspace.prefix
        # The server's clock is another one, and goes wrong as it likes.
        skew_ns = self.ids.randrange(-SKEW_S_MAX, SKEW_S_MAX) * 10**9
        self.bucket = Bucket(
            lambda: self.coarse_ns() + skew_ns, prefix, self._sealed, self.history.was_put
        )
        self.outsiders: Outsiders | None = None
        outside = random.Random(f"{seed} outside")
        if outside.random() < OUTSIDERS_CHANCE:
            self.come_outsiders(Outsiders(self, outside))
        self.faulty = FaultyStore(self.bucket, self.weather.choose)
        self.on_life: Callable[[Life], None] = lambda _: None
        """Told of each life when its parts are there: for bugs put in on purpose."""
        self.allow_unconditional = False

    @property
    def attaches(self) -> bool:
        """Whether mounts bring in what others do, and restore: as real ones do."""
        return self.outsiders is not None or self.has_history

    def come_outsiders(self, outsiders: Outsiders | None) -> None:
        """Somebody else changes the mirror in this run, or nobody does."""
        self.outsiders = self.bucket.outsiders = outsiders
        self.weather.spares_mirror = outsiders is not None

    def _spool_refused(self) -> None:
        self.weather.trouble()
        self.count("spool refused")

    async def _fill_disk(self) -> None:
        """Somebody else fills it, and clears it again."""
        while True:
            await trio.sleep(self._disk_rng.expovariate(1 / ROOMY_S))
            self.disk.is_full = not self.weather.stays_fair
            await trio.sleep(self._disk_rng.expovariate(1 / FULL_S))
            self.disk.is_full = False

    # --- what others ask -----------------------------------------------------------------------

    @property
    def _workspace(self) -> WorkspaceId:
        return WorkspaceId("u", "sim")

    @property
    def prefix(self) -> str:
        """Of the workspace, in the bucket."""
        return self._workspace.prefix

    def config(self, host: Host) -> MountConfig:
        """What a mount on this host is configured to."""
        return MountConfig(
            mountpoint="/mnt",
            workspace=self._workspace,
            store=StoreConfig(
                type="local", path="/bucket", allow_unconditional=self.allow_unconditional
            ),
            cache_dir=str(host.base),
            runtime_dir="/run",
            max_size_bytes=self.quota_bytes,
            max_inodes=self.quota_inodes,
            take_over=True,
            **(self.history.limits if self.has_history else {}),
            outside_changes=KEEP_BOTH if self.outsiders is None else self.outsiders.policy,
        )

    def now_s(self) -> float:
        """Simulated time; also within a strand."""
        return self.clock.current_time()

    def coarse_ns(self) -> int:
        """Time of day, as everybody has it."""
        now_ns = EPOCH_NS + int(self.now_s() * 1e9)
        return now_ns - now_ns % TICK_NS

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def note(self, *what: Any) -> None:
        """An event, for the digest."""
        line = f"{self.now_s():.6f} " + " ".join(map(str, what))
        self._hash.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)
        self.counts["events"] += 1

    @property
    def digest(self) -> str:
        """Of all events so far."""
        return self._hash.hexdigest()[:32]

    def operation(self, name: str, host: str) -> None:
        """A person does something."""
        self.counts["operations"] += 1
        self.counts[name.lstrip("_")] += 1
        self.note("operation", host, name)

    # --- sealing -------------------------------------------------------------------------------

    def frozen(self, host: Host, flush_id: str, generation: int) -> None:
        """A freeze was made: what it holds is what the model holds now."""
        branch = host.branch
        assert branch is not None
        if branch.generation != generation:
            raise Wrong(f"frozen at {generation}, the model is at {branch.generation}")
        self._flushes[flush_id] = Frozen(host, generation, without_orphans(branch.nodes))
        while len(self._flushes) > FLUSHES_KEPT:
            del self._flushes[next(iter(self._flushes))]

    def _sealed(self, header: journal.Header) -> None:
        before = 0 if self.newest is None else self.newest.number
        if header.number != before + 1:
            raise Wrong(f"segment {header.number} was put after {before}")
        if not (header.puts or header.tombs) and header.flush_id not in self._flushes:
            self._fenced(header)
            return
        flush = self._flushes[header.flush_id]
        cache = flush.host.cache
        if cache is not None and cache.points.durable_generation < flush.generation:
            durable = cache.points.durable_generation
            raise Wrong(f"sealed {flush.generation}, but a sync point covers {durable} only")
        self.newest = Frozen(flush.host, flush.generation, flush.nodes, header.number)
        self.sealed[header.number] = self.newest
        self.sealed.pop(header.number - FLUSHES_KEPT, None)
        if flush.host.number == before:
            flush.host.number = header.number
        if cache is not None:
            flush.host.fsynced = max(flush.host.fsynced, flush.generation)
        self.history.states[header.number] = flush.nodes
        if self.outsiders is not None:
            self.outsiders.sealed(flush.nodes)
        self.count("seals")
        self.note("sealed", flush.host.name, header.number, flush.generation)

    def _fenced(self, header: journal.Header) -> None:
        """A host took over: all is as it was, but nobody else can seal the next number."""
        host, before = self._hosts[header.host], self.newest
        generation = 0 if before is None else before.generation
        if header.generation != generation:
            raise Wrong(f"a fence at {header.generation} after {generation}")
        nodes = {} if before is None else before.nodes
        self.newest = Frozen(host, generation, nodes, header.number)
        self.sealed[header.number] = self.newest
        self.history.states[header.number] = nodes
        if host.number == header.number - 1:
            host.number = header.number
        self.count("fences")
        self.note("fenced", host.name, header.number)

    def newest_of(self, host: Host) -> int:
        """Generation of what is sealed."""
        return 0 if self.newest is None else self.newest.generation

    def may_be_fenced(self, host: Host) -> bool:
        """Whether the bucket went on without this host, or another one has taken the lease."""
        if self.bucket.lease_host not in (None, host.name):
            return True
        return self.newest is not None and self.newest.number > host.number

    def apply_late(self, apply: Callable[[], object]) -> None:
        """A request of a process that died arrives all the same."""
        self._late.append(apply)

    def release_late(self) -> None:
        """A process is dead: what it had under way comes when it comes."""
        late, self._late = self._late, []
        for apply in late:
            self.nursery.start_soon(self._apply, apply)

    async def _apply(self, apply: Callable[[], object]) -> None:
        await trio.sleep(self.rng.uniform(0, LATE_S_MAX))
        self.count("applied late")
        self.note("applied late")
        with contextlib.suppress(StoreError):
            apply()

    # --- the run -------------------------------------------------------------------------------

    def new_host(self) -> Host:
        host = Host(self, len(self._hosts) + 1, self.base)
        self._hosts[host.name] = host
        return host

    async def run(self) -> None:
        """All of it. Raises Wrong."""
        failpoints.hook = self._passed
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self.weather.run)
            if self.outsiders is not None:
                self.nursery.start_soon(self.outsiders.run)
            if self.fills_disk:
                self.nursery.start_soon(self._fill_disk)
            host = self.new_host()
            while self._left > 0:
                if self.rng.random() < RIVALS_CHANCE:
                    host = await self._rivals(host)
                    continue
                plan = self._plan(self.rng.choice(ENDS))
                await self._life(host, plan)
                if plan.end == LOSS or host.is_refused:
                    host = self._another(host)
            self.weather.stays_fair = True
            self.weather.clear()
            self.disk.is_full = False
            await self._life(host, Plan(0, UNMOUNT, settles=True))
            if host.is_refused:
                await self._life(self._another(host), Plan(0, UNMOUNT, settles=True))
            self.nursery.cancel_scope.cancel()

    def _plan(self, end: str) -> Plan:
        rng = self.rng
        operations = min(self._left, rng.randrange(*LIFE_OPERATIONS))
        self._left -= operations
        settles = rng.random() < 0.3
        if rng.random() < DEATH_CHANCE:
            return Plan(operations, end, settles, rng.randrange(1, 4), rng.choice(POINTS))
        if rng.random() < DEATH_CHANCE:
            return Plan(operations, end, settles, rng.randrange(1, 2000))
        return Plan(operations, end, settles)

    async def _life(self, host: Host, plan: Plan) -> None:
        """One life, from the first try to mount to its end (or until the host is fenced)."""
        self.lives += 1
        self.count(f"end {plan.end}")
        while True:
            life = Life(self, host, plan)
            before = life.done
            try:
                await life.run()
            except Refused as exc:
                if exc.code == ExitCode.FENCED:
                    self.count("caches given up")
                    host.is_refused = True
                    return
                await trio.sleep(RETRY_MOUNT_S)
                continue
            if self.rng.random() < AUDITED_CHANCE:
                quiet.check_bucket(self)
                self.count("audited")
            if not (plan.dies_at and host.is_gone and life.done == before):
                return
            # It died before anybody came: that was none.
            plan = Plan(plan.operations, plan.end, plan.settles)

    async def _rivals(self, host: Host) -> Host:
        """Two hosts mount at once; returns the one that goes on."""
        self.count("rivals")
        rng = self.rng
        other = self.new_host()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._life, host, self._plan(rng.choice(RIVAL_ENDS)))
            await trio.sleep(rng.uniform(0, 60))
            if rng.random() < 0.6:
                host.lose_touch(rng.uniform(20, 300))
            await self._life(other, self._plan(rng.choice(RIVAL_ENDS)))
        wins = other if self.newest is not None and self.newest.host is other else host
        loser = host if wins is other else other
        shutil.rmtree(loser.base)
        return self._another(wins) if wins.is_refused else wins

    def _another(self, host: Host) -> Host:
        shutil.rmtree(host.base)
        return self.new_host()

    def _passed(self, point: str) -> None:
        """A failpoint is passed: perhaps the daemon or the worker dies there."""
        strand = strands.current()
        life = living.get(None) if strand is None else strand.owner.host.life
        if life is None or (host := life.host).cache is None:
            return
        if host.is_gone:
            if strand is None:
                raise Killed
            return
        if point == failpoints.SYNC_FLUSHED:
            host.flushed()
        if life.plan.point not in ("", point):
            return
        life.passes_left -= 1
        if life.passes_left != 0:
            return
        self.note("dies at", point)
        self.counts[f"died at {point}"] += 1
        if strand is not None:
            strands.wait(host.process_dies)
            raise strands.Died
        host.died_at = point
        if life.plan.end == POWER:
            host.cut_power()
        else:
            host.die()
        raise Killed

    @property
    def awaits_late(self) -> bool:
        """Whether something came late since the mirror was last known to be listed after it."""
        return self._lates() != self._lates_known

    def _lates(self) -> int:
        """How much came late so far, or when nobody knew of it any more."""
        return self.counts["applied late"] + self.weather.seen["fault late"]

    async def settle(self, life: Life) -> None:
        """Fair weather until everything is in step; then everything is looked at."""
        self.weather.stays_fair = True
        self.weather.clear()
        self.disk.is_full = False
        if self.awaits_late:
            # What came late may stand where a listing was before it: another one is due.
            await trio.sleep(LATE_S_MAX)
            life.cache.put_json("mirror_known", False)
            self._lates_known = self._lates()
        await quiet.settle(self, life)
        self.count("settled")
        self.weather.stays_fair = False


def simulate(
    seed: int, operations: int, prepare: Callable[[World], None] = lambda _: None
) -> World:
    """A whole run. Raises Wrong; what was counted is in the World."""
    base = Path(tempfile.mkdtemp(prefix="s3ws-sim-", dir="/dev/shm"))
    try:
        disk = SpoolDisk()
        with _repeatable(seed), small_limits(seed, disk):
            world = World(seed, operations, base, disk)
            prepare(world)
            trio.run(world.run, clock=world.clock)
        return world
    except BaseExceptionGroup as group:
        raise only(group) from group
    finally:
        failpoints.hook = None
        strands.end_threads()
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Trio chooses at random who runs first: by the seed, as its plugin for hypothesis has it."""
    run = trio._core._run
    before = run._ALLOW_DETERMINISTIC_SCHEDULING
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
