"""A prefix filled by hand becomes a workspace: what comes in, what does not, and what it costs."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.core import layout
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.store.scoped import ScopedStore
from tests.replica.conftest import Mounter
from tests.replica.test_outside import elsewhere, left, shown
from tests.replica.test_roundtrip import mirror

only_s3 = pytest.mark.parametrize(
    "store_config", [pytest.param("s3", marks=pytest.mark.s3)], indirect=True
)
only_local = pytest.mark.parametrize("store_config", ["local"], indirect=True)


def by_hand(bucket: ScopedStore) -> dict[str, bytes]:
    """A tree as other tools put it; returns the files it has."""
    want = {
        "readme.md": b"# by hand\n",
        "src/pkg/deep/mod.py": b"print()\n" * 1000,
        "src/pkg/tool.sh": b"#!/bin/sh\n",
        "empty": b"",
        "big.bin": os.urandom(9_000_001),
        "names/ü ö %41": b"unicode",
    }
    said = {"mode": str(0o100750), "uid": "1000", "gid": "100", "mtime": "1500000000.25"}
    for path, data in want.items():
        text = layout.escape_path(path.encode())
        bucket.put(f"files/{text}", data, metadata=said if path.endswith(".sh") else {})
    bucket.put("files/link", b"src/pkg", metadata={"mode": str(stat.S_IFLNK | 0o777)})
    return want


def listing(bucket: ScopedStore) -> dict[str, tuple[str, int]]:
    """Every object of the workspace with its ETag and size, but for the lease."""
    return {
        entry.key: (entry.etag, entry.size_bytes)
        for entry in bucket.list()
        if entry.key != layout.LEASE_KEY
    }


def marker(m: Any, bucket: ScopedStore, path: str, metadata: dict[str, str]) -> None:
    """An empty directory, as other tools put it."""
    inner = bucket._inner
    key = f"{bucket.prefix}files/{path}/"
    if type(inner).__name__ == "LocalStore":
        assert m.store.path is not None
        (Path(m.store.path) / key).mkdir(parents=True)
    else:
        client = inner._wire.client  # type: ignore[attr-defined]
        client.put_object(Bucket=m.store.bucket, Key=key, Body=b"", Metadata=metadata)


async def test_what_was_put_by_hand_is_the_workspace(
    mounter: Mounter, bucket: ScopedStore, config: Any
) -> None:
    want = by_hand(bucket)
    marker(config, bucket, "void/inner", {})
    marker(config, bucket, "src/also void", {})
    before = mirror(bucket)
    async with mounter("a", root_uid=5, root_gid=6) as m:
        assert listing(bucket).keys() - {layout.WORKSPACE_KEY} == {
            f"files/{text}" for text in before
        }
        assert await m.files() == want
        assert m.fs.readlink(m.ino("link")) == b"src/pkg"
        attr = m.fs.getattr(m.ino("src/pkg/tool.sh"))
        assert (attr.mode, attr.uid, attr.gid) == (0o100750, 1000, 100)
        assert attr.mtime_ns == 1_500_000_000_250_000_000
        plain = m.fs.getattr(m.ino("readme.md"))
        assert (plain.mode, plain.uid, plain.gid) == (0o100644, 5, 6)
        assert plain.mtime_ns == bucket.head("files/readme.md").modified_ns
        assert m.fs.getattr(m.ino("src")).uid == 5
        assert stat.S_ISDIR(m.fs.getattr(m.ino("void/inner")).mode)
        assert stat.S_ISDIR(m.fs.getattr(m.ino("src/also void")).mode)
        requests = m.replica.status()["requests"]
        await m.sync()
        now = m.replica.status()["requests"]
        # workspace.json came before; a segment, the big one's blob, the note: no object again.
        assert now["put"] - requests["put"] == 3
        assert now["copy"] - requests["copy"] == len(before)
        assert mirror(bucket) == before
        assert m.replica.status()["outside"]["events"] == []
        assert left(m) == {}
        m.write("readme.md", b"changed here")
        m.rename("src", "source")
        await m.sync()
    async with mounter("b") as m:
        assert m.replica.status()["outside"]["left"] == []
        want = {path.replace("src/", "source/"): data for path, data in want.items()}
        assert await m.files() == want | {"readme.md": b"changed here"}
        m.write("readme.md", b"and there, too")
        await m.sync(outside=True)
        assert m.replica.status()["outside"]["count"] == 0
        want["readme.md"] = b"and there, too"
        assert await m.files() == want


@only_s3
async def test_names_that_are_file_and_directory(mounter: Mounter, bucket: ScopedStore) -> None:
    """On a local store they can't be."""
    bucket.put("files/both", b"file")
    bucket.put("files/both/below", b"below")
    bucket.put("files/%2E%2E/escape", b"dots")
    async with mounter("a") as m:
        assert await m.files() == {"both/below": b"below"}
        await m.sync()
        assert left(m).keys() == {"both", "%2E%2E/escape"}
        assert mirror(bucket)["both"] == b"file"


