"""Random lives of a mount, audited at every turn: never damage, and in the end nothing pending."""

from __future__ import annotations

import os
import random

import pytest
import trio

from s3ws_fs.replica import flusher
from s3ws_fs.store.scoped import ScopedStore
from tests.cache.test_verify_workloads import Life
from tests.replica.conftest import Mount, Mounter, bucket, config, mounter, store_config
from tests.transfer.test_audit import only_local, run, witness, wrong

__all__ = ["bucket", "config", "mounter", "store_config"]

STEPS = ("create", "mkdir", "symlink", "write", "write", "truncate", "link", "rename", "unlink")
TURNS = 12


class MountedLife(Life):
    """The same steps on a mount, whose own flusher seals and mirrors."""

    def __init__(self, m: Mount, rng: random.Random) -> None:
        self.cache, self.fs, self._rng = m.cache, m.fs, rng
        with m.cache.read() as view:
            keys = [key for key, _ in view.txn.cursor(db=view.db.inodes)]
        self.inos = [int.from_bytes(key, "big") for key in keys]

    def some(self, count: int) -> None:
        """So many random steps."""
        rng = self._rng
        for _ in range(count):
            kind = rng.choice(STEPS)
            name = rng.choice([b"a", b"b", b"c", b"\xff\\"])
            one, two = rng.randrange(60), rng.randrange(60)
            if kind == "write":
                # Now and then one that gets a blob of its own.
                size = rng.choice([1, 4096, 70_000, 1_200_000])
                self.run((kind, one, rng.choice([0, 100, 40_000]), size))
            elif kind == "truncate":
                self.run((kind, one, rng.choice([0, 5, 50_000]), 0))
            elif kind == "link":
                self.run((kind, one, two, name))
            elif kind == "rename":
                self.run((kind, one, name, two, rng.choice([b"a", b"b", b"c"]), rng.choice([0, 2])))
            else:
                self.run((kind, rng.choice([0, one]), name))
        self.do_reap()


async def turn(m: Mount, rng: random.Random) -> None:
    """Flush, in one of the ways that a flush may go."""
    way = rng.choice(["sync", "seal", "cut", "nothing"])
    flusher = m.replica._flusher
    if way == "sync":
        await m.sync()
    elif way != "nothing":
        await flusher.reconcile()
        flush_id, has_work = await flusher.flush()
        if way == "seal" or not has_work:
            await flusher.drop()
            return
        async with trio.open_nursery() as nursery:
            written = trio.Event()

            async def stop() -> None:
                await written.wait()
                await flusher.stop_mirror()

            nursery.start_soon(stop)
            await flusher.mirror(flush_id, lambda _: written.set())
            written.set()


@only_local
async def test_every_turn_of_a_life_is_clean(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Continuous integration repeats the same life, a person's run explores others.
    explored = 1 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
    seed = int(os.environ.get("S3WS_TEST_SEED", 0)) or explored
    print(f"seed {seed}")
    rng = random.Random(seed)
    monkeypatch.setattr(flusher, "CHECKPOINT_EVERY_SEGMENTS", 4)
    host = 0
    for is_last in (False, False, True):
        async with mounter(f"h{host}") as m:
            life = MountedLife(m, rng)
            for _ in range(TURNS // 3):
                life.some(40)
                await turn(m, rng)
                for options in ({}, {"local": witness(m)}):
                    report = run(bucket, **options).report
                    assert report.ok, report.findings
            if is_last or rng.randrange(2):
                await m.sync()
                assert wrong(run(bucket, local=witness(m)).report) == []
            with m.cache.read() as view:
                is_sealed = view.dirty_count() == 0
        # On the same cache, or, when nothing would be lost, on another host.
        host += rng.randrange(2) if is_sealed else 0
