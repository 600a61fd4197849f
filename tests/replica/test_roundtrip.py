"""Flush, mirror, and mount from the bucket: what went in comes out, and the mirror shows it."""

from __future__ import annotations

import os
import stat

import pytest
import trio

from s3ws_fs.core import layout
from s3ws_fs.core.content import META_HASH
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.store.scoped import ScopedStore
from tests.replica.conftest import CRED, Mount, Mounter


def mirror(bucket: ScopedStore) -> dict[str, bytes]:
    """Every object below files/ with its bytes."""
    keys = [entry.key for entry in bucket.list(layout.FILES_PREFIX)]
    return {key[len(layout.FILES_PREFIX) :]: bucket.get(key).data for key in keys}


def fill(m: Mount) -> dict[str, bytes]:
    """A tree with a bit of everything; returns the mirror it should have."""
    big = os.urandom(5 << 20)
    holes = b"x" + bytes(200_000) + b"y"
    want = {
        "hello.txt": b"hello",
        "dir/sub/deep.py": b"print()\n" * 1000,
        "empty": b"",
        "big.bin": big,
        "odd/%41 100%": b"percent",
        "sparse": holes,
    }
    for path, data in want.items():
        if path != "sparse":
            m.write(path, data)
    m.write("sparse", b"x")
    m.write("sparse", b"y", offset=200_001)
    m.write("odd/\udcff\udcfe", b"bytes")
    want["odd/%FF%FE"] = b"bytes"
    want["odd/%2541 100%"] = want.pop("odd/%41 100%")
    m.fs.symlink(ROOT_INO, b"link", b"dir/sub", CRED)
    want["link"] = b"dir/sub"
    m.fs.link(m.ino("hello.txt"), m.ino("dir"), b"hard")
    want["dir/hard"] = b"hello"
    m.fs.mkdir(ROOT_INO, b"void", 0o700, CRED)
    m.fs.mknod(ROOT_INO, b"fifo", stat.S_IFIFO | 0o600, 0, CRED)
    want["fifo"] = b""
    m.fs.setxattr(m.ino("hello.txt"), b"user.note", b"\0value", 0)
    m.fs.setattr(m.ino("hello.txt"), mode=0o751, mtime_ns=1_234_567_890_123_456_789)
    return want


