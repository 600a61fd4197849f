"""How often each kind of kernel request was answered, how long that took, and with which errors.

Invariants
1. Counting is on the way of every request (`translate.atomic`, `awaiting`), so it is one number
   that goes down. A clock costs more than that: one request of a kind in EVERY is timed, the first
   one too; of those in ALWAYS, which are rare and slow, each one is.
2. Durations are counted by their power of two (`int.bit_length` of nanoseconds): finer than anybody
   reads them, and exact in sum and number. They are the handler's own time, waits for the bucket
   included; the kernel's part, and the wait for a turn, are not in it.
3. Each wait for bytes that are only in the bucket is timed, as FETCH: no slow one goes unseen.
4. Counts begin at 0 with each daemon, and only grow.

Called by `fuse.translate`, `fuse.operations` and `fuse.waiting` (count), and the daemon (reads).
"""

from __future__ import annotations

import errno
from collections import Counter
from time import perf_counter_ns
from typing import Any, Final

EVERY: Final = 17
"""A prime: what a program repeats is mostly of another length."""
FETCH: Final = "fetch"
ALWAYS: Final = frozenset({"fsync", "fsyncdir", FETCH})

SUM: Final = 65
"""Where the sum of all nanoseconds stands: behind a slot for each number of bits, 0 to 64."""


class Kind:
    """Requests of one kind. `left`: the request that brings it to 0 is to be timed, by `begin` and
    `end`. At n of `slots` stands how often it took 2**(n-1) ns or longer, and less than 2**n.
    """

    __slots__ = ("_every", "_rounds", "left", "slots")

    def __init__(self, every: int) -> None:
        self._every = every
        self._rounds = 0
        self.left = 1
        self.slots = [0] * (SUM + 1)

    def begin(self) -> int:
        """A request that is timed begins: for `end`."""
        self.left = self._every
        self._rounds += 1
        return perf_counter_ns()

    def end(self, begun_ns: int) -> None:
        """It has ended."""
        took_ns = perf_counter_ns() - begun_ns
        self.slots[took_ns.bit_length()] += 1
        self.slots[SUM] += took_ns

    @property
    def count(self) -> int:
        """How many there were, timed or not."""
        return self._rounds * self._every - self.left + 1

    def to_json(self) -> dict[str, Any]:
        """Their number, and of those that were timed the sum, and the slots that are not empty."""
        return {
            "count": self.count,
            "sum_ns": self.slots[SUM],
            "bits": {str(bits): n for bits, n in enumerate(self.slots[:SUM]) if n},
        }


_declared: set[str] = {FETCH}


def declare(name: str) -> None:
    """There are requests of that kind. Before the first Tally is made."""
    _declared.add(name)


class Tally:
    """Of one mount."""

    def __init__(self) -> None:
        self.kinds = {name: Kind(1 if name in ALWAYS else EVERY) for name in sorted(_declared)}
        self.read_bytes = 0
        self.written_bytes = 0
        self._errors: Counter[int] = Counter()

    def failed(self, number: int) -> None:
        """A request was answered with this errno."""
        self._errors[number] += 1

    def to_json(self) -> dict[str, Any]:
        """All that was counted."""
        return {
            "ops": {name: kind.to_json() for name, kind in self.kinds.items() if kind.count},
            "errors": {
                errno.errorcode.get(number, str(number)): count
                for number, count in sorted(self._errors.items())
            },
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
        }
