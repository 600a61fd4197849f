"""The check of a cache directory: its files, its structure, its bytes, whoever holds it."""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.cache import engine
from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import Checked, check_cache
from s3ws_fs.cache.ownership import IDENTITY_FILE, LOCK_FILE
from s3ws_fs.cache.syncpoint import (
    BOOT_FILE,
    SIDE_FILE,
    SLOT_BYTES,
    Slot,
    encode_slot,
    note_boot,
)
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.core import keys
from s3ws_fs.core.errors import CacheError
from s3ws_fs.core.findings import CODES
from tests.support import caches

BOOT = "boot-1"
PAGE = 4096


def quiet(_: object) -> None:
    """A progress sink."""


def opened(directory: Path, boot_id: str = BOOT) -> Cache:
    identity = Identity(prefix=caches.PREFIX, store="local:/somewhere")
    clock = iter(range(1, 1 << 40)).__next__
    return open_cache(directory, identity, quota_bytes=64 << 20, now_ns=clock, boot_id=boot_id)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with something of everything, cleanly closed. Not to be changed."""
    directory = tmp_path_factory.mktemp("closed") / "ws"
    with opened(directory) as cache:
        cache.set_restore_complete()
        caches.populate(cache)
    return directory


@pytest.fixture
def place(closed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(closed, tmp_path / "ws"))


def check(directory: Path, boot_id: str = BOOT, **options: bool) -> Checked:
    return check_cache(directory, quiet, boot_id=boot_id, **options)


def codes(done: Checked) -> list[str]:
    return [finding.code for finding in done.report.findings]


def test_a_closed_cache_is_clean(place: Path) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    done = check(place)
    assert codes(done) == []
    assert done.report.checked["digests"] > 5
    assert done.prefix == caches.PREFIX
    assert codes(check(place, quick=True)) == []
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    # The engine's own lock file aside.
    assert {p for p in after if after[p] != before.get(p)} <= {place / DATA_DIR / "lock.mdb"}


def test_a_cache_left_by_a_killed_daemon_is_clean(tmp_path: Path) -> None:
    with opened(tmp_path / "ws") as cache:
        cache.set_restore_complete()
        caches.populate(cache)
        shutil.copytree(tmp_path / "ws", tmp_path / "left")
    assert codes(check(tmp_path / "left")) == []


def test_there_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache"):
        check(tmp_path)


# --- files


def test_identity(place: Path) -> None:
    (place / IDENTITY_FILE).write_text('{"prefix": "x/", "store": "y", "format": 99}')
    assert codes(check(place)) == ["identity"]
    (place / IDENTITY_FILE).write_text("{")
    assert codes(check(place)) == ["identity"]
    (place / IDENTITY_FILE).unlink()
    assert codes(check(place)) == ["identity"]


def test_quarantine_is_mentioned(place: Path) -> None:
    (place / "quarantine-1-000000001").mkdir()
    done = check(place)
    assert codes(done) == ["quarantine"]
    assert done.report.ok


def test_sync_points(place: Path) -> None:
    side = place / SIDE_FILE
    raw = bytearray(side.read_bytes())
    raw[100] ^= 1
    side.write_bytes(raw)
    assert codes(check(place)) == [], "one torn slot is what a power cut leaves"
    raw[SLOT_BYTES + 100] ^= 1
    side.write_bytes(raw)
    assert codes(check(place)) == ["sync-point"]
    side.unlink()
    assert codes(check(place)) == ["sync-point"]
    side.write_bytes(encode_slot(Slot(9, 1 << 40, bytes(2 * PAGE))).ljust(2 * SLOT_BYTES))
    assert codes(check(place)) == ["sync-point"]


def test_after_a_reboot_the_sync_point_is_judged(tmp_path: Path) -> None:
    with opened(tmp_path / "ws") as cache:
        cache.set_restore_complete()
        caches.populate(cache)
        cache.sync_point()
        durable = cache.generation
        fs = caches.filesystem(cache)
        for number in range(50):
            fs.create(1, b"later %d" % number, 0o644, caches.CRED)
        left = Path(shutil.copytree(tmp_path / "ws", tmp_path / "left"))
    data = left / DATA_DIR / DATA_FILE
    before = data.read_bytes()
    done = check(left, boot_id="boot-2")
    assert codes(done) == ["recovery-due"]
    assert done.report.ok and done.is_copy
    assert done.tree is not None and done.tree.head is not None
    assert done.tree.head.generation == durable
    assert data.read_bytes() == before
    assert not list(left.glob("s3ws-check-*"))
    (left / SIDE_FILE).unlink()
    lost = check(left, boot_id="boot-2")
    assert codes(lost) == ["recovery-due", "sync-point"]
    assert not lost.report.ok and lost.tables is None


def test_without_a_note_of_the_boot(place: Path) -> None:
    (place / BOOT_FILE).unlink()
    assert codes(check(place)) == ["boot-file", "recovery-due"]


def test_after_a_failed_flush_of_the_disk(place: Path) -> None:
    note_boot(place, BOOT, clean=False, spoilt=True)
    found = check(place)
    assert codes(found) == ["spoilt"] and not found.report.ok
    assert codes(check(place, boot_id="boot-2")) == ["recovery-due"], "the sync point stands"


def test_a_restore_that_was_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path / "ws") as cache:
        caches.populate(cache)
    done = check(tmp_path / "ws")
    assert codes(done) == ["not-restored"]
    assert done.report.ok


def test_a_first_mount_that_was_cut_off(tmp_path: Path) -> None:
    """Whatever it had not made yet is no damage: the next mount makes it anew."""
    with opened(tmp_path / "ws") as cache:
        cache.clear_all()
    for text in ("no counters", "no sync point either"):
        done = check(tmp_path / "ws")
        assert codes(done) == ["not-restored"], text
        assert done.report.ok
        os.truncate(tmp_path / "ws" / SIDE_FILE, 0)


# --- structure


def test_a_damaged_database_is_found_and_not_believed(place: Path) -> None:
    """Each page in turn overwritten: never a crash, never a clean report for a page in use."""
    data = place / DATA_DIR / DATA_FILE
    whole = data.read_bytes()
    found = 0
    rng = random.Random(3)
    pages = range(2, len(whole) // PAGE)
    for page in rng.sample(pages, min(40, len(pages))):
        data.write_bytes(whole[: page * PAGE] + bytes(PAGE) + whole[(page + 1) * PAGE :])
        done = check(place)
        found += not done.report.ok
        if "engine" in codes(done):
            assert done.tables is None
    # Free pages may hold anything, and bytes that are not sealed have no digest.
    assert found > 2
    data.write_bytes(whole[: 3 * PAGE])
    assert "engine" in codes(check(place))
    data.write_bytes(b"nothing like it" * 1000)
    assert codes(check(place)) == ["engine"]


def test_a_table_that_is_missing(place: Path) -> None:
    with opened(place) as cache, cache.env.begin(write=True) as txn:
        txn.drop(cache.tables.links, delete=True)
    assert "engine" in codes(check(place))


def test_a_large_file_in_use_is_not_walked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / LOCK_FILE).write_text(f"{os.getppid()}\n")
    assert engine.holder(place) == os.getppid()
    assert codes(check(place)) == []
    monkeypatch.setattr(engine, "IN_USE_BYTES_MAX", 0)
    done = check(place)
    assert codes(done) == ["engine-skipped"]
    assert done.report.ok and done.tables is not None


def test_a_file_that_changes_under_the_walk_is_in_use(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a daemon in another container, whose process id means nothing here."""
    walked = []

    def verify(path: str, subdir: bool) -> list[str]:
        walked.append(path)
        if len(walked) == 1:
            data = Path(path) / DATA_FILE
            raw = bytearray(data.read_bytes())
            raw[PAGE - 1] ^= 1
            data.write_bytes(raw)
            return ["a page of the commit after"]
        return []

    monkeypatch.setattr("lmdb.verify.verify", verify)
    assert engine.walk(place, in_use=False) == []
    assert len(walked) == 2


