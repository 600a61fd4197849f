"""Git state of one mount: when bundles are made, what a failure leaves, how long anybody waits.

The worker's requests run here, at once, on a store in memory; the child's job too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.view import View
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FsError, TransientError
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot import child, maker
from s3ws_fs.snapshot.git import job, service
from s3ws_fs.snapshot.git.getting import download
from s3ws_fs.snapshot.git.restoring import Options, restore
from s3ws_fs.snapshot.git.service import GitState
from s3ws_fs.store.scoped import ScopedStore
from tests.snapshot.bench import Bench
from tests.support import git_states
from tests.support.caches import CRED
from tests.support.into_cache import bring_in
from tests.transfer.conftest import write


class GitBench:
    """A service over a cache whose workspace changes natively."""

    def __init__(self, cache: Cache, fs: FileSystem, store: ScopedStore, top: Path) -> None:
        self.cache, self.fs, self.store, self.top = cache, fs, store, top
        self.bench = Bench(cache, store, top)
        self.workspace = top / "workspace"
        self.jobs = 0
        self.job_error: Exception | None = None
        self.pause_s = 0.0
        self.git = self.another()

    def another(self) -> GitState:
        """The service of a daemon that starts now."""
        return GitState(
            self.bench.config,
            self.cache,
            self.bench.worker,  # type: ignore[arg-type]
            lambda: self.bench.health,
            run_job=self.run_job,
            wall_s=trio.current_time,
        )

    async def run_job(self, asked: dict[str, Any], on_event: child.OnEvent) -> dict[str, Any]:
        self.jobs += 1
        await trio.sleep(self.pause_s)
        if self.job_error is not None:
            raise self.job_error
        return job.run(asked, on_event)

    def change(self, script: str) -> None:
        """A script in the workspace; the cache follows."""
        self.workspace.mkdir(exist_ok=True)
        git_states.run_script(script, self.workspace)
        bring_in(self.fs, self.workspace)

    def check(self, number: int) -> None:
        """The bucket's bundle is the workspace."""
        place = self.top / f"restored {number}"
        downloads = self.top / f"downloads {number}"
        downloads.mkdir()
        restore(download(self.store, b"", downloads), place, Options())
        assert git_states.picture(place) == git_states.picture(self.workspace)
        assert git_states.files(place) == git_states.files(self.workspace)

    @property
    def directory(self) -> Path:
        return self.cache.directory / service.DIRECTORY

    def leavings(self) -> list[Path]:
        """Working directories that are left."""
        return list(self.directory.glob(maker.WORK + "*"))


