"""Snapshots as objects: put, dropped, listed.

Requests: putting one takes a listing of the snapshots (one a thousand), a HEAD and a PUT; the name
is in the key as a digest, so that nothing else is read. Dropping one: a listing, a GET, a DELETE.

Invariants
1. A snapshot is put after its segment stands, must-create: whatever fails before that, there is
   none; it is never half there.
2. A name is given once for each kind. The same name at the same point again is the same snapshot:
   who lost an answer may ask again.
3. There are at most SNAPSHOTS_MAX; for a further one the oldest automatic one goes, and when all
   are named it is refused.

Called by the worker; `read_all` by commands too.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any, Final

from s3ws_fs.core import failpoints, history
from s3ws_fs.core.errors import (
    ConflictError,
    ExitCode,
    FormatError,
    NotFoundError,
    PermanentError,
    UserError,
)
from s3ws_fs.core.history import NAMED, SNAPSHOTS_MAX, TURN_BEGIN, TURN_END, Snapshot
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points, sealing
from s3ws_fs.transfer.points import SnapKey, no_such_point, read_snapshot
from s3ws_fs.transfer.windowed import windowed

WHAT: Final = {NAMED: "snapshot", TURN_BEGIN: "beginning of a turn", TURN_END: "end of a turn"}


def put_snapshot(store: ScopedStore, snap: Snapshot) -> tuple[Snapshot, bool]:
    """Take a snapshot of a sealed point; returns what stands then, and whether it is new.

    Raises UserError (the name is taken, the turn has no beginning, too many), StoreError,
    FormatError (its segment does not stand).
    """
    there = points.list_snaps(store)
    for found in _same_name(store, there, snap):
        if (found.number, found.header_hash) == (snap.number, snap.header_hash):
            return found, False
        raise _taken(found)
    if snap.kind == TURN_END:
        ident = history.snap_id(TURN_BEGIN, snap.name, 0)
        if not any(each.id == ident for each in there):
            remedy = f"Mark it by `s3ws turn begin {snap.name}`, before the turn."
            raise no_such_point(f"No turn {snap.name!a} has begun.", remedy)
    if len(there) >= SNAPSHOTS_MAX:
        _make_place(store, there)
    sealing.require_journal(store, snap.number + 1)
    failpoints.hit(failpoints.SNAP_BEFORE)
    try:
        store.put(snap.key, snap.encode(), content_type="application/json", if_none_match=True)
    except ConflictError:
        # By an attempt whose answer was lost, or by one of another name and the same digest.
        found = read_snapshot(store, snap.key, snap.workspace)
        if found.name != snap.name:
            raise _taken(found) from None
        return found, False
    failpoints.hit(failpoints.SNAP_AFTER)
    return snap, True


def _same_name(store: ScopedStore, there: list[SnapKey], snap: Snapshot) -> list[Snapshot]:
    found = []
    for each in there:
        if snap.name and each.id == snap.id:
            try:
                read = read_snapshot(store, each.key, snap.workspace)
            except (NotFoundError, FormatError) as exc:
                raise PermanentError("read", each.key, f"it may have that name: {exc}") from exc
            if read.name == snap.name:
                found.append(read)
    return found


def _taken(found: Snapshot) -> UserError:
    what = WHAT.get(found.kind, found.kind)
    remove = f", or remove it by `s3ws snapshot --delete {found.name}`" * (found.kind == NAMED)
    return UserError(
        f"There is a {what} called {found.name!a} already, at #{found.number}.",
        remedy=f"Give another name{remove}.",
        exit_code=ExitCode.USAGE,
    )


def _make_place(store: ScopedStore, there: list[SnapKey]) -> None:
    automatic = [each for each in there if each.kind != NAMED]
    if not automatic:
        raise UserError(
            f"There are {len(there)} named snapshots; no more than {SNAPSHOTS_MAX} are kept.",
            remedy="Remove some by `s3ws snapshot --delete NAME MOUNTPOINT`.",
            exit_code=ExitCode.USAGE,
        )
    store.delete(automatic[0].key)
    failpoints.hit(failpoints.SNAP_DROPPED)


def drop_snapshots(store: ScopedStore, workspace: str, ref: str) -> list[SnapKey]:
    """Remove the snapshot of a name, or a turn's marks (`turn:NAME`: both); returns what went.

    One whose object is damaged goes by what its key says. Raises UserError (no such name, not a
    name), StoreError.
    """
    wanted = history.parse_ref(ref, 0)
    if wanted.form not in (history.NAME, history.TURN):
        raise UserError(
            f"{ref!a} is not the name of a snapshot.",
            remedy="Points of the history window, and those before a restore, go by themselves.",
            exit_code=ExitCode.USAGE,
        )
    is_whole_turn = wanted.form == history.TURN and ref.count(":") == 1
    kinds = (TURN_BEGIN, TURN_END) if is_whole_turn else (wanted.kind,)
    idents = {history.snap_id(kind, wanted.name, 0) for kind in kinds}
    gone = [
        each
        for each in points.list_snaps(store)
        if each.id in idents and _may_be(store, each, workspace, wanted.name)
    ]
    if not gone:
        what = "turn" if wanted.form == history.TURN else "snapshot"
        remedy = "`s3ws snapshots` lists what there is."
        raise no_such_point(f"There is no {what} called {wanted.name!a}.", remedy)
    for each in gone:
        store.delete(each.key)
        failpoints.hit(failpoints.SNAP_DROPPED)
    return gone


def _may_be(store: ScopedStore, each: SnapKey, workspace: str, name: str) -> bool:
    try:
        return read_snapshot(store, each.key, workspace).name == name
    except NotFoundError:
        return False
    except FormatError:
        return True


def read_all(
    store: ScopedStore, workspace: str | None, known: dict[str, Snapshot], pool: Executor
) -> tuple[list[Snapshot], list[tuple[str, str]]]:
    """All snapshots by number, and those that can't be read, with why. Raises StoreError.

    `known`: by key what was read before; what is read now is added. None of them ever changes.
    """
    there = points.list_snaps(store)
    damaged: list[tuple[str, str]] = []

    def read(each: SnapKey) -> None:
        try:
            known[each.key] = read_snapshot(store, each.key, workspace)
        except NotFoundError:
            # Dropped since it was listed.
            return
        except FormatError as exc:
            damaged.append((each.key, exc.why))

    for _ in windowed(pool, read, [each for each in there if each.key not in known]):
        continue
    return [known[each.key] for each in there if each.key in known], sorted(damaged)


def list_json(snaps: list[Snapshot]) -> list[dict[str, Any]]:
    """As an answer's JSON."""
    return [snap.to_json() | {"ref": snap.ref} for snap in snaps]
