"""`python -m bench.backup`: what a backup takes, and what it does to the mount meanwhile.

A workspace of --files files and --mb MiB on a mount of ours; a program makes, reads, renames and
removes small files all the while. Its operations are timed without a backup and during one, in
turns, so that both halves meet the same machine.

1. The mount, its server and everything on disk are gone at the end, whatever happened.
2. Figures of one run stand together: times, sizes, and ratios of latencies side by side.

Called by a person.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from s3ws_fs.cache.cache import open_cache
from s3ws_fs.core.types import ROOT_INO, Cred
from s3ws_fs.daemon.parts import identity
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.settings import Settings
from tests.support.buckets import LocalBucket, S3Bucket
from tests.support.host import Host
from tests.support.seaweed import running_seaweed

SETTINGS: Final = {
    "WORKSPACE_BACKUP_INTERVAL": "0",
    "WORKSPACE_BACKUP_KEEP_LAST": "2",
    "WORKSPACE_MAX_SIZE_MB": "4096",
}
FILES_OF_A_DIRECTORY: Final = 100
PAUSE_S: Final = 2.0
MIB: Final = 1 << 20


@dataclass
class Load:
    """A program at work; each operation's time goes to the window that is open."""

    directory: Path
    windows: dict[str, list[float]] = field(default_factory=dict)
    window: str = ""
    ops_per_s: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `stop`: one small file's life after the other."""
        number = 0
        while not self._stop.is_set():
            number += 1
            for step in (self._make, self._look, self._move, self._remove):
                begun_s = time.perf_counter()
                step(number % 50)
                took_s = time.perf_counter() - begun_s
                if self.window:
                    self.windows.setdefault(self.window, []).append(took_s)
            if self.ops_per_s:
                time.sleep(4 / self.ops_per_s)

    def _make(self, number: int) -> None:
        with open(self.directory / f"f{number}", "wb") as file:
            file.write(b"x" * 300)

    def _look(self, number: int) -> None:
        (self.directory / f"f{number}").stat()
        (self.directory / f"f{number}").read_bytes()

    def _move(self, number: int) -> None:
        (self.directory / f"f{number}").rename(self.directory / f"g{number}")

    def _remove(self, number: int) -> None:
        (self.directory / f"g{number}").unlink()

    def stop(self) -> None:
        """Come to an end."""
        self._stop.set()


