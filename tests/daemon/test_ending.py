"""How a mount ends: signals, and a final flush that can't save everything."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import trio
import trio.testing

from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.daemon.daemon import Daemon
from s3ws_fs.daemon.ending import SAME_SIGNAL_S
from tests.daemon.conftest import StuckReplica, parts_over
from tests.support.mounting import workspace_config


class _FencedReplica(StuckReplica):
    async def final_flush(self, progress: object) -> list[str]:
        raise UserError("fenced", exit_code=ExitCode.FENCED)


async def test_a_second_signal_gives_the_final_flush_up(
    config: MountConfig, one_path_left: None, autojump_clock: trio.testing.MockClock
) -> None:
    replica = StuckReplica()
    daemon = Daemon(config, lambda _: None)
    outcomes = []

    async def flush() -> None:
        outcomes.append(await daemon.ending.final_flush(parts_over(replica)))

    async def signals() -> AsyncIterator[int]:
        yield signal.SIGTERM
        await replica.flushing.wait()
        await trio.sleep(SAME_SIGNAL_S)
        yield signal.SIGTERM

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        nursery.start_soon(daemon.ending.obey, signals())
    assert outcomes[0].exit_code is ExitCode.NOT_SAVED
    assert outcomes[0].unsaved == ["left"]


async def test_a_final_flush_that_is_fenced_says_so(
    config: MountConfig, one_path_left: None
) -> None:
    daemon = Daemon(config, lambda _: None)
    outcome = await daemon.ending.final_flush(parts_over(_FencedReplica()))
    assert outcome.exit_code is ExitCode.FENCED
    assert outcome.unsaved == ["left"]
    assert "fenced" in outcome.message


async def test_a_signal_to_a_whole_group_counts_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """It comes from the sender, and from the holder; the second one gives up the final flush."""
    daemon = Daemon(workspace_config(tmp_path), lambda _: None)
    send, receive = trio.open_memory_channel[int](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.ending.obey, receive)
        await send.send(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
        assert daemon.stop.is_set()
        daemon.state = "unmounting"
        await trio.sleep(0.9 * SAME_SIGNAL_S)
        await send.send(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
        assert not daemon.ending.given_up.is_set()
        await trio.sleep(SAME_SIGNAL_S)
        await send.send(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
        assert daemon.ending.given_up.is_set()
        nursery.cancel_scope.cancel()
