"""Backups of one mount: when they are made, what a failure leaves, and what status says.

The worker's requests run here, at once, on a store in memory; the child's job too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import backups
from s3ws_fs.core.errors import FsError, PermanentError, TransientError, UserError
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot import maker, reading, service
from s3ws_fs.store.scoped import ScopedStore
from tests.snapshot.bench import KEEP_LAST_ONLY, Bench
from tests.support.caches import evict, seal
from tests.transfer.conftest import write


@pytest.fixture
async def bench(cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path) -> Bench:
    (tmp_path / "bucket").mkdir()
    return Bench(cache, store, tmp_path)


async def test_a_backup_and_what_is_said_of_it(bench: Bench, fs: FileSystem) -> None:
    write(fs, b"file", b"bytes")
    write(fs, b"left.tmp", b"out")
    said: list[dict[str, Any]] = []
    done = await bench.backups.backup(said.append)
    assert bench.names() == [done["name"]]
    assert bench.content(done["name"]) == {"file": b"bytes"}
    assert [event["phase"] for event in said] == ["copying", "copied", "packing", "uploading"]
    status = bench.backups.status()
    assert status["last"] == done
    assert status["running"] is None and status["error"] is None and status["emergency"] is None
    assert (done["entries"], done["left_out"], done["missing"]) == (2, 1, 0)
    assert not any(bench.directory.iterdir())
    info = bench.store.head(backups.index_key(done["name"]))
    assert info.metadata[backups.META_BYTES] == str(done["bytes"])
    # Who comes after knows of it.
    assert bench.another().status()["last"] == done


async def test_one_every_interval_while_something_changed(
    bench: Bench, fs: FileSystem, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.backups.run)
        write(fs, b"file", b"1")
        await trio.sleep(299)
        assert bench.jobs == 0
        await trio.sleep(1 + service.TICK_S)
        assert bench.jobs == 1
        await trio.sleep(3000)
        assert bench.jobs == 1
        write(fs, b"other", b"2")
        await trio.sleep(2 * service.TICK_S)
        assert bench.jobs == 2
        write(fs, b"third", b"3")
        await trio.sleep(250)
        assert bench.jobs == 2
        await trio.sleep(70)
        assert bench.jobs == 3
        nursery.cancel_scope.cancel()
    assert len(bench.names()) == 3


async def test_a_failed_one_leaves_nothing_and_is_tried_again(
    bench: Bench, fs: FileSystem, autojump_clock: trio.testing.MockClock
) -> None:
    write(fs, b"file", b"1")
    bench.worker.fails = lambda key: (
        TransientError("put", key, "away") if key.endswith(backups.INDEX_SUFFIX) else None
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.backups.run)
        await trio.sleep(320)
        assert bench.jobs == 1
        assert bench.names() == []
        assert "away" in bench.backups.status()["error"]
        assert not any(bench.directory.iterdir())
        bench.worker.fails = lambda _: None
        bench.job_error = FsError(28, "disk full")
        await trio.sleep(50)
        assert "disk full" in bench.backups.status()["error"]
        bench.job_error = None
        await trio.sleep(100)
        assert bench.backups.status()["error"] is None
        nursery.cancel_scope.cancel()
    (name,) = bench.names()
    assert bench.content(name) == {"file": b"1"}


@pytest.mark.parametrize("deaths", [maker.UPLOAD_TRIES - 1, maker.UPLOAD_TRIES])
async def test_a_worker_that_dies_on_the_way(bench: Bench, fs: FileSystem, deaths: int) -> None:
    """What was made is sent again, a limited number of times."""
    write(fs, b"file", b"1")
    left = [TransientError("put-file", "", "the transfer worker died")] * deaths
    bench.worker.fails = lambda key: left.pop() if left and key.endswith(".gz") else None
    if deaths == maker.UPLOAD_TRIES:
        with pytest.raises(TransientError):
            await bench.backups.backup(lambda _: None)
        assert bench.names() == []
    else:
        await bench.backups.backup(lambda _: None)
        assert len(bench.names()) == 1
    assert bench.jobs == 1


async def test_old_ones_go(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    bench = Bench(cache, store, tmp_path, backup_keep_last=2, **KEEP_LAST_ONLY)
    store.put("compressed/mine.tar.gz", b"not ours")
    for number in range(4):
        write(fs, b"f%d" % number, b"x")
        await bench.backups.backup(lambda _: None)
    assert len(bench.names()) == 2
    assert {e.key for e in store.list("compressed/")} == {"compressed/mine.tar.gz"} | {
        key
        for name in bench.names()
        for key in (backups.archive_key(name), backups.index_key(name))
    }
    assert "f3" in bench.content(bench.names()[0])


async def test_a_failure_to_drop_is_no_failure(bench: Bench, fs: FileSystem) -> None:
    bench.worker.fails = lambda key: (
        TransientError("list", "", "away") if key == "list-below" else None
    )
    write(fs, b"file", b"x")
    done = await bench.backups.backup(lambda _: None)
    assert bench.names() == [done["name"]]


async def test_the_store_is_away_for_long(
    bench: Bench, fs: FileSystem, autojump_clock: trio.testing.MockClock
) -> None:
    """An emergency backup is kept here, without what is only in the bucket, and goes up later."""
    cold = write(fs, b"cold", b"c" * 10)
    seal(bench.cache)
    evict(bench.cache, cold, 0)
    write(fs, b"file", b"unsaved")
    bench.worker.fails = lambda key: TransientError("put", key, "away")
    bench.health = {"state": "degraded", "since_s": 100.0, "error": "no answer"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.backups.run)
        await trio.sleep(400)
        assert bench.jobs == 0
        bench.health["since_s"] = backups.EMERGENCY_AFTER_S
        await trio.sleep(2 * service.TICK_S)
        assert bench.jobs == 1
        kept = bench.backups.status()["emergency"]
        assert "no answer" in kept["why"]
        place = Path(kept["path"]) / (kept["name"] + backups.ARCHIVE_SUFFIX)
        assert reading.open_local(place).index.entries[-1].path == b"file"
        await trio.sleep(4000)
        assert bench.jobs == 1
        write(fs, b"more", b"unsaved too")
        await trio.sleep(400)
        assert bench.jobs == 2
        assert len(list(bench.directory.iterdir())) == 1
        # A daemon that starts meanwhile keeps it.
        bench.another()
        bench.health = {"state": "ok", "since_s": None, "error": None}
        bench.worker.fails = lambda _: None
        await trio.sleep(2 * service.TICK_S)
        nursery.cancel_scope.cancel()
    (name,) = bench.names()
    assert bench.content(name) == {"file": b"unsaved", "more": b"unsaved too"}
    assert reading.list_backups(bench.store)[0].missing == 1
    assert bench.backups.status()["emergency"] is None


async def test_the_final_flush_failed(bench: Bench, fs: FileSystem) -> None:
    write(fs, b"file", b"unsaved")
    await bench.backups.stop()
    place = await bench.backups.final(": no answer")
    assert place is not None
    assert bench.backups.status()["emergency"]["path"] == str(place)
    assert "no answer" in bench.backups.status()["emergency"]["why"]
    bench.job_error = OSError(28, "no room")
    assert await bench.backups.final("") is None
    # The one before stays.
    assert place.exists()


async def test_no_backups_no_emergency(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    bench = Bench(cache, store, tmp_path, backup_interval_s=0.0)
    write(fs, b"file", b"unsaved")
    assert await bench.backups.final("") is None
    assert bench.jobs == 0


async def test_an_emergency_that_is_not_whole_is_dropped(bench: Bench, fs: FileSystem) -> None:
    write(fs, b"file", b"unsaved")
    place = await bench.backups.emergency("test")
    archive = next(place.glob("*.tar.gz"))
    archive.write_bytes(archive.read_bytes()[:-1])
    (bench.directory / "work-0000").mkdir()
    assert bench.backups.status()["emergency"] is None
    bench.another()
    assert not any(bench.directory.iterdir())


async def test_something_else_than_the_store_fails_for_long(
    bench: Bench, fs: FileSystem, autojump_clock: trio.testing.MockClock
) -> None:
    """A mirror that can't be written, say: what is sealed is backed up, what was kept goes up."""
    write(fs, b"file", b"1")
    bench.health = {"state": "degraded", "since_s": 5000.0, "error": "the mirror"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.backups.run)
        await trio.sleep(350)
        assert bench.jobs == 1
        (name,) = bench.names()
        assert bench.backups.status()["emergency"] is None
        write(fs, b"more", b"2")
        seal(bench.cache)
        await trio.sleep(350)
        nursery.cancel_scope.cancel()
    assert bench.jobs == 2
    assert set(bench.content(bench.names()[0])) == {"file", "more"}
    assert bench.names()[1] == name


