"""What is measured: scenarios, each a series of timed steps in a fresh directory.

1. Contents are made before the clock starts, and checked after it stopped: a filesystem that
   loses or mixes up bytes fails instead of winning.
2. A step does what a program does (open, write, close; temp + rename; git, tar as child processes)
   and syncs only where it says so.
3. A scenario runs in a process of its own, so that a mount that hangs hangs nobody else.

Run by bench.child.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench import material

MIB: Final = 1 << 20
BLOCK_BYTES: Final = 4096
DIRECTORIES: Final = 20
NOTES: Final = "create table t (id integer primary key, note text)"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything. Counts, unless the name says MiB."""

    small_files: int
    saves: int
    fsyncs: int
    big_mib: int
    random_ops: int
    random_file_mib: int
    sqlite_delete: int
    sqlite_wal: int
    repo_files: int
    tar_files: int
    wheels: int
    npm_packages: int
    late_files: int
    cold_files: int
    cold_late_files: int
    large_mib: int
    growth: tuple[int, ...]
    """Files in one directory."""
    flushes: int = 0
    """Changes of one file, each synced, beside so many."""
    sizes_mib: tuple[int, ...] = ()
    """Files to work in, one after the other."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scale:
        """Of what `asdict` gave and JSON carried."""
        fields: dict[str, Any] = {
            name: tuple(found) if isinstance(found, list) else found
            for name, found in value.items()
        }
        return cls(**fields)


FULL: Final = Scale(
    *(2000, 500, 100, 256, 5000, 64, 300, 1000, 1500, 1700),
    *(25, 174, 300, 3700, 375, 500, (1_000, 10_000, 100_000), 70, (1, 10, 100, 1000)),
)
MEDIUM: Final = Scale(
    *(500, 200, 50, 128, 1000, 32, 100, 400, 400, 500),
    *(6, 60, 100, 1000, 100, 500, (1_000, 10_000, 30_000), 70, (1, 10, 100)),
)
QUICK: Final = Scale(
    *(500, 100, 25, 64, 1000, 16, 50, 200, 400, 400),
    *(6, 44, 100, 500, 100, 64, (1_000, 5_000), 10, (1, 32)),
)
BRIEF: Final = Scale(
    *(150, 50, 10, 16, 300, 4, 20, 100, 100, 100),
    *(2, 10, 50, 150, 50, 16, (500, 2_000), 5, (1, 8)),
)
"""For many rounds, where the machine is so busy that a single one says nothing."""
TINY: Final = Scale(20, 5, 3, 1, 20, 1, 5, 5, 20, 20, 1, 2, 10, 20, 20, 2, (10, 30), 2, (1, 2))
HUGE: Final = replace(
    QUICK,
    growth=(1_000, 10_000, 100_000, 1_000_000),
    flushes=70,
    sizes_mib=(1, 10, 100, 1_000, 10_240),
)
"""How far it goes: for `--only growth` and `--only sizes`, an hour and 40 GB of disk."""


@dataclass(frozen=True, slots=True)
class StepInfo:
    """How a step is shown: `unit` empty means seconds, else amount of it per second."""

    title: str
    unit: str = ""


STEPS: Final[dict[str, StepInfo]] = {
    "create": StepInfo("create+write+close {small_files} files of 1–8 KiB"),
    "stat": StepInfo("stat all of them"),
    "stat_again": StepInfo("stat them again"),
    "absent": StepInfo("stat {small_files} absent names"),
    "absent_again": StepInfo("the same names again"),
    "read": StepInfo("read them back"),
    "read_again": StepInfo("read them back again"),
    "save": StepInfo("{saves} saves by temp + rename"),
    "fsync": StepInfo("{fsyncs} × create+write+fsync"),
    "delete": StepInfo("delete all"),
    "clone": StepInfo("git clone, {repo_files} files"),
    "status": StepInfo("git status, twice"),
    "untar": StepInfo("tar xf, {tar_files} files"),
    "grep": StepInfo("grep -r"),
    "du": StepInfo("du -s"),
    "add": StepInfo("git add -A of that tree"),
    "commit": StepInfo("git commit"),
    "seq_write": StepInfo("sequential write {big_mib} MiB + fsync", "MiB"),
    "seq_read": StepInfo("sequential read after it", "MiB"),
    "seq_read_again": StepInfo("sequential read again", "MiB"),
    "seq_read_cold": StepInfo("sequential read, kernel pages dropped", "MiB"),
    "rand_write": StepInfo("{random_ops} random 4 KiB writes + fsync", "ops"),
    "rand_read": StepInfo("{random_ops} random 4 KiB reads, kernel pages dropped", "ops"),
    "sqlite_delete": StepInfo("sqlite DELETE, one row a transaction", "tx"),
    "sqlite_wal": StepInfo("sqlite WAL, one row a transaction", "tx"),
    "pip": StepInfo("pip install, {wheels} wheels"),
    "npm": StepInfo("npm ci, {npm_packages} packages"),
    "fio": StepInfo("fio randwrite 4 KiB, fsync at the end", "ops"),
    "cold_ready": StepInfo("cold: until it is mounted"),
    "cold_ls": StepInfo("cold: first ls"),
    "cold_find": StepInfo("cold: find, {cold_files} files"),
    "cold_read": StepInfo("cold: read all of them"),
    "cold_large": StepInfo("cold: read a file of {large_mib} MiB", "MiB"),
    "cold_read_late": StepInfo("cold: read {cold_late_files} files, each request 30 ms late"),
    "alone": StepInfo("a burst, nothing else going on"),
    "during": StepInfo("the same while another one is uploaded"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement: `amount` of the step's unit (files, MiB, operations) in `seconds`."""

    name: str
    seconds: float
    amount: float


