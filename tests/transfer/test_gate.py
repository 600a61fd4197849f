"""The gate: nothing changes the bucket without a proof that is young enough."""

from __future__ import annotations

import pytest

from s3ws_fs.core import layout
from s3ws_fs.core.errors import PermanentError, TransientError
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.deadline import Deadline
from s3ws_fs.transfer.gate import PROOFS_MAX, Gate, GatedStore
from s3ws_fs.transfer.leasing import Claim
from s3ws_fs.transfer.wire import FencedError
from tests.support.mounting import wait_until

A = Claim("a" * 32, "host a", 11, 0, 30.0, 0)
B = Claim("b" * 32, "host b", 22, 0, 30.0, 0, take_over=True)


class Watch(Deadline):
    """Notes what the kernel would be asked for."""

    def __init__(self) -> None:
        self.set_to: list[float | None] = []

    def set(self, at_s: float | None) -> None:
        self.set_to.append(at_s)


class Host:
    """A gate, its store, and a clock of its own."""

    def __init__(self, store: ScopedStore) -> None:
        self.now_s = 1000.0
        self.watch = Watch()
        self.gate = Gate(store, boot=lambda: self.now_s, deadline=self.watch)
        self.store = GatedStore(store, self.gate)


@pytest.fixture
def host(store: ScopedStore) -> Host:
    return Host(store)


def renewals(memory: MemoryStore) -> int:
    keys = [info for info in memory.list() if info.key.endswith(layout.LEASE_KEY)]
    assert len(keys) == 1
    return memory.counters.by_op()["put"]


def change(store: ScopedStore) -> list[tuple[str, object]]:
    """Each kind of request that changes something, and what it left."""
    etag = store.put("files/a", b"1")
    store.copy("files/a", "files/b", src_if_match=etag)
    store.delete("files/b")
    store.put("journal/mirrored.json", b"{}")
    assert not store.delete_many(["journal/blob/x", ("files/c", "etag")])
    return [(entry.key, entry.etag) for entry in store.list("files/")]


def test_without_a_lease_nothing_passes(host: Host, store: ScopedStore) -> None:
    for attempt in (
        lambda: host.store.put("files/a", b""),
        lambda: host.store.put(layout.seg_key(1), b""),
        lambda: host.store.copy("files/a", "files/b"),
        lambda: host.store.delete("files/a"),
        lambda: host.store.delete_many(["files/a"]),
    ):
        with pytest.raises(PermanentError, match="no lease"):
            attempt()
    assert not list(store.list())
    assert host.store.probe_conditional().safe
    assert not list(store.list())


def test_a_young_proof_lets_pass_and_an_old_one_is_renewed_first(
    host: Host, memory: MemoryStore
) -> None:
    host.gate.take(A)
    before = renewals(memory)
    assert change(host.store)
    assert renewals(memory) == before + 2, "no renewal: the proof is young"
    host.now_s += 4.9
    host.store.put("files/a", b"2")
    assert renewals(memory) == before + 3
    host.now_s += 0.1
    host.store.put("files/a", b"3")
    assert renewals(memory) == before + 5, "half of the proof's ten seconds had passed"
    grant = host.gate.grant
    assert grant is not None and grant.sent_s == host.now_s and grant.lease.serial == 2


def test_the_kernel_watches_while_the_mirror_is_changed(host: Host) -> None:
    host.gate.take(A)
    host.store.put("files/a", b"1")
    assert host.watch.set_to == [1010.0, None]
    host.watch.set_to.clear()
    # The journal's own fence is the number; a blob may take long, and harms nobody.
    host.store.put(layout.seg_key(1), b"")
    host.store.put(layout.blob_key(1 << 63), b"")
    assert host.watch.set_to == []
    with host.gate.passing(("files/a",)), host.gate.passing(("files/b",)):
        host.now_s += 6
        host.gate.renew()
        assert host.watch.set_to[-1] == 1016.0
    assert host.watch.set_to[-1] is None