def test_no_room_for_a_copy(place: Path) -> None:
    (place / BOOT_FILE).unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, hard))
    try:
        with pytest.raises(CacheError, match="to be copied"):
            check(place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(place.glob("s3ws-check-*"))


@pytest.mark.parametrize("text", ["", "x", "-7", "99999999999999999999", "4194305"])
def test_nobody_holds_it(place: Path, text: str) -> None:
    (place / LOCK_FILE).write_text(text)
    assert engine.holder(place) is None


# --- bytes


@pytest.fixture
def inos(place: Path) -> Iterator[dict[str, int]]:
    """Inodes by path."""
    with opened(place) as cache, cache.read() as view:
        found = {name: view.resolve(name.encode()) for name in ("big", "sparse", "dir/dirty")}
    yield {name: ino for name, ino in found.items() if ino is not None}


def store(place: Path, ino: int, index: int, data: bytes) -> None:
    with opened(place) as cache, cache.env.begin(write=True) as txn:
        assert txn.get(keys.chunk_key(ino, index), db=cache.tables.extents) is not None
        txn.put(keys.chunk_key(ino, index), data, db=cache.tables.extents)


def test_bytes_that_rotted(place: Path, inos: dict[str, int]) -> None:
    store(place, inos["sparse"], 32, b"eNd")
    done = check(place)
    [finding] = done.report.findings
    assert (finding.code, finding.paths) == ("extent-digest", (b"sparse",))
    assert codes(check(place, quick=True)) == []
    store(place, inos["sparse"], 32, b"en")
    assert codes(check(place)) == ["extent-digest"]


def test_bytes_not_sealed_yet(place: Path, inos: dict[str, int]) -> None:
    """They have no digest; but their length counts."""
    store(place, inos["dir/dirty"], 0, bytes(32 * 1024))
    assert codes(check(place)) == []
    store(place, inos["dir/dirty"], 0, bytes(100))
    assert codes(check(place)) == ["alloc"]
    store(place, inos["dir/dirty"], 1, bytes(20_000))
    assert set(codes(check(place))) == {"alloc", "extent-end"}


def test_the_codes_of_files_are_all_here() -> None:
    text = Path(__file__).read_text()
    for code in list(CODES)[: list(CODES).index("record")]:
        assert f'"{code}"' in text, code
