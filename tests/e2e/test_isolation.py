"""Nothing but the workspace's own prefix is touched; conversations do not see each other."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support import trees
from tests.support.buckets import Bucket, LocalBucket, S3Bucket
from tests.support.host import Host, HostMaker
from tests.support.recorder import Recorder, recording

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

CONVERSATION = "conv-1"


def plant_neighbours(bucket: Bucket, user: str) -> dict[str, bytes]:
    """Objects all around the workspace; returns them."""
    base = f"conversations/{user}"
    keys = [
        f"{base}/{CONVERSATION}/events/0.json",
        f"{base}/{CONVERSATION}/events/1/deep/event.json",
        f"{base}/{CONVERSATION}/metadata.json",
        f"{base}/{CONVERSATION}/workspace.json",
        f"{base}/{CONVERSATION}/workspace-2/files/x",
        f"{base}/{CONVERSATION}x/workspace/files/x",
        f"{base}/other/workspace/files/x",
        f"{base}/other/workspace/journal/seg/{1:016x}",
        f"other-{user}/journal/seg/{1:016x}",
    ]
    for key in keys:
        bucket.put(key, f"sentinel {key}".encode())
    return {key: bucket.get(key).body for key in keys}


def a_whole_life(make: HostMaker, bucket: Bucket) -> Host:
    """Mount, work, sync, kill, remount, delete, unmount, restore elsewhere, unmount."""
    host = make(bucket, "one", conversation=CONVERSATION)
    host.mount()
    trees.build_source_tree(host.mountpoint / "src", files=40)
    # Names that would lead out of files/ if they were taken for paths.
    for name in (b"..%2F..%2Foutside", b"%2e%2e", b"..\\up"):
        Path(os.fsdecode(os.fsencode(host.mountpoint) + b"/" + name)).write_bytes(name)
    host.sync()
    (host.mountpoint / "src").rename(host.mountpoint / "renamed")
    host.kill()
    host.mount()
    for path in sorted((host.mountpoint / "renamed").rglob("*.py"))[:10]:
        path.unlink()
    host.umount()
    other = make(bucket, "two", conversation=CONVERSATION)
    other.mount()
    assert len(list(other.mountpoint.rglob("*.py"))) == 30
    other.s3ws("ls", "-R", other.mountpoint)
    other.umount()
    return host


def test_neighbours_are_untouched(bucket: Bucket, new_host: HostMaker, user: str) -> None:
    planted = plant_neighbours(bucket, user)
    others = set(bucket.listing())
    host = a_whole_life(new_host, bucket)
    assert {key: bucket.get(key).body for key in planted} == planted
    made = set(bucket.listing()) - others
    assert made
    assert [key for key in sorted(made) if not key.startswith(host.prefix)] == []
    kinds = {key[len(host.prefix) :].split("/")[0] for key in made}
    assert kinds == {"files", "journal"}


def test_local_neighbours_keep_inode_and_times(
    local_bucket: LocalBucket, new_host: HostMaker, user: str
) -> None:
    paths = [local_bucket.root / key for key in plant_neighbours(local_bucket, user)]
    before = [(path.stat().st_ino, path.stat().st_ctime_ns) for path in paths]
    a_whole_life(new_host, local_bucket)
    assert [(path.stat().st_ino, path.stat().st_ctime_ns) for path in paths] == before


@pytest.fixture
def recorder(s3_bucket: S3Bucket) -> Iterator[Recorder]:
    with recording(s3_bucket.server.endpoint_url) as one:
        yield one


# On a connection that is used again, it follows the last byte of the body before it.
REQUEST_LINE = re.compile(rb"(?:GET|PUT|POST|HEAD|DELETE) /\S* HTTP/1\.1(?=\r\n)")


@pytest.mark.s3
def test_no_request_names_anything_else(
    recorder: Recorder, s3_bucket: S3Bucket, new_host: HostMaker, user: str
) -> None:
    """Not even a listing: every key and prefix in all requests is below the workspace prefix."""
    plant_neighbours(s3_bucket, user)

    def through_the_recorder(bucket: Bucket, name: str, **options: str) -> Host:
        host = new_host(bucket, name, **options)
        host.settings["AWS_ENDPOINT_URL_S3"] = recorder.url
        return host

    host = a_whole_life(through_the_recorder, s3_bucket)
    sent = recorder.sent()
    assert host.prefix.encode() in sent
    for word in (b"events", b"metadata.json", b"workspace-2", CONVERSATION.encode() + b"x"):
        assert word not in sent, sent[max(0, sent.find(word) - 300) :][:600]
    quoted = host.prefix.replace("/", "%2F").encode()
    bucket = s3_bucket.server.bucket.encode()
    lines = REQUEST_LINE.findall(sent)
    assert lines
    for line in lines:
        assert host.prefix.encode() in line or quoted in line or _names_no_key(line, bucket)


def _names_no_key(line: bytes, bucket: bytes) -> bool:
    """A batch deletion, whose keys are in its body, or a request about the bucket itself."""
    method, target = line.split(b" ")[:2]
    path, _, query = target.partition(b"?")
    if path.rstrip(b"/") != b"/" + bucket:
        return False
    return (method == b"POST" and query.startswith(b"delete")) or method == b"HEAD"


def test_two_conversations_on_one_host(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    one = new_host(local_bucket, "one", conversation="conv-1")
    two = new_host(local_bucket, "two", conversation="conv-2")
    two.cache, two.runtime = one.cache, one.runtime
    two.settings |= {
        "WORKSPACE_CACHE_DIR": str(one.cache),
        "WORKSPACE_RUNTIME_DIR": str(one.runtime),
    }
    one.mount()
    two.mount()
    (one.mountpoint / "same name").write_bytes(b"one")
    (two.mountpoint / "same name").write_bytes(b"two")
    (one.mountpoint / "only in one").write_bytes(b"")
    assert os.listdir(two.mountpoint) == ["same name"]
    assert len(one.json("status")) == 2
    one.kill()
    assert (two.mountpoint / "same name").read_bytes() == b"two"
    two.umount()
    one.mount()
    one.umount()
    assert local_bucket.get(one.prefix + "files/same name").body == b"one"
    assert local_bucket.get(two.prefix + "files/same name").body == b"two"
    assert len(local_bucket.listing(two.prefix + "files/")) == 1


def test_a_uuid_is_the_same_with_and_without_dashes(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    conversation = uuid.UUID("0B9D2D8E-6C1C-4C58-9B4C-2D4C37D0A1AA")
    first = new_host(local_bucket, "first", conversation=str(conversation).upper())
    first.mount()
    (first.mountpoint / "file").write_bytes(b"x")
    first.umount()
    second = new_host(local_bucket, "second", conversation=conversation.hex)
    second.mount()
    assert (second.mountpoint / "file").read_bytes() == b"x"
    assert second.status()["workspace"]["conversation_id"] == conversation.hex
    second.umount()


def test_ids_that_lead_elsewhere_are_refused(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket)
    for value in ("..", "../x", "a/../../b", "a\\b", ".", "-x", "a b", "a\nb", "é", "x" * 200):
        host.settings["WORKSPACE_CONVERSATION_ID"] = value
        host.s3ws("mount", host.mountpoint, ok=ExitCode.BAD_SETTINGS)
    assert local_bucket.listing() == []
