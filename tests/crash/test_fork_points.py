"""A fork that is SIGKILLed at each of its points: what it left is a whole workspace or none.

The process is forked and killed by the kernel over a directory as the bucket. Afterwards nobody
takes what it left for a workspace unless it is whole, the source is as it was, byte for byte, and
the same command, when the lease has lapsed, makes the fork whole.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from s3ws_fs.cache.cache import Identity, open_cache
from s3ws_fs.core import failpoints, layout
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.forks import Origin
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.local import LocalStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling, leasing, points
from s3ws_fs.transfer.audit import audit
from s3ws_fs.transfer.forking import FORK_LEASE_S, Forker, Who
from tests.crash.rig import fast_directory
from tests.crash.workloads import OF_FORKS
from tests.support.armed import KILL, Plan, killed_in_a_fork
from tests.support.history import WORKSPACE, Life, tree_of
from tests.support.inline import at_once
from tests.support.pair import has_user_xattrs

SOURCE, TARGET = "conversations/u/src/workspace/", "conversations/u/dst/workspace/"
QUOTA_BYTES = 64 << 20
S = 1_000_000_000
COPIES = 3
"""Each of them passes the point of copying; the one in the middle is the last but one."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[Path, Life]]:
    """A source with several objects, sealed."""
    with fast_directory("s3ws-fork-") as directory:
        base = Path(directory)
        if not has_user_xattrs(base):
            pytest.skip("no user xattrs in /dev/shm: the storage type local can't use it")
        (base / "bucket").mkdir()
        store = ScopedStore(LocalStore(str(base / "bucket")), SOURCE)
        identity = Identity(prefix=SOURCE, store="local:")
        cache = open_cache(base / "ws", identity, quota_bytes=QUOTA_BYTES, now_ns=lambda: S)
        fs = FileSystem(cache, quota_bytes=QUOTA_BYTES, quota_inodes=1000, on_change=lambda: None)
        fs.make_root(uid=0, gid=0, mode=0o755)
        life = Life(cache, fs, store, base)
        life.begin()
        rng = random.Random(2)
        with ThreadPoolExecutor(2) as pool:
            for number in range(COPIES):
                life.write(b"f%d" % number, rng.randbytes(50_000))
                frozen = life.seal(pool)
                assert frozen is not None
                frozen.close()
        cache.close()
        yield base / "bucket", life


def make(bucket: Path, life: Life) -> None:
    """The fork, in one thread."""
    inner = LocalStore(str(bucket))
    source, target = ScopedStore(inner, SOURCE, read_only=True), ScopedStore(inner, TARGET)
    forker = Forker(source, target, Who("host", os.getpid(), 7), pool=at_once)
    origin = Origin(SOURCE, WORKSPACE, life.number, life.generations[life.number])
    tables = points.load(source, life.number, pool=at_once())
    forker.run(origin, tables, bucket.parent, lambda _: None)


def make_and_be_killed(bucket: Path, life: Life, plan: Plan) -> int:
    """The same in a process of its own; returns its exit status."""
    return killed_in_a_fork(plan, lambda: make(bucket, life))


def standing(bucket: Path, prefix: str) -> dict[str, bytes]:
    store = ScopedStore(LocalStore(str(bucket)), prefix)
    return {entry.key: store.get(entry.key).data for entry in store.list()}


@pytest.mark.parametrize("point", OF_FORKS)
def test_killed_at(bucket: tuple[Path, Life], point: str, tmp_path: Path) -> None:
    place, life = bucket
    target = ScopedStore(LocalStore(str(place)), TARGET)
    target.delete_many([entry.key for entry in target.list()])
    before = standing(place, SOURCE)
    nth = COPIES - 1 if point == failpoints.FORK_COPIED else 1
    plan = Plan(point, KILL, str(tmp_path), nth=nth)
    status = make_and_be_killed(place, life, plan)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    assert plan.struck
    assert standing(place, SOURCE) == before
    wanted = life.points[life.number]
    if point == failpoints.FORK_MADE:
        assert tree_of(points.load(target, 1), target) == wanted
        assert journaling.survey(target).newest == 1
    else:
        with pytest.raises(UserError, match="was not finished"):
            journaling.survey(target)
        with pytest.raises(UserError, match="no workspace"):
            points.survey_points(target)
    # Its lease stands: nobody gets between.
    with pytest.raises(UserError) as error:
        make(place, life)
    assert error.value.exit_code is ExitCode.HELD
    now_ns = target.head(layout.LEASE_KEY).modified_ns + int((FORK_LEASE_S + 3) * S)
    with mock.patch.object(leasing, "_now_ns", lambda *_: now_ns):
        make(place, life)
    assert standing(place, SOURCE) == before
    assert tree_of(points.load(target, 1), target) == wanted
    with ThreadPoolExecutor(2) as pool:
        report = audit(target, pool, lambda _: None).report
    assert not report.has_damage, report.findings
    assert {each.code for each in report.findings} == {"mirror-missing"}
    assert len(list(target.list(layout.BLOB_PREFIX))) == COPIES