def fill(host: Host, files: int, total_bytes: int, seed: int) -> None:
    """Files of sizes as in source trees, half of their bytes like text, half like libraries.

    Put into the cache while nothing is mounted: through a busy machine's kernel it takes long.
    """
    rng = random.Random(seed)
    text = b" ".join(rng.choice(WORDS) for _ in range(200_000))
    weights = [rng.lognormvariate(0.0, 1.5) for _ in range(files)]
    scale = total_bytes / sum(weights)
    config = Settings.load(host.env, {}).mount_config(str(host.mountpoint))
    with open_cache(
        Path(config.workspace_cache_dir),
        identity(config),
        quota_bytes=config.max_size_bytes,
        now_ns=time.time_ns,
    ) as cache:
        fs = FileSystem(cache, quota_bytes=config.max_size_bytes, quota_inodes=config.max_inodes)
        directory = ROOT_INO
        for number, weight in enumerate(weights):
            if number % FILES_OF_A_DIRECTORY == 0:
                # As a daemon does now and then: else no page that was freed serves again.
                cache.sync_point()
                name = b"d%04d" % (number // FILES_OF_A_DIRECTORY)
                directory = fs.mkdir(ROOT_INO, name, 0o755, WHO).ino
            size = int(weight * scale)
            ino = fs.create(directory, b"file%06d.txt" % number, 0o644, WHO).ino
            at = 0
            while at < size:
                start = rng.randrange(len(text) // 2)
                piece = text[start : start + (size - at) // 2] or b"x"
                piece = (piece + rng.randbytes(min(len(piece), 1 << 16)))[: size - at]
                fs.write(ino, at, piece)
                at += len(piece)


WHO: Final = Cred(uid=os.geteuid(), gid=os.getegid())
WORDS: Final = b"def return self import from class None True if else for while".split()


def percentile_us(times_s: list[float], share: float) -> float:
    """A percentile in microseconds."""
    ordered = sorted(times_s)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6, 1)


@contextlib.contextmanager
def bucket_of(kind: str, base: Path) -> Iterator[LocalBucket | S3Bucket]:
    """The bucket to back up to."""
    if kind == "local":
        (base / "bucket").mkdir()
        yield LocalBucket(base / "bucket")
        return
    with running_seaweed() as server:
        bucket = S3Bucket(server)
        try:
            yield bucket
        finally:
            bucket.close()


def measure(host: Host, load: Load, rounds: int) -> list[dict[str, Any]]:
    """Backups with the program at work; each between two times without one."""
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        load.window = "without"
        time.sleep(max(PAUSE_S, found[-1]["took_s"] if found else PAUSE_S))
        load.window = ""
        (load.directory / f"round{number}").write_text("changed")
        load.window = "during"
        found.append(host.json("backup", host.mountpoint))
        load.window = ""
        print(f"backup {number + 1}: {json.dumps(found[-1])}", file=sys.stderr)
    return found


def summary(load: Load, backups: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures."""
    without, during = load.windows["without"], load.windows["during"]
    latency = {
        name: {
            "operations": len(times),
            "p50_us": percentile_us(times, 0.5),
            "p99_us": percentile_us(times, 0.99),
            "max_ms": round(max(times) * 1e3, 1),
        }
        for name, times in (("without", without), ("during", during))
    }
    return {
        "load_average": os.getloadavg(),
        "took_s": [one["took_s"] for one in backups],
        "copied_s": [one["copied_s"] for one in backups],
        "entries": backups[-1]["entries"],
        "raw_mib": round(backups[-1]["raw_bytes"] / MIB, 1),
        "archive_mib": round(backups[-1]["bytes"] / MIB, 1),
        "child_memory_mib": round(max(one["memory_bytes"] for one in backups) / MIB, 1),
        "latency": latency,
        "ratio_p50": round(latency["during"]["p50_us"] / latency["without"]["p50_us"], 2),
        "ratio_p99": round(latency["during"]["p99_us"] / latency["without"]["p99_us"], 2),
        "ratio_mean": round(statistics.mean(during) / statistics.mean(without), 2),
    }


def main(argv: list[str] | None = None) -> int:
    """Run; prints the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.backup")
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", choices=["seaweed", "local"], default="seaweed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ops-per-s", type=float, default=0.0, help="0: as fast as it goes")
    parser.add_argument("--dir", type=Path, help="the disk to measure on: a directory on it")
    given = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="s3ws-bench-", dir=given.dir) as name,
        bucket_of(given.store, Path(name)) as bucket,
    ):
        host = Host(Path(name) / "host", bucket.env, settings=SETTINGS)
        try:
            host.mount()
            host.umount()
            fill(host, given.files, given.mb * MIB, given.seed)
            host.mount()
            begun_s = time.monotonic()
            host.sync()
            print(f"synced in {time.monotonic() - begun_s:.1f} s", file=sys.stderr)
            (host.mountpoint / "work").mkdir()
            load = Load(host.mountpoint / "work", ops_per_s=given.ops_per_s)
            worker = threading.Thread(target=load.run)
            worker.start()
            try:
                found = measure(host, load, given.rounds)
            finally:
                load.stop()
                worker.join()
            figures = summary(load, found)
            figures["cache_file_mib"] = round(host.now()["cache"]["file_bytes"] / MIB, 1)
            print(json.dumps(figures, indent=1))
            host.umount()
        finally:
            host.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
