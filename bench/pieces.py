"""The halves of a measurement that need the bucket between them: what happens in the directory.

What the runner does in between (wait for the bucket, mount anew, count) is in bench.bucketwork and
bench.growth. Contents follow from the seed, so that one piece can check what another one wrote.

Run by bench.child, each in a process of its own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Final

from bench import material
from bench.workloads import DIRECTORIES, MIB, Job, Stopwatch, read_file, write_file

BLOCK_BYTES: Final = 4096
LARGE: Final = "large.bin"
RENAMED: Final = "renamed.bin"
FLAT: Final = "flat"
APPEND_BYTES: Final = MIB
GROWTH_FILE_BYTES: Final = 100


def burst_files(job: Job) -> Iterator[tuple[str, bytes]]:
    """(path below the directory, content) of a burst."""
    for number, body in enumerate(material.small_bodies(job.seed, job.scale.small_files)):
        yield f"d{number % DIRECTORIES}/file{number}.py", body


def burst(job: Job, watch: Stopwatch) -> None:
    """Small files alone, left standing."""
    files = list(burst_files(job))
    for number in range(DIRECTORIES):
        os.mkdir(f"{job.directory}/d{number}")
    with watch.step("create", len(files)):
        for name, body in files:
            write_file(f"{job.directory}/{name}", body)


def find(job: Job, watch: Stopwatch) -> None:
    """What a shell does first in a directory that nobody has looked at yet."""
    with watch.step("cold_ls"):
        names = os.listdir(job.directory)
    with watch.step("cold_find", job.scale.small_files):
        found = 0
        for top, _, files in os.walk(job.directory):
            for name in files:
                found += os.lstat(f"{top}/{name}").st_size > 0
    wanted = {f"d{number}" for number in range(DIRECTORIES)}
    if not wanted <= set(names) or found < job.scale.small_files:
        raise RuntimeError(f"{found} files of {job.scale.small_files} are there")


def read(job: Job, watch: Stopwatch) -> None:
    """All of a burst, one after the other."""
    files = list(burst_files(job))
    with watch.step("cold_read", len(files)):
        found = [read_file(f"{job.directory}/{name}") for name, _ in files]
    if found != [body for _, body in files]:
        raise RuntimeError("a file read back differs from what was written")


def _pieces(job: Job) -> list[bytes]:
    return [random.Random(job.seed + n).randbytes(MIB) for n in range(job.scale.large_mib)]


def large_fill(job: Job, watch: Stopwatch) -> None:
    """One large file of bytes that don't repeat."""
    pieces = _pieces(job)
    with watch.step("large_fill", len(pieces)), open(f"{job.directory}/{LARGE}", "xb", 0) as file:
        for piece in pieces:
            file.write(piece)


def large_read(job: Job, watch: Stopwatch) -> None:
    """It again."""
    pieces, found = _pieces(job), []
    with (
        watch.step("cold_large", len(pieces)),
        open(f"{job.directory}/{LARGE}", "rb", 0) as file,
    ):
        while piece := file.read(MIB):
            found.append(piece)
    if b"".join(found) != b"".join(pieces):
        raise RuntimeError("the large file differs from what was written")


def changed_at(job: Job) -> int:
    """Where the one block is changed: in the middle, and on no other border."""
    return job.scale.large_mib * MIB // 2 + BLOCK_BYTES


def block(job: Job) -> bytes:
    """What stands there then."""
    return random.Random(job.seed ^ 1).randbytes(BLOCK_BYTES)


def tail(job: Job) -> bytes:
    """What is appended."""
    return random.Random(job.seed ^ 2).randbytes(APPEND_BYTES)


def large_change(job: Job, watch: Stopwatch) -> None:
    """4 KiB in the middle."""
    with watch.step("large_change"), open(f"{job.directory}/{LARGE}", "r+b", 0) as file:
        file.seek(changed_at(job))
        file.write(block(job))


def large_append(job: Job, watch: Stopwatch) -> None:
    """1 MiB at the end."""
    with watch.step("large_append"), open(f"{job.directory}/{LARGE}", "ab", 0) as file:
        file.write(tail(job))


def large_rename(job: Job, watch: Stopwatch) -> None:
    """Another name."""
    with watch.step("large_rename"):
        os.rename(f"{job.directory}/{LARGE}", f"{job.directory}/{RENAMED}")


def growth_fill(job: Job, watch: Stopwatch) -> None:
    """Files into one directory, up to the number that `small_files` says."""
    flat = f"{job.directory}/{FLAT}"
    os.makedirs(flat, exist_ok=True)
    present = len(os.listdir(flat))
    body = material.small_bodies(job.seed, 1)[0][:GROWTH_FILE_BYTES]
    with watch.step("growth_fill", job.scale.small_files - present):
        for number in range(present, job.scale.small_files):
            write_file(f"{flat}/f{number}", body)


def growth_work(job: Job, watch: Stopwatch) -> None:
    """A little of everything beside what is there, and the list of what is there."""
    work = f"{job.directory}/work{job.scale.small_files}"
    os.mkdir(work)
    count = job.scale.saves
    bodies = material.small_bodies(job.seed, count)
    paths = [f"{work}/f{number}" for number in range(count)]
    with watch.step("growth_create", count):
        for path, body in zip(paths, bodies, strict=True):
            write_file(path, body)
    with watch.step("growth_stat", count):
        for path in paths:
            os.stat(path)
    with watch.step("growth_save", count):
        for path, body in zip(paths, reversed(bodies), strict=True):
            write_file(f"{path}.tmp", body)
            os.rename(f"{path}.tmp", path)
    with watch.step("growth_list", job.scale.small_files):
        names = os.listdir(f"{job.directory}/{FLAT}")
    if len(set(names)) != job.scale.small_files:
        raise RuntimeError(f"{len(names)} names listed of {job.scale.small_files}")


PIECES: Final[dict[str, Callable[[Job, Stopwatch], None]]] = {
    "burst": burst,
    "find": find,
    "read": read,
    "large_fill": large_fill,
    "large_read": large_read,
    "large_change": large_change,
    "large_append": large_append,
    "large_rename": large_rename,
    "growth_fill": growth_fill,
    "growth_work": growth_work,
}
