"""Every short sequence of operations (sequences.py) on a real mount, and a SIGKILL after the last.

`python -m tests.crash.ace_mount` tries all of one and two operations and prints figures and
failures; `--stride N` every N-th, `--together N` how many are done before each kill (1: a kill
for each), `--length 1` only the shortest.

What a sequence begins with is sealed. Then its operations are done by system calls, in a directory
of its own, and right after the last one
    daemon      is killed: its holder starts another, and the same mount shows the model's files
    container   holder and daemon are killed: the next mount shows the model's files, and those of
                all sequences since the mount before; so the kernel's memory hides nothing
in turn. In the end all is saved, and a host without a cache shows the files of all sequences.

Called by test_ace_mount.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from tests.crash.daemons import operate, shown_by
from tests.crash.rig import fast_directory
from tests.crash.sequences import Sequence, sequences
from tests.support.buckets import LocalBucket
from tests.support.files_model import Files, State, differences
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host

LENGTH_MAX: Final = 2
TOGETHER: Final = 5
DAEMON: Final = "daemon"
CONTAINER: Final = "container"
KILLED: Final = (DAEMON, CONTAINER)


def nothing(_: Host) -> None:
    """Nothing more happens there."""


class MountAce:
    """One workspace, in which each sequence has a directory."""

    def __init__(self, base: Path) -> None:
        (base / "store").mkdir(parents=True)
        bucket = LocalBucket(base / "store")
        self.host = Host(base / "one", bucket.env, settings={**QUICK, **NEVER_BY_ITSELF})
        self.other = self.host.elsewhere(base / "other")
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._said: dict[str, str] = {}
        self._states: dict[str, State] = {}
        self._since_mount: list[str] = []

    def run(self, tried: Iterable[Sequence], *, together: int) -> None:
        """All of them; what did not hold is in `wrong`."""
        self.host.mount()
        how = cycle(KILLED)
        for batch in _batches(tried, together):
            self.crash(batch, next(how))
        self.finish()

    def crash(
        self,
        batch: list[Sequence],
        killed: str,
        *,
        sealed: Callable[[Host], None] = nothing,
        dead: Callable[[Host], None] = nothing,
    ) -> None:
        """Do these, kill, and look. `sealed`, `dead`: called before the operations, and when all
        are killed."""
        models = {self._begin(sequence): sequence for sequence in batch}
        self.host.sync()
        sealed(self.host)
        for name, sequence in models.items():
            for op in sequence.ops:
                operate(self.host.mountpoint / name, op)
        if killed == DAEMON:
            self.host.kill_daemon()
            self._look(models, killed)
        else:
            self.host.kill()
            dead(self.host)
            self.host.mount()
            self._look(self._since_mount, killed)
            self._since_mount = []
        self.counts[f"{killed}s killed"] += 1

    def _begin(self, sequence: Sequence) -> str:
        name = f"{len(self._states):05d}"
        (self.host.mountpoint / name).mkdir()
        model = Files()
        for op in sequence.setup():
            operate(self.host.mountpoint / name, op)
            assert model.apply(op) == 0, op
        for op in sequence.ops:
            assert model.apply(op) == 0, op
        self._said[name], self._states[name] = str(sequence), model.state()
        self._since_mount.append(name)
        self.counts["sequences"] += 1
        return name

    def finish(self) -> None:
        """Save all, and look at it on another host."""
        self.host.umount()
        self.other.mount()
        self._look(self._states, "saved")
        self.other.umount()

    def _look(self, names: Iterable[str], when: str) -> None:
        top = (self.other if when == "saved" else self.host).mountpoint
        for name in names:
            self.counts["looks"] += 1
            found = differences(self._states[name], shown_by(top / name))
            if found:
                self.wrong.append(f"{when}, {name} {self._said[name]}: {found}")

    def end(self) -> None:
        """Leave nothing behind."""
        self.host.end()
        self.other.end()


def _batches(items: Iterable[Sequence], size: int) -> Iterator[list[Sequence]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def main() -> int:
    """Try them; the exit status says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=LENGTH_MAX)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--together", type=int, default=TOGETHER)
    arguments = parser.parse_args()
    started_s = time.monotonic()
    chosen = [
        sequence
        for length in range(1, arguments.length + 1)
        for sequence in sequences(length, arguments.stride)
    ]
    with fast_directory("s3ws-ace-mount-") as directory:
        ace = MountAce(Path(directory) / "w")
        try:
            ace.run(chosen, together=arguments.together)
        finally:
            ace.end()
    for line in ace.wrong:
        print(f"FAILED {line}"[:1000])
    counts = ", ".join(f"{number} {what}" for what, number in sorted(ace.counts.items()))
    print(f"{counts}, {len(ace.wrong)} wrong, {time.monotonic() - started_s:.0f} s")
    return 1 if ace.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
