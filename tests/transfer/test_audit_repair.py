"""What the bucket lost and the cache still has: marked by the repair, shipped by the next mount."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from s3ws_fs.cache.checking import check_cache
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.repair import Needs, repair_cache
from s3ws_fs.core import keys, layout
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.content import META_PATH, path_mark
from s3ws_fs.core.errors import UserError
from s3ws_fs.core.findings import Report
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.audit import Audited, LocalSide, audit
from tests.replica.conftest import Mounter, bucket, config, mounter, store_config
from tests.transfer.test_audit import (
    by_code,
    checkpoints,
    only_local,
    quiet,
    rotten,
    run,
    work,
    wrong,
)

__all__ = ["bucket", "checkpoints", "config", "mounter", "store_config"]

pytestmark = only_local


def cache_of(config: MountConfig, name: str = "a") -> Path:
    return Path(replace(config, cache_dir=f"{config.cache_dir}-{name}").workspace_cache_dir)


def audit_with_cache(directory: Path, bucket: ScopedStore) -> Audited:
    found = check_cache(directory, quiet)
    assert found.tables is not None and found.values is not None
    with open_reader(directory) as reader, ThreadPoolExecutor(4) as pool:
        return audit(bucket, pool, quiet, local=LocalSide(reader, found.tables, found.values))


def repair(directory: Path, needs: Needs) -> Report:
    return repair_cache(directory, check_cache(directory, quiet), quiet, needs)


async def test_lost_and_rotten_data_is_shipped_again(
    checkpoints: None, mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
        big, late = m.ino("big"), await m.read("late")
        with m.cache.read() as view:
            blob = next(view.chunks(big))[1]
            segment = next(view.chunks(m.ino("late")))[1]
        data = await m.read("big")
    rot = rotten(config, bucket)
    bucket.delete(layout.object_key(blob.object_id))
    rot(layout.object_key(segment.object_id), segment.offset + 5)
    directory = cache_of(config)
    done = audit_with_cache(directory, bucket)
    [missing], [rotted] = by_code(done, "object-missing"), by_code(done, "extent-damaged")
    assert missing.repairable and missing.paths == (b"big",)
    assert rotted.repairable and rotted.paths == (b"late",)
    # Without the cache nobody has them.
    assert not any(f.repairable for f in by_code(run(bucket), "object-missing"))
    assert repair(directory, done.needs).ok
    async with mounter() as m:
        await m.sync()
    after = run(bucket).report
    # Points before the repair lost those bytes for good; nothing of the newest state did.
    assert {f.where for f in after.findings if f.severity == "damage"} == {
        layout.object_key(blob.object_id), layout.object_key(segment.object_id),
    }  # fmt: skip
    assert not any(f.paths for f in after.findings), after.findings
    async with mounter("b") as m:
        assert await m.read("big") == data
        assert await m.read("late") == late


async def test_a_mirror_that_lost_or_rotted_is_put_again(
    mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
    rot = rotten(config, bucket)
    whole = {key: bucket.get(key).data for key in ("files/late", "files/small", "files/big")}
    rot("files/late", 100)
    rot("files/big", 1_000_000)
    bucket.delete("files/small")
    left = {**bucket.head("files/link").metadata, META_PATH: path_mark("left over")}
    bucket.put("files/left over", b"dir/sub", metadata=left)
    directory = cache_of(config)
    done = audit_with_cache(directory, bucket)
    assert set(wrong(done.report)) == {
        ("mirror-damaged", "files/late"),
        ("mirror-damaged", "files/big"),
        ("mirror-missing", "files/small"),
        ("mirror-leftover", "files/left over"),
    }
    repair(directory, done.needs)
    async with mounter() as m:
        await m.sync()
    assert wrong(run(bucket).report) == []
    for key, data in whole.items():
        assert bucket.get(key).data == data


async def test_a_segment_that_can_not_be_read_is_bridged_by_a_checkpoint(
    mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
        tree = m.tree()
    rot = rotten(config, bucket)
    key = layout.seg_key(2)
    size = bucket.head(key).size_bytes
    rot(key, size - 40)
    with pytest.raises(UserError, match=key):
        async with mounter("b"):
            pass
    directory = cache_of(config)
    done = audit_with_cache(directory, bucket)
    assert done.needs.checkpoint
    [finding] = [f for f in done.report.findings if f.where == key]
    assert finding.repairable
    repair(directory, done.needs)
    async with mounter() as m:
        await m.sync()
        assert m.cache.get_json("checkpoint_due") is False
        await m.sync()
    assert bucket.head(layout.ckpt_key(5)).size_bytes > 0
    after = run(bucket).report
    # Only points before that checkpoint need it still.
    assert {f.where for f in after.findings if f.severity == "damage"} == {key}
    async with mounter("c") as m:
        assert m.tree() == tree
        assert await m.read("small") == b"SMALL file"


async def test_a_mark_that_was_lost_is_found(
    mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    """A change that nobody would ever ship: only the comparison with the bucket shows it."""
    async with mounter() as m:
        await work(m)
        ino = m.ino("late")
        m.fs.setattr(ino, mode=0o600)
        with m.cache.env.begin(write=True) as txn:
            key = keys.dirty_key(keys.T_INODES, keys.pack_u64(ino))
            assert txn.delete(key, db=m.cache.tables.dirty)
    directory = cache_of(config)
    assert check_cache(directory, quiet).report.ok
    done = audit_with_cache(directory, bucket)
    [finding] = by_code(done, "cache-differs")
    assert finding.paths == (b"late",)


async def test_a_cache_that_was_left_behind(
    mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter() as m:
        await work(m)
    async with mounter("b") as m:
        m.write("later", b"by another host")
        await m.sync()
    directory = cache_of(config)
    done = audit_with_cache(directory, bucket)
    [finding] = by_code(done, "cache-behind")
    assert finding.severity == "note" and done.report.ok
    async with mounter("b"):
        pass
    assert not by_code(audit_with_cache(cache_of(config, "b"), bucket), "cache-behind")


async def test_what_is_sealed_meanwhile_is_no_damage(
    checkpoints: None,
    mounter: Mounter,
    bucket: ScopedStore,
    config: MountConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the listing and the rest, the mount goes on: seals, mirrors, removes."""
    async with mounter() as m:
        await work(m)
        listed = list(bucket.list())
        m.write("small", b"other bytes")
        m.unlink("late")
        m.rename("dir", "elsewhere")
        m.write("new", b"new")
        await m.sync()

        class Late(ScopedStore):
            """Lists at first what stood there before."""

            asked = 0

            def list(self, prefix: str = "", start_after: str = "") -> object:  # type: ignore[override]
                self.asked += 1
                if not prefix and self.asked == 1:
                    return iter(listed)
                return super().list(prefix, start_after)

        late = Late(bucket._inner, bucket.prefix)
        report = run(late).report
        assert not report.has_damage, report.findings
        assert report.counts["pending"] > 0
        assert wrong(run(bucket).report) == []
