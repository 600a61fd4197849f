"""Power cuts: images of a busy cache as a disk may hold them, opened under another boot.

A life is random work of the filesystem on a real cache, with sync points and flushes of the redo
log among it, some of it in batches. A disk holds of the database, the side file, the log and the
boot note whatever `tests.support.tape` allows. At random moments, also in the middle of a sync
point or a flush, the power goes: an image is made, opened as after a reboot, and compared with what
the cache was at the sync point that must have survived, or after the change that the log brought it
to. Now and then the life goes on from the image.

    python -m tests.crash.power --images 2000        long form, in this process
    python -m tests.crash.power --mount 20           images of busy mounts (tests.crash.power_mount)
    python -m tests.crash.power --cuts 20            a real ext4 that is shut down (power_disk)

Called by test_power.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

from s3ws_fs.cache import recovery, redo, syncpoint
from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import Checked, check_cache, check_records
from s3ws_fs.cache.ownership import IDENTITY_FILE
from s3ws_fs.cache.syncpoint import BOOT_FILE, SIDE_FILE, Pending
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE, TABLES
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.types import ROOT_INO
from tests.cache.test_verify_workloads import Life
from tests.support import caches
from tests.support.buckets import LocalBucket
from tests.support.crash_disk import crash_disk
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host
from tests.support.tape import Tape

IDENTITY: Final = Identity(prefix=caches.PREFIX, store="local:/somewhere")
QUOTA_BYTES: Final = 64 << 20
LIFE_STEPS: Final = 150
INOS_MAX: Final = 40
"""Files that a life works on: few enough that pages are freed and used again all the time."""

MOUNT_IMAGES: Final = 20
CUTS_A_DISK: Final = 5

NAMES: Final = (b"a", b"b", b"\xff\\", b"n" * 255)
OFFSETS: Final = (0, 1, 5000, 32_768, 40_000, 100_000)
SIZES: Final = (1, 100, 4096, 32_768, 70_000)
_STEPS: Final = (
    "create", "create", "mkdir", "symlink", "rmdir", "unlink", "write", "write", "write",
    "truncate", "link", "setxattr", "rename", "seal", "evict", "reap", "removexattr",
)  # fmt: skip

SIDE_HARMS: Final = ("missing", "empty", "garbage", "short")
"""What no power cut does to a side file, and a bad disk does: then there is no sync point."""


class WrongImageError(AssertionError):
    """A power cut cost what it must not."""


def digest(cache: Cache) -> str:
    """All records of a cache, in few characters."""
    with cache.read() as view:
        whole = hashlib.blake2b(digest_size=16)
        for name in TABLES:
            for key, value in view.txn.cursor(db=getattr(view.db, name)):
                whole.update(b"%s %d %d " % (name.encode(), len(key), len(value)))
                whole.update(key)
                whole.update(value)
    return whole.hexdigest()


class _Os:
    """The module os, with one moment between the write of a slot and its flush."""

    def __init__(self, moment: Callable[[], None]) -> None:
        self._moment: Callable[[], None] | None = moment

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fdatasync(self, fd: int) -> None:
        if self._moment is not None:
            # Other caches, opened in that moment, have none.
            moment, self._moment = self._moment, None
            moment()
        os.fdatasync(fd)


class _Env:
    """The environment that sync points see: a flush takes time, and work goes on meanwhile."""

    def __init__(self, env: Any, tape: Tape, moment: Callable[[], None]) -> None:
        self._env = env
        self._tape = tape
        self._moment = moment

    def begin(self) -> Any:
        return self._env.begin()

    def sync(self, force: bool) -> None:
        self._tape.begin_flush()
        self._moment()
        self._env.sync(force)
        self._tape.end_flush()
        self._moment()


class PowerLife:
    """Work on one cache between two boots, and the disk below it."""

    def __init__(self, directory: Path, rng: random.Random, boot: int) -> None:
        self.directory = directory
        self.rng = rng
        self.boot = boot
        self.history: dict[int, str] = {}
        """The records at each sync point, by its sequence (bookkeeping moves no generation)."""
        self.after: dict[int, str] = {}
        """The records right after each change."""
        self.acknowledged = -1
        self.flushes = 0
        self.brought_on = 0
        """Images that the log brought beyond their sync point."""
        self.on_moment: Callable[[], None] = lambda: None
        ticks = itertools.count(1_700_000_000_000_000_000 + boot * 10**15, 1000)
        self.cache = open_cache(
            directory,
            IDENTITY,
            quota_bytes=QUOTA_BYTES,
            now_ns=lambda: next(ticks),
            boot_id=f"boot-{boot}",
            with_log=True,
        )
        if not self.cache.restore_complete:
            self.cache.set_restore_complete()
        self.life = Life(self.cache)
        self.cache.sync_point()
        self._sequence = max(slot.sequence for slot in syncpoint.read_slots(directory) if slot)
        self.history[self._sequence] = digest(self.cache)
        self.acknowledged = self.cache.generation
        self.data = Tape(directory / DATA_DIR / DATA_FILE)
        self.side = Tape(directory / SIDE_FILE)
        self.logs = [Tape(directory / name) for name in redo.LOG_FILES]
        committed = self.cache.committed

        def noting(tx: Tx) -> None:
            committed(tx)
            self.after[tx.generation] = digest(self.cache)

        self.cache.committed = noting  # type: ignore[method-assign]
        points: Any = self.cache.points
        self._env = points._env
        points._env = _Env(self._env, self.data, self._moment)

    def step(self) -> None:
        """One step of random work; what is not possible is refused and left out."""
        rng, life = self.rng, self.life
        if rng.random() < 0.5:
            self.cache.begin_batch()
        kind = rng.choice(_STEPS)
        if len(life.inos) > INOS_MAX:
            life.inos = [ino for ino in life.inos if self._lives(ino)][-INOS_MAX:] or [ROOT_INO]
            if ROOT_INO not in life.inos:
                life.inos.insert(0, ROOT_INO)

        def ino() -> int:
            return rng.randrange(len(life.inos))

        name = rng.choice(NAMES)
        args: dict[str, tuple[object, ...]] = {
            "write": (ino(), rng.choice(OFFSETS), rng.choice(SIZES)),
            "truncate": (ino(), rng.choice(OFFSETS), 0),
            "link": (ino(), ino(), name),
            "setxattr": (ino(), 0, name),
            "rename": (ino(), name, ino(), rng.choice(NAMES), rng.choice((0, 0, 1, 2))),
        }
        if kind in ("create", "mkdir", "symlink", "rmdir", "unlink"):
            life.run((kind, ino(), name))
        else:
            life.run((kind, *args.get(kind, ())))

    def _lives(self, ino: int) -> bool:
        try:
            self.life.fs.getattr(ino)
        except FsError:
            return False
        return True

    def _moment(self) -> None:
        """While a sync point is under way: commits go on, and the power may go."""
        self.cache.settle()
        for _ in range(self.rng.randrange(4)):
            self.step()
            self.data.look()
        self.cache.settle()
        self.side.look()
        self.on_moment()

    def sync_point(self) -> None:
        """A sync point; between its parts there are moments."""
        points = self.cache.points
        pending = self.cache.begin_point()
        self._sequence += 1
        self.history[self._sequence] = digest(self.cache)
        with mock.patch.object(syncpoint, "os", _Os(self._moment)):
            points.write(pending)
        # Until `finish`, nothing relies on the slot: whether it is on the disk makes no difference.
        self._moment()
        self.side.begin_flush()
        self.side.end_flush()
        self.cache.finish_point(pending)
        self.acknowledged = max(self.acknowledged, pending.generation)

    def log_flush(self) -> bool:
        """A flush of the log, if it is of use; there are moments in it."""
        log = self.cache.redo
        assert log is not None
        self.cache.settle()
        begun = log.begin_flush()
        if begun is None:
            return False
        generation, descriptors = begun
        wanted = [tape for tape, half in zip(self.logs, log._halves, strict=True)
                  if half.fd in descriptors]  # fmt: skip
        for tape in wanted:
            tape.begin_flush()
        self._moment()
        redo.flush(descriptors)
        for tape in wanted:
            tape.end_flush()
        self._moment()
        log.finish_flush(generation)
        self.acknowledged = max(self.acknowledged, generation)
        return True

    def run(self, steps: int, cut: Callable[[], None]) -> None:
        """Work; `cut` is called at random moments."""
        rng = self.rng

        def moment() -> None:
            if rng.random() < 0.4:
                cut()

        self.on_moment = moment
        for _ in range(steps):
            self.step()
            if rng.random() < 0.4:
                self.data.look()
            if rng.random() < 0.3:
                for tape in self.logs:
                    tape.look()
            if rng.random() < 0.08:
                self.sync_point()
            if rng.random() < 0.15:
                self.flushes += self.log_flush()
            if rng.random() < 0.08:
                self.data.look()
                cut()

    def close(self) -> None:
        """Close the cache cleanly."""
        points: Any = self.cache.points
        points._env = self._env
        self.cache.close()

    def image(self, target: Path, harm: str = "") -> None:
        """What the disk may hold now. `harm`: one of SIDE_HARMS."""
        rng = self.rng
        (target / DATA_DIR).mkdir(mode=0o700, parents=True)
        (target / DATA_DIR / DATA_FILE).write_bytes(self.data.image(rng))
        shutil.copyfile(self.directory / IDENTITY_FILE, target / IDENTITY_FILE)
        for name, tape in zip(redo.LOG_FILES, self.logs, strict=True):
            tape.look()
            (target / name).write_bytes(tape.image(rng))
        side = self.side.image(rng)
        if harm == "empty":
            side = b""
        elif harm == "garbage":
            side = rng.randbytes(len(side))
        elif harm == "short":
            side = side[: rng.randrange(4000)]
        if harm != "missing":
            (target / SIDE_FILE).write_bytes(side)
        note = (self.directory / BOOT_FILE).read_bytes()
        how = rng.choice(("whole", "whole", "torn", "empty", "garbage", "missing"))
        note = {
            "torn": note[: rng.randrange(len(note))],
            "empty": b"",
            "garbage": rng.randbytes(rng.randrange(600)),
        }.get(how, note)
        if how != "missing":
            (target / BOOT_FILE).write_bytes(note)


def judge(life: PowerLife, image: Path, harm: str = "") -> int | None:
    """Open an image as after a reboot, and compare. The generation it came back to, or None.

    Raises WrongImageError.
    """
    boot = f"boot-{life.boot + 1}"
    data = (image / DATA_DIR / DATA_FILE).read_bytes()
    slots = [slot for slot in syncpoint.read_slots(image) if slot]
    slot = max(slots, key=lambda slot: slot.sequence) if slots else None
    if (slot is None) != bool(harm):
        raise WrongImageError(f"slots {slots}, harm {harm!r}")
    if life.rng.random() < 0.1 and not harm:
        found = check_cache(image, lambda _: None, boot_id=boot).report
        if not found.ok:
            raise WrongImageError(f"the checker says {[str(f) for f in found.findings][:5]}")
    if life.rng.random() < 0.1 and not harm:
        _cut_while_putting_back(image, life.rng)
    with open_cache(
        image, IDENTITY, quota_bytes=QUOTA_BYTES, now_ns=lambda: 1_800_000_000 * 10**9, boot_id=boot
    ) as cache:
        if slot is None:
            _judge_quarantine(cache, image, data)
            return None
        at = cache.generation
        if cache.recovery != recovery.SYNC_POINT or at < slot.generation:
            raise WrongImageError(f"{cache.recovered}: {at}, not {slot.generation}")
        if at < life.acknowledged:
            raise WrongImageError(f"of {at}, but {life.acknowledged} was acknowledged")
        is_at_point = at == slot.generation
        life.brought_on += not is_at_point
        then = life.history[slot.sequence] if is_at_point else life.after[at]
        if digest(cache) != then:
            raise WrongImageError(f"at {at} ({slot}), but not what the cache was then")
        done = Checked(Report(), prefix=caches.PREFIX)
        check_records(cache, done, lambda _: None)
        if done.report.findings:
            raise WrongImageError(f"records: {[str(f) for f in done.report.findings][:5]}")
    if wrong := recovery.walk(image / DATA_DIR / DATA_FILE):
        raise WrongImageError(f"the database, brought up: {wrong[:3]}")
    return at


def _judge_quarantine(cache: Cache, image: Path, data: bytes) -> None:
    if cache.recovery != recovery.QUARANTINED or cache.generation != 0 or cache.restore_complete:
        raise WrongImageError(f"{cache.recovered}, generation {cache.generation}")
    kept = list(image.glob(f"{recovery.QUARANTINES}/{DATA_DIR}/{DATA_FILE}"))
    if len(kept) != 1 or kept[0].read_bytes() != data:
        raise WrongImageError(f"kept: {kept}")
    if str(kept[0].parent.parent) not in cache.recovered.told():
        raise WrongImageError(f"not said: {cache.recovered.told()!r}")


def _cut_while_putting_back(image: Path, rng: random.Random) -> None:
    """The power goes once more, while the meta pages are being put back."""
    data_file = image / DATA_DIR / DATA_FILE
    tape = Tape(data_file)
    syncpoint.put_back(image, data_file)
    tape.look()
    data_file.write_bytes(tape.image(rng))


class Cuts:
    """Lives and images under one directory, until so many images were judged."""

    def __init__(self, base: Path, seed: int) -> None:
        self.base = base
        self.seed = seed
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._number = itertools.count()
        self._next: Path | None = None

    def run(self, images: int) -> None:
        """Raises WrongImageError with the seed, and leaves the image that is wrong."""
        boot = 1
        directory: Path | None = None
        while self.counts["images"] < images:
            if directory is None:
                directory, boot = self.base / f"life-{next(self._number)}", 1
            life = PowerLife(directory, self.rng, boot)
            self.counts["lives"] += 1
            self._next = None
            try:
                life.run(LIFE_STEPS, partial(self._cut, life, images))
            finally:
                life.close()
            self.counts["flushes of the log"] += life.flushes
            self.counts["brought on by the log"] += life.brought_on
            self._closed_cleanly(life)
            shutil.rmtree(directory)
            directory, boot = self._next, boot + 1

    def _cut(self, life: PowerLife, images: int) -> None:
        if self.counts["images"] >= images:
            return
        harm = self.rng.choice(SIDE_HARMS) if self.rng.random() < 0.1 else ""
        image = self.base / f"image-{next(self._number)}"
        life.image(image, harm)
        self.counts["images"] += 1
        self.counts["unflushed pages"] += life.data.unflushed
        goes_on = self.base / f"goes-on-{next(self._number)}"
        if self._next is None and not harm and self.rng.random() < 0.05:
            shutil.copytree(image, goes_on)
            self._next = goes_on
            self.counts["lives that went on from an image"] += 1
        try:
            came_back = judge(life, image, harm)
        except BaseException as exc:
            raise WrongImageError(f"seed {self.seed}, {dict(self.counts)}, {image}: {exc}") from exc
        self.counts["quarantined" if came_back is None else "sync point"] += 1
        if came_back is not None and came_back < life.cache.generation:
            self.counts["older than the newest commit"] += 1
        shutil.rmtree(image)

    def _closed_cleanly(self, life: PowerLife) -> None:
        """After a clean close a reboot changes nothing."""
        if self.rng.random() < 0.2:
            with open_cache(
                life.directory, IDENTITY, quota_bytes=QUOTA_BYTES, now_ns=lambda: 1, boot_id="later"
            ) as cache:
                if cache.recovery != recovery.KEPT:
                    raise WrongImageError(f"closed cleanly, but {cache.recovered}")
            self.counts["clean closes"] += 1


@contextlib.contextmanager
def without_put_back() -> Iterator[None]:
    """The negative control: recovery believes the newest meta page that is there."""

    def nothing(directory: Path, data_file: Path) -> syncpoint.Slot | None:
        slots = [slot for slot in syncpoint.read_slots(directory) if slot]
        return max(slots, key=lambda slot: slot.sequence) if slots else None

    with mock.patch.object(syncpoint, "put_back", nothing):
        yield


@contextlib.contextmanager
def without_breaks() -> Iterator[None]:
    """The negative control: what is committed past the log is not noted there."""
    with mock.patch.object(redo.Redo, "break_off", lambda self, generation: None):
        yield


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """The negative control: recovery does not look into the log."""
    with mock.patch.object(redo, "read_log", lambda directory: []):
        yield


@contextlib.contextmanager
def without_early_pins() -> Iterator[None]:
    """The negative control: a sync point pins nothing, so its pages are soon used again."""

    def begin(self: syncpoint.SyncPoints, generation: int) -> Pending:
        pin = self._env.begin()
        pin.abort()
        return Pending(generation, os.pread(self._data_fd, self._meta_bytes, 0), pin)

    with mock.patch.object(syncpoint.SyncPoints, "begin", begin):
        yield


def another_boot(directory: Path) -> None:
    """As if the machine had been started anew since the daemon of this cache died."""
    note = directory / BOOT_FILE
    noted = json.loads(note.read_bytes())
    assert noted["clean"] is False, "it was closed cleanly: the test tests nothing"
    note.write_text(json.dumps({**noted, "boot_id": "the boot before"}))


def busy_mounts(base: Path, seed: int, mounts: int) -> Counter[str]:
    """Mounts with a worker each, on a local bucket; every other one flushes meanwhile."""
    from tests.crash import power_mount

    counts: Counter[str] = Counter()
    for number in range(mounts):
        place = base / f"mount-{number}"
        (place / "store").mkdir(parents=True)
        settings = {**QUICK, **({} if number % 2 else NEVER_BY_ITSELF)}
        host = Host(place / "host", LocalBucket(place / "store").env, settings=settings)
        try:
            power_mount.run(place, host, seed + number, MOUNT_IMAGES, counts)
        finally:
            host.end()
        shutil.rmtree(place)
    return counts


def real_cuts(base: Path, seed: int, cuts: int) -> Counter[str]:
    """A disk whose power is cut so many times; every other workspace flushes meanwhile."""
    from tests.crash import power_disk

    counts: Counter[str] = Counter()
    rng = random.Random(seed)
    while counts["cuts"] < cuts:
        place = base / f"disk-{counts['cuts']}"
        (place / "store").mkdir(parents=True)
        with crash_disk(place) as disk:
            settings = {**QUICK, **({} if counts["disks"] % 2 else NEVER_BY_ITSELF)}
            env = LocalBucket(place / "store").env
            host = Host(place / "host", env, settings=settings)
            host.settings["WORKSPACE_CACHE_DIR"] = str(disk.place / "cache")
            host.cache = disk.place / "cache"
            try:
                for _ in range(min(CUTS_A_DISK, cuts - counts["cuts"])):
                    power_disk.one_cut(disk, host, rng, counts)
            finally:
                host.end()
        shutil.rmtree(place)
        counts["disks"] += 1
    return counts


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=0, help="images of a busy cache")
    parser.add_argument("--mount", type=int, default=0, help="busy mounts, 20 images each")
    parser.add_argument("--cuts", type=int, default=0, help="shutdowns of a real ext4 (root)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="power-") as base:
        print(f"seed {args.seed}", flush=True)
        if args.images:
            cuts = Cuts(Path(base), args.seed)
            cuts.run(args.images)
            print(f"{dict(cuts.counts)} in {time.monotonic() - began:.0f} s, none wrong")
        if args.mount:
            counts = busy_mounts(Path(base), args.seed, args.mount)
            print(f"{dict(counts)} in {time.monotonic() - began:.0f} s, none wrong")
        if args.cuts:
            counts = real_cuts(Path(base), args.seed, args.cuts)
            print(f"{dict(counts)} in {time.monotonic() - began:.0f} s, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
