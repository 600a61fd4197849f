"""Two hosts and one workspace, with real processes and mounts: refused, taken over, fenced."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support import trees
from tests.support.buckets import Bucket, LocalBucket, S3Bucket, mirror_differences
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.mounting import REPOSITORY, wait_until
from tests.support.seaweed import free_ports

SHORT = {**NEVER_BY_ITSELF, "WORKSPACE_LEASE_S": "6"}
FILES = 400
UNGATED = Path(__file__).parents[1] / "support" / "ungated"


def state_of(bucket: Bucket, host: Host) -> dict[str, bytes]:
    """Everything below the prefix but the lease, which is renewed."""
    keys = bucket.listing(host.prefix)
    return {key: bucket.get(key).body for key in keys if not key.endswith("journal/lease.json")}


@contextlib.contextmanager
def frozen(host: Host) -> Iterator[None]:
    """The daemon and its worker are stopped, as a frozen container is; then they go on."""
    daemon, worker = host.pid(), host.now()["worker_pid"]
    assert worker is not None, "no worker to freeze"
    fds = [os.pidfd_open(pid) for pid in (daemon, worker)]
    for fd in fds:
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
    try:
        yield
    finally:
        for fd in fds:
            # The kernel may have ended the worker meanwhile.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGCONT)
            os.close(fd)


@contextlib.contextmanager
def syncing(host: Host) -> Iterator[subprocess.Popen[bytes]]:
    """`s3ws sync` under way."""
    process = subprocess.Popen(
        [sys.executable, "-m", "s3ws_fs", "sync", str(host.mountpoint)],
        env=host.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def freeze_in_mid_mirror(
    bucket: Bucket, first: Host, second: Host, settings: Mapping[str, str] = SHORT
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The bucket after the take-over, and after the first host woke up and had its time."""
    first.settings.update(settings)
    first.mount()
    for number in range(FILES):
        (first.mountpoint / f"f{number:04}").write_bytes(b"%d" % number * 1000)
    with syncing(first):
        files = first.prefix + "files/"
        wait_until(lambda: 20 < len(bucket.listing(files)) < FILES, timeout_s=90)
        with frozen(first):
            standing = len(bucket.listing(files))
            second.mount(take_over=True)
            for number in range(0, FILES, 2):
                (second.mountpoint / f"f{number:04}").unlink()
            for number in range(1, FILES, 6):
                (second.mountpoint / f"f{number:04}").write_bytes(b"the second's")
            second.sync()
            after = state_of(bucket, first)
        print(f"frozen after {standing} of {FILES} objects")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: first.now()["health"]["state"] == "fenced", timeout_s=25)
        # Time for what should not come.
        time.sleep(3)
    return after, state_of(bucket, first)


@pytest.mark.s3
def test_who_was_frozen_in_mid_mirror_and_wakes_changes_nothing(
    s3_bucket: S3Bucket, new_host: HostMaker
) -> None:
    first, second = (new_host(s3_bucket, name, settings=SHORT) for name in ("first", "second"))
    after, later = freeze_in_mid_mirror(s3_bucket, first, second)
    assert later == after
    health = first.now()["health"]
    assert health["state"] == "fenced" and "pid" in health["by"]
    # Local work goes on in its cache, and is listed as what it is: unsaved.
    (first.mountpoint / "a local one").write_bytes(b"only here")
    assert (first.mountpoint / "a local one").read_bytes() == b"only here"
    done = first.s3ws("umount", first.mountpoint, ok=ExitCode.FENCED)
    assert "a local one" in done.stderr
    assert state_of(s3_bucket, first) == after
    before = trees.manifest(second.mountpoint)
    second.umount()
    assert mirror_differences(s3_bucket, second.prefix, before, set()) == []
    refused = first.s3ws("mount", first.mountpoint, "--take-over", ok=ExitCode.FENCED)
    assert "never sealed" in refused.stderr
    # What was never sealed is to be had all the same.
    into = first.base / "rescued"
    cache = first.workspace_cache()
    done = first.s3ws("rescue", into, "--cache", cache)
    assert "a local one" in done.stdout
    assert os.listdir(into) == ["a local one"]
    assert (into / "a local one").read_bytes() == b"only here"
    again = first.json("rescue", into, "--cache", cache, ok=ExitCode.NOT_SAVED)
    assert [item["name"] for item in again["not_exported"]] == ["a local one"]


