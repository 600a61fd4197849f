"""What is not whole is never pushed: restores, imports and hydrations that fail or stop half-way.

Each is stopped at every durable state it passes, at each of its failpoints by SIGKILL, by an error
of each request, by a full disk at each commit, and by a lost mark. Until a restore has come to its
end, the bucket stays byte for byte as it was (keys and ETags; the probe's scratch and the lease
aside); afterwards the workspace is what was sealed.
"""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
import trio
from trio.testing import MockClock

from s3ws_fs.cache.cache import open_cache
from s3ws_fs.core import failpoints, journal
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.core.layout import LEASE_KEY
from s3ws_fs.daemon.parts import identity
from s3ws_fs.store.base import ObjectStore
from s3ws_fs.store.local import LocalStore
from s3ws_fs.store.memory import MemoryStore
from tests.crash.rig import HYDRATE, Rig, fast_directory, ignore, seen, small_limits
from tests.crash.workloads import FIRST
from tests.replica.conftest import CRED, Mount
from tests.support.armed import KILL, Listener, Plan, listening
from tests.support.faulty_store import Fault, FaultyStore, Request
from tests.support.files_model import State
from tests.support.inline import BOOT, Ticks, inline_config, inline_mount
from tests.support.pair import has_user_xattrs

RESTORE_POINTS = (
    failpoints.RESTORE_CLEARED,
    failpoints.RESTORE_FETCHED,
    failpoints.RESTORE_BATCH,
    failpoints.RESTORE_LOADED,
)
HYDRATE_POINTS = (failpoints.HYDRATE_FETCHED, failpoints.HYDRATE_STORED, failpoints.HYDRATE_AFTER)
IMPORT_POINTS = (failpoints.RESTORE_CLEARED, failpoints.IMPORT_FILE, failpoints.IMPORT_AFTER)
REQUESTS_MAX = 200
COMMITS_MAX = 200

Listing = dict[str, str]


def listing(store: ObjectStore) -> Listing:
    """Key and ETag of everything, but for the probe's scratch and the lease of who mounts."""
    aside = ("/journal/probe/", "/" + LEASE_KEY)
    return {e.key: e.etag for e in store.list() if not any(part in e.key for part in aside)}


def is_fence(store: ObjectStore, key: str) -> bool:
    """Whether that is a segment without any record."""
    if "/journal/seg/" not in key:
        return False
    header = journal.decode_header(store.get(key, 0, journal.HEADER_BYTES).data, key)
    return header.puts == header.tombs == header.data_bytes == 0


def run(config: MountConfig, store: ObjectStore, *, hydrate: bool = True) -> State:
    """Mount, fetch everything, look, and go: nothing is flushed. Raises what the mount raises."""

    async def work() -> State:
        async with inline_mount(config, store, seed=3) as mount:
            if hydrate:
                await mount.replica.hydrate()
            return await seen(mount)

    with small_limits():
        return trio.run(work, clock=MockClock(autojump_threshold=0))


def save(config: MountConfig, store: ObjectStore) -> State:
    """The next mount, and its final flush."""

    async def work() -> State:
        async with inline_mount(config, store, seed=4) as mount:
            found = await seen(mount)
            assert await mount.replica.final_flush(ignore) == []
            return found

    with small_limits():
        return trio.run(work, clock=MockClock(autojump_threshold=0))


@pytest.fixture(scope="module")
def first() -> Iterator[Rig]:
    """A workspace in its bucket."""
    with fast_directory("s3ws-gate-") as base:
        rig = Rig(Path(base) / "first", is_watching=False)
        rig.run(FIRST)
        yield rig


@pytest.fixture
def config(first: Rig) -> Iterator[MountConfig]:
    """A host without a cache."""
    with fast_directory("s3ws-gate-host-") as base:
        yield inline_config(Path(base))


def by_hand(store: ObjectStore) -> Listing:
    """A prefix that somebody filled."""
    prefix = inline_config(Path("/")).workspace.prefix
    for number in range(6):
        store.put(f"{prefix}files/d{number % 2}/f{number}", bytes([number]) * 40_000)
    return listing(store)


def test_at_every_durable_state_of_a_restore(first: Rig) -> None:
    """Between any two requests or commits, to the mark that says it is whole, and hydrating."""
    before = listing(first.store)
    with fast_directory("s3ws-gate-second-") as base:
        second = Rig.after(first, Path(base) / "second")
        second.run((HYDRATE,))
        states = 0
        for crash in second.crashes:
            assert listing(crash.store) == before, crash.event
            states += 1
        assert states > 20
        assert set(RESTORE_POINTS) | set(HYDRATE_POINTS) <= set(second.passed)
        for crash in second.crashes:
            second.killed(crash)


@pytest.mark.parametrize("point", (*RESTORE_POINTS, *HYDRATE_POINTS))
def test_killed_in_a_restore(first: Rig, point: str, config: MountConfig, tmp_path: Path) -> None:
    base = Path(config.cache_dir).parent
    store = on_disk(first.store, base / "bucket")
    killed_at(point, config, store, tmp_path)
    assert run(config, store) == first.files.state()
    unchanged = listing(store)
    assert save(config, store) == first.files.state()
    assert listing(store) == unchanged


@pytest.mark.parametrize("point", IMPORT_POINTS)
def test_killed_in_an_import(point: str, config: MountConfig, tmp_path: Path) -> None:
    base = Path(config.cache_dir).parent
    (base / "bucket").mkdir()
    require_xattrs(base)
    store = LocalStore(str(base / "bucket"))
    by_hand(store)
    killed_at(point, config, store, tmp_path)
    files = {path: shown[1] for path, shown in run(config, store).items() if shown[0] == "file"}
    assert files == {f"d{n % 2}/f{n}": bytes([n]) * 40_000 for n in range(6)}


