"""Random lives of a workspace, in short: what is kept stands, and nothing else does (lives.py)."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from tests.history.lives import live

LIVES = 40
FIRST_SEED = 1 if os.environ.get("CI") else random.randrange(1 << 30)


@pytest.fixture(scope="module")
def seen() -> Counter[str]:
    """What happened in all lives together."""
    return Counter()


@pytest.mark.parametrize("number", range(LIVES))
def test_a_life(number: int, seen: Counter[str]) -> None:
    seed = FIRST_SEED + number
    print(f"python -m tests.history.lives --seed {seed} --seconds 1")
    seen.update(live(seed))


def test_enough_happened(seen: Counter[str]) -> None:
    if seen["change"] < LIVES:
        pytest.skip("only with the lives before it")
    for what in ("removed", "snapshots removed", "points read", "segments read", "bring_back"):
        assert seen[what] > 0, seen
