"""Sync, unmount, lose the cache, mount again: nothing is different; and the mirror is the tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import programs, trees
from tests.support.buckets import Bucket, LocalBucket, mirror_differences
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

BIG_BYTES = 20 << 20


def check_mirror(bucket: Bucket, host: Host) -> None:
    found = mirror_differences(
        bucket, host.prefix, trees.manifest(host.mountpoint), host.unmirrored()
    )
    assert not found, "\n".join(found[:40])


def test_rich_tree(bucket: Bucket, new_host: HostMaker, tmp_path: Path) -> None:
    left_out = trees.build_rich_tree(tmp_path / "rich", big_bytes=BIG_BYTES)
    print("left out:", left_out or "nothing")
    host = new_host(bucket)
    host.mount()
    copy = programs.copy_tree(tmp_path / "rich", host.mountpoint)
    host.sync()
    check_mirror(bucket, host)
    before = trees.manifest(host.mountpoint)
    host.umount()
    host.lose_cache()
    host.mount()
    after = trees.manifest(host.mountpoint)
    assert trees.differences(before, after) == []
    assert programs.diff(tmp_path / "rich", copy) == ""
    host.umount()


def test_changes_to_a_restored_workspace(bucket: Bucket, new_host: HostMaker) -> None:
    """Renames, deletions, partial overwrites, truncation, new links: on cold files too."""
    first = new_host(bucket, "first")
    first.mount()
    top = first.mountpoint
    trees.build_source_tree(top / "src", files=60)
    (top / "large").write_bytes(os.urandom(3 << 20))
    (top / "shrinks").write_bytes(os.urandom(200_000))
    (top / "old name").write_bytes(b"stays")
    (top / "was a file").write_bytes(b"becomes a directory")
    (top / "was a directory").mkdir()
    (top / "was a directory" / "x").write_bytes(b"x")
    first.umount()

    second = new_host(bucket, "second")
    second.mount()
    top = second.mountpoint
    (top / "src").rename(top / "renamed tree")
    (top / "old name").replace(top / "new name")
    with (top / "large").open("r+b") as out:
        out.seek(1_000_001)
        out.write(b"in the middle")
        out.seek(0, os.SEEK_END)
        out.write(b"at the end")
    os.truncate(top / "shrinks", 33_333)
    os.link(top / "large", top / "renamed tree" / "large too")
    (top / "was a file").unlink()
    (top / "was a file").mkdir()
    (top / "was a file" / "y").write_bytes(b"y")
    (top / "was a directory" / "x").unlink()
    (top / "was a directory").rmdir()
    (top / "was a directory").write_bytes(b"a file now")
    second.sync()
    check_mirror(bucket, second)
    before = trees.manifest(top)
    second.umount()

    third = new_host(bucket, "third")
    third.mount()
    assert trees.differences(before, trees.manifest(third.mountpoint)) == []
    check_mirror(bucket, third)
    third.umount()


def test_one_seal_for_many_small_files(bucket: Bucket, new_host: HostMaker) -> None:
    host = new_host(bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    programs.many_small_files(host.mountpoint / "many", count=300)
    before = bucket.listing(host.prefix + "journal/")
    host.sync()
    added = [key for key in bucket.listing(host.prefix + "journal/") if key not in before]
    assert len(added) <= 3, added
    assert len(bucket.listing(host.prefix + "files/")) == 300
    host.umount()


def test_a_restored_workspace_is_not_looked_at_object_by_object(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    """Also when a name has no key; and status of the new host names it too."""
    first = new_host(local_bucket, "first")
    first.mount()
    trees.build_source_tree(first.mountpoint / "src", files=80)
    (first.mountpoint / ("%41" * 85)).write_bytes(b"too long when escaped")
    first.umount()
    second = new_host(local_bucket, "second", settings=NEVER_BY_ITSELF)
    second.mount()
    second.sync()
    assert second.unmirrored() == {"%41" * 85}
    requests = second.now()["requests"]
    assert requests["head"] < 20, requests
    second.umount()


def test_deleting_everything_empties_the_mirror(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=30)
    host.sync()
    assert len(local_bucket.listing(host.prefix + "files/")) == 30
    programs.run("rm", "-r", host.mountpoint / "src")
    host.sync()
    assert local_bucket.listing(host.prefix + "files/") == []
    host.umount()
    host.lose_cache()
    host.mount()
    assert os.listdir(host.mountpoint) == []
    host.umount()