@dataclass(frozen=True, slots=True)
class Job:
    """One scenario in one directory."""

    scenario: str
    directory: str
    material: str
    seed: int
    scale: Scale

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        """The inverse of `dumps`."""
        value = json.loads(text)
        return cls(**{**value, "scale": Scale.from_json(value["scale"])})


class Stopwatch:
    """Collects steps in order."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextlib.contextmanager
    def step(self, name: str, amount: float = 1) -> Iterator[None]:
        """Time the block as step `name`."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began, amount)

    def add(self, name: str, seconds: float, amount: float = 1) -> None:
        """What somebody else timed."""
        self.steps.append(Step(name, seconds, amount))


def write_file(path: str, body: bytes, *, sync: bool = False) -> None:
    """A new file, as a program writes one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if os.write(fd, body) != len(body):
            raise RuntimeError(f"short write to {path}")
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_file(path: str) -> bytes:
    """All of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def small(job: Job, watch: Stopwatch) -> None:
    """A burst of small files and what an agent then does with them."""
    scale, root = job.scale, job.directory
    bodies = material.small_bodies(job.seed, scale.small_files)
    for number in range(DIRECTORIES):
        os.mkdir(f"{root}/d{number}")
    paths = [f"{root}/d{n % DIRECTORIES}/file{n}.py" for n in range(scale.small_files)]
    with watch.step("create", len(paths)):
        for path, body in zip(paths, bodies, strict=True):
            write_file(path, body)
    for name in ("stat", "stat_again"):
        with watch.step(name, len(paths)):
            for path in paths:
                os.stat(path)
    absent = [f"{path}.absent" for path in paths]
    for name in ("absent", "absent_again"):
        with watch.step(name, len(absent)):
            for path in absent:
                _must_be_absent(path)
    for name in ("read", "read_again"):
        with watch.step(name, len(paths)):
            found = [read_file(path) for path in paths]
        if found != bodies:
            raise RuntimeError("a file read back differs from what was written")
    _saves(job, watch, paths, bodies)
    with watch.step("fsync", scale.fsyncs):
        for number in range(scale.fsyncs):
            write_file(f"{root}/synced{number}", bodies[number % len(bodies)], sync=True)
    with watch.step("delete", len(paths)):
        for name in os.listdir(root):
            path = f"{root}/{name}"
            if name.startswith("synced"):
                os.unlink(path)
            else:
                shutil.rmtree(path)


