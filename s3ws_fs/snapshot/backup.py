"""One backup, in the snapshot child: the workspace at one instant as an archive and its index.

Invariants
1. Both files are in the job's directory, new, and whole when `run` returns; neither is sent here.
2. The store is opened, read-only, only when bytes are in the bucket alone.

Called by __main__ (the child).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from s3ws_fs.cache.reader import open_reader
from s3ws_fs.core import backups, failpoints
from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.policies import Policies, split_patterns
from s3ws_fs.snapshot import archive
from s3ws_fs.snapshot.tree import Tree, take
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.ahead import spool_room_bytes
from s3ws_fs.transfer.freeze import Readable
from s3ws_fs.transfer.spool import create

THREADS: Final = 2
"""Compressing: the main thread makes the tar meanwhile, and the mount needs a core too."""

ROOM_SHARE: Final = 2
"""So much of the room on the disk may be used: the archive and the mount need some, too."""

Say = Callable[[dict[str, Any]], None]


def run(
    job: dict[str, Any],
    say: Say,
    *,
    open_cache: Callable[[Path], Readable] = open_reader,
    open_bucket: Callable[..., ScopedStore] = open_store,
) -> dict[str, Any]:
    """Make the files of a backup. Raises S3wsError, OSError."""
    begun_s = time.monotonic()
    directory = Path(job["directory"])
    policies = Policies(
        local=split_patterns(job["local"]), backup_exclude=split_patterns(job["exclude"])
    )
    config = StoreConfig.from_json(job["store"])
    say({"phase": "copying"})
    tree = take(
        open_cache(Path(job["cache_dir"])),
        directory,
        lambda: open_bucket(config, job["prefix"], read_only=True),
        limit_bytes=min(job["limit_bytes"], spool_room_bytes(directory) // ROOM_SHARE),
        left_out=policies.is_left_out,
    )
    with tree:
        copied_s, held_bytes = time.monotonic(), _private_bytes()
        say({"phase": "copied", "copied_s": round(copied_s - begun_s, 3)})
        missing = tree.leave_cold() if job["offline"] else 0
        _fetch_cold(tree, config.max_parallel, say)
        written, index_bytes = _write(tree, directory, job, say)
    failpoints.hit(failpoints.ARCHIVE_WRITTEN)
    return {
        "archive_bytes": written.archive_bytes,
        "index_bytes": index_bytes,
        "entries": written.entries,
        "raw_bytes": written.raw_bytes,
        "generation": tree.generation,
        "skipped": len(written.skipped),
        "left_out": len(tree.left_out),
        "missing": missing,
        "copied_s": round(copied_s - begun_s, 3),
        "packed_s": round(time.monotonic() - begun_s, 3),
        "memory_bytes": max(held_bytes, _private_bytes()),
    }


def _private_bytes() -> int:
    """Memory of this process alone: the pages of the mapped cache are the kernel's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _fetch_cold(tree: Tree, parallel: int, say: Say) -> None:
    if not tree.cold_bytes:
        return
    with ThreadPoolExecutor(parallel, "cold") as pool:
        tree.bring(
            pool=pool,
            progress=lambda done, of: say({"phase": "fetching", "done": done, "total": of}),
        )


def _write(
    tree: Tree, directory: Path, job: dict[str, Any], say: Say
) -> tuple[archive.Written, int]:
    name = job["name"]
    head = {
        "name": name,
        "workspace": job["workspace"],
        "generation": tree.generation,
        "host": job["host"],
        "left_out": [os.fsdecode(path) for path in tree.left_out[: backups.LEFT_OUT_LISTED_MAX]],
        "left_out_total": len(tree.left_out),
    }
    with (
        ThreadPoolExecutor(THREADS, "gzip") as pool,
        create(directory / (name + backups.ARCHIVE_SUFFIX)) as packed,
        create(directory / (name + backups.INDEX_SUFFIX)) as index,
    ):
        written = archive.write(
            tree,
            head,
            packed,
            index,
            pool,
            lambda done, of: say({"phase": "packing", "done": done, "total": of}),
        )
        for file in (packed, index):
            file.flush()
            if job["offline"]:
                # It may have to stay here for long.
                os.fsync(file.fileno())
        return written, os.fstat(index.fileno()).st_size
