"""Power loss: the cache comes back exactly at its newest sync point, from any torn image."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3ws_fs.cache import syncpoint
from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import ROOT_INO

IDENTITY = Identity(prefix="conversations/u/c/workspace/", store="local:/somewhere")
PAGE_BYTES = 4096
Opener = Callable[..., Cache]


def busy(cache: Cache, rng: random.Random, operations: int) -> None:
    """Creates, overwrites and deletes, so that pages are freed and used again."""
    for _ in range(operations):
        with cache.write() as tx:
            ino = rng.randrange(2, 60)
            rec = tx.inode(ino)
            if rec is not None and rng.random() < 0.3:
                tx.drop_inode(rec)
                continue
            mode = stat.S_IFREG | 0o644
            fresh = rec is None
            rec = rec or InodeRec(
                ino, mode, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, ROOT_INO, b"n%d" % ino, b""
            )
            size = rng.choice([100, 5000, 32768])
            held = tx.extent(ino, 0)
            tx.put_extent(rec, 0, rng.randbytes(size), 0 if held is None else len(held))
            rec.size = size
            (tx.add_inode if fresh else tx.put_inode)(rec)


def dump(cache: Cache) -> dict[str, list[tuple[bytes, bytes]]]:
    with cache.read() as view:
        return {
            name: list(view.txn.cursor(db=getattr(view.db, name)))
            for name in ("inodes", "extents", "dirty", "meta")
        }


def image(directory: Path, target: Path, torn: dict[int, bytes], length: int) -> None:
    """A copy of the cache as a power cut may leave it: given pages, and nothing beyond `length`."""
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns("lock.mdb"))
    data = target / "data" / "data.mdb"
    with data.open("r+b") as file:
        for number, page in torn.items():
            file.seek(number * PAGE_BYTES)
            file.write(page)
        file.truncate(max(length, (max(torn, default=0) + 1) * PAGE_BYTES))


def pages(raw: bytes) -> list[bytes]:
    return [raw[i : i + PAGE_BYTES] for i in range(0, len(raw), PAGE_BYTES)]


def torn_image(base: Path, seed: int) -> tuple[Path, dict[str, list[tuple[bytes, bytes]]], int]:
    """A busy cache, cut at its sync point plus a random subset of the pages written since."""
    rng = random.Random(seed)
    cache = open_cache(
        base / "ws", IDENTITY, quota_bytes=64 << 20, now_ns=lambda: 1, boot_id="boot-1"
    )
    data_file = base / "ws" / "data" / "data.mdb"
    busy(cache, rng, 120)
    cache.sync_point()
    expected, generation = dump(cache), cache.generation
    durable = data_file.read_bytes()
    busy(cache, rng, rng.randrange(1, 80))
    old_pages, new_pages = pages(durable), pages(data_file.read_bytes())
    written = {
        number: page
        for number, page in enumerate(new_pages)
        if (number >= len(old_pages) or page != old_pages[number]) and rng.random() < 0.5
    }
    # Pages that the kernel did not write are as they were at the sync point.
    unwritten = {
        number: page
        for number, page in enumerate(old_pages)
        if number not in written and page != new_pages[number]
    }
    target = base / "image"
    image(base / "ws", target, unwritten | written, len(durable))
    cache.close()
    return target, expected, generation


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_any_subset_of_pages_written_since(tmp_path: Path, seed: int) -> None:
    base = tmp_path / "power-loss"
    shutil.rmtree(base, ignore_errors=True)
    target, expected, generation = torn_image(base, seed)
    with open_cache(
        target, IDENTITY, quota_bytes=64 << 20, now_ns=lambda: 1, boot_id="boot-2"
    ) as recovered:
        assert recovered.recovery == "sync-point"
        assert recovered.generation == generation
        assert dump(recovered) == expected


_OPEN_AND_COUNT = """
import sys
from pathlib import Path
from s3ws_fs.cache.cache import Identity, open_cache
with open_cache(Path(sys.argv[1]), Identity(sys.argv[2], sys.argv[3]), quota_bytes=64 << 20,
                now_ns=lambda: 1, boot_id="boot-1") as cache, cache.read() as view:
    tables = ("inodes", "extents", "dirty", "meta")
    items = [list(view.txn.cursor(db=getattr(view.db, name))) for name in tables]
    print(hash(repr(items)))
