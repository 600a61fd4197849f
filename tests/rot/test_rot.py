"""Rot, the short form: no damage of any object is missed, and none leads to wrong bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

from s3ws_fs.core import layout
from s3ws_fs.replica import flusher
from s3ws_fs.transfer import audit_bytes
from tests.rot import bucket, cache
from tests.rot.bucket import Place, Trial, Wrong

SEED = 1
TRIALS = 30
CACHE_TRIALS = 40


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


async def test_no_damage_of_the_bucket_is_missed_or_shown(pool: ThreadPoolExecutor) -> None:
    counts: Counter[str] = Counter()
    async with bucket.made() as place:
        for number in range(TRIALS):
            counts += await bucket.run_trial(place, pool, SEED, number)
    print(dict(counts))
    assert counts["check: found"] > TRIALS / 2
    assert counts["read from the mirror, and said"]
    assert counts["writer: refused"] and counts["follower: refused"]


async def test_every_object_and_every_kind_of_damage(pool: ThreadPoolExecutor) -> None:
    """By the check alone, which is quick."""
    seen: set[str] = set()
    async with bucket.made() as place:
        for number in range(400):
            trial = Trial(place, SEED + 1, number)
            trial.check(pool)
            seen.update(trial.damage.keys)
        assert seen == {entry.key for entry in place.scoped(place.store).list() if entry.size_bytes}


async def test_a_rotten_cache_is_found_or_shows_what_it_should(pool: ThreadPoolExecutor) -> None:
    counts: Counter[str] = Counter()
    async with bucket.made() as place:
        for number in range(CACHE_TRIALS):
            counts += await cache.run_trial(place, pool, SEED, number)
    print(dict(counts))
    assert counts["cache: found by check"]
    assert counts["cache: nothing was wrong"]


# --- negative controls: without a part of it, the same trials fail


async def _first_wrong(place: Place, pool: ThreadPoolExecutor, readers: tuple[str, ...]) -> str:
    for number in range(200):
        try:
            await bucket.run_trial(place, pool, SEED, number, readers)
        except Wrong as exc:
            return str(exc)
    raise AssertionError("200 trials went well")


async def test_without_the_digest_of_what_is_fetched_wrong_bytes_are_shown(
    pool: ThreadPoolExecutor,
) -> None:
    async with bucket.made() as place:
        with mock.patch("s3ws_fs.transfer.fetch.verify"):
            assert "has other bytes" in await _first_wrong(place, pool, ("follower",))


async def test_without_the_digests_of_the_audit_damage_is_missed(pool: ThreadPoolExecutor) -> None:
    def nothing(store: object, stream: audit_bytes.Stream) -> audit_bytes.Streamed:
        return audit_bytes.Streamed(stream, [])

    async with bucket.made() as place:
        with mock.patch.object(audit_bytes, "run", nothing):
            assert "not found by check" in await _first_wrong(place, pool, ())


async def test_without_the_note_of_the_mirror_a_lost_end_is_not_noticed(
    pool: ThreadPoolExecutor,
) -> None:
    """The newest segment is gone: what is left is whole in itself."""
    async with bucket.made() as place:
        store = place.store.fork()
        last = max(entry.key for entry in place.scoped(store).list(layout.SEG_PREFIX))
        checkpoint = layout.ckpt_key(layout.key_number(last, layout.SEG_PREFIX) or 0)
        place.scoped(store).delete(last)
        place.scoped(store).delete(checkpoint)
        with pytest.raises(Exception, match="what was sealed last is missing"):
            async with place.mounted(store.fork(), read_only=True):
                pass
        place.scoped(store).delete(layout.MIRRORED_KEY)
        async with place.mounted(store, read_only=True) as m:
            assert m.tree() != place.tree


async def test_a_damaged_checkpoint_is_done_without_and_made_anew(
    pool: ThreadPoolExecutor,
) -> None:
    async with bucket.made() as place:
        store = place.store.fork()
        scoped = place.scoped(store)
        data = bytearray(scoped.get(place.checkpoint).data)
        data[-20] ^= 1
        scoped.put(place.checkpoint, bytes(data))
        for read_only in (True, False):
            async with place.mounted(store, "another", read_only=read_only) as m:
                assert m.tree() == place.tree
                said = m.replica.status()["hydration"]["second_copies"]
                assert [item["path"] for item in said] == [place.checkpoint]
        async with place.mounted(store, "another") as m:
            with mock.patch.object(flusher, "CHECKPOINT_EVERY_SEGMENTS", 1000):
                m.write("one more", b"x")
                await m.sync()
            newest = max(entry.key for entry in scoped.list(layout.CKPT_PREFIX))
            assert newest > place.checkpoint
        async with place.mounted(store, "another") as m:
            assert m.replica.status()["hydration"]["second_copies"] == []
