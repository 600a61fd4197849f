"""History of a workspace that nobody changes: when it is looked at, so that what is too old goes.

Garbage is removed after a checkpoint, and a checkpoint is made of a seal. Where nothing changes
there would be none, and everything stayed that the last busy day left. So the same state is sealed
once more, with a checkpoint, when the limits say that something may go (core.retention): three
times at most after a change, the first a day later. No process is kept for it.

Invariants
1. Looks are counted by the cache's own clock, and noted in the cache: a mount that ends before one
   is due leaves it to the next. A clock that is wrong makes a look too soon or too late; what goes
   is decided by the store's clock.
2. A note of another segment than the newest counts for nothing: the change is taken for one of now.

Called by flusher and replicator.
"""

from __future__ import annotations

from typing import Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.retention import Limits, next_look_ns

NOTE: Final = "idle"


class IdleLooks:
    """See above. `load` when the newest segment is known."""

    def __init__(self, cache: Cache, limits: Limits) -> None:
        self._cache = cache
        self._limits = limits
        self._sealed_ns = 0
        self._looks_ns: list[int] = []

    def load(self, number: int) -> None:
        """Go on from the cache's note, if it is of this segment."""
        note = self._cache.get_json(NOTE)
        try:
            known, sealed_ns, looks_ns = note["number"], note["sealed_ns"], note["looks_ns"]
            if known == number and number:
                self._sealed_ns, self._looks_ns = int(sealed_ns), [int(at) for at in looks_ns]
                return
        except (KeyError, TypeError, ValueError):
            # None yet, or none that can be read: invariant 2.
            self._looks_ns = []
        # Not noted before something is sealed: a mount may begin on a disk that is full.
        self._sealed_ns, self._looks_ns = self._cache.now_ns(), []

    def sealed(self, number: int, *, is_change: bool) -> None:
        """A segment was sealed: with changes, or a look's."""
        now_ns = self._cache.now_ns()
        if is_change:
            self._sealed_ns, self._looks_ns = now_ns, []
        else:
            self._looks_ns.append(now_ns)
        self._note(number)

    def due_s(self, now_s: float) -> float | None:
        """When the next look is due, in trio's time; None: there is nothing to look for."""
        due_ns = next_look_ns(self._sealed_ns, self._looks_ns, self._limits)
        return None if due_ns is None else now_s + max(0.0, (due_ns - self._cache.now_ns()) / 1e9)

    def is_due(self) -> bool:
        """Whether it is now."""
        now_s = trio.current_time()
        due_s = self.due_s(now_s)
        return due_s is not None and due_s <= now_s

    def _note(self, number: int) -> None:
        note = {"number": number, "sealed_ns": self._sealed_ns, "looks_ns": self._looks_ns}
        self._cache.put_json(NOTE, note)
