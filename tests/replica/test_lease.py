"""Two hosts and one workspace: who holds it, who takes it over, and who is fenced."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.core import journal, layout
from s3ws_fs.core.bounds import LEASE_S, LEASE_S_MIN
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, TransientError, UserError
from s3ws_fs.core.lease import HELD, RELEASED, Grant, Lease, decode_lease
from s3ws_fs.replica.lease import LeaseKeeper
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.wire import FencedError
from tests.replica.conftest import Mount, Mounter
from tests.replica.test_roundtrip import mirror
from tests.support.seaweed import Seaweed

only_local = pytest.mark.parametrize("store_config", ["local"], indirect=True)
only_s3 = pytest.mark.parametrize(
    "store_config", [pytest.param("s3", marks=pytest.mark.s3)], indirect=True
)


def lease_of(bucket: ScopedStore) -> Lease:
    return decode_lease(bucket.get(layout.LEASE_KEY).data, layout.LEASE_KEY)


def newest(bucket: ScopedStore) -> journal.Header:
    key = max(entry.key for entry in bucket.list(layout.SEG_PREFIX))
    return journal.decode_header(bucket.get(key).data, key)


def everything(bucket: ScopedStore) -> dict[str, str]:
    return {entry.key: entry.etag for entry in bucket.list()}


def put_back_the_date(config: MountConfig, by_s: float) -> None:
    """As if the lease had been put so long ago, by the clock of the (local) store."""
    assert config.store.path is not None
    path = Path(config.store.path) / config.workspace.prefix / layout.LEASE_KEY
    when = path.stat().st_mtime - by_s
    os.utime(path, (when, when))


async def until(condition: Callable[[], object], timeout_s: float = 90) -> None:
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.02)


async def test_a_second_mount_is_refused_with_the_holders_name(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        m.write("f", b"1")
        await m.sync()
        before = everything(bucket)
        with pytest.raises(UserError) as caught:
            async with mounter("b"):
                pass
        assert caught.value.exit_code == ExitCode.HELD
        held = lease_of(bucket)
        assert held.pid == os.getpid() and held.who in caught.value.message
        assert "--take-over" in caught.value.remedy
        assert everything(bucket) == before
        m.write("f", b"2")
        await m.sync()
        assert await m.replica.final_flush(lambda _: None) == []
    assert lease_of(bucket).state == RELEASED
    async with mounter("b") as m:
        assert await m.read("f") == b"2"
        assert lease_of(bucket).epoch == held.epoch + 1
        # Given, not taken: there is nobody to fence.
        assert newest(bucket).writer == held.writer


@only_local
async def test_after_a_crash_it_can_be_had_when_it_has_lapsed(
    mounter: Mounter, bucket: ScopedStore, config: MountConfig
) -> None:
    async with mounter("a", crash=True, lease_s=100.0) as m:
        m.write("f", b"1")
        await m.sync()
    put_back_the_date(config, 90)
    with pytest.raises(UserError) as caught:
        async with mounter("b"):
            pass
    assert caught.value.exit_code == ExitCode.HELD
    put_back_the_date(config, 12.1)
    async with mounter("b") as m:
        assert await m.read("f") == b"1"
        fence = newest(bucket)
        assert (fence.puts, fence.epoch, fence.number) == (0, 2, 2)
        # It has lapsed: whoever had it can't change the mirror any more.
        m.write("f", b"2")
        with trio.fail_after(60):
            await m.sync()
        assert mirror(bucket) == {"f": b"2"}


@only_local
async def test_the_clocks_of_the_hosts_play_no_part(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose clock is years ahead takes nothing, and one years behind is refused nothing."""
    real = time.time_ns
    async with mounter("a") as m:
        m.write("f", b"1")
        await m.sync()
        for years in (-20, 20):
            monkeypatch.setattr(time, "time_ns", lambda y=years: real() + y * 31_557_600 * 10**9)
            with pytest.raises(UserError) as caught:
                async with mounter("b"):
                    pass
            assert caught.value.exit_code == ExitCode.HELD
        await m.sync()
        assert await m.replica.final_flush(lambda _: None) == []
    async with mounter("b") as m:
        assert await m.read("f") == b"1"


