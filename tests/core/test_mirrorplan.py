"""The mirror plan, applied to a model store in any order, gives exactly the target."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import mirrorplan as mp
from s3ws_fs.core.records import MirrorRow

Content = tuple[int, int, int]
SEGMENTS = ("a", "b", "c")
all_paths = [
    "/".join(p)
    for p in [(x,) for x in SEGMENTS]
    + [(x, y) for x in SEGMENTS for y in SEGMENTS]
    + [(x, y, z) for x in SEGMENTS for y in SEGMENTS for z in SEGMENTS]
]


def tree(draw_paths: list[str]) -> list[str]:
    """The paths that can be files together: none is a directory of another."""
    return [
        p
        for p in dict.fromkeys(draw_paths)
        if not any(q != p and q.startswith(p + "/") for q in draw_paths)
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Content], dict[str, Content], set[int], set[int]]:
    """Objects standing, objects wanted, inodes looked at, and blobs there are."""
    content = st.tuples(st.integers(1, 5), st.just(0), st.just(0))
    before = {
        p: draw(content) for p in tree(draw(st.lists(st.sampled_from(all_paths), max_size=8)))
    }
    gens = {ino: draw(st.integers(0, 2)) for ino in range(1, 6)}
    data = {ino: draw(st.integers(0, gens[ino])) for ino in range(1, 6)}
    after = {}
    for path in tree(draw(st.lists(st.sampled_from(all_paths), max_size=8))):
        ino = draw(st.integers(1, 5))
        after[path] = (ino, data[ino], gens[ino])
    blobs = draw(st.sets(st.integers(1, 5)))
    return before, after, set(range(1, 6)), blobs


@given(cases(), st.randoms(use_true_random=False))
def test_applying_the_plan_gives_the_target(
    case: tuple[dict[str, Content], dict[str, Content], set[int], set[int]], rng: random.Random
) -> None:
    before, after, looked_at, blobs = case
    rows = [
        MirrorRow(p.encode(), ino, gen, data, f"e{p}", bytes(16))
        for p, (ino, data, gen) in before.items()
    ]
    targets = [mp.Target(p, ino, gen, data) for p, (ino, data, gen) in after.items()]
    plan = mp.make_plan(looked_at, targets, rows, {ino: 1 << 63 | ino for ino in blobs})
    store = dict(before)
    for row in plan.early:
        del store[row.path.decode()]
    rng.shuffle(plan.ops)
    for op in plan.ops:
        apply(store, op)
    for row in plan.late:
        del store[row.path.decode()]
    assert store == after
    assert len(plan.ops) + len(plan.current) == len(after)


def apply(store: dict[str, Content], op: mp.Op) -> None:
    """Write one object, checking what the plan believes of the place and of the source."""
    path = op.target.path
    assert (op.row is not None) == (path in store)
    assert not any(above in store for above in mp.parents(path)), "a file where a directory must be"
    if op.kind == mp.COPY:
        assert op.source is not None
        ino, data_gen, _ = store[op.source.path.decode()]
        assert (ino, data_gen) == (op.target.ino, op.target.data_gen)
    elif op.kind == mp.REFRESH:
        assert store[path][:2] == (op.target.ino, op.target.data_gen)
    elif op.kind == mp.COPY_BLOB:
        assert op.blob_id == 1 << 63 | op.target.ino
    store[path] = (op.target.ino, op.target.data_gen, op.target.generation)


def row(path: str, ino: int, generation: int = 1, data_gen: int = 1) -> MirrorRow:
    return MirrorRow(path.encode(), ino, generation, data_gen, "etag", b"h" * 16)


def test_a_renamed_tree_is_copies_and_late_deletes() -> None:
    rows = [row(f"old/{n}", n) for n in range(2, 6)]
    targets = [mp.Target(f"new/{n}", n, 1, 1) for n in range(2, 6)]
    plan = mp.make_plan(range(2, 6), targets, rows, {})
    assert not plan.early
    assert {op.kind for op in plan.ops} == {mp.COPY}
    assert plan.late == rows


def test_a_changed_mode_is_a_refresh() -> None:
    plan = mp.make_plan([2], [mp.Target("f", 2, 9, 1)], [row("f", 2)], {})
    assert [op.kind for op in plan.ops] == [mp.REFRESH]


def test_a_swap_is_put_from_bytes() -> None:
    """Neither object may be the source of the other's copy: both are overwritten."""
    plan = mp.make_plan(
        [2, 3], [mp.Target("x", 3, 9, 1), mp.Target("y", 2, 9, 1)], [row("x", 2), row("y", 3)], {}
    )
    assert [op.kind for op in plan.ops] == [mp.PUT, mp.PUT]
    assert not plan.late


def test_a_file_becomes_a_directory() -> None:
    plan = mp.make_plan([2, 3], [mp.Target("a/b", 3, 9, 9)], [row("a", 2)], {})
    assert [r.path for r in plan.early] == [b"a"]
    assert not plan.late


def test_nothing_to_do() -> None:
    plan = mp.make_plan([2], [mp.Target("f", 2, 1, 1)], [row("f", 2)], {})
    assert not (plan.early or plan.ops or plan.late)
    assert plan.current == [mp.Target("f", 2, 1, 1)]
