"""A crash at every point while what somebody else put below files/ is brought in.

The same rig as test_every_point.py; the mirror, the journal and the next mount must show the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.core import failpoints
from s3ws_fs.core.findings import Severity
from s3ws_fs.core.layout import FILES_PREFIX, LEASE_KEY
from s3ws_fs.core.outside import copy_names
from s3ws_fs.store.base import ObjectStore
from s3ws_fs.store.memory import MemoryStore
from tests.crash.rig import FINAL, FINE, SYNC, Rig, Step, StoreClock, fast_directory, seen
from tests.crash.workloads import write
from tests.replica.conftest import Mount
from tests.support.files_model import Op, State
from tests.support.inline import inline_config

PREFIX = inline_config(Path("/")).workspace.prefix + FILES_PREFIX
ARRIVAL_CHANGES = 3
"""Begun, filled, placed."""


@dataclass(frozen=True, slots=True)
class Hand:
    """Somebody puts an object; then a sync with a look at what others did."""

    path: str
    data: bytes


@dataclass(repr=False)
class OutsideRig(Rig):
    """A workload during which somebody else edits and adds objects."""

    puts: list[bytes] = field(default_factory=list)

    async def step(self, mount: Mount, step: Step | Hand) -> None:
        """A Hand is answered when all is saved."""
        if not isinstance(step, Hand):
            await super().step(mount, step)
            return
        self.slack = ARRIVAL_CHANGES
        self._put(step)
        await mount.sync(outside=True)
        self._acknowledge(mount)
        self.known.sealed = self.known.acknowledged
        self.slack = 1

    def _put(self, hand: Hand) -> None:
        self.store.put(PREFIX + hand.path, hand.data)
        self.puts.append(hand.data)
        name = hand.path
        if name in self.files.state():
            made_ns = self.store.head(PREFIX + name).modified_ns
            name = next(copy_names(name.encode(), made_ns)).decode()
        before, generation = self.files.state(), self.known.acknowledged
        assert self.files.apply(Op("create", name)) == 0
        assert self.files.apply(Op("write", name, data=hand.data)) == 0
        for number in range(1, ARRIVAL_CHANGES):
            self.known.states[generation + number] = before
        self.known.states[generation + ARRIVAL_CHANGES] = self.files.state()

    async def saved(self, mount: Mount, store: ObjectStore, wanted: State) -> State:
        """All that others put is there, once; and all that was there before."""
        got = await seen(mount)
        news = {path: shown for path, shown in got.items() if path not in wanted}
        assert {path: got[path] for path in wanted} == wanted
        assert len(news) <= 1, news
        assert all(data in self.puts for _, data, _, _ in news.values()), news
        bodies = [data for _, data, _, _ in got.values()]
        assert all(bodies.count(data) <= 1 for data in self.puts), "a copy was made twice"
        return got


@pytest.fixture(scope="module")
def living() -> Iterator[OutsideRig]:
    """Objects are changed, added and changed again beside a mount."""
    with fast_directory("s3ws-outside-") as base:
        rig = OutsideRig(Path(base) / "living", fine=(*FINE, Severity.FOREIGN))
        steps: list[Any] = [
            Op("create", "a"),
            write("a", 3000),
            Op("create", "b"),
            write("b", 50),
            SYNC,
            Op("append", "a", data=b"dirty"),
            Hand("a", b"edited outside"),
            Op("append", "b", data=b"dirty"),
            Hand("new", b"added outside"),
            Hand("b", b"edited as well"),
            FINAL,
        ]
        rig.run(steps)
        yield rig


@pytest.fixture(scope="module")
def imported() -> Iterator[Rig]:
    """A prefix filled by hand, mounted."""
    with fast_directory("s3ws-import-") as base:
        store = MemoryStore(now_ns=StoreClock())
        fine = (*FINE, Severity.FOREIGN)
        rig = Rig(Path(base) / "import", store, slack=100, fine=fine)
        for path, data in {"a": b"1", "d/b": b"2" * 70_000, "d/e/c": b"", "z": b"3"}.items():
            store.put(PREFIX + path, data)
            above = path.split("/")[:-1]
            for depth in range(len(above)):
                rig.files.apply(Op("mkdir", "/".join(above[: depth + 1])))
            rig.files.apply(Op("create", path))
            rig.files.apply(Op("write", path, data=data))
        rig.known.states[0] = rig.files.state()
        rig.run((Op("append", "a", data=b"here"), SYNC, Op("unlink", "z"), FINAL))
        yield rig


def test_their_failpoints_are_passed(living: OutsideRig, imported: Rig) -> None:
    assert failpoints.OUTSIDE_PLACED in living.passed
    assert {failpoints.IMPORT_FILE, failpoints.IMPORT_AFTER} <= set(imported.passed)
    assert len(living.crashes) > 60
    assert len(imported.crashes) > 40


def test_killed_beside_outside_changes(living: OutsideRig) -> None:
    for crash in living.crashes:
        living.killed(crash)


@pytest.mark.parametrize("least", [False, True], ids=["all", "least"])
def test_power_cut_beside_outside_changes(living: OutsideRig, least: bool) -> None:
    for crash in living.crashes:
        living.power_cut(crash, least=least)


def test_killed_while_importing(imported: Rig) -> None:
    for crash in imported.crashes:
        imported.killed(crash)


@pytest.mark.parametrize("least", [False, True], ids=["all", "least"])
def test_power_cut_while_importing(imported: Rig, least: bool) -> None:
    for crash in imported.crashes:
        imported.power_cut(crash, least=least)


def test_nothing_is_put_before_an_import_is_whole(imported: Rig) -> None:
    """The bucket is byte for byte as it was, until the workspace's name is put."""
    by_hand = imported.crashes[0].store
    before = {entry.key: entry.etag for entry in by_hand.list()}
    for crash in imported.crashes:
        now = {entry.key: entry.etag for entry in crash.store.list()}
        if any("journal/workspace.json" in key for key in now):
            break
        assert {key: now[key] for key in before} == before, crash.event
        others = [key for key in now.keys() - before.keys() if "/journal/probe/" not in key]
        assert all(key.endswith(LEASE_KEY) for key in others), crash.event
    else:
        raise AssertionError("it never got a name")
    assert crash.event != failpoints.IMPORT_FILE
