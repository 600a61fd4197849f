"""Requests of a restore on a living mount (see transfer/rewinding).

Called by worker (see requests).
"""

from __future__ import annotations

from typing import Any

from s3ws_fs.core import history
from s3ws_fs.core.policies import split_patterns
from s3ws_fs.transfer import points, rewinding, wire
from s3ws_fs.transfer.points import Point
from s3ws_fs.transfer.rewinding import Asked
from s3ws_fs.transfer.session import Group, Reply, Session


class Rewinding(Group):
    """Reads alone, but for the plan in the spool."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._state = rewinding.Rewinding()
        self._point: Point | None = None

    def do_rewind(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """What going back to a point would change; with `write`, the changes in a file.

        The point is that of `ref`, or the one of the request before when that is null. The answer
        says what was asked for in the end: of an undo, what the restore was of.
        """
        session = self.session
        ref, now_ns = ask["ref"], ask["now_ns"]
        if ref is not None:
            with session.reader.read() as view:
                head = view.head().generation
            self._point = points.resolve(session.store, ref, now_ns, head=head)
        if self._point is None or ask["write"]:
            # Another worker resolved it; or the snapshot of before collected garbage since.
            again = points.resolve(session.store, f"#{ask['number']}", now_ns)
            self._point = self._point or again
        point = self._point
        self._state.load(session.store, point, session.transfers)
        paths = tuple(wire.paths_from(ask["paths"]))
        local = split_patterns(session.local_patterns)
        asked = Asked(point.number, paths, ask["everything"], ask["undoes"], local)
        if ref == history.UNDO and point.snapshot is not None:
            asked = rewinding.undoing(point.snapshot, ask["everything"], local)
        planned = self._state.plan(session.reader, asked, now_ns)
        answer = rewinding.answer(planned, point)
        if ask["write"]:
            answer["file"] = str(rewinding.write_plan(session.spool, planned.changes))
            for pairs in rewinding.warm_parts(planned.changes.warm):
                part({"warm": True}, pairs)
        return answer

    def do_unsnap(self, ask: dict[str, Any], part: Reply) -> None:
        """Take away a snapshot of before, of a restore that was not made."""
        key = history.snap_key(ask["number"], ask["ident"])
        if history.split_snap_key(key) and history.kind_of(ask["ident"]) in history.UNDOABLE:
            self.session.store.delete(key)

    def do_rewound(self, ask: dict[str, Any], part: Reply) -> None:
        """The restore is over: what it needed is let go."""
        self._state.forget()
        self._point = None
