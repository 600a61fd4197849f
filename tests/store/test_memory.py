"""The faults that tests of other layers inject."""

from __future__ import annotations

import pytest

from s3ws_fs.core.errors import ConflictError, NotFoundError, PermanentError, TransientError
from s3ws_fs.store.base import OPS
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore


def test_faults() -> None:
    plan: list[Fault] = []
    seen: list[tuple[str, str]] = []

    def hook(op: str, key: str) -> Fault:
        seen.append((op, key))
        return plan.pop(0) if plan else Fault.NONE

    store = ScopedStore(MemoryStore(hook), "p/")
    plan[:] = [Fault.TRANSIENT]
    with pytest.raises(TransientError):
        store.put("k", b"1")
    with pytest.raises(NotFoundError):
        store.get("k")
    plan[:] = [Fault.LOST]
    with pytest.raises(TransientError):
        store.put("k", b"1", if_none_match=True)
    assert store.get("k").data == b"1"
    plan[:] = [Fault.CONFLICT, Fault.PERMANENT]
    with pytest.raises(ConflictError):
        store.put("k", b"2")
    with pytest.raises(PermanentError):
        store.put("k", b"2")
    assert store.get("k").data == b"1"
    assert seen[0] == ("put", "p/k")
    assert set(store.counters.by_op()) == set(OPS)
    assert store.counters.by_code()["put lost"] == 1


def test_a_hook_may_be_another_writer() -> None:
    raw = MemoryStore()
    store = ScopedStore(raw, "p/")
    etag = store.put("k", b"1")

    def hook(op: str, key: str) -> Fault:
        raw.fault = None
        raw.put(key, b"theirs")
        return Fault.NONE

    raw.fault = hook
    with pytest.raises(ConflictError):
        store.put("k", b"ours", if_match=etag)
    assert store.get("k").data == b"theirs"
