"""What others do to the bucket, seen through a real mount: kernel caches, status, the command."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import trees
from tests.support.buckets import Bucket, S3Bucket, mirror_differences
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

IMPORTED_FILES = int(os.environ.get("S3WS_TEST_IMPORT_FILES", "300"))
"""How many files the import by hand has; the figures of docs/outside.md are for 2,000."""


def in_step(bucket: Bucket, host: Host) -> None:
    found = mirror_differences(
        bucket, host.prefix, trees.manifest(host.mountpoint), host.unmirrored()
    )
    assert not found, "\n".join(found[:40])


def warm(top: Path) -> list[str]:
    """Have the kernel cache names, absences, attributes and pages."""
    for path in top.rglob("*"):
        if path.is_file():
            path.read_bytes()
    assert not (top / "new").exists()
    return sorted(os.listdir(top))


@pytest.mark.parametrize("policy", ["keep-both", "bucket-wins", "workspace-wins"])
def test_the_kernel_shows_it_at_once(bucket: Bucket, new_host: HostMaker, policy: str) -> None:
    host = new_host(bucket, settings=NEVER_BY_ITSELF | {"WORKSPACE_OUTSIDE_CHANGES": policy})
    host.mount()
    top = host.mountpoint
    (top / "dir").mkdir()
    (top / "f.txt").write_bytes(b"ours")
    (top / "dir" / "gone").write_bytes(b"ours")
    (top / "stays").write_bytes(b"ours")
    host.sync()
    names = warm(top)
    with (top / "f.txt").open("rb") as held:
        assert held.read() == b"ours"
        bucket.put(host.prefix + "files/f.txt", b"edited outside")
        bucket.put(host.prefix + "files/new/below", b"added outside")
        bucket.remove(host.prefix + "files/dir/gone")
        document = host.json("sync", top, "--outside")
        held.seek(0)
        assert held.read() == b"ours"
    assert document["outside"]["policy"] == policy
    found = sorted(os.listdir(top))
    if policy == "keep-both":
        (copy,) = set(found) - set(names) - {"new"}
        assert copy.startswith("f (outside 20") and copy.endswith("Z).txt")
        assert (top / copy).read_bytes() == b"edited outside"
    else:
        assert set(found) - set(names) <= {"new"}
    theirs = policy == "bucket-wins"
    assert (top / "f.txt").read_bytes() == (b"edited outside" if theirs else b"ours")
    assert (top / "dir" / "gone").exists() is not theirs
    if policy == "workspace-wins":
        assert not (top / "new").exists()
    else:
        assert (top / "new" / "below").read_bytes() == b"added outside"
        in_step(bucket, host)
    text = host.s3ws("status", top).stdout
    assert "f.txt: changed outside" in text
    assert ("left alone in the bucket" in text) is (policy == "workspace-wins")
    host.umount()


def test_found_at_the_mount_in_the_background(bucket: Bucket, new_host: HostMaker) -> None:
    host = new_host(bucket, settings=QUICK)
    host.mount()
    (host.mountpoint / "f").write_bytes(b"ours")
    host.umount()
    bucket.put(host.prefix + "files/f", b"edited while nothing was mounted")
    host.mount()
    deadline = time.monotonic() + 60
    while len(names := os.listdir(host.mountpoint)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (copy,) = set(names) - {"f"}
    assert (host.mountpoint / copy).read_bytes() == b"edited while nothing was mounted"
    host.sync()
    in_step(bucket, host)
    done = host.s3ws("check", host.mountpoint, "--bucket", "--json")
    assert json.loads(done.stdout)["findings"] == []
    host.umount()


def test_a_prefix_filled_by_a_plain_client(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    """Uploaded by boto3 as any program would; the times are printed."""
    host = new_host(s3_bucket, settings=NEVER_BY_ITSELF)
    client, name = s3_bucket.server.client(), s3_bucket.server.bucket
    want = {
        f"d{number % 20}/sub{number % 7}/file {number}.txt": b"%d\n" % number * (number % 400)
        for number in range(IMPORTED_FILES)
    }
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(client.put_object, Bucket=name, Key=f"{host.prefix}files/{path}", Body=data)
            for path, data in want.items()
        ]
        for job in jobs:
            job.result()
    client.put_object(Bucket=name, Key=f"{host.prefix}files/empty/", Body=b"")
    filled = time.monotonic()
    host.mount()
    mounted = time.monotonic()
    top = host.mountpoint
    found = {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}
    assert found == want
    assert (top / "empty").is_dir()
    host.sync()
    synced = time.monotonic()
    requests = host.now()["requests"]
    print(
        f"{len(want)} files: filled in {filled - started:.1f} s, mounted in "
        f"{mounted - filled:.1f} s, read and saved {synced - mounted:.1f} s later; {requests}"
    )
    # The probe's, workspace.json, the segment with its blobs, the note: no object is put again.
    assert requests["put"] <= 16
    assert len(want) <= requests["copy"] <= len(want) + 4
    (top / "d1" / "mine").write_bytes(b"and it goes on")
    host.umount()
    other = new_host(s3_bucket, "other", settings=NEVER_BY_ITSELF)
    other.mount()
    assert (other.mountpoint / "d1" / "mine").read_bytes() == b"and it goes on"
    assert len(list(other.mountpoint.rglob("*.txt"))) == len(want)
    # The marker is not ours, and stays.
    client.delete_object(Bucket=name, Key=f"{host.prefix}files/empty/")
    in_step(s3_bucket, other)
    other.umount()
