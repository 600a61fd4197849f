"""Operations that share a commit: none is lost or done twice, and one that fails leaves nothing."""

from __future__ import annotations

import errno
import itertools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3ws_fs.cache import batch, recovery
from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cache.checking import Checked, check_cache, check_records
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.view import META_HEAD
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.records import decode_head
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from tests.cache.conftest import IDENTITY, QUOTA_BYTES
from tests.cache.test_verify_workloads import Life, steps
from tests.crash.power import digest
from tests.support import caches
from tests.support.caches import CRED

BOOT = "boot-1"


def opened(directory: Path, start_ns: int = 1_700_000_000 * 10**9) -> Cache:
    ticks = itertools.count(start_ns, 1000)
    made = open_cache(
        directory,
        IDENTITY,
        quota_bytes=QUOTA_BYTES,
        now_ns=lambda: next(ticks),
        boot_id=BOOT,
        with_log=True,
    )
    if not made.restore_complete:
        made.set_restore_complete()
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with opened(tmp_path / "ws") as made:
        yield made


@pytest.fixture
def fs(cache: Cache) -> FileSystem:
    return caches.filesystem(cache)


def killed(cache: Cache, base: Path) -> Path:
    """What a process that is killed now leaves."""
    target = Path(tempfile.mkdtemp(dir=base)) / "ws"
    shutil.copytree(cache.directory, target, ignore=shutil.ignore_patterns("lock.mdb", "lock"))
    return target


def in_database(cache: Cache) -> int:
    with cache.env.begin() as txn:
        raw = txn.get(META_HEAD, db=cache.tables.meta)
    assert raw is not None
    return decode_head(raw).generation


