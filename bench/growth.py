"""The same work beside more and more files, and in larger and larger ones.

1. A target grows in one direction, so sizes can't be interleaved: each step is repeated, its median
   counts, and beside the clock stands the daemon's own processor time, which a busy machine leaves
   alone.
2. Up to FILES_BY_HAND files are made through the target, as a program makes them; what is beyond
   is put into our cache by hand (bench.byhand). All are saved before the work beside them begins.
3. What a sync sends is counted at the proxy; for a store without one, requests are the daemon's
   word and bytes are not told.

Called by bench.bucketwork (SPECIALS).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bench import pieces, processes
from bench.proxy import Counts
from bench.results import Growth, Sized
from bench.workloads import Step

if TYPE_CHECKING:
    from bench.bucketwork import Stage

REPEATS: Final = 5
FILES_A_CHILD: Final = 50_000
"""A child has a limit of time: a million files are made by several, one after the other."""
FILES_BY_HAND: Final = 100_000
"""More are not made one by one in ours, but copied into its cache (bench.byhand)."""
MIB_A_CHILD: Final = 1024
NULL_MIB_MAX: Final = 1024
"""The null filesystem keeps its files in memory."""


def growth(stage: Stage) -> list[Step]:
    """The same work beside more and more files, which all stand in one directory."""
    if stage.number:
        return []
    present = 0
    for files in stage.job.scale.growth:
        by_hand = stage.target.by_hand
        if by_hand is not None and files > FILES_BY_HAND:
            by_hand(f"{stage.where}/{pieces.FLAT}", present, files)
            present = files
        while present < files:
            present = min(files, present + FILES_A_CHILD)
            stage.piece("growth_fill", present)
        stage.target.settle()
        stage.results.growths.append(_beside(stage, files))
    return []


def _beside(stage: Stage, files: int) -> Growth:
    target = stage.target
    times: dict[str, list[float]] = {}
    cpus: dict[str, list[float]] = {}
    flushes_s, requests = [], []
    for repeat in range(REPEATS):
        for what in ("create", "stat", "save", "list"):
            job = dataclasses.replace(
                stage.job_of(f"growth_{what}", files),
                directory=f"{stage.job.directory}",
                seed=stage.job.seed + repeat,
            )
            cpu_s = _cpu(target.pid)
            (step,) = stage.child(job)
            times.setdefault(what, []).append(step.seconds / step.amount)
            if target.pid is not None:
                cpus.setdefault(what, []).append((_cpu(target.pid) - cpu_s) / step.amount)
        if target.ask is not None:
            before, began = stage.counts(), time.perf_counter()
            target.flush()
            flushes_s.append(time.perf_counter() - began)
            requests.append(stage.counts().since(before).total)
    one = {what: statistics.median(found) for what, found in times.items()}
    cost = _flushes(stage) if target.ask is not None else None
    return Growth(
        target=target.name,
        files=files,
        create_us=1e6 * one["create"],
        stat_us=1e6 * one["stat"],
        save_us=1e6 * one["save"],
        list_per_s=1 / one["list"],
        flush_s=statistics.median(flushes_s) if flushes_s else None,
        flush_requests=statistics.median_low(requests) if requests else None,
        private_mib=processes.private_mib(target.pid)[0] if target.pid is not None else None,
        cpu_us={what: 1e6 * statistics.median(found) for what, found in cpus.items()},
        change_s=None if cost is None else cost[0],
        change_cpu_s=None if cost is None else cost[1],
    )


def _cpu(pid: int | None) -> float:
    return processes.cpu_s(pid) if pid is not None else 0.0


def _flushes(stage: Stage) -> tuple[float, float]:
    """(seconds, processor seconds of daemon and worker) of a sync after one small change.

    Means: so many that one of them at least makes a checkpoint.
    """
    target, count = stage.target, stage.job.scale.flushes
    assert target.pid is not None
    path = f"{stage.job.directory}/changed"
    begun = processes.usage(target.pid)
    began = time.perf_counter()
    for number in range(count):
        with open(path, "wb", 0) as file:
            file.write(b"%d" % number)
        target.flush()
    took_s = time.perf_counter() - began
    ended = processes.usage(target.pid)
    assert begun is not None and ended is not None
    cpu_s = ended.cpu_s + ended.children_cpu_s - begun.cpu_s - begun.children_cpu_s
    return took_s / count, cpu_s / count


def sizes(stage: Stage) -> list[Step]:
    """The same work in larger and larger files."""
    if stage.number:
        return []
    for mib in stage.job.scale.sizes_mib:
        if stage.target.name == "null" and mib > NULL_MIB_MAX:
            continue
        stage.results.sizes.append(_inside(stage, mib))
    return []


def _inside(stage: Stage, mib: int) -> Sized:
    target = stage.target

    def piece(name: str, large_mib: int = mib) -> list[Step]:
        scale = dataclasses.replace(stage.job.scale, large_mib=large_mib)
        return stage.child(dataclasses.replace(stage.job, scenario=name, scale=scale))

    fill_s = 0.0
    for upto in (*range(MIB_A_CHILD, mib, MIB_A_CHILD), mib):
        (step,) = piece("sized_fill", upto)
        fill_s += step.seconds
    filled_s, _ = _saved(stage, target.settle)
    sent: dict[str, tuple[float, int | None]] = {}
    for what in ("sized_change", "sized_tail"):
        piece(what)
        sent[what] = _saved(stage, target.flush)
    times: dict[str, list[float]] = {}
    cpus: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        for what in ("sized_write", "sized_read", "sized_append"):
            cpu_s = _cpu(target.pid)
            (step,) = piece(what)
            times.setdefault(what, []).append(step.seconds / step.amount)
            if target.pid is not None:
                cpus.setdefault(what, []).append((_cpu(target.pid) - cpu_s) / step.amount)
    piece("sized_drop")
    one = {what: 1e6 * statistics.median(found) for what, found in times.items()}
    is_ours = target.ask is not None
    return Sized(
        target=target.name,
        mib=mib,
        fill_s=fill_s,
        write_us=one["sized_write"],
        read_us=one["sized_read"],
        append_us=one["sized_append"],
        cpu_us={
            what.removeprefix("sized_"): 1e6 * statistics.median(found)
            for what, found in cpus.items()
        },
        filled_s=filled_s if is_ours else None,
        change_s=sent["sized_change"][0] if is_ours else None,
        change_up_bytes=sent["sized_change"][1],
        tail_s=sent["sized_tail"][0] if is_ours else None,
        tail_up_bytes=sent["sized_tail"][1],
        private_mib=processes.private_mib(target.pid)[0] if target.pid is not None else None,
    )


def _saved(stage: Stage, flush: Callable[[], None]) -> tuple[float, int | None]:
    """(seconds, bytes sent, where a proxy counts them)."""
    backing = stage.target.backing
    before = backing.proxy.counts() if backing is not None else Counts()
    began = time.perf_counter()
    flush()
    took_s = time.perf_counter() - began
    if backing is None:
        return took_s, None
    return took_s, backing.proxy.counts().since(before).up_bytes
