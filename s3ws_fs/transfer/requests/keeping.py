"""Requests about what is kept beside the journal: backups below compressed/, bundles below git/.

The snapshot child makes files; they are sent from here, since here is the lease.

Invariants
1. No key outside of KEPT_PREFIXES is put, listed or deleted.
2. A file that is put lies below the cache's directory, is no symlink, and is as long as was said:
   what was not finished is not sent.

Called by worker (see requests).
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any, Final

from s3ws_fs.core import backups, failpoints
from s3ws_fs.core.errors import NotFoundError, PermanentError
from s3ws_fs.store.base import DEFAULT_CONTENT_TYPE
from s3ws_fs.store.body import FileSlice
from s3ws_fs.transfer.session import Group, Reply
from s3ws_fs.transfer.windowed import windowed

KEPT_PREFIXES: Final = (backups.COMPRESSED_PREFIX, backups.GIT_PREFIX)
LIST_BATCH: Final = 500
LISTED_MAX: Final = 20_000
"""Objects of one listing at most."""


class Keeping(Group):
    """Objects that are no part of the journal and of the mirror."""

    def do_put_file(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Put a file of the cache's directory, in parts when it is large."""
        key = _checked(ask["key"])
        fd = self._open(ask["file"])
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes != ask["size_bytes"]:
                raise PermanentError("put", key, f"{size_bytes} bytes, not {ask['size_bytes']}")
            failpoints.hit(failpoints.KEEP_PUT_BEFORE)
            etag = self.session.store.put(
                key,
                FileSlice(fd, 0, size_bytes),
                content_type=ask.get("content_type", DEFAULT_CONTENT_TYPE),
                metadata=ask.get("metadata"),
            )
        finally:
            os.close(fd)
        failpoints.hit(failpoints.KEEP_PUT_AFTER)
        return {"etag": etag}

    def _open(self, name: str) -> int:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise PermanentError("put", ascii(name[:200]), "not a file of the cache's directory")
        fd = os.open(self.session.cache_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for at, piece in enumerate(parts, 1):
                kind = os.O_DIRECTORY if at < len(parts) else 0
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | kind
                below = os.open(piece, flags, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def do_list_below(self, ask: dict[str, Any], part: Reply) -> None:
        """Key, size and user metadata (of keys that end in `metadata_of`, else none) of objects."""
        store = self.session.store
        suffix = ask.get("metadata_of")

        def look(item: tuple[str, int]) -> list[Any]:
            if suffix is None or not item[0].endswith(suffix):
                return [*item, None]
            try:
                return [*item, dict(store.head(item[0]).metadata)]
            except NotFoundError:
                return [*item, None]

        found: list[tuple[str, int]] = []
        for entry in store.list(_checked(ask["prefix"])):
            found.append((entry.key, entry.size_bytes))
            if len(found) > LISTED_MAX:
                raise PermanentError("list", ask["prefix"], f"more than {LISTED_MAX} objects")
        listed = list(windowed(self.session.transfers, look, found))
        for at in range(0, len(listed), LIST_BATCH):
            part({"objects": listed[at : at + LIST_BATCH]})

    def do_drop_below(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Delete keys, one after the other: who names an index first has it go first."""
        for key in ask["keys"]:
            _checked(key)
        dropped = 0
        for key in ask["keys"]:
            failpoints.hit(failpoints.KEEP_DROP_BEFORE)
            self.session.store.delete(key)
            dropped += 1
        failpoints.hit(failpoints.KEEP_DROP_AFTER)
        return {"dropped": dropped}


def _checked(key: str) -> str:
    if not key.startswith(KEPT_PREFIXES):
        raise PermanentError("put", ascii(key[:200]), "only compressed/ and git/ are kept there")
    return key