"""


def test_negative_control_without_the_put_back_images_are_wrong(tmp_path: Path) -> None:
    """Opened as if the kernel had gone on running, torn images must not look right."""
    wrong = 0
    for seed in range(8):
        base = tmp_path / str(seed)
        target, expected, _ = torn_image(base, seed)
        # A corrupt image may end the process by a signal, hence the child.
        done = subprocess.run(
            [sys.executable, "-c", _OPEN_AND_COUNT, str(target), IDENTITY.prefix, IDENTITY.store],
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=False,
        )
        right = subprocess.run(
            [sys.executable, "-c", "import sys; print(hash(sys.stdin.read()))"],
            input=repr(list(expected.values())).encode(),
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=True,
        )
        wrong += done.returncode != 0 or done.stdout != right.stdout
        shutil.rmtree(base)
    assert wrong >= 6


def test_same_boot_keeps_what_came_after_the_sync_point(opener: Opener, tmp_path: Path) -> None:
    cache = opener()
    cache.sync_point()
    busy(cache, random.Random(1), 10)
    expected = dump(cache)
    shutil.copytree(tmp_path / "ws", tmp_path / "killed")
    cache.close()
    killed = open_cache(
        tmp_path / "killed", IDENTITY, quota_bytes=64 << 20, now_ns=lambda: 1, boot_id="boot-1"
    )
    with killed:
        assert killed.recovery == "kept"
        assert dump(killed) == expected


def test_clean_close_needs_no_put_back(opener: Opener) -> None:
    with opener() as cache:
        busy(cache, random.Random(2), 10)
        expected = dump(cache)
    with opener(boot_id="boot-2") as cache:
        assert cache.recovery == "kept"
        assert dump(cache) == expected


@pytest.mark.parametrize("harm", ["missing", "both-torn", "empty"])
def test_without_a_valid_slot_the_cache_is_quarantined(
    opener: Opener, tmp_path: Path, harm: str
) -> None:
    cache = opener()
    busy(cache, random.Random(3), 10)
    shutil.copytree(tmp_path / "ws", tmp_path / "saved")
    cache.close()
    shutil.rmtree(tmp_path / "ws")
    shutil.move(tmp_path / "saved", tmp_path / "ws")
    side = tmp_path / "ws" / syncpoint.SIDE_FILE
    if harm == "missing":
        side.unlink()
    else:
        size = side.stat().st_size
        side.write_bytes(b"" if harm == "empty" else os.urandom(size))
    with opener(boot_id="boot-2") as cache:
        assert cache.recovery == "quarantined"
        assert cache.generation == 0
    kept = list((tmp_path / "ws").glob("quarantine-*/data/data.mdb"))
    assert len(kept) == 1


def test_one_torn_slot_falls_back_to_the_other(opener: Opener, tmp_path: Path) -> None:
    cache = opener()
    busy(cache, random.Random(4), 5)
    cache.sync_point()
    slots = syncpoint.read_slots(cache.directory)
    present = [slot for slot in slots if slot is not None]
    assert len(present) == 2
    older = min(present, key=lambda slot: slot.sequence)
    newest_index = max(range(2), key=lambda i: s.sequence if (s := slots[i]) else -1)
    cache.close()
    side = tmp_path / "ws" / syncpoint.SIDE_FILE
    raw = bytearray(side.read_bytes())
    raw[newest_index * syncpoint.SLOT_BYTES + 40] ^= 1
    side.write_bytes(raw)
    found = [slot for slot in syncpoint.read_slots(tmp_path / "ws") if slot is not None]
    # The clean close made one more sync point, into the older slot.
    assert len(found) == 1
    assert found[0].sequence != older.sequence or found[0] == older


@given(raw=st.binary(max_size=300))
def test_decoding_a_slot_never_fails(raw: bytes) -> None:
    assert syncpoint.decode_slot(raw) is None


@given(
    sequence=st.integers(0, 2**64 - 1),
    generation=st.integers(0, 2**64 - 1),
    meta=st.binary(max_size=8192),
)
def test_slot_round_trip(sequence: int, generation: int, meta: bytes) -> None:
    slot = syncpoint.Slot(sequence, generation, meta)
    assert syncpoint.decode_slot(syncpoint.encode_slot(slot) + b"padding") == slot
