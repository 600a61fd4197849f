"""Repair: what follows from other records is made good; names and bytes are never removed."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.checking import Checked, check_cache
from s3ws_fs.cache.repair import Needs, repair_cache
from s3ws_fs.cache.tableset import TableSet, copy_out
from s3ws_fs.core import keys
from s3ws_fs.core.errors import CacheError, ExitCode
from s3ws_fs.core.findings import Report
from s3ws_fs.core.records import decode_location
from tests.cache.test_checking import BOOT, closed, opened, place, quiet
from tests.support import caches
from tests.support.damages import SINGLE, Damage

__all__ = ["closed", "place"]

REPAIRED = {
    "next-ino-head", "used-bytes-head", "inode-count-head", "alloc-sealed",
    "link-renamed", "link-moved", "link-of several", "link-row lost",
    "nlink-file", "nlink-directory", "nlink-root", "orphan-lost", "orphan-of a file",
    "orphan-of nothing", "extent-unshipped-no mark", "mirror-index-lost",
    "mirror-index-of nothing", "mirror-lacking-older", "mirror-stale-no file",
}  # fmt: skip
"""Damages of SINGLE after which everything is whole again."""

NAMES_AND_BYTES = ("dentries", "extents", "chunks", "xattrs", "inodes")


def apply(directory: Path, do: Damage) -> None:
    """Do a damage to the cache on disk."""
    with opened(directory) as cache:
        with cache.read() as view:
            before = copy_out(view)
            names = {p: view.resolve(p.encode()) for p in PATHS.values()}
        after = deepcopy(before)
        do(after, {name: names[path] or 0 for name, path in PATHS.items()} | _orphan(before))
        write_back(cache, before, after)


PATHS = {
    "dir": "dir", "sub": "dir/sub", "deep": "dir/sub/deep", "plain": "dir/sub/moved",
    "big": "big", "sparse": "sparse", "linked": "linked", "symlink": "symlink", "fifo": "fifo",
    "dirty": "dir/dirty",
}  # fmt: skip


def _orphan(tables: TableSet) -> dict[str, int]:
    [key] = tables.orphans
    return {"orphan": keys.unpack_u64(key)}


def write_back(cache: Cache, before: TableSet, after: TableSet) -> None:
    with cache.env.begin(write=True) as txn:
        for name in cache.tables.__dataclass_fields__:
            db = getattr(cache.tables, name)
            old, new = getattr(before, name), getattr(after, name)
            for key in set(old) - set(new):
                txn.delete(key, db=db)
            if name == "extents":
                continue
            for key, value in new.items():
                if old.get(key) != value:
                    txn.put(key, value, db=db)


def check(directory: Path) -> Checked:
    return check_cache(directory, quiet, boot_id=BOOT)


def repair(directory: Path, needs: Needs = Needs()) -> Report:  # noqa: B008
    clock = iter(range(1, 1 << 40)).__next__
    return repair_cache(directory, check(directory), quiet, needs, now_ns=clock, boot_id=BOOT)


def records(directory: Path) -> TableSet:
    with opened(directory) as cache, cache.read() as view:
        return copy_out(view)


@pytest.mark.parametrize(
    "do", [pytest.param(d, id=f"{c}-{w}") for c, w, d in SINGLE if f"{c}-{w}" in REPAIRED]
)
def test_made_good(place: Path, do: Damage) -> None:
    apply(place, do)
    damaged = check(place).report
    assert any(finding.repairable for finding in damaged.findings)
    before = records(place)
    report = repair(place)
    assert report.ok, report.findings
    assert report.repaired >= 1
    assert {finding.repaired for finding in report.findings} == {True}
    assert check(place).report.findings == []
    after = records(place)
    for name in NAMES_AND_BYTES:
        assert set(getattr(before, name)) <= set(getattr(after, name)), name


def test_every_control_was_sorted() -> None:
    assert {f"{c}-{w}" for c, w, _ in SINGLE} > REPAIRED


@pytest.mark.parametrize(
    "do",
    [
        pytest.param(d, id=f"{c}-{w}")
        for c, w, d in SINGLE
        if f"{c}-{w}" not in REPAIRED and c in ("dentry-target", "unreachable", "name", "xattr")
    ],
)
def test_what_would_be_a_guess_is_left_alone(place: Path, do: Damage) -> None:
    apply(place, do)
    before = records(place)
    report = repair(place)
    assert not report.ok
    after = records(place)
    for name in NAMES_AND_BYTES:
        assert set(getattr(before, name)) <= set(getattr(after, name)), name


def test_nothing_to_repair_changes_nothing(place: Path) -> None:
    before = records(place)
    report = repair(place)
    assert report.findings == []
    assert records(place) == before


def test_what_is_repaired_is_shipped(place: Path) -> None:
    """A corrected inode is dirty: the bucket has the wrong one."""
    do = next(d for c, w, d in SINGLE if (c, w) == ("nlink", "file"))
    apply(place, do)
    repair(place)
    after = records(place)
    with opened(place) as cache, cache.read() as view:
        ino = view.resolve(b"linked")
    assert ino is not None
    assert after.is_dirty(keys.T_INODES, keys.pack_u64(ino))


def test_a_cache_in_use_is_refused(place: Path) -> None:
    found = check(place)
    with opened(place):
        before = (place / "data" / "data.mdb").read_bytes()
        with pytest.raises(CacheError) as caught:
            repair_cache(place, found, quiet, boot_id=BOOT)
        assert caught.value.exit_code == ExitCode.ALREADY_MOUNTED
        assert (place / "data" / "data.mdb").read_bytes() == before


def test_a_cache_that_has_to_go_back_first_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "ws") as cache:
        caches.populate(cache)
        left = Path(shutil.copytree(tmp_path / "ws", tmp_path / "left"))
    found = check_cache(left, quiet, boot_id="boot-2")
    with pytest.raises(CacheError, match="as it is"):
        repair_cache(left, found, quiet, boot_id="boot-2")


def test_rotten_bytes_go_only_when_the_right_ones_were_seen(place: Path) -> None:
    with opened(place) as cache, cache.env.begin(write=True) as txn:
        with cache.read() as view:
            ino = view.resolve(b"sparse")
            assert ino is not None
            location = view.chunk(ino, 32)
        key = keys.chunk_key(ino, 32)
        txn.put(key, b"eNd", db=cache.tables.extents)
    assert location is not None
    assert not repair(place).ok
    assert key in records(place).extents
    report = repair(place, Needs(sound=frozenset({location})))
    assert report.ok
    after = records(place)
    assert key not in after.extents
    assert decode_location(after.chunks[key]) == location


def test_what_the_bucket_needs_is_marked(place: Path) -> None:
    tables = records(place)
    key = keys.chunk_key(_ino(place, b"sparse"), 32)
    symlink = _ino(place, b"symlink")
    needs = Needs(
        reship=frozenset({key, keys.chunk_key(_ino(place, b"big"), 0)}),
        remirror=frozenset({(symlink, b"symlink")}),
        relist=True,
        checkpoint=True,
    )
    repair(place, needs)
    after = records(place)
    assert after.is_dirty(keys.T_CHUNKS, key)
    # What is cold can't be shipped from here.
    assert not after.is_dirty(keys.T_CHUNKS, keys.chunk_key(_ino(place, b"big"), 0))
    assert after.is_dirty(keys.T_INODES, keys.pack_u64(symlink))
    assert keys.mirror_key(b"symlink") in tables.mirror.keys() - after.mirror.keys()
    assert after.meta[b"mirror_known"] == b"false"
    assert after.meta[b"checkpoint_due"] == b"true"


def _ino(place: Path, path: bytes) -> int:
    with opened(place) as cache, cache.read() as view:
        found = view.resolve(path)
    assert found is not None
    return found


def test_an_unreadable_identity(place: Path) -> None:
    found = check(place)
    (place / "identity.json").write_text("{")
    with pytest.raises(CacheError, match="not readable"):
        repair_cache(place, found, quiet, boot_id=BOOT)
