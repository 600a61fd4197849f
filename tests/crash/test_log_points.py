"""A process with a redo log, SIGKILLed at each of the log's points, and what the next one finds.

The process is forked and works in batches, with flushes of the log and sync points among it; it
writes down what was acknowledged. Afterwards the cache has all of that, at most one operation more,
and is whole; a power cut in that moment costs nothing that was flushed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import warnings
from pathlib import Path

import pytest

from s3ws_fs.cache import redo
from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import check_cache
from s3ws_fs.core import failpoints
from s3ws_fs.core.types import ROOT_INO
from tests.crash.power import digest
from tests.crash.workloads import OF_LOG
from tests.support import caches
from tests.support.armed import KILL, Listener, Plan, listening
from tests.support.caches import CRED

BOOT = "boot-1"
ROUNDS = 9
AT_COMMIT = (failpoints.COMMIT_BEFORE, failpoints.COMMIT_AFTER)


def opened(directory: Path, boot: str = BOOT) -> Cache:
    ticks = itertools.count(1_700_000_000 * 10**9, 1000)
    made = open_cache(
        directory,
        Identity(caches.PREFIX, "s"),
        quota_bytes=64 << 20,
        now_ns=lambda: next(ticks),
        boot_id=boot,
        with_log=True,
    )
    if not made.restore_complete:
        made.set_restore_complete()
    return made


def flush(cache: Cache) -> int:
    """What fsync does; the generation it covers, 0 when the log can't."""
    log = cache.redo
    assert log is not None
    cache.settle()
    begun = log.begin_flush()
    if begun is None:
        return 0
    redo.flush(begun[1])
    log.finish_flush(begun[0])
    return begun[0]


def work(directory: Path, told: int) -> None:
    """Rounds of batches. `told`: a descriptor for what was acknowledged and what is durable."""
    rng = random.Random(1)
    cache = opened(directory)
    durable = 0

    def tell() -> None:
        line = [cache.generation, durable, digest(cache)]
        os.write(told, json.dumps(line).encode() + b"\n")

    fs = caches.filesystem(cache)
    tell()
    for number in range(ROUNDS):
        cache.begin_batch()
        directory_ino = fs.mkdir(ROOT_INO, b"d%d" % number, 0o755, CRED).ino
        tell()
        for name in (b"a", b"b"):
            ino = fs.create(directory_ino, name, 0o644, CRED).ino
            tell()
            fs.write(ino, 0, rng.randbytes(rng.choice((10, 5000, 40_000))))
            tell()
            fs.write(ino, 7, rng.randbytes(100))
            tell()
        fs.rename(directory_ino, b"a", ROOT_INO, b"moved", 0)
        tell()
        if number % 3 == 1:
            cache.put_json("note", number)
            tell()
        durable = max(durable, flush(cache))
        tell()
        if number % 2:
            cache.sync_point()
            durable = cache.generation
            tell()
    cache.begin_batch()
    fs.unlink(ROOT_INO, b"moved")
    tell()
    # As if killed here: the log alone has it.
    cache.let_go()
    os.close(cache._lock_fd)
    opened(directory)


def killed(directory: Path, plan: Plan, told: Path) -> list[list[object]]:
    """Work in a forked process that is killed; what it told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        status = 1
        try:
            fd = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with listening(Listener(plan)):
                work(directory, fd)
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    lines = told.read_text().splitlines() if told.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("nth", [1, 2, 4])
@pytest.mark.parametrize("point", (*OF_LOG, *AT_COMMIT))
def test_killed_at(tmp_path: Path, point: str, nth: int) -> None:
    directory, told = tmp_path / "ws", tmp_path / "told"
    if point in (failpoints.REPLAY_BEFORE, failpoints.REPLAY_AFTER):
        # The workload ends with a batch that is in the log alone: one replay.
        nth = 1
    lines = killed(directory, Plan(point, KILL, str(tmp_path), nth=nth), told)
    acknowledged, durable, last = lines[-1] if lines else (0, 0, "")
    states: dict[object, list[object]] = {}
    for generation, _, state in lines:
        states.setdefault(generation, []).append(state)
    power = shutil.copytree(directory, tmp_path / "power")
    assert check_cache(directory, lambda _: None, boot_id=BOOT).report.ok
    with opened(directory) as cache:
        # At most the one under way is there and was not answered.
        assert acknowledged <= cache.generation <= acknowledged + 1  # type: ignore[operator]
        if cache.generation == acknowledged and lines:
            assert digest(cache) == last
    with opened(power, "boot-2") as cache:
        # Everything that the kernel has is on this disk: the log brings back what it vouches for.
        assert durable <= cache.generation <= acknowledged + 1  # type: ignore[operator]
        if cache.generation in states:
            assert digest(cache) in states[cache.generation]
