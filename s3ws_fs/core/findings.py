"""What a check has to say: findings, how bad they are, and the report they are collected in.

Invariants
1. A finding's code is in CODES (docs/check.md has the same table): nothing is reported that is not
   documented, and each code has a test that brings it about.
2. Counts are exact; of the findings at most LISTED_MAX are kept.
3. A check is `ok` when nothing is wrong that was not repaired. What is pending, or a note, is not
   wrong: a live mount's mirror lags behind by design.

Called by cache.verify and its neighbours, transfer.audit and the cli.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

LISTED_MAX: Final = 10_000
"""Findings kept one by one; beyond it they are only counted."""
PATHS_MAX: Final = 100
"""Paths named with one finding; `paths_total` says how many there are."""


class Severity(enum.StrEnum):
    """How bad a finding is."""

    DAMAGE = "damage"
    """Something of ours is wrong: bytes, records, or an object that is missing."""
    FOREIGN = "foreign"
    """Somebody else's doing: an object that is not ours, or was changed from outside."""
    PENDING = "pending"
    """On its way: the mirror behind the seal, what a live mount changes while it is looked at."""
    NOTE = "note"
    """Worth knowing; nothing is wrong."""


CODES: Final[dict[str, str]] = {
    # --- the cache's files
    "engine": "the database file is structurally wrong, or can't be opened",
    "engine-skipped": "the structure of a large file in use was not walked",
    "identity": "identity.json is missing, unreadable, or of another format",
    "boot-file": "boot.json is missing or unreadable beside a cache",
    "spoilt": "a flush to the cache's disk failed, and the cache was not made anew yet",
    "recovery-due": "a power cut or reboot: the next mount goes back to the sync point",
    "sync-point": "no valid sync point, or one that is newer than the cache",
    "quarantine": "an older cache that could not be trusted is kept in quarantine",
    "not-restored": "the cache does not hold the whole workspace yet",
    # --- records
    "record": "a key or a record does not decode",
    "head": "the counters' record is missing or does not decode",
    "next-ino": "an inode has a number that was not given out yet",
    "used-bytes": "the counter of bytes is not the sum of the inodes",
    "inode-count": "the counter of inodes is not their number",
    "root": "the root directory is missing or wrong",
    "inode-type": "an inode is of no known type",
    "inode-size": "an inode's size is not possible for its type",
    "data-gen": "an inode's data generation is newer than the head",
    "alloc": "an inode's count of bytes held is not the sum of its extents",
    "name": "a name no directory can hold",
    "dentry-hash": "an entry stands under the hash of another name",
    "dentry-target": "an entry names an inode that does not exist",
    "dentry-parent": "an entry stands in something that is no directory",
    "link": "an entry and the links its inode notes do not agree",
    "nlink": "a link count is not the number of links",
    "unreachable": "an inode has no path from the root",
    "cycle": "a directory is its own ancestor",
    "orphan": "the table of orphans and the link counts do not agree",
    "extent-owner": "an extent of an inode that does not exist or is no file",
    "extent-end": "an extent reaches beyond its size or the end of its file",
    "extent-digest": "bytes held are not those of the location they claim",
    "extent-unshipped": "bytes held that are neither dirty nor anywhere in the bucket",
    "location": "a location names an object that can't be",
    "xattr": "an extended attribute without an inode, or beyond the limits",
    "dirty": "a dirty mark of a generation, or for a record, that can't be",
    "mtodo": "a mirror to-do of an inode or a generation that can't be",
    "mirror-row": "a row of the mirror that can't be",
    "mirror-index": "the mirror's rows and their index do not agree",
    "mirror-lacking": "a file has no current row in the mirror and is not on its to-do",
    "mirror-stale": "a row of the mirror for a path that is no file's",
    "meta": "a bookkeeping value does not decode",
    "position": "what is noted as sealed or mirrored is newer than the cache",
    # --- the bucket
    "workspace-file": "journal/workspace.json is missing or wrong",
    "mirrored-file": "journal/mirrored.json is wrong",
    "lease-file": "journal/lease.json is wrong: the next mount needs --take-over",
    "object-missing": "an object that records name is missing",
    "object-size": "an object is shorter than what records place in it",
    "object-damaged": "an object's bytes are not those its digests vouch for",
    "extent-damaged": "bytes of files are not what their digest says",
    "journal-gap": "numbers of the journal are missing",
    "history-file": "history.json does not decode, or is of another workspace",
    "history-gap": "numbers are missing that points of history need",
    "snapshot": "a snapshot does not decode, or names a point that is not there",
    "journal-chain": "a journal object does not continue the one before it",
    "journal-counts": "a journal object's header and its records do not agree",
    "unknown-object": "an object below the prefix that no part of the format names",
    "garbage": "an object that nothing names; it goes with the next checkpoint's clean-up",
    "mirror-missing": "a file has no object in the mirror",
    "mirror-differs": "an object of the mirror shows something else than the file",
    "mirror-damaged": "an object of the mirror has other bytes than it says itself",
    "mirror-leftover": "an object of ours in the mirror at a path that is no file's",
    "mirror-foreign": "an object in the mirror that this workspace did not put, or not there",
    "mirror-changed": "an object of the mirror was changed since this cache put it",
    "cache-differs": "a sealed record of the cache is another one in the bucket",
    "cache-behind": "the bucket went on without this cache",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `where` is a record, file or object; `paths` the files it touches.

    `ino` and `key` (an inode; a key of the table the code is about) are for repair.
    """

    severity: Severity
    code: str
    where: str
    message: str
    paths: tuple[bytes, ...] = ()
    paths_total: int = 0
    repairable: bool = False
    repaired: bool = False
    ino: int = 0
    key: bytes = b""


def damage(
    code: str, where: str, message: str, paths: Iterable[bytes] = (), **more: Any
) -> Finding:
    """A finding that something of ours is wrong."""
    return make(Severity.DAMAGE, code, where, message, paths, **more)


def make(
    severity: Severity,
    code: str,
    where: str,
    message: str,
    paths: Iterable[bytes] = (),
    **more: Any,
) -> Finding:
    """A finding; of `paths` the first PATHS_MAX are kept."""
    assert code in CODES, code
    named = tuple(paths)
    return Finding(
        severity,
        code,
        where,
        message,
        paths=named[:PATHS_MAX],
        paths_total=len(named),
        **more,
    )


@dataclass(slots=True)
class Report:
    """Findings of one check, and how much was looked at (`checked`, by kind)."""

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    checked: Counter[str] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        """Take a finding in."""
        if finding.repaired:
            self.repaired += 1
        else:
            self.counts[finding.severity.value] += 1
        if len(self.findings) < LISTED_MAX:
            self.findings.append(finding)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Take several in."""
        for finding in findings:
            self.add(finding)

    def note_repaired(self, gone: Iterable[Finding]) -> None:
        """Take in what a repair made good."""
        for finding in gone:
            self.add(replace(finding, repaired=True))

    @property
    def omitted(self) -> int:
        """Findings that are counted but not kept."""
        return sum(self.counts.values()) + self.repaired - len(self.findings)

    @property
    def has_damage(self) -> bool:
        """Whether something of ours is wrong."""
        return self.counts[Severity.DAMAGE] > 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.has_damage and not self.counts[Severity.FOREIGN]
