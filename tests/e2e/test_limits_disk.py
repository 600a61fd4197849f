"""The disk of the cache is full: ENOSPC for who wants more, the rest goes on, and it heals."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import trees
from tests.support.buckets import Bucket, LocalBucket, mirror_differences
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host, HostMaker
from tests.support.mounting import wait_until
from tests.support.small_disk import free_bytes, hog, small_disk

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

DISK_MIB = 32
FILE_BYTES = 1 << 20
LARGE_BYTES = 7 << 20
"""More than the mirror puts from memory, and more than the spool has room for."""
HEALED_S_MAX = 60.0
LOG_LINES_MAX = 40


@pytest.fixture
def small_host(new_host: HostMaker) -> Iterator[HostMaker]:
    """`small_host(bucket, name=…, settings=…)`: a host whose caches lie on a disk of DISK_MIB."""
    disks = []

    def make(bucket: Bucket, name: str = "one", **options: object) -> Host:
        host = new_host(bucket, name, **options)
        disk = small_disk(host.cache, DISK_MIB)
        disk.__enter__()
        disks.append((host, disk))
        return host

    yield make
    for host, disk in disks:
        host.end()
        disk.__exit__(None, None, None)


def fill(directory: Path) -> dict[str, bytes]:
    """Files of random bytes until there is no room; those that were written whole."""
    whole: dict[str, bytes] = {}
    with pytest.raises(OSError) as caught:
        for number in range(10 * DISK_MIB):
            data = os.urandom(FILE_BYTES)
            path = directory / f"{number:03}"
            path.write_bytes(data)
            whole[path.name] = data
    assert caught.value.errno == errno.ENOSPC
    return whole


def is_intact(directory: Path, whole: dict[str, bytes]) -> bool:
    return all((directory / name).read_bytes() == data for name, data in whole.items())


def room(host: Host) -> str:
    state = host.now()["cache"]["room"]["state"]
    assert isinstance(state, str)
    return state


def is_saved(host: Host) -> bool:
    generation = host.now()["generation"]
    return len(set(generation.values())) == 1


def test_it_heals_by_itself_while_the_bucket_answers(
    small_host: HostMaker, local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    """More is written than the disk holds: what is in the bucket makes way."""
    host = small_host(local_bucket, settings=QUICK)
    host.mount()
    first = fill(host.mountpoint)
    assert len(first) > DISK_MIB // 2
    wait_until(lambda: is_saved(host) and room(host) == "ok", timeout_s=HEALED_S_MAX)
    assert host.now()["health"]["state"] == "ok"
    more = host.mountpoint / "more"
    more.mkdir()
    second = {}
    for number in range(8):
        data = os.urandom(FILE_BYTES)
        (more / str(number)).write_bytes(data)
        second[str(number)] = data
    assert host.now()["cache"]["room"]["evicted_bytes"]
    # Reading everything brings back what was evicted, and other bytes make way.
    assert is_intact(more, second)
    assert is_intact(host.mountpoint, first)
    before = trees.manifest(host.mountpoint)
    host.umount()
    assert len(host.log_tail().splitlines()) < LOG_LINES_MAX
    found = mirror_differences(local_bucket, host.prefix, before, set())
    assert found == []
    other = new_host(local_bucket, "other")
    other.mount()
    assert trees.differences(before, trees.manifest(other.mountpoint)) == []
    other.umount()


def test_nothing_saved_yet_nothing_evicted(
    small_host: HostMaker, bucket: Bucket, new_host: HostMaker
) -> None:
    host = small_host(bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    (host.mountpoint / "large").write_bytes(os.urandom(LARGE_BYTES))
    small = host.mountpoint / "small"
    small.write_bytes(b"here before")
    directory = host.mountpoint / "full"
    directory.mkdir()
    whole = fill(directory)
    assert room(host) == "short"
    shown = host.s3ws("status", host.mountpoint).stdout
    assert "disk full: " in shown
    assert "MiB free" in shown
    # Everything else goes on.
    assert is_intact(directory, whole)
    (host.mountpoint / "empty").touch()
    with pytest.raises(OSError, match="No space left"):
        (host.mountpoint / "empty").write_bytes(b"x")
    name, data = next(iter(whole.items()))
    with (directory / name).open("r+b") as file:
        file.write(data[::-1])
    whole[name] = data[::-1]
    (directory / name).rename(directory / "renamed")
    whole["renamed"] = whole.pop(name)
    small.chmod(0o600)
    os.link(small, host.mountpoint / "link")
    # Space of deleted files is there again at once, fsync or not.
    for name in sorted(whole)[:8]:
        (directory / name).unlink()
        del whole[name]
    for number in range(6):
        data = os.urandom(FILE_BYTES)
        (directory / f"again{number}").write_bytes(data)
        whole[f"again{number}"] = data
    assert is_intact(directory, whole)
    assert host.now()["cache"]["room"]["evicted_bytes"] == 0
    before = trees.manifest(host.mountpoint)
    # The final flush spools less than there is to save.
    host.umount()
    assert mirror_differences(bucket, host.prefix, before, set()) == []
    other = new_host(bucket, "other")
    other.mount()
    assert trees.differences(before, trees.manifest(other.mountpoint)) == []
    other.umount()


def test_another_program_takes_the_last_byte(
    small_host: HostMaker, local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    """What nobody saved is kept, read, deleted, and saved: for that much there is a reserve."""
    host = small_host(local_bucket, settings={**QUICK, **NEVER_BY_ITSELF})
    host.mount()
    directory = host.mountpoint / "here"
    directory.mkdir()
    whole = {}
    for number in range(8):
        whole[str(number)] = os.urandom(FILE_BYTES)
        (directory / str(number)).write_bytes(whole[str(number)])
    hog(host.cache / "hog")
    assert free_bytes(host.cache) == 0
    with pytest.raises(OSError) as caught:
        for number in range(DISK_MIB):
            (directory / f"no room {number}").write_bytes(os.urandom(FILE_BYTES))
    assert caught.value.errno == errno.ENOSPC
    wait_until(lambda: room(host) != "ok")
    assert is_intact(directory, whole)
    (directory / "0").unlink()
    del whole["0"]
    # Killed, and mounted again on the full disk.
    host.kill()
    host.mount()
    assert is_intact(directory, whole)
    assert not (directory / "0").exists()
    (directory / "1").unlink()
    del whole["1"]
    # Saved with no room for a spool; then it is in the bucket, and makes way.
    host.sync()
    wait_until(lambda: room(host) == "ok", timeout_s=HEALED_S_MAX)
    assert host.now()["cache"]["room"]["evicted_bytes"]
    assert is_intact(directory, whole)
    (directory / "room").write_bytes(whole["2"])
    whole["room"] = whole["2"]
    (host.cache / "hog").unlink()
    before = trees.manifest(host.mountpoint)
    host.umount()
    assert len(host.log_tail().splitlines()) < LOG_LINES_MAX
    host.mount()
    assert is_intact(directory, whole)
    assert trees.differences(before, trees.manifest(host.mountpoint)) == []
    host.umount()
    other = new_host(local_bucket, "other")
    other.mount()
    assert trees.differences(before, trees.manifest(other.mountpoint)) == []
    other.umount()


def test_a_workspace_larger_than_the_disk_can_be_read(
    small_host: HostMaker, local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    writer = new_host(local_bucket, "writer")
    writer.mount()
    whole = {}
    for number in range(DISK_MIB + 16):
        whole[str(number)] = os.urandom(FILE_BYTES)
        (writer.mountpoint / str(number)).write_bytes(whole[str(number)])
    writer.umount()
    host = small_host(local_bucket, "reader")
    host.mount()
    assert is_intact(host.mountpoint, whole)
    assert host.now()["cache"]["room"]["evicted_bytes"]
    (host.mountpoint / "new").write_bytes(b"and written")
    host.umount()
