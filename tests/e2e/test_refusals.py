"""What is refused: with the documented exit code, a text that helps, and nothing touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from s3ws_fs.fuse import table
from tests.support import trees
from tests.support.buckets import LocalBucket, S3Bucket
from tests.support.host import Host, HostMaker
from tests.support.seaweed import free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


def refused(host: Host, code: int, *words: str) -> str:
    """Mounting ends with `code` and says all the words; nothing is mounted, no daemon runs."""
    done = host.s3ws("mount", host.mountpoint, ok=code)
    assert not table.is_mounted(str(host.mountpoint))
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    info = host.info()
    assert info is None or not info.is_alive()
    return done.stderr


def a_saved_workspace(host: Host, text: bytes) -> Path:
    """Mount, write one file, unmount; the directory of the cache."""
    host.mount()
    (host.mountpoint / "file").write_bytes(text)
    host.umount()
    return host.workspace_cache()


def test_cache_of_another_conversation(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    theirs = a_saved_workspace(new_host(local_bucket, "a", conversation="conv-a"), b"of a")
    host = new_host(local_bucket, "b", conversation="conv-b")
    ours = a_saved_workspace(host, b"of b")
    _replace(ours, theirs)
    before, objects = trees.manifest(ours), _objects(local_bucket)
    refused(host, ExitCode.BAD_CACHE, "conv-a")
    assert _data(ours) == _data_of(before)
    assert _objects(local_bucket) == objects


def test_cache_of_another_bucket(tmp_path: Path, new_host: HostMaker) -> None:
    buckets = [LocalBucket(tmp_path / "store a"), LocalBucket(tmp_path / "store b")]
    theirs = a_saved_workspace(new_host(buckets[0], "a"), b"of a")
    host = new_host(buckets[1], "b")
    ours = a_saved_workspace(host, b"of b")
    _replace(ours, theirs)
    before, objects = trees.manifest(ours), _objects(buckets[1])
    refused(host, ExitCode.BAD_CACHE, "store a")
    assert _data(ours) == _data_of(before)
    assert _objects(buckets[1]) == objects


def test_a_bucket_that_was_emptied_under_the_cache(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    """Neither is the old state pushed into it, nor does the cache become as empty as it is."""
    host = new_host(local_bucket)
    a_saved_workspace(host, b"text")
    (local_bucket.root / "conversations").rename(local_bucket.root / "moved away")
    refused(host, ExitCode.BAD_CACHE)
    assert not (local_bucket.root / "conversations").exists()
    (local_bucket.root / "moved away").rename(local_bucket.root / "conversations")
    host.mount()
    assert host.status()["cache"]["opened"] != "fresh"
    assert (host.mountpoint / "file").read_bytes() == b"text"
    host.umount()


def test_damaged_cache(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    ours = a_saved_workspace(host, b"text")
    (data,) = ours.rglob("data.mdb")
    data.write_bytes(os.urandom(data.stat().st_size))
    before = trees.sha256_of(data)
    refused(host, ExitCode.BAD_CACHE)
    assert trees.sha256_of(data) == before
    host.lose_cache()
    host.mount()
    assert (host.mountpoint / "file").read_bytes() == b"text"


def _replace(ours: Path, theirs: Path) -> None:
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours, copy_function=shutil.copy2)
    ours.chmod(0o700)


def _data(directory: Path) -> trees.Manifest:
    return _data_of(trees.manifest(directory))


def _data_of(found: trees.Manifest) -> trees.Manifest:
    """What must not change: everything but locks, logs and the directory's own time."""
    return {path: node for path, node in found.items() if path not in (b".", b"lock")}


def _objects(bucket: LocalBucket) -> dict[str, bytes]:
    return {key: bucket.get(key).body for key in bucket.listing()}


