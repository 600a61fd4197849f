"""Requests of a flush and of the mirror pass behind it: freeze, seal, checkpoint, mirror.

Invariants
1. One freeze is held at a time: from `freeze` until `mirror` or `drop`, or the next `freeze`.
   Whoever asks for another one than is held gets OwnSealError.
2. They come one at a time, in the flush lane; only `stop-mirror` comes beside them.

Called by worker (see requests).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from s3ws_fs.cache.headroom import give_reserve
from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import FormatError, StoreError
from s3ws_fs.core.retention import Limits
from s3ws_fs.transfer import garbage, journaling, reconcile, sealing, spool, wire
from s3ws_fs.transfer.fetch import ExtentSource
from s3ws_fs.transfer.freeze import FreezeRequest, freeze
from s3ws_fs.transfer.layouts import Layouts
from s3ws_fs.transfer.mirror import Batch, MirrorPass
from s3ws_fs.transfer.session import Group, Reply

LIST_BATCH: Final = 2000
HISTORY_DIR: Final = "history"
"""Below the cache directory: what points of history name, read from the bucket (spans)."""
LAYOUTS_DIR: Final = "layouts"
"""Below the cache directory: what the mirror's large objects are made of (layouts)."""


class Flush(Group):
    """A freeze and what becomes of it."""

    def do_freeze(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Copy out what is unsealed and what the mirror has to look at."""
        session = self.session
        session.drop()
        session.surveyed = None
        spool.clean(session.spool)
        request = FreezeRequest.from_json(ask["freeze"])
        ahead = session.ahead
        if ahead.make_fit(session.store, lambda count: part({"shipped": count})):
            # It may have no room either, and nothing depends on it: a later flush makes it.
            request = replace(request, checkpoint=False)
            give_reserve(session.cache_dir)
        frozen = freeze(
            session.reader,
            session.spool,
            request,
            ahead.known,
            randbits=session.means.randbits,
            stopped=partial(session.is_stopped, request.flush_id),
        )
        session.frozen = frozen
        failpoints.hit(failpoints.FREEZE_AFTER)
        session.workspace = ask["freeze"]["workspace"]
        header = frozen.header
        plan = frozen.todo.plan
        return {
            "generation": frozen.generation,
            "seal": header is not None,
            "checkpoint": frozen.checkpoint is not None,
            "segment": None if frozen.segment is None else str(frozen.segment),
            "header_hash": frozen.header_hash,
            "segment_bytes": 0 if header is None else header.total_bytes,
            "records": 0 if header is None else header.puts + header.tombs,
            "blobs": len(frozen.blobs),
            "mirror_files": len(plan.ops) + len(plan.early) + len(plan.late),
            "todo": frozen.todo.is_cut_off or bool(frozen.todo.files),
        }

    def do_seal(self, ask: dict[str, Any], part: Reply) -> None:
        """Ship blobs, then the segment."""
        session = self.session
        frozen = session.kept(ask)
        if frozen.blobs:
            sealing.ship_blobs(
                session.store, frozen, session.transfers, lambda count: part({"shipped": count})
            )
        sealing.require_journal(session.store, frozen.number)
        sealing.seal(session.store, frozen)
        session.ahead.known.clear()

    def do_checkpoint(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Put the checkpoint of the sealed freeze, then remove garbage.

        What hinders the latter is no error: the checkpoint stands, and nothing depends on it.
        """
        session = self.session
        frozen = session.kept(ask)
        size_bytes = sealing.put_checkpoint(session.store, frozen)
        done, error = garbage.Collected(), ""
        try:
            done = garbage.collect_garbage(
                session.store,
                frozen,
                Limits.from_json(ask["history"]),
                session.cache_dir / HISTORY_DIR,
                session.transfers,
            )
        except garbage.CheckpointLostError:
            raise
        except (StoreError, FormatError) as exc:
            error = str(exc)
        uploads = garbage.give_up_uploads(session.store)
        return asdict(done) | {
            "checkpoint_bytes": size_bytes,
            "garbage_error": error,
            "uploads": uploads,
        }

    def do_mirror(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Bring files/ to the frozen point; results come in parts. Ends the freeze."""
        session = self.session
        frozen = session.kept(ask)
        mirroring = MirrorPass(
            session.store,
            ExtentSource(session.store, session.reader, frozen),
            frozen,
            workspace=session.workspace,
            directory=session.spool,
            layouts=Layouts(session.cache_dir / LAYOUTS_DIR, session.workspace),
            pool=session.transfers,
            report=lambda batch: part(_batch_json(batch)),
            stopped=partial(session.is_stopped, frozen.flush_id),
        )
        outcome = mirroring.run()
        mirroring.finish_dirs()
        done = list(mirroring.done())
        for at in range(0, len(done), LIST_BATCH):
            part({"done": done[at : at + LIST_BATCH]})
        # One whose new place is taken by somebody else may have been found by walking only.
        again = outcome.stale_inos.union(*outcome.conflict_inos.values())
        part({"look_at": sorted(again)})
        todo = frozen.todo
        result = {
            "written": outcome.written,
            "stopped": outcome.stopped,
            "failed": len(outcome.failed_inos),
            "uncertain": outcome.is_uncertain,
            "conflicts": [
                [path, why, sorted(outcome.conflict_inos[path])]
                for path, why in outcome.conflicts.items()
            ],
            "missed": outcome.missed[:LIST_BATCH],
            "unmirrored": [
                [ino, path.decode("latin-1"), why]
                for ino, path, why in todo.unmirrored[:LIST_BATCH]
            ],
            "error": None if outcome.error is None else wire.error_json(outcome.error),
        }
        session.drop()
        if not (result["error"] or result["stopped"] or result["failed"]):
            journaling.note_mirrored(session.store, session.workspace, frozen.generation)
        return result

    def do_reconcile(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Learn from a listing what stands in the mirror, and what somebody else did to it."""
        session = self.session
        scan = reconcile.Scan(
            session.store,
            session.reader,
            session.transfers,
            workspace=ask["workspace"],
            prefix_bytes=ask["prefix_bytes"],
            sealed=ask["sealed"],
            is_known=ask["is_known"],
        )
        result = scan.run(part)
        if not ask["is_known"]:
            garbage.give_up_uploads(session.store)
        return result

    def do_stop_mirror(self, ask: dict[str, Any], part: Reply) -> None:
        """End this flush's mirror pass early, or its planning; what is left stays on the to-do."""
        self.session.stopped_pass = ask["flush_id"]

    def do_drop(self, ask: dict[str, Any], part: Reply) -> None:
        """Give up the freeze under way."""
        self.session.drop()


def _batch_json(batch: Batch) -> dict[str, Any]:
    return {"rows": wire.rows_json(batch.rows), "removed": wire.paths_json(batch.removed)}