async def test_everything_comes_back(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as m:
        want = fill(m)
        result = await m.sync()
        assert result["sealed"] >= result["generation"]
        assert result["mirrored"] >= result["generation"]
        status = m.replica.status()
        assert status["dirty"]["records"] == 0
        assert status["mirror"]["pending_files"] == 0
        tree = m.tree()
    assert mirror(bucket) == want
    info = bucket.head("files/hello.txt")
    assert info.metadata["mode"] == str(stat.S_IFREG | 0o751)
    assert info.metadata["mtime"] == "1234567890.123456789"
    assert info.metadata["uid"] == "1000"
    assert len(info.metadata[META_HASH]) == 32
    assert info.content_type == "text/plain"
    async with mounter("b") as m:
        assert m.tree() == tree
        assert m.replica.status()["hydration"]["state"] == "none"
        for path, data in want.items():
            if path not in ("link", "fifo"):
                name = layout.unescape_path(path)
                assert name is not None
                assert await m.read(os.fsdecode(name)) == data
        assert m.fs.getxattr(m.ino("hello.txt"), b"user.note") == b"\0value"


async def test_a_complete_mirror_is_not_looked_at_again_after_a_restore(mounter: Mounter) -> None:
    async with mounter("a") as m:
        for number in range(50):
            m.write(f"dir/f{number}", b"x" * number)
        await m.sync()
    async with mounter("b") as m:
        heads = m.replica.status()["requests"]["head"]
        assert m.replica.status()["mirror"]["pending_files"] == 0
        assert await m.replica.final_flush(lambda _: None) == []
        # When the mirror was last complete is asked once; what is older is believed.
        assert m.replica.status()["requests"]["head"] == heads + 1


async def test_an_incomplete_mirror_is_looked_at_after_a_restore(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        m.write("f", b"old")
        await m.sync()
        m.write("f", b"new")
        await m.replica._flusher.flush()
    assert bucket.get("files/f").data == b"old"
    async with mounter("b") as m:
        assert m.replica.status()["mirror"]["pending_files"] >= 1
        await m.sync()
        assert bucket.get("files/f").data == b"new"


async def test_hydration_makes_everything_warm(mounter: Mounter) -> None:
    async with mounter("a") as m:
        fill(m)
        await m.sync()
    async with mounter("b") as m:
        await m.replica.hydrate()
        assert m.replica.status()["hydration"]["state"] == "complete"
        gets = m.replica.status()["requests"]["get"]
        await m.read("big.bin")
        assert m.replica.status()["requests"]["get"] == gets


async def test_changes_after_a_restore_reach_the_mirror(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        want = fill(m)
        await m.sync()
    async with mounter("b") as m:
        m.unlink("empty")
        m.rename("dir", "moved")
        m.write("hello.txt", b"HELLO!")
        m.fs.setattr(m.ino("big.bin"), mode=0o600)
        await m.sync()
        tree = m.tree()
    del want["empty"]
    want["moved/sub/deep.py"] = want.pop("dir/sub/deep.py")
    want["moved/hard"] = want["hello.txt"] = b"HELLO!"
    del want["dir/hard"]
    assert mirror(bucket) == want
    assert bucket.head("files/big.bin").metadata["mode"] == str(stat.S_IFREG | 0o600)
    async with mounter("c") as m:
        assert m.tree() == tree
        assert await m.read("moved/hard") == b"HELLO!"


async def test_a_renamed_tree_is_copied_by_the_server(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        for number in range(30):
            m.write(f"old/{number % 3}/f{number}", b"%d" % number)
        await m.sync()
        before = m.replica.status()["requests"]
        m.rename("old", "new")
        await m.sync()
        after = m.replica.status()["requests"]
    assert after["copy"] - before["copy"] == 30
    # The segment, and the note that the mirror is complete.
    assert after["put"] - before["put"] == 2
    assert mirror(bucket) == {f"new/{n % 3}/f{n}": b"%d" % n for n in range(30)}


async def test_a_file_becomes_a_directory_and_back(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as m:
        m.write("thing", b"file")
        await m.sync()
        m.rename("thing", "saved")
        m.write("thing/inside", b"in")
        await m.sync()
        assert mirror(bucket) == {"saved": b"file", "thing/inside": b"in"}
        m.unlink("thing/inside")
        m.fs.rmdir(ROOT_INO, b"thing")
        m.rename("saved", "thing")
        await m.sync()
    assert mirror(bucket) == {"thing": b"file"}


async def test_small_files_are_few_requests(mounter: Mounter) -> None:
    async with mounter("a") as m:
        for number in range(200):
            m.write(f"d{number % 10}/f{number}", bytes([number]) * 3000)
        before = sum(m.replica.status()["requests"].values())
        await m.replica._flusher.flush()
        sealing = sum(m.replica.status()["requests"].values()) - before
        assert sealing <= 6
        await m.sync()


async def test_the_service_flushes_by_itself(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", run=True) as m:
        m.write("auto", b"matic")
        with trio.fail_after(30):
            while m.replica.status()["generation"]["mirrored"] < m.cache.generation:
                await trio.sleep(0.02)
    assert mirror(bucket) == {"auto": b"matic"}


async def test_final_flush_saves_everything(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as m:
        m.write("last", b"words")
        assert await m.replica.final_flush(lambda _: None) == []
    assert mirror(bucket) == {"last": b"words"}


async def test_an_old_cache_goes_on(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a") as m:
        m.write("one", b"1")
        await m.sync()
        m.write("two", b"2")
    async with mounter("a") as m:
        assert m.replica.status()["dirty"]["records"] > 0
        await m.sync()
    assert mirror(bucket) == {"one": b"1", "two": b"2"}


@pytest.mark.parametrize("name", ["x" * 255, "\udcff" * 90], ids=["fits", "too long"])
async def test_names_too_long_for_the_mirror_are_in_the_journal(
    mounter: Mounter, bucket: ScopedStore, name: str
) -> None:
    async with mounter("a") as m:
        m.write(name, b"kept")
        await m.sync()
        status = m.replica.status()
    if name.startswith("x"):
        assert mirror(bucket) == {name: b"kept"}
        assert not status["mirror"]["unmirrored"]
    else:
        assert mirror(bucket) == {}
        assert [item["path"] for item in status["mirror"]["unmirrored"]] == [name]
    async with mounter("b") as m:
        assert await m.read(name) == b"kept"
