"""The daemon is killed, or replaced, under a mount in use: programs wait a moment, and go on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.fuse import table
from s3ws_fs.holder import policy
from tests.support import trees
from tests.support.armed import Trigger
from tests.support.buckets import LocalBucket, S3Bucket, mirror_differences
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host, HostMaker
from tests.support.inotify import CREATE, Watcher
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

RSS_KIB_MAX = 12 * 1024
WAIT_S = 60


def test_open_files_stay_open(shared: Host, here: Path) -> None:
    with (here / "f").open("w+b", buffering=0) as file, (here / "log").open("ab", 0) as log:
        file.write(b"before ")
        log.write(b"1 ")
        shared.kill_daemon()
        file.write(b"after")
        log.write(b"2")
        file.seek(0)
        assert file.read() == b"before after"
        assert os.fstat(file.fileno()).st_size == 12
    assert (here / "log").read_bytes() == b"1 2"


def test_a_call_made_while_nobody_serves_is_answered(shared: Host, here: Path) -> None:
    shared.kill_daemon(wait=False)
    (here / "made meanwhile").mkdir()
    assert os.listdir(here) == ["made meanwhile"]


def test_an_unlinked_open_file_keeps_its_bytes_and_goes_at_its_close(
    shared: Host, here: Path
) -> None:
    used = shared.now()["quota"]["used_bytes"]
    with (here / "f").open("w+b", buffering=0) as file:
        file.write(bytes(1 << 20))
        (here / "f").unlink()
        for number in range(2):
            shared.kill_daemon()
            file.seek(1 << 20, os.SEEK_SET)
            file.write(b"and more %d" % number)
            # Another deletion has the daemon look for what can go: not this one.
            (here / "other").write_bytes(b"x")
            (here / "other").unlink()
        file.seek(0)
        assert file.read() == bytes(1 << 20) + b"and more 1"
        assert os.fstat(file.fileno()).st_nlink == 0
    wait_until(lambda: shared.now()["quota"]["used_bytes"] == used, what="its space comes back")


def test_what_was_deleted_just_before_a_kill_goes_too(shared: Host, here: Path) -> None:
    """The kernel has forgotten it already, and told a daemon that is dead."""
    used = shared.now()["quota"]["used_bytes"]
    for number in range(20):
        (here / str(number)).write_bytes(bytes(10_000))
        (here / str(number)).unlink()
    shared.kill_daemon()
    wait_until(lambda: shared.now()["quota"]["used_bytes"] == used, what="its space comes back")


def test_a_memory_map_goes_on(shared: Host, here: Path) -> None:
    path = here / "f"
    path.write_bytes(bytes(1 << 17))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[:5] = b"early"
        shared.kill_daemon()
        view[100_000:100_004] = b"late"
        view.flush()
        assert view[:5] == b"early"
    shared.kill_daemon()
    os.posix_fadvise(fd := os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        data = os.read(fd, 1 << 17)
    finally:
        os.close(fd)
    assert (data[:5], data[100_000:100_004]) == (b"early", b"late")


def test_locks_stay(shared: Host, here: Path) -> None:
    with (here / "lock").open("w") as mine, (here / "lock").open("w") as other:
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shared.kill_daemon()
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(mine, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_program_that_stands_in_it_and_runs_from_it_goes_on(shared: Host, here: Path) -> None:
    program = here / "program"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\nprint('started', flush=True)\nsys.stdin.readline()\n"
        "open('relative', 'w').write(os.getcwd())\nprint(open(sys.argv[0]).readline(), end='')\n"
    )
    program.chmod(0o755)
    with subprocess.Popen(
        [program], cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "started\n"
        shared.kill_daemon()
        assert process.communicate("go on\n", timeout=WAIT_S)[0] == f"#!{sys.executable}\n"
    assert (here / "relative").read_text() == str(here)


def test_a_watch_goes_on(shared: Host, here: Path) -> None:
    with Watcher() as watcher:
        watcher.watch(here, "here", CREATE)
        (here / "before").touch()
        shared.kill_daemon()
        (here / "after").touch()
        assert watcher.take(2) == [("here", "create", "before"), ("here", "create", "after")]


def test_status_tells(shared: Host, here: Path) -> None:
    before = shared.now()["holder"]
    shared.kill_daemon()
    holder = shared.now()["holder"]
    assert holder == {
        "pid": before["pid"],
        "restarts": before["restarts"] + 1,
        "restarted_by": "signal 9",
        "can_replace": True,
    }
    text = shared.s3ws("status", shared.mountpoint).stdout
    assert "restart" in text and "(last: signal 9)" in text


def test_the_holder_is_small(shared: Host, here: Path) -> None:
    shared.kill_daemon()
    pid = shared.now()["holder"]["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (rss,) = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    print(f"VmRSS {rss} KiB")
    assert int(rss) < RSS_KIB_MAX


# --- restart -------------------------------------------------------------------------------------

WRITER = """\
import os, sys
directory, seen = sys.argv[1], 0
while not os.path.exists(directory + "/stop"):
    name = f"{directory}/{seen:06d}"
    with open(name + ".tmp", "x") as file:
        file.write(name)
    os.rename(name + ".tmp", name)
    if seen % 3 == 0:
        os.unlink(name)
    else:
        assert open(name).read() == name
    seen += 1
