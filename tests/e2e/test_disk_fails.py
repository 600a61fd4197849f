"""The disk below the cache fails once, in a flush, and then seems well again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.armed import Trigger
from tests.support.buckets import LocalBucket
from tests.support.host import NEVER_BY_ITSELF, QUICK, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


def _fsync_of(path: Path) -> int:
    """0, or the errno."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as exc:
        return exc.errno or -1
    finally:
        os.close(fd)
    return 0


def test_no_fsync_claims_success_after_a_failed_flush(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    never = {"WORKSPACE_SYNC_POINT_INTERVAL": "3600"}
    host = new_host(local_bucket, settings={**QUICK, **NEVER_BY_ITSELF, **never})
    marks = host.base / "marks"
    marks.mkdir()
    host.settings |= Trigger(str(marks), without="flush").env()
    host.mount()
    top = host.mountpoint
    (top / "before").write_bytes(b"durable")
    assert _fsync_of(top / "before") == 0
    (top / "f").write_bytes(b"in the kernel's memory")
    (marks / "flush").touch()
    assert _fsync_of(top / "f") == errno.EIO
    assert not (marks / "flush").exists(), "the disk is well again"
    assert _fsync_of(top / "f") == errno.EIO
    status = host.now()
    assert status["health"]["state"] == "degraded"
    assert "mount again" in status["health"]["error"]
    assert "a flush to the cache's disk failed" in host.s3ws("status", top).stdout
    host.kill_daemon()
    assert _fsync_of(top / "f") == errno.EIO, "the next daemon knows of it"
    # What is sealed in the bucket is safe all the same.
    host.sync()
    assert (local_bucket.root / host.prefix / "files" / "f").read_bytes() == (
        top / "f"
    ).read_bytes()
    (top / "last").write_bytes(b"saved by the end")
    host.umount()
    host.mount()
    assert host.now()["cache"]["opened"] == "renewed"
    assert len(host.now()["cache"]["quarantines"]) == 1
    assert {path.name: path.read_bytes() for path in top.iterdir()} == {
        "before": b"durable",
        "f": b"in the kernel's memory",
        "last": b"saved by the end",
    }
    (top / "f").write_bytes(b"durable again")
    assert _fsync_of(top / "f") == 0
    host.umount()
