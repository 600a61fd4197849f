"""The snapshot child's job "git": bundles of what changed in the repositories of a workspace.

Invariants
1. Below the cache's directory it writes in the job's directory and in the state directory alone.
2. The bucket is only read: for cold bytes, and to see which whole bundle stands there.

Called by snapshot.__main__.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from s3ws_fs.cache.reader import open_reader
from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.snapshot.git import getting
from s3ws_fs.snapshot.git.cached import CachedTree, NotCopiedError, take
from s3ws_fs.snapshot.git.making import Made, make_bundles
from s3ws_fs.snapshot.git.memory import Memory
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore

Say = Callable[[dict[str, Any]], None]


def run(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Do it; `say` gets {"made": …} for each repository. Raises S3wsError, OSError."""
    say({"phase": "copying"})
    with contextlib.ExitStack() as stack:
        look = _Look(job, stack)
        count = 0
        try:
            count = look.bundles(say, whole=False)
        except NotCopiedError:
            # A file that was ignored is not any more, or a copy of objects is gone.
            count = look.bundles(say, whole=True)
        return {"repositories": count, "generation": look.generation, "copies": look.copies}


class _Look:
    """The workspace once, or once more."""

    def __init__(self, job: dict[str, Any], stack: contextlib.ExitStack) -> None:
        self._job = job
        self._stack = stack
        self._store: ScopedStore | None = None
        self.generation = 0
        self.copies = 0

    def bundles(self, say: Say, *, whole: bool) -> int:
        """Make them; how many repositories there are."""
        job = self._job
        directory, state_dir = Path(job["directory"]), Path(job["state_dir"])
        self.copies += 1
        with open_reader(Path(job["cache_dir"])) as reader:
            held = take(
                reader,
                directory,
                self._open_store,
                Memory(state_dir),
                limit_bytes=job["limit_bytes"],
                whole=whole,
            )
        with held:
            self.generation = held.generation
            say({"phase": "bundling"})
            count = 0
            for made in self._make(CachedTree(held), state_dir, directory):
                count += 1
                say({"made": made.to_json()})
            return count

    def _make(self, tree: CachedTree, state_dir: Path, directory: Path) -> Iterator[Made]:
        return make_bundles(
            tree,
            state_dir,
            directory,
            mountpoint=self._job["mountpoint"].encode("utf-8", "surrogateescape"),
            base_in_bucket=self._base,
            prefix_bytes=len(self._job["prefix"].encode()),
        )

    def _open_store(self) -> ScopedStore:
        config = StoreConfig.from_json(self._job["store"])
        return open_store(config, self._job["prefix"], read_only=True)

    def _base(self, key: str) -> str | None:
        """Which whole bundle stands in the bucket; None when nobody can tell."""
        try:
            if self._store is None:
                self._store = self._stack.enter_context(contextlib.closing(self._open_store()))
            return getting.base_state(self._store, key)
        except S3wsError:
            return None
