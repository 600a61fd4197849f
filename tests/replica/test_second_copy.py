"""Bytes that the journal lost: from the mirror if it has the very same, else an error."""

from __future__ import annotations

import os

import pytest

from s3ws_fs.core import layout
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.store.scoped import ScopedStore
from tests.replica.conftest import Mount, Mounter

pytestmark = pytest.mark.parametrize("store_config", ["local"], indirect=True)

DATA = os.urandom(1_200_000)
"""Enough for a blob of its own."""


async def prepared(mounter: Mounter) -> str:
    """A file in a blob, renamed since, and one more; the blob's key."""
    async with mounter("a") as m:
        m.write("dir/file", DATA)
        m.write("other", b"other")
        await m.sync()
        m.rename("dir", "renamed")
        await m.sync()
        with m.cache.read() as view:
            location = view.chunk(m.ino("renamed/file"), 0)
    assert location is not None
    return layout.object_key(location.object_id)


def used(m: Mount) -> list[str]:
    return [each["path"] for each in m.replica.status()["hydration"]["second_copies"]]


def damaged(m: Mount) -> list[str]:
    return [each["path"] for each in m.replica.status()["hydration"]["damaged"]]


@pytest.mark.parametrize("is_gone", [False, True], ids=["rotten", "missing"])
async def test_the_mirror_has_them(mounter: Mounter, bucket: ScopedStore, is_gone: bool) -> None:
    key = await prepared(mounter)
    raw = bytearray(bucket.get(key).data)
    bucket.delete(key)
    if not is_gone:
        raw[EXTENT_BYTES + 5] ^= 1
        bucket.put(key, bytes(raw))
    async with mounter("b") as m:
        assert await m.read("renamed/file") == DATA
        assert used(m) == ["renamed/file"] and damaged(m) == []
        assert await m.read("other") == b"other"
    async with mounter("c") as m:
        # Not only for a reader who waits.
        await m.replica.hydrate()
        assert used(m) == ["renamed/file"] and damaged(m) == []
        bucket.delete("files/renamed/file")
        assert await m.read("renamed/file") == DATA


async def test_a_mirror_that_was_edited_is_never_taken(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    key = await prepared(mounter)
    bucket.delete(key)
    edited = bytearray(DATA)
    edited[5 * EXTENT_BYTES] ^= 1
    bucket.put("files/renamed/file", bytes(edited))
    async with mounter("b") as m:
        with pytest.raises(FsError, match="renamed/file"):
            await m.read("renamed/file")
        # What the digests allow is right all the same.
        assert m.fs.read(m.ino("renamed/file"), 0, 100) == DATA[:100]
        assert damaged(m) == ["renamed/file"]
        bucket.put("files/renamed/file", b"short")
        await m.replica.hydrate()
        assert damaged(m) == ["renamed/file"]
