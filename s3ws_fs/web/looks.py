"""History for the page: points, what changed when, differences, patches, backups.

Invariants
1. Reads only: `head` is the newest sealed point here, nothing is sealed for a look.
2. Bounded: LOG_MAX seals with LOG_SHOWN changes each, CHANGES_MAX changes of a difference,
   PATCH_BYTES_MAX of a patch. The last DIFFERENCES_MAX differences are kept, as a patch is asked
   for after its list; memory is that of so many pairs of points.

Blocking; called by web.routes in threads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, Final
from urllib.parse import quote_from_bytes

from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core import history
from s3ws_fs.core.changes import Kept, counts, to_json, told_json
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.patch import Patch
from s3ws_fs.core.plaintext import safe_name
from s3ws_fs.core.treediff import Change, by_files
from s3ws_fs.snapshot.reading import list_backups
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import looking, points
from s3ws_fs.transfer.looking import Difference
from s3ws_fs.transfer.points import Point
from s3ws_fs.web.files import as_text
from s3ws_fs.web.mounts import Mounts, workspace_of
from s3ws_fs.workspaces.reading import Workspace

LOG_MAX: Final = 30
LOG_SHOWN: Final = 5
CHANGES_MAX: Final = 1000
PATCH_BYTES_MAX: Final = 512 << 10
DIFFERENCES_MAX: Final = 2
SNAPSHOTS_S: Final = 30.0
REF_CHARS_MAX: Final = 128


def _pool(workspace: Workspace) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workspace.config.store.max_parallel, "look")


def snapshots(mounts: Mounts, info: MountInfo) -> dict[str, Any]:
    """Snapshots and marks of turns. Raises UserError."""
    if info.is_alive():
        return mounts.request(info, "snapshots", {}, SNAPSHOTS_S)
    return workspace_of(info).snapshots()


def backups(mounts: Mounts, info: MountInfo) -> dict[str, Any]:
    """The backups in the bucket, the newest last. Raises UserError."""
    with mounts.store(info) as (workspace, store), _pool(workspace) as pool:
        return {"backups": [each.to_json() for each in list_backups(store, pool)]}


def log(mounts: Mounts, info: MountInfo, before: int) -> dict[str, Any]:
    """The newest seals, or those before number `before` (0: none). Raises UserError."""
    with mounts.store(info) as (workspace, store), _pool(workspace) as pool:
        survey = points.survey_points(store)
        newest = survey.newest if before <= 0 else min(survey.newest, before - 1)
        oldest = looking.oldest_step(survey, newest)
        first = max(oldest, newest + 1 - LOG_MAX)
        kept = Kept(LOG_MAX, LOG_SHOWN)
        for step in looking.steps(store, survey, first, newest, pool):
            shown = [change for change in step.changes if not change.is_noise]
            kept.add(step.header, step.modified_ns, shown)
    seals = [told_json(told) | {"changes": [_short(c) for c in told.changes]} for told in kept.told]
    return {"seals": seals[::-1], "more": first > oldest}


def _short(change: Change) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": change.kind,
        "shown": (safe_name(change.path) or ".") + ("/" if change.rec.is_dir else ""),
        "id": quote_from_bytes(change.path),
        "is_directory": change.rec.is_dir,
    }
    if change.old_path is not None:
        found["from_shown"] = safe_name(change.old_path)
        found["from_id"] = quote_from_bytes(change.old_path)
    return found


class Differences:
    """Thread-safe. The last ones are kept (invariant 2)."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int, int], Difference] = OrderedDict()

    def changes(self, info: MountInfo, old_ref: str, new_ref: str) -> dict[str, Any]:
        """What changed between two points. Raises UserError."""
        with self._mounts.store(info) as (workspace, store), _pool(workspace) as pool:
            old, new = _resolved(store, old_ref, new_ref)
            found = self._difference(workspace, store, old.number, new.number, pool)
        shown = [change for change in found.changes if not change.is_noise]
        return {
            "from": _point(old),
            "to": _point(new),
            "counts": counts(shown),
            "changes": [_short(change) | _sides(change) for change in shown[:CHANGES_MAX]],
            "more": max(0, len(shown) - CHANGES_MAX),
        }

    def patch(self, info: MountInfo, old: int, new: int, path: bytes) -> dict[str, Any]:
        """How one file's bytes changed. Raises UserError."""
        with self._mounts.store(info) as (workspace, store), _pool(workspace) as pool:
            found = self._difference(workspace, store, old, new, pool)

            def read(change: Change, is_after: bool) -> bytes:
                view, rec = (
                    (found.after, change.after) if is_after else (found.before, change.before)
                )
                assert rec is not None
                where = change.path if is_after else change.old_path or change.path
                return looking.read_whole(store, view, rec, where, pool)

            data = bytearray()
            patch = Patch(read)
            wanted = [each for each in found.changes if each.path == path]
            files = by_files(wanted, found.before, found.after)
            for part in chain.from_iterable(map(patch.of, files)):
                data += part
                if len(data) > PATCH_BYTES_MAX:
                    break
        is_cut = len(data) > PATCH_BYTES_MAX
        text = bytes(data[:PATCH_BYTES_MAX]).decode("utf-8", "backslashreplace")
        return {"patch": as_text(text.encode()) or "", "is_cut": is_cut}

    def _difference(
        self,
        workspace: Workspace,
        store: ScopedStore,
        old: int,
        new: int,
        pool: ThreadPoolExecutor,
    ) -> Difference:
        place = workspace.config.store.location
        key = (workspace.config.workspace.prefix, place, old, new)
        with self._lock:
            if key not in self._kept:
                survey = points.survey_points(store)
                self._kept[key] = looking.difference(store, survey, old, new, pool)
            self._kept.move_to_end(key)
            while len(self._kept) > DIFFERENCES_MAX:
                self._kept.popitem(last=False)
            return self._kept[key]


def _resolved(store: ScopedStore, *refs: str) -> list[Point]:
    survey = points.survey_points(store)
    for ref in refs:
        if len(ref) > REF_CHARS_MAX:
            raise UserError("This is no point in history.", exit_code=ExitCode.USAGE)
    return [points.resolve(store, ref, time.time_ns(), survey) for ref in refs]


def _point(point: Point) -> dict[str, Any]:
    return {
        "number": point.number,
        "generation": point.generation,
        "created_ns": point.created_ns,
    }


def _sides(change: Change) -> dict[str, Any]:
    said = to_json(change)
    return {
        "type": said["type"],
        "aspects": said["aspects"],
        "before": _side(said["before"]),
        "after": _side(said["after"]),
    }


def _side(said: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if said is None else {name: said[name] for name in ("size", "mode")}


def known_ref(text: object) -> str:
    """A reference as a browser sent it. Raises UserError."""
    if not isinstance(text, str) or len(text) > REF_CHARS_MAX:
        raise UserError("This is no point in history.", exit_code=ExitCode.USAGE)
    history.parse_ref(text, time.time_ns())
    return text
