"""What is counted of the kernel's requests."""

from __future__ import annotations

import errno
from typing import Any

import pyfuse3
import pytest

from s3ws_fs.core.errors import FsError
from s3ws_fs.fuse import tally
from s3ws_fs.fuse.tally import EVERY, FETCH, SUM, Kind, Tally
from s3ws_fs.fuse.translate import Faults, atomic, awaiting


class Clock:
    """Each look at it comes `step_ns` later."""

    step_ns = 0
    looks = 0
    _now_ns = 1

    def __call__(self) -> int:
        self.looks += 1
        self._now_ns += self.step_ns
        return self._now_ns


class Handlers:
    """Handlers as Operations has them."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.tally = Tally()

    @atomic
    def getattr(self, number: int) -> int:
        if number:
            raise FsError(number)
        return 7

    @awaiting
    async def read(self, fault: Exception | None) -> None:
        if fault is not None:
            raise fault

    @awaiting
    async def fsync(self) -> None:
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tally, "perf_counter_ns", clock)
    return clock


async def test_each_request_is_counted_and_one_in_many_timed(clock: Clock) -> None:
    handlers = Handlers()
    clock.step_ns = 1000
    for number in range(1, 3 * EVERY + 1):
        assert await handlers.getattr(0) == 7
        said = handlers.tally.to_json()["ops"]["getattr"]
        timed = 1 + (number - 1) // EVERY
        assert said == {"count": number, "sum_ns": 1000 * timed, "bits": {"10": timed}}
    assert clock.looks == 2 * 3
    for _ in range(5):
        await handlers.read(None)
    ops = handlers.tally.to_json()["ops"]
    assert (ops["read"]["count"], ops["read"]["sum_ns"]) == (5, 1000)
    assert set(ops) == {"getattr", "read"}, "what was not asked for is not told"


async def test_those_that_are_rare_and_slow_are_timed_each(clock: Clock) -> None:
    handlers = Handlers()
    times_ns = (0, 1, 1000, 1023, 1024, 5_000_000_000)
    for step_ns in times_ns:
        clock.step_ns = step_ns
        await handlers.fsync()
    assert handlers.tally.to_json()["ops"]["fsync"] == {
        "count": len(times_ns),
        "sum_ns": sum(times_ns),
        "bits": {"0": 1, "1": 1, "10": 2, "11": 1, "33": 1},
    }


async def test_failures_are_counted_with_their_errno_and_timed_as_others(clock: Clock) -> None:
    handlers = Handlers()
    clock.step_ns = 3
    calls: list[tuple[Any, Any]] = [
        (handlers.getattr, errno.ENOSPC),
        (handlers.getattr, errno.ENOSPC),
        (handlers.getattr, 4095),
        (handlers.read, ValueError("a fault of ours")),
    ]
    for call, argument in calls:
        with pytest.raises(pyfuse3.FUSEError):
            await call(argument)
    said = handlers.tally.to_json()
    assert said["errors"] == {"ENOSPC": 2, "EIO": 1, "4095": 1}
    assert {kind: (of["count"], of["sum_ns"]) for kind, of in said["ops"].items()} == {
        "getattr": (3, 3),
        "read": (1, 3),
    }
    assert handlers.faults.count == 1


def test_waits_for_the_bucket_are_timed_each() -> None:
    kind = Tally().kinds[FETCH]
    for _ in range(3):
        kind.end(kind.begin())
    assert kind.count == 3
    assert sum(kind.slots[:SUM]) == 3


def test_the_longest_time_that_a_clock_can_tell_has_its_place(clock: Clock) -> None:
    kind = Kind(1)
    clock.step_ns = (1 << 64) - 1
    kind.end(1)
    assert kind.to_json()["bits"] == {"64": 1}
    assert len(kind.slots) == SUM + 1
