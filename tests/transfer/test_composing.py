"""The mirror object of a large file that changed a little: what the store is asked to copy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import layout
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.body import Composed
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import objects
from s3ws_fs.transfer.fetch import ExtentSource
from s3ws_fs.transfer.layouts import Layouts
from s3ws_fs.transfer.mirror import MirrorPass
from tests.transfer.conftest import PREFIX, write
from tests.transfer.seals import WORKSPACE, seal_one

MIB = 1 << 20
SIZE = 6 * MIB + 1000
LONG = 10 * EXTENT_BYTES


class Composing(ScopedStore):
    """Makes composed objects as S3 does: of what stands, and of bytes for the rest."""

    sent_bytes = 0
    composed = 0

    def put(self, key: str, body: Any, **more: Any) -> str:
        if isinstance(body, Composed):
            self.composed += 1
            whole = bytearray()
            for item in body.usable(key, more["if_match"]):
                whole += self._sent(body, len(whole), item.offset_bytes)
                # As a server that keeps no condition on a source.
                whole += self.get(item.key, item.key_bytes, item.length_bytes).data
            body = bytes(whole + self._sent(body, len(whole), body.size_bytes))
        return super().put(key, body, **more)

    def _sent(self, body: Composed, start: int, end: int) -> bytes:
        self.sent_bytes += end - start
        return body.read_at(start, end - start)


class Life:
    """A workspace with its flushes and mirror passes."""

    def __init__(self, cache: Cache, fs: FileSystem, directory: Path, store: Composing) -> None:
        self.cache, self.fs, self.directory, self.store = cache, fs, directory, store
        self._number, self._hash = 0, ""

    def flush(self, conflicts: Sequence[str] = ()) -> int:
        """Seal and mirror; returns how many bytes of composed objects were sent."""
        self._number += 1
        frozen = seal_one(self.fs, self.cache, self.directory, self.store, self._number, self._hash)
        self._hash = frozen.header_hash
        before = self.store.sent_bytes
        with ThreadPoolExecutor(2) as pool:
            mirroring = MirrorPass(
                self.store,
                ExtentSource(self.store, self.cache, frozen),
                frozen,
                workspace=WORKSPACE,
                directory=self.directory,
                layouts=Layouts(self.directory / "layouts", WORKSPACE),
                pool=pool,
                report=lambda batch: self.cache.record_mirrored(batch.rows, batch.removed, ()),
                stopped=lambda: False,
            )
            outcome = mirroring.run()
        assert outcome.error is None
        assert list(outcome.conflicts) == list(conflicts)
        mirroring.finish_dirs()
        self.cache.record_mirrored((), (), list(mirroring.done()))
        return self.store.sent_bytes - before


@pytest.fixture
def life(
    cache: Cache,
    fs: FileSystem,
    tmp_path: Path,
    memory: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> Life:
    monkeypatch.setattr(objects, "COMPOSE_BYTES_MIN", 2 * MIB)
    monkeypatch.setattr(objects, "STANDING_BYTES_MIN", LONG)
    return Life(cache, fs, tmp_path, Composing(memory, PREFIX))


def mirrored(life: Life, name: str = "big") -> bytes:
    return life.store.get(layout.FILES_PREFIX + name).data


def test_a_small_change_sends_what_changed(life: Life) -> None:
    data = bytearray(random.Random(1).randbytes(SIZE))
    ino = write(life.fs, b"big", bytes(data))
    assert life.flush() == 0, "a new file is copied from its blob as a whole"
    for at in (3 * MIB, 5 * MIB + 17):
        data[at : at + 4096] = b"c" * 4096
        life.fs.write(ino, at, b"c" * 4096)
        assert life.flush() <= 2 * EXTENT_BYTES + 2 * EXTENT_BYTES
        assert mirrored(life) == data


def test_an_append_sends_the_tail(life: Life) -> None:
    data = random.Random(2).randbytes(SIZE)
    ino = write(life.fs, b"big", data)
    life.flush()
    life.fs.write(ino, SIZE, b"tail" * 1000)
    assert life.flush() == 0, "the blob and the segment have it all"
    assert mirrored(life) == data + b"tail" * 1000


def changed_everywhere(life: Life, seed: int) -> tuple[int, bytearray]:
    """A large file that was mirrored before and after small changes all over it."""
    data = bytearray(random.Random(seed).randbytes(SIZE))
    ino = write(life.fs, b"big", bytes(data))
    life.flush()
    for at in range(0, SIZE, LONG // 2):
        data[at : at + 10] = b"everywhere"
        life.fs.write(ino, at, b"everywhere")
    life.flush()
    return ino, data


def test_an_append_sends_nothing_of_what_was_changed_before(life: Life) -> None:
    ino, data = changed_everywhere(life, 7)
    assert life.store.composed == 0, "the journal has no long range of it"
    for turn in range(3):
        data += b"tail" * 1000
        life.fs.write(ino, len(data) - 4000, b"tail" * 1000)
        assert life.flush() == 0
        assert life.store.composed == turn + 1
        assert mirrored(life) == data


def test_a_shorter_file_is_made_of_what_stands(life: Life) -> None:
    data = random.Random(8).randbytes(SIZE)
    ino = write(life.fs, b"big", data)
    life.flush()
    for size in (SIZE - 700, SIZE - MIB - 5, SIZE - MIB + 9):
        life.fs.setattr(ino, size=size)
        assert life.flush() <= 2 * EXTENT_BYTES
        assert (
            mirrored(life)
            == data[:size].ljust(size, b"\0")[: SIZE - MIB - 5] + (mirrored(life)[SIZE - MIB - 5 :])
        )
        assert mirrored(life) == life.fs.read(ino, 0, size)


@pytest.mark.parametrize("is_moved", [False, True])
def test_what_it_is_made_of_is_known_of_a_copy_too(life: Life, is_moved: bool) -> None:
    ino, data = changed_everywhere(life, 9)
    if is_moved:
        life.fs.rename(ROOT_INO, b"big", ROOT_INO, b"moved", 0)
    else:
        life.fs.setattr(ino, mode=0o600)
    life.flush()
    life.fs.write(ino, SIZE, b"x")
    assert life.flush() == 0
    assert life.store.composed == 1
    assert mirrored(life, "moved" if is_moved else "big") == bytes(data) + b"x"


def test_nothing_is_made_of_an_object_that_is_not_ours(life: Life) -> None:
    ino, _ = changed_everywhere(life, 10)
    other = random.Random(11).randbytes(SIZE)
    life.store.put(layout.FILES_PREFIX + "big", other)
    life.fs.write(ino, SIZE, b"x")
    life.flush(conflicts=["big"])
    assert mirrored(life) == other


def test_another_object_of_ours_is_replaced_and_nothing_made_of_it(life: Life) -> None:
    data = bytearray(random.Random(12).randbytes(SIZE))
    ino = write(life.fs, b"big", bytes(data))
    life.flush()
    key = layout.FILES_PREFIX + "big"
    first, was = life.store.head(key), mirrored(life)
    for at in range(0, SIZE, LONG // 2):
        data[at : at + 10] = b"everywhere"
        life.fs.write(ino, at, b"everywhere")
    life.flush()
    # As a put of ours that came late: an older object, with its mark.
    life.store.put(key, was, metadata=first.metadata)
    life.fs.write(ino, SIZE, b"x")
    assert life.flush() == SIZE // EXTENT_BYTES * EXTENT_BYTES
    assert mirrored(life) == bytes(data) + b"x"


def test_what_stands_in_the_segment_itself_is_copied_too(life: Life) -> None:
    data = bytearray(random.Random(3).randbytes(SIZE))
    ino = write(life.fs, b"big", bytes(data))
    life.flush()
    # Too little for a blob, enough for a range.
    data[MIB : MIB + LONG] = b"s" * LONG
    life.fs.write(ino, MIB, b"s" * LONG)
    assert life.flush() == 0
    assert life.store.composed == 1
    assert mirrored(life) == data


def test_cold_bytes_and_holes(life: Life) -> None:
    data = bytearray(random.Random(4).randbytes(SIZE))
    ino = write(life.fs, b"big", bytes(data))
    life.flush()
    resume: bytes | None = b""
    while resume is not None:
        _, resume = life.cache.evict(resume)
    life.fs.write(ino, SIZE + 3 * EXTENT_BYTES, b"behind a hole")
    assert life.flush() <= 5 * EXTENT_BYTES
    assert mirrored(life) == bytes(data) + bytes(3 * EXTENT_BYTES) + b"behind a hole"


def test_at_the_limits(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = write(life.fs, b"big", bytes(SIZE - 1) + b"x")
    life.flush()
    monkeypatch.setattr(objects, "COMPOSE_BYTES_MIN", SIZE)
    life.fs.write(ino, 0, b"a")
    life.flush()
    assert life.store.composed == 0, "it is no larger than the limit"
    monkeypatch.setattr(objects, "COMPOSE_BYTES_MIN", SIZE - 1)
    life.fs.write(ino, 0, b"b")
    assert 0 < life.flush() <= 2 * EXTENT_BYTES
    assert mirrored(life)[:2] == b"b\0"
    # Less than half of it stands in long ranges: sent as a whole.
    monkeypatch.setattr(objects, "STANDING_BYTES_MIN", SIZE)
    life.fs.write(ino, 0, b"c")
    life.fs.write(ino, SIZE - 1, b"y")
    life.flush()
    assert life.store.composed == 1
    assert mirrored(life) == b"c" + bytes(SIZE - 2) + b"y"


def test_files_share_no_ranges(life: Life) -> None:
    """Two files that were sealed together stand beside each other; each is made of its own."""
    bodies = {b"one": random.Random(5).randbytes(SIZE), b"two": random.Random(6).randbytes(SIZE)}
    inos = {name: write(life.fs, name, body) for name, body in bodies.items()}
    life.flush()
    for name, ino in inos.items():
        life.fs.write(ino, 40, b"new")
        bodies[name] = bodies[name][:40] + b"new" + bodies[name][43:]
    life.flush()
    life.fs.rename(ROOT_INO, b"one", ROOT_INO, b"other", 0)
    life.flush()
    assert mirrored(life, "other") == bodies[b"one"]
    assert mirrored(life, "two") == bodies[b"two"]
