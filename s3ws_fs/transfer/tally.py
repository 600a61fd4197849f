"""What stands below a workspace prefix, counted: one listing, a request a thousand objects.

Invariants
1. Memory does not grow with the number of objects: only sums are kept.
2. Nothing is read but keys, sizes and dates; `live` reads the header of one segment.

Called by the cli.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from s3ws_fs.core import layout
from s3ws_fs.core.errors import FormatError, NotFoundError
from s3ws_fs.core.journal import Header
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.journaling import read_header

MIRROR: Final = "mirror"
JOURNAL: Final = "journal"
BACKUPS: Final = "backups"
GIT: Final = "git"
OTHER: Final = "other"
AREAS: Final = (JOURNAL, MIRROR, BACKUPS, GIT, OTHER)

WORKSPACE: Final = "workspace"
DELETING: Final = "deleting"
FORKING: Final = "forking"
NONE: Final = "none"
"""What stands there: a workspace; what a deletion or a fork left; nothing that is a workspace."""

_FIRST: Final = {"files": MIRROR, "journal": JOURNAL, "compressed": BACKUPS, "git": GIT}


@dataclass(slots=True)
class Area:
    """One part of it."""

    objects: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Tally:
    """The sums. `newest`: number of the newest segment; `sealed_ns`: the store's date of it."""

    areas: dict[str, Area] = field(default_factory=lambda: {name: Area() for name in AREAS})
    newest: int = 0
    sealed_ns: int | None = None
    marks: set[str] = field(default_factory=set)

    @property
    def objects(self) -> int:
        """All objects."""
        return sum(area.objects for area in self.areas.values())

    @property
    def bytes(self) -> int:
        """Their bytes."""
        return sum(area.bytes for area in self.areas.values())

    @property
    def state(self) -> str:
        """What stands there."""
        if layout.WORKSPACE_KEY in self.marks:
            return WORKSPACE
        if layout.DELETED_KEY in self.marks:
            return DELETING
        return FORKING if layout.FORK_KEY in self.marks else NONE

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "state": self.state,
            "objects": self.objects,
            "bytes": self.bytes,
            "last_seal_s": None if self.sealed_ns is None else round(self.sealed_ns / 1e9, 3),
            "areas": {
                name: {"objects": area.objects, "bytes": area.bytes}
                for name, area in self.areas.items()
            },
        }


_MARKS: Final = frozenset((layout.WORKSPACE_KEY, layout.DELETED_KEY, layout.FORK_KEY))


def tally(store: ScopedStore) -> Tally:
    """Count all of it. Raises StoreError."""
    found = Tally()
    for entry in store.everything():
        key = entry.key
        area = found.areas[_FIRST.get(key.partition("/")[0], OTHER)]
        area.objects += 1
        area.bytes += entry.size_bytes
        if key in _MARKS:
            found.marks.add(key)
        number = layout.key_number(key, layout.SEG_PREFIX)
        if number is not None and number > found.newest:
            found.newest, found.sealed_ns = number, entry.modified_ns
    return found


def live(store: ScopedStore, found: Tally) -> Header | None:
    """The newest segment's header: it counts what the workspace holds. None when it can't be read.

    Raises StoreError.
    """
    if not found.newest:
        return None
    try:
        return read_header(store, layout.seg_key(found.newest))[0]
    except (NotFoundError, FormatError):
        return None