async def test_what_another_host_backed_up_is_not_backed_up_again(
    bench: Bench, fs: FileSystem, autojump_clock: trio.testing.MockClock
) -> None:
    write(fs, b"file", b"1")
    await bench.backups.backup(lambda _: None)
    bench.cache.put_json(service.NOTE, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.another().run)
        await trio.sleep(1000)
        assert bench.jobs == 1
        write(fs, b"file2", b"2")
        await trio.sleep(350)
        assert bench.jobs == 2
        nursery.cancel_scope.cancel()


async def test_fenced_is_final(
    bench: Bench, fs: FileSystem, autojump_clock: trio.testing.MockClock
) -> None:
    write(fs, b"file", b"x")
    bench.health = {"state": "fenced", "since_s": 5000.0, "error": "another writer"}
    with trio.move_on_after(5000):
        await bench.backups.run()
    assert bench.jobs == 0
    assert bench.worker.asked == []


async def test_the_end_of_the_mount_ends_one_under_way(bench: Bench, fs: FileSystem) -> None:
    write(fs, b"file", b"x")
    begun = trio.Event()

    async def forever(*_: Any) -> dict[str, Any]:
        begun.set()
        await trio.sleep_forever()
        raise AssertionError

    bench.backups._run_job = forever
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(UserError, match="ending"):
                await bench.backups.backup(lambda _: None)

        nursery.start_soon(ask)
        await begun.wait()
        assert bench.backups.status()["running"] == "starting"
        await bench.backups.stop()
    assert not any(bench.directory.iterdir())
    with pytest.raises(UserError, match="ending"):
        await bench.backups.backup(lambda _: None)


