"""What is kept: against a model that looks at every point one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import retention
from s3ws_fs.core.history import BEFORE_RESTORE, BEFORE_UNDO, KINDS, NAMED, TURN_END, UNDOABLE
from s3ws_fs.core.retention import Limits, Mark

H = 3_600_000_000_000
BLOBS = range(1 << 63, (1 << 63) + 6)


@dataclass
class Past:
    """Points 1 to `newest`, which of them have checkpoints, and the objects that each names."""

    newest: int
    folds: set[int]
    named: dict[int, set[int]]
    sizes: dict[int, int]

    def base(self, number: int) -> int:
        return max((fold for fold in self.folds if fold <= number), default=0)

    def needs(self, number: int) -> set[int]:
        base = self.base(number)
        own = {*range(base + 1, number + 1), *self.named[number]}
        return own | ({-base} if base else set())

    def window(self, begin: int) -> set[int]:
        return set().union(*(self.needs(n) for n in range(begin, self.newest + 1)))

    def until(self) -> dict[int, int]:
        return {item: number for number in sorted(self.named) for item in self.named[number]}


@st.composite
def pasts(draw: Callable[..., object]) -> Past:
    newest = draw(st.integers(1, 12))
    assert isinstance(newest, int)
    numbers = range(1, newest + 1)
    folds = draw(st.sets(st.sampled_from(numbers)))
    named = {}
    for number in numbers:
        may = [*range(1, number + 1), *BLOBS]
        named[number] = draw(st.sets(st.sampled_from(may), max_size=5))
    assert isinstance(folds, set)
    items = [*numbers, *BLOBS, *(-n for n in numbers)]
    sizes = {item: draw(st.integers(0, 100)) for item in items}
    return Past(newest, folds, named, sizes)  # type: ignore[arg-type]


@given(pasts(), st.data())
def test_tops_are_what_each_point_needs(past: Past, data: st.DataObject) -> None:
    found = retention.tops(range(1, past.newest + 1), past.folds, past.until(), past.newest)
    for begin in range(1, past.newest + 1):
        assert {item for item, top in found.items() if top >= begin} == past.window(begin)


@given(pasts(), st.integers(0, 600), st.data())
def test_the_window_is_as_long_as_its_bytes_fit(
    past: Past, max_bytes: int, data: st.DataObject
) -> None:
    lowest = data.draw(st.integers(1, past.newest))
    free = data.draw(st.sets(st.sampled_from(sorted(past.sizes)))) | past.needs(past.newest)
    found = retention.tops(range(1, past.newest + 1), past.folds, past.until(), past.newest)
    begin, total = retention.fit_window(lowest, past.newest, found, past.sizes, free, max_bytes)

    def cost(at: int) -> int:
        return sum(past.sizes[item] for item in past.window(at) - free)

    fits = [at for at in range(lowest, past.newest + 1) if cost(at) <= max_bytes]
    assert begin == min(fits)
    assert total == cost(begin)


@given(st.sets(st.integers(1, 12)), st.sets(st.integers(1, 12)))
def test_what_can_be_rebuilt(segments: set[int], checkpoints: set[int]) -> None:
    newest = max(segments | checkpoints, default=0)
    can: set[int] = set()
    for number in range(1, newest + 1):
        chained = number in segments and (number - 1 in can or number == 1)
        if number in checkpoints or chained:
            can.add(number)
    lowest = newest
    while lowest > 1 and newest in can and lowest - 1 in can:
        lowest -= 1
    assert retention.reachable_from(segments, checkpoints, newest) == lowest


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 60), st.data())
def test_the_window_begins_with_what_stood_then(
    gaps: list[int], hours: int, data: st.DataObject
) -> None:
    put_ns, at = {}, 0
    for number, gap in enumerate(gaps, 1):
        at += gap * H
        put_ns[number] = at
    newest = len(gaps)
    now_ns = at + data.draw(st.integers(0, 50)) * H
    lowest = data.draw(st.integers(1, newest))
    begin = retention.window_from(lowest, newest, put_ns, now_ns, hours)
    assert lowest <= begin <= newest
    limit_ns = now_ns - hours * H
    # Everything younger is in, and what stood at the limit is the first.
    assert all(n >= begin for n in put_ns if put_ns[n] > limit_ns and n >= lowest)
    assert begin == lowest or put_ns[begin] <= limit_ns
    assert retention.window_from(lowest, newest, put_ns, now_ns, hours + 5) <= begin


def test_without_hours_only_the_newest_is_in_the_window() -> None:
    put_ns = {1: H, 2: 2 * H, 3: 3 * H}
    assert retention.window_from(1, 3, put_ns, 3 * H, 0) == 3
    assert retention.window_from(1, 3, put_ns, 3 * H, 0.5) == 2
    assert retention.window_from(1, 3, put_ns, 3 * H, 24) == 1
    assert retention.window_from(2, 3, put_ns, 3 * H, 24) == 2


def test_named_snapshots_never_expire() -> None:
    marks = [Mark(kind, 1, kind, 10 * 24 * H) for kind in KINDS]
    assert retention.expired(marks, 11 * 24 * H, 2) == []
    gone = {mark.kind for mark in retention.expired(marks, 12 * 24 * H, 2)}
    assert gone == set(KINDS) - {NAMED}
    assert len(retention.expired(marks, 10 * 24 * H, 0)) == len(KINDS) - 1


@given(
    st.lists(st.tuples(st.sampled_from(KINDS[1:]), st.sets(st.integers(1, 9))), max_size=8),
    st.sets(st.integers(1, 9)),
    st.integers(0, 60),
)
def test_snapshots_go_oldest_first(
    made: list[tuple[str, set[int]]], counted: set[int], left: int
) -> None:
    sizes = {item: item * 2 for item in range(1, 10)}
    marks = [(Mark(str(n), n, kind, n), needs) for n, (kind, needs) in enumerate(made, 1)]
    gone = retention.fit_snapshots(marks, sizes, counted, left)
    kept = [(mark, needs) for mark, needs in marks if mark not in gone]
    undoable = [mark for mark, _ in marks if mark.kind in UNDOABLE]
    if undoable:
        assert undoable[-1] not in gone
    plain = [mark.number for mark, _ in kept if mark not in undoable[-1:]]
    # Of those that are not protected the newest are kept.
    assert all(mark.number < min(plain, default=99) for mark in gone)
    seen = set(counted)
    for mark, needs in reversed(kept):
        left -= sum(sizes[item] for item in needs - seen)
        seen |= needs
        assert left >= 0 or any(m in undoable[-1:] for m, _ in kept if m.number >= mark.number)
    if gone and not undoable:
        last = max(gone, key=lambda mark: mark.number)
        assert sum(sizes[item] for item in dict(marks)[last] - seen) > left


def test_the_newest_undo_stays_whatever_its_size() -> None:
    marks = [
        (Mark("a", 1, BEFORE_RESTORE, 1), {1}),
        (Mark("b", 2, TURN_END, 2), {2}),
        (Mark("c", 3, BEFORE_UNDO, 3), {3}),
    ]
    gone = retention.fit_snapshots(marks, {1: 1, 2: 1, 3: 1000}, (), 10)
    assert [mark.key for mark in gone] == ["b", "a"]


def test_limits_survive_json() -> None:
    limits = Limits(1.5, 77, 3.0)
    assert Limits.from_json(limits.to_json()) == limits


limits = st.builds(Limits, st.floats(0, 10_000), st.just(0), st.floats(0, 1000))


@given(limits, st.integers(0, 1 << 60), st.lists(st.integers(0, 100 * H), min_size=8, max_size=8))
def test_looks_come_to_an_end(limits: Limits, sealed_ns: int, late: list[int]) -> None:
    """Each when something may have become too old, however late it is done; three at most."""
    looks: list[int] = []
    hours = sealed_ns + int((limits.hours + retention.LOOK_LATER_HOURS) * H)
    days = sealed_ns + int((limits.days * 24 + retention.LOOK_LATER_HOURS) * H)
    while (due := retention.next_look_ns(sealed_ns, looks, limits)) is not None:
        assert due > max(looks, default=sealed_ns)
        assert due >= min(hours, days)
        looks.append(due + late[len(looks)])
        assert len(looks) <= 3
    windowed = [at for at in looks if at >= hours]
    assert max(windowed) - min(windowed) >= hours - sealed_ns
    assert max(looks) >= days


def test_a_look_asks_for_the_next_one() -> None:
    limits = Limits(hours=24, days=30)
    first, second, last = 26 * H, 52 * H, (30 * 24 + 2) * H
    assert retention.next_look_ns(0, [], limits) == first
    assert retention.next_look_ns(0, [first + 5], limits) == second + 5
    assert retention.next_look_ns(0, [first, second], limits) == last
    assert retention.next_look_ns(0, [first, second, last], limits) is None
    # One that comes after all of it is both the first and the last.
    assert retention.next_look_ns(0, [last], limits) == last + first
