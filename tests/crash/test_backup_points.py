"""A death at each point of a backup: a good one stands in the bucket, or none; and the next works.

In one process, at once (tests/snapshot/bench.py); real children are killed in
tests/e2e/test_backups.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import backups, failpoints
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot.reading import list_backups
from s3ws_fs.store.scoped import ScopedStore
from tests.crash.workloads import OF_BACKUPS
from tests.snapshot.bench import KEEP_LAST_ONLY, Bench
from tests.snapshot.test_service import bench
from tests.support.armed import listening
from tests.transfer.conftest import cache, fs, memory, store, write

__all__ = ["bench", "cache", "fs", "memory", "store"]


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", [failpoints.KEEP_DROP_BEFORE, failpoints.KEEP_DROP_AFTER])
async def test_dying_while_old_ones_go(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path, point: str, nth: int
) -> None:
    bench = Bench(cache, store, tmp_path, backup_keep_last=1, **KEEP_LAST_ONLY)
    write(fs, b"first", b"x")
    await bench.backups.backup(lambda _: None)
    write(fs, b"second", b"x")
    passed: list[str] = []
    with listening(_dying_at(point, nth, passed)), contextlib.suppress(_DiedError):
        await bench.backups.backup(lambda _: None)
    assert passed.count(point) >= 1
    newest = bench.names()[0]
    assert "second" in bench.content(newest)
    require_no_index_alone(store)
    # Whatever is left of the old one is no backup, and goes with a later one.
    left = {entry.key for entry in store.list("compressed/")}
    assert backups.index_key(newest) in left
    after = bench.another()
    write(fs, b"third", b"x")
    await after.backup(lambda _: None)
    assert "third" in bench.content(bench.names()[0])


def require_no_index_alone(store: ScopedStore) -> None:
    """The index comes last and goes first."""
    for backup in list_backups(store):
        assert backup.index_bytes is None or backup.archive_bytes is not None


class _DiedError(BaseException):
    """The process is gone."""


def _dying_at(point: str, nth: int, passed: list[str]) -> Callable[[str], None]:
    def hook(name: str) -> None:
        passed.append(name)
        if name == point and passed.count(point) == nth:
            raise _DiedError

    return hook


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", OF_BACKUPS)
async def test_dying_at_each_point(
    bench: Bench, fs: FileSystem, store: ScopedStore, point: str, nth: int
) -> None:
    """What stands in the bucket is a good backup or none, and the next one works."""
    write(fs, b"file", b"x" * 1000)
    passed: list[str] = []
    died = False
    with listening(_dying_at(point, nth, passed)):
        try:
            await bench.backups.backup(lambda _: None)
        except _DiedError:
            died = True
    assert died == (passed.count(point) >= nth)
    is_done = failpoints.KEEP_PUT_AFTER in passed and passed.count(failpoints.KEEP_PUT_AFTER) == 2
    for name in bench.names():
        assert bench.content(name) == {"file": b"x" * 1000}
    assert len(bench.names()) == int(is_done)
    require_no_index_alone(store)
    after = bench.another()
    assert not bench.directory.exists() or not any(bench.directory.iterdir())
    done = await after.backup(lambda _: None)
    assert bench.content(done["name"]) == {"file": b"x" * 1000}


async def test_every_point_is_passed(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    passed: list[str] = []
    with listening(passed.append):
        bench = Bench(cache, store, tmp_path, backup_keep_last=1, **KEEP_LAST_ONLY)
        for name in (b"one", b"two"):
            write(fs, name, b"x")
            await bench.backups.backup(lambda _: None)
    assert set(OF_BACKUPS) <= set(passed)
