"""Passes of the mirror that fail in part, over a cache and a store in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import layout
from s3ws_fs.core.errors import PermanentError
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import mirror
from s3ws_fs.transfer.fetch import ExtentSource
from s3ws_fs.transfer.freeze import freeze
from s3ws_fs.transfer.layouts import Layouts
from s3ws_fs.transfer.mirror import (
    DELETE_BATCH,
    REFUSED_PLACES_MAX,
    REFUSED_ROW_MAX,
    SUBMIT_WINDOW,
    Batch,
    MirrorPass,
    Outcome,
)
from tests.support import caches
from tests.transfer.conftest import CRED, write
from tests.transfer.seals import WORKSPACE, ask

Run = Callable[[], Outcome]


@pytest.fixture
def stop() -> threading.Event:
    """Ends a pass early."""
    return threading.Event()


@pytest.fixture
def hurry() -> list[Callable[[], None]]:
    """What the next report calls."""
    return []


@pytest.fixture
def run(
    cache: Cache,
    store: ScopedStore,
    tmp_path: Path,
    pool: ThreadPoolExecutor,
    stop: threading.Event,
    hurry: list[Callable[[], None]],
) -> Run:
    """A flush and a mirror pass, noted in the cache as the daemon does."""
    number = 0

    def report(batch: Batch) -> None:
        cache.record_mirrored(batch.rows, batch.removed, ())
        while hurry:
            hurry.pop()()

    def run_pass() -> Outcome:
        nonlocal number
        number += 1
        frozen = freeze(cache, tmp_path, ask(number), stopped=stop.is_set)
        caches.seal(cache)
        mirroring = MirrorPass(
            store,
            ExtentSource(store, cache, frozen),
            frozen,
            workspace=WORKSPACE,
            directory=tmp_path,
            layouts=Layouts(tmp_path / "layouts", WORKSPACE),
            pool=pool,
            report=report,
            stopped=stop.is_set,
        )
        outcome = mirroring.run()
        mirroring.finish_dirs()
        cache.record_mirrored((), (), list(mirroring.done()))
        frozen.close()
        return outcome

    return run_pass


def standing(store: ScopedStore) -> dict[str, bytes]:
    return {
        entry.key.removeprefix(layout.FILES_PREFIX): store.get(entry.key).data
        for entry in store.list(layout.FILES_PREFIX)
    }


def test_deletions_are_interrupted_too(
    cache: Cache,
    fs: FileSystem,
    store: ScopedStore,
    run: Run,
    stop: threading.Event,
    hurry: list[Callable[[], None]],
) -> None:
    """Whoever waits for a snapshot does not wait until a large tree is gone from the mirror."""
    count = 2 * DELETE_BATCH + 1
    inos = [write(fs, b"%d" % number, b"x") for number in range(count)]
    assert run().error is None
    for number, ino in enumerate(inos):
        fs.unlink(ROOT_INO, b"%d" % number)
        fs.forget(ino)
    fs.reap()
    hurry.append(stop.set)
    outcome = run()
    assert outcome.stopped
    assert len(standing(store)) == count - DELETE_BATCH
    with cache.read() as view:
        assert view.mtodo_count() >= count - DELETE_BATCH
    stop.clear()
    outcome = run()
    assert not outcome.stopped
    assert standing(store) == {}
    with cache.read() as view:
        assert view.mtodo_count() == 0


def test_a_directory_that_is_moved_back_after_half_a_pass(
    cache: Cache, fs: FileSystem, memory: MemoryStore, store: ScopedStore, run: Run
) -> None:
    """Its row said that it had never been away: what stood at the other place stayed for ever, and
    what had gone from here was not put again."""
    top = fs.mkdir(ROOT_INO, b"here", 0o755, CRED).ino
    below = fs.mkdir(top, b"below", 0o755, CRED).ino
    for name in (b"f", b"g"):
        write(fs, name, name)
        fs.rename(ROOT_INO, name, below, name)
    assert run().error is None
    there = {"here/below/f": b"f", "here/below/g": b"g"}
    assert standing(store) == there
    fs.rename(ROOT_INO, b"here", ROOT_INO, b"away")
    memory.fault = lambda _, key: (
        Fault.TRANSIENT if key.endswith("files/away/below/g") else Fault.NONE
    )
    assert run().error is not None
    assert "away/below/f" in standing(store)
    memory.fault = None
    fs.rename(ROOT_INO, b"away", ROOT_INO, b"here")
    assert run().error is None
    assert standing(store) == there
    with cache.read() as view:
        assert view.mtodo_count() == 0


def test_a_plan_that_is_not_waited_for(
    cache: Cache, fs: FileSystem, store: ScopedStore, run: Run, stop: threading.Event
) -> None:
    """The seal is as ever; of the mirror nothing is touched, and nothing is forgotten."""
    write(fs, b"stays", b"1")
    write(fs, b"goes", b"2")
    assert run().error is None
    write(fs, b"comes", b"3")
    fs.rename(ROOT_INO, b"goes", ROOT_INO, b"went")
    stop.set()
    outcome = run()
    assert outcome.stopped
    assert standing(store) == {"stays": b"1", "goes": b"2"}
    with cache.read() as view:
        assert view.dirty_count() == 0
    stop.clear()
    assert not run().stopped
    assert standing(store) == {"stays": b"1", "went": b"2", "comes": b"3"}
    with cache.read() as view:
        assert view.mtodo_count() == 0


def test_what_another_file_could_not_replace_is_removed_in_the_end(
    cache: Cache, fs: FileSystem, memory: MemoryStore, store: ScopedStore, run: Run
) -> None:
    """Found by the simulation: a file is gone, the one that took its name could not be put there,
    and got another name before the next pass. Nobody looked at the name again."""
    gone = write(fs, b"name", b"of the one that goes")
    assert run().error is None
    fs.unlink(ROOT_INO, b"name")
    fs.forget(gone)
    fs.reap()
    write(fs, b"name", b"of the one that comes")
    memory.fault = lambda op, key: (
        Fault.TRANSIENT if op == "put" and key.endswith("files/name") else Fault.NONE
    )
    assert run().error is not None
    memory.fault = None
    fs.rename(ROOT_INO, b"name", ROOT_INO, b"other name")
    assert run().error is None
    assert standing(store) == {"other name": b"of the one that comes"}
    with cache.read() as view:
        assert view.mtodo_count() == 0


def test_a_renamed_file_whose_object_was_edited_outside_is_put(
    cache: Cache, fs: FileSystem, store: ScopedStore, run: Run
) -> None:
    """Found by the simulation: the copy's condition failed, and was taken for one of its target,
    pass after pass."""
    write(fs, b"old", b"ours")
    assert run().error is None
    info = store.head("files/old")
    store.put("files/old", b"theirs", content_type=info.content_type)
    fs.rename(ROOT_INO, b"old", ROOT_INO, b"new")
    run()
    assert run().error is None
    assert standing(store) == {"old": b"theirs", "new": b"ours"}


def test_a_store_that_refuses_everything_is_not_asked_for_everything(
    fs: FileSystem, memory: MemoryStore, run: Run
) -> None:
    """A policy without the right to write files/ was asked once for each file, pass after pass."""
    asked: list[str] = []

    def refuse(op: str, key: str) -> Fault:
        asked.append(key)
        return Fault.PERMANENT if "files/" in key else Fault.NONE

    for number in range(1000):
        write(fs, b"%d" % number, b"x")
    memory.fault = refuse
    outcome = run()
    assert outcome.stopped
    assert isinstance(outcome.error, PermanentError)
    # At each place those in a row, and what the pool had begun when the last of them came back.
    assert len(asked) <= REFUSED_PLACES_MAX * (REFUSED_ROW_MAX + SUBMIT_WINDOW)
    memory.fault = None
    assert run().error is None


@pytest.mark.parametrize(
    ("refused", "ends"), [(REFUSED_ROW_MAX - 1, False), (REFUSED_ROW_MAX, True)]
)
def test_so_many_in_a_row_and_no_fewer(
    refused: int, ends: bool, fs: FileSystem, memory: MemoryStore, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(mirror, "REFUSED_PLACES_MAX", 1)
    names = [f"{number:04}" for number in range(refused + 200)]
    for name in names:
        write(fs, name.encode(), b"x")
    memory.fault = lambda _, key: (
        Fault.PERMANENT if key.rpartition("/")[2] in names[:refused] else Fault.NONE
    )
    outcome = run()
    assert outcome.stopped == ends
    assert isinstance(outcome.error, PermanentError)
    assert (outcome.written == 200) == (not ends)


def test_what_is_not_refused_comes_to_be_all_the_same(
    fs: FileSystem, memory: MemoryStore, store: ScopedStore, run: Run
) -> None:
    """One directory of many files may not be written: all others are, after some passes."""
    denied = fs.mkdir(ROOT_INO, b"denied", 0o755, CRED).ino
    for number in range(500):
        name = b"%d" % number
        write(fs, name, b"x")
        fs.rename(ROOT_INO, name, denied, name)
    for number in range(20):
        write(fs, b"after-%d" % number, b"x")
        write(fs, b"before-%d" % number, b"x")
    memory.fault = lambda _, key: Fault.PERMANENT if "/denied/" in key else Fault.NONE
    for _ in range(30):
        run()
        if len(standing(store)) == 40:
            break
    assert len(standing(store)) == 40
    memory.fault = None
    assert run().error is None
    assert len(standing(store)) == 540


def test_deletions_that_are_refused_end_as_well(
    cache: Cache, fs: FileSystem, memory: MemoryStore, store: ScopedStore, run: Run
) -> None:
    count = (REFUSED_PLACES_MAX + 2) * DELETE_BATCH
    inos = [write(fs, b"%d" % number, b"x") for number in range(count)]
    assert run().error is None
    for number, ino in enumerate(inos):
        fs.unlink(ROOT_INO, b"%d" % number)
        fs.forget(ino)
    fs.reap()
    asked: list[str] = []

    def refuse(op: str, key: str) -> Fault:
        asked.append(key)
        return Fault.PERMANENT if op.startswith("delete") else Fault.NONE

    memory.fault = refuse
    outcome = run()
    assert outcome.stopped
    assert isinstance(outcome.error, PermanentError)
    assert len({key for key in asked if "files/" in key}) <= REFUSED_PLACES_MAX * DELETE_BATCH
    memory.fault = None
    assert run().error is None
    assert standing(store) == {}
    with cache.read() as view:
        assert view.mtodo_count() == 0
