"""A fault at every n-th request, commit, sync point, system call, and worker: see every.py.

Here each n gets one fault in turn (and of what there is much, every second or third n);
`python -m tests.crash.every` tries each fault at each n.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import every
from tests.crash.every import Base
from tests.crash.rig import fast_directory

STRIDES = {
    every.REQUEST: 1,
    every.COMMIT: 3,
    every.SYNC_POINT: 1,
    every.SYSCALL: 2,
    every.WORKER: 2,
}


@pytest.fixture(scope="module")
def base() -> Iterator[Base]:
    with fast_directory("s3ws-every-") as directory:
        yield Base(Path(directory))


@pytest.mark.parametrize("kind", every.KINDS)
def test_one_fault_each(base: Base, kind: str) -> None:
    refused = 0
    trials = list(base.trials(kind, sample=True))[:: STRIDES[kind]]
    for trial in trials:
        refused += bool(base.attempt(trial).refused)
    print(f"{kind}: {len(trials)} faults, {refused} told to somebody")
    # Faults that nobody noticed would prove nothing.
    assert refused > len(trials) / 4
