"""When a checkpoint is due: by weight, and at the limits whatever the weight."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.folding import (
    BYTES_MAX,
    SEGMENT_COST_BYTES,
    SEGMENTS_MAX,
    SEGMENTS_MIN,
    is_due,
)


def first_due(segment_bytes: int, checkpoint_bytes: int) -> int:
    """With which segment after the last checkpoint the next comes, when all are of this size."""
    count = 1
    while not is_due(count, (count - 1) * segment_bytes, checkpoint_bytes):
        count += 1
    return count


def test_a_small_tree_has_one_every_so_many_segments() -> None:
    for checkpoint_bytes in (0, 1, SEGMENTS_MIN * SEGMENT_COST_BYTES):
        assert not is_due(SEGMENTS_MIN - 1, BYTES_MAX - 1, checkpoint_bytes)
        assert is_due(SEGMENTS_MIN, 0, checkpoint_bytes)
    assert not is_due(SEGMENTS_MIN, 0, SEGMENTS_MIN * SEGMENT_COST_BYTES + 1)


def test_a_large_tree_waits_until_the_segments_weigh_as_much() -> None:
    weight = 3 * SEGMENTS_MIN * SEGMENT_COST_BYTES
    assert first_due(0, weight) == 3 * SEGMENTS_MIN
    assert first_due(SEGMENT_COST_BYTES, weight) == 1.5 * SEGMENTS_MIN + 1
    assert not is_due(100, weight - 100 * SEGMENT_COST_BYTES - 1, weight)
    assert is_due(100, weight - 100 * SEGMENT_COST_BYTES, weight)


def test_no_more_are_replayed_than_the_limits_say() -> None:
    huge = 1 << 50
    assert not is_due(SEGMENTS_MAX - 1, 0, huge)
    assert is_due(SEGMENTS_MAX, 0, huge)
    assert not is_due(1, BYTES_MAX - 1, huge)
    assert is_due(1, BYTES_MAX, huge)


@given(st.integers(0, 1 << 22), st.integers(0, SEGMENTS_MAX * SEGMENT_COST_BYTES))
def test_what_checkpoints_add_is_in_proportion_to_what_is_sealed(
    segment_bytes: int, checkpoint_bytes: int
) -> None:
    """Below SEGMENTS_MAX: at most as much again as the segments weigh, and the next one."""
    count = first_due(segment_bytes, checkpoint_bytes)
    weight = (count - 1) * segment_bytes + count * SEGMENT_COST_BYTES
    assert checkpoint_bytes <= weight or (count - 1) * segment_bytes >= BYTES_MAX
    assert count <= SEGMENTS_MIN or weight < checkpoint_bytes + segment_bytes + SEGMENT_COST_BYTES


def test_whoever_knows_better_may_have_them_sooner() -> None:
    assert is_due(2, 0, 0, segments_min=2)
    assert not is_due(1, 0, 0, segments_min=2)
    assert not is_due(2, 0, 2 * SEGMENT_COST_BYTES + 1, segments_min=2)
