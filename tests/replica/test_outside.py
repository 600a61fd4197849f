"""What somebody else does to the mirror: kept, taken over, put again or left, and always told."""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import Any

import pytest
import xxhash

from s3ws_fs.core import content, layout
from s3ws_fs.core.outside import copy_names, original_name
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.replica import outside as outside_module
from s3ws_fs.store.scoped import ScopedStore
from tests.replica.conftest import CRED, Mount, Mounter
from tests.replica.test_roundtrip import mirror

KEEP = {"outside_changes": "keep-both"}
BUCKET = {"outside_changes": "bucket-wins"}
OURS = {"outside_changes": "workspace-wins"}


def events(m: Mount) -> list[tuple[str, str]]:
    found = m.replica.status()["outside"]["events"]
    return [(item["path"], item["what"]) for item in found]


def left(m: Mount) -> dict[str, str]:
    return {item["path"]: item["reason"] for item in m.replica.status()["outside"]["left"]}


def copies(files: dict[str, bytes], path: str) -> dict[str, bytes]:
    """The conflict copies of a file by path."""
    above, _, name = path.rpartition("/")
    found = {}
    for other, data in files.items():
        where, _, last = other.rpartition("/")
        if where == above and original_name(os.fsencode(last)) == os.fsencode(name):
            found[other] = data
    return found


async def shown(m: Mount, bucket: ScopedStore) -> dict[str, bytes]:
    """The workspace's files, which the mirror has to show, with our marks."""
    files = await m.files()
    assert mirror(bucket) == files
    workspace = m.cache.get_json("workspace")
    for path in files:
        info = bucket.head(f"files/{path}")
        assert content.our_mark(info.metadata, workspace, path) is not None, path
    assert m.replica.status()["mirror"]["pending_files"] == 0
    return files


async def elsewhere(mounter: Mounter, want: dict[str, bytes]) -> None:
    """What another host finds."""
    async with mounter("elsewhere") as other:
        assert await other.files() == want
        result = await other.sync()
        assert result["outside"]["events"] == []


# --- changed outside -----------------------------------------------------------------------


async def test_both_are_kept(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **KEEP) as m:
        m.write("dir/mine.tar.gz", b"1")
        m.write("fine", b"2")
        await m.sync()
        said = {"mode": str(0o100711), "uid": "7", "gid": "8", "mtime": "1700000000.5"}
        bucket.put("files/dir/mine.tar.gz", b"edited outside", metadata=said)
        m.write("dir/mine.tar.gz", b"changed here")
        result = await m.sync()
        assert result["conflicts"] == []
        assert result["mirrored"] >= result["generation"]
        files = await shown(m, bucket)
        ((copy, data),) = copies(files, "dir/mine.tar.gz").items()
        assert (data, files["dir/mine.tar.gz"], files["fine"]) == (
            b"edited outside", b"changed here", b"2",
        )  # fmt: skip
        attr = m.fs.getattr(m.ino(copy))
        assert (attr.mode, attr.uid, attr.gid) == (0o100711, 7, 8)
        assert attr.mtime_ns == 1_700_000_000_500_000_000
        (event,) = result["outside"]["events"]
        assert (event["path"], event["copy"]) == ("dir/mine.tar.gz", copy)
        assert event["what"] == "changed outside; kept as a copy"
        assert await m.replica.final_flush(lambda _: None) == []
    async with mounter("a", **KEEP) as m:
        assert [path for path, _ in events(m)] == ["dir/mine.tar.gz"]
        await m.sync()
        assert m.replica.status()["outside"]["count"] == 1
    await elsewhere(mounter, files)