@pytest.fixture
async def bench(
    cache: Cache,
    fs: FileSystem,
    store: ScopedStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> GitBench:
    # One process can't open a cache twice.
    monkeypatch.setattr(job, "open_reader", lambda _: contextlib.nullcontext(cache))
    monkeypatch.setattr(job, "open_store", lambda *_, **__: store)
    monkeypatch.setattr(store, "close", lambda: None)
    return GitBench(cache, fs, store, tmp_path)


def ignore(_: dict[str, Any]) -> None:
    return


async def test_a_sync_puts_what_changed(
    bench: GitBench, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        bench.change(git_states.STORIES["stashes"])
        said: list[dict[str, Any]] = []
        status = await bench.git.sync(said.append)
        assert status["error"] is None and status["running"] is None
        last = status["last"]
        assert (last["repositories"], last["broken_count"]) == (1, 0)
        assert [item["key"] for item in last["bundles"]] == ["git/workspace.bundle"]
        assert [event["phase"] for event in said][-1] == "git: uploading"
        bench.check(1)
        assert bench.jobs == 1
        await bench.git.sync(ignore)
        assert bench.jobs == 1
        bench.change("echo more >>file")
        await bench.git.sync(ignore)
        assert bench.jobs == 2
        bench.check(2)
        assert not bench.leavings()
        nursery.cancel_scope.cancel()
    # Who comes after knows of it.
    assert not bench.another().is_due()


async def test_without_a_repository_no_child_is_started(bench: GitBench, fs: FileSystem) -> None:
    write(fs, b"file", b"x")
    assert (await bench.git.sync(ignore))["last"] is None
    assert (await bench.git.final(ignore))["last"] is None
    assert bench.jobs == 0
    fs.mkdir(ROOT_INO, b".git", 0o755, CRED)
    assert bench.git.is_due()


async def test_the_directories_that_are_looked_into_are_bounded_and_their_files_are_free(
    bench: GitBench, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOK_MAX", 3)
    for number in range(50):
        write(fs, b"f%d" % number, b"x")
    for number in range(2):
        below = fs.mkdir(ROOT_INO, b"d%d" % number, 0o755, CRED).ino
        fs.mkdir(below, b"empty", 0o755, CRED)
    # The root and two that are not empty.
    assert not bench.another().is_due()
    below = fs.mkdir(ROOT_INO, b"one more", 0o755, CRED).ino
    assert not bench.another().is_due()
    fs.mkdir(below, b"empty", 0o755, CRED)
    assert bench.another().is_due()


@pytest.mark.parametrize("name", [b".git", b"HEAD"])
async def test_a_sign_is_found_wherever_it_stands(
    bench: GitBench, fs: FileSystem, name: bytes
) -> None:
    inos = [fs.mkdir(ROOT_INO, b"d%d" % number, 0o755, CRED).ino for number in range(20)]
    for ino in inos:
        for near in (b".gitignore", b".gi", b"head", b"zzz"):
            fs.create(ino, near, 0o644, CRED)
    assert not bench.git.is_due()
    for ino in (inos[0], inos[9], inos[19]):
        fs.create(ino, name, 0o644, CRED)
        assert bench.git.is_due()
        fs.unlink(ino, name)
        assert not bench.git.is_due()


class Looks:
    """Counts how often names are looked through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = View.has_name

        def has_name(view: View, names: frozenset[bytes], look_max: int) -> bool:
            self.count += 1
            return original(view, names, look_max)

        monkeypatch.setattr(View, "has_name", has_name)


async def test_where_there_was_none_nobody_looks_again(
    bench: GitBench, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)
    write(fs, b"file", b"x")
    assert not bench.git.is_due()
    write(fs, b"another", b"x")
    assert not bench.git.is_due()
    assert looks.count == 1
    # A name of git's that is no repository: looked at once.
    fs.mkdir(ROOT_INO, b"config", 0o755, CRED)
    assert not bench.git.is_due()
    assert not bench.git.is_due()
    assert looks.count == 2
    directory = fs.mkdir(ROOT_INO, b"d", 0o755, CRED).ino
    fs.mkdir(directory, b"elsewhere", 0o755, CRED)
    assert not bench.git.is_due()
    assert looks.count == 2
    fs.rename(directory, b"elsewhere", directory, b".git", 0)
    assert bench.git.is_due()


async def test_what_a_child_did_not_find_is_not_looked_for_again(
    bench: GitBench,
    fs: FileSystem,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A file called HEAD, or too many names to look through."""
    write(fs, b"HEAD", b"of something else")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        await bench.git.sync(ignore)
        assert bench.jobs == 1
        write(fs, b"more", b"x")
        await bench.git.sync(ignore)
        assert bench.jobs == 1
        nursery.cancel_scope.cancel()
    bench.change(git_states.BASE)
    assert bench.git.is_due()


async def test_a_change_in_bulk_may_bring_a_repository(bench: GitBench, fs: FileSystem) -> None:
    write(fs, b"file", b"x")
    assert not bench.git.is_due()
    with bench.cache.write() as tx:
        tx.bulk()
        rec = tx.inode(ROOT_INO)
        assert rec is not None
        tx.put_inode(rec)
        with tx.txn.cursor(db=tx.db.dentries) as cursor:
            cursor.putmulti([(keys.dentry_key(ROOT_INO, b".git"), keys.pack_u64(77))])
    assert bench.git.is_due()


async def test_every_interval_while_something_changed(
    bench: GitBench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.change(git_states.BASE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        await trio.sleep(299)
        assert bench.jobs == 0
        await trio.sleep(2)
        assert bench.jobs == 1
        await trio.sleep(3000)
        assert bench.jobs == 1
        bench.change("echo more >>file")
        await trio.sleep(300)
        assert bench.jobs == 2
        nursery.cancel_scope.cancel()


def _the_child(bench: GitBench) -> Callable[[], None]:
    bench.job_error = TransientError("snapshot", "", "the snapshot child died")

    def mend() -> None:
        bench.job_error = None

    return mend


def _the_store(bench: GitBench) -> Callable[[], None]:
    bench.bench.worker.fails = lambda key: TransientError("put", key, "the store died")

    def mend() -> None:
        bench.bench.worker.fails = lambda _: None

    return mend


def _the_disk(bench: GitBench) -> Callable[[], None]:
    bench.job_error = FsError(28, "the disk died")

    def mend() -> None:
        bench.job_error = None

    return mend


@pytest.mark.parametrize("breaks", [_the_child, _the_store, _the_disk])
async def test_what_failed_is_told_and_tried_again(
    breaks: Callable[[GitBench], Callable[[], None]],
    bench: GitBench,
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench.change(git_states.BASE)
    mend = breaks(bench)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        status = await bench.git.sync(ignore)
        assert "died" in status["error"]
        assert not bench.leavings()
        assert list(bench.store.list("git/")) == []
        await trio.sleep(service.RETRY_S + 1)
        assert bench.jobs == 2
        mend()
        await trio.sleep(service.RETRY_S + 1)
        assert bench.git.status()["error"] is None
        nursery.cancel_scope.cancel()
    bench.check(1)


async def test_nothing_is_tried_while_the_store_is_away(
    bench: GitBench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.change(git_states.BASE)
    bench.bench.health = {"state": "degraded", "since_s": 1.0, "error": "away"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        await trio.sleep(1000)
        assert bench.jobs == 0
        nursery.cancel_scope.cancel()


async def test_a_sync_waits_so_long_and_the_work_goes_on(
    bench: GitBench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.change(git_states.BASE)
    bench.pause_s = service.SYNC_S + 100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        begun_s = trio.current_time()
        status = await bench.git.sync(ignore)
        assert trio.current_time() - begun_s == pytest.approx(service.SYNC_S, abs=1)
        assert status["running"] == "starting"
        await trio.sleep(101)
        assert bench.git.status()["last"]["repositories"] == 1
        assert bench.jobs == 1
        nursery.cancel_scope.cancel()


async def test_a_sync_during_a_look_has_one_of_its_own(
    bench: GitBench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.change(git_states.BASE)
    bench.pause_s = 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        nursery.start_soon(bench.git.sync, ignore)
        await trio.sleep(5)
        assert bench.jobs == 1
        bench.change("echo later >>file")
        await bench.git.sync(ignore)
        bench.check(1)
        nursery.cancel_scope.cancel()


async def test_the_end_waits_so_long_and_no_longer(
    bench: GitBench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.change(git_states.BASE)
    bench.pause_s = service.FINAL_S + 100
    begun_s = trio.current_time()
    status = await bench.git.final(ignore)
    assert trio.current_time() - begun_s == pytest.approx(service.FINAL_S, abs=1)
    assert "when the mount ended" in status["error"]
    assert not bench.leavings()
    bench.pause_s = 0
    assert (await bench.git.final(ignore))["error"] is None
    bench.check(1)


async def test_what_a_daemon_left_is_removed(bench: GitBench) -> None:
    left = bench.directory / f"{maker.WORK}dead"
    left.mkdir(parents=True)
    (left / "half.bundle").touch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        await trio.testing.wait_all_tasks_blocked()
        assert not left.exists()
        nursery.cancel_scope.cancel()


async def test_a_broken_repository_is_told(
    bench: GitBench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.change(
        "git init -q good; cd good; echo x >x; cd ..; mkdir bad; echo 'gitdir: /x' >bad/.git"
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.git.run)
        last = (await bench.git.sync(ignore))["last"]
        assert [item["name"] for item in last["bundles"]] == ["good"]
        assert [item["name"] for item in last["broken"]] == ["bad"]
        assert "outside of the workspace" in last["broken"][0]["why"]
        nursery.cancel_scope.cancel()