def test_second_mount_on_the_same_mount_point(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    pid = host.mount()["pid"]
    done = host.s3ws("mount", host.mountpoint, ok=ExitCode.ALREADY_MOUNTED)
    assert str(pid) in done.stderr
    assert host.status()["state"] == "ready"


def test_second_mount_of_the_same_cache(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    first = new_host(local_bucket, "first")
    first.mount()
    second = new_host(local_bucket, "second")
    second.settings |= {"WORKSPACE_CACHE_DIR": str(first.cache)}
    refused(second, ExitCode.ALREADY_MOUNTED)
    (first.mountpoint / "file").write_bytes(b"unharmed")
    first.umount()
    assert local_bucket.get(first.prefix + "files/file").body == b"unharmed"


def test_mount_point_with_something_in_it(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    (host.mountpoint / "precious").write_bytes(b"x")
    refused(host, ExitCode.BUSY, "not empty")
    host.mount("--nonempty")
    assert os.listdir(host.mountpoint) == []
    host.umount()
    assert (host.mountpoint / "precious").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WORKSPACE_CONVERSATION_ID", "../other"),
        ("WORKSPACE_CONVERSATION_ID", "a/b"),
        ("WORKSPACE_USER_ID", ".."),
        ("WORKSPACE_USER_ID", ""),
        ("WORKSPACE_PREFIX", "/absolute"),
        ("WORKSPACE_STORAGE_TYPE", "ftp"),
        ("WORKSPACE_MAX_SIZE_MB", "much"),
    ],
)
def test_bad_settings(
    variable: str, value: str, local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    host.settings[variable] = value
    refused(host, ExitCode.BAD_SETTINGS, variable)
    assert local_bucket.listing() == []


def test_nothing_is_mounted(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    for command in ("umount", "sync", "status", "ls"):
        done = host.s3ws(command, host.mountpoint, ok=ExitCode.NOT_MOUNTED)
        assert str(host.mountpoint) in done.stderr
    host.s3ws("frobnicate", ok=ExitCode.USAGE)


# --- stores that can't be used ---------------------------------------------------------------


def test_local_store_in_an_impossible_place(tmp_path: Path, new_host: HostMaker) -> None:
    (tmp_path / "a file").write_bytes(b"")
    host = new_host(LocalBucket(tmp_path / "a file" / "store"))
    refused(host, ExitCode.STORE, "a file")


@pytest.mark.s3
def test_unreachable_store(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    host = new_host(s3_bucket)
    (port,) = free_ports(1)
    host.settings["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{port}"
    refused(host, ExitCode.STORE, str(port))


@pytest.mark.s3
def test_missing_bucket(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    host = new_host(s3_bucket)
    host.settings["WORKSPACE_BUCKET"] = "no-such-bucket"
    refused(host, ExitCode.STORE, "no-such-bucket")


@pytest.mark.s3
def test_wrong_key(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    host = new_host(s3_bucket)
    host.settings["AWS_SECRET_ACCESS_KEY"] = "not-the-secret-key"
    text = refused(host, ExitCode.STORE)
    assert "not-the-secret-key" not in text


@pytest.mark.s3
def test_unreachable_store_over_a_cache_with_unsaved_changes(
    s3_bucket: S3Bucket, new_host: HostMaker
) -> None:
    host = new_host(s3_bucket)
    host.mount()
    (host.mountpoint / "file").write_bytes(b"unsaved")
    host.kill()
    endpoint = host.settings["AWS_ENDPOINT_URL_S3"]
    (port,) = free_ports(1)
    host.settings["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{port}"
    done = host.s3ws("mount", host.mountpoint, ok=None)
    assert done.returncode in (ExitCode.OK, ExitCode.STORE), done.stderr
    if done.returncode == ExitCode.OK:
        assert (host.mountpoint / "file").read_bytes() == b"unsaved"
        host.kill()
    host.settings["AWS_ENDPOINT_URL_S3"] = endpoint
    host.mount()
    assert (host.mountpoint / "file").read_bytes() == b"unsaved"
    host.umount()
    assert s3_bucket.get(host.prefix + "files/file").body == b"unsaved"
