"""A flush to the cache's disk failed: seals go on, and the next mount relies on the bucket."""

from __future__ import annotations

import errno
from pathlib import Path

import lmdb
import pytest

from s3ws_fs.cache import syncpoint
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, FsError, UserError
from s3ws_fs.replica import position
from tests.replica.conftest import Mounter


def _fails() -> None:
    raise lmdb.DiskError("injected: Input/output error")


async def _spoilt_before_a_seal(mounter: Mounter) -> Path:
    """A file durable and unsealed; then a flush fails, and both files are sealed. Power goes."""
    async with mounter(crash=True) as mount:
        mount.write("sealed", b"1")
        await mount.sync()
        mount.write("durable", b"2")
        durability = Durability(mount.cache)
        await durability.ensure()
        mount.cache.points._flush = _fails  # type: ignore[method-assign]
        mount.write("only in memory", b"3")
        with pytest.raises(FsError) as caught:
            await durability.ensure()
        assert caught.value.errno == errno.EIO
        await mount.sync()
        directory = mount.cache.directory
        assert mount.cache.points.durable_generation < mount.replica.sealed_generation
    syncpoint.note_boot(directory, "the boot before", clean=False)
    return directory


async def test_after_a_power_cut_the_bucket_is_newer_and_nothing_is_lost(mounter: Mounter) -> None:
    await _spoilt_before_a_seal(mounter)
    async with mounter() as mount:
        assert mount.cache.recovery == "sync-point"
        assert await mount.files() == {"sealed": b"1", "durable": b"2", "only in memory": b"3"}
        mount.write("durable", b"4")
        await mount.sync()
    async with mounter("b") as other:
        assert await other.files() == {"sealed": b"1", "durable": b"4", "only in memory": b"3"}


async def test_otherwise_a_cache_behind_the_bucket_is_refused(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the sync point holds unsealed would be taken for changes of its own."""
    await _spoilt_before_a_seal(mounter)
    monkeypatch.setattr(position, "is_own_past", lambda *_: False)
    with pytest.raises(UserError) as caught:
        async with mounter():
            pass
    assert caught.value.exit_code is ExitCode.FENCED


async def test_a_cache_that_is_all_sealed_is_made_anew(
    mounter: Mounter, config: MountConfig
) -> None:
    async with mounter() as mount:
        mount.write("f", b"1")
        mount.cache.points._flush = _fails  # type: ignore[method-assign]
        await mount.sync()
    async with mounter() as mount:
        assert mount.cache.recovery == "renewed"
        assert await mount.files() == {"f": b"1"}
        await Durability(mount.cache).ensure()