async def test_the_same_cache_takes_its_own_back_at_once(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a", crash=True) as m:
        m.write("f", b"1")
        await m.sync()
        m.write("f", b"unsealed")
    async with mounter("a") as m:
        assert lease_of(bucket).epoch == 2
        await m.sync()
        # No fence: there is nobody else.
        assert [newest(bucket).number, newest(bucket).epoch] == [2, 2]
    assert mirror(bucket) == {"f": b"unsealed"}


async def test_the_one_who_was_taken_over_is_fenced(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", lease_s=LEASE_S_MIN) as first:
        first.write("mine", b"1")
        first.write("gone", b"1")
        await first.sync()
        async with mounter("b", take_over=True, lease_s=LEASE_S_MIN) as second:
            assert second.cache.get_json("mirror_known") is False
            second.unlink("gone")
            second.write("mine", b"2")
            started = trio.current_time()
            await second.sync()
            # The first one could have changed the mirror for a second; then two of slack.
            assert trio.current_time() - started >= 1
            standing = everything(bucket)
            first.write("gone", b"never to be seen")
            first.unlink("mine")
            with pytest.raises(UserError) as caught:
                await first.sync()
            assert caught.value.exit_code == ExitCode.FENCED
            health = first.replica.status()["health"]
            assert health["state"] == "fenced" and health["since_s"] is not None
            assert f"pid {os.getpid()}" in health["by"]
            # Reads and local work go on.
            first.write("local", b"work")
            assert await first.read("local") == b"work"
            with pytest.raises(UserError) as caught:
                await first.replica.final_flush(lambda _: None)
            assert caught.value.exit_code == ExitCode.FENCED
            assert everything(bucket) == standing
            assert mirror(bucket) == {"mine": b"2"}
            await second.sync()


@only_local
async def test_a_fence_that_was_not_sealed_is_sealed_by_the_next_start(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    """The new owner dies between the lease and its segment."""
    async with mounter("a", crash=True) as m:
        m.write("f", b"1")
        await m.sync()
    async with mounter("b", take_over=True, crash=True) as m:
        pass
    fence = newest(bucket)
    bucket.delete(layout.seg_key(fence.number))
    # Its cache knows the fence, which in truth never stood.
    with pytest.raises(UserError, match="ends at segment 1"):
        async with mounter("b"):
            pass
    bucket.put(layout.LEASE_KEY, _held_by(bucket, "c" * 32).encode())
    async with mounter("c", take_over=True) as m:
        assert newest(bucket).number == 2
        assert await m.read("f") == b"1"


def _held_by(bucket: ScopedStore, writer: str) -> Lease:
    held = lease_of(bucket)
    return Lease(held.epoch, HELD, writer, "elsewhere", 1, 0, 10**9, 20_000, 99)


@only_local
async def test_a_cache_with_changes_takes_nothing_over_when_the_bucket_went_on(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a", crash=True, lease_s=LEASE_S_MIN) as m:
        m.write("f", b"1")
        await m.sync()
        m.write("f", b"unsealed")
    async with mounter("b", take_over=True, lease_s=LEASE_S_MIN) as second:
        before = everything(bucket)
        for take_over in (False, True):
            with pytest.raises(UserError) as caught:
                async with mounter("a", take_over=take_over):
                    pass
            assert caught.value.exit_code == ExitCode.FENCED
        assert everything(bucket) == before
        second.write("g", b"2")
        await second.sync()


@only_local
async def test_a_mount_that_fails_gives_the_lease_back(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        for _ in range(2):
            m.write("f", os.urandom(10))
            await m.sync()
    raw = bucket.get(layout.seg_key(1)).data
    bucket.put(layout.seg_key(1), raw[:-1] + b"?")
    with pytest.raises(UserError, match="damaged"):
        async with mounter("b"):
            pass
    assert lease_of(bucket).state == RELEASED
    bucket.put(layout.seg_key(1), raw)
    async with mounter("c"):
        pass


@only_local
async def test_a_bucket_without_a_lease_is_mounted_as_it_is(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        m.write("f", b"1")
        await m.sync()
    bucket.delete(layout.LEASE_KEY)
    async with mounter("b") as m:
        assert await m.read("f") == b"1"
        assert (lease_of(bucket).epoch, newest(bucket).number) == (2, 1)


@only_local
async def test_a_seal_that_was_not_noted_counts_once_it_is_found(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulation: after a mount without the store, our own objects of that seal were
    taken for a later writer's, and those that no file had any more were left for ever."""

    async def lost(*_: object) -> None:
        raise TransientError("seal", "journal", "the answer was lost")

    async with mounter("a", crash=True) as m:
        m.write("f", b"1")
        monkeypatch.setattr(m.replica._flusher, "_forget", lost)
        with pytest.raises(UserError):
            await m.sync()
        generation = m.cache.generation
    async with mounter("a", adopted=True) as m:
        assert m.replica.sealed_generation < generation
        await m.replica._verify()
        assert m.replica.sealed_generation == generation


# --- without the store ---------------------------------------------------------------------------


@only_s3
async def test_a_whole_cache_is_mounted_while_the_store_is_away(
    mounter: Mounter, bucket: ScopedStore, seaweed: Seaweed
) -> None:
    async with mounter("a", crash=True) as m:
        m.write("f", b"1")
        await m.sync()
        m.write("f", b"2")
    seaweed.stop()
    try:
        with pytest.raises(UserError) as caught:
            async with mounter("new"):
                pass
        assert caught.value.exit_code == ExitCode.STORE
        started = trio.current_time()
        async with mounter("a", run=True) as m:
            assert trio.current_time() - started < 45
            assert await m.read("f") == b"2"
            health = m.replica.status()["health"]
            assert health["state"] == "degraded" and health["error"]
            assert m.replica.status()["lease"]["state"] == "none"
            m.write("g", b"3")
            seaweed.start()
            await until(lambda: m.replica.status()["generation"]["mirrored"] == m.cache.generation)
            # The cycle that mirrored it tells how it went when it is over.
            await until(lambda: m.replica.status()["health"]["state"] == "ok")
            assert m.replica.status()["lease"]["state"] == "held"
            assert mirror(bucket) == {"f": b"2", "g": b"3"}
    finally:
        if seaweed.pid is None:
            seaweed.start()


@only_s3
async def test_who_was_taken_over_while_the_store_was_away_is_fenced(
    mounter: Mounter, bucket: ScopedStore, seaweed: Seaweed
) -> None:
    async with mounter("a", crash=True) as m:
        m.write("f", b"1")
        await m.sync()
        m.write("f", b"unsealed")
    seaweed.stop()
    try:
        async with mounter("a") as first:
            seaweed.start()
            async with mounter("b", take_over=True) as second:
                standing = everything(bucket)
                with trio.fail_after(90):
                    await first.replica.run()
                assert first.replica.status()["health"]["state"] == "fenced"
                assert everything(bucket) == standing
                assert await second.read("f") == b"1"
                assert await first.read("f") == b"unsealed"
    finally:
        if seaweed.pid is None:
            seaweed.start()


async def test_an_adopted_mount_goes_on_before_it_asks(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a", crash=True) as m:
        m.write("f", b"1")
        await m.sync()
        m.write("f", b"2")
    async with mounter("a", adopted=True, take_over=True, run=True) as m:
        assert m.replica.worker.spawned == 0
        assert await m.read("f") == b"2"
        await until(lambda: m.replica.status()["generation"]["mirrored"] == m.cache.generation)
        assert mirror(bucket) == {"f": b"2"}
        assert lease_of(bucket).epoch == 2


@only_local
async def test_an_adopted_mount_takes_nothing_over(mounter: Mounter, bucket: ScopedStore) -> None:
    """Whatever the mount was started with: its command is an old one by now."""
    async with mounter("a", crash=True) as m:
        m.write("f", b"1")
        await m.sync()
    held = _held_by(bucket, "b" * 32)
    bucket.put(layout.LEASE_KEY, held.encode())
    async with mounter("a", adopted=True, take_over=True) as m:
        m.write("f", b"2")
        with pytest.raises(UserError) as caught:
            await m.sync()
        assert caught.value.exit_code == ExitCode.HELD
        assert lease_of(bucket) == held
        assert m.replica.status()["health"]["state"] == "degraded"
        # It may be given back, and then all goes on.
        bucket.delete(layout.LEASE_KEY)
        await m.sync()
    assert mirror(bucket) == {"f": b"2"}


# --- an idle mount -------------------------------------------------------------------------------


class FakeWorker:
    """Renews in an instant; `fail` raises instead."""

    def __init__(self) -> None:
        self.hello: dict[str, Any] = {}
        self.renewed: list[tuple[float, float]] = []
        self.fail: Exception | None = None

    def grant(self, lasts_s: float) -> None:
        lease = Lease(1, HELD, "a" * 32, "here", 1, 0, round(lasts_s * 1000), 20_000, 1)
        self.hello["lease"] = Grant(lease, "etag", trio.current_time()).to_json()

    async def ask(self, cmd: str, **args: Any) -> dict[str, Any]:
        if cmd == "lease":
            self.grant(args["claim"]["lease_s"])
            return {"how": "new", "was": None, "quiet_s": 0.0, "state": None}
        assert cmd == "renew" and args["then_end"] is True
        if self.fail is not None:
            raise self.fail
        self.renewed.append((trio.current_time(), args["lasts_s"]))
        self.grant(args["lasts_s"])
        return {}


@pytest.fixture
def empty_cache(tmp_path: Path) -> Any:
    identity = Identity(prefix="conversations/u/c/workspace/", store="memory:")
    with open_cache(tmp_path / "ws", identity, quota_bytes=1 << 24, now_ns=time.time_ns) as opened:
        yield opened


def keeper(cache: Cache, worker: FakeWorker) -> LeaseKeeper:
    return LeaseKeeper(
        cache,
        worker,  # type: ignore[arg-type]
        LEASE_S,
        host="here",
        boot=trio.current_time,
        random01=lambda: 0.5,
        randbits=lambda bits: 7,
    )


EMPTY: dict[str, Any] = {"header": None}


async def test_an_idle_mount_renews_ever_more_seldom(
    empty_cache: Cache, autojump_clock: trio.testing.MockClock
) -> None:
    worker = FakeWorker()
    ours = keeper(empty_cache, worker)
    await ours.take(EMPTY, take_over=False, deadline_s=1)
    with trio.move_on_after(86_400):
        await ours.run()
    lasts = [lasts_s for _, lasts_s in worker.renewed]
    assert lasts[0] == 600 and lasts[-1] == 3600 and lasts == sorted(lasts)
    assert len(lasts) < 60
    ends = [when + lasts_s for when, lasts_s in worker.renewed]
    assert all(when < end for (when, _), end in zip(worker.renewed[1:], ends, strict=False))


async def test_a_busy_mount_leaves_it_to_the_gate(
    empty_cache: Cache, autojump_clock: trio.testing.MockClock
) -> None:
    worker = FakeWorker()
    ours = keeper(empty_cache, worker)
    await ours.take(EMPTY, take_over=False, deadline_s=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.run)
        for _ in range(100):
            await trio.sleep(15)
            ours.used()
            worker.grant(LEASE_S)
        assert worker.renewed == []
        await trio.sleep(60)
        assert [lasts_s for _, lasts_s in worker.renewed] == [600]
        nursery.cancel_scope.cancel()


async def test_a_store_that_is_away_is_asked_again_and_a_fence_is_told(
    empty_cache: Cache, autojump_clock: trio.testing.MockClock
) -> None:
    worker = FakeWorker()
    ours = keeper(empty_cache, worker)
    await ours.take(EMPTY, take_over=False, deadline_s=1)
    worker.fail = TransientError("put", "journal/lease.json", "away")
    with trio.move_on_after(100):
        await ours.run()
    assert ours.status()["state"] == "lapsed"
    worker.fail = FencedError("somebody")
    with pytest.raises(FencedError):
        await ours.run()


async def test_the_quiet_after_a_take_over_outlasts_our_own_restart(
    empty_cache: Cache, autojump_clock: trio.testing.MockClock
) -> None:
    worker = FakeWorker()
    ours = keeper(empty_cache, worker)
    ours._be_quiet(20.0)
    assert ours.quiet_left_s() == 22
    await trio.sleep(5)
    again = keeper(empty_cache, worker)
    again._be_quiet(0.0)
    assert again.quiet_left_s() == 17
    said: list[dict[str, Any]] = []
    await again.quiet_over(said.append)
    assert again.quiet_left_s() == 0 and len(said) == 1
    # After a reboot the clock begins anew: the whole time again, never more.
    empty_cache.put_json("lease_quiet", {"until_s": 1e9, "quiet_s": 22.0})
    rebooted = keeper(empty_cache, worker)
    rebooted._be_quiet(0.0)
    assert rebooted.quiet_left_s() == 22


async def test_a_mount_is_quiet_only_about_the_mirror(mounter: Mounter) -> None:
    """What is written during the quiet time is sealed at once, and mirrored after it."""
    async with mounter("a", lease_s=9.0, crash=True) as m:
        m.write("f", b"1")
        await m.sync()
    async with mounter("b", take_over=True, run=True) as m:
        m.write("f", b"2")
        await until(lambda: m.replica.status()["generation"]["sealed"] == m.cache.generation)
        assert is_behind(m)
        await until(lambda: not is_behind(m))


def is_behind(m: Mount) -> bool:
    return bool(m.replica.status()["generation"]["mirrored"] < m.cache.generation)


async def test_who_is_overtaken_while_mounting_is_told_so(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_late(*_: object, **__: object) -> bool:
        raise FencedError("elsewhere (pid 7)")

    monkeypatch.setattr(LeaseKeeper, "take", too_late)
    with pytest.raises(UserError, match="elsewhere") as caught:
        async with mounter("a"):
            pass
    assert caught.value.exit_code == ExitCode.FENCED
