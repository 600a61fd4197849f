"""What to do so that the mirror shows the frozen state: a pure plan over paths.

Phases (an object store has no rename and no transaction; this order never loses what is needed)
    1. early deletes   what stands in the way: a file where a directory is now, or the reverse
    2. ops             puts, server-side copies, metadata refreshes: in any order, in parallel
    3. late deletes    objects at paths that no longer exist

Invariants
1. Applied to the objects that the rows describe, the plan leaves every looked-at inode at exactly
   its paths, whatever the order within a phase.
2. The source of a copy is neither written in phase 2 nor deleted in phase 1; what would need that
   is put from its bytes instead. (So no order between ops is ever needed.)
3. Only paths that rows vouch for are deleted.

Called by transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from s3ws_fs.core.records import MirrorRow

PUT: Final = "put"
COPY: Final = "copy"
COPY_BLOB: Final = "blob"
REFRESH: Final = "refresh"

NO_HASH: Final = bytes(16)
"""Hash of a row that was learnt from a listing: what stands there has to be looked at first."""

TAKEN_OVER: Final = b"\xff" * 16
"""Hash of a row of somebody else's object that ours may be put over: its bytes are kept elsewhere,
or were given up by the policy."""

UNKNOWN_DATA: Final = (1 << 64) - 1
"""Data generation of a row whose bytes are not, or not surely, the inode's: equal to none."""


@dataclass(frozen=True, slots=True)
class Target:
    """One mirror path as it has to be: whose it is, its last change, its last data change."""

    path: str
    ino: int
    generation: int
    data_gen: int


@dataclass(frozen=True, slots=True)
class Op:
    """One object to write. `row` is what stands there now (None: nothing of ours).

    PUT writes the bytes; COPY copies from `source` (a row of the same content); COPY_BLOB from the
    blob `blob_id`; REFRESH copies the object onto itself with new metadata.
    """

    kind: str
    target: Target
    row: MirrorRow | None
    source: MirrorRow | None = None
    blob_id: int = 0


@dataclass(slots=True)
class Plan:
    """The three phases; `current` are the targets that stand already."""

    early: list[MirrorRow] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    late: list[MirrorRow] = field(default_factory=list)
    current: list[Target] = field(default_factory=list)


def parents(path: str) -> Iterator[str]:
    """The directories above a mirror path, nearest first."""
    while (cut := path.rfind("/")) > 0:
        path = path[:cut]
        yield path


def is_current(row: MirrorRow, target: Target) -> bool:
    """Whether a row shows the target: the same inode, not older than its last change."""
    return (
        row.ino == target.ino
        and row.generation >= target.generation
        and row.data_gen == target.data_gen
    )


def make_plan(
    looked_at: Iterable[int],
    targets: Iterable[Target],
    rows: Iterable[MirrorRow],
    blobs: Mapping[int, int],
) -> Plan:
    """Plan the mirror of the inodes `looked_at`, whose paths are exactly `targets`.

    `rows` must hold all rows of these inodes, all rows at target paths, and all rows at directories
    above target paths. `blobs` maps an inode to a blob that holds exactly its bytes.
    """
    wanted = {target.path: target for target in targets}
    standing = {row.path.decode(): row for row in rows}
    inos = set(looked_at)
    in_the_way = _in_the_way(wanted, standing)
    plan = Plan(early=[standing[path] for path in sorted(in_the_way)])
    changing = [
        target
        for path, target in wanted.items()
        if path in in_the_way or path not in standing or not is_current(standing[path], target)
    ]
    untouchable = in_the_way | {target.path for target in changing}
    sources = _sources(inos, standing, untouchable)
    changing_paths = {target.path for target in changing}
    plan.current = [target for path, target in wanted.items() if path not in changing_paths]
    for target in changing:
        row = None if target.path in in_the_way else standing.get(target.path)
        plan.ops.append(_op(target, row, sources, blobs))
    plan.late = [
        row
        for path, row in sorted(standing.items())
        if row.ino in inos and path not in wanted and path not in in_the_way
    ]
    return plan


def _in_the_way(wanted: Mapping[str, Target], standing: Mapping[str, MirrorRow]) -> set[str]:
    """Standing paths that are a directory above, or lie below, a wanted path."""
    found = {above for path in wanted for above in parents(path) if above in standing}
    found.update(path for path in standing if any(above in wanted for above in parents(path)))
    return found


def _sources(
    inos: set[int], standing: Mapping[str, MirrorRow], untouchable: set[str]
) -> dict[tuple[int, int], MirrorRow]:
    """(ino, data generation) -> a row whose object can be copied from during phase 2."""
    return {
        (row.ino, row.data_gen): row
        for path, row in standing.items()
        if row.ino in inos and path not in untouchable
    }


def _op(
    target: Target,
    row: MirrorRow | None,
    sources: Mapping[tuple[int, int], MirrorRow],
    blobs: Mapping[int, int],
) -> Op:
    if row is not None and row.ino == target.ino and row.data_gen == target.data_gen:
        return Op(REFRESH, target, row)
    source = sources.get((target.ino, target.data_gen))
    if source is not None:
        return Op(COPY, target, row, source)
    if target.ino in blobs:
        return Op(COPY_BLOB, target, row, blob_id=blobs[target.ino])
    return Op(PUT, target, row)
