"""SIGKILL at random moments: what was acknowledged is there, and the flush goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3ws_fs.cache.checking import check_cache
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.store.scoped import PROBE_PREFIX
from tests.support import programs, trees
from tests.support.buckets import Bucket, LocalBucket, mirror_differences
from tests.support.extractor import damaged, unpack_and_witness
from tests.support.host import Host, HostMaker
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

FILES = 250
ROUNDS = 4


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of many small files and a few large ones."""
    base = tmp_path_factory.mktemp("archive")
    trees.build_source_tree(base / "tree", files=FILES)
    for number in range(4):
        name = f"package{number}/large.bin"
        (base / "tree" / name).write_bytes(random.Random(number).randbytes(700_000))
    programs.run("tar", "-cf", base / "tree.tar", "-C", base, "tree")
    return base / "tree.tar"


def test_kill_during_extraction(bucket: Bucket, new_host: HostMaker, archive: Path) -> None:
    seed = 1 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    host = new_host(bucket)
    host.mount()
    for number in range(ROUNDS):
        directory = host.mountpoint / f"round {number}"
        directory.mkdir()
        fatal = rng.randrange(1, FILES)

        def strike(finished: int, fatal: int = fatal) -> None:
            if finished == fatal:
                host.kill()

        names, status = unpack_and_witness(archive, directory, strike)
        assert status != 0, "the extraction ended before it was struck"
        assert len(names) >= fatal
        left = check_cache(host.workspace_cache(), lambda _: None).report
        assert left.ok, left.findings
        host.mount()
        assert damaged(archive, directory, names) == []
    host.sync()
    before = trees.manifest(host.mountpoint)
    assert mirror_differences(bucket, host.prefix, before, set()) == []
    host.umount()
    other = new_host(bucket, "other")
    other.mount()
    assert trees.differences(before, trees.manifest(other.mountpoint)) == []
    other.umount()


@pytest.mark.parametrize("whole", [True, False], ids=["container", "daemon"])
def test_kill_during_the_final_flush(bucket: Bucket, new_host: HostMaker, whole: bool) -> None:
    host = new_host(bucket)
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=300)
    before = trees.manifest(host.mountpoint)
    fd = os.pidfd_open(host.pid())
    subprocess.run(["fusermount3", "-u", host.mountpoint], check=True)
    try:
        if whole:
            host.kill()
        else:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except (ProcessLookupError, AssertionError):
        pytest.skip("the final flush was faster than the signal")
    finally:
        os.close(fd)
    wait_until(lambda: not _alive(host), timeout_s=60, what="the end of the killed mount")
    if not whole:
        assert host.info() is None, "the next daemon saved all of it"
        assert mirror_differences(bucket, host.prefix, before, set()) == []
    host.mount()
    assert trees.differences(before, trees.manifest(host.mountpoint)) == []
    host.umount()
    assert mirror_differences(bucket, host.prefix, before, set()) == []


def _alive(host: Host) -> bool:
    info = host.info()
    return info is not None and info.is_alive()


def test_kill_the_worker_during_a_flush(bucket: Bucket, new_host: HostMaker) -> None:
    host = new_host(bucket)
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=300)
    command = [sys.executable, "-m", "s3ws_fs", "sync", "--json", str(host.mountpoint)]
    sync = subprocess.Popen(
        command, env=host.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    killed = 0
    try:
        for _ in range(3):
            worker = host.now()["worker_pid"]
            if worker is not None and sync.poll() is None:
                # The one that status named may be the last round's, and reaped meanwhile.
                with contextlib.suppress(ProcessLookupError):
                    fd = os.pidfd_open(worker)
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    os.close(fd)
                    killed += 1
        code = sync.wait(60)
    finally:
        if sync.poll() is None:
            sync.kill()
            sync.wait()
    print(f"killed {killed} workers; sync ended with {code}")
    host.sync()
    before = trees.manifest(host.mountpoint)
    assert mirror_differences(bucket, host.prefix, before, set()) == []
    host.umount()


def test_kill_during_a_restore(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    """Nothing of a half-made cache is pushed, and the next mount is whole."""
    first = new_host(local_bucket, "first")
    first.mount()
    trees.build_source_tree(first.mountpoint / "src", files=200)
    before = trees.manifest(first.mountpoint)
    first.umount()
    objects = local_bucket.listing(first.prefix)
    second = new_host(local_bucket, "second")
    command = [sys.executable, "-m", "s3ws_fs", "mount", str(second.mountpoint)]
    process = subprocess.Popen(
        command, env=second.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    wait_until(lambda: second.info() is not None or process.poll() is not None, timeout_s=30)
    second.kill()
    assert process.wait(30) != ExitCode.OK or second.info() is not None
    # The kill may come during the probe of the store, whose scratch objects are nobody's data.
    left = [key for key in local_bucket.listing(first.prefix) if PROBE_PREFIX not in key]
    assert left == objects
    second.mount()
    assert trees.differences(before, trees.manifest(second.mountpoint)) == []
    second.umount()


def test_kill_with_an_unlinked_open_file(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    host.mount()
    used = host.now()["quota"]["used_bytes"]
    fd = os.open(host.mountpoint / "temporary", os.O_WRONLY | os.O_CREAT)
    os.write(fd, bytes(1 << 20))
    (host.mountpoint / "temporary").unlink()
    host.kill()
    with contextlib.suppress(OSError):  # ENOTCONN: its filesystem is dead
        os.close(fd)
    host.mount()
    assert os.listdir(host.mountpoint) == []
    assert host.now()["quota"]["used_bytes"] == used, "the orphan is gone"
    host.umount()