async def test_a_change_of_a_file_that_nobody_touches_here(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """Found by the listing at the mount, and on demand."""
    big = os.urandom(9_000_001)
    async with mounter("a", **KEEP) as m:
        m.write("big", b"ours")
        m.write("other", b"ours")
        await m.sync()
        bucket.put("files/big", big)
        await m.sync()
        assert events(m) == []
        await m.sync(outside=True)
        files = await shown(m, bucket)
        assert list(copies(files, "big").values()) == [big]
        assert await m.replica.final_flush(lambda _: None) == []
    bucket.put("files/other", b"while nothing was mounted")
    async with mounter("a", **KEEP) as m:
        await m.sync()
        files = await shown(m, bucket)
        assert list(copies(files, "other").values()) == [b"while nothing was mounted"]
    await elsewhere(mounter, files)


async def test_a_change_before_the_first_mount_on_a_new_host(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """Without any row: by size, or by being younger than the last complete mirror."""
    async with mounter("a", **KEEP) as m:
        m.write("f", b"ours")
        m.write("g", b"ours")
        await m.sync()
    bucket.put("files/f", b"of another size")
    bucket.put("files/new", b"made outside")
    async with mounter("b", **KEEP) as m:
        # What came by it is to be mirrored by it: a slow pass may be ended early for its sake.
        await m.sync(outside=True)
        files = await shown(m, bucket)
        assert list(copies(files, "f").values()) == [b"of another size"]
        assert (files["f"], files["g"], files["new"]) == (b"ours", b"ours", b"made outside")


async def test_an_edit_that_keeps_our_metadata_is_one_from_outside(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a", **KEEP) as m:
        m.write("f", b"ours")
        await m.sync()
        bucket.put("files/f", b"edited", metadata=bucket.head("files/f").metadata)
        m.write("f", b"newer")
        await m.sync()
        files = await shown(m, bucket)
        assert list(copies(files, "f").values()) == [b"edited"]
        assert files["f"] == b"newer"


@pytest.mark.parametrize("cache", ["a", "b"])
async def test_the_same_where_only_a_listing_is_known(
    mounter: Mounter, bucket: ScopedStore, cache: str
) -> None:
    """Same size, same metadata, and not younger than the note: read before it is overwritten."""
    async with mounter("a", **KEEP) as m:
        m.write("f", b"ours")
        m.write("dir/g", b"OURS")
        await m.sync()
        for path, data in (("f", b"OUTS"), ("dir/g", b"outs")):
            bucket.put(f"files/{path}", data, metadata=bucket.head(f"files/{path}").metadata)
        note = bucket.get(layout.MIRRORED_KEY).data
        bucket.put(layout.MIRRORED_KEY, note, content_type="application/json")
    async with mounter(cache, **KEEP) as m:
        m.cache.put_json("mirror_known", cache == "a")
        m.write("f", b"more")
        m.rename("dir", "moved")
        await m.sync()
        files = await shown(m, bucket)
        assert (files["f"], files["moved/g"]) == (b"more", b"OURS")
        assert b"OUTS" in files.values()
        assert b"outs" in files.values()


async def test_late_objects_of_ours_are_no_outside_change(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a", **KEEP) as m:
        m.write("f", b"first")
        m.write("gone", b"first")
        await m.sync()
        late = {path: bucket.head(f"files/{path}").metadata for path in ("f", "gone")}
        m.write("f", b"second")
        m.unlink("gone")
        await m.sync()
        for path, said in late.items():
            bucket.put(f"files/{path}", b"first", metadata=said)
        await m.sync(outside=True)
        assert await shown(m, bucket) == {"f": b"second"}
        assert events(m) == []
        bucket.put("files/f", b"first", metadata=late["f"])
        m.write("f", b"third!")
        await m.sync()
        assert await shown(m, bucket) == {"f": b"third!"}
        assert events(m) == []


async def test_objects_of_a_later_flush_are_never_touched(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """A writer that has been taken over from meets what the new one put."""
    async with mounter("a", **KEEP) as m:
        m.write("f", b"ours")
        m.write("g", b"ours")
        await m.sync()
        for path, data in (("f", b"theirs"), ("new", b"theirs")):
            said = dict(bucket.head("files/g").metadata)
            said[content.META_GENERATION] = "1000000"
            said[content.META_PATH] = content.path_mark(path)
            said[content.META_HASH] = xxhash.xxh3_128_hexdigest(data)
            bucket.put(f"files/{path}", data, metadata=said)
        m.write("f", b"stale")
        result = await m.sync(outside=True)
        assert [item["path"] for item in result["conflicts"]] == ["f"]
        assert events(m) == []
        assert mirror(bucket) == {"f": b"theirs", "new": b"theirs", "g": b"ours"}


async def test_the_same_bytes_need_no_copy(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **KEEP) as m:
        m.write("f", b"ours")
        await m.sync()
        bucket.put("files/f", b"ours, and more")
        bucket.put("files/f", b"ours")
        m.fs.setattr(m.ino("f"), mode=0o755)
        await m.sync(outside=True)
        assert await shown(m, bucket) == {"f": b"ours"}
        assert bucket.head("files/f").metadata["mode"] == str(0o100755)


async def test_one_copy_for_one_change(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **KEEP) as m:
        m.write("f", b"ours")
        await m.sync()
        bucket.put("files/f", b"theirs")
        for number in range(3):
            m.write("f", b"%d" % number)
            await m.sync(outside=True)
        assert len(copies(await shown(m, bucket), "f")) == 1


async def test_somebody_who_never_stops(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside_module, "COPIES_OF_ONE_PATH_MAX", 3)
    async with mounter("a", **KEEP) as m:
        for number in range(5):
            m.write("f", b"ours %d" % number)
            await m.sync()
            bucket.put("files/f", b"theirs %d" % number)
        await m.sync(outside=True)
        assert "3 versions were kept" in left(m)["f"]
        m.write("f", b"ours at last")
        await m.sync()
        assert mirror(bucket)["f"] == b"theirs 4"
        assert len(await m.replica.final_flush(lambda _: None)) == 1
        assert len(copies(await m.files(), "f")) == 3


async def test_the_bucket_wins(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **BUCKET) as m:
        for path in ("clean", "changed", "linked"):
            m.write(path, b"ours")
        m.fs.link(m.ino("linked"), ROOT_INO, b"other name")
        m.fs.setattr(m.ino("clean"), mode=0o600)
        m.fs.setxattr(m.ino("clean"), b"user.note", b"kept", 0)
        await m.sync()
        forgotten: list[Any] = []

        async def forget(outdated: Any) -> None:
            forgotten.append(outdated)

        m.replica.kernel_forget = forget
        for path in ("clean", "changed", "linked"):
            bucket.put(f"files/{path}", b"theirs: " + path.encode())
        m.write("changed", b"also ours")
        await m.sync(outside=True)
        files = await shown(m, bucket)
        assert {path: files[path] for path in ("clean", "changed", "linked", "other name")} == {
            "clean": b"theirs: clean",
            "changed": b"theirs: changed",
            "linked": b"theirs: linked",
            "other name": b"ours",
        }
        ((copy, data),) = copies(files, "changed").items()
        assert data == b"also ours"
        assert "(workspace " in copy
        assert len(files) == 5
        attr = m.fs.getattr(m.ino("clean"))
        assert attr.mode == 0o100600
        assert m.fs.getxattr(m.ino("clean"), b"user.note") == b"kept"
        assert {name for item in forgotten for _, name in item.names} == {
            b"clean", b"changed", b"linked", os.fsencode(copy),
        }  # fmt: skip
    await elsewhere(mounter, files)


async def test_the_workspace_wins(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **OURS) as m:
        m.write("f", b"ours")
        m.write("g", b"ours")
        await m.sync()
        bucket.put("files/f", b"theirs")
        bucket.put("files/added", b"theirs")
        bucket.delete("files/g")
        await m.sync(outside=True)
        assert mirror(bucket) == {"f": b"ours", "g": b"ours", "added": b"theirs"}
        assert await m.files() == {"f": b"ours", "g": b"ours"}
        assert dict(events(m)) == {
            "f": "changed outside; put over by workspace-wins",
            "g": "deleted outside; put again",
        }
        assert "workspace-wins" in left(m)["added"]
        assert await m.replica.final_flush(lambda _: None) == []


# --- added and deleted outside -------------------------------------------------------------


@pytest.mark.parametrize("policy", [KEEP, BUCKET])
async def test_what_is_added_outside_comes_in(
    mounter: Mounter, bucket: ScopedStore, policy: dict[str, str]
) -> None:
    big = os.urandom(5 << 20)
    async with mounter("a", **policy) as m:
        m.write("mine", b"ours")
        await m.sync()
        bucket.put("files/new/dir/f", b"added")
        bucket.put("files/big", big)
        bucket.put("files/empty", b"")
        bucket.put("files/link", b"new/dir", metadata={"mode": str(stat.S_IFLNK | 0o777)})
        bucket.put("files/device", b"", metadata={"mode": str(stat.S_IFBLK | 0o6777)})
        bucket.put("files/odd%FF", b"escaped")
        puts = m.replica.status()["requests"]["put"]
        await m.sync(outside=True)
        # A segment, a blob of the big one, and the note: no object's bytes were put again.
        assert m.replica.status()["requests"]["put"] - puts <= 3
        files = await m.files()
        assert files == {
            "mine": b"ours", "new/dir/f": b"added", "big": big, "empty": b"", "device": b"",
            "odd\udcff": b"escaped",
        }  # fmt: skip
        assert m.fs.readlink(m.ino("link")) == b"new/dir"
        assert m.fs.getattr(m.ino("device")).mode == 0o100777
        await m.sync(outside=True)
        assert m.replica.status()["outside"]["count"] == 6
        assert m.replica.status()["mirror"]["pending_files"] == 0
    async with mounter("b", **policy) as m:
        assert await m.files() == files
        m.write("empty", b"no more")
        await m.sync(outside=True)
        assert m.replica.status()["outside"]["count"] == 0
        assert len(await m.files()) == 6


async def test_a_copy_and_a_rename_by_other_tools(mounter: Mounter, bucket: ScopedStore) -> None:
    """They take our metadata along: the object is an addition all the same."""
    async with mounter("a", **KEEP) as m:
        m.write("f", b"ours")
        m.write("g", b"ours too")
        await m.sync()
        bucket.copy("files/f", "files/a copy")
        bucket.copy("files/g", "files/renamed")
        bucket.delete("files/g")
        await m.sync(outside=True)
        assert await shown(m, bucket) == {
            "f": b"ours", "a copy": b"ours", "g": b"ours too", "renamed": b"ours too",
        }  # fmt: skip
        bucket.copy("files/f", "files/g")
        await m.sync(outside=True)
        assert list(copies(await shown(m, bucket), "g").values()) == [b"ours"]


async def test_what_we_delete_and_somebody_else_changed(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a", **KEEP) as m:
        m.write("gone", b"1")
        m.write("moved", b"2")
        await m.sync()
        bucket.put("files/gone", b"somebody else's")
        bucket.put("files/moved", b"theirs as well")
        m.unlink("gone")
        m.rename("moved", "there")
        await m.sync()
        assert await shown(m, bucket) == {
            "gone": b"somebody else's", "moved": b"theirs as well", "there": b"2",
        }  # fmt: skip


@pytest.mark.parametrize("policy", [KEEP, OURS, BUCKET])
async def test_what_is_deleted_outside(
    mounter: Mounter, bucket: ScopedStore, policy: dict[str, str]
) -> None:
    async with mounter("a", **policy) as m:
        for path in ("clean", "changed", "stays"):
            m.write(path, b"ours")
        await m.sync()
        bucket.delete("files/clean")
        bucket.delete("files/changed")
        m.write("changed", b"newer")
        await m.sync(outside=True)
        want = {"clean": b"ours", "changed": b"newer", "stays": b"ours"}
        if policy == BUCKET:
            del want["clean"]
        assert await shown(m, bucket) == want
        assert {path for path, _ in events(m)} == {"clean", "changed"}
    await elsewhere(mounter, want)


async def test_a_deletion_met_by_a_put_is_told(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **BUCKET) as m:
        m.write("f", b"1")
        await m.sync()
        bucket.delete("files/f")
        m.write("f", b"2")
        await m.sync()
        assert events(m) == [("f", "deleted outside; put again")]
        assert await shown(m, bucket) == {"f": b"2"}


async def test_a_mirror_that_is_gone_as_a_whole_is_an_accident(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a", **BUCKET) as m:
        want = {f"dir/f{number}": b"%d" % number for number in range(5)}
        for path, data in want.items():
            m.write(path, data)
        await m.sync()
        for path in want:
            bucket.delete(f"files/{path}")
        await m.sync(outside=True)
        assert await shown(m, bucket) == want
        assert all("accident" in what for _, what in events(m))


# --- what can't be ours --------------------------------------------------------------------


async def test_what_cannot_be_a_file_is_left_alone(mounter: Mounter, bucket: ScopedStore) -> None:
    inner = bucket._inner
    strange = {
        "%2E%2E/escape": b"dots",
        "nul%00": b"nul",
        "lower%ff": b"not the escape of anything",
        "file/below": b"below a file",
        "dir": b"where a directory is",
    }
    is_local = type(inner).__name__ == "LocalStore"
    if is_local:
        # A tree can't have a file and a directory of one name.
        del strange["dir"], strange["file/below"]
    async with mounter("a", **KEEP) as m:
        if not is_local:
            m.write("file", b"ours")
        m.write("dir/f", b"ours")
        m.write("last", b"ours")
        await m.sync()
        before = await m.files()
        for key, data in strange.items():
            bucket.put(f"files/{key}", data)
        for _ in range(2):
            await m.sync(outside=True)
            assert await m.files() == before
            assert left(m).keys() == strange.keys()
        assert mirror(bucket) == before | strange
        assert await m.replica.final_flush(lambda _: None) == []
    async with mounter("b", **KEEP) as m:
        assert await m.files() == before
        await m.sync()
        assert left(m).keys() == strange.keys()


async def test_keys_that_no_store_of_ours_would_take(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control characters in a listing: told, and never asked for."""
    async with mounter("a", **KEEP) as m:
        m.write("f", b"ours")
        await m.sync()
        inner = bucket._inner
        key = bucket.prefix + "files/line\nbreak"
        if type(inner).__name__ == "LocalStore":
            root = m.config.store.path
            assert root is not None
            with open(os.path.join(root, key), "wb") as file:
                file.write(b"theirs")
        else:
            client = inner._wire.client  # type: ignore[attr-defined]
            client.put_object(Bucket=m.config.store.bucket, Key=key, Body=b"theirs")
        await m.sync(outside=True)
        assert left(m).keys() == {"line\nbreak"}
        # As a cache does that knows nothing.
        m.cache.put_json("mirror_known", False)
        await m.sync(outside=True)
        assert left(m).keys() == {"line\nbreak"}


async def test_the_quota_holds(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **KEEP, max_size_bytes=1 << 20) as m:
        m.write("f", b"ours")
        await m.sync()
        bucket.put("files/f", b"x" * 2_000_000)
        bucket.put("files/new", b"y" * 2_000_000)
        m.write("f", b"more")
        result = await m.sync(outside=True)
        assert left(m).keys() == {"f", "new"}
        assert all("quota" in why for why in left(m).values())
        assert [item["path"] for item in result["conflicts"]] == ["f"]
        assert "quota" in result["conflicts"][0]["reason"]
        assert mirror(bucket) == {"f": b"x" * 2_000_000, "new": b"y" * 2_000_000}
        assert len(await m.replica.final_flush(lambda _: None)) == 1
        assert m.cache.head.inodes == 2
    async with mounter("a", **KEEP) as m:
        await m.sync()
        files = await shown(m, bucket)
        assert files["f"] == b"more"
        assert files["new"] == b"y" * 2_000_000


async def test_the_number_of_files_is_limited(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **KEEP, max_inodes=16) as m:
        m.write("f", b"ours")
        await m.sync()
        for number in range(20):
            bucket.put(f"files/new{number:02}", b"%d" % number)
        await m.sync(outside=True)
        assert m.cache.head.inodes == len(await m.files()) + 1
        assert len(left(m)) == 20 - (len(await m.files()) - 1)
        assert len(mirror(bucket)) == 21


async def test_lists_are_bounded(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside_module, "EVENTS_MAX", 3)
    monkeypatch.setattr(outside_module, "LEFT_MAX", 2)
    async with mounter("a", **KEEP) as m:
        for number in range(5):
            bucket.put(f"files/new{number}", b"%d" % number)
            bucket.put(f"files/%ff{number}", b"%d" % number)
        await m.sync(outside=True)
        status = m.replica.status()["outside"]
        assert (len(status["events"]), status["count"], len(status["left"])) == (3, 5, 2)
        assert len(await m.files()) == 5


async def test_without_a_filesystem_everything_is_left_alone(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        m.replica._cycle.outside = None
        m.write("mine", b"1")
        await m.sync()
        bucket.put("files/mine", b"edited outside")
        m.write("mine", b"changed here")
        result = await m.sync()
        assert [item["path"] for item in result["conflicts"]] == ["mine"]
        assert mirror(bucket) == {"mine": b"edited outside"}


def test_the_setting(mounter: Mounter, config: Any) -> None:
    assert config.outside_changes == "keep-both"
    with pytest.raises(Exception, match="outside_changes"):
        dataclasses.replace(config, outside_changes="nobody-wins")


async def test_names_that_are_taken(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", **KEEP) as m:
        m.write("f.txt", b"ours")
        await m.sync()
        bucket.put("files/f.txt", b"theirs")
        when = bucket.head("files/f.txt").modified_ns
        first, second = list(copy_names(b"f.txt", when))[:2]
        m.fs.create(ROOT_INO, first, 0o644, CRED)
        await m.sync(outside=True)
        files = await shown(m, bucket)
        assert files[os.fsdecode(first)] == b""
        assert files[os.fsdecode(second)] == b"theirs"
