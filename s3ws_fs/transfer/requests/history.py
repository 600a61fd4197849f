"""Requests about history: snapshots put, dropped and listed; the records of a point.

Invariants
1. `snap-list` has a lane of its own: a person who looks does not wait behind a flush.
2. The records of a point come out only while it is kept, and verified as in a restore.

Called by worker (see requests).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from s3ws_fs.core import history
from s3ws_fs.core.errors import FormatError, NotFoundError
from s3ws_fs.core.history import Snapshot
from s3ws_fs.core.layout import ckpt_key
from s3ws_fs.transfer import points, restoring, snaps
from s3ws_fs.transfer.session import Group, Reply, Session

LIST_BATCH: Final = 1000


class History(Group):
    """Points and snapshots."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._known: dict[str, Snapshot] = {}

    def do_snap_put(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Take a snapshot of a sealed point."""
        said = ask["snap"]
        ident = history.snap_id(said["kind"], said["name"], said["created_ns"])
        snap = Snapshot.from_json({"workspace": self.session.workspace, "id": ident, **said})
        found, is_new = snaps.put_snapshot(self.session.store, snap)
        return found.to_json() | {"ref": found.ref, "is_new": is_new}

    def do_snap_drop(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Remove the snapshots of a name."""
        session = self.session
        gone = snaps.drop_snapshots(session.store, session.workspace, ask["ref"])
        return {"removed": [{"number": each.number, "kind": each.kind} for each in gone]}

    def do_snap_list(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """All snapshots, in parts."""
        session = self.session
        found, damaged = snaps.read_all(
            session.store, session.workspace, self._known, session.transfers
        )
        for at in range(0, len(found), LIST_BATCH):
            part({"snapshots": snaps.list_json(found[at : at + LIST_BATCH])})
        return {"damaged": [{"key": key, "why": why} for key, why in damaged]}

    def do_records_at(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Bring the records of the point that `ref` means into the spool; one part a file."""
        session = self.session
        survey = points.survey_points(session.store)
        point = points.resolve(session.store, ask["ref"], ask["now_ns"], survey)
        damaged: FormatError | None = None
        for base in survey.bases(point.number):
            try:
                files = restoring.fetch_all(
                    session.store,
                    survey.workspace,
                    range(base, point.number + 1),
                    session.spool,
                    session.transfers,
                    lambda done, of: part({"progress": [done, of]}),
                )
            except NotFoundError as exc:
                raise points.went_meanwhile(point.number, exc.key) from exc
            except FormatError as exc:
                if exc.where != ckpt_key(base):
                    raise
                damaged = exc
                continue
            for file in files:
                part({"file": str(file.path), "where": file.where, "kind": file.header.kind})
            snap = None if point.snapshot is None else point.snapshot.to_json()
            return asdict(point) | {"snapshot": snap}
        raise damaged or points.pieces_missing(point.number)
