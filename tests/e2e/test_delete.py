"""`s3ws delete`, `list` and `du` by the command, on real mounts and both kinds of bucket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3ws_fs.core import failpoints, layout
from s3ws_fs.core.errors import ExitCode
from tests.support.armed import KILL, Plan
from tests.support.buckets import Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

only_local = pytest.mark.parametrize("bucket", ["local"], indirect=True)
"""What the kind of bucket has no part in."""

CONVERSATION = "test-123"


@pytest.fixture
def host(bucket: Bucket, new_host: HostMaker) -> Host:
    """A mounted workspace; events of the platform stand beside it."""
    host = new_host(bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    (host.mountpoint / "src").mkdir()
    (host.mountpoint / "src" / "a").write_bytes(os.urandom(100_000))
    host.sync()
    bucket.put(above(host) + "events/1", b"theirs")
    return host


def above(host: Host) -> str:
    return host.prefix.removesuffix("workspace/")


def test_all_of_it_goes_and_the_conversation_can_have_a_new_one(bucket: Bucket, host: Host) -> None:
    cache = host.workspace_cache()
    subprocess.run(["git", "init", "-q", host.mountpoint], check=True)
    host.s3ws("snapshot", "--name", "kept", host.mountpoint)
    host.s3ws("backup", host.mountpoint)
    host.sync()
    areas = {key.removeprefix(host.prefix).split("/")[0] for key in bucket.listing(host.prefix)}
    assert areas == {"journal", "files", "compressed", "git"}
    refused = host.s3ws("delete", CONVERSATION, "--yes", ok=ExitCode.ALREADY_MOUNTED)
    assert "s3ws umount" in refused.stderr
    host.umount()
    before = bucket.listing(above(host))
    shown = host.json("delete", CONVERSATION, "--dry-run")
    assert shown["dry_run"] and shown["found"]["objects"] == len(before) - 1
    host.s3ws("delete", CONVERSATION, ok=ExitCode.USAGE)
    assert bucket.listing(above(host)) == before and cache.is_dir()
    done = host.json("delete", CONVERSATION, "--yes")
    assert bucket.listing(above(host)) == [above(host) + "events/1"]
    assert done["left"] == [] and done["caches"] == [str(cache)] and not cache.exists()
    assert "nothing stands below" in host.s3ws("delete", CONVERSATION, "--yes").stdout
    host.mount()
    assert os.listdir(host.mountpoint) == []
    (host.mountpoint / "new").write_text("new")
    host.umount()
    host.s3ws("check", "--bucket")


@only_local
def test_another_hosts_mount_is_refused_unless_told_and_can_save_nothing_more(
    bucket: Bucket, host: Host, tmp_path: Path
) -> None:
    other = host.elsewhere(tmp_path / "other")
    refused = other.s3ws("delete", CONVERSATION, "--yes", ok=ExitCode.HELD)
    assert "--take-over" in refused.stderr
    other.s3ws("delete", CONVERSATION, "--yes", "--take-over")
    assert bucket.listing(host.prefix) == []
    (host.mountpoint / "late").write_text("late")
    failed = host.s3ws("sync", host.mountpoint, ok=None)
    assert failed.returncode in (ExitCode.FENCED, ExitCode.STORE), failed
    host.s3ws("umount", host.mountpoint, ok=None)
    assert bucket.listing(host.prefix) == []
    # What it had not saved is still to be had.
    host.s3ws("rescue", tmp_path / "out", "--cache", host.workspace_cache())
    assert (tmp_path / "out" / "late").read_text() == "late"


@only_local
def test_a_deletion_that_was_killed_mounts_nowhere_and_is_finished(
    bucket: Bucket, host: Host, tmp_path: Path
) -> None:
    host.umount()
    plan = Plan(failpoints.DELETE_BATCH, KILL, str(tmp_path / "plan"))
    (tmp_path / "plan").mkdir()
    killed = subprocess.run(
        [sys.executable, "-m", "s3ws_fs", "delete", CONVERSATION, "--yes"],
        env={**host.env, **plan.env()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed
    assert host.prefix + layout.DELETED_KEY in bucket.listing(host.prefix)
    other = host.elsewhere(tmp_path / "other")
    for flags in ((), ("--read-only",)):
        refused = other.s3ws("mount", other.mountpoint, *flags, ok=ExitCode.STORE)
        assert "delete" in refused.stderr, refused.stderr
    [row] = other.json("list", "--user", other.settings["WORKSPACE_USER_ID"])["workspaces"]
    assert row["state"] == "deleting"
    other.s3ws("delete", CONVERSATION, "--yes", "--take-over")
    assert bucket.listing(host.prefix) == []


def test_the_bucket_is_listed_and_counted(bucket: Bucket, host: Host, new_host: HostMaker) -> None:
    second = new_host(bucket, "second", conversation="second")
    second.mount()
    (second.mountpoint / "f").write_text("2")
    second.umount()
    user = host.settings["WORKSPACE_USER_ID"]
    (host.mountpoint / "dirt").write_text("dirt")
    keys = [bucket.listing(each.prefix) for each in (host, second)]
    document = host.json("list", "--user", user)
    rows = {row["conversation_id"]: row for row in document["workspaces"]}
    assert document["is_complete"] and set(rows) == {CONVERSATION, "second"}
    for name, listed in zip((CONVERSATION, "second"), keys, strict=True):
        assert rows[name]["objects"] == len(listed)
        assert rows[name]["state"] == "workspace"
    assert rows[CONVERSATION]["mount"]["mountpoint"] == str(host.mountpoint)
    assert rows[CONVERSATION]["mount"]["oldest_dirty_s"] >= 0 and rows["second"]["mount"] is None
    [mine] = [each for each in host.json("list")["users"] if each["user_id"] == user]
    assert (mine["workspaces"], mine["mounted"]) == (2, 1)
    assert mine["objects"] == len(keys[0]) + len(keys[1])
    used = host.json("du", "--user", user)["workspaces"]
    sizes = {row["conversation_id"]: row for row in used}
    assert sizes["second"]["live"] == {"bytes": 4096, "files": 2}
    total = sum(len(bucket.get(key).body) for key in keys[1])
    assert sizes["second"]["bytes"] == total
    # Events are no business of ours.
    assert all(row["conversation_id"] != "events" for row in used)