print(seen)
"""
"""Fails at the first call that does: an operation done twice, or not at all, is one."""


@contextlib.contextmanager
def writers(here: Path, count: int) -> Iterator[list[Path]]:
    """Programs at work during the block; none of their calls may fail."""
    directories = [here / f"w{number}" for number in range(count)]
    processes = []
    for directory in directories:
        directory.mkdir()
        command = [sys.executable, "-c", WRITER, str(directory)]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        for directory in directories:
            wait_until(lambda: len(os.listdir(directory)) > 3, timeout_s=WAIT_S)  # noqa: B023
        yield directories
        for directory in directories:
            (directory / "stop").touch()
    finally:
        for process in processes:
            try:
                output, errors = process.communicate(timeout=WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            assert process.returncode == 0, errors
            assert int(output) > 3


def _check_written(directories: list[Path]) -> None:
    for directory in directories:
        names = sorted(set(os.listdir(directory)) - {"stop"})
        assert all(int(name) % 3 for name in names), "an unlinked name came back"
        last = int(names[-1])
        assert names == [f"{n:06d}" for n in range(last + 1) if n % 3], "a name is missing"


def test_restart_under_load(shared: Host, here: Path) -> None:
    with writers(here, 2) as directories:
        for _ in range(3):
            before = shared.pid()
            answer = shared.json("restart", shared.mountpoint)
            assert answer["was"]["pid"] == before != answer["pid"] == shared.pid()
            assert answer["version"] == shared.now()["version"]
            print(f"pause {answer['pause_s']} s")
        assert shared.now()["holder"]["restarted_by"] == "restarted"
        assert shared.now()["cache"]["opened"] == "kept"
    _check_written(directories)


def test_kills_under_load(shared: Host, here: Path) -> None:
    with writers(here, 3) as directories:
        for _ in range(6):
            shared.kill_daemon()
    _check_written(directories)


def test_restart_says_what_it_does(shared: Host) -> None:
    assert "goes on with s3ws" in shared.s3ws("restart", shared.mountpoint).stdout


def test_restart_of_nothing(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    done = host.s3ws("restart", host.mountpoint, ok=ExitCode.NOT_MOUNTED)
    assert "no living daemon" in done.stderr


# --- ends ----------------------------------------------------------------------------------------


def test_umount_saves_all_after_kills(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket, settings={**QUICK, **NEVER_BY_ITSELF})
    host.mount()
    for number in range(3):
        trees.build_source_tree(host.mountpoint / f"src{number}", files=15)
        host.kill_daemon(wait=number == 2)
    before = trees.manifest(host.mountpoint)
    host.umount()
    assert host.info() is None and not table.is_mounted(str(host.mountpoint))
    assert mirror_differences(local_bucket, host.prefix, before, set()) == []


def test_umount_while_the_daemon_dies(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    """Whoever waits for the final flush waits for the next daemon's."""
    host = new_host(local_bucket, settings={**QUICK, **NEVER_BY_ITSELF})
    marks = host.base / "marks"
    marks.mkdir()
    trigger = Trigger(str(marks))
    host.settings |= trigger.env()
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=15)
    before = trees.manifest(host.mountpoint)
    trigger.set(failpoints.FINAL_BEFORE)
    host.umount()
    assert not trigger.is_set(failpoints.FINAL_BEFORE)
    assert mirror_differences(local_bucket, host.prefix, before, set()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_holder_is_an_unmount(
    local_bucket: LocalBucket, new_host: HostMaker, number: int
) -> None:
    host = new_host(local_bucket, settings={**QUICK, **NEVER_BY_ITSELF})
    host.mount()
    (host.mountpoint / "f").write_text("saved")
    info = host.info()
    assert info is not None and info.holder_pid is not None
    os.kill(info.holder_pid, number)
    wait_until(lambda: not info.is_alive(), timeout_s=WAIT_S)
    assert host.info() is None
    assert (local_bucket.root / host.prefix / "files" / "f").read_text() == "saved"


def test_a_daemon_outlives_its_holder(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    host.mount()
    info = host.info()
    assert info is not None and info.holder_pid is not None
    os.kill(info.holder_pid, signal.SIGKILL)
    wait_until(lambda: host.now()["holder"] is None)
    (host.mountpoint / "f").write_text("still")
    host.s3ws("restart", host.mountpoint, ok=ExitCode.CANT_RESTART)
    assert info.is_alive()
    host.umount()
    assert (local_bucket.root / host.prefix / "files" / "f").read_text() == "still"


def test_a_daemon_that_keeps_dying_is_given_up(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings={**QUICK, **NEVER_BY_ITSELF})
    marks = host.base / "marks"
    marks.mkdir()
    trigger = Trigger(str(marks))
    host.settings |= trigger.env()
    host.mount()
    (host.mountpoint / "f").write_text("kept")
    file = (host.mountpoint / "open").open("w")
    info = host.info()
    assert info is not None and info.holder_pid is not None
    holder = os.pidfd_open(info.holder_pid)
    trigger.set(failpoints.OPEN_AFTER, always=True)
    started = time.monotonic()
    host.kill_daemon(wait=False)
    with pytest.raises(OSError) as caught:
        # Waits until there is nobody left who could answer.
        os.listdir(host.mountpoint / "sub")
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT)
    wait_until(lambda: not info.is_alive(), timeout_s=WAIT_S)
    os.close(holder)
    print(f"given up after {policy.ROW_MAX} deaths, {time.monotonic() - started:.1f} s")
    with contextlib.suppress(OSError):
        file.close()
    assert not table.is_mounted(str(host.mountpoint))
    dead = host.json("status", host.mountpoint, ok=ExitCode.NOT_MOUNTED)
    assert dead["state"] == "dead" and sorted(dead["unsaved"]["paths"]) == ["f", "open"]
    assert "died again and again" in host.log_tail()
    trigger.unset(failpoints.OPEN_AFTER)
    host.mount()
    assert (host.mountpoint / "f").read_text() == "kept"
    host.umount()


@pytest.mark.s3
def test_a_kill_while_the_store_is_down(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    """As by the out-of-memory killer: nothing is asked of the store before programs go on."""
    host = new_host(s3_bucket)
    host.mount()
    (host.mountpoint / "early").write_text("sealed")
    host.sync()
    s3_bucket.server.stop()
    try:
        for number in range(3):
            (host.mountpoint / f"down{number}").write_text("unsealed")
            host.kill_daemon()
            assert (host.mountpoint / "early").read_text() == "sealed"
        wait_until(lambda: host.now()["health"]["state"] == "degraded", timeout_s=WAIT_S)
    finally:
        s3_bucket.server.start()
    before = trees.manifest(host.mountpoint)
    host.umount()
    assert mirror_differences(s3_bucket, host.prefix, before, set()) == []
