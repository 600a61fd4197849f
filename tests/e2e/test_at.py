"""`s3ws mount --at`: a point in history as a mount, beside the one that writes."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support import trees
from tests.support.buckets import Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

only_local = pytest.mark.parametrize("bucket", ["local"], indirect=True)
"""What the kind of bucket has no part in."""


@pytest.fixture
def writer(bucket: Bucket, new_host: HostMaker) -> Host:
    """A mounted workspace that seals when it is asked to."""
    host = new_host(bucket, "writer", settings=NEVER_BY_ITSELF)
    host.mount()
    return host


@pytest.fixture
def looker(writer: Host, tmp_path: Path) -> Iterator[Host]:
    """Another host; not mounted."""
    host = writer.elsewhere(tmp_path / "looker")
    try:
        yield host
    finally:
        host.end()


def test_a_snapshot_is_shown_as_it_was(writer: Host, looker: Host) -> None:
    top = writer.mountpoint
    trees.build_rich_tree(top / "tree")
    writer.s3ws("snapshot", "--name", "before", top)
    wanted = trees.manifest(top)
    (top / "tree/late").write_text("late")
    for path in list((top / "tree").iterdir())[:5]:
        path.rename(path.with_name(path.name[:100] + ".moved"))
    writer.sync()
    document = looker.mount("--at", "before")
    assert re.search(r"-ro-1-[0-9a-f]{8}$", document["cache"]["path"])
    assert trees.manifest(looker.mountpoint) == wanted
    with pytest.raises(OSError) as error:
        (looker.mountpoint / "new").write_text("x")
    assert error.value.errno == errno.EROFS
    shown = looker.now()["point"]
    assert (shown["number"], shown["ref"]) == (1, "before")
    looker.umount()


@only_local
def test_two_points_and_the_writer_side_by_side_on_one_host(writer: Host, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (writer.mountpoint / "f").write_text("first")
    writer.sync()
    (writer.mountpoint / "f").write_text("second, not sealed yet")
    writer.s3ws("mount", one, "--at", "#1", "--read-only")
    writer.s3ws("mount", two, "--at", "head")
    try:
        (writer.mountpoint / "f").write_text("third")
        texts = [(at / "f").read_text() for at in (one, two, writer.mountpoint)]
        assert texts == ["first", "second, not sealed yet", "third"]
        # Which workspace it is can be told from any of them; head is that of the one that writes.
        said = writer.json("diff", "#1", "head", "-m", one)
        assert [change["name"] for change in said["changes"]] == ["f"]
        assert writer.s3ws("cat", "head:f", "-m", two).stdout == "third"
        # The daemon dies, and the mount goes on.
        pid = writer.json("status", one)["pid"]
        os.kill(pid, signal.SIGKILL)
        assert (one / "f").read_text() == "first"
        wait_until(lambda: writer.json("status", one)["pid"] != pid, timeout_s=60)
        assert writer.json("status", one)["point"]["number"] == 1
    finally:
        writer.s3ws("umount", one, two)
    # What nobody looks at any more keeps no cache, and no log.
    assert caches_of_points(writer) == []


@only_local
def test_a_cache_of_a_killed_mount_goes_with_the_next(writer: Host, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for text in ("first", "second", "third"):
        (writer.mountpoint / "f").write_text(text)
        writer.sync()
    writer.s3ws("mount", one, "--at", "#1")
    writer.s3ws("mount", two, "--at", "#2")
    (left,) = (path for path in caches_of_points(writer) if "-ro-1-" in path.name and path.is_dir())
    status = writer.json("status", one)
    for pid in (status["holder"]["pid"], status["pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{status['pid']}/fd").exists() or is_zombie(status["pid"]))
    three = tmp_path / "three"
    writer.s3ws("mount", three, "--at", "#3")
    try:
        assert not left.exists()
        # The one beside it, which lives, keeps its own.
        assert (two / "f").read_text() == "second"
        assert [path.name[-13:-9] for path in caches_of_points(writer) if path.is_dir()] == [
            "ro-2", "ro-3",
        ]  # fmt: skip
    finally:
        writer.s3ws("umount", two, three)
        writer.s3ws("umount", one, ok=None)
    assert caches_of_points(writer) == []


@only_local
def test_a_mount_that_never_came_to_be_leaves_no_cache(writer: Host, tmp_path: Path) -> None:
    (writer.mountpoint / "f").write_bytes(os.urandom(1 << 10))
    writer.sync()
    store = Path(writer.settings["WORKSPACE_STORAGE_PATH"])
    (segment,) = store.rglob("journal/seg/*1")
    raw = bytearray(segment.read_bytes())
    raw[-20] ^= 1
    segment.write_bytes(raw)
    done = writer.s3ws("mount", tmp_path / "one", "--at", "#1", ok=None)
    assert "journal/seg/" in done.stderr
    assert done.returncode == ExitCode.STORE
    assert caches_of_points(writer) == []


def caches_of_points(host: Host) -> list[Path]:
    """What stands in its cache directory for points: caches and logs."""
    return sorted(path for path in host.cache.iterdir() if "-ro-" in path.name)


def is_zombie(pid: int) -> bool:
    """Whether a process is over, and not buried."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"


@only_local
def test_what_is_no_point_is_not_mounted(writer: Host, tmp_path: Path) -> None:
    for words, code in (
        (("--at", "#1", "--no-read-only"), ExitCode.USAGE),
        (("--at", "#1", "--take-over"), ExitCode.USAGE),
        (("--at", "#99"), ExitCode.NO_SUCH_POINT),
    ):
        writer.s3ws("mount", tmp_path / "one", *words, ok=code)
