"""The store goes away during work: local work goes on, nothing is dropped, all of it is told."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from s3ws_fs.fuse import table
from tests.support import trees
from tests.support.buckets import S3Bucket, mirror_differences
from tests.support.host import NEVER_BY_ITSELF, QUICK, HostMaker
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse, pytest.mark.s3]

READ_TIMEOUT_S = 3
DEGRADED_S_MAX = 60.0
RECOVERED_S_MAX = 90.0


@pytest.fixture
def mortal_bucket(s3_bucket: S3Bucket) -> Iterator[S3Bucket]:
    """The shared server's bucket; the server runs again afterwards."""
    yield s3_bucket
    if s3_bucket.server.pid is None:
        s3_bucket.server.start()


def test_unmount_without_a_store_says_what_is_not_saved(
    mortal_bucket: S3Bucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(mortal_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    (host.mountpoint / "saved").write_bytes(b"before the outage")
    host.sync()
    mortal_bucket.server.stop()
    trees.build_source_tree(host.mountpoint / "src", files=20)
    (host.mountpoint / "unsaved é\n").write_bytes(b"during the outage")
    assert (host.mountpoint / "saved").read_bytes() == b"before the outage"
    before = trees.manifest(host.mountpoint)
    done = host.s3ws("umount", host.mountpoint, "--json", ok=ExitCode.NOT_SAVED)
    (answer,) = json.loads(done.stdout)
    assert "unsaved é\n" in answer["error"]["unsaved"]
    assert len([path for path in answer["error"]["unsaved"] if path.endswith(".py")]) == 20
    assert "saved" not in answer["error"]["unsaved"]
    assert not table.is_mounted(str(host.mountpoint))

    mortal_bucket.server.start()
    host.mount()
    assert trees.differences(before, trees.manifest(host.mountpoint)) == []
    host.umount()
    other = new_host(mortal_bucket, "other")
    other.mount()
    assert trees.differences(before, trees.manifest(other.mountpoint)) == []
    other.umount()


def test_it_recovers_by_itself(mortal_bucket: S3Bucket, new_host: HostMaker) -> None:
    host = new_host(mortal_bucket)
    host.mount()
    (host.mountpoint / "first").write_bytes(b"1")
    host.sync()
    mortal_bucket.server.stop()
    (host.mountpoint / "second").write_bytes(b"2")
    wait_until(lambda: host.now()["health"]["state"] == "degraded", timeout_s=DEGRADED_S_MAX)
    health = host.now()["health"]
    assert health["error"]
    assert health["since_s"] >= 0
    mortal_bucket.server.start()
    wait_until(
        lambda: host.now()["health"]["state"] == "ok" and host.now()["dirty"]["records"] == 0,
        timeout_s=RECOVERED_S_MAX,
    )
    host.sync()
    found = mirror_differences(mortal_bucket, host.prefix, trees.manifest(host.mountpoint), set())
    assert found == []
    host.umount()


def test_cold_read_without_a_store_is_eio_and_heals(
    mortal_bucket: S3Bucket, new_host: HostMaker
) -> None:
    first = new_host(mortal_bucket, "first")
    first.mount()
    (first.mountpoint / "large").write_bytes(os.urandom(40 << 20))
    wanted = trees.sha256_of(first.mountpoint / "large")
    first.umount()
    second = new_host(
        mortal_bucket, "second", settings={**QUICK, "WORKSPACE_READ_TIMEOUT": str(READ_TIMEOUT_S)}
    )
    second.mount()
    second.now()
    mortal_bucket.server.stop()
    if second.now()["hydration"]["cold_bytes"]:
        # Some of it may have come already; what has not is an error, never wrong bytes.
        with pytest.raises(OSError) as failed:
            trees.sha256_of(second.mountpoint / "large")
        assert failed.value.errno == errno.EIO
    (second.mountpoint / "still writable").write_bytes(b"x")
    mortal_bucket.server.start()

    def readable() -> bool:
        try:
            return trees.sha256_of(second.mountpoint / "large") == wanted
        except OSError:
            return False

    wait_until(readable, timeout_s=RECOVERED_S_MAX)
    second.umount()


def test_a_store_that_hangs_does_not_hang_the_work(
    mortal_bucket: S3Bucket, new_host: HostMaker
) -> None:
    host = new_host(mortal_bucket)
    host.mount()
    (host.mountpoint / "first").write_bytes(b"1")
    pid = mortal_bucket.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        trees.build_source_tree(host.mountpoint / "src", files=20)
        assert host.now()["state"] == "ready"
        programs_left = trees.manifest(host.mountpoint)
    finally:
        os.kill(pid, signal.SIGCONT)
    host.umount()
    other = new_host(mortal_bucket, "other")
    other.mount()
    assert trees.differences(programs_left, trees.manifest(other.mountpoint)) == []
    other.umount()
