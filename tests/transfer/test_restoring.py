"""A restore is a chain: checkpoint, then each segment continuing the one before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import layout
from s3ws_fs.core.errors import FormatError
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling, restoring
from tests.transfer.conftest import write
from tests.transfer.seals import WORKSPACE, ask, freeze, seal_one


def test_restore_is_a_chain(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    pool: ThreadPoolExecutor,
) -> None:
    journaling.make_workspace(store, WORKSPACE, 1)
    digest = ""
    for number in range(1, 6):
        write(fs, b"f%d" % number, bytes(2_000_000))
        frozen = seal_one(fs, cache, tmp_path, store, number, digest, checkpoint=number == 3)
        digest = frozen.header_hash
    seen: list[tuple[int, int]] = []
    restored = restoring.restore(store, tmp_path, pool, lambda a, b: seen.append((a, b)))
    state, files = restored.state, restored.files
    assert (state.checkpoint, state.newest, state.segments) == (3, 5, (4, 5))
    assert [file.header.kind for file in files] == ["checkpoint", "segment", "segment"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    listed = store.counters.by_op()["list"]
    again = restoring.restore(store, tmp_path, pool, lambda a, b: None, state)
    assert [file.header for file in again.files] == [file.header for file in files]
    assert store.counters.by_op()["list"] == listed, "what stands is known"
    # What was known is gone by now: the journal went on.
    stale = replace(state, checkpoint=1)
    assert restoring.restore(store, tmp_path, pool, lambda a, b: None, stale).state == state
    # A segment of another history, in itself sound.
    write(fs, b"other", b"x")
    stray = freeze(cache, tmp_path, ask(5, prev_hash="0" * 32))
    assert stray.segment is not None
    store.put(layout.seg_key(5), stray.segment.read_bytes())
    with pytest.raises(FormatError, match="continue"):
        restoring.restore(store, tmp_path, pool, lambda a, b: None)
    store.delete(layout.seg_key(4))
    with pytest.raises(FormatError, match="missing"):
        journaling.survey(store)
