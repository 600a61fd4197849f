"""The mirror behind the seal: interrupted, repeated, coalesced, and never in the seal's way."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from s3ws_fs.core.errors import TransientError, UserError
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.store.scoped import ScopedStore
from tests.replica.conftest import CRED, Mounter
from tests.replica.test_roundtrip import mirror


async def test_an_interrupted_pass_goes_on_later(mounter: Mounter, bucket: ScopedStore) -> None:
    # So many that the pass is not over before the word to stop comes, on a busy machine too.
    count = 1000
    async with mounter("a") as m:
        for number in range(count):
            m.write(f"f{number}", b"%d" % number)
        flush_id, _ = await m.replica._flusher.flush()
        async with trio.open_nursery() as nursery:
            written = trio.Event()

            async def stop() -> None:
                await written.wait()
                await m.replica._flusher.stop_mirror()

            nursery.start_soon(stop)
            result = await m.replica._flusher.mirror(flush_id, lambda _: written.set())
        first = result.written
        assert result.stopped
        assert 0 < first < count
        puts = m.replica.status()["requests"]["put"]
        await m.sync()
        # One more: the note that the mirror is complete.
        assert m.replica.status()["requests"]["put"] - puts == count - first + 1
        assert m.replica.status()["mirror"]["pending_files"] == 0
    assert len(mirror(bucket)) == count


async def test_a_writer_that_never_rests_does_not_starve_the_mirror(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """A flush is always due; the mirror comes to its end nevertheless, and so does a sync."""
    rounds = 0
    async with mounter("a", run=True, debounce_min_s=0.0, debounce_max_s=0.0) as m:

        async def write(stop: trio.CancelScope) -> None:
            nonlocal rounds
            with stop:
                while True:
                    rounds += 1
                    m.write(f"f{rounds % 100}", b"%d" % rounds)
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            stop = trio.CancelScope()
            nursery.start_soon(write, stop)
            with trio.fail_after(60):
                for _ in range(3):
                    before = rounds
                    done = await m.sync()
                    assert done["mirrored"] >= done["generation"]
                    assert int(mirror(bucket)["f7"]) >= before - 200
            stop.cancel()


async def test_overwrites_are_coalesced(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as m:
        for number in range(20):
            m.write("f", b"%020d" % number)
            await m.replica._flusher.flush()
        puts = m.replica.status()["requests"]["put"]
        await m.sync()
        assert m.replica.status()["requests"]["put"] - puts == 1 + 1
    assert mirror(bucket) == {"f": b"%020d" % 19}


async def test_the_mirror_shows_the_frozen_point(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as m:
        m.write("f", b"frozen")
        m.write("big", b"1" * 3_000_000)
        flush_id, _ = await m.replica._flusher.flush()
        m.write("f", b"later!")
        m.write("big", b"2" * 3_000_000)
        m.rename("f", "g")
        await m.replica._flusher.mirror(flush_id, lambda _: None)
        assert mirror(bucket) == {"f": b"frozen", "big": b"1" * 3_000_000}
        await m.sync()
        assert mirror(bucket) == {"g": b"later!", "big": b"2" * 3_000_000}


async def test_partly_changed_large_file(mounter: Mounter, bucket: ScopedStore) -> None:
    data = bytearray(os.urandom(9_000_000))
    async with mounter("a") as m:
        m.write("big", bytes(data))
        await m.sync()
    async with mounter("b") as m:
        data[5_000_000:5_000_100] = bytes(100)
        ino = m.ino("big")
        while (need := m.fs.write(ino, 5_000_000, bytes(100))) != 100:
            assert not isinstance(need, int)
            await m.replica.fetch(need)
        await m.sync()
        assert mirror(bucket) == {"big": bytes(data)}
    async with mounter("c") as m:
        assert await m.read("big") == data


async def test_truncated_and_grown(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as m:
        ino = m.write("f", b"x" * 100_000)
        await m.sync()
        m.fs.setattr(ino, size=40_000)
        m.fs.setattr(ino, size=90_000)
        await m.sync()
    want = b"x" * 40_000 + bytes(50_000)
    assert mirror(bucket) == {"f": want}
    async with mounter("b") as m:
        assert await m.read("f") == want


async def test_a_sparse_giant_is_in_the_journal_only(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as m:
        ino = m.fs.create(ROOT_INO, b"giant", 0o644, CRED).ino
        m.fs.write(ino, 3 << 30, b"end")
        await m.sync()
        listed = m.replica.status()["mirror"]["unmirrored"]
        assert [item["path"] for item in listed] == ["giant"]
        m.fs.setattr(ino, size=10)
        await m.sync()
        assert not m.replica.status()["mirror"]["unmirrored"]
    assert mirror(bucket) == {"giant": bytes(10)}


@pytest.mark.parametrize("rounds", [1, 2])
async def test_swapped_files(mounter: Mounter, bucket: ScopedStore, rounds: int) -> None:
    async with mounter("a") as m:
        m.write("x", b"first")
        m.write("y", b"second")
        await m.sync()
        for _ in range(rounds):
            m.fs.rename(ROOT_INO, b"x", ROOT_INO, b"y", 2)
        await m.sync()
    want = [b"first", b"second"]
    assert mirror(bucket) == dict(zip("xy" if rounds == 2 else "yx", want, strict=True))


async def test_an_unlinked_open_file_is_gone_elsewhere(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        ino = m.write("f", b"still open")
        m.fs.open(ino)
        m.fs.unlink(ROOT_INO, b"f")
        await m.sync()
        used = m.cache.head.inodes
    assert mirror(bucket) == {}
    async with mounter("b") as m:
        assert m.cache.head.inodes == used - 1
        assert m.cache.head.used_bytes == 0
        await m.sync()
    async with mounter("c") as m:
        assert m.tree().keys() == {""}


async def test_directories_that_changed_places_before_the_mirror_was_known(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """What a listing shows at a path was put for the file that stood there before."""
    async with mounter("a") as m:
        m.write("one/f", b"of one")
        m.write("two/f", b"of two")
        m.write("two/sub/g", b"below")
        m.write("three/sub/g", b"BELOW")
        await m.sync()
    async with mounter("b") as m:
        m.rename("one", "aside")
        m.rename("two", "one")
        m.rename("aside", "two")
        m.rename("three/sub", "two/sub")
        await m.sync()
        assert mirror(bucket) == {
            "two/f": b"of one", "one/f": b"of two", "one/sub/g": b"below", "two/sub/g": b"BELOW",
        }  # fmt: skip


async def test_directories_that_changed_places_and_the_host_was_lost(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """The same, sealed but not mirrored by the host that did it."""
    async with mounter("a") as m:
        m.write("one/f", b"of one")
        m.write("two/f", b"of two")
        await m.sync()
        m.rename("one", "aside")
        m.rename("two", "one")
        m.rename("aside", "two")
        await m.replica._flusher.flush()
        await m.replica._flusher.drop()
    async with mounter("b") as m:
        await m.sync()
        assert mirror(bucket) == {"two/f": b"of one", "one/f": b"of two"}


async def test_a_directory_that_was_only_touched_keeps_its_objects(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """A new file in a directory is no reason to put all the others again on each new host."""
    async with mounter("a") as m:
        for number in range(20):
            m.write(f"dir/f{number}", b"%d" % number)
        await m.sync()
    async with mounter("b") as m:
        before = m.replica.status()["requests"]["put"]
        m.write("dir/new", b"new")
        await m.sync()
        # That one, its segment, and the note that the mirror is complete.
        assert m.replica.status()["requests"]["put"] <= before + 3
    assert len(mirror(bucket)) == 21


async def test_nothing_goes_from_the_mirror_before_its_seal(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restore the mirror is listed; what was renamed meanwhile is sealed as it was."""
    async with mounter("a") as m:
        m.write("old/file", b"1")
        m.write("old/other", b"2")
        await m.sync()
    async with mounter("b") as m:
        m.rename("old", "new")
        m.unlink("new/other")
        ask = m.replica.worker.ask

        async def no_seal(cmd: str, *args: Any, **more: Any) -> Any:
            if cmd == "seal":
                raise TransientError("seal", "journal", "the store is away")
            return await ask(cmd, *args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(m.replica.worker, "ask", no_seal)
            with pytest.raises(UserError):
                await m.sync()
        assert mirror(bucket) == {"old/file": b"1", "old/other": b"2"}
        await m.sync()
        assert mirror(bucket) == {"new/file": b"1"}
        assert not m.replica.status()["mirror"]["pending_files"]