def test_after_a_take_over_nothing_passes_ever_again(host: Host, store: ScopedStore) -> None:
    host.gate.take(A)
    other = Host(store)
    other.gate.take(B)
    before = change(other.store)
    host.now_s += 5
    for _ in range(2):
        with pytest.raises(FencedError, match="host b"):
            change(host.store)
        with pytest.raises(FencedError, match="host b"):
            host.store.put(layout.seg_key(9), b"")
    assert [(entry.key, entry.etag) for entry in store.list("files/")] == before
    assert not list(store.list(layout.SEG_PREFIX))


def test_a_lease_that_lapsed_unnoticed_is_ours_if_nobody_took_it(host: Host) -> None:
    host.gate.take(A)
    host.now_s += 100_000
    assert change(host.store)


def test_a_store_that_is_away_lets_nothing_pass(host: Host, memory: MemoryStore) -> None:
    host.gate.take(A)
    host.now_s += 5
    memory.fault = lambda *_: Fault.TRANSIENT
    with pytest.raises(TransientError, match="lease"):
        host.store.put("files/a", b"1")
    memory.fault = None
    assert change(host.store)


def test_a_renewal_that_took_too_long_proves_nothing(host: Host, memory: MemoryStore) -> None:
    host.gate.take(A)
    host.now_s += 5

    def slow(op: str, _: str) -> Fault:
        host.now_s += 6
        return Fault.NONE

    before = renewals(memory)
    memory.fault = slow
    with pytest.raises(TransientError, match="too long"):
        host.store.put("files/a", b"1")
    memory.fault = None
    assert renewals(memory) == before + PROOFS_MAX
    assert not list(host.store.list("files/"))


@pytest.mark.parametrize("late", range(1, PROOFS_MAX))
def test_a_late_answer_is_asked_for_again_while_the_store_answers(
    host: Host, memory: MemoryStore, late: int
) -> None:
    """Two hundred mounts saved at once, and one sync was told that renewing took too long."""
    host.gate.take(A)
    host.now_s += 5
    left = late

    def slow(op: str, _: str) -> Fault:
        nonlocal left
        if left:
            left -= 1
            host.now_s += 6
        return Fault.NONE

    before = renewals(memory)
    memory.fault = slow
    host.store.put(layout.seg_key(1), b"1")
    # The late ones, the one that came in time, and the segment.
    assert renewals(memory) == before + late + 2
    grant = host.gate.grant
    assert grant is not None
    assert host.now_s - grant.sent_s < 5


def test_who_took_over_between_two_late_answers_fences(
    host: Host, store: ScopedStore, memory: MemoryStore
) -> None:
    host.gate.take(A)
    host.now_s += 5
    other = Host(store)
    puts = 0

    def slow(op: str, _: str) -> Fault:
        nonlocal puts
        if op == "put":
            puts += 1
            host.now_s += 6
            if puts == 2:
                memory.fault = None
                other.gate.take(B)
        return Fault.NONE

    memory.fault = slow
    with pytest.raises(FencedError, match="host b"):
        host.store.put("files/a", b"1")
    assert puts == 2
    assert not list(host.store.list("files/"))
    with pytest.raises(FencedError):
        host.store.put("files/a", b"1")


def test_a_long_request_is_kept_proven(host: Host, memory: MemoryStore) -> None:
    """The thread renews while a request is under way, and only then."""
    host.gate.take(A)

    def fault(op: str, key: str) -> Fault:
        if op == "put" and not key.endswith(layout.LEASE_KEY):
            # The thread sleeps until the proof is half gone, by a clock that we set: wake it.
            host.now_s += 5
            with host.gate._state:
                host.gate._state.notify_all()
            # Not only sent: armed. Else this request may end before the thread has done that.
            wait_until(lambda: 1015.0 in host.watch.set_to)
        return Fault.NONE

    memory.fault = fault
    host.store.put("files/large", b"")
    wait_until(lambda: host.watch.set_to[-1] is None)
    assert max(at for at in host.watch.set_to if at is not None) == 1015.0


def test_giving_it_back_closes_the_gate(host: Host, store: ScopedStore) -> None:
    host.gate.take(A)
    host.gate.release()
    with pytest.raises(PermanentError, match="no lease"):
        host.store.put("files/a", b"1")
    other = Host(store)
    other.gate.take(Claim("b" * 32, "host b", 22, 0, 30.0, 0))
    assert change(other.store)
