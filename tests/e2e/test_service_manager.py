"""A mount as a service: what a real one says to NOTIFY_SOCKET, also while the store is slow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from s3ws_fs.daemon.supervision import EXTEND_EVERY_S, EXTEND_S, PAUSE_S
from tests.support.buckets import LocalBucket, S3Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.notified import Manager, listening
from tests.support.proxy import EVERY, faulty_proxy, held

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

END_S_MAX = 60.0


@contextmanager
def service(host: Host, manager: Manager, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`s3ws mount --foreground` as a service manager starts it; ended for sure."""
    command = [sys.executable, "-m", "s3ws_fs", "mount", "--foreground", str(host.mountpoint)]
    env = {**host.env, "NOTIFY_SOCKET": manager.address}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        host.end()


def test_the_words_of_a_whole_life(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(local_bucket, settings=NEVER_BY_ITSELF)
    with (
        listening(str(tmp_path / "notify")) as manager,
        service(host, manager, tmp_path / "log") as process,
    ):
        manager.until(lambda words: "READY" in words)
        assert os.path.ismount(host.mountpoint), "ready is said of a mount that stands"
        for number in range(3):
            (host.mountpoint / f"file {number}").write_bytes(b"bytes")
        manager.until(lambda words: " files pending" in words.get("STATUS", ""))
        host.sync()
        manager.until(lambda words: words.get("STATUS") == "mounted: everything is saved")
        killed = host.kill_daemon()
        assert host.pid() != killed
        # A daemon that took over looks at the bucket at once, and saves what there is by then.
        host.sync()
        (host.mountpoint / "after").write_bytes(b"bytes")
        manager.until(lambda words: "pending" in words.get("STATUS", ""))
        process.terminate()
        manager.until(lambda words: "STOPPING" in words)
        manager.until(lambda words: words.get("STATUS") == "unmounted: everything is saved")
        assert process.wait(END_S_MAX) == ExitCode.OK
    assert local_bucket.get(host.prefix + "files/after").body == b"bytes"


@pytest.mark.s3
def test_the_end_is_extended_while_the_store_is_slow(
    s3_bucket: S3Bucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(s3_bucket, settings=NEVER_BY_ITSELF)
    gate = threading.Event()
    with (
        faulty_proxy(host.settings["AWS_ENDPOINT_URL_S3"]) as proxy,
        listening(str(tmp_path / "notify")) as manager,
    ):
        host.settings["AWS_ENDPOINT_URL_S3"] = proxy.url
        with service(host, manager, tmp_path / "log") as process:
            manager.until(lambda words: "READY" in words)
            (host.mountpoint / "file").write_bytes(b"bytes")
            proxy.arm(held(gate), "PUT", times=EVERY)
            process.terminate()
            manager.until(lambda words: "STOPPING" in words)
            first, second = (
                manager.until(lambda words: "EXTEND_TIMEOUT_USEC" in words) for _ in range(2)
            )
            assert int(first["EXTEND_TIMEOUT_USEC"]) == EXTEND_S * 1e6
            assert process.poll() is None, "it waits for the store"
            manager.until(lambda words: "EXTEND_TIMEOUT_USEC" in words)
            assert "EXTEND_TIMEOUT_USEC" in second
            gate.set()
            manager.until(lambda words: words.get("STATUS") == "unmounted: everything is saved")
            assert process.wait(END_S_MAX) == ExitCode.OK
        times = [at for at, words in manager.heard if "EXTEND_TIMEOUT_USEC" in words]
    assert times[-1] - times[-2] < EXTEND_S, (times, EXTEND_EVERY_S + PAUSE_S)
    assert s3_bucket.get(host.prefix + "files/file").body == b"bytes"


def test_a_mount_in_the_background_does_not_speak_for_who_started_it(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(local_bucket)
    with listening(str(tmp_path / "notify")) as manager:
        host.settings["NOTIFY_SOCKET"] = manager.address
        host.mount()
        (host.mountpoint / "file").write_bytes(b"bytes")
        host.umount()
        assert manager.take() == []
