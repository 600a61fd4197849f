"""The arithmetic of the figures: medians, and ratios within a round. Pure.

Called by bench.report, bench.goals and bench.plots.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Final

from bench.results import Results

FLOORS: Final = ("null", "native")
PEER_NAMES: Final = ("rclone", "juicefs", "s3fs")
OURS: Final = "ours-s3"
BEST_PEER: Final = "best peer"
"""As the other half of a ratio: whichever peer was the fastest in that round."""

Steps = dict[str, dict[int, tuple[float, float]]]
"""Of one step: target → round → (seconds, amount)."""


def seconds_by_round(results: Results) -> dict[str, Steps]:
    """By step."""
    found: dict[str, Steps] = {}
    for turn in results.turns:
        for step in turn.steps:
            by_target = found.setdefault(step.name, {})
            by_target.setdefault(turn.target, {})[turn.round] = (step.seconds, step.amount)
    return found


def ratios(step: Steps, target: str, other: str) -> list[float]:
    """Time on `target` / time on `other`, of each round that has both."""
    ours, theirs = step.get(target, {}), _of(step, other)
    return [ours[number][0] / theirs[number][0] for number in ours if number in theirs]


def ratio(step: Steps, target: str, other: str) -> float | None:
    """Their median."""
    both = ratios(step, target, other)
    return statistics.median(both) if both else None


def _of(step: Steps, other: str) -> dict[int, tuple[float, float]]:
    if other != BEST_PEER:
        return step.get(other, {})
    best: dict[int, tuple[float, float]] = {}
    for name in PEER_NAMES:
        for number, measured in step.get(name, {}).items():
            best[number] = min(best.get(number, measured), measured)
    return best


def median_of(values: Iterable[float]) -> float:
    """Of at least one."""
    return statistics.median(list(values))


def seconds(step: Steps, target: str) -> float | None:
    """Median seconds."""
    rounds = step.get(target, {})
    return statistics.median(s for s, _ in rounds.values()) if rounds else None


def rate(step: Steps, target: str) -> float | None:
    """Median amount a second."""
    rounds = step.get(target, {})
    return statistics.median(a / s for s, a in rounds.values()) if rounds else None
