"""What the service manager hears of a mount, on a clock of the test's own."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
import trio
import trio.testing

from s3ws_fs.control.servicemanager import ServiceManager
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, FsError
from s3ws_fs.daemon.commands import Outcome
from s3ws_fs.daemon.daemon import Daemon
from s3ws_fs.daemon.supervision import (
    EXTEND_EVERY_S,
    EXTEND_S,
    IDLE_S,
    PAUSE_S,
    RESTORE_SILENCE_S,
    Supervision,
    status_text,
)
from tests.daemon.conftest import parts_over

CLEAN = {
    "changes": 0,
    "files": 0,
    "is_floor": False,
    "oldest_age_s": None,
    "to_mirror": 0,
    "health": {"state": "ok", "error": None},
}
EXTEND_USEC = str(int(EXTEND_S * 1e6))


class _Replica:
    def __init__(self) -> None:
        self.said: dict[str, Any] = dict(CLEAN)
        self.change = trio.Event()
        self.looks = 0
        self.error: Exception | None = None

    def summary(self) -> dict[str, Any]:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return self.said

    async def next_change(self) -> None:
        await self.change.wait()


class _Recorder(ServiceManager):
    """Keeps what is told, with the time of the test's clock."""

    def __init__(self) -> None:
        super().__init__("/recorded")
        self.words: list[tuple[float, dict[str, object]]] = []

    def tell(self, **words: object) -> None:
        if words:
            self.words.append((trio.current_time(), words))

    def said(self, name: str) -> list[object]:
        return [words[name] for _, words in self.words if name in words]


class _Mount:
    """A daemon with nothing but a state, a replica and its supervision."""

    def __init__(self, config: MountConfig) -> None:
        self.manager = _Recorder()
        self.replica = _Replica()
        self.life = Daemon(config, lambda _: None, manager=self.manager)
        self.life.parts = parts_over(self.replica)

    @property
    def supervision(self) -> Supervision:
        return self.life.supervision


@pytest.fixture
async def mount(config: MountConfig) -> _Mount:
    return _Mount(config)


async def test_ready_is_said_once_and_at_once(
    mount: _Mount, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    nursery.start_soon(mount.supervision.run)
    await trio.sleep(1)
    assert mount.manager.said("READY") == []
    mount.life.state = "ready"
    assert mount.manager.said("READY") == [1]
    assert mount.manager.said("STATUS")[-1] == "mounted: everything is saved"
    await trio.sleep(10 * IDLE_S)
    assert mount.manager.said("READY") == [1]
    nursery.cancel_scope.cancel()


async def test_an_idle_mount_is_looked_at_rarely_and_a_change_is_seen_soon(
    mount: _Mount, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    mount.life.state = "ready"
    nursery.start_soon(mount.supervision.run)
    await trio.sleep(1)
    before = mount.replica.looks
    await trio.sleep(10 * IDLE_S)
    assert mount.replica.looks - before <= 2 * 10
    mount.replica.said = {**CLEAN, "changes": 7, "files": 3}
    mount.replica.change.set()
    await trio.sleep(2 * PAUSE_S)
    assert mount.manager.said("STATUS")[-1] == "mounted: 3 files pending, 7 changes"
    nursery.cancel_scope.cancel()


async def test_a_change_that_nobody_takes_is_no_busy_loop(
    mount: _Mount, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    mount.life.state = "ready"
    mount.replica.change.set()
    nursery.start_soon(mount.supervision.run)
    await trio.sleep(100 * PAUSE_S)
    assert mount.replica.looks <= 2 * 100 + 5
    nursery.cancel_scope.cancel()


async def test_the_end_is_announced_and_extended_until_it_has_come(
    mount: _Mount, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    mount.life.state = "ready"
    nursery.start_soon(mount.supervision.run)
    await trio.sleep(1)
    assert mount.manager.said("EXTEND_TIMEOUT_USEC") == []
    mount.replica.said = {**CLEAN, "changes": 1, "files": 1}
    mount.life.request_stop()
    mount.life.state = "unmounting"
    mount.supervision.heard({"event": "progress", "phase": "sealing", "done": 1, "total": 4})
    hours_s = 2 * 3600.0
    await trio.sleep(hours_s)
    assert mount.manager.said("STOPPING") == [1]
    times = [at for at, words in mount.manager.words if "EXTEND_TIMEOUT_USEC" in words]
    assert set(mount.manager.said("EXTEND_TIMEOUT_USEC")) == {int(EXTEND_S * 1e6)}
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) <= EXTEND_EVERY_S + PAUSE_S < EXTEND_S / 2
    assert times[-1] >= hours_s - EXTEND_S / 2
    said = mount.manager.said("STATUS")[-1]
    assert said == "final flush: 1 files pending, 1 changes (sealing 1/4)"
    mount.supervision.ended(Outcome(ExitCode.NOT_SAVED, "1 paths are not saved"))
    assert mount.manager.said("STATUS")[-1] == "1 paths are not saved"
    nursery.cancel_scope.cancel()


async def test_a_restore_is_extended_while_it_goes_on(
    mount: _Mount, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    mount.life.parts = None
    nursery.start_soon(mount.supervision.run)
    for number in range(20):
        await trio.sleep(RESTORE_SILENCE_S / 2)
        mount.life.progress({"phase": "restoring", "done": number, "total": 20})
    count = len(mount.manager.said("EXTEND_TIMEOUT_USEC"))
    assert count >= 10 * RESTORE_SILENCE_S / (EXTEND_EVERY_S + PAUSE_S)
    await trio.sleep(2 * RESTORE_SILENCE_S)
    silent_from = len(mount.manager.said("EXTEND_TIMEOUT_USEC"))
    await trio.sleep(2 * RESTORE_SILENCE_S)
    assert len(mount.manager.said("EXTEND_TIMEOUT_USEC")) == silent_from
    nursery.cancel_scope.cancel()


async def test_a_cache_that_can_t_be_read_ends_nothing(
    mount: _Mount, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    mount.replica.error = FsError(5, "for a test")
    nursery.start_soon(mount.supervision.run)
    mount.life.state = "ready"
    await trio.sleep(10)
    assert mount.manager.said("READY") == [1]
    nursery.cancel_scope.cancel()


async def test_without_a_manager_nothing_is_looked_at(
    config: MountConfig, autojump_clock: trio.testing.MockClock
) -> None:
    replica = _Replica()
    life = Daemon(config, lambda _: None)
    life.parts = parts_over(replica)
    life.state = "ready"
    life.progress({"phase": "sealing"})
    await life.supervision.run()
    assert replica.looks == 0


@pytest.mark.parametrize(
    ("state", "summary", "event", "text"),
    [
        ("restoring", None, {"phase": "loading", "done": 2, "total": 9}, "restoring (loading 2/9)"),
        ("ready", CLEAN, {}, "mounted: everything is saved"),
        ("ready", {"health": {"state": "ok"}}, {}, "mounted: everything is saved"),
        (
            "ready",
            {**CLEAN, "changes": 5000, "files": 400, "is_floor": True, "to_mirror": 2},
            {},
            "mounted: at least 400 files pending, 5000 changes, 2 files to mirror",
        ),
        (
            "unmounting",
            {**CLEAN, "to_mirror": 1, "health": {"state": "degraded", "error": "no answer"}},
            {"phase": "waiting for the store"},
            "final flush: 1 files to mirror (waiting for the store); degraded: no answer",
        ),
    ],
)
def test_status_text(
    state: str, summary: dict[str, Any] | None, event: dict[str, Any], text: str
) -> None:
    assert status_text(state, cast(Any, summary), event) == text
