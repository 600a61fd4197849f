"""One life of a daemon on a host: from opening the cache to its end, whichever that is.

Invariants
1. What is opened is what the model says: after a kill the head, after a power cut a sync point not
   older than any fsync, on a fresh host exactly what is sealed.
2. In fair weather the oldest dirt is never older than the limit, and an end that is asked for saves
   everything.

Called by the modules of sim only.
"""

from __future__ import annotations

import errno
import random
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cache.checking import Checked, check_records
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.clock import Clock
from s3ws_fs.core.errors import ExitCode, FsError, UserError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.daemon.parts import Reaper, identity
from s3ws_fs.replica.replicator import Replicator
from tests.sim.filesystem import SimFileSystem
from tests.sim.hosts import Host, Killed
from tests.sim.people import EXCUSE_S, Person
from tests.sim.tree import Branch, Node, Nodes, Wrong, differences

if TYPE_CHECKING:
    from s3ws_fs.fuse.invalidate import KernelCache
    from tests.sim.world import World

MARK: Final = "simulation"
"""A meta value that is gone when the cache was made anew."""
DIRT_SLACK_S: Final = 20.0
"""Beyond the debounce's maximum: a flush takes its time."""
CALM_S: Final = 150.0
"""After trouble, waits between tries may be this long in all."""
CHECKED_CHANCE: Final = 0.2
"""Of comparisons with the model, so many are followed by the checker's."""
LOOK_S: Final = 10.0

UNMOUNT: Final = "unmount"
KILL: Final = "kill"
POWER: Final = "power cut"
LOSS: Final = "host lost"
ENDS: Final = (UNMOUNT, KILL, KILL, POWER, LOSS)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a life goes: operations, its end, whether everything is looked at before, and at which
    passing (0: none) of which failpoint ("": any) the daemon or the worker dies."""

    operations: int
    end: str
    settles: bool = False
    dies_at: int = 0
    point: str = ""


living: ContextVar[Life] = ContextVar("living")
"""Whose code runs, on the loop's thread."""


class Refused(Exception):
    """The mount did not come to be."""

    def __init__(self, code: ExitCode) -> None:
        self.code = code


