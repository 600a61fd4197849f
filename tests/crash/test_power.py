"""Power loss: whatever a disk holds afterwards, what was fsynced is there and the rest consistent.

Long forms: `python -m tests.crash.power` (see there).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3ws_fs.core.errors import ExitCode
from tests.crash import power_disk, power_mount
from tests.crash.power import Cuts, WrongImageError, another_boot
from tests.support import trees
from tests.support.buckets import LocalBucket
from tests.support.crash_disk import crash_disk
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host, HostMaker
from tests.support.mounting import REPOSITORY

IMAGES = 25


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32))
def test_any_image_is_its_sync_point_or_kept_aside(seed: int) -> None:
    with tempfile.TemporaryDirectory() as base:
        cuts = Cuts(Path(base), seed)
        cuts.run(IMAGES)
        assert cuts.counts["images"] == IMAGES


_CONTROL = """
import contextlib, sys
from pathlib import Path
from unittest import mock
from s3ws_fs.cache import recovery
from tests.crash import power
from tests.crash.power import Cuts, WrongImageError, without_early_pins, without_put_back
off = getattr(power, sys.argv[2])
# Without the walk too, which would see most of the damage and put the cache aside.
walk = mock.patch.object(recovery, "walk", lambda _: [])
with off(), walk if sys.argv[3] == "blind" else contextlib.nullcontext():
    try:
        Cuts(Path(sys.argv[1]), int(sys.argv[4])).run(100)
    except WrongImageError as exc:
        sys.exit(str(exc))
"""


@pytest.mark.parametrize(
    "off", ["without_put_back", "without_early_pins", "without_breaks", "without_log"]
)
@pytest.mark.parametrize("walk", ["walked", "blind"])
def test_negative_control(tmp_path: Path, off: str, walk: str) -> None:
    """Meta pages not put back, pages used again too early, the log's breaks not noted, or the log
    not read: the same images must be wrong.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CONTROL, tmp_path, off, walk, "1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(done.returncode, done.stderr[-600:])
    # A corrupt database may end the process by a signal: that is a failure just as well.
    assert done.returncode != 0, "100 images without the safeguard, and none was wrong"


def _seed() -> int:
    seed = 1 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return seed


@pytest.mark.e2e
@pytest.mark.fuse
def test_images_of_a_busy_mount(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    counts: Counter[str] = Counter()
    host = new_host(local_bucket, settings={**QUICK, **NEVER_BY_ITSELF})
    power_mount.run(tmp_path, host, _seed(), 12, counts)
    print(dict(counts))
    assert counts["images"] == 12
    assert counts["remounts"] == 1


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.slow
def test_programs_on_a_disk_that_loses_what_was_not_flushed(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    counts: Counter[str] = Counter()
    with crash_disk(tmp_path) as disk:
        host = new_host(local_bucket)
        _cache_on(disk.place, host)
        power_disk.one_cut(disk, host, random.Random(_seed()), counts)
        print(dict(counts))


_FSYNC_LIES = """
import sys
if "s3ws_fs.daemon" in sys.orig_argv:
    from s3ws_fs.fuse.operations import Operations
    honest = Operations.__init__
    async def at_once():
        return None
    def lying(self, *args, **kwargs):
        honest(self, *args, **{**kwargs, "wait_durable": at_once})
    Operations.__init__ = lying
"""


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.slow
def test_negative_control_an_fsync_that_does_not_wait(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """On the same disk a daemon that answers fsync at once loses what programs were told."""
    (tmp_path / "lies").mkdir()
    (tmp_path / "lies" / "sitecustomize.py").write_text(_FSYNC_LIES)
    with crash_disk(tmp_path) as disk:
        host = new_host(local_bucket, settings={**QUICK, **NEVER_BY_ITSELF})
        _cache_on(disk.place, host)
        host.settings["PYTHONPATH"] = f"{tmp_path / 'lies'}:{REPOSITORY}"
        with pytest.raises(WrongImageError) as lost:
            power_disk.one_cut(disk, host, random.Random(_seed()), Counter())
        print(lost.value)


def _cache_on(place: Path, host: Host) -> None:
    host.cache = place / "cache"
    host.settings["WORKSPACE_CACHE_DIR"] = str(host.cache)


def _went_down(host: Host) -> Path:
    """A mount with something sealed and something not, whose machine lost power."""
    host.mount()
    trees.build_source_tree(host.mountpoint / "sealed", files=20)
    host.sync()
    (host.mountpoint / "unsealed").write_bytes(b"only in the cache")
    host.kill()
    cache = host.workspace_cache()
    another_boot(cache)
    return cache


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.parametrize("harm", ["missing", "database cut off"])
def test_without_a_sync_point_it_is_rebuilt_and_said(
    local_bucket: LocalBucket, new_host: HostMaker, harm: str
) -> None:
    host = new_host(local_bucket)
    cache = _went_down(host)
    side, data = cache / "sync.side", cache / "data" / "data.mdb"
    if harm == "missing":
        side.unlink()
    else:
        # A disk that lied: the sync point is whole, the pages it names are not.
        data.write_bytes(data.read_bytes()[: 6 * 4096])
    held = data.read_bytes()
    status = host.s3ws("status", host.mountpoint, ok=ExitCode.NOT_MOUNTED)
    assert "unknown" in status.stdout, "what a torn cache says is no witness"
    refused = host.s3ws("ls", host.mountpoint, ok=ExitCode.BAD_CACHE)
    assert "went down" in refused.stderr

    # The new cache is another writer than the old one, whose lease may not have lapsed yet.
    mounted = host.s3ws("mount", "--take-over", host.mountpoint)
    (aside,) = cache.glob("quarantine-*")
    kept = (aside / "data" / "data.mdb").read_bytes()
    assert kept[8192:] == held[8192:] if harm == "database cut off" else kept == held
    for said in (mounted.stderr, host.s3ws("status", host.mountpoint).stdout):
        assert "rebuilt from the bucket" in said
        assert str(aside) in said
    assert host.now()["cache"]["opened"] == "quarantined"
    assert not (host.mountpoint / "unsealed").exists()
    assert len(list((host.mountpoint / "sealed").rglob("*.py"))) == 20
    host.s3ws("check", host.mountpoint)
    host.umount()

    # Said as long as it is kept.
    again = host.s3ws("mount", host.mountpoint)
    assert "warning" not in again.stderr
    assert str(aside) in host.s3ws("status", host.mountpoint).stdout
    host.umount()
    shutil.rmtree(aside)


@pytest.mark.e2e
@pytest.mark.fuse
def test_going_back_to_a_sync_point_is_said(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    _went_down(host)
    mounted = host.s3ws("mount", host.mountpoint)
    assert "newest sync point" in mounted.stderr
    assert "newest sync point" in host.s3ws("status", host.mountpoint).stdout
    host.umount()
