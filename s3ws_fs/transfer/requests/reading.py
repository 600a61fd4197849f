"""Requests that bring what stands in the bucket: records for a cache, bytes for a reader.

Invariants
1. What comes out is verified: records by header, digest and chain, bytes by their own digest.
2. A fetch that nobody waits for any more is not begun.

Called by worker (see requests).
"""

from __future__ import annotations

import math
import time
from typing import Any

from s3ws_fs.core.errors import FormatError, NotFoundError, PermanentError, TransientError
from s3ws_fs.core.types import Location
from s3ws_fs.transfer import following, journaling, restoring
from s3ws_fs.transfer.fetch import coalesce, fetch_from_mirror, fetch_group
from s3ws_fs.transfer.session import Group, Reply


class Reading(Group):
    """Nothing in the bucket is changed."""

    def do_restore(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Bring the records into the spool; one part a file, in order of replay."""
        session = self.session
        known, session.surveyed = session.surveyed, None
        restored = restoring.restore(
            session.store,
            session.spool,
            session.transfers,
            lambda done, of: part({"progress": [done, of]}),
            known,
        )
        state, files = restored.state, restored.files
        session.workspace = state.workspace or ""
        for file in files:
            part({"file": str(file.path), "where": file.where, "kind": file.header.kind})
        mirrored = journaling.read_mirrored(session.store, state.workspace)
        if files:
            generation = files[-1].header.generation
            journaling.check_end(session.store, state.newest, generation, mirrored)
        return state.to_json() | {"mirrored": mirrored, "damaged": restored.damaged}

    def do_follow(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Segments that a read-only mount does not show yet into the spool, one part a file."""
        session = self.session
        look = following.follow(
            session.store,
            ask["workspace"],
            ask["number"],
            ask["hash"],
            session.spool,
            surely=ask["surely"],
        )
        for file in look.files:
            part({"file": str(file.path), "where": file.where})
        return {"end": look.end, "lost": look.lost}

    def do_fetch(self, ask: dict[str, Any], part: Reply) -> None:
        """Bytes of locations, verified, a part a GET."""
        _require_patience(ask)
        wanted = [
            Location(object_id, offset, length, bytes.fromhex(digest))
            for object_id, offset, length, digest in ask["locations"]
        ]
        for group in coalesce(wanted):
            found = fetch_group(self.session.store, group)
            items = [[loc.object_id, loc.offset, loc.length] for loc in found]
            part({"items": items}, b"".join(found.values()))

    def do_fetch_mirror(self, ask: dict[str, Any], part: Reply) -> None:
        """Bytes of one location from the first mirror object that has them."""
        _require_patience(ask)
        object_id, offset, length, digest = ask["location"]
        wanted = Location(object_id, offset, length, bytes.fromhex(digest))
        for text in ask["paths"]:
            try:
                data = fetch_from_mirror(self.session.store, text, ask["index"], wanted)
            except (NotFoundError, PermanentError, FormatError):
                continue
            part({}, data)
            return
        raise FormatError("files/", "no object of the mirror has these bytes")


def _require_patience(ask: dict[str, Any]) -> None:
    if time.monotonic() > ask.get("until_s", math.inf):
        raise TransientError(ask["cmd"], "", "nobody waits for it any more")
