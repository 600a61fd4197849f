"""Every way a mount can end is the same final flush; what is not saved is said."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from s3ws_fs.fuse import table
from tests.support import tools, trees
from tests.support.buckets import Bucket, LocalBucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker, wait_for_exit
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

QUIET = {**NEVER_BY_ITSELF, "WORKSPACE_UNMOUNT_GRACE": "1"}


def by_umount8(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("umount(8) of a FUSE mount needs root here")
    _by_program(host, "umount", str(host.mountpoint))


def by_fusermount(host: Host) -> None:
    _by_program(host, "fusermount3", "-u", str(host.mountpoint))


def _by_program(host: Host, *command: str) -> None:
    fd = os.pidfd_open(host.pid())
    try:
        subprocess.run(command, check=True, capture_output=True)
        wait_for_exit(fd)
    finally:
        os.close(fd)


def by_sigterm(host: Host) -> None:
    host.signal_and_wait(signal.SIGTERM)


def by_sigint(host: Host) -> None:
    host.signal_and_wait(signal.SIGINT)


def by_s3ws(host: Host) -> None:
    host.umount()


WAYS = [by_umount8, by_fusermount, by_sigterm, by_sigint, by_s3ws]


@pytest.mark.parametrize("end", WAYS, ids=lambda way: way.__name__)
def test_the_end_is_a_complete_final_flush(
    end: Callable[[Host], None], local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=QUIET)
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=40)
    before = trees.manifest(host.mountpoint)
    assert local_bucket.listing(host.prefix + "files/") == [], "nothing was flushed so far"
    end(host)
    assert not table.is_mounted(str(host.mountpoint))
    assert host.info() is None, "the entry goes when everything is saved"
    assert len(local_bucket.listing(host.prefix + "files/")) == 40
    other = new_host(local_bucket, "other")
    other.mount()
    assert trees.differences(before, trees.manifest(other.mountpoint)) == []


def test_umount_joins_a_final_flush_under_way(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=QUIET)
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=200)
    subprocess.run(["fusermount3", "-u", host.mountpoint], check=True)
    # Either it waits for the flush, or it comes too late and there is nothing to wait for.
    code = host.s3ws("umount", host.mountpoint, ok=None).returncode
    assert code in (ExitCode.OK, ExitCode.NOT_MOUNTED)
    assert host.info() is None
    assert len(local_bucket.listing(host.prefix + "files/")) == 200


def test_a_signal_while_programs_use_the_mount_saves_what_they_wrote(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=QUIET)
    host.mount()
    fd = os.open(host.mountpoint / "still open", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"acknowledged")
    host.signal_and_wait(signal.SIGTERM)
    with contextlib.suppress(OSError):  # ENOTCONN: its filesystem is gone
        os.close(fd)
    assert local_bucket.get(host.prefix + "files/still open").body == b"acknowledged"
    assert not table.is_mounted(str(host.mountpoint))


WRITER = """
import sys
path = sys.argv[1] + "/from a container"
out = open(path, "wb", buffering=0)
out.write(b"acknowledged")
print("ready", flush=True)
sys.stdin.read()
try:
    out.write(b" and more")
    print("still there")
except OSError as exc:
    print("gone", exc.errno)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")
