"""The daemon is killed in the midst of a restore: the tree is as it was, or as it was then.

With a holder programs only wait: what the kernel had cached is forgotten by the next daemon. When
all are killed then, the next mount shows the same, and so does another host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core import failpoints
from tests.support import trees
from tests.support.armed import Trigger
from tests.support.buckets import LocalBucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.mounting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

POINTS = (failpoints.REWIND_SNAPPED, failpoints.REWIND_BEFORE, failpoints.REWIND_AFTER)
WAIT_S = 60


@pytest.fixture
def host(local_bucket: LocalBucket, new_host: HostMaker) -> Iterator[Host]:
    yield new_host(local_bucket, settings=NEVER_BY_ITSELF)


def armed(host: Host) -> Trigger:
    marks = host.base / "marks"
    marks.mkdir()
    trigger = Trigger(str(marks))
    host.settings |= trigger.env()
    return trigger


def prepare(top: Path, host: Host) -> tuple[trees.Manifest, trees.Manifest]:
    """Two states, and all names of them in the kernel's cache."""
    trees.build_source_tree(top / "src", files=40)
    (top / "gone").write_text("then")
    host.s3ws("snapshot", "--name", "then", top)
    then = trees.manifest(top)
    (top / "gone").unlink()
    (top / "src" / "package1").rename(top / "moved")
    (top / "untracked" / "dir").mkdir(parents=True)
    (top / "untracked" / "dir" / "file").write_text("untracked")
    next(top.rglob("*.py")).write_text("now")
    assert not (top / "gone").exists()
    return then, trees.manifest(top)


@pytest.mark.parametrize("point", POINTS)
def test_with_a_holder(host: Host, point: str) -> None:
    trigger = armed(host)
    host.mount()
    top = host.mountpoint
    then, now = prepare(top, host)
    changed = next(path for path in top.rglob("*.py") if path.read_text() == "now")
    with changed.open("r+") as file:
        trigger.set(point)
        pid = host.pid()
        host.s3ws("restore", "then", top, "--yes", ok=None)
        host.wait_for_successor(pid)
        assert not trigger.is_set(point)
        if point == failpoints.REWIND_AFTER:
            # Told soon after it serves again; until then programs may see what they saw.
            wait_until(lambda: (top / "gone").exists(), timeout_s=WAIT_S, what=host.log_tail())
            wait_until(
                lambda: not trees.differences(then, trees.manifest(top)),
                timeout_s=WAIT_S,
                what="the kernel has forgotten the rest",
            )
            assert os.fstat(file.fileno()).st_nlink == 0
        else:
            assert not trees.differences(now, trees.manifest(top))
        assert file.read() == "now"
    if point == failpoints.REWIND_AFTER:
        host.s3ws("undo", top, "--yes")
        assert not trees.differences(now, trees.manifest(top))
    host.s3ws("restore", "then", top, "--yes")
    assert not trees.differences(then, trees.manifest(top))
    host.sync()
    host.s3ws("check", top, "--bucket")
    host.umount()


@pytest.mark.parametrize("point", POINTS[1:])
def test_with_everything_killed(host: Host, point: str, tmp_path: Path) -> None:
    trigger = armed(host)
    host.mount()
    top = host.mountpoint
    then, now = prepare(top, host)
    trigger.set(point)
    host.s3ws("restore", "then", top, "--yes", ok=None)
    assert not trigger.is_set(point)
    host.end()
    host.mount()
    expected = then if point == failpoints.REWIND_AFTER else now
    assert not trees.differences(expected, trees.manifest(top))
    host.umount()
    other = host.elsewhere(tmp_path / "elsewhere")
    other.mount()
    try:
        assert not trees.differences(expected, trees.manifest(other.mountpoint))
        other.s3ws("check", other.mountpoint, "--bucket")
        other.umount()
    finally:
        other.end()