def _must_be_absent(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    raise RuntimeError(f"{path} should not exist")


def _saves(job: Job, watch: Stopwatch, paths: list[str], bodies: list[bytes]) -> None:
    """Editors save so: a temporary file beside, renamed over the old one."""
    count = job.scale.saves
    new = [bodies[-1 - n % len(bodies)] for n in range(count)]
    targets = [paths[n % len(paths)] for n in range(count)]
    with watch.step("save", count):
        for path, body in zip(targets, new, strict=True):
            write_file(f"{path}.tmp", body)
            os.rename(f"{path}.tmp", path)
    last = dict(zip(targets, new, strict=True))
    if any(read_file(path) != body for path, body in last.items()):
        raise RuntimeError("a saved file differs from what was saved")


def git(job: Job, watch: Stopwatch) -> None:
    """Clone and look at the status: the first reads the index it just wrote, the second is warm."""
    root = Path(job.directory)
    source = f"{job.material}/repo"
    with watch.step("clone", job.scale.repo_files):
        material.run_quietly(["git", "clone", "-q", "--no-hardlinks", source, "clone"], root)
    with watch.step("status", 2):
        for _ in range(2):
            if material.run_quietly(["git", "status", "--porcelain"], root / "clone"):
                raise RuntimeError("git status is not clean after the clone")
    material.run_quietly(["git", "fsck", "--no-progress"], root / "clone")


def tar(job: Job, watch: Stopwatch) -> None:
    """Unpack a source archive, search it, and put it under git."""
    root = Path(job.directory)
    tree = root / "tree"
    with watch.step("untar", job.scale.tar_files):
        material.run_quietly(["tar", "xf", f"{job.material}/tree.tar"], root)
    with watch.step("grep"):
        material.run_quietly(["sh", "-c", "grep -r nowhere-to-be-found . ; test $? -eq 1"], tree)
    with watch.step("du"):
        material.run_quietly(["du", "-s"], tree)
    material.run_quietly(["diff", "-r", "--no-dereference", f"{job.material}/tree", "."], tree)
    material.run_quietly(["git", "-c", "init.defaultBranch=main", "init", "-q"], tree)
    with watch.step("add", job.scale.tar_files):
        material.run_quietly(["git", "add", "-A"], tree)
    with watch.step("commit"):
        material.run_quietly(["git", "commit", "-q", "-m", "all"], tree)


def sequential(job: Job, watch: Stopwatch) -> None:
    """One big file in pieces of 1 MiB."""
    path, count = f"{job.directory}/big", job.scale.big_mib
    pieces = [random.Random(job.seed + n).randbytes(MIB) for n in range(min(count, 16))]
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with watch.step("seq_write", count):
            for number in range(count):
                os.write(fd, pieces[number % len(pieces)])
            os.fsync(fd)
        buffer = bytearray(MIB)
        for name in ("seq_read", "seq_read_again", "seq_read_cold"):
            if name == "seq_read_cold":
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with watch.step(name, count):
                for number in range(count):
                    os.preadv(fd, [buffer], number * MIB)
        # What the last step brought into the kernel is what is checked.
        for number in range(count):
            if os.pread(fd, MIB, number * MIB) != pieces[number % len(pieces)]:
                raise RuntimeError("the big file differs from what was written")
    finally:
        os.close(fd)


def scattered(job: Job, watch: Stopwatch) -> None:
    """4 KiB at random places of a file that is there already."""
    count, blocks = job.scale.random_ops, job.scale.random_file_mib * MIB // BLOCK_BYTES
    rng = random.Random(job.seed)
    places = [rng.randrange(blocks) * BLOCK_BYTES for _ in range(count)]
    data = [rng.randbytes(BLOCK_BYTES) for _ in range(64)]
    fd = os.open(f"{job.directory}/random", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for _ in range(job.scale.random_file_mib):
            os.write(fd, bytes(MIB))
        os.fsync(fd)
        with watch.step("rand_write", count):
            for number, place in enumerate(places):
                os.pwrite(fd, data[number % 64], place)
            os.fsync(fd)
        expected = {place: data[number % 64] for number, place in enumerate(places)}
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with watch.step("rand_read", count):
            found = [os.pread(fd, BLOCK_BYTES, place) for place in places]
        if any(expected[place] != body for place, body in zip(places, found, strict=True)):
            raise RuntimeError("a block differs from what was written")
    finally:
        os.close(fd)


def sqlite(job: Job, watch: Stopwatch) -> None:
    """Transactions of one row, with sqlite's own default (synchronous=FULL) in both modes."""
    for mode, count in (("delete", job.scale.sqlite_delete), ("wal", job.scale.sqlite_wal)):
        path = f"{job.directory}/{mode}.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(f"pragma journal_mode={mode}")
            db.execute("pragma synchronous=full")
            db.execute(NOTES)
            with watch.step(f"sqlite_{mode}", count):
                for number in range(count):
                    db.execute("insert into t (note) values (?)", (f"note number {number}",))
            (verdict,) = db.execute("pragma integrity_check").fetchone()
            (rows,) = db.execute("select count(*) from t").fetchone()
        if (verdict, rows) != ("ok", count):
            raise RuntimeError(f"sqlite: {verdict}, {rows} rows of {count}")


Scenario = Callable[[Job, Stopwatch], None]

SCENARIOS: Final[dict[str, Scenario]] = {
    "small": small,
    "git": git,
    "tar": tar,
    "sequential": sequential,
    "scattered": scattered,
    "sqlite": sqlite,
}
"""What every target can do."""
