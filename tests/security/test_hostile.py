"""A workspace that means harm: nothing outside of it is touched, and no terminal obeys it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support import trees
from tests.support.buckets import LocalBucket
from tests.support.host import NEVER_BY_ITSELF, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

NAMES = (
    b"\x1b]0;title\x07", b"\x1b[2J", b"line\nfeed", b"\r overwritten", b"\xff\xfe", b"-rf",
    b"--json",
    "\u202efdp.exe".encode(), "\x9b31m".encode(), b"$(touch pwned)", b"`id`", b"%2e%2e", b"%2F..",
    b"..%2f..%2fetc", b"con\\..\\x", b".git", b"...", b" ", b"~", b"*",
)  # fmt: skip


def printable(text: str) -> bool:
    """What a terminal shows and does not obey."""
    return all(char == "\n" or char.isprintable() for char in text)


def plant(top: Path) -> None:
    """Names, links out of the workspace, and a repository whose settings run programs."""
    base = os.fsencode(top)
    for name in NAMES:
        with open(os.path.join(base, b"f" + name if name == b".git" else name), "xb") as out:
            out.write(name)
    for number, target in enumerate(("/etc/passwd", "../../../../../../etc", "/", ".", "..")):
        (top / f"link{number}").symlink_to(target)
    git = top / "repository" / ".git"
    (git / "hooks").mkdir(parents=True)
    script = f"#!/bin/sh\ntouch {top.parent}/pwned\n"
    for hook in ("post-checkout", "pre-commit", "fsmonitor"):
        (git / "hooks" / hook).write_text(script)
        (git / "hooks" / hook).chmod(0o755)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "config").write_text(
        f"[core]\n\tfsmonitor = {git}/hooks/fsmonitor\n\tsshCommand = touch {top.parent}/pwned\n"
        f"\tpager = touch {top.parent}/pwned\n\thooksPath = {git}/hooks\n"
        f"[alias]\n\tstatus = !touch {top.parent}/pwned\n"
    )
    (top / "sitecustomize.py").write_text(f"open({str(top.parent / 'pwned')!r}, 'w')\n")


def test_a_hostile_workspace(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    outside = trees.manifest(host.base.parent / "store")
    plant(host.mountpoint)
    said = [
        host.s3ws(*words)
        for words in (
            ("ls", "-l", "-R", host.mountpoint),
            ("ls", "--json", "-R", host.mountpoint),
            ("status", host.mountpoint),
            ("sync", host.mountpoint),
            ("status", "--json", host.mountpoint),
            ("check", "--bucket", host.mountpoint),
        )
    ]
    before = trees.manifest(host.mountpoint)
    host.umount()
    for done in said:
        assert printable(done.stdout + done.stderr), done.args
    assert printable(host.log_tail())
    other = new_host(local_bucket, "other")
    other.mount()
    assert trees.differences(before, trees.manifest(other.mountpoint)) == []
    other.umount()
    # Nothing ran, and every key is below the prefix.
    assert list(host.base.parent.rglob("pwned")) == []
    assert all(key.startswith(host.prefix) for key in local_bucket.listing())
    assert set(outside) <= set(trees.manifest(local_bucket.root))


def test_what_is_not_saved_is_listed_in_safe_words(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    for name in NAMES:
        with open(os.path.join(os.fsencode(host.mountpoint), name), "xb") as out:
            out.write(b"unsaved")
    # Nothing can be sealed: a file stands where the segments' directory has to be.
    (local_bucket.root / host.prefix / "journal" / "seg").write_bytes(b"")
    done = host.s3ws("umount", host.mountpoint, ok=None)
    assert done.returncode != ExitCode.OK
    assert "Not saved" in done.stderr
    assert printable(done.stdout + done.stderr)
    assert printable(host.log_tail())


def test_strangers_in_the_bucket_lead_nowhere(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """Links, fifos and impossible names below files/ are neither followed nor removed."""
    host = new_host(local_bucket)
    host.mount()
    (host.mountpoint / "d").mkdir()
    (host.mountpoint / "d" / "mine").write_bytes(b"mine")
    host.sync()
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").write_bytes(b"untouched")
    files = local_bucket.root / host.prefix / "files"
    (files / "d" / "mine").unlink()
    (files / "d").rmdir()
    (files / "d").symlink_to(victim)
    (files / "loop").symlink_to("loop")
    os.mkfifo(files / "fifo")
    with open(os.path.join(os.fsencode(files), b"\xff\n\x1b[2J"), "wb") as out:
        out.write(b"stranger")
    (host.mountpoint / "d" / "mine").write_bytes(b"changed")
    (host.mountpoint / "fifo").write_bytes(b"in the way")
    (host.mountpoint / "other").write_bytes(b"other")
    done = host.s3ws("sync", host.mountpoint, ok=None)
    assert printable(done.stdout + done.stderr)
    assert (victim / "mine").read_bytes() == b"untouched"
    assert os.listdir(victim) == ["mine"]
    assert (files / "other").read_bytes() == b"other", "a stranger stops nobody else's file"
    status = host.s3ws("status", host.mountpoint)
    assert printable(status.stdout)
    host.kill()
