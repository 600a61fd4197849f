"""Random lives of a workspace: seals, checkpoints, snapshots, deletions, limits, garbage.

After each collection, against a model that keeps for each point its tree and what it named:
    every point that is said to be kept loads, and each of its bytes reads and is right
    the points kept are those that the limits say
    what nobody needs and is older than the grace is gone; what somebody needs stands
    the audit of the bucket finds no damage

`python -m tests.history.lives --seconds 600 --seed 1` for a long time.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest import mock

from s3ws_fs.cache.cache import Identity, open_cache
from s3ws_fs.core import history, keys, layout
from s3ws_fs.core.findings import Severity
from s3ws_fs.core.history import KINDS, NAMED, UNDOABLE, Snapshot
from s3ws_fs.core.retention import Limits
from s3ws_fs.core.types import BLOB_BIT, ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import freeze, garbage, points, spans
from s3ws_fs.transfer.audit import audit
from s3ws_fs.transfer.garbage import CHECKPOINTS_KEPT, GC_GRACE_S, Collected
from s3ws_fs.transfer.points import Points, SnapKey
from tests.support.history import WORKSPACE, Life, tree_of
from tests.support.inline import at_once

PREFIX: Final = "conversations/u/c/workspace/"
S: Final = 1_000_000_000
STEPS: Final = 60
_NAMES: Final = [b"a", b"b", b"c", b"d"]
_SIZES: Final = [0, 1, 100, 3000, 9000, 40_000, 70_000]


@dataclass
class Lived:
    """One life with its model."""

    rng: random.Random
    life: Life
    memory: MemoryStore
    directory: Path
    now_ns: int = 1_000_000 * S
    names: dict[int, set[int]] = field(default_factory=dict)
    """By point: what its chunk records name."""
    kept_from: int = 1
    limits: Limits = field(default_factory=Limits)
    seen: Counter[str] = field(default_factory=Counter)

    # --- what may happen

    def change(self) -> None:
        life, rng = self.life, self.rng
        have = [name for name in _NAMES if name in life.tree]
        what = rng.random()
        if have and what < 0.15:
            life.remove(rng.choice(have))
        elif len(have) > 1 and what < 0.3:
            life.rename(*rng.sample(have, 2))
        else:
            life.write(rng.choice(_NAMES), rng.randbytes(rng.choice(_SIZES)))

    def bring_back(self) -> None:
        """A file as it was at a kept point, under a new number: its places, and no bytes."""
        survey = points.survey_points(self.life.store)
        if not survey.numbers():
            return
        number = self.rng.choice(survey.numbers())
        tables = points.load(self.life.store, number, survey, at_once())
        name = self.rng.choice(_NAMES)
        raw = tables.dentries.get(keys.dentry_key(ROOT_INO, name))
        old = None if raw is None else tables.inode(keys.unpack_u64(raw))
        if old is None:
            return
        if name in self.life.tree:
            self.life.remove(name)
        new = self.life.write(name, b"")
        with self.life.cache.write() as tx:
            rec = tx.inode(new)
            assert rec is not None
            rec.size, rec.alloc = old.size, old.alloc
            tx.head_rec.used_bytes += old.alloc
            tx.put_inode(rec)
            for key, place in tables.chunks.items():
                ino, index = keys.split_chunk_key(key)
                if ino == old.ino:
                    fresh = keys.chunk_key(new, index)
                    tx.txn.put(fresh, place, db=tx.db.chunks)
                    tx.mark(keys.T_CHUNKS, fresh)
        self.life.tree[name] = self.life.points[number][name]

    def seal(self) -> None:
        is_fold = self.rng.random() < 0.3
        frozen = self.life.seal(at_once(), checkpoint=is_fold, alone=is_fold)
        if frozen is None:
            return
        assert frozen.header is not None
        self.seen["sealed alone"] += not frozen.header.puts + frozen.header.tombs
        with self.life.cache.read() as view, view.txn.cursor(db=view.db.chunks) as cursor:
            self.names[self.life.number] = {keys.unpack_u64(raw) for _, raw in cursor}
        try:
            if is_fold:
                self.collect(frozen)
        finally:
            frozen.close()

    def wait(self) -> None:
        self.now_ns += self.rng.choice([1, 60, 1800, 4000, 20_000, 90_000]) * S

    def snapshot(self) -> None:
        number = self.life.number
        if not number:
            return
        kind = self.rng.choice([NAMED, *KINDS])
        name = "" if kind in UNDOABLE else self.rng.choice("pqrst") * self.rng.randint(1, 9)
        snap = Snapshot(
            workspace=WORKSPACE,
            number=number,
            header_hash=self.life.hashes[number],
            generation=self.life.generations[number],
            id=history.snap_id(kind, name, self.now_ns),
            name=name,
            kind=kind,
            created_ns=self.now_ns,
        )
        self.life.store.put(snap.key, snap.encode())

    def drop(self) -> None:
        there = points.list_snaps(self.life.store)
        if there:
            self.life.store.delete(self.rng.choice(there).key)

    def set_limits(self) -> None:
        self.limits = Limits(
            hours=self.rng.choice([0, 0.5, 1, 5, 24, 100]),
            max_bytes=self.rng.choice([0, 50_000, 200_000, 1_000_000, 1 << 40]),
            days=self.rng.choice([0, 0.1, 1, 30]),
        )

    def lose_notes(self) -> None:
        """The cache is made anew, or what it remembers rots."""
        files = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        if not files:
            return
        if self.rng.random() < 0.5:
            shutil.rmtree(self.directory)
            return
        raw = bytearray(files[0].read_bytes())
        raw[self.rng.randrange(len(raw))] ^= 1
        files[0].write_bytes(raw[: self.rng.randint(1, len(raw))])

    def step(self) -> None:
        how_often = {
            self.change: 10, self.seal: 10, self.wait: 4, self.snapshot: 3, self.bring_back: 2,
            self.drop: 1, self.set_limits: 1, self.lose_notes: 1,
        }  # fmt: skip
        what = self.rng.choices([*how_often], [*how_often.values()])[0]
        self.seen[what.__name__] += 1
        what()

    # --- collecting, and what must hold after it

    def collect(self, frozen: freeze.Frozen) -> None:
        before = points.survey_points(self.life.store)
        sizes = _sizes(self.life.store)
        read_max = self.rng.choice([3, 10, 1000])
        with mock.patch.object(spans, "SEGMENTS_READ_MAX", read_max):
            done = garbage.collect_garbage(
                self.life.store, frozen, self.limits, self.directory, at_once()
            )
        after = points.survey_points(self.life.store)
        self.check_trees(after)
        if done.is_behind:
            assert (done.removed, done.snapshots) == (0, 0)
            assert read_max < 1000
            self.seen["behind"] += 1
            return
        self.check_exact(before, after, sizes, done)
        self.check_audit()
        self.seen["removed"] += done.removed
        self.seen["snapshots removed"] += done.snapshots
        self.seen["segments read"] += done.segments_read

    def check_audit(self) -> None:
        """`s3ws check --bucket` finds nothing wrong, and counts the same garbage."""
        quick = self.rng.random() < 0.7
        report = audit(self.life.store, at_once(), lambda _: None, quick=quick).report
        found = [f for f in report.findings if f.severity is Severity.DAMAGE]
        assert not found, found
        self.seen["audits"] += 1

    def check_trees(self, survey: Points) -> None:
        for number in survey.numbers():
            tables = points.load(self.life.store, number, survey, at_once())
            assert tree_of(tables, self.life.store) == self.life.points[number], number
            self.seen["points read"] += 1

    def needs(self, survey: Points, number: int) -> set[int]:
        """What a point needs, as docs/format.md says."""
        base = max((n for n in survey.checkpoints if n <= number), default=0)
        own = {*range(base + 1, number + 1), *self.names[number]}
        return own | ({-base} if base else set())

    def check_exact(
        self, before: Points, after: Points, sizes: dict[int, int], done: Collected
    ) -> None:
        newest = before.newest
        old_ns = self.now_ns - int(self.limits.days * 86_400) * S
        live = [s for s in before.snaps if s.kind == NAMED or s.modified_ns > old_ns]
        free = self.needs(before, newest) | {newest}
        free |= {-n for n in sorted(before.checkpoints)[-CHECKPOINTS_KEPT:]}
        for snap in live:
            if snap.kind == NAMED:
                free |= self.needs(before, snap.number)
        begin = self.window_begin(before, free, sizes)
        needed = set(free)
        for number in range(begin, newest + 1):
            needed |= self.needs(before, number)
        left = self.limits.max_bytes - sum(sizes.get(item, 0) for item in needed - free)
        kept = self.kept_snapshots(before, live, begin, needed, sizes, left)
        assert {snap.key for snap in after.snaps} == {snap.key for snap in kept}
        assert len(before.snaps) - len(kept) == done.snapshots
        there = _sizes(self.life.store)
        assert needed & sizes.keys() <= there.keys()
        for item in there.keys() - needed:
            assert self.put_ns(item) >= self.now_ns - GC_GRACE_S * S, item
        if done.removed or done.snapshots:
            self.kept_from = max(self.kept_from, begin)
        assert (done.kept_from, after.kept_from) == (self.kept_from, self.kept_from)

    def window_begin(self, before: Points, free: set[int], sizes: dict[int, int]) -> int:
        newest = before.newest
        first = newest
        while (
            first > self.kept_from
            and first - 1 in before.numbers()
            and any(before.bases(first - 1)) | (0 in list(before.bases(first - 1)))
        ):
            first -= 1
        limit_ns = self.now_ns - int(self.limits.hours * 3600) * S
        old = [n for n in range(first, newest + 1) if before.modified_ns(n) <= limit_ns]
        first = max(old, default=first)
        while first < newest:
            window = set().union(*(self.needs(before, n) for n in range(first, newest + 1)))
            if sum(sizes[item] for item in window - free) <= self.limits.max_bytes:
                break
            first += 1
        return first

    def kept_snapshots(
        self,
        before: Points,
        live: list[SnapKey],
        begin: int,
        needed: set[int],
        sizes: dict[int, int],
        left: int,
    ) -> list[SnapKey]:
        """Adds what they need to `needed`."""
        kept = []
        is_full, has_undo = False, False
        for snap in sorted(live, key=lambda s: (s.number, s.modified_ns, s.id), reverse=True):
            if snap.kind == NAMED or snap.number >= begin:
                kept.append(snap)
                continue
            wants = self.needs(before, snap.number)
            more = sum(sizes[item] for item in wants - needed)
            is_first = snap.kind in UNDOABLE and not has_undo
            has_undo = has_undo or snap.kind in UNDOABLE
            if (is_full or more > left) and not is_first:
                is_full = True
                continue
            left -= more
            needed |= wants
            kept.append(snap)
        return kept

    def put_ns(self, item: int) -> int:
        return self.life.store.head(_key(item)).modified_ns


def _key(item: int) -> str:
    return layout.ckpt_key(-item) if item < 0 else layout.object_key(item)


def _sizes(store: ScopedStore) -> dict[int, int]:
    found = {}
    for entry in store.list("journal/"):
        for prefix, sign in ((layout.CKPT_PREFIX, -1), (layout.SEG_PREFIX, 1),
                             (layout.BLOB_PREFIX, 1)):  # fmt: skip
            number = layout.key_number(entry.key, prefix)
            if number is not None:
                assert bool(number & BLOB_BIT) == (prefix == layout.BLOB_PREFIX)
                found[sign * number] = entry.size_bytes
    return found


@contextlib.contextmanager
def lived(seed: int, base: Path) -> Iterator[Lived]:
    """A workspace at its beginning."""
    memory = MemoryStore()
    with (
        # Blobs and several extents at sizes that are quick to write.
        mock.patch.object(freeze, "BLOB_FILE_BYTES_MIN", 8000),
        mock.patch.object(freeze, "SEGMENT_INLINE_BYTES_MAX", 12_000),
        mock.patch.object(freeze, "BLOB_BYTES_MAX", 60_000),
        open_cache(
            base / "ws", Identity(prefix=PREFIX, store="memory:"), quota_bytes=1 << 30,
            now_ns=time.time_ns,
        ) as cache,
    ):  # fmt: skip
        fs = FileSystem(cache, quota_bytes=1 << 30, quota_inodes=1000, on_change=lambda: None)
        fs.make_root(uid=0, gid=0, mode=0o755)
        life = Life(cache, fs, ScopedStore(memory, PREFIX), base)
        life.begin()
        made = Lived(random.Random(seed), life, memory, base / "history")
        memory._now_ns = lambda: made.now_ns
        yield made


def live(seed: int, steps: int = STEPS) -> Counter[str]:
    """One life; returns what happened how often."""
    with tempfile.TemporaryDirectory() as base, lived(seed, Path(base)) as one:
        for _ in range(steps):
            one.step()
        return one.seen


def main() -> None:
    """Lives for so many seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    began_s = time.monotonic()
    seen: Counter[str] = Counter()
    seed = args.seed
    while time.monotonic() - began_s < args.seconds:
        try:
            seen += live(seed, args.steps)
        except BaseException:
            print(f"seed {seed}")
            raise
        seen["lives"] += 1
        seed += 1
    print(dict(seen))


if __name__ == "__main__":
    main()
