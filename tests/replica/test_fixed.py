"""Mounts of one point in history, without a kernel: they show it, whatever the bucket does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3ws_fs.core import layout
from s3ws_fs.core.errors import ExitCode, FsError, UserError
from s3ws_fs.replica.fixed import LOST
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points
from tests.replica.conftest import Mount, Mounter

only_local = pytest.mark.parametrize("store_config", ["local"], indirect=True)
"""What the kind of store has no part in."""

Files = dict[str, bytes]


async def _three_points(writer: Mount) -> list[tuple[dict[str, tuple[object, ...]], Files]]:
    """What #1 to #3 show."""
    found = []
    for number in range(1, 4):
        writer.write("changes", b"%d" % number * (number * 30_000))
        writer.write(f"of/{number}", b"x" * number)
        if number == 3:
            writer.unlink("of/1")
            writer.rename("of", "moved")
        await writer.sync()
        found.append((writer.tree(), await writer.files()))
    return found


def _at(bucket: ScopedStore, number: int) -> dict[str, Any]:
    point = points.resolve(bucket, f"#{number}", 0)
    return {"read_only": True, "at_number": number, "at_hash": point.header_hash, "at_ref": "r"}


async def test_it_shows_its_point_and_stays_there(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as writer:
        wanted = await _three_points(writer)
        for number, (tree, files) in enumerate(wanted, 1):
            async with mounter("b", **_at(bucket, number)) as at:
                assert at.tree() == tree
                writer.write("changes", b"later %d" % number)
                await writer.sync()
                done = await at.sync()
                assert (done["segment"], done["read_only"]) == (number, True)
                assert at.tree() == tree
                assert await at.files() == files
                shown = at.replica.status()["point"]
                assert (shown["number"], shown["ref"], shown["error"]) == (number, "r", None)
                assert shown["sealed_by"] and shown["sealed_at_s"]
                assert "follow" not in at.replica.status()
    directories = {path.name[-10:] for path in Path(f"{at.config.cache_dir}").iterdir()}
    assert len(directories) == 3


@only_local
async def test_it_never_looks_by_itself(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as writer:
        await _three_points(writer)
    async with mounter("b", **_at(bucket, 2)) as at, trio.open_nursery() as nursery:
        await at.files()
        before = dict(at.replica.worker.requests)
        # A Follower would look now, and be waiting for its worker.
        nursery.start_soon(at.replica.run)
        at.replica.accessed()  # type: ignore[attr-defined]
        await trio.testing.wait_all_tasks_blocked(0.2)
        await at.replica.worker.ask("ping")
        assert at.replica.worker.requests == before
        nursery.cancel_scope.cancel()


@only_local
async def test_it_is_mounted_again_without_the_store(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as writer:
        wanted = await _three_points(writer)
    how = _at(bucket, 2)
    async with mounter("b", **how) as at:
        assert await at.files() == wanted[1][1]
    bucket.delete_many([entry.key for entry in bucket.list()])
    async with mounter("b", **how) as at:
        assert (at.tree(), await at.files()) == wanted[1]


@only_local
async def test_a_point_that_went_is_an_error_and_never_other_bytes(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as writer:
        wanted = await _three_points(writer)
    async with mounter("b", **_at(bucket, 1)) as at:
        assert await at.read("of/1") == b"x"
        # As garbage collection takes it, when it is not kept any more.
        bucket.delete(layout.seg_key(1))
        for _ in range(2):
            with pytest.raises(FsError, match="missing in the bucket"):
                await at.read("changes")
        assert at.replica.status()["point"]["error"] == LOST
        # What was read stays.
        assert await at.read("of/1") == b"x"
        assert at.tree() == wanted[0][0]


@only_local
async def test_a_point_that_is_not_there_is_not_mounted(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as writer:
        await _three_points(writer)
    with pytest.raises(UserError, match="another one") as error:
        async with mounter("b", **(_at(bucket, 2) | {"at_hash": "0" * 32})):
            pass
    assert error.value.exit_code is ExitCode.NO_SUCH_POINT
    with pytest.raises(UserError, match="newest is #3") as error:
        async with mounter("b", **(_at(bucket, 2) | {"at_number": 9})):
            pass
    assert error.value.exit_code is ExitCode.NO_SUCH_POINT


@only_local
async def test_a_load_that_was_cut_off_starts_anew(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as writer:
        wanted = await _three_points(writer)
    how = _at(bucket, 2)
    raw = bucket.get(layout.seg_key(2)).data
    bucket.put(layout.seg_key(2), raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        async with mounter("b", **how):
            pass
    bucket.put(layout.seg_key(2), raw)
    async with mounter("b", **how) as at:
        assert (at.tree(), await at.files()) == wanted[1]