@settings(max_examples=15)
@given(
    st.lists(st.tuples(steps, st.sampled_from(["", "", "", "settle", "kill", "point"]))),
    st.integers(0, 2**32),
)
def test_a_kill_at_any_time_loses_nothing(todo: list[tuple[Any, str]], seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as base, opened(Path(base) / "ws") as cache:
        life = Life(cache)
        for step, then in [*todo, (("create", 0, b"last"), "kill")]:
            if rng.random() < 0.8:
                cache.begin_batch()
            life.run(step)
            if then == "settle":
                assert cache.settle()
            elif then == "point":
                cache.sync_point()
            elif then == "kill":
                left = killed(cache, Path(base))
                with opened(left) as after:
                    assert after.recovery == recovery.KEPT
                    assert after.generation == cache.generation
                    assert digest(after) == digest(cache)
                    done = Checked(Report(), prefix=caches.PREFIX)
                    check_records(after, done, lambda _: None)
                    assert not done.report.findings
                assert recovery.walk(left / "data" / "data.mdb") == []
        cache.close()
        # What batches made of it, too.
        assert recovery.walk(cache.directory / "data" / "data.mdb") == []


def test_operations_of_a_turn_are_one_commit(cache: Cache, fs: FileSystem) -> None:
    assert cache.batch is not None
    before = in_database(cache)
    cache.begin_batch()
    for number in range(5):
        fs.create(ROOT_INO, b"f%d" % number, 0o644, CRED)
    assert cache.batch.operations == 5
    assert in_database(cache) == before
    assert cache.committed_generation == before
    # Whoever reads here sees them.
    assert fs.lookup(ROOT_INO, b"f4").size == 0
    assert cache.settle()
    assert in_database(cache) == cache.generation == before + 5
    # And from now on each is a commit again.
    fs.create(ROOT_INO, b"alone", 0o644, CRED)
    assert in_database(cache) == cache.generation


@pytest.mark.parametrize(
    "act",
    [
        lambda cache: cache.put_json("note", 1),
        lambda cache: cache.get_json("note"),
        lambda cache: cache.sync_point(),
        lambda cache: cache.extent_bytes([b"x"]),
        lambda cache: cache.forget(0, 0),
        lambda cache: cache.evict(),
    ],
)
def test_who_looks_in_another_way_settles(
    cache: Cache, fs: FileSystem, act: Callable[[Cache], object]
) -> None:
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    act(cache)
    assert in_database(cache) == cache.generation


def intact(cache: Cache) -> bool:
    assert cache.redo is not None
    return cache.redo.is_intact


def test_bookkeeping_breaks_the_log(cache: Cache, fs: FileSystem) -> None:
    assert intact(cache)
    cache.put_json("note", 1)
    assert not intact(cache)
    cache.sync_point()
    assert intact(cache)


def test_a_batch_ends_at_its_limit(cache: Cache, fs: FileSystem) -> None:
    assert cache.batch is not None
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    cache.begin_batch()
    for number in range(batch.BATCH_OPERATIONS_MAX - 1):
        fs.setattr(ino, mode=0o600 + number % 2)
    assert cache.batch.operations == batch.BATCH_OPERATIONS_MAX - 1
    fs.setattr(ino, mode=0o600)
    assert cache.batch.operations == 0
    assert in_database(cache) == cache.generation


def test_a_batch_ends_after_many_bytes(cache: Cache, fs: FileSystem) -> None:
    assert cache.batch is not None
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    cache.begin_batch()
    for number in range(batch.BATCH_BYTES_MAX // 32_768 + 1):
        fs.write(ino, number * 32_768, bytes(32_768))
    assert cache.batch.operations < 3


def test_a_large_write_takes_those_before_it_along(cache: Cache, fs: FileSystem) -> None:
    assert cache.redo is not None
    cache.begin_batch()
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    fs.write(ino, 0, bytes(1 << 20))
    assert in_database(cache) == cache.generation
    assert not cache.redo.is_intact


@pytest.mark.parametrize("before", [0, 3])
def test_an_operation_that_fails_leaves_nothing(
    cache: Cache, fs: FileSystem, tmp_path: Path, before: int
) -> None:
    big = fs.create(ROOT_INO, b"big", 0o644, CRED).ino
    fs.quota_bytes = cache.head.used_bytes
    cache.begin_batch()
    for number in range(before):
        fs.create(ROOT_INO, b"f%d" % number, 0o644, CRED)
    was = digest(cache)
    with pytest.raises(FsError) as caught:
        # It puts the extent before it finds that it is too much; and nothing of it fits.
        fs.write(big, 0, bytes(32_768))
    assert caught.value.errno == errno.EDQUOT
    assert digest(cache) == was
    with opened(killed(cache, tmp_path)) as after:
        assert digest(after) == was


def test_a_refusal_before_anything_was_put_costs_no_commit(cache: Cache, fs: FileSystem) -> None:
    assert cache.batch is not None
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    with pytest.raises(FsError):
        fs.create(ROOT_INO, b"f", 0o644, CRED)
    assert cache.batch.operations == 1


class FullTxn:
    """A transaction whose commit fails as long as the disk is full."""

    def __init__(self, txn: Any, env: FullEnv) -> None:
        self._txn = txn
        self._env_of = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def commit(self) -> None:
        if not self._env_of.left:
            self._txn.commit()
            return
        self._env_of.left -= 1
        self._txn.abort()
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")


class FullEnv:
    """An environment on a disk that is full for the next `left` commits."""

    def __init__(self, env: Any, left: int) -> None:
        self._env = env
        self.left = left

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        txn = self._env.begin(*args, **kwargs)
        return FullTxn(txn, self) if kwargs.get("write") else txn


def test_a_batch_that_can_not_be_committed_is_not_lost(
    cache: Cache, fs: FileSystem, tmp_path: Path
) -> None:
    assert cache.batch is not None
    committed = in_database(cache)
    cache.batch._env = full = FullEnv(cache.env, 1000)  # type: ignore[assignment]
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    fs.create(ROOT_INO, b"g", 0o644, CRED)
    assert not cache.settle()
    # What was acknowledged is shown, and survives.
    assert fs.lookup(ROOT_INO, b"g").size == 0
    now = digest(cache)
    assert in_database(cache) == cache.committed_generation == committed
    with opened(killed(cache, tmp_path)) as after:
        assert digest(after) == now
    # Nothing else is changed, and nothing is noted before it.
    for act in (
        lambda: fs.create(ROOT_INO, b"h", 0o644, CRED),
        lambda: cache.put_json("note", 1),
        cache.sync_point,
    ):
        with pytest.raises(FsError) as caught:
            act()
        assert caught.value.errno == errno.ENOSPC
    assert digest(cache) == now
    full.left = 0
    fs.create(ROOT_INO, b"h", 0o644, CRED)
    assert in_database(cache) == cache.generation == committed + 3
    assert fs.lookup(ROOT_INO, b"g").size == 0


def test_the_reserve_is_given_up_for_a_batch(cache: Cache, fs: FileSystem) -> None:
    assert cache.batch is not None
    assert (cache.directory / "reserve").exists()
    cache.batch._env = FullEnv(cache.env, 1)  # type: ignore[assignment]
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    assert cache.settle()
    assert not (cache.directory / "reserve").exists()
    assert in_database(cache) == cache.generation


def test_a_commit_that_fails_leaves_what_its_batch_had(
    cache: Cache, fs: FileSystem, tmp_path: Path
) -> None:
    """A large write is committed with those before it; it fails alone."""
    assert cache.batch is not None
    cache.batch._env = full = FullEnv(cache.env, 1)  # type: ignore[assignment]
    cache.begin_batch()
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    with pytest.raises(FsError) as caught:
        fs.write(ino, 0, bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert full.left == 0
    assert fs.getattr(ino).size == 0
    assert in_database(cache) == cache.generation
    with opened(killed(cache, tmp_path)) as after:
        assert digest(after) == digest(cache)


def test_a_full_map_costs_only_the_operation_that_found_it(tmp_path: Path) -> None:
    ticks = itertools.count(1_700_000_000 * 10**9, 1000)
    with open_cache(
        tmp_path / "ws", IDENTITY, quota_bytes=1 << 20, now_ns=lambda: next(ticks), boot_id=BOOT,
        with_log=True,
    ) as cache:  # fmt: skip
        fs = caches.filesystem(cache)
        assert cache.batch is not None
        cache.begin_batch()
        ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
        assert cache.batch._txn is not None
        real: Any = cache.batch._txn.txn

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def put(self, key: bytes, value: bytes, *, db: Any) -> bool:
                if len(value) > 1000:
                    raise lmdb.MapFullError("mdb_put")
                return bool(real.put(key, value, db=db))

        cache.batch._txn.txn = Full()  # type: ignore[assignment]
        with pytest.raises(FsError) as caught:
            fs.write(ino, 0, bytes(5000))
        assert caught.value.errno == errno.ENOSPC
        assert fs.getattr(ino).size == 0
        assert in_database(cache) == cache.generation
        fs.write(ino, 0, bytes(5000))


def test_no_batch_while_room_is_short(cache: Cache, fs: FileSystem) -> None:
    cache.headroom.growth_bytes = 0
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    assert in_database(cache) == cache.generation


def test_without_a_log_every_operation_is_a_commit(tmp_path: Path) -> None:
    ticks = itertools.count(1_700_000_000 * 10**9, 1000)
    with open_cache(
        tmp_path / "ws", IDENTITY, quota_bytes=QUOTA_BYTES, now_ns=lambda: next(ticks), boot_id=BOOT
    ) as cache:
        fs = caches.filesystem(cache)
        cache.begin_batch()
        fs.create(ROOT_INO, b"f", 0o644, CRED)
        assert in_database(cache) == cache.generation


# --- what others find ------------------------------------------------------------------------


def test_who_looks_into_a_dead_cache_finds_the_last_operations(
    cache: Cache, fs: FileSystem, tmp_path: Path
) -> None:
    cache.begin_batch()
    ino = fs.create(ROOT_INO, b"f", 0o644, CRED).ino
    fs.write(ino, 0, b"bytes")
    left = killed(cache, tmp_path)
    with open_reader(left) as reader, reader.read() as view:
        assert view.resolve(b"f") is None
    recovery.settle_dead(left, BOOT)
    with open_reader(left) as reader, reader.read() as view:
        assert view.resolve(b"f") == ino
    found = check_cache(killed(cache, tmp_path), lambda _: None, boot_id=BOOT)
    assert found.report.ok
    assert found.tables is not None
    assert found.tables.inode(ino) is not None


def test_a_cache_that_is_open_is_left_to_its_daemon(cache: Cache, fs: FileSystem) -> None:
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    before = in_database(cache)
    recovery.settle_dead(cache.directory, BOOT)
    assert in_database(cache) == before


def test_after_a_power_cut_it_is_left_as_it_is(
    cache: Cache, fs: FileSystem, tmp_path: Path
) -> None:
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    left = killed(cache, tmp_path)
    before = (left / "data" / "data.mdb").read_bytes()
    recovery.settle_dead(left, "another boot")
    assert (left / "data" / "data.mdb").read_bytes() == before


def test_a_clean_end_leaves_no_log(cache: Cache, fs: FileSystem) -> None:
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    cache.close()
    assert not list(cache.directory.glob("redo-*"))
    with opened(cache.directory) as again:
        assert again.generation == cache.generation


def test_a_quarantine_takes_the_log_along(cache: Cache, fs: FileSystem, tmp_path: Path) -> None:
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    left = killed(cache, tmp_path)
    (left / "sync.side").unlink()
    ticks = itertools.count(1, 1)
    with open_cache(
        left, IDENTITY, quota_bytes=QUOTA_BYTES, now_ns=lambda: next(ticks), boot_id="another"
    ) as after:
        assert after.recovery == recovery.QUARANTINED
        assert after.generation == 0
        assert after.recovered.aside is not None
        assert len(list(after.recovered.aside.glob("redo-*"))) == 2


def test_a_change_past_the_log_that_fails_leaves_nothing(cache: Cache, fs: FileSystem) -> None:
    cache.begin_batch()
    fs.create(ROOT_INO, b"f", 0o644, CRED)
    was = digest(cache)

    class Error(Exception):
        pass

    with pytest.raises(Error), cache.write() as tx:
        tx.bulk()
        with tx.txn.cursor(db=tx.db.xattrs) as cursor:
            cursor.putmulti([(b"12345678name", b"value")])
        raise Error
    assert digest(cache) == was
    assert in_database(cache) == cache.generation
