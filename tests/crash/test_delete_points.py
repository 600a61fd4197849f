"""A deletion that is SIGKILLed at each of its points: what it left is the whole workspace or none.

The process is forked and killed by the kernel over a directory as the bucket. Afterwards nobody
takes what it left for a workspace unless it is whole, what stands beside it is as it was, and the
same command, when the lease has lapsed, deletes the rest.
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
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.local import LocalStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling, leasing, points
from s3ws_fs.transfer.deleting import Deleter
from s3ws_fs.transfer.forking import FORK_LEASE_S, Who
from tests.crash.rig import fast_directory
from tests.crash.workloads import OF_DELETIONS
from tests.support.armed import KILL, Plan, killed_in_a_fork
from tests.support.history import Life, tree_of
from tests.support.inline import at_once
from tests.support.pair import has_user_xattrs

PREFIX, BESIDE = "conversations/u/c/workspace/", "conversations/u/c/events/1"
QUOTA_BYTES = 64 << 20
S = 1_000_000_000


@pytest.fixture
def life() -> Iterator[Life]:
    """A workspace in a directory, with what stands in other parts of its prefix, and beside it."""
    with fast_directory("s3ws-delete-") as directory:
        base = Path(directory)
        if not has_user_xattrs(base):
            pytest.skip("no user xattrs in /dev/shm: the storage type local can't use it")
        (base / "bucket").mkdir()
        inner = LocalStore(str(base / "bucket"))
        store = ScopedStore(inner, PREFIX)
        identity = Identity(prefix=PREFIX, store="local:")
        cache = open_cache(base / "ws", identity, quota_bytes=QUOTA_BYTES, now_ns=lambda: S)
        fs = FileSystem(cache, quota_bytes=QUOTA_BYTES, quota_inodes=1000, on_change=lambda: None)
        fs.make_root(uid=0, gid=0, mode=0o755)
        made = Life(cache, fs, store, base / "bucket")
        made.begin()
        rng = random.Random(2)
        with ThreadPoolExecutor(2) as pool:
            for number in range(3):
                made.write(b"f%d" % number, rng.randbytes(50_000))
                frozen = made.seal(pool)
                assert frozen is not None
                frozen.close()
        for key in ("files/f0", "compressed/x", "git/workspace.bundle"):
            store.put(key, b"x")
        inner.put(BESIDE, b"theirs")
        cache.close()
        yield made


def delete(life: Life) -> None:
    """The deletion, in one thread."""
    store = ScopedStore(LocalStore(str(life.directory)), PREFIX)
    Deleter(store, Who("host", os.getpid(), 7), pool=at_once).run(lambda _: None)


def delete_and_be_killed(life: Life, plan: Plan) -> int:
    """The same in a process of its own; returns its exit status."""
    return killed_in_a_fork(plan, lambda: delete(life))


@pytest.mark.parametrize("point", OF_DELETIONS)
def test_killed_at(life: Life, point: str, tmp_path: Path) -> None:
    store = ScopedStore(LocalStore(str(life.directory)), PREFIX)
    status = delete_and_be_killed(life, Plan(point, KILL, str(tmp_path)))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    left = {entry.key for entry in store.everything()}
    if point == failpoints.DELETE_MARKED:
        assert tree_of(points.load(store, life.number), store) == life.points[life.number]
        assert journaling.survey(store).newest == life.number
    elif point == failpoints.DELETE_LEASE:
        assert left == {layout.LEASE_KEY}
    else:
        with pytest.raises(UserError, match="being deleted"):
            journaling.survey(store)
        with pytest.raises(UserError, match="no workspace"):
            points.survey_points(store)
    # Its lease stands: nobody gets between.
    with pytest.raises(UserError) as error:
        delete(life)
    assert error.value.exit_code is ExitCode.HELD
    now_ns = store.head(layout.LEASE_KEY).modified_ns + int((FORK_LEASE_S + 3) * S)
    with mock.patch.object(leasing, "_now_ns", lambda *_: now_ns):
        delete(life)
    assert list(store.everything()) == []
    assert store._inner.get(BESIDE).data == b"theirs"
