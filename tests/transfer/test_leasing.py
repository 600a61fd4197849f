"""Taking, renewing and giving back the lease, on a store whose clock ticks with every write."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace

import pytest

from s3ws_fs.core import journal, layout
from s3ws_fs.core.errors import (
    ConflictError,
    ExitCode,
    PermanentError,
    TransientError,
    UserError,
)
from s3ws_fs.core.lease import (
    GIVEN,
    HELD,
    LAPSED,
    NEW,
    OWN,
    RELEASED,
    TAKEN,
    Lease,
    decode_lease,
)
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling, leasing
from s3ws_fs.transfer.leasing import Claim, Taking
from s3ws_fs.transfer.wire import FencedError

A = Claim("a" * 32, "host a", 11, 1_000_000_000, 30.0, 0)
B = Claim("b" * 32, "host b", 22, 2_000_000_000, 30.0, 0)


def acquire(store: ScopedStore, claim: Claim) -> Taking:
    return leasing.acquire(store, claim, lambda: 7.0, secrets.randbits)


def pass_time(store: ScopedStore, seconds: int) -> None:
    """The clock of the store in memory is its count of writes."""
    for _ in range(seconds):
        store.put("journal/probe/tick", b"")


def there(store: ScopedStore) -> Lease:
    return decode_lease(store.get(layout.LEASE_KEY).data, layout.LEASE_KEY)


def test_the_first_takes_it_and_the_second_hears_from_whom(store: ScopedStore) -> None:
    taking = acquire(store, A)
    assert (taking.how, taking.quiet_s, taking.grant.lease.epoch) == (NEW, 0.0, 1)
    assert taking.grant.sent_s == 7.0
    with pytest.raises(UserError) as caught:
        acquire(store, B)
    assert caught.value.exit_code == ExitCode.HELD
    assert "host a (pid 11, since 1970-01-01 00:00:01 UTC)" in caught.value.message
    assert "lapses in 31 s" in caught.value.message
    assert "--take-over" in caught.value.remedy
    assert there(store) == taking.grant.lease
    assert [entry.key for entry in store.list()] == [layout.LEASE_KEY]


def test_it_lapses_by_the_clock_of_the_store(store: ScopedStore) -> None:
    """Whatever the clocks of the two hosts say: those are not even asked for."""
    acquire(store, replace(A, since_ns=1 << 61))
    pass_time(store, 30)
    with pytest.raises(UserError):
        acquire(store, replace(B, since_ns=0))
    pass_time(store, 1)
    taking = acquire(store, replace(B, since_ns=0))
    assert (taking.how, taking.quiet_s, taking.is_from_another) == (LAPSED, 0.0, True)
    assert taking.grant.lease.epoch == 2


def test_a_renewal_makes_it_last(store: ScopedStore) -> None:
    grant = acquire(store, A).grant
    pass_time(store, 25)
    grant = leasing.renew(store, grant, 600.0, lambda: 9.0)
    assert (grant.sent_s, grant.lease.serial, grant.lease.lasts_ms) == (9.0, 2, 600_000)
    pass_time(store, 300)
    with pytest.raises(UserError):
        acquire(store, B)


def test_taking_over(store: ScopedStore) -> None:
    first = acquire(store, A).grant
    taking = acquire(store, replace(B, take_over=True))
    assert (taking.how, taking.quiet_s) == (TAKEN, 10.0)
    assert taking.was == first.lease
    with pytest.raises(FencedError, match="host b"):
        leasing.renew(store, first, 30.0, lambda: 0.0)
    assert there(store) == taking.grant.lease


def test_the_same_cache_takes_its_own_back_at_once(store: ScopedStore) -> None:
    first = acquire(store, A).grant
    again = acquire(store, replace(A, pid=12))
    assert (again.how, again.quiet_s, again.grant.lease.epoch) == (OWN, 0.0, 2)
    # The worker of the daemon before is another holder.
    with pytest.raises(FencedError):
        leasing.renew(store, first, 30.0, lambda: 0.0)


def test_giving_it_back(store: ScopedStore) -> None:
    grant = acquire(store, A).grant
    leasing.renew(store, grant, 30.0, lambda: 0.0, state=RELEASED)
    taking = acquire(store, B)
    assert (taking.how, taking.quiet_s, taking.is_from_another) == (GIVEN, 0.0, False)
    assert taking.grant.lease.epoch == 2
    with pytest.raises(FencedError):
        leasing.renew(store, grant, 30.0, lambda: 0.0)


def test_an_epoch_is_never_used_again(store: ScopedStore) -> None:
    """Not even when somebody removed the object: the journal knows."""
    assert acquire(store, replace(A, epoch_floor=41)).grant.lease.epoch == 42


def test_one_of_two_gets_it(store: ScopedStore, memory: MemoryStore) -> None:
    acquire(store, A)
    pass_time(store, 40)
    done: list[Taking] = []

    def other(op: str, key: str) -> Fault:
        if op == "put" and key.endswith(layout.LEASE_KEY) and not done:
            memory.fault = None
            done.append(acquire(store, B))
        return Fault.NONE

    memory.fault = other
    with pytest.raises(UserError, match="host b"):
        acquire(store, replace(B, writer="c" * 32, host="host c"))
    assert there(store) == done[0].grant.lease


def test_a_lost_answer_of_a_renewal_is_our_own(store: ScopedStore, memory: MemoryStore) -> None:
    grant = acquire(store, A).grant
    memory.fault = lambda op, _: Fault.LOST if op == "put" else Fault.NONE
    with pytest.raises(TransientError):
        leasing.renew(store, grant, 30.0, lambda: 1.0)
    memory.fault = None
    renewed = leasing.renew(store, grant, 30.0, lambda: 2.0)
    assert (renewed.lease.serial, renewed.sent_s) == (3, 2.0)
    assert there(store) == renewed.lease


def test_a_lost_answer_of_the_taking_is_our_own(store: ScopedStore, memory: MemoryStore) -> None:
    memory.fault = lambda op, _: Fault.LOST if op == "put" else Fault.NONE
    with pytest.raises(TransientError):
        acquire(store, A)
    memory.fault = None
    assert acquire(store, A).how == OWN


def test_a_lease_that_went_with_the_workspace_is_not_put_again(store: ScopedStore) -> None:
    grant = acquire(store, A).grant
    journaling.make_workspace(store, "w" * 32, 1)
    store.purge([entry.key for entry in store.everything()])
    with pytest.raises(PermanentError, match="holds none"):
        leasing.renew(store, grant, 30.0, lambda: 0.0)
    assert list(store.everything()) == []


def test_a_lease_that_somebody_removed_is_put_again(store: ScopedStore) -> None:
    grant = acquire(store, A).grant
    journaling.make_workspace(store, "w" * 32, 1)
    store.delete(layout.LEASE_KEY)
    renewed = leasing.renew(store, grant, 30.0, lambda: 0.0)
    assert there(store) == renewed.lease
    assert renewed.lease.epoch == 1


def test_a_damaged_lease_is_nobodys_until_a_person_says_so(store: ScopedStore) -> None:
    grant = acquire(store, A).grant
    body = json.loads(grant.lease.encode())
    store.put(layout.LEASE_KEY, json.dumps({**body, "writer": B.writer}).encode())
    with pytest.raises(UserError, match="damaged") as caught:
        acquire(store, B)
    assert caught.value.exit_code == ExitCode.STORE
    with pytest.raises(TransientError, match="damaged"):
        leasing.renew(store, grant, 30.0, lambda: 0.0)
    taking = acquire(store, replace(B, take_over=True))
    assert (taking.how, taking.quiet_s) == (TAKEN, 20.0)


def test_tries_are_bounded(store: ScopedStore, memory: MemoryStore) -> None:
    memory.fault = lambda op, key: (
        Fault.CONFLICT if op == "put" and key.endswith(layout.LEASE_KEY) else Fault.NONE
    )
    with pytest.raises(TransientError, match="at the same time"):
        acquire(store, A)


def fence(store: ScopedStore, claim: Claim = B, epoch: int = 2) -> journaling.JournalState:
    return leasing.seal_fence(store, claim, epoch, uuid="c" * 32, flush_id="d" * 32)


def test_the_fence_is_a_segment_without_anything(store: ScopedStore) -> None:
    """Also where there is no journal, and no workspace, yet."""
    state = fence(store)
    assert (state.newest, state.workspace) == (1, "c" * 32)
    again = fence(store)
    raw = store.get(layout.seg_key(2)).data
    header, records = journal.open_object(raw, "segment")
    assert len(records) == 0
    assert (header.epoch, header.writer, header.prev_hash) == (2, B.writer, state.header_hash)
    assert (header.generation, header.next_ino) == (0, 2)
    assert again.header == header


def test_the_fence_comes_after_what_the_other_seals_meanwhile(
    store: ScopedStore, memory: MemoryStore
) -> None:
    fence(store, A, 1)
    sealed = 0

    def other(op: str, key: str) -> Fault:
        nonlocal sealed
        if op == "put" and "/seg/" in key and sealed < 3:
            sealed += 1
            memory.fault = None
            fence(store, A, 1)
            memory.fault = other
        return Fault.NONE

    memory.fault = other
    state = fence(store)
    assert state.newest == 5
    assert state.header is not None and state.header.writer == B.writer
    with pytest.raises(ConflictError):
        store.put(layout.seg_key(5), b"the next one of a stale writer", if_none_match=True)


def test_a_writer_that_seals_on_and_on_is_told(
    store: ScopedStore, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing, "FENCE_TRIES_MAX", 3)
    fence(store)
    memory.fault = lambda op, key: Fault.CONFLICT if op == "put" else Fault.NONE
    with pytest.raises(TransientError, match="faster"):
        fence(store)


def test_states_are_those_of_the_format() -> None:
    assert (HELD, RELEASED) == ("held", "released")