async def test_two_in_one_second_have_two_names(bench: Bench, fs: FileSystem) -> None:
    for number in range(3):
        write(fs, b"f%d" % number, b"x")
        await bench.backups.backup(lambda _: None)
    assert len(set(bench.names())) == 3


# --- the worker's requests


async def test_only_below_its_prefixes(bench: Bench) -> None:
    (bench.cache.directory / "a").write_bytes(b"12345")
    for key in ("files/x", "journal/seg/0000000000000001", "compressed", "../x", "x/compressed/y"):
        with pytest.raises(PermanentError):
            await bench.worker.ask("put-file", key=key, file="a", size_bytes=5)
        with pytest.raises(PermanentError):
            await bench.worker.ask("drop-below", keys=["compressed/x", key])
        with pytest.raises(PermanentError):
            await bench.worker.ask("list-below", prefix=key)
    assert list(bench.store.list()) == []
    await bench.worker.ask("put-file", key="git/x.bundle", file="a", size_bytes=5)
    assert bench.store.get("git/x.bundle").data == b"12345"


async def test_only_files_of_the_cache(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"12345")
    inside = bench.cache.directory / "in"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "secret")
    (bench.cache.directory / "up").symlink_to(tmp_path)
    for name in ("../secret", "/etc/hostname", "in/link", "up/secret", "in/../in/link", ""):
        with pytest.raises((PermanentError, OSError)):
            await bench.worker.ask("put-file", key="compressed/x", file=name, size_bytes=5)
    (inside / "short").write_bytes(b"1234")
    with pytest.raises(PermanentError, match="4 bytes, not 5"):
        await bench.worker.ask("put-file", key="compressed/x", file="in/short", size_bytes=5)
    assert list(bench.store.list()) == []


async def test_listings_have_a_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3ws_fs.transfer.requests.keeping.LISTED_MAX", 3)
    monkeypatch.setattr("s3ws_fs.transfer.requests.keeping.LIST_BATCH", 2)
    listed: list[Any] = []

    async def part(body: dict[str, Any], _: memoryview) -> None:
        listed.append(body["objects"])

    for number in range(3):
        bench.store.put(f"compressed/{number}", b"x", metadata={"a": "b"})
    await bench.worker.ask("list-below", part, prefix="compressed/", metadata_of="2")
    assert [len(batch) for batch in listed] == [2, 1]
    assert listed[1] == [["compressed/2", 1, {"a": "b"}]]
    assert listed[0][0] == ["compressed/0", 1, None]
    bench.store.put("compressed/3", b"x")
    with pytest.raises(PermanentError, match="more than 3"):
        await bench.worker.ask("list-below", part, prefix="compressed/")


async def test_nothing_is_read_but_the_root(bench: Bench, fs: FileSystem) -> None:
    """An empty workspace has a backup, too: its root."""
    done = await bench.backups.backup(lambda _: None)
    assert done["entries"] == 1
    assert bench.content(done["name"]) == {}
    assert fs.getattr(ROOT_INO).nlink == 2
