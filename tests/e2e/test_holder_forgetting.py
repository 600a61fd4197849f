"""The daemon is killed while the kernel forgets for it, and waits for an answer of that daemon.

A call that waits for the daemon may hold a directory, or a page of a file, locked in the kernel.
Who invalidates a name or a page there waits for that lock, and not even SIGKILL ends the waiting.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ws_fs.core import failpoints
from s3ws_fs.fuse import table
from tests.support.armed import Trigger
from tests.support.buckets import LocalBucket
from tests.support.host import (
    NEVER_BY_ITSELF,
    QUICK,
    Host,
    HostMaker,
    child_pids,
    wait_for_exit,
)
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

WAIT_S = 60
FORGETTING = "fuse_reverse_inval"
"""The kernel's functions that wait for such a lock begin so."""


@pytest.fixture
def host(local_bucket: LocalBucket, new_host: HostMaker) -> Iterator[Host]:
    """Mounted; it makes sync points when asked to, and no others."""
    settings = {**QUICK, **NEVER_BY_ITSELF, "WORKSPACE_SYNC_POINT_INTERVAL": "3600"}
    made: Host = new_host(local_bucket, settings=settings)
    yield made
    made.end()


def _trigger(host: Host, without: str = "") -> Trigger:
    marks = host.base / "marks"
    marks.mkdir()
    trigger = Trigger(str(marks), without)
    host.settings |= trigger.env()
    return trigger


def _waits_in_the_kernel(pid: int) -> bool:
    """Whether a thread of the daemon, or a child of it, is just being forgotten for."""
    for process in (pid, *child_pids(pid)):
        for stack in Path(f"/proc/{process}/task").glob("*/stack"):
            try:
                if FORGETTING in stack.read_text():
                    return True
            except (FileNotFoundError, ProcessLookupError):
                continue
    return False


def _fsync_of(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _abort(connection: int | None, place: Path) -> None:
    """End a connection, also one whose mount was taken out of the tree."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "fusectl", "none", place], check=True)
    try:
        with contextlib.suppress(OSError):
            (place / str(connection) / "abort").write_text("1")
    finally:
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def forgetting_in_a_locked_directory(
    host: Host, local_bucket: LocalBucket, trigger: Trigger
) -> Iterator[tuple[Path, Future[None]]]:
    """During the block the kernel is to forget a name in a directory that an fsync, which is not
    answered, holds locked. Gives the directory, and what came of the fsync."""
    if os.geteuid() != 0:
        pytest.skip("only root sees where in the kernel a process waits")
    top = host.mountpoint / "dir"
    top.mkdir()
    (top / "ours").write_bytes(b"ours")
    host.sync()
    assert not (top / "theirs").exists()
    (top / "more").write_bytes(b"not durable yet")
    trigger.hold(failpoints.SYNC_BEGUN)
    pid, connection = host.pid(), table.connection_id(str(host.mountpoint))
    with ThreadPoolExecutor(2) as pool:
        synced = pool.submit(_fsync_of, top)
        wait_until(lambda: not trigger.is_set(failpoints.SYNC_BEGUN), timeout_s=WAIT_S)
        local_bucket.put(host.prefix + "files/dir/theirs", b"added outside")
        asked = pool.submit(host.s3ws, "sync", host.mountpoint, "--outside", ok=None)
        try:
            wait_until(lambda: _waits_in_the_kernel(pid), timeout_s=WAIT_S, what=host.log_tail())
            yield top, synced
            asked.result(WAIT_S)
        except BaseException:
            # Whoever waits there would wait for ever.
            _abort(connection, host.base / "connections")
            host.end()
            raise


def test_a_kill_while_a_directory_is_locked_is_a_pause(
    host: Host, local_bucket: LocalBucket
) -> None:
    """fsync holds the directory; a name that came from outside is to be forgotten in it."""
    trigger = _trigger(host)
    host.mount()
    with forgetting_in_a_locked_directory(host, local_bucket, trigger) as (top, synced):
        host.kill_daemon()
        assert synced.result(WAIT_S) is None, "fsync is answered by the next daemon"
    assert sorted(os.listdir(top)) == ["more", "ours", "theirs"]
    assert (top / "theirs").read_bytes() == b"added outside"
    assert host.now()["holder"]["restarts"] == 1
    host.umount()


def test_where_no_other_daemon_can_go_on_it_is_an_error(
    host: Host, local_bucket: LocalBucket
) -> None:
    """On a kernel that does not send requests again: the mount is ended, and nobody hangs."""
    trigger = _trigger(host, without="resend")
    host.mount()
    info = host.info()
    assert info is not None and info.holder_pid is not None
    holder = os.pidfd_open(info.holder_pid)
    with forgetting_in_a_locked_directory(host, local_bucket, trigger) as (_, synced):
        os.kill(host.pid(), signal.SIGKILL)
        wait_for_exit(holder)
        with pytest.raises(OSError) as caught:
            synced.result(WAIT_S)
    os.close(holder)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert not table.is_mounted(str(host.mountpoint))
    host.mount()
    assert (host.mountpoint / "dir" / "more").read_bytes() == b"not durable yet"
    host.umount()


def test_a_kill_before_the_kernel_was_told_shows_nothing_old(
    host: Host, local_bucket: LocalBucket
) -> None:
    """What came is committed, and the daemon dies before it has the kernel forget."""
    trigger = _trigger(host)
    host.settings |= {"WORKSPACE_OUTSIDE_CHANGES": "bucket-wins"}
    host.mount()
    top = host.mountpoint / "dir"
    top.mkdir()
    (top / "ours").write_bytes(b"ours")
    host.sync()
    assert not (top / "theirs").exists()
    for name in ("theirs", "ours"):
        local_bucket.put(f"{host.prefix}files/dir/{name}", b"from outside")
        trigger.set(failpoints.OUTSIDE_PLACED)
        pid = host.pid()
        host.s3ws("sync", host.mountpoint, "--outside", ok=None)
        host.wait_for_successor(pid)
        assert not trigger.is_set(failpoints.OUTSIDE_PLACED)
        # Told soon after the daemon serves again; until then programs may see what they saw.
        wait_until(
            lambda path=top / name: path.exists() and path.read_bytes() == b"from outside",  # type: ignore[misc]
            timeout_s=WAIT_S,
            what=f"dir/{name}\n{host.log_tail()}",
        )
    host.umount()
