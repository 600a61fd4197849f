"""The halves of a measurement that need the bucket between them: what happens in the directory.

What the runner does in between (wait for the bucket, mount anew, count) is in bench.bucketwork and
bench.growth. Contents follow from the seed, so that one piece can check what another one wrote.

Run by bench.child, each in a process of its own.
"""

from __future__ import annotations

import os
import random
import time
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


def _work(job: Job) -> str:
    """Where the work beside them is done: anew each time."""
    return f"{job.directory}/work{job.scale.small_files}-{job.seed}"


def _work_paths(job: Job) -> list[str]:
    return [f"{_work(job)}/f{number}" for number in range(job.scale.saves)]


def growth_create(job: Job, watch: Stopwatch) -> None:
    """New files."""
    os.mkdir(_work(job))
    paths = _work_paths(job)
    bodies = material.small_bodies(job.seed, len(paths))
    with watch.step("growth_create", len(paths)):
        for path, body in zip(paths, bodies, strict=True):
            write_file(path, body)


def growth_stat(job: Job, watch: Stopwatch) -> None:
    """Their attributes, which the writes made stale."""
    paths = _work_paths(job)
    with watch.step("growth_stat", len(paths)):
        for path in paths:
            os.stat(path)


def growth_save(job: Job, watch: Stopwatch) -> None:
    """Each by a temporary file beside, renamed over it."""
    paths = _work_paths(job)
    bodies = material.small_bodies(job.seed, len(paths))
    with watch.step("growth_save", len(paths)):
        for path, body in zip(paths, reversed(bodies), strict=True):
            write_file(f"{path}.tmp", body)
            os.rename(f"{path}.tmp", path)
    if read_file(paths[0]) != bodies[-1]:
        raise RuntimeError("a saved file differs from what was saved")


def growth_list(job: Job, watch: Stopwatch) -> None:
    """The names of all that is there."""
    with watch.step("growth_list", job.scale.small_files):
        names = os.listdir(f"{job.directory}/{FLAT}")
    if len(set(names)) != job.scale.small_files:
        raise RuntimeError(f"{len(names)} names listed of {job.scale.small_files}")


def _sized(job: Job) -> str:
    return f"{job.directory}/sized.bin"


def _stamped(job: Job, number: int) -> bytes:
    """A MiB that is like no other: made quickly, since gigabytes of them are."""
    base = random.Random(job.seed + number % 16).randbytes(MIB - 8)
    return number.to_bytes(8, "big") + base


def sized_fill(job: Job, watch: Stopwatch) -> None:
    """One file, from where it ends up to the size that `large_mib` says."""
    bases = [_stamped(job, number)[8:] for number in range(min(16, job.scale.large_mib))]
    with open(_sized(job), "ab", 0) as file:
        present = file.tell() // MIB
        with watch.step("sized_fill", job.scale.large_mib - present):
            for number in range(present, job.scale.large_mib):
                file.write(number.to_bytes(8, "big") + bases[number % 16])


def _blocks(job: Job) -> list[int]:
    """Some blocks, all over the file; the first of each MiB tells its number and is left alone."""
    rng = random.Random(time.monotonic_ns())
    in_all = job.scale.large_mib * MIB // BLOCK_BYTES
    chosen = (rng.randrange(in_all) for _ in range(2 * job.scale.saves))
    return [n for n in chosen if n % (MIB // BLOCK_BYTES)][: job.scale.saves]


def sized_change(job: Job, watch: Stopwatch) -> None:
    """4 KiB in the middle."""
    with open(_sized(job), "r+b", 0) as file, watch.step("sized_change"):
        os.pwrite(file.fileno(), block(job), changed_at(job))


def sized_tail(job: Job, watch: Stopwatch) -> None:
    """1 MiB at the end."""
    with open(_sized(job), "ab", 0) as file, watch.step("sized_tail"):
        file.write(tail(job))


def sized_write(job: Job, watch: Stopwatch) -> None:
    """4 KiB somewhere, and safe."""
    places, data = _blocks(job), block(job)
    with open(_sized(job), "r+b", 0) as file, watch.step("sized_write", len(places)):
        for place in places:
            os.pwrite(file.fileno(), data, place * BLOCK_BYTES)
            os.fsync(file.fileno())


def sized_read(job: Job, watch: Stopwatch) -> None:
    """4 KiB somewhere, which the kernel does not have; the beginning of a MiB tells which it is."""
    places = [n // (MIB // BLOCK_BYTES) * MIB for n in _blocks(job)]
    found = []
    with open(_sized(job), "rb", 0) as file, watch.step("sized_read", len(places)):
        for place in places:
            os.posix_fadvise(file.fileno(), place, MIB, os.POSIX_FADV_DONTNEED)
            found.append(os.pread(file.fileno(), BLOCK_BYTES, place))
    for place, body in zip(places, found, strict=True):
        if int.from_bytes(body[:8], "big") != place // MIB:
            raise RuntimeError(f"the large file is wrong at {place}")


def sized_append(job: Job, watch: Stopwatch) -> None:
    """4 KiB at the end."""
    count, data = job.scale.saves, block(job)
    with open(_sized(job), "ab", 0) as file, watch.step("sized_append", count):
        for _ in range(count):
            file.write(data)


def sized_drop(job: Job, watch: Stopwatch) -> None:
    """Room for the next."""
    with watch.step("sized_drop"):
        os.unlink(_sized(job))


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
    **{work.__name__: work for work in (growth_create, growth_stat, growth_save, growth_list)},
    **{
        work.__name__: work
        for work in (sized_fill, sized_change, sized_tail, sized_write, sized_read, sized_append)
    },
    "sized_drop": sized_drop,
}
