"""What the charts show: how old the oldest unsaved change was, and how much was uploaded, by time.

Invariants
1. In memory only, and bounded: SAMPLES_MAX of each of MOUNTS_MAX mounts; of more mounts those that
   were not sampled for longest are forgotten, of more samples the oldest.
2. Samples of a mount are at least SAMPLE_S apart, and their times rise.
3. A rate is of two neighbouring samples of one daemon; a counter that fell began anew, and gives
   none.

Called by web.mounts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Final

SAMPLES_MAX: Final = 600
MOUNTS_MAX: Final = 128
SAMPLE_S: Final = 1.0
SPARK_MAX: Final = 40
"""Samples that the list of mounts shows of each."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a mount. Times are seconds since the epoch."""

    time_s: float
    age_s: float
    """Of the oldest unsaved change; 0 when there is none."""
    sent_bytes: int | None
    """Uploaded since the mount; None when it does not say."""


class Samples:
    """By mount, the newest last."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, deque[Sample]] = OrderedDict()

    def note(self, key: str, sample: Sample) -> None:
        """One more, if it is time for one."""
        held = self._held.setdefault(key, deque(maxlen=SAMPLES_MAX))
        if held and sample.time_s < held[-1].time_s + SAMPLE_S:
            return
        held.append(sample)
        self._held.move_to_end(key)
        while len(self._held) > MOUNTS_MAX:
            self._held.popitem(last=False)

    def chart(self, key: str) -> dict[str, list[Any]]:
        """Columns of equal length: time, age, and bytes a second (None: not known)."""
        held = self._held.get(key, ())
        rates: list[float | None] = []
        before: Sample | None = None
        for sample in held:
            rates.append(_rate(before, sample))
            before = sample
        return {
            "time_s": [round(each.time_s, 1) for each in held],
            "age_s": [round(each.age_s, 2) for each in held],
            "rate": rates,
        }

    def spark(self, key: str) -> list[float]:
        """The last ages."""
        held = self._held.get(key, ())
        return [round(each.age_s, 2) for each in list(held)[-SPARK_MAX:]]


def _rate(before: Sample | None, now: Sample) -> float | None:
    if before is None or before.sent_bytes is None or now.sent_bytes is None:
        return None
    grown = now.sent_bytes - before.sent_bytes
    return None if grown < 0 else round(grown / (now.time_s - before.time_s), 1)


def sample_of(document: dict[str, Any], time_s: float) -> Sample:
    """What a status document says for the charts."""
    age = _member(document, "dirty", "oldest_age_s")
    sent = _member(document, "counts", "store", "sent_bytes")
    return Sample(
        time_s,
        float(age) if isinstance(age, int | float) else 0.0,
        sent if isinstance(sent, int) else None,
    )


def _member(document: object, *names: str) -> object:
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document