class Life:
    """See the module."""

    def __init__(self, world: World, host: Host, plan: Plan) -> None:
        self.world = world
        self.host = host
        self.plan = plan
        self.last_ns = 0
        self.passes_left = plan.dies_at
        self.done = 0
        """Operations of people."""
        self._clock = Clock(world.coarse_ns)
        self._scope = trio.CancelScope()
        self.cache: Cache
        self.fs: SimFileSystem
        self._hydrated = trio.Event()

    @property
    def branch(self) -> Branch:
        assert self.host.branch is not None
        return self.host.branch

    def _now_ns(self) -> int:
        self.last_ns = self._clock()
        return self.last_ns

    # --- beginning -----------------------------------------------------------------------------

    def _open(self) -> None:
        host = self.host
        config = self.world.config(host)
        host.keeps_image = self.plan.end == POWER
        host.is_gone = False
        self.cache = open_cache(
            Path(config.workspace_cache_dir),
            identity(config),
            quota_bytes=config.max_size_bytes,
            now_ns=self._now_ns,
            boot_id=f"boot {host.name} {host.boots}",
        )
        host.opened(self.cache)
        self.durability = Durability(self.cache, in_thread=host.in_thread)
        self.replica = Replicator(
            config,
            self.cache,
            self.durability,
            random01=self.world.rng.random,
            randbits=self.world.ids.getrandbits,
            host=host.name,
            start_worker=host.start_worker,
            boot=self.world.now_s,
        )
        self.reaper = Reaper()
        self.fs = SimFileSystem(
            self.cache,
            quota_bytes=config.max_size_bytes,
            quota_inodes=config.max_inodes,
            on_change=self.replica.notify,
            on_forgotten=self.reaper.notify,
        )
        self.fs.life = self
        if self.world.attaches:
            self.replica.attach(self.fs)
            self.replica.kernel_forget = self.fs.kernel_forget

    def _check_opened(self) -> bool:
        """Invariant 1, before the bucket is asked; whether the cache is a whole workspace."""
        host, cache = self.host, self.cache
        self.world.note("opened", host.name, cache.recovery, cache.generation)
        if cache.recovery == "quarantined":
            raise Wrong("a cache with valid sync points was quarantined")
        if not cache.restore_complete:
            if host.branch is not None:
                raise Wrong("a whole cache became one whose restore is not complete")
            return False
        if cache.get_json(MARK) is None:
            # A restore was complete, but whoever did it did not live to say so.
            self._take_restored()
            host.lost_power = False
        branch = host.branch
        if host.lost_power:
            if cache.generation not in host.points or cache.generation < host.fsynced:
                raise Wrong(
                    f"after the power cut the cache is at {cache.generation}: fsynced "
                    f"{host.fsynced}, sync points {sorted(host.points)[-5:]}"
                )
            branch = Branch(dict(host.points[cache.generation]), cache.generation)
        if branch is None:
            # It died when its restore was complete, before anybody noted what it restored.
            newest = self.world.newest
            sealed = cache.get_json("sealed")
            if newest is None or sealed["number"] != newest.number:
                cache.clear_all()
                return False
            self._take_restored()
            branch = host.branch
        assert branch is not None
        if branch.maybe is not None and cache.generation == branch.generation + 1:
            branch.maybe(branch)
            branch.generation += 1
        branch.maybe = None
        branch.arriving.clear()
        host.branch = branch
        host.lost_power = False
        self._compare("as opened")
        host.points[cache.generation] = branch.copy()
        return True

    def _compare(self, when: str) -> None:
        if self.cache.generation != self.branch.generation:
            raise Wrong(
                f"{when}: generation {self.cache.generation}, the model is at"
                f" {self.branch.generation}"
            )
        if self.cache.head.used_bytes > self.world.quota_bytes:
            raise Wrong(f"{when}: {self.cache.head.used_bytes} bytes are over the quota")
        found = differences(self.cache, self.branch.nodes)
        if not found and self.world.rng.random() < CHECKED_CHANCE:
            done = Checked(Report(), prefix=self.world.prefix)
            check_records(self.cache, done, lambda _: None)
            found = [f"{f.code} {f.where}: {f.message}" for f in done.report.findings]
        if found:
            raise Wrong(f"{when}: {len(found)} differences: " + "; ".join(found[:10]))

    async def _prepare(self, is_whole: bool) -> None:
        host = self.host
        self.cache.put_json(MARK, 1)
        began_s = trio.current_time()
        try:
            await self.replica.prepare(lambda _: None)
        except UserError as exc:
            self.world.note("refused", host.name, exc.exit_code.name)
            if exc.exit_code == ExitCode.STORE:
                self.excuse(f"not mounted: {exc}", began_s - EXCUSE_S)
            elif exc.exit_code != ExitCode.FENCED or not self.world.may_be_fenced(host):
                raise Wrong(f"not mounted: {exc}") from exc
            raise Refused(exc.exit_code) from exc
        if self.cache.get_json(MARK) is None:
            if is_whole and not self.world.may_be_fenced(host):
                raise Wrong("the cache was made anew, for no reason")
            self._take_restored()
        self._compare("when ready")
        before = self.cache.generation
        self.fs.branch = self.branch

        def rooted(branch: Branch) -> None:
            branch.nodes[ROOT_INO] = Node(0o040755, 2, self.last_ns, parent=ROOT_INO)

        if ROOT_INO not in self.branch.nodes:
            self.branch.maybe = rooted
        self.fs.make_root(uid=0, gid=0, mode=0o755)
        if ROOT_INO not in self.branch.nodes:
            self.branch.maybe = None
            rooted(self.branch)
            self.branch.generation = before + 1
        self.fs.drop_orphans_unmounted()
        self._compare("when mounted")

    def _take_restored(self) -> None:
        """The cache now holds what the bucket held."""
        host, number = self.host, self.cache.get_json("sealed")["number"]
        nodes: Nodes = dict(self.world.sealed[number].nodes) if number else {}
        host.branch = Branch(nodes, self.cache.generation)
        host.points = {self.cache.generation: dict(nodes)}
        host.fsynced = self.cache.generation
        host.number = number
        self.cache.put_json(MARK, 1)
        self.world.note("restored", host.name, self.cache.generation)

    # --- living --------------------------------------------------------------------------------

    async def run(self) -> None:
        """From opening to the end. Raises Refused."""
        host = self.host
        host.life = self
        living.set(self)
        self._open()
        self.world.on_life(self)
        refused: Refused | None = None
        try:
            with self._scope:
                refused = await self._live(self._check_opened())
            if not host.is_gone:
                await self._close()
        except BaseExceptionGroup as group:
            _, rest = group.split(Killed)
            if rest is not None:
                raise only(rest) from rest
        except Killed:
            pass
        if host.is_gone:
            await self.replica.worker.close()
            host.release()
        if refused is not None:
            raise refused

    async def _close(self) -> None:
        """The end of a daemon that nobody killed; it makes a last sync point."""
        await self.replica.worker.close()
        nodes = {} if self.host.branch is None else self.host.branch.copy()
        self.host.points[self.cache.generation] = nodes
        self.cache.close()
        self.host.points = {self.cache.generation: nodes}
        self.host.cache = None

    async def _live(self, is_whole: bool) -> Refused | None:
        try:
            await self._prepare(is_whole)
        except Refused as exc:
            return exc
        async with trio.open_nursery() as services:
            for service in (
                self.replica.run, self._reap, self._sync_points, self._hydrate, self._watch,
                self._kill_workers, self.replica.keep_lease,
            ):  # fmt: skip
                services.start_soon(service)
            await self._work()
            if self.plan.settles:
                await self.world.settle(self)
            await self._end()
            services.cancel_scope.cancel()
        return None

    async def _work(self) -> None:
        async with trio.open_nursery() as people:
            for number in range(2):
                rng = random.Random(f"{self.world.seed} {self.world.lives} {number}")
                person = Person(self, rng)
                people.start_soon(person.run, self.plan.operations // 2)

    async def _end(self) -> None:
        host = self.host
        self.world.note("end", host.name, self.plan.end)
        self._compare("at the end")
        if self.plan.end == UNMOUNT:
            await self._unmount()
        elif self.plan.end == POWER:
            host.cut_power()
        else:
            host.die()
        if host.is_gone:
            self._scope.cancel()

    async def _unmount(self) -> None:
        began_s = trio.current_time()
        self.fs.drop_orphans_unmounted()
        try:
            unsaved = await self.replica.final_flush(lambda _: None)
        except UserError as exc:
            self.sync_failed(exc, began_s - EXCUSE_S)
            return
        if unsaved:
            self.excuse(f"not saved: {unsaved}", began_s - EXCUSE_S)
        elif self.world.newest is None or self.world.newest.generation < self.cache.generation:
            raise Wrong("the end said that everything is saved, and it is not")

    # --- services ------------------------------------------------------------------------------

    async def _reap(self) -> None:
        kernel = cast("KernelCache", self.fs) if self.world.attaches else None
        await self.reaper.run(self.fs, kernel)

    async def _sync_points(self) -> None:
        await self.durability.run(5.0)

    async def _hydrate(self) -> None:
        if self.world.attaches:
            await self.replica.keep_hydrated()
        await self.replica.hydrate()
        self._hydrated.set()

    async def hydrated(self) -> None:
        """Until nothing is cold that is not left cold."""
        if not self.world.attaches:
            await self._hydrated.wait()
            return
        while self.replica._chilled.is_set() or self.replica._hydrator.state != "complete":
            await trio.sleep(LOOK_S)

    async def _kill_workers(self) -> None:
        rng = self.world.rng
        while True:
            await trio.sleep(rng.expovariate(1 / 150))
            if self.host.process is not None and not self.world.weather.stays_fair:
                self.world.weather.trouble()
                self.world.count("workers killed")
                self.host.process.kill()

    async def _watch(self) -> None:
        """Invariant 2."""
        config = self.world.config(self.host)
        limit_s = config.debounce_max_s + DIRT_SLACK_S
        while True:
            await trio.sleep(LOOK_S)
            calm_s = trio.current_time() - self.world.weather.trouble_s
            if calm_s < CALM_S or self.world.may_be_fenced(self.host):
                continue
            with self.cache.read() as view:
                oldest_ns = min((first for _, _, _, first in view.dirty()), default=None)
            age_s = 0.0 if oldest_ns is None else (self.world.coarse_ns() - oldest_ns) / 1e9
            self.world.oldest_s = max(self.world.oldest_s, age_s)
            if age_s > limit_s:
                health = self.replica.status()["health"]
                raise Wrong(f"dirt is {age_s:.0f} s old in fair weather: {health}")

    # --- excuses -------------------------------------------------------------------------------

    def may_refuse(self, exc: FsError, room_bytes: int) -> bool:
        """Whether an operation that takes up to so many bytes more may have been refused."""
        head = self.cache.head
        if exc.errno != errno.EDQUOT:
            return False
        self.world.count("refused for room")
        is_full = head.used_bytes + room_bytes > self.world.quota_bytes
        return is_full or head.inodes >= self.world.quota_inodes

    def excuse(self, what: str, since_s: float) -> None:
        """Something failed: that needs a cause since then."""
        if self.host.is_gone or self.world.may_be_fenced(self.host):
            # What it names may be garbage to the one that has taken over.
            return
        if self.world.weather.trouble_s < since_s:
            raise Wrong(f"{what}, and there is no reason")
        self.world.count("excused")

    def sync_failed(self, exc: UserError, since_s: float) -> None:
        """A sync or a final flush failed."""
        if exc.exit_code != ExitCode.FENCED:
            self.excuse(f"not saved: {exc}", since_s)
        elif not self.world.may_be_fenced(self.host):
            raise Wrong(f"fenced, but by whom? {exc}")


def only(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first leaf: a Wrong, if there is one."""
    wrong = group.split(Wrong)[0]
    found: BaseException = group if wrong is None else wrong
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
