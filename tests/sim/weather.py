"""What goes wrong between the hosts and the store, and when: drawn from the seed.

Fair weather and spells of bad weather follow each other. In a spell each request goes wrong with
its chance, in one of its ways (tests/support/faulty_store.py), or is slow, or hangs.

Invariants
1. `trouble_s` is when something last went wrong: who fails without a cause has found a bug.
2. While nothing works, at most TRIES_MAX requests a minute are sent (for each host that is alive).
3. All is by the simulated clock and the seed.

Called by the modules of sim only.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from tests.sim.tree import Wrong
from tests.support.faulty_store import CHANGES, Fault, Request


@dataclass(frozen=True, slots=True)
class Spell:
    """A kind of bad weather: chance of each fault, and how long a request takes."""

    name: str
    faults: tuple[tuple[Fault, float], ...] = ()
    slow_s: float = 0.0
    hang_s: float = 0.0
    """A request that goes wrong does so after this time: nobody answers."""
    long_s: float = 60.0
    """How long it lasts, on average."""


FAIR: Final = Spell("fair")
SPELLS: Final = (
    Spell("refused", ((Fault.RESET, 1.0),), long_s=180),
    Spell("black hole", ((Fault.RESET, 1.0),), hang_s=30, long_s=180),
    Spell("errors", ((Fault.ERROR, 0.3),)),
    Spell("throttled", ((Fault.SLOW_DOWN, 0.8),), slow_s=0.5),
    Spell("answers lost", ((Fault.LOST, 0.3), (Fault.RESET, 0.1))),
    Spell("late", ((Fault.LATE, 0.2), (Fault.LOST, 0.1)), slow_s=1.0),
    Spell("slow", slow_s=5.0, long_s=120),
    Spell("denied", ((Fault.DENIED, 1.0),), long_s=120),
    Spell("torn listings", ((Fault.PARTIAL, 0.3), (Fault.ERROR, 0.1))),
    Spell("garbled", ((Fault.FLIPPED, 0.1), (Fault.SHORT, 0.1))),
    Spell("everything", tuple((fault, 0.04) for fault in Fault if "kill" not in fault.value
                              and fault is not Fault.CONFLICT), slow_s=1.0),
)  # fmt: skip
TRIES_MAX: Final = 250
"""A mirror pass that is denied asks for each of its files, a hundred at most, and two people may
want a pass of their own."""
FAIR_S: Final = 100.0
"""How long fair weather lasts, on average."""
NORMAL_S: Final = 0.02
"""How long a request takes in fair weather, on average."""


class Weather:
    """The weather over all hosts of a run."""

    def __init__(self, rng: random.Random, now_s: Callable[[], float]) -> None:
        self._rng = rng
        self._now_s = now_s
        self.spell = FAIR
        self.trouble_s = 0.0
        self.stays_fair = False
        self.spares_mirror = False
        """No byte of the mirror is spoilt on its way: nothing could tell it from an edit."""
        self._minute = 0
        self._tries = 0
        self.most_tries = 0
        self.seen: Counter[str] = Counter()

    async def run(self) -> None:
        """Change, for ever."""
        rng = self._rng
        while True:
            await trio.sleep(rng.expovariate(1 / FAIR_S))
            if not self.stays_fair:
                self.spell = rng.choice(SPELLS)
                self.seen[f"spell {self.spell.name}"] += 1
                self.trouble()
            await trio.sleep(rng.expovariate(1 / self.spell.long_s))
            self.clear()

    def clear(self) -> None:
        """Fair from now on, until the next spell."""
        if self.spell is not FAIR:
            self.trouble()
        self.spell = FAIR

    def trouble(self) -> None:
        """Something goes wrong now."""
        self.trouble_s = self._now_s()

    def _count_try(self) -> None:
        minute = int(self._now_s() / 60)
        if minute != self._minute:
            self._minute, self._tries = minute, 0
        self._tries += 1
        self.most_tries = max(self.most_tries, self._tries)
        if self._tries > TRIES_MAX:
            raise Wrong(f"{self._tries} requests within a minute, and nothing works")

    def choose(self, request: Request) -> Fault | None:
        """What happens to a request."""
        if self.spell.faults[:1] and self.spell.faults[0][1] == 1.0:
            self._count_try()
        for fault, chance in self.spell.faults:
            if self._rng.random() < chance and self._fits(fault, request):
                self.trouble()
                self.seen[f"fault {fault.value}"] += 1
                return fault
        return None

    def _fits(self, fault: Fault, request: Request) -> bool:
        if fault is Fault.FLIPPED and self.spares_mirror and "/files/" in request.key:
            return False
        return _fits(fault, request)

    def before_s(self) -> float:
        """How long a request is under way to the store."""
        spell = self.spell
        if spell.hang_s:
            self.trouble()
            return spell.hang_s
        if spell.slow_s:
            self.trouble()
        return self._rng.expovariate(1 / (spell.slow_s or NORMAL_S))

    def after_s(self) -> float:
        """How long its answer takes: in fair weather that is in `before_s`."""
        if self.spell is FAIR:
            return 0.0
        return self._rng.expovariate(1 / (self.spell.slow_s or NORMAL_S))


def _fits(fault: Fault, request: Request) -> bool:
    if fault in (Fault.LOST, Fault.LATE):
        return request.op in CHANGES
    if fault is Fault.PARTIAL:
        return request.op in ("delete_many", "list")
    if fault in (Fault.SHORT, Fault.FLIPPED):
        return request.op == "get"
    return True
