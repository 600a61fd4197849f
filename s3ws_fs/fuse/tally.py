"""How often each kind of kernel request was answered, how long that took, and with which errors.

Invariants
1. Counting is on the way of every request (`translate.atomic`, `awaiting`): two numbers are added
   to a list that stays, and nothing is computed before somebody asks.
2. Durations are counted by their power of two (`int.bit_length` of nanoseconds): finer than anybody
   reads them, and exact in sum and number. They are the handler's own time, waits for the bucket
   included; the kernel's part, and the wait for a turn, are not in it.
3. Counts begin at 0 with each daemon, and only grow.

Called by `fuse.translate` and `fuse.operations` (count), and the daemon (reads).
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from typing import Any, Final

SUM: Final = 65
"""Where the sum of all nanoseconds stands: behind a slot for each number of bits, 0 to 64."""


def _slots() -> list[int]:
    return [0] * (SUM + 1)


class Tally:
    """Of one mount. `kinds`: for each kind of request how often it took 2**(n-1) ns or longer, and
    less than 2**n, at n; and the sum, at SUM.
    """

    def __init__(self) -> None:
        self.kinds: defaultdict[str, list[int]] = defaultdict(_slots)
        self.read_bytes = 0
        self.written_bytes = 0
        self._errors: Counter[int] = Counter()

    def failed(self, number: int) -> None:
        """A request was answered with this errno."""
        self._errors[number] += 1

    def to_json(self) -> dict[str, Any]:
        """What was counted; of each kind the slots that are not empty, by number of bits."""
        return {
            "ops": {
                kind: {
                    "count": sum(slots[:SUM]),
                    "sum_ns": slots[SUM],
                    "bits": {str(bits): n for bits, n in enumerate(slots[:SUM]) if n},
                }
                for kind, slots in sorted(self.kinds.items())
            },
            "errors": {
                errno.errorcode.get(number, str(number)): count
                for number, count in sorted(self._errors.items())
            },
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
        }