@only_local
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_size_bytes": 4 << 20}, "WORKSPACE_MAX_SIZE_MB"),
        ({"max_inodes": 16}, "WORKSPACE_MAX_FILES"),
    ],
)
async def test_what_does_not_fit_is_refused_before_anything(
    mounter: Mounter, bucket: ScopedStore, settings: dict[str, int], message: str
) -> None:
    for number in range(18):
        bucket.put(f"files/f{number:02}", bytes(300_000))
    before = listing(bucket)
    with pytest.raises(UserError, match=message) as caught:
        async with mounter("a", **settings):
            pass
    assert caught.value.exit_code == ExitCode.BAD_SETTINGS
    assert listing(bucket) == before
    async with mounter("a") as m:
        assert len(await m.files()) == 18


@only_local
async def test_directories_count_and_small_files_take_whole_blocks(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """What only turns out while it is brought in is refused as clearly."""
    for number in range(10):
        bucket.put(f"files/d{number}/f", b"x")
    before = listing(bucket)
    with pytest.raises(UserError, match="do not fit"):
        async with mounter("a", max_inodes=16):
            pass
    assert listing(bucket) == before
    for number in range(300):
        bucket.put(f"files/f{number}", b"x")
    with pytest.raises(UserError, match="do not fit"):
        async with mounter("a", max_size_bytes=1 << 20):
            pass
    async with mounter("a") as m:
        assert len(await m.files()) == 310


async def test_a_journal_that_was_removed(mounter: Mounter, bucket: ScopedStore) -> None:
    """The mirror alone is left: its files, modes and times make a new workspace."""
    async with mounter("a") as m:
        m.write("dir/f", b"1" * 100_000)
        m.fs.setattr(m.ino("dir/f"), mode=0o751, uid=7, gid=8, mtime_ns=1_500_000_000_000_000_000)
        await m.sync()
    for entry in list(bucket.list("journal/")):
        bucket.delete(entry.key)
    async with mounter("b") as m:
        assert await m.files() == {"dir/f": b"1" * 100_000}
        attr = m.fs.getattr(m.ino("dir/f"))
        assert (attr.mode, attr.uid, attr.gid) == (0o100751, 7, 8)
        assert attr.mtime_ns == 1_500_000_000_000_000_000
        await m.sync()
        files = await shown(m, bucket)
    await elsewhere(mounter, files)


async def test_a_workspace_that_never_sealed_is_new(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a"):
        pass
    bucket.put("files/f", b"by hand")
    async with mounter("b") as m:
        assert await m.files() == {"f": b"by hand"}
        await m.sync()
        await shown(m, bucket)


async def test_an_object_that_changes_while_it_is_imported(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the import and the first flush: it is an outside change like any other."""
    bucket.put("files/f", b"first")
    async with mounter("a") as m:
        bucket.put("files/f", b"second")
        await m.sync()
        files = await shown(m, bucket)
        assert sorted(files.values()) == [b"first", b"second"]
        assert files["f"] == b"first"


@only_local
async def test_progress_is_told(mounter: Mounter, bucket: ScopedStore, config: Any) -> None:
    for number in range(120):
        bucket.put(f"files/f{number:03}", b"%d" % number)
    seen: list[dict[str, Any]] = []
    async with mounter("a", on_progress=seen.append):
        pass
    importing = [event for event in seen if event.get("phase") == "importing"]
    assert [event["done"] for event in importing] == [0, 50, 100, 120]
    assert {event["total"] for event in importing} == {120}
