"""Sealing, lost answers and fences, on a store that fails on demand."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import layout
from s3ws_fs.core.errors import FormatError, TransientError
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling, sealing
from s3ws_fs.transfer.wire import FencedError, OwnSealError
from tests.transfer.conftest import write
from tests.transfer.seals import WORKSPACE, ask, freeze


def test_a_lost_answer_is_our_own_seal(
    fs: FileSystem, cache: Cache, tmp_path: Path, memory: MemoryStore, store: ScopedStore
) -> None:
    write(fs, b"f", b"x")
    frozen = freeze(cache, tmp_path, ask(1))
    memory.fault = lambda op, key: Fault.LOST if op == "put" else Fault.NONE
    with pytest.raises(TransientError):
        sealing.seal(store, frozen)
    memory.fault = None
    sealing.seal(store, frozen)
    assert journaling.read_header(store, layout.seg_key(1))[0].flush_id == frozen.flush_id


def test_a_seal_needs_what_it_continues(
    fs: FileSystem, cache: Cache, tmp_path: Path, store: ScopedStore
) -> None:
    """The must-create PUT can't tell a bucket that was emptied."""
    with pytest.raises(FormatError, match=r"workspace\.json: is gone"):
        sealing.require_journal(store, 1)
    journaling.make_workspace(store, WORKSPACE, 1)
    sealing.require_journal(store, 1)
    with pytest.raises(FormatError, match="is gone"):
        sealing.require_journal(store, 2)
    write(fs, b"f", b"x")
    sealing.seal(store, freeze(cache, tmp_path, ask(1)))
    sealing.require_journal(store, 2)
    # A segment that a checkpoint folded may be gone.
    store.delete(layout.seg_key(1))
    store.put(layout.ckpt_key(1), b"checkpoint")
    sealing.require_journal(store, 2)


def test_a_late_seal_of_our_own_and_a_fence(
    fs: FileSystem, cache: Cache, tmp_path: Path, store: ScopedStore
) -> None:
    write(fs, b"f", b"x")
    sealing.seal(store, freeze(cache, tmp_path, ask(1)))
    with pytest.raises(OwnSealError):
        sealing.seal(store, freeze(cache, tmp_path, ask(1)))
    with pytest.raises(FencedError, match="host-of-me"):
        sealing.seal(store, freeze(cache, tmp_path, ask(1, writer="other")))