def require_xattrs(base: Path) -> None:
    if not has_user_xattrs(base):
        pytest.skip("no user xattrs there: the storage type local can't use it")


def on_disk(store: ObjectStore, directory: Path) -> LocalStore:
    """The same objects in a directory."""
    directory.mkdir()
    require_xattrs(directory)
    made = LocalStore(str(directory))
    for entry in store.list():
        info = store.head(entry.key)
        made.put(
            entry.key, store.get(entry.key).data,
            content_type=info.content_type, metadata=info.metadata,
        )  # fmt: skip
    return made


def killed_at(point: str, config: MountConfig, store: LocalStore, marks: Path) -> None:
    """SIGKILL at the point, in the first half of its passings; the bucket is as it was."""
    before = listing(store)
    plan = Plan(point, KILL, str(marks), nth=1 if "batch" not in point else 2)
    with warnings.catch_warnings():
        # The child has one thread, and uses nothing that another may have locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            with listening(Listener(plan)):
                run(config, store)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    assert plan.struck
    assert listing(store) == before


@pytest.mark.parametrize("what", ["restore", "import"])
@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.DENIED], ids=["error", "refused"])
def test_a_store_that_fails_half_way(first: Rig, what: str, fault: Fault) -> None:
    """The n-th request of the mount and all later ones, for every n: nothing heals by itself."""
    refused = 0
    for number in range(1, REQUESTS_MAX):
        with fast_directory("s3ws-gate-n-") as base:
            config = inline_config(Path(base))
            store = first.store.fork() if what == "restore" else MemoryStore()
            before = listing(store) if what == "restore" else by_hand(store)

            def choose(request: Request, nth: int = number) -> Fault | None:
                return fault if request.number >= nth else None

            try:
                run(config, FaultyStore(store, choose), hydrate=False)
            except S3wsError:
                refused += 1
            else:
                break
            now = listing(store)
            if what == "import":
                # The last request of all gives the new workspace its name.
                now = {key: etag for key, etag in now.items() if key in before}
            assert now == before, number
            found = save(config, store)
            if what == "restore":
                assert found == first.files.state(), number
    else:
        raise AssertionError("the mount never came to be")
    assert refused > 4


@pytest.mark.parametrize("what", ["restore", "import"])
def test_a_disk_that_is_full_half_way(first: Rig, what: str) -> None:
    """At the n-th commit of the mount, for every n."""
    hits = 0
    for number in range(1, COMMITS_MAX, 3 if what == "restore" else 5):
        with fast_directory("s3ws-gate-n-") as base:
            config = inline_config(Path(base))
            store = first.store.fork() if what == "restore" else MemoryStore()
            before = listing(store) if what == "restore" else by_hand(store)
            count = 0

            def full(point: str, nth: int = number) -> None:
                nonlocal count
                if point in (failpoints.BOOK_BEFORE, failpoints.COMMIT_BEFORE):
                    count += 1
                    if count >= nth:
                        raise lmdb.MapFullError("injected: MDB_MAP_FULL")

            try:
                with listening(full):
                    run(config, store, hydrate=False)
            except S3wsError:
                hits += 1
            else:
                break
            now = {key: etag for key, etag in listing(store).items() if key in before}
            assert now == before, number
            assert listing(store).keys() - before.keys() <= {
                config.workspace.prefix + "journal/workspace.json"
            }
            found = save(config, store)
            if what == "restore":
                assert found == first.files.state(), number
    assert hits > 4


def test_a_cache_without_the_mark_is_made_anew(first: Rig, config: MountConfig) -> None:
    """Whatever is in it, dirty or not, it is no workspace: the bucket's is."""
    store = first.store.fork()
    run(config, store)
    before = listing(store)
    cache = open_cache(
        Path(config.workspace_cache_dir), identity(config),
        quota_bytes=config.max_size_bytes, now_ns=Ticks(), boot_id=BOOT,
    )  # fmt: skip
    with cache:
        with cache._book() as txn:
            txn.delete(b"restored", db=cache.tables.meta)
        cache.add_mirror_todo([2, 3], 1)

    async def work() -> None:
        async with inline_mount(config, store, on_open=spoil) as mount:
            assert await seen(mount) == first.files.state()
            with mount.cache.read() as view:
                assert view.dirty_count() == 0
            now = listing(store)
            assert {key: now[key] for key in before} == before
            # Whoever takes a lease that was not given back seals a fence, which holds nothing.
            assert all(is_fence(store, key) for key in now.keys() - before.keys())
            await mount.sync()

    def spoil(opened: object) -> None:
        assert not opened.restore_complete  # type: ignore[attr-defined]

    with small_limits():
        trio.run(work, clock=MockClock(autojump_threshold=0))


def test_the_flusher_itself_refuses(first: Rig, config: MountConfig) -> None:
    """The last lock: a flush of a cache that is not whole, however it was come by."""
    store = first.store.fork()
    before = listing(store)

    async def work() -> None:
        async with inline_mount(config, store) as mount:
            mount.fs.create(1, b"new", 0o644, CRED)
            with mount.cache._book() as txn:
                txn.delete(b"restored", db=mount.cache.tables.meta)
            await refused(mount)

    async def refused(mount: Mount) -> None:
        with pytest.raises(S3wsError, match="no whole workspace"):
            await mount.sync()

    with small_limits():
        trio.run(work, clock=MockClock(autojump_threshold=0))
    assert listing(store) == before
    shutil.rmtree(config.cache_dir)
