"""`s3ws snapshot`, `turn` and `snapshots` on real mounts, by real commands."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support.buckets import Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

only_local = pytest.mark.parametrize("bucket", ["local"], indirect=True)
"""What the kind of bucket has no part in."""


@pytest.fixture
def host(bucket: Bucket, new_host: HostMaker) -> Host:
    made = new_host(bucket, settings=NEVER_BY_ITSELF)
    made.mount()
    return made


def cat(host: Host, ref: str, path: str) -> str:
    return host.s3ws("cat", "-m", host.mountpoint, f"{ref}:{path}").stdout


def test_snapshots_and_turns(host: Host) -> None:
    (host.mountpoint / "f").write_text("one")
    taken = host.json("snapshot", host.mountpoint, "--name", "first")
    assert (taken["ref"], taken["is_new"]) == ("first", True)
    assert not host.json("snapshot", host.mountpoint, "--name", "first")["is_new"]
    begun = host.json("turn", "begin", "t1", host.mountpoint)
    (host.mountpoint / "f").write_text("two")
    ended = host.json("turn", "end", "t1", host.mountpoint)
    assert ended["number"] > begun["number"]
    unnamed = host.json("snapshot", host.mountpoint)
    listed = host.json("snapshots", host.mountpoint)
    refs = ["first", "turn:t1:begin", unnamed["ref"], "turn:t1:end"]
    assert sorted(each["ref"] for each in listed["snapshots"]) == sorted(refs)
    assert listed["damaged"] == []
    assert [cat(host, ref, "f") for ref in ("first", "turn:t1:begin", "turn:t1")] == [
        "one", "one", "two",
    ]  # fmt: skip
    changed = host.json("diff", "-m", host.mountpoint, "--turn", "t1")
    assert [each["name"] for each in changed["changes"]] == ["f"], changed
    kept = host.json("snapshots", host.mountpoint, "--kind", "turn-end")["snapshots"]
    assert [each["ref"] for each in kept] == ["turn:t1:end"]
    text = host.s3ws("snapshots", host.mountpoint).stdout
    assert "turn:t1:begin" in text and "generation" in text
    # Without the mount, and by somebody with nothing but the settings.
    host.umount()
    assert host.json("snapshots")["snapshots"] == listed["snapshots"]


@only_local
def test_removing_and_what_is_refused(host: Host) -> None:
    (host.mountpoint / "f").write_text("one")
    host.s3ws("snapshot", host.mountpoint, "--name", "first")
    (host.mountpoint / "f").write_text("two")
    for words, code, said in (
        (["snapshot", host.mountpoint, "--name", "first"], ExitCode.USAGE, "already"),
        (["snapshot", host.mountpoint, "--name", "a b"], ExitCode.USAGE, "can't be the name"),
        (["snapshot", host.mountpoint, "--name", "15m"], ExitCode.USAGE, "can't be the name"),
        (["snapshot", host.mountpoint, "--delete", "frist"], ExitCode.NO_SUCH_POINT, "There is no"),
        (["snapshot", host.mountpoint, "--delete", "#1"], ExitCode.USAGE, "not the name"),
        (["turn", "end", "t", host.mountpoint], ExitCode.NO_SUCH_POINT, "No turn 't' has begun"),
        (["turn", "begin", "head", host.mountpoint], ExitCode.USAGE, "name of a turn"),
        (["snapshot", host.base], ExitCode.NOT_MOUNTED, "not mounted"),
        (["snapshot"], ExitCode.NOT_MOUNTED, "No mount point is named"),
    ):
        done = host.s3ws(*words, ok=code)
        assert said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    host.s3ws("snapshot", host.mountpoint, "--delete", "first")
    assert host.json("snapshots", host.mountpoint)["snapshots"] == []
    assert host.s3ws("snapshots", host.mountpoint).stdout.strip() == "no snapshots"


@only_local
def test_from_within_the_workspace(host: Host) -> None:
    """As an agent's harness runs it: the mount is that of the current directory."""
    deep = host.mountpoint / "a/b"
    deep.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "s3ws_fs", "turn", "begin", "t"],
        cwd=deep, env=host.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "snapshot turn:t:begin: #" in done.stdout


@only_local
def test_what_programs_wrote_into_mapped_pages_is_in_it(host: Host) -> None:
    path = host.mountpoint / "mapped"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5000:5006] = b"mapped"
        host.s3ws("snapshot", host.mountpoint, "--name", "with-it")
        assert cat(host, "with-it", "mapped")[5000:5006] == "mapped"


@only_local
def test_a_read_only_mount_lists_and_takes_none(host: Host, bucket: Bucket) -> None:
    host.s3ws("snapshot", host.mountpoint, "--name", "one")
    other = host.elsewhere(host.base.with_name("other"))
    other.mount("--read-only")
    try:
        assert [s["ref"] for s in other.json("snapshots", other.mountpoint)["snapshots"]] == ["one"]
        done = other.s3ws("snapshot", other.mountpoint, ok=ExitCode.USAGE)
        assert "read-only" in done.stderr
    finally:
        other.end()


@only_local
def test_a_killed_daemon_s_snapshots_stay(host: Host) -> None:
    (host.mountpoint / "f").write_text("one")
    host.s3ws("snapshot", host.mountpoint, "--name", "one")
    os.kill(int(host.now()["pid"]), signal.SIGKILL)
    (host.mountpoint / "f").write_text("two")
    host.s3ws("snapshot", host.mountpoint, "--name", "two")
    assert [cat(host, ref, "f") for ref in ("one", "two")] == ["one", "two"]
