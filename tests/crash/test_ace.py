"""Every short sequence of operations, and a crash after it: see ace.py and sequences.py.

Here all sequences of one and two operations, and some of three;
`python -m tests.crash.ace` tries all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.ace import Ace
from tests.crash.rig import fast_directory
from tests.crash.sequences import KINDS, sequences

BUCKET_EVERY = 12
THIRD_EVERY = 211
COUNTS = {1: 16, 2: 724}


@pytest.fixture(scope="module")
def ace() -> Iterator[Ace]:
    with fast_directory("s3ws-ace-") as directory:
        yield Ace(Path(directory) / "w")


@pytest.mark.parametrize("length", COUNTS)
def test_every_sequence(ace: Ace, length: int) -> None:
    found = list(sequences(length))
    assert len(found) == len(set(found)) == COUNTS[length]
    for sequence in found:
        ace.crash(sequence)


def test_some_of_three(ace: Ace) -> None:
    for sequence in sequences(3, THIRD_EVERY):
        ace.crash(sequence)


def test_with_a_flush_in_between(ace: Ace) -> None:
    for number, sequence in enumerate(sequences(2, BUCKET_EVERY)):
        ace.bucket(sequence, number % 3)


def test_every_operation_is_in_every_place() -> None:
    seen: list[set[str]] = [set(), set()]
    for sequence in sequences(2):
        for place, op in zip(seen, sequence.ops, strict=True):
            is_directory = op.kind == "fsync" and "/" not in op.path
            place.add("fsync-directory" if is_directory else op.kind)
    assert seen == [set(KINDS), set(KINDS)]
