"""Each fault that tests inject does what it says, to the request that was named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from s3ws_fs.core.errors import (
    ConflictError,
    NotFoundError,
    PermanentError,
    StoreError,
    TransientError,
)
from s3ws_fs.store.memory import MemoryStore
from tests.support.faulty_store import LATE_BY, Fault, FaultyStore, Request, nth


@pytest.fixture
def store() -> FaultyStore:
    made = FaultyStore(MemoryStore())
    made.put("a", b"12345")
    made.put("b", b"2")
    made.reset()
    return made


def put(store: FaultyStore) -> None:
    store.put("new", b"x", if_none_match=True)


def copy(store: FaultyStore) -> None:
    store.copy("a", "new", if_none_match=True)


def delete(store: FaultyStore) -> None:
    store.delete("a")


def delete_many(store: FaultyStore) -> None:
    store.delete_many(["a", "b"])


def state(store: FaultyStore) -> dict[str, bytes]:
    inner = store.inner
    return {entry.key: inner.get(entry.key).data for entry in inner.list()}


CALLS: list[Callable[[FaultyStore], object]] = [put, copy, delete, delete_many]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.ERROR, TransientError),
        (Fault.SLOW_DOWN, TransientError),
        (Fault.RESET, TransientError),
        (Fault.DENIED, PermanentError),
        (Fault.CONFLICT, ConflictError),
    ],
)
def test_not_applied(
    store: FaultyStore,
    call: Callable[[FaultyStore], object],
    fault: Fault,
    error: type[StoreError],
) -> None:
    before = state(store)
    store.choose = nth(1, fault)
    with pytest.raises(error):
        call(store)
    assert state(store) == before
    call(store)
    assert state(store) != before


@pytest.mark.parametrize("call", CALLS)
def test_applied_and_the_answer_lost(
    store: FaultyStore, call: Callable[[FaultyStore], object]
) -> None:
    before = state(store)
    store.choose = nth(1, Fault.LOST)
    with pytest.raises(TransientError):
        call(store)
    assert state(store) != before


@pytest.mark.parametrize("call", CALLS)
def test_applied_late(store: FaultyStore, call: Callable[[FaultyStore], object]) -> None:
    before = state(store)
    store.choose = nth(1, Fault.LATE)
    with pytest.raises(TransientError):
        call(store)
    for _ in range(LATE_BY - 1):
        store.head("b")
        assert state(store) == before
    with pytest.raises(NotFoundError):
        store.head("none")
    assert state(store) != before


def test_what_is_late_may_find_its_condition_broken(store: FaultyStore) -> None:
    store.choose = nth(1, Fault.LATE)
    with pytest.raises(TransientError):
        put(store)
    store.put("new", b"first")
    store.settle()
    assert state(store)["new"] == b"first"


def test_partly(store: FaultyStore) -> None:
    store.choose = nth(1, Fault.PARTIAL)
    assert [failure.key for failure in store.delete_many(["a", "b"])] == ["a"]
    assert list(state(store)) == ["a"]
    store.reset(nth(1, Fault.PARTIAL))
    with pytest.raises(TransientError):
        list(store.list())


def test_wrong_bytes(store: FaultyStore) -> None:
    store.choose = nth(1, Fault.SHORT)
    assert store.get("a").data == b"1234"
    store.reset(nth(1, Fault.FLIPPED))
    assert store.get("a").data == b"12s45"
    assert store.get("a").data == b"12345"


def test_requests_are_numbered_and_told(store: FaultyStore) -> None:
    etag = store.head("a").etag
    store.put("a", b"1", if_match=etag)
    put(store)
    assert store.requests == [
        Request(1, "head", "a"),
        Request(2, "put", "a", "if-match"),
        Request(3, "put", "new", "must-create"),
    ]
