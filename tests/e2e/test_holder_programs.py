"""Real programs at work while their mount's daemon is killed again and again.

Here a few kills each. The long form: `python -m tests.e2e.test_holder_programs --kills 10`.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import programs, trees
from tests.support.buckets import LocalBucket, mirror_differences
from tests.support.host import Host, HostMaker
from tests.support.tools import need

pytestmark = [pytest.mark.e2e, pytest.mark.fuse, pytest.mark.slow]

KILLS = 2
SIZE = 60
"""How large the work is that is done over and over until there were enough kills."""
SERVED_S_MAX = 0.4
"""The next kill comes up to so long after a daemon began to serve."""


class Killer(threading.Thread):
    """Kills the daemon `kills` times, each time after it served a random while."""

    def __init__(self, host: Host, kills: int, rng: random.Random) -> None:
        super().__init__()
        self._host = host
        self._left = kills
        self._rng = rng
        self._given_up = threading.Event()
        self.pauses_s: list[float] = []
        self.error: BaseException | None = None

    @property
    def has_finished(self) -> bool:
        """Whether there were as many as there should be."""
        return len(self.pauses_s) == self._left or self.error is not None

    def run(self) -> None:
        """Kill."""
        try:
            for _ in range(self._left):
                if self._given_up.wait(self._rng.uniform(0, SERVED_S_MAX)):
                    return
                started = time.monotonic()
                self._host.kill_daemon()
                self.pauses_s.append(time.monotonic() - started)
        except BaseException as exc:
            self.error = exc

    def stop(self) -> None:
        """No more."""
        self._given_up.set()
        self.join()


@contextmanager
def killing(host: Host, kills: int, rng: random.Random) -> Iterator[Killer]:
    """The daemon is killed during the block. AssertionError when a successor did not come."""
    killer = Killer(host, kills, rng)
    killer.start()
    try:
        yield killer
    finally:
        killer.stop()
    if killer.error is not None:
        raise killer.error


Work = Callable[[Path, int], object]
"""Does its work in a new directory, checks it, and raises AssertionError when it went wrong."""


def clone(origin: Path) -> Work:
    """git clone, with what an agent does afterwards."""

    def work(top: Path, number: int) -> None:
        copy = programs.git_clone(origin, top)
        programs.check_clone(origin, copy)
        programs.git_commit(copy)

    return work


def install(wheels: Path, names: list[str]) -> Work:
    """pip install, and an import of everything."""
    modules = [name.replace("-", "_") for name in names]

    def work(top: Path, number: int) -> None:
        programs.check_imports(programs.pip_install(wheels, names, top), modules)

    return work


def write_database(top: Path, number: int) -> None:
    """One transaction after another; of "wal" the index is a shared memory map."""
    mode = ("delete", "wal", "truncate")[number % 3]
    database = programs.sqlite_work(top, mode, transactions=SIZE)
    programs.check_sqlite(database, transactions=SIZE)


def through_kills(host: Host, name: str, work: Work, kills: int, seed: int) -> Killer:
    """Work, over and over, until there were enough kills; all of it in the bucket at the end."""
    rounds = 0
    with killing(host, kills, random.Random(seed)) as killer:
        while not killer.has_finished:
            top = host.mountpoint / f"{name} {rounds}"
            top.mkdir()
            work(top, rounds)
            rounds += 1
    pauses = sorted(killer.pauses_s)
    print(
        f"{name}: {rounds} rounds, {len(pauses)} kills, until the next served: "
        f"median {pauses[len(pauses) // 2]:.2f} s, longest {pauses[-1]:.2f} s"
    )
    return killer


def _seed() -> int:
    seed = 1 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return seed


@pytest.fixture
def host(local_bucket: LocalBucket, new_host: HostMaker) -> Iterator[Host]:
    """A mount, which must be whole in the bucket at the end."""
    made = new_host(local_bucket)
    made.mount()
    yield made
    before = trees.manifest(made.mountpoint)
    made.umount()
    assert mirror_differences(local_bucket, made.prefix, before, set()) == []


def make_origin(base: Path) -> Path:
    """A repository to clone."""
    tree = base / "origin"
    trees.build_source_tree(tree, files=SIZE)
    programs.make_repository(tree)
    return tree


def test_git(host: Host, tmp_path: Path) -> None:
    need("git")
    through_kills(host, "git", clone(make_origin(tmp_path)), KILLS, _seed())


def test_pip(host: Host, tmp_path: Path) -> None:
    if not programs.have_pip():
        pytest.skip("this environment has no pip")
    names = programs.make_wheels(tmp_path / "wheels")
    through_kills(host, "pip", install(tmp_path / "wheels", names), KILLS, _seed())


def test_sqlite(host: Host) -> None:
    through_kills(host, "sqlite", write_database, KILLS + 1, _seed())


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10, help="for each of the programs")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    with tempfile.TemporaryDirectory(prefix="s3ws-holder-") as name:
        base = Path(name)
        (base / "store").mkdir()
        bucket = LocalBucket(base / "store")
        host = Host(base / "host", bucket.env)
        try:
            host.mount()
            names = programs.make_wheels(base / "wheels")
            pauses: list[float] = []
            for title, work in (
                ("git", clone(make_origin(base))),
                ("pip", install(base / "wheels", names)),
                ("sqlite", write_database),
            ):
                pauses += through_kills(host, title, work, given.kills, given.seed).pauses_s
            before = trees.manifest(host.mountpoint)
            host.umount()
            assert mirror_differences(bucket, host.prefix, before, set()) == []
        finally:
            host.end()
    pauses.sort()
    print(
        f"{len(pauses)} kills, {len(before)} files equal in the bucket at the end; until the next "
        f"daemon served: median {pauses[len(pauses) // 2]:.2f} s, longest {pauses[-1]:.2f} s"
    )


if __name__ == "__main__":
    main()