@pytest.mark.s3
def test_without_the_gate_it_would(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    """The control: the same, but the first host's worker has no gate."""
    first, second = (new_host(s3_bucket, name, settings=SHORT) for name in ("first", "second"))
    ungated = {**SHORT, "PYTHONPATH": f"{UNGATED}:{REPOSITORY}"}
    after, later = freeze_in_mid_mirror(s3_bucket, first, second, ungated)
    changed = {key for key in after.keys() | later.keys() if after.get(key) != later.get(key)}
    print(f"{len(changed)} objects were changed by the one who was taken over")
    assert any("/files/" in key for key in changed)


def test_a_second_mount_is_refused_and_told_by_whom(bucket: Bucket, new_host: HostMaker) -> None:
    first, second = (new_host(bucket, name) for name in ("first", "second"))
    first.settings["WORKSPACE_LEASE_S"] = "600"
    first.mount()
    (first.mountpoint / "f").write_bytes(b"1")
    done = second.s3ws("mount", second.mountpoint, ok=ExitCode.HELD)
    assert f"(pid {first.pid()}, since " in done.stderr and "--take-over" in done.stderr
    assert not os.path.ismount(second.mountpoint)
    assert first.now()["lease"]["state"] == "held"
    first.umount()
    second.mount()
    assert (second.mountpoint / "f").read_bytes() == b"1"
    second.umount()


def test_after_a_crash_another_host_waits_and_the_same_does_not(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    settings = {**NEVER_BY_ITSELF, "WORKSPACE_LEASE_S": "600"}
    first, second = (new_host(local_bucket, name, settings=settings) for name in ("a", "b"))
    first.mount()
    (first.mountpoint / "f").write_bytes(b"1")
    first.sync()
    (first.mountpoint / "f").write_bytes(b"unsealed")
    first.end()
    second.s3ws("mount", second.mountpoint, ok=ExitCode.HELD)
    first.mount()
    assert (first.mountpoint / "f").read_bytes() == b"unsealed"
    first.end()
    second.s3ws("mount", second.mountpoint, ok=ExitCode.HELD)
    # As if it had been put long ago, by the clock of the store.
    lease = local_bucket.root / first.prefix / "journal/lease.json"
    long_ago = lease.stat().st_mtime - 100_000
    os.utime(lease, (long_ago, long_ago))
    second.mount()
    assert (second.mountpoint / "f").read_bytes() == b"1"
    second.umount()
    refused = first.s3ws("mount", first.mountpoint, ok=ExitCode.FENCED)
    assert "never sealed" in refused.stderr


@pytest.mark.s3
def test_a_mount_without_the_store_saves_when_it_is_back(
    s3_bucket: S3Bucket, new_host: HostMaker
) -> None:
    """The endpoint is a port that nobody listens on, and then the server's, by a proxy."""
    from tests.support.proxy import faulty_proxy

    host = new_host(s3_bucket)
    endpoint = host.settings["AWS_ENDPOINT_URL_S3"]
    with faulty_proxy(endpoint) as proxy:
        host.settings["AWS_ENDPOINT_URL_S3"] = proxy.url
        host.mount()
        (host.mountpoint / "f").write_bytes(b"1")
        host.sync()
        (host.mountpoint / "f").write_bytes(b"unsaved")
        host.end()
    (port,) = free_ports(1)
    host.settings["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{port}"
    host.mount()
    assert (host.mountpoint / "f").read_bytes() == b"unsaved"
    health = host.now()["health"]
    assert health["state"] == "degraded" and str(port) in health["error"]
    (host.mountpoint / "g").write_bytes(b"written meanwhile")
    host.s3ws("umount", host.mountpoint, ok=ExitCode.NOT_SAVED)
    host.settings["AWS_ENDPOINT_URL_S3"] = endpoint
    host.mount()
    before = trees.manifest(host.mountpoint)
    host.umount()
    assert mirror_differences(s3_bucket, host.prefix, before, set()) == []
