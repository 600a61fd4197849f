"""The real mount(8), umount(8) and fstab with our helpers, on real mounts."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.control.registry import MountInfo
from s3ws_fs.integrations.mounthelper import MOUNT_FAILED, MOUNT_USAGE
from tests.support.buckets import LocalBucket
from tests.support.host import NEVER_BY_ITSELF, HostMaker, wait_for_exit
from tests.support.mounting import require_fuse
from tests.support.namespace import Namespace, require_namespaces

pytestmark = [pytest.mark.fuse, pytest.mark.e2e]


@pytest.fixture
def namespace(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> Iterator[Namespace]:
    require_fuse()
    require_namespaces()
    host = new_host(local_bucket, settings={**NEVER_BY_ITSELF, "WORKSPACE_UNMOUNT_GRACE": "1"})
    made = Namespace(host, tmp_path)
    try:
        yield made
    finally:
        host.end()
        made.end()


def test_mount_8_returns_when_ready_and_umount_8_when_all_is_saved(
    namespace: Namespace, local_bucket: LocalBucket, tmp_path: Path
) -> None:
    host = namespace.host
    settings = tmp_path / "settings.env"
    settings.write_text("WORKSPACE_MAX_SIZE_MB=77\nAWS_SECRET_ACCESS_KEY=not-for-argv\n")
    settings.chmod(0o600)
    words = ("mount", "-t", "s3ws", "user-9/test-9", host.mountpoint, "-o")
    namespace.run(*words, f"_netdev,env_file={settings},allow_other")
    shown = namespace.run("findmnt", "-n", "-o", "SOURCE,FSTYPE,SIZE", host.mountpoint).stdout
    assert shown.split() == ["s3ws", "fuse.s3ws", "77M"]
    info = host.info()
    assert info is not None and info.user_id == "user-9"
    for pid in info.processes():
        argv = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"not-for-argv" not in argv
    namespace.run("sh", "-c", f"echo hello > '{host.mountpoint}/hello.txt'")
    busy = namespace.run("mount", "-t", "s3ws", "a/b", host.mountpoint, code=MOUNT_FAILED)
    assert "already mounted" in busy.stderr
    assert not local_bucket.listing("conversations/user-9/test-9/workspace/files/")
    namespace.run("umount", host.mountpoint)
    files = "conversations/user-9/test-9/workspace/files/"
    assert local_bucket.get(files + "hello.txt").body == b"hello\n"
    assert host.info() is None and not info.is_alive()


def test_fstab(namespace: Namespace, local_bucket: LocalBucket, tmp_path: Path) -> None:
    host = namespace.host
    mountpoint = tmp_path / "from fstab"
    mountpoint.mkdir()
    escaped = str(mountpoint).replace(" ", "\\040")
    fstab = tmp_path / "fstab"
    fstab.write_text(
        f"s3ws {escaped} fuse.s3ws _netdev,nofail,x-systemd.mount-timeout=10min,max_size_mb=66,"
        f'allow_other,uid_map="0:10001,1000:1001" 0 0\n'
    )
    for _ in range(2):
        # The second time nothing is to be done, and mount(8) sees it.
        namespace.run("mount", "-T", fstab, "-a")
    shown = namespace.run("findmnt", "-n", "-o", "FSTYPE,SIZE", mountpoint).stdout
    assert shown.split() == ["fuse.s3ws", "66M"]
    namespace.run("sh", "-c", f"echo hello > '{mountpoint}/file'; mkdir '{mountpoint}/sub'")
    namespace.run("umount", mountpoint)
    assert local_bucket.get(host.prefix + "files/file").body == b"hello\n"
    namespace.run("mount", "-T", fstab, mountpoint)
    assert namespace.run("cat", mountpoint / "file").stdout == "hello\n"
    namespace.run("umount", mountpoint)


def test_what_is_refused_mounts_nothing(namespace: Namespace) -> None:
    host = namespace.host
    words = ("mount", "-t", "s3ws", "s3ws", host.mountpoint, "-o")
    said = namespace.run(*words, "secret_key=hunter2", code=MOUNT_USAGE).stderr
    assert "secret_key" in said and "hunter2" not in said
    assert "user,exec" in namespace.run(*words, "noexec", code=MOUNT_USAGE).stderr
    namespace.run(*words, "storage_path=/nonexistent/store", code=MOUNT_FAILED)
    assert host.info() is None


def mounted(namespace: Namespace, *options: str, kind: str = "s3ws") -> MountInfo:
    """By mount(8), and a file written."""
    host = namespace.host
    namespace.run("mount", "-t", kind, "s3ws", host.mountpoint, *options)
    namespace.run("sh", "-c", f"echo hello > '{host.mountpoint}/file'")
    info = host.info()
    assert info is not None and info.is_alive()
    return info


@contextlib.contextmanager
def awaited(info: MountInfo) -> Iterator[None]:
    """After the block: until its processes have ended."""
    ends = [os.pidfd_open(pid) for pid in info.processes()]
    try:
        yield
        for fd in ends:
            wait_for_exit(fd)
    finally:
        for fd in ends:
            os.close(fd)


def is_saved(namespace: Namespace, bucket: LocalBucket) -> bool:
    """Whether the file is in the bucket."""
    return bucket.get(namespace.host.prefix + "files/file").body == b"hello\n"


def test_a_busy_mount_stays_and_a_lazy_unmount_does_not_wait(
    namespace: Namespace, local_bucket: LocalBucket
) -> None:
    host = namespace.host
    info = mounted(namespace, "-o", "_netdev", kind="fuse.s3ws")
    script = f"exec 3< '{host.mountpoint}/file'; echo; exec cat"
    user = subprocess.Popen(
        namespace.inside("sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert user.stdin is not None and user.stdout is not None
    with awaited(info):
        try:
            user.stdout.read(1)
            said = namespace.run("umount", host.mountpoint, code=MOUNT_FAILED).stderr
            assert "in use" in said and f"pid {user.pid}" in said
            assert info.is_alive()
            lazy = namespace.run("umount", "-l", host.mountpoint).stderr
            assert "in the background" in lazy
            assert info.is_alive(), "a program still has a file open"
        finally:
            user.communicate()
    assert is_saved(namespace, local_bucket)


def test_without_netdev_umount_8_comes_back_at_once_and_all_is_saved_behind_it(
    namespace: Namespace, local_bucket: LocalBucket
) -> None:
    """It asks no helper then but umount.fuse, which belongs to all FUSE filesystems."""
    with awaited(mounted(namespace)):
        namespace.run("umount", namespace.host.mountpoint)
    assert is_saved(namespace, local_bucket)


def test_systemd_s_way_to_unmount_waits_too(
    namespace: Namespace, local_bucket: LocalBucket
) -> None:
    mounted(namespace)
    namespace.run("umount", namespace.host.mountpoint, "-c")
    assert namespace.host.info() is None
    assert is_saved(namespace, local_bucket)
