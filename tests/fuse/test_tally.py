"""What is counted of the kernel's requests."""

from __future__ import annotations

import errno
from typing import Any

import pyfuse3
import pytest

from s3ws_fs.core.errors import FsError
from s3ws_fs.fuse import translate
from s3ws_fs.fuse.tally import SUM, Tally
from s3ws_fs.fuse.translate import Faults, atomic, awaiting


class Clock:
    """Each look at it comes `step_ns` later."""

    step_ns = 0
    _now_ns = 0

    def __call__(self) -> int:
        self._now_ns += self.step_ns
        return self._now_ns


class Handlers:
    """Two handlers as Operations has them."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.tally = Tally()

    @atomic
    def getattr(self, number: int) -> int:
        if number:
            raise FsError(number)
        return 7

    @awaiting
    async def fsync(self, fault: Exception | None) -> None:
        if fault is not None:
            raise fault


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(translate, "perf_counter_ns", clock)
    return clock


async def test_each_request_is_counted_with_its_time(clock: Clock) -> None:
    handlers = Handlers()
    for step_ns in (0, 1, 1000, 1023, 1024, 5_000_000_000):
        clock.step_ns = step_ns
        assert await handlers.getattr(0) == 7
    await handlers.fsync(None)
    ops = handlers.tally.to_json()["ops"]
    assert ops["getattr"] == {
        "count": 6,
        "sum_ns": 1 + 1000 + 1023 + 1024 + 5_000_000_000,
        "bits": {"0": 1, "1": 1, "10": 2, "11": 1, "33": 1},
    }
    assert ops["fsync"]["count"] == 1


async def test_failures_are_counted_with_their_time_and_errno(clock: Clock) -> None:
    handlers = Handlers()
    clock.step_ns = 3
    calls: list[tuple[Any, Any]] = [
        (handlers.getattr, errno.ENOSPC),
        (handlers.getattr, errno.ENOSPC),
        (handlers.getattr, 4095),
        (handlers.fsync, ValueError("a fault of ours")),
    ]
    for call, argument in calls:
        with pytest.raises(pyfuse3.FUSEError):
            await call(argument)
    said = handlers.tally.to_json()
    assert said["errors"] == {"ENOSPC": 2, "EIO": 1, "4095": 1}
    assert {kind: of["count"] for kind, of in said["ops"].items()} == {"getattr": 3, "fsync": 1}
    assert handlers.faults.count == 1


def test_the_longest_time_that_a_clock_can_tell_has_its_place() -> None:
    slots = Tally().kinds["read"]
    slots[((1 << 64) - 1).bit_length()] += 1
    assert len(slots) == SUM + 1
    assert slots[SUM] == 0, "the sum is not in the way"
