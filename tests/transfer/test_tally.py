"""Counting what stands below a prefix."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import layout
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.tally import DELETING, FORKING, NONE, WORKSPACE, live, tally
from tests.support.history import Life


def test_everything_counts_where_it_belongs(store: ScopedStore, memory: MemoryStore) -> None:
    sizes = {
        "files/a": 3,
        "files/b/c": 4,
        layout.WORKSPACE_KEY: 5,
        layout.seg_key(1): 6,
        layout.seg_key(2): 7,
        "compressed/backup-x.tar.gz": 8,
        "git/workspace.bundle": 9,
        "something/else": 10,
    }
    for key, size in sizes.items():
        store.put(key, b"x" * size)
    memory.put("conversations/u/c/events/1", b"not ours")
    before = memory.counters.by_op()
    found = tally(store)
    assert memory.counters.by_op()["list"] - before["list"] == 1
    areas = {name: (area.objects, area.bytes) for name, area in found.areas.items()}
    assert areas == {
        "mirror": (2, 7),
        "journal": (3, 18),
        "backups": (1, 8),
        "git": (1, 9),
        "other": (1, 10),
    }
    assert (found.objects, found.bytes, found.newest) == (8, sum(sizes.values()), 2)
    assert found.sealed_ns == store.head(layout.seg_key(2)).modified_ns
    assert found.state == WORKSPACE
    document = found.to_json()
    assert document["areas"]["git"] == {"objects": 1, "bytes": 9}
    assert document["last_seal_s"] == round((found.sealed_ns or 0) / 1e9, 3)


@pytest.mark.parametrize(
    ("keys", "state"),
    [
        ([], NONE),
        (["files/by-hand"], NONE),
        ([layout.FORK_KEY, layout.seg_key(1)], FORKING),
        ([layout.DELETED_KEY, layout.seg_key(1)], DELETING),
        ([layout.DELETED_KEY, layout.WORKSPACE_KEY], WORKSPACE),
    ],
)
def test_what_it_is(store: ScopedStore, keys: list[str], state: str) -> None:
    for key in keys:
        store.put(key, b"")
    assert tally(store).state == state


def test_what_the_workspace_holds(
    cache: Cache, fs: FileSystem, store: ScopedStore, pool: ThreadPoolExecutor, tmp_path: object
) -> None:
    life = Life(cache, fs, store, tmp_path)  # type: ignore[arg-type]
    life.begin()
    assert live(store, tally(store)) is None
    life.write(b"f", b"x" * 10_000)
    frozen = life.seal(pool)
    assert frozen is not None
    frozen.close()
    header = live(store, tally(store))
    assert header is not None and (header.used_bytes, header.inodes) == (12288, 2)
    store.put(layout.seg_key(2), b"damaged")
    assert live(store, tally(store)) is None
