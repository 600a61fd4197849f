"""Bundles as they stand in the bucket: which there are, and their bytes into files.

Invariants
1. Only keys below `git/` are read, and nothing is written to the bucket.
2. What is new since a whole bundle counts only over exactly that one: an older one beside a newer
   whole bundle is left alone.
3. A bundle that is replaced while it is read is read again, never mixed.

Called by cli, and by the snapshot child (`base_state`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s3ws_fs.core.errors import ConflictError, ExitCode, NotFoundError, UserError
from s3ws_fs.core.gitkeys import GIT_PREFIX, MORE_END, bundle_key, repository_of
from s3ws_fs.snapshot.git import bundle
from s3ws_fs.store.base import ObjectInfo
from s3ws_fs.store.scoped import ScopedStore

GET_BYTES_MAX: Final = 8 << 20
TRIES: Final = 5
"""A bundle that is replaced again and again while it is read is an error at last."""
LISTED_MAX: Final = 100_000

Report = Callable[[int, int], None]
"""Bytes that came, and of how many."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A repository in the bucket. `more_bytes`: what stands beside the whole bundle."""

    path: bytes
    key: str
    bundle_bytes: int
    more_bytes: int


def listed(store: ScopedStore) -> list[Stored]:
    """Every repository that has a bundle, by path. Raises StoreError, UserError."""
    sizes: dict[str, int] = {}
    for entry in store.list(GIT_PREFIX):
        sizes[entry.key] = entry.size_bytes
        if len(sizes) > LISTED_MAX:
            raise UserError(
                f"There are more than {LISTED_MAX} objects below {GIT_PREFIX}",
                exit_code=ExitCode.STORE,
            )
    found = []
    for key, size in sizes.items():
        path = repository_of(key)
        if path is not None:
            found.append(Stored(path, key, size, sizes.get(key + MORE_END, 0)))
    return sorted(found, key=lambda stored: stored.path)


def base_state(store: ScopedStore, key: str) -> str | None:
    """The state of the whole bundle at `key`; None when there is none of ours."""
    try:
        return bundle.first_state(store.get(key, 0, bundle.HEAD_PIECE_BYTES).data)
    except NotFoundError:
        return None


def download(
    store: ScopedStore, path: bytes, directory: Path, report: Report = lambda done, of: None
) -> list[Path]:
    """The files that make up a repository. Raises UserError, StoreError, FormatError, OSError."""
    key = bundle_key(path)
    for attempt in range(TRIES):
        try:
            return _download(store, key, directory, report)
        except ConflictError:
            if attempt == TRIES - 1:
                raise
        except NotFoundError as exc:
            raise UserError(
                f"There is no bundle of a repository at {path.decode(errors='replace')!a}.",
                remedy="`s3ws git list` shows those there are.",
                exit_code=ExitCode.USAGE,
            ) from exc
    raise AssertionError("unreachable: the last attempt returns or raises")


def _download(store: ScopedStore, key: str, directory: Path, report: Report) -> list[Path]:
    whole = store.head(key)
    try:
        more: ObjectInfo | None = store.head(key + MORE_END)
    except NotFoundError:
        more = None
    files = [directory / "whole.bundle"]
    total = whole.size_bytes + (0 if more is None else more.size_bytes)
    _get(store, whole, files[0], lambda done: report(done, total))
    if more is not None:
        added = directory / "more.bundle"
        _get(store, more, added, lambda done: report(whole.size_bytes + done, total))
        if _is_of(added, files[0]):
            files.append(added)
    return files


def _get(store: ScopedStore, info: ObjectInfo, place: Path, report: Callable[[int], None]) -> None:
    with place.open("wb") as file:
        done = 0
        while done < info.size_bytes:
            piece = store.get(info.key, done, GET_BYTES_MAX, if_match=info.etag).data
            file.write(piece)
            done += len(piece)
            report(done)


def _is_of(more: Path, whole: Path) -> bool:
    with more.open("rb") as one, whole.open("rb") as other:
        prerequisites = bundle.read_header(one).prerequisites
        return bundle.read_header(other).state in prerequisites
