"""A mount of one point in history: it shows that point, and never looks again.

Invariants
1. As a Follower, it writes nothing to the bucket; the cache is one of its own, for this point.
2. It shows the segment of exactly this number and header hash, or nothing.
3. When the point is not kept any more, what was read before stays; the rest is an error that says
   so, in a read and in status. Bytes with another digest are never shown.
4. Its records once loaded, it needs the store only for bytes that were not read yet.

Called by the daemon, in the place of a Replicator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.replica.base import Progress
from s3ws_fs.replica.follower import Follower
from s3ws_fs.replica.position import Sealed
from s3ws_fs.transfer.spool import RecordsFile, open_records
from s3ws_fs.transfer.words import MISSING

LOST: Final = "it is not kept any more: what was not read before can't be read"


class FixedPoint(Follower):
    """Shows one point."""

    async def _prepare(self, progress: Progress) -> None:
        cache = self._cache
        if cache.restore_complete:
            self._load_position()
            return
        cache.clear_all()
        await self._load(progress)
        cache.set_restore_complete()

    async def _load(self, progress: Progress) -> None:
        config = self._config
        files: list[RecordsFile] = []

        async def on_part(part: dict[str, Any], _: memoryview) -> None:
            if "progress" in part:
                done, total = part["progress"]
                progress({"phase": "fetching metadata", "done": done, "total": total})
            else:
                files.append(open_records(Path(part["file"]), part["where"], whole=False))

        point = await self.worker.ask(
            "records-at", on_part, ref=f"#{config.at_number}", now_ns=self._cache.now_ns()
        )
        if point["header_hash"] != config.at_hash:
            raise UserError(
                f"point #{config.at_number} is another one than when it was asked for",
                remedy="Look at `s3ws snapshots` and `s3ws log`, and mount again.",
                exit_code=ExitCode.NO_SUCH_POINT,
            )
        position = Sealed(config.at_number, config.at_hash, point["generation"])
        await self._show(files, position, files[-1].header.workspace, progress)

    async def run(self) -> None:
        """There is nothing to look for."""
        await trio.sleep_forever()

    def accessed(self) -> None:
        """There is nothing to look for."""

    async def sync(self, progress: Progress, *, outside: bool = False) -> dict[str, Any]:
        """All of it is shown."""
        return self._synced()

    def status(self) -> dict[str, Any]:
        """As a Follower's, with `point` in the place of `follow`."""
        document = super().status()
        shown = document.pop("follow")
        damaged = self._hydrator.damaged.values()
        is_lost = any(MISSING in why for why in damaged)
        return document | {
            "point": {
                "ref": self._config.at_ref,
                "number": shown["segment"],
                "generation": shown["generation"],
                "sealed_by": shown["sealed_by"],
                "sealed_at_s": shown["sealed_at_s"],
                "error": LOST if is_lost else None,
            }
        }
