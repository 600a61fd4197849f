"""The reaper gives back the space of deleted files soon; and how the cache is closed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from s3ws_fs.cache.cache import open_cache
from s3ws_fs.core.errors import FsError
from s3ws_fs.daemon.daemon import _close
from s3ws_fs.daemon.parts import REAP_DELAY_S, Parts, Reaper, identity
from tests.support.mounting import workspace_config


class _Reaped:
    def __init__(self, *, failing: bool = False) -> None:
        self.times: list[float] = []
        self.failing = failing

    def reap(self, _: int) -> bool:
        """Whether more may wait."""
        self.times.append(trio.current_time())
        if self.failing:
            raise FsError(errno.ENOSPC)
        return False


async def test_deleted_files_go_together_soon(autojump_clock: MockClock) -> None:
    reaper, fs = Reaper(), _Reaped()
    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaper.run, cast(Any, fs))
        await trio.sleep(1)
        assert fs.times == []
        reaper.notify()
        await trio.sleep(REAP_DELAY_S / 2)
        reaper.notify()
        await trio.sleep(1)
        assert fs.times == [start_s + 1 + REAP_DELAY_S]
        reaper.notify()
        await trio.sleep(1)
        assert len(fs.times) == 2
        nursery.cancel_scope.cancel()


async def test_what_could_not_be_dropped_is_tried_when_it_runs_again(
    autojump_clock: MockClock,
) -> None:
    reaper, fs = Reaper(), _Reaped(failing=True)
    reaper.notify()
    for _ in range(2):
        with pytest.raises(FsError):
            await reaper.run(cast(Any, fs))
    assert len(fs.times) == 2


def test_a_cache_that_can_not_be_closed_cleanly_changes_no_outcome(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was saved is in the bucket, and the exit code says so."""
    config = workspace_config(tmp_path)
    directory = Path(config.workspace_cache_dir)
    cache = open_cache(directory, identity(config), quota_bytes=1 << 24, now_ns=lambda: 1)

    def fail(_: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(cache.points, "write", fail)
    _close(cache)
    assert "not closed cleanly" in caplog.text


async def test_a_damaged_orphan_keeps_nobody_from_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = workspace_config(tmp_path)
    directory = Path(config.workspace_cache_dir)
    with open_cache(directory, identity(config), quota_bytes=1 << 24, now_ns=lambda: 1) as cache:
        with cache.env.begin(write=True) as txn:
            txn.put(b"short", b"", db=cache.tables.orphans)
        parts = Parts.make(config, cache)
        parts.drop_orphans()
    assert "deleted files stay" in caplog.text
