"""Backups: their names, when one is due, which are kept, and what their index says. Pure.

Keys (docs/format.md; relative to the workspace prefix)
    compressed/backup-{UTC time}.tar.gz             the archive
    compressed/backup-{UTC time}.index.jsonl.gz     its index; put last: it is the commit

A backup is *good* when its index says how long the archive is, and the archive is so long; it is
*whole* when it is good and has all files: an emergency's lacks those that were only in the bucket.

Invariants
1. `plan_prune` never drops the newest whole backup, and only ever names keys of backups.
2. What is not whole is dropped only when a whole one is newer, and it is older than INCOMPLETE_S;
   a half alone (an upload that was cut off) at once: backups are made one after the other, by the
   one writer that there is, so what is older than a whole one is not under way.
3. Times are arguments; a backup's own is in its name, in whole seconds of UTC.

Called by snapshot and cli.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from s3ws_fs.core.errors import ExitCode, UserError

COMPRESSED_PREFIX: Final = "compressed/"
GIT_PREFIX: Final = "git/"
ARCHIVE_SUFFIX: Final = ".tar.gz"
INDEX_SUFFIX: Final = ".index.jsonl.gz"

META_BYTES: Final = "s3ws-bytes"
META_ENTRIES: Final = "s3ws-entries"
META_RAW: Final = "s3ws-raw-bytes"
META_GENERATION: Final = "s3ws-gen"
META_MISSING: Final = "s3ws-missing"
META_WORKSPACE: Final = "s3ws-ws"
"""User metadata of an index: what a listing shows without reading it."""

INCOMPLETE_S: Final = 24 * 3600.0
BACKUPS_MAX: Final = 10_000
"""Backups that a listing looks at, the newest first."""

LEFT_OUT_LISTED_MAX: Final = 1000
"""Paths that were left out, as an index names them; of more it says how many."""

RETRY_MIN_S: Final = 30.0
EMERGENCY_AFTER_S: Final = 600.0
"""So long away, with changes unsaved, and the store counts as lost for now."""

_NAME: Final = re.compile(r"backup-([0-9]{8}T[0-9]{6}Z)", re.ASCII)
_TIME: Final = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class Keep:
    """How many backups are kept: the last ones, and the newest of so many hours, days, weeks."""

    last: int = 3
    hourly: int = 6
    daily: int = 7
    weekly: int = 4


@dataclass(slots=True)
class Backup:
    """A backup as a listing of the bucket shows it. Sizes are None where there is no object."""

    name: str
    archive_bytes: int | None = None
    index_bytes: int | None = None
    said: dict[str, str] = field(default_factory=dict)
    """Metadata of the index."""

    @property
    def time_s(self) -> int:
        """When it was taken: seconds since the epoch."""
        return time_of(self.name)

    @property
    def said_bytes(self) -> int | None:
        """How long its index says the archive is; None when it does not say."""
        return number(self.said, META_BYTES)

    @property
    def good(self) -> bool:
        """Whether it can be restored from, as far as sizes tell."""
        return self.said_bytes is not None and self.said_bytes == self.archive_bytes

    @property
    def missing(self) -> int:
        """Files that are not in it, for their bytes were in the bucket only."""
        return number(self.said, META_MISSING) or 0

    @property
    def whole(self) -> bool:
        """Whether it is good and has all files."""
        return self.good and not self.missing

    @property
    def keys(self) -> list[str]:
        """Its keys that stand, the index first: without it there is no backup."""
        found = []
        if self.index_bytes is not None:
            found.append(index_key(self.name))
        if self.archive_bytes is not None:
            found.append(archive_key(self.name))
        return found

    def to_json(self) -> dict[str, Any]:
        """For a person's programs."""
        return {
            "name": self.name,
            "time": iso(self.time_s),
            "good": self.good,
            "missing": self.missing,
            "bytes": self.archive_bytes,
            "entries": number(self.said, META_ENTRIES),
            "raw_bytes": number(self.said, META_RAW),
            "generation": number(self.said, META_GENERATION),
        }


def number(said: dict[str, str], name: str) -> int | None:
    """A number of an index's metadata; None when there is none, or it is none."""
    text = said.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


# --- names


def name_of(time_s: int) -> str:
    """The name of a backup that is taken now."""
    return "backup-" + datetime.fromtimestamp(time_s, UTC).strftime(_TIME)


def time_of(name: str) -> int:
    """Seconds since the epoch of a backup's name. Raises ValueError for what is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!a} is no backup's name")
    return int(datetime.strptime(match[1], _TIME).replace(tzinfo=UTC).timestamp())


def iso(time_s: float) -> str:
    """A time for people and programs."""
    return datetime.fromtimestamp(int(time_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def archive_key(name: str) -> str:
    """Key of a backup's archive."""
    return COMPRESSED_PREFIX + name + ARCHIVE_SUFFIX


def index_key(name: str) -> str:
    """Key of a backup's index."""
    return COMPRESSED_PREFIX + name + INDEX_SUFFIX


