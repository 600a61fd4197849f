"""What of history is kept: a pure policy over numbers, dates and sizes.

Objects are named by one integer: a segment by its number, a blob by its id (top bit set), a
checkpoint by its number's negative.

    window     all points from one number on to the newest: as far back as HOURS reach, and as the
               bytes fit that nothing but history needs
    snapshots  named ones stay; automatic ones go by age, and the oldest first when bytes do not fit

Invariants
1. The newest point is always kept, and so is what a person named.
2. The window begins with the state that stood when its hours began, however old that is; so
   "as it was N hours ago" has an answer for every N up to HOURS.
3. More hours, more bytes or more days never keep less.
4. Of the points before a restore or an undo the newest is kept whatever its size, until it is too
   old: an undo must not be lost by what the restore removed.

Called by transfer (garbage, audit), replica (idle) and tests.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.core.bounds import HISTORY_HOURS, HISTORY_MAX_BYTES, SNAPSHOT_DAYS
from s3ws_fs.core.history import NAMED, UNDOABLE

LOOK_LATER_HOURS: Final = 2.0
"""So much later than its limits say is an idle workspace's history looked at: nothing that was put
within an hour is removed (transfer.garbage), and the store's clock may be another."""

_HOUR_NS: Final = 3_600_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How much history is kept."""

    hours: float = HISTORY_HOURS
    max_bytes: int = HISTORY_MAX_BYTES
    days: float = SNAPSHOT_DAYS

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"hours": self.hours, "max_bytes": self.max_bytes, "days": self.days}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Limits:
        """The inverse of `to_json`."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Mark:
    """A snapshot: its key, number and kind, and when it was put by the store's clock."""

    key: str
    number: int
    kind: str
    put_ns: int

    @property
    def age(self) -> tuple[int, int, str]:
        """The older, the less; no two are equal."""
        return self.number, self.put_ns, self.key


def reachable_from(segments: Collection[int], checkpoints: Collection[int], newest: int) -> int:
    """The lowest number from which on every point up to `newest` can be rebuilt.

    A point can when there is a checkpoint of its number, or its segment and the point before.
    """
    lowest = newest
    number = newest
    while number and (number in segments or number in checkpoints):
        if number in checkpoints:
            lowest = number
        number -= 1
    return lowest if number else min(1, newest)


def window_from(
    lowest: int, newest: int, put_ns: Mapping[int, int], now_ns: int, hours: float
) -> int:
    """The first point of the window by its hours alone, not below `lowest` (invariant 2)."""
    limit_ns = now_ns - int(hours * _HOUR_NS)
    for number in range(newest, lowest, -1):
        if put_ns.get(number, 0) <= limit_ns:
            return number
    return min(lowest, newest)


def expired(marks: Iterable[Mark], now_ns: int, days: float) -> list[Mark]:
    """Automatic snapshots that are too old."""
    limit_ns = now_ns - int(days * 24 * _HOUR_NS)
    return [mark for mark in marks if mark.kind != NAMED and mark.put_ns <= limit_ns]


def next_look_ns(sealed_ns: int, looks_ns: Sequence[int], limits: Limits) -> int | None:
    """When history has to be looked at next though nothing changes; None: there is nothing more.

    `sealed_ns`: when the newest change was sealed; `looks_ns`: the looks since. Each seals the same
    state again, with a checkpoint. The first comes when only that state is left in the window; what
    it is made of goes with the second, when the window begins at the first one's checkpoint. One
    more comes when automatic snapshots are too old.
    """
    hours_ns = int((limits.hours + LOOK_LATER_HOURS) * _HOUR_NS)
    days_ns = int((limits.days * 24 + LOOK_LATER_HOURS) * _HOUR_NS)
    wanted = [sealed_ns + hours_ns, sealed_ns + days_ns]
    first = min((at for at in looks_ns if at >= wanted[0]), default=None)
    if first is not None:
        wanted.append(first + hours_ns)
    newest = max(looks_ns, default=sealed_ns)
    return min((at for at in wanted if at > newest), default=None)


def tops(
    segments: Iterable[int],
    checkpoints: Collection[int],
    named_until: Mapping[int, int],
    newest: int,
) -> dict[int, int]:
    """By object: the newest point that needs it, as long as the window reaches back to that point.

    `named_until`: by object, the last point whose records name bytes in it.
    """
    found = dict(named_until)
    folds = sorted(checkpoints)
    for number in segments:
        # The records of a segment serve the points behind it, up to the next checkpoint.
        at = bisect_right(folds, number - 1)
        top = folds[at] - 1 if at < len(folds) else newest
        if number <= newest and top >= number:
            found[number] = max(top, found.get(number, 0))
    for at, number in enumerate(folds):
        top = folds[at + 1] - 1 if at + 1 < len(folds) else newest
        found[-number] = top
    return found


def fit_window(
    lowest: int,
    newest: int,
    top_of: Mapping[int, int],
    sizes: Mapping[int, int],
    free: Collection[int],
    max_bytes: int,
) -> tuple[int, int]:
    """The first point of the window when its bytes have to fit too, and how many these are.

    `free`: objects that do not count, since something else needs them anyway.
    """
    ending: dict[int, int] = {}
    for item, top in top_of.items():
        if top >= lowest and item not in free:
            ending[top] = ending.get(top, 0) + sizes.get(item, 0)
    total = 0
    for top in sorted(ending, reverse=True):
        if total + ending[top] > max_bytes:
            return min(top + 1, newest), total
        total += ending[top]
    return min(lowest, newest), total


def fit_snapshots(
    marks: Sequence[tuple[Mark, Collection[int]]],
    sizes: Mapping[int, int],
    counted: Collection[int],
    left_bytes: int,
) -> list[Mark]:
    """Which of these automatic snapshots must go, the oldest first; each with what it needs.

    `counted`: objects that are kept or counted already.
    """
    seen = set(counted)
    gone: list[Mark] = []
    has_undo = False
    for mark, needs in sorted(marks, key=lambda pair: pair[0].age, reverse=True):
        more = sum(sizes.get(item, 0) for item in needs if item not in seen)
        is_protected = mark.kind in UNDOABLE and not has_undo
        has_undo = has_undo or mark.kind in UNDOABLE
        if (gone or more > left_bytes) and not is_protected:
            gone.append(mark)
            continue
        left_bytes -= more
        seen.update(needs)
    return gone
