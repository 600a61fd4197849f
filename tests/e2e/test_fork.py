"""`s3ws fork` by the command, of real mounts: equal, independent, and whole or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import ExitCode
from tests.support import trees
from tests.support.armed import KILL, Plan
from tests.support.buckets import Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

only_local = pytest.mark.parametrize("bucket", ["local"], indirect=True)
"""What the kind of bucket has no part in."""

SRC, DST = "test-123", "copy"


@pytest.fixture
def source(bucket: Bucket, new_host: HostMaker) -> Host:
    """A mounted workspace that seals when it is asked to."""
    host = new_host(bucket, "source", settings=NEVER_BY_ITSELF)
    host.mount()
    return host


def target_of(source: Host, tmp_path: Path) -> Host:
    """The new conversation, on a host of its own."""
    host = source.elsewhere(tmp_path / "target")
    host.settings["WORKSPACE_CONVERSATION_ID"] = DST
    host.prefix = source.prefix.replace(SRC, DST)
    return host


def destroy(bucket: Bucket, prefix: str) -> None:
    for key in bucket.listing(prefix):
        bucket.remove(key)
    assert bucket.listing(prefix) == []


def test_a_mounted_workspace_is_forked_and_the_fork_outlives_it(
    bucket: Bucket, source: Host, tmp_path: Path
) -> None:
    trees.build_rich_tree(source.mountpoint / "tree")
    (source.mountpoint / "sealed").write_text("one")
    source.sync()
    # Not sealed when the fork is asked for.
    (source.mountpoint / "sealed").write_text("two")
    (source.mountpoint / "late").write_text("late")
    wanted = trees.manifest(source.mountpoint)
    before = set(bucket.listing())
    done = source.json("fork", SRC, DST)
    assert done["inodes"] > 30 and done["requests"]["copy"] >= done["objects"] >= 1
    assert done["origin"]["prefix"] == source.prefix and done["prefix"].endswith(
        f"/{DST}/workspace/"
    )
    assert trees.manifest(source.mountpoint) == wanted
    # Keys stay inside of the two prefixes.
    target = target_of(source, tmp_path)
    new = set(bucket.listing()) - before
    assert all(key.startswith((source.prefix, target.prefix)) for key in new)
    assert not [key for key in new if key.startswith(target.prefix + "files/")]
    (source.mountpoint / "sealed").write_text("three: not for the fork")
    source.umount()
    destroy(bucket, source.prefix)
    try:
        target.mount()
        assert trees.manifest(target.mountpoint) == wanted
        (target.mountpoint / "own").write_text("own")
        target.umount()
        target.s3ws("check", "--bucket")
        again = target.elsewhere(tmp_path / "again")
        again.settings["WORKSPACE_CONVERSATION_ID"] = DST
        try:
            again.mount("--read-only")
            assert (again.mountpoint / "own").read_text() == "own"
            assert (again.mountpoint / "sealed").read_text() == "two"
        finally:
            again.end()
    finally:
        target.end()


@only_local
def test_a_point_in_the_past_is_forked_without_a_mount(
    bucket: Bucket, source: Host, tmp_path: Path
) -> None:
    (source.mountpoint / "f").write_text("first")
    source.sync()
    (source.mountpoint / "f").write_text("second")
    source.umount()
    said = source.s3ws("fork", SRC, DST, "--at", "#1").stdout
    assert "as of #1" in said and "copied" in said and "requests" in said
    assert source.s3ws("cat", "head:f", "--conversation-id", DST).stdout == "first"
    for words, code in (
        ((SRC, DST), ExitCode.EXISTS),
        ((SRC, SRC), ExitCode.USAGE),
        ((SRC, "../x"), ExitCode.BAD_SETTINGS),
        ((SRC, "a/b"), ExitCode.BAD_SETTINGS),
        (("none", "new"), ExitCode.NO_SUCH_POINT),
        ((SRC, "new", "--at", "#9"), ExitCode.NO_SUCH_POINT),
    ):
        source.s3ws("fork", *words, ok=code)
    assert {key.split("/")[2] for key in bucket.listing()} == {SRC, DST}


@pytest.mark.parametrize(
    ("bucket", "point"),
    [
        ("local", failpoints.FORK_COPIED),
        pytest.param("seaweed", failpoints.FORK_SEALED, marks=pytest.mark.s3),
    ],
    indirect=["bucket"],
)
def test_a_killed_fork_is_no_workspace_and_can_be_made_again(
    bucket: Bucket, source: Host, tmp_path: Path, point: str
) -> None:
    for number in range(3):
        (source.mountpoint / f"f{number}").write_bytes(os.urandom(20_000))
        source.sync()
    wanted = trees.manifest(source.mountpoint)
    standing = {key: bucket.get(key).body for key in bucket.listing(source.prefix)}
    marks = tmp_path / "marks"
    marks.mkdir()
    plan = Plan(point, KILL, str(marks))
    # Not the shortest there is: a proof of it, a third, must outlast what a busy machine takes.
    source.settings["WORKSPACE_LEASE_S"] = "6"
    command = [sys.executable, "-m", "s3ws_fs", "fork", SRC, DST, "--at", "#3"]
    done = subprocess.run(command, env=source.env | plan.env(), cwd="/", check=False)
    assert done.returncode == -signal.SIGKILL and plan.struck
    assert {key: bucket.get(key).body for key in bucket.listing(source.prefix)} == standing
    target = target_of(source, tmp_path)
    try:
        refused = target.s3ws("mount", target.mountpoint, ok=ExitCode.STORE).stderr
        assert "was not finished" in refused and "s3ws fork" in refused
        target.s3ws("mount", target.mountpoint, "--read-only", ok=ExitCode.STORE)
        target.s3ws("diff", "#1", ok=ExitCode.NO_SUCH_POINT)
        held = source.s3ws("fork", SRC, DST, ok=None)
        assert held.returncode in (ExitCode.HELD, ExitCode.OK)
        if held.returncode == ExitCode.HELD:
            again = ("fork", SRC, DST, "--at", "#3")
            wait_until(lambda: source.s3ws(*again, ok=None).returncode == 0, timeout_s=60)
        target.mount()
        assert trees.manifest(target.mountpoint) == wanted
        target.umount()
        target.s3ws("check", "--bucket")
    finally:
        target.end()