def parse_key(key: str) -> tuple[str, bool] | None:
    """(name, is it the index) of a key; None when it is none of a backup."""
    rest = key.removeprefix(COMPRESSED_PREFIX)
    for suffix, is_index in ((ARCHIVE_SUFFIX, False), (INDEX_SUFFIX, True)):
        if rest != key and rest.endswith(suffix):
            name = rest.removesuffix(suffix)
            try:
                time_of(name)
            except ValueError:
                return None
            return name, is_index
    return None


def gather(objects: Iterable[tuple[str, int, dict[str, str]]]) -> list[Backup]:
    """Backups from (key, size, metadata) of a listing, the newest first; other keys are left out.

    Only an index's metadata counts.
    """
    found: dict[str, Backup] = {}
    for key, size_bytes, said in objects:
        parsed = parse_key(key)
        if parsed is None:
            continue
        backup = found.setdefault(parsed[0], Backup(parsed[0]))
        if parsed[1]:
            backup.index_bytes = size_bytes
            backup.said = said
        else:
            backup.archive_bytes = size_bytes
    return sorted(found.values(), key=lambda backup: backup.name, reverse=True)


def choose(backups: list[Backup], wanted: str) -> Backup:
    """The backup that a person means: "latest", its name, or its time. Raises UserError."""
    good = [backup for backup in backups if backup.good]
    if not backups:
        raise UserError(
            "There is no backup of this workspace.",
            remedy="`s3ws backup MOUNTPOINT` makes one. The workspace itself is in the journal: "
            "mount it.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    if wanted == "latest":
        if good:
            return good[0]
        raise UserError(
            "None of the backups is whole.",
            remedy="`s3ws backups` lists them. The workspace itself is in the journal: mount it.",
            exit_code=ExitCode.DAMAGED,
        )
    name = wanted.removeprefix(COMPRESSED_PREFIX).removesuffix(ARCHIVE_SUFFIX)
    named = [b for b in backups if name in (b.name, b.name.removeprefix("backup-"), iso(b.time_s))]
    if not named:
        near = ", ".join(backup.name for backup in backups[:3])
        raise UserError(
            f"There is no backup {wanted[:100]!a}.",
            remedy=f"`s3ws backups` lists them; the newest: {near}.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    if not named[0].good:
        raise UserError(
            f"{named[0].name} is not whole: its index and its archive do not go together.",
            remedy="Take another one: `s3ws backups` shows which are whole.",
            exit_code=ExitCode.DAMAGED,
        )
    return named[0]


# --- which are kept


def kept(times_s: Iterable[int], keep: Keep) -> set[int]:
    """Which of the times of whole backups are kept; the newest always is."""
    newest_first = sorted(set(times_s), reverse=True)
    found = set(newest_first[: max(1, keep.last)])
    for count, form in ((keep.hourly, "%Y%m%d%H"), (keep.daily, "%Y%m%d"), (keep.weekly, "%G%V")):
        seen: set[str] = set()
        for time_s in newest_first:
            period = datetime.fromtimestamp(time_s, UTC).strftime(form)
            if period not in seen and len(seen) < count:
                seen.add(period)
                found.add(time_s)
    return found


def plan_prune(backups: Iterable[Backup], keep: Keep, now_s: float) -> list[Backup]:
    """Backups to drop, the oldest first (invariants 1 and 2)."""
    found = list(backups)
    whole = [backup.time_s for backup in found if backup.whole]
    if not whole:
        return []
    staying = kept(whole, keep)
    newest = max(whole)

    def goes(backup: Backup) -> bool:
        if backup.whole:
            return backup.time_s not in staying
        is_half = backup.archive_bytes is None or backup.index_bytes is None
        is_old = is_half or backup.time_s < now_s - INCOMPLETE_S
        return backup.time_s < newest and is_old

    return sorted((b for b in found if goes(b)), key=lambda backup: backup.name)


# --- when


@dataclass(slots=True)
class Schedule:
    """When the next backup is due. Times are seconds of one monotonic clock.

    One every `interval_s` (0: none) while something changed; the first so long after the mount; a
    failed one is tried again, after RETRY_MIN_S doubling up to the interval.
    """

    interval_s: float
    last_s: float
    """When the last one was taken; at the start, of the mount."""
    generation: int | None = None
    """Of the last one; None when there was none."""
    failures: int = 0

    def due_s(self, generation: int) -> float | None:
        """When the next one is due while the workspace is at `generation`; None: it is not."""
        if self.interval_s <= 0 or generation == self.generation:
            return None
        wait_s = self.interval_s
        if self.failures:
            wait_s = min(wait_s, RETRY_MIN_S * 2.0 ** min(self.failures - 1, 20))
        return self.last_s + wait_s

    def done(self, now_s: float, generation: int) -> None:
        """One was made, of this generation."""
        self.last_s, self.generation, self.failures = now_s, generation, 0

    def failed(self, now_s: float) -> None:
        """One was begun, and failed."""
        self.last_s = now_s
        self.failures += 1
