"""How fast mounts work: what two looks at their status documents come to. Pure but for `look`.

Invariants
1. A rate is between two looks at one daemon: what only grows begins anew with the next one, and
   then there is no rate until the look after it.
2. A member that a daemon of another version leaves out gives None, never an error.

Called by the command.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

from s3ws_fs.control import registry
from s3ws_fs.workspaces.mounts import ASKED_AT_ONCE, runtime_dir, status_document

LOOK_S: Final = 3.0
"""A daemon that has not answered by then is shown as silent."""

_FINE: Final = (
    "2",
    "304",
    "404",
    "412",
    "NoSuch",
    "NotFound",
    "Precondition",
    "Conflict",
    "ENOENT",
    "EEXIST",
)
"""How outcomes begin that are none of trouble: what is not there, or has changed, is asked for."""
_READS: Final = frozenset(("read",))
_WRITES: Final = frozenset(("write",))


@dataclass(frozen=True, slots=True)
class Look:
    """The mounts of this host at one moment. `at_s` is monotonic."""

    at_s: float
    documents: list[dict[str, Any]]
    damaged: list[str] = field(default_factory=list)


def look() -> Look:
    """Ask all daemons, side by side."""
    infos, damaged = registry.list_mounts(runtime_dir())
    ask = partial(status_document, counts=True, timeout_s=LOOK_S)
    if len(infos) < 2:
        return Look(time.monotonic(), [ask(info) for info in infos], damaged)
    with ThreadPoolExecutor(min(ASKED_AT_ONCE, len(infos)), "top") as pool:
        return Look(time.monotonic(), list(pool.map(ask, infos)), damaged)


@dataclass(slots=True)
class Row:
    """One mount. Rates are a second's; `errors` are requests of programs that failed by a fault of
    ours or of the store (EIO), `store_errors` requests to the store that were not answered well.
    """

    mountpoint: str
    user_id: str
    conversation_id: str
    state: str
    health: str
    error: str = ""
    ops: float | None = None
    reads: float | None = None
    writes: float | None = None
    changes: float | None = None
    dirty_files: int | None = None
    dirty_bytes: int | None = None
    oldest_dirty_s: float | None = None
    upload_bytes: float | None = None
    download_bytes: float | None = None
    requests: float | None = None
    errors: int | None = None
    store_errors: int | None = None
    restarts: int | None = None
    used: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


def rows(before: Look | None, now: Look) -> list[Row]:
    """One for each mount that is there now, the busiest first."""
    old = {} if before is None else {_name(doc): doc for doc in before.documents}
    passed_s = 0.0 if before is None else now.at_s - before.at_s
    made = [_row(old.get(_name(doc)), doc, passed_s) for doc in now.documents]
    return sorted(made, key=lambda row: (-(row.ops or 0.0), row.mountpoint))


def _row(old: dict[str, Any] | None, doc: dict[str, Any], passed_s: float) -> Row:
    workspace, health, dirty = _part(doc, "workspace"), _part(doc, "health"), _part(doc, "dirty")
    counts, quota = _part(doc, "counts"), _part(doc, "quota")
    row = Row(
        mountpoint=_name(doc),
        user_id=str(workspace.get("user_id", "-")),
        conversation_id=str(workspace.get("conversation_id", "-")),
        state=str(doc.get("state", "-")),
        health=str(health.get("state", "-")),
        error=str(health.get("error") or _part(doc, "error").get("message") or ""),
        dirty_files=_int(dirty.get("files")),
        dirty_bytes=_int(dirty.get("bytes")),
        oldest_dirty_s=_number(dirty.get("oldest_age_s")),
        restarts=_int(_part(doc, "holder").get("restarts")),
        errors=_int(doc.get("faults")),
    )
    used, most = _number(quota.get("used_bytes")), _number(quota.get("max_bytes"))
    row.used = None if used is None or not most else round(used / most, 4)
    row.store_errors = _store_errors(_part(_part(counts, "store"), "requests"))
    if old is None or passed_s <= 0 or old.get("pid") != doc.get("pid"):
        return row
    was = _part(old, "counts")

    def rate(new: int | None, before: int | None) -> float | None:
        if new is None or before is None or new < before:
            return None
        return round((new - before) / passed_s, 2)

    row.ops = rate(_ops(counts), _ops(was))
    row.reads = rate(_ops(counts, _READS), _ops(was, _READS))
    row.writes = rate(_ops(counts, _WRITES), _ops(was, _WRITES))
    row.changes = rate(_head(doc), _head(old))
    store, store_was = _part(counts, "store"), _part(was, "store")
    row.upload_bytes = rate(_int(store.get("sent_bytes")), _int(store_was.get("sent_bytes")))
    row.download_bytes = rate(
        _int(store.get("received_bytes")), _int(store_was.get("received_bytes"))
    )
    row.requests = rate(_sum(_part(store, "requests")), _sum(_part(store_was, "requests")))
    return row


def _name(doc: dict[str, Any]) -> str:
    return str(doc.get("mountpoint", "-"))


def _ops(counts: dict[str, Any], kinds: frozenset[str] | None = None) -> int | None:
    """Requests of the kernel, of some kinds or all."""
    fuse = counts.get("fuse")
    if not isinstance(fuse, dict):
        return None
    found = _part(fuse, "ops")
    return sum(
        _int(_part(found, kind).get("count")) or 0
        for kind in found
        if kinds is None or kind in kinds
    )


def _head(doc: dict[str, Any]) -> int | None:
    return _int(_part(doc, "generation").get("head"))


def _sum(requests: dict[str, Any]) -> int:
    return sum(_int(count) or 0 for count in requests.values())


def _store_errors(requests: dict[str, Any]) -> int | None:
    """Requests whose outcome is neither a success nor one that is asked for ("not there")."""
    if not requests:
        return None
    return sum(
        _int(count) or 0
        for name, count in requests.items()
        if not name.partition(" ")[2].startswith(_FINE)
    )


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _int(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 1 << 63 else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1 << 63 else None


@dataclass(frozen=True, slots=True)
class Total:
    """All of them together."""

    mounts: int
    ops: float
    upload_bytes: float
    dirty_bytes: int
    oldest_dirty_s: float | None
    troubled: int


def total(found: Sequence[Row]) -> Total:
    """The sums, and how many are not well."""
    ages = [row.oldest_dirty_s for row in found if row.oldest_dirty_s is not None]
    return Total(
        mounts=len(found),
        ops=sum(row.ops or 0.0 for row in found),
        upload_bytes=sum(row.upload_bytes or 0.0 for row in found),
        dirty_bytes=sum(row.dirty_bytes or 0 for row in found),
        oldest_dirty_s=max(ages, default=None),
        troubled=sum(row.health != "ok" or row.state != "ready" for row in found),
    )
