"""What a disk may hold of a file at the moment the power goes.

A page that was written and not flushed is on the disk as it was at the last flush, as it is now, or
as it was at any time between; no order of writes is promised. A `Tape` keeps all these versions of
each page, and makes images out of any choice of them, torn within pages too.

Invariants
1. An image never lacks what a finished flush covered: a version overwritten before that flush began
   is in no image.
2. The same `random.Random` gives the same image.

Called by tests.crash and tests.cache.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = 4096
SECTOR_BYTES: Final = 512


def pages_of(raw: bytes) -> list[bytes]:
    """The pages of a file; the last may be short."""
    return [raw[at : at + PAGE_BYTES] for at in range(0, len(raw), PAGE_BYTES)]


class Tape:
    """The versions of a file's pages since its last flush."""

    def __init__(self, path: Path, first: bytes | None = None) -> None:
        self._path = path
        self._now = pages_of(path.read_bytes() if first is None else first)
        self._base = list(self._now)
        self._since: dict[int, list[bytes]] = {}
        self._mark: tuple[list[bytes], dict[int, int]] | None = None

    def look(self) -> None:
        """Note what is written now. To be called as often as there is something new."""
        self.see(self._path.read_bytes())

    def see(self, raw: bytes) -> None:
        """Note what was written, read by the caller."""
        found = pages_of(raw)
        before = self._now
        for number, page in enumerate(found):
            if number >= len(before) or page != before[number]:
                self._since.setdefault(number, []).append(page)
        self._now = found

    def begin_flush(self) -> None:
        """A flush begins: what is written now will be on the disk when it has ended."""
        self.look()
        self._mark = list(self._now), {number: len(seen) for number, seen in self._since.items()}

    def end_flush(self) -> None:
        """The flush has ended."""
        self.look()
        assert self._mark is not None
        self._base, known = self._mark
        rest = {number: seen[known.get(number, 0) :] for number, seen in self._since.items()}
        self._since = {number: seen for number, seen in rest.items() if seen}
        self._mark = None

    @property
    def unflushed(self) -> int:
        """How many pages the power could still cost."""
        return len(self._since)

    def image(self, rng: random.Random) -> bytes:
        """What the disk may hold: all old, all new, or any mixture of pages or of sectors."""
        how = rng.choice(("pages", "pages", "sectors", "old", "new", "few", "most"))
        share = {"old": 0.0, "new": 1.0, "few": 0.05, "most": 0.95}.get(how, rng.random())
        length = rng.choice((len(self._base), len(self._now), rng.randrange(len(self._now) + 1)))
        length = max(length, len(self._base))
        parts = []
        for number in range(length):
            base = self._base[number] if number < len(self._base) else bytes(PAGE_BYTES)
            seen = self._since.get(number, ())
            if not seen or (how != "sectors" and rng.random() >= share):
                parts.append(base)
            elif how == "sectors":
                parts.append(_torn(rng, [base, *seen]))
            else:
                parts.append(rng.choice(seen))
        return b"".join(parts)


def _torn(rng: random.Random, versions: list[bytes]) -> bytes:
    return b"".join(
        rng.choice(versions)[at : at + SECTOR_BYTES] for at in range(0, PAGE_BYTES, SECTOR_BYTES)
    )
