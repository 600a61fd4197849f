"""Workloads that pass every failpoint: a workspace's first host, and its second.

Called by the tests of crash.
"""

from __future__ import annotations

import random
from typing import Final

from s3ws_fs.core import failpoints
from tests.crash.rig import DROP, FINAL, HYDRATE, MARK, REWIND, SNAPSHOT, SYNC, UNDO, Step
from tests.support.files_model import Op

WITH_A_KERNEL: Final = (failpoints.ANSWER_BEFORE,)
"""Points that only a real mount passes: tests/crash/daemons.py, tests/e2e/test_holder_once.py."""

OF_BACKUPS: Final = (
    failpoints.SPOOL_BEFORE,
    failpoints.SPOOL_AFTER,
    failpoints.ARCHIVE_WRITTEN,
    failpoints.KEEP_PUT_BEFORE,
    failpoints.KEEP_PUT_AFTER,
    failpoints.BACKUP_NOTED,
    failpoints.KEEP_DROP_BEFORE,
    failpoints.KEEP_DROP_AFTER,
)
"""Passed by backups alone: tests/crash/test_backup_points.py."""

OF_DELETIONS: Final = (
    failpoints.DELETE_MARKED,
    failpoints.DELETE_BEGUN,
    failpoints.DELETE_BATCH,
    failpoints.DELETE_EMPTIED,
    failpoints.DELETE_LEASE,
)
"""Passed when a workspace is deleted: tests/crash/test_delete_points.py."""

OF_FORKS: Final = (
    failpoints.FORK_BEGUN,
    failpoints.FORK_COPIED,
    failpoints.FORK_SEALED,
    failpoints.FORK_MADE,
)
"""Passed when a workspace is forked: tests/crash/test_fork_points.py."""

OF_GIT: Final = (
    failpoints.BUNDLE_MADE,
    failpoints.KEEP_PUT_BEFORE,
    failpoints.KEEP_PUT_AFTER,
    failpoints.BUNDLE_NOTED,
)
"""Passed by bundles of git repositories: tests/crash/test_git_points.py."""

OF_LOG: Final = (
    failpoints.BATCH_BEFORE,
    failpoints.BATCH_AFTER,
    failpoints.LOG_FLUSHING,
    failpoints.LOG_FLUSHED,
    failpoints.REPLAY_BEFORE,
    failpoints.REPLAY_AFTER,
)
"""Passed with a redo log: tests/crash/test_log_points.py, tests/crash/daemons.py."""

OF_OTHERS: Final = (
    failpoints.IMPORT_FILE,
    failpoints.IMPORT_AFTER,
    failpoints.OUTSIDE_PLACED,
    *OF_LOG,
    *OF_BACKUPS,
    *OF_DELETIONS,
    *OF_FORKS,
    *OF_GIT,
)
"""Passed only when somebody else writes to the bucket (tests/crash/test_outside_points.py), by
what stands beside the journal, and by other commands."""


def write(path: str, size: int, at: int = 0) -> Op:
    """Bytes that are the same each time, and differ from those of any other write."""
    return Op("write", path, at=at, data=random.Random(f"{path} {size} {at}").randbytes(size))


FIRST: Final[tuple[Step, ...]] = (
    Op("mkdir", "d"),
    Op("create", "d/a"),
    write("d/a", 3000),
    Op("create", "big"),
    write("big", 90_000),
    SYNC,
    Op("create", "b"),
    write("b", 10),
    Op("fsync", "b"),
    Op("link", "b", "d/l"),
    Op("setxattr", "d/a", data=b"v"),
    Op("symlink", "s", data=b"d/a"),
    Op("rename", "d", "e"),
    write("big", 500, 40_000),
    f"{SNAPSHOT}one",
    SYNC,
    Op("truncate", "big", at=33_000),
    Op("unlink", "b"),
    Op("mkdir", "x"),
    Op("append", "e/a", data=b"more"),
    f"{MARK}turn",
    Op("append", "e/a", data=b"and more"),
    f"{REWIND}one",
    UNDO,
    f"{SNAPSHOT}two",
    SYNC,
    Op("rmdir", "x"),
    Op("unlink", "big"),
    Op("create", "x"),
    write("x", 70_000),
    Op("rename", "x", "big2"),
    SYNC,
    f"{DROP}one",
    Op("unlink", "e/a"),
    Op("create", "e/z"),
    Op("fsync", "e"),
    Op("setxattr", "e/z", data=b"w"),
    FINAL,
)
"""On a fresh workspace."""

SECOND: Final[tuple[Step, ...]] = (
    Op("append", "e/l", data=b"on another host"),
    Op("rename", "e", "f"),
    HYDRATE,
    Op("create", "n"),
    write("n", 45_000),
    write("big2", 100, 30_000),
    SYNC,
    Op("rename", "f", "g"),
    Op("unlink", "s"),
    Op("rename", "n", "big2"),
    Op("fsync", "big2"),
    FINAL,
)
"""On what FIRST left in the bucket, from a fresh cache."""
