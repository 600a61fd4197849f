"""A crash after each operation of every short sequence (sequences.py), against the model.

`python -m tests.crash.ace` tries all of them and prints figures and failures; `--length 2` shorter
ones, `--stride N` every N-th, `--bucket N` how often the bucket is looked at too.

After a sequence's last operation
    killed       exactly what was answered is there
    power cut    all that was written has reached the disk, or only what was flushed: a state that
                 was, not older than the last fsync of a file or a directory
    bucket       with a flush before or after one of the operations: restored, it is exactly the
                 sealed state; then the next mount saves the rest, and all is in step

Called by test_ace.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s3ws_fs.cache import checking
from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.core.findings import Report
from s3ws_fs.core.types import NeedExtents
from s3ws_fs.daemon.parts import identity
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import MemoryStore
from tests.crash import rig
from tests.crash.rig import OTHER_BOOT, SYNC, Images, Rig, Step, fast_directory
from tests.crash.sequences import Sequence, sequences
from tests.support.files_model import Files, State, differences, perform, shown
from tests.support.inline import BOOT, Ticks

LENGTH_MAX: Final = 3
SETUP_STEP: Final = 10**12
"""The clock goes on so far from one opening to the next."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A cache and a bucket in step, before the operations."""

    files: Images
    store: MemoryStore
    model: Files
    generation: int


class Ace:
    """Tries sequences in one directory: the database keeps its inode (Rig, invariant 2)."""

    def __init__(self, base: Path) -> None:
        self._rig = Rig(base, is_watching=False)
        self._rig.run(())
        self._empty = rig.read_files(self._rig.directory)
        self._empty_store = self._rig.store
        self._beginnings: dict[tuple[tuple[str, str], ...], Beginning] = {}
        self._clock = Ticks()

    def begin(self, sequence: Sequence) -> Beginning:
        """What the sequence begins with; made once."""
        known = self._beginnings.get(sequence.begins)
        if known is None:
            known = self._beginnings[sequence.begins] = self._make(sequence)
        return known

    def _make(self, sequence: Sequence) -> Beginning:
        rig.write_files(self._rig.directory, self._empty)
        made = self._rig_on(self._empty_store, Files())
        made.run((*sequence.setup(), SYNC))
        files = rig.read_files(made.directory)
        return Beginning(files, made.store, made.files, made.known.acknowledged)

    def _rig_on(self, store: MemoryStore, files: Files) -> Rig:
        return Rig(self._rig.base, store.fork(), files.copy(), is_watching=False)

    # --- the cache alone -------------------------------------------------------------------

    def crash(self, sequence: Sequence) -> int:
        """Kill and power cut after the last operation. Raises AssertionError; how many crashes."""
        begin = self.begin(sequence)
        rig.write_files(self._rig.directory, begin.files)
        cache, fs = self._open(BOOT)
        states = {begin.generation: begin.model.state()}
        model, synced = begin.model.copy(), begin.generation
        disk = rig.read_files(self._rig.directory)
        for op in sequence.ops:
            assert model.apply(op) == 0, op
            assert perform(fs, op) == 0, op
            states[cache.generation] = model.state()
            if op.kind == "fsync":
                cache.sync_point()
                synced, disk = cache.generation, rig.read_files(self._rig.directory)
        left, head = rig.read_files(self._rig.directory), cache.generation
        self._let_go(cache)
        self._look(left, BOOT, {head: states[head]}, "killed")
        later = {number: state for number, state in states.items() if number >= synced}
        self._look(left, OTHER_BOOT, later, "power cut")
        self._look(disk, OTHER_BOOT, later, "power cut (least)")
        return 3

    def _open(self, boot_id: str) -> tuple[Cache, FileSystem]:
        config = self._rig.config
        self._clock.ns += SETUP_STEP
        cache = open_cache(
            self._rig.directory,
            identity(config),
            quota_bytes=config.max_size_bytes,
            now_ns=self._clock,
            boot_id=boot_id,
        )
        fs = FileSystem(cache, quota_bytes=config.max_size_bytes, quota_inodes=config.max_inodes)
        return cache, fs

    def _let_go(self, cache: Cache) -> None:
        cache.let_go()
        rig.close_lock(cache)

    def _look(self, files: Images, boot_id: str, states: dict[int, State], how: str) -> None:
        rig.write_files(self._rig.directory, files)
        cache, fs = self._open(boot_id)
        try:
            generation = cache.generation
            assert generation in states, f"{how}: generation {generation}, not of {list(states)}"
            done = checking.Checked(Report(), prefix=self._rig.config.workspace.prefix)
            checking.check_records(cache, done, rig.ignore)
            rig.require_fine(done.report)
            fs.drop_orphans_unmounted()
            got = shown(fs)
            # What was sealed is warm still: nothing has to be fetched.
            assert not isinstance(got, NeedExtents), got
            found = differences(states[generation], got)
            assert not found, f"{how}: {found}"
        finally:
            self._let_go(cache)

    # --- and the bucket --------------------------------------------------------------------

    def bucket(self, sequence: Sequence, flush_before: int) -> None:
        """The same with a flush before that operation; at the end all of it is looked at."""
        begin = self.begin(sequence)
        rig.write_files(self._rig.directory, begin.files)
        made = self._rig_on(begin.store, begin.model)
        made.is_watching = True
        made.known.states[begin.generation] = begin.model.state()
        steps: list[Step] = list(sequence.ops)
        steps.insert(flush_before, SYNC)
        made.run_and_die(steps)
        last = made.crashes[-1]
        made.killed(last)
        made.power_cut(last, least=True)


def main() -> int:
    """Try them; the exit status says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=LENGTH_MAX)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--bucket", type=int, default=20, help="every N-th sequence; 0: none")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    failures = 0
    with fast_directory("s3ws-ace-") as directory:
        ace = Ace(Path(directory) / "w")
        for length in range(1, arguments.length + 1):
            started_s, tried, crashes, flushed = time.monotonic(), 0, 0, 0
            total = 0
            for number, sequence in enumerate(sequences(length)):
                total += 1
                if number % arguments.stride:
                    continue
                tried += 1
                try:
                    crashes += ace.crash(sequence)
                    if arguments.bucket and tried % arguments.bucket == 0:
                        flushed += 1
                        ace.bucket(sequence, flushed % (length + 1))
                except AssertionError as exc:
                    failures += 1
                    print(f"FAILED {sequence}: {exc!r}; {exc.__cause__!r}"[:1000], flush=True)
            seconds = time.monotonic() - started_s
            print(
                f"length {length}: {total} sequences, {tried} tried: {crashes} crashes of the"
                f" cache, {flushed} with a bucket, {seconds:.0f} s",
                flush=True,
            )
    print("all held" if not failures else f"{failures} did not hold")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