@pytest.mark.parametrize("end", [by_sigterm, by_s3ws], ids=lambda way: way.__name__)
def test_a_mount_that_a_container_holds_ends_within_the_grace_and_is_saved(
    end: Callable[[Host], None], local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    """umount(2) here does not end it there: it is a mount of another namespace."""
    host = new_host(local_bucket, settings={**QUIET, "WORKSPACE_UNMOUNT_GRACE": "2"})
    host.mount()
    private = ["unshare", "--mount", "--propagation", "private"]
    with tools.background(*private, *tools.python(WRITER, host.mountpoint)) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n", writer.communicate()
        end(host)
        assert not table.is_mounted(str(host.mountpoint))
        assert host.info() is None
        assert local_bucket.get(host.prefix + "files/from a container").body == b"acknowledged"
        assert tools.finish(writer).startswith("gone")


def test_a_busy_mount_stays_and_umount_says_who_uses_it(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=QUIET)
    host.mount()
    with (host.mountpoint / "open").open("wb", buffering=0) as out:
        done = host.s3ws("umount", host.mountpoint, ok=ExitCode.BUSY)
        assert str(os.getpid()) in done.stderr
        out.write(b"it still works")
    host.umount()
    assert local_bucket.get(host.prefix + "files/open").body == b"it still works"


def test_what_was_changed_by_mmap_is_saved(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket, settings=QUIET)
    host.mount()
    path = host.mountpoint / "mapped"
    path.write_bytes(bytes(100_000))
    with path.open("r+b") as out, mmap.mmap(out.fileno(), 100_000) as mapped:
        mapped[50_000:50_006] = b"mapped"
        # Not msync'ed: sync must ask the kernel for it.
        host.sync()
        seen = local_bucket.get(host.prefix + "files/mapped").body
        assert seen[50_000:50_006] == b"mapped"
        mapped[0:3] = b"end"
    host.umount()
    assert local_bucket.get(host.prefix + "files/mapped").body[:3] == b"end"


def test_an_unlinked_open_file_leaves_nothing_behind(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=QUIET)
    host.mount()
    with (host.mountpoint / "temporary").open("w+b", buffering=0) as out:
        out.write(b"nobody will see this")
        (host.mountpoint / "temporary").unlink()
        host.sync()
        assert local_bucket.listing(host.prefix + "files/") == []
        out.seek(0)
        assert out.read() == b"nobody will see this"
    host.umount()


def test_foreground_ends_with_exit_code_0(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(local_bucket, settings=QUIET)
    command = [sys.executable, "-m", "s3ws_fs", "mount", "--foreground", str(host.mountpoint)]
    with (tmp_path / "foreground.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=host.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(
            lambda: process.poll() is not None or table.is_mounted(str(host.mountpoint)),
            timeout_s=30,
        )
        assert process.poll() is None, (tmp_path / "foreground.log").read_text()
        (host.mountpoint / "file").write_bytes(b"bytes")
        assert host.status()["holder"]["pid"] == process.pid, "the command became the holder"
        process.terminate()
        assert process.wait(30) == ExitCode.OK
        assert local_bucket.get(host.prefix + "files/file").body == b"bytes"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_umount_of_a_dead_daemon_says_what_is_unsaved(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=QUIET)
    host.mount()
    (host.mountpoint / "unsaved").write_bytes(b"only in the cache")
    host.kill()
    document = host.json("status", host.mountpoint, ok=ExitCode.NOT_MOUNTED)
    assert document["state"] == "dead"
    done = host.s3ws("umount", host.mountpoint, "--json", ok=ExitCode.NOT_SAVED)
    (answer,) = json.loads(done.stdout)
    assert answer["saved"] is False
    assert answer["error"]["unsaved"] == ["unsaved"]
    assert not table.is_mounted(str(host.mountpoint))
    host.mount()
    assert (host.mountpoint / "unsaved").read_bytes() == b"only in the cache"
    host.umount()
    assert local_bucket.get(host.prefix + "files/unsaved").body == b"only in the cache"


def test_remount_after_sigkill_goes_on_flushing_by_itself(
    bucket: Bucket, new_host: HostMaker
) -> None:
    host = new_host(bucket, settings=QUIET)
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=30)
    before = trees.manifest(host.mountpoint)
    host.kill()
    assert bucket.listing(host.prefix + "files/") == []
    host.settings |= {"WORKSPACE_SYNC_DEBOUNCE_MIN": "0.1", "WORKSPACE_SYNC_DEBOUNCE_MAX": "1"}
    host.mount()
    assert trees.differences(before, trees.manifest(host.mountpoint)) == []
    wait_until(
        lambda: len(bucket.listing(host.prefix + "files/")) == 30,
        timeout_s=30,
        what="the flush of what the killed daemon left",
    )
    host.umount()


def test_a_lost_mount_point_directory_is_no_obstacle(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    shutil.rmtree(host.mountpoint)
    host.mount()
    (host.mountpoint / "file").write_bytes(b"x")
    host.umount()
    assert local_bucket.get(host.prefix + "files/file").body == b"x"
