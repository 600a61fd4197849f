"""Backups of real mounts: GNU tar restores them, deaths leave none half-done, an outage one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from s3ws_fs.core import backups, failpoints
from s3ws_fs.core.errors import ExitCode, UserError
from tests.support import trees
from tests.support.armed import Trigger
from tests.support.buckets import Bucket, LocalBucket
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host, HostMaker
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

# A lease of 3 s ends the worker on a busy machine when its proof is late.
BY_HAND = {**QUICK, "WORKSPACE_BACKUP_INTERVAL": "0", "WORKSPACE_LEASE_S": "60"}


def untarred(bucket: Bucket, host: Host, name: str, into: Path) -> trees.Manifest:
    """What GNU tar alone makes of the archive in the bucket."""
    archive = into.with_suffix(".tar.gz")
    archive.write_bytes(bucket.get(host.prefix + backups.archive_key(name)).body)
    into.mkdir()
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "--acls", "-xzf", archive, "-C", into], check=True
    )
    return trees.manifest(into)


def is_ready(host: Host) -> bool:
    try:
        return bool(host.now()["state"] == "ready")
    except UserError:
        return False


def without_sockets(manifest: trees.Manifest) -> trees.Manifest:
    return {path: node for path, node in manifest.items() if node.kind != "socket"}


def test_the_tree_comes_back(bucket: Bucket, new_host: HostMaker, tmp_path: Path) -> None:
    # Names of all kinds are in the tree, also some that would be left out.
    host = new_host(bucket, settings=BY_HAND | {"WORKSPACE_LOCAL": "!*;node_modules/"})
    host.mount()
    trees.build_rich_tree(host.mountpoint / "rich", big_bytes=20 << 20)
    (host.mountpoint / "node_modules").mkdir()
    (host.mountpoint / "node_modules" / "left.js").write_text("left out\n")
    before = without_sockets(trees.manifest(host.mountpoint))
    for path in (b"node_modules", b"node_modules/left.js"):
        del before[path]
    ignore = trees.OTHER_FILESYSTEM
    done = host.json("backup", host.mountpoint)
    assert done["left_out"] == 1
    after = untarred(bucket, host, done["name"], tmp_path / "tar")
    assert trees.differences(before, after, ignore=ignore) == []

    # What happens afterwards is not in it; and without mount and cache it is restored just so.
    (host.mountpoint / "rich" / "later").write_text("not in it\n")
    host.umount()
    host.lose_cache()
    (listed,) = host.json("backups")["backups"]
    assert (listed["name"], listed["good"], listed["bytes"]) == (done["name"], True, done["bytes"])
    out = tmp_path / "out"
    report = host.json("restore-backup", "latest", "--to", out, "--trust")
    assert report["not_restored"] == []
    assert trees.differences(before, trees.manifest(out), ignore=ignore) == []

    # A mount that has all its bytes in the bucket still makes the same backup.
    host.mount()
    (host.mountpoint / "rich" / "later").unlink()
    again = host.json("backup", host.mountpoint)
    assert again["missing"] == 0
    after = untarred(bucket, host, again["name"], tmp_path / "cold")
    assert trees.differences(before, after, ignore=(*ignore, "mtime_ns")) == []
    host.umount()
    assert len(host.json("backups")["backups"]) == 2


DEATHS = (
    failpoints.SPOOL_AFTER,
    failpoints.KEEP_PUT_AFTER,
    failpoints.BACKUP_NOTED,
    failpoints.KEEP_DROP_BEFORE,
)
"""In the child, in the worker with the archive just put, in the daemon, in the worker again. All
points, in one process: tests/crash/test_backup_points.py."""


def test_deaths_leave_no_half_backup(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """What is listed as good restores, and the next one works."""
    trigger = Trigger(str(tmp_path / "armed"))
    (tmp_path / "armed").mkdir()
    settings = {**BY_HAND, "WORKSPACE_BACKUP_KEEP_LAST": "1"}
    settings |= {f"WORKSPACE_BACKUP_KEEP_{name}": "0" for name in ("HOURLY", "DAILY", "WEEKLY")}
    host = new_host(local_bucket, settings=settings | trigger.env())
    host.mount()
    (host.mountpoint / "file").write_text("0")
    host.s3ws("backup", host.mountpoint)
    for number, point in enumerate(DEATHS, 1):
        (host.mountpoint / "file").write_text(str(number))
        # A worker that dies once is started again, and goes on.
        is_always = point == failpoints.KEEP_PUT_AFTER
        trigger.set(point, always=is_always)
        died = host.s3ws("backup", host.mountpoint, ok=None)
        assert trigger.is_set(point) == is_always, (point, died.stdout, died.stderr)
        trigger.unset(point)
        out = tmp_path / point
        host.s3ws("restore-backup", "latest", "--to", out)
        is_done = point in (failpoints.BACKUP_NOTED, failpoints.KEEP_DROP_BEFORE)
        assert (out / "file").read_text() == str(number if is_done else number - 1)
        wait_until(lambda: is_ready(host), timeout_s=60, what="a daemon that serves")
        assert not list(host.workspace_cache().glob("backup/*"))
        host.s3ws("backup", host.mountpoint)
    (left,) = [found for found in host.json("backups")["backups"] if found["good"]]
    host.s3ws("restore-backup", left["name"], "--to", tmp_path / "end")
    assert (tmp_path / "end" / "file").read_text() == str(len(DEATHS))
    host.umount()


def test_a_store_that_is_away_at_the_end(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """The unmount says where the backup is; it restores, and goes up when the store is back."""
    settings = {**QUICK, **NEVER_BY_ITSELF, "WORKSPACE_BACKUP_INTERVAL": "3600"}
    host = new_host(local_bucket, settings=settings)
    host.mount()
    (host.mountpoint / "file").write_text("only here")
    # Not the directory itself: a worker that runs has it open.
    top = local_bucket.root / "conversations"
    away = top.rename(top.with_name("away"))
    top.write_text("no directory")
    said = host.s3ws("umount", host.mountpoint, ok=ExitCode.NOT_SAVED)
    top.unlink()
    away.rename(top)
    (archive,) = host.workspace_cache().glob("backup/emergency-*/*.tar.gz")
    assert str(archive.parent) in said.stdout + said.stderr
    host.s3ws("restore-backup", archive, "--to", tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "only here"
    assert host.json("backups")["backups"] == []
    host.mount()

    def is_sent() -> bool:
        return not list(host.workspace_cache().glob("backup/emergency-*"))

    wait_until(is_sent, timeout_s=90, what="the upload of the emergency backup")
    (sent,) = host.json("backups")["backups"]
    assert sent["good"] and archive.name.startswith(sent["name"])
    host.umount()
