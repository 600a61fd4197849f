"""An agent's day in turns: what a conversation does to its workspace, without the pauses.

1. What is live stays of one size: as much goes as comes. So whatever grows over the day is not
   the workspace.
2. A turn follows from its seed and number; what it wrote is compared when it is read back.
3. It speaks lines: it reads one for each turn, and answers with one of JSON, seconds and count of
   each kind of operation.

The process is `python -m bench.agentday DIRECTORY SEED`. Run by bench.churn.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import material
from bench.workloads import MIB, Stopwatch, read_file, write_file

LIVE_FILES: Final = 600
DIRECTORIES: Final = 20
NEW_FILES: Final = 20
SAVES: Final = 15
LOOKS: Final = 60
LOG_LINES: Final = 40
LOG_BYTES_MAX: Final = MIB
ROWS: Final = 10
ROWS_MAX: Final = 2000
BUILD_FILES: Final = 60
BIG_MIB: Final = 8
PACKAGES: Final = 200
PACKAGES_EVERY: Final = 10
"""Turns between two trees of packages that come and go."""
REPOSITORY_TURNS: Final = 60
"""A repository grows by design: after so many turns it is deleted and made anew."""
GIT: Final = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "gc.auto=0")


class Day:
    """One agent's workspace."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self._seed = seed
        self._next = 0
        self._live: dict[str, bytes] = {}
        (root / "src").mkdir()
        for number in range(DIRECTORIES):
            (root / "src" / f"d{number}").mkdir()
        self._create(LIVE_FILES, random.Random(seed))

    def _create(self, count: int, rng: random.Random) -> None:
        for _ in range(count):
            path = f"{self.root}/src/d{self._next % DIRECTORIES}/f{self._next}.py"
            body = material.words(rng, min(32_768, int(rng.lognormvariate(7.5, 1.2)) + 1))
            write_file(path, body)
            self._live[path] = body
            self._next += 1

    def turn(self, number: int) -> Stopwatch:
        """One turn; raises RuntimeError for wrong bytes."""
        rng, watch = random.Random(self._seed * 1_000_003 + number), Stopwatch()
        for kind in (self._look, self._edit, self._files, self._log, self._rows, self._commit):
            kind(rng, watch)
        self._build(rng, watch)
        self._big(rng, watch)
        if number % PACKAGES_EVERY == 0:
            self._packages(rng, watch)
        if number % REPOSITORY_TURNS == REPOSITORY_TURNS - 1:
            shutil.rmtree(self.root / "repo")
        return watch

    def _look(self, rng: random.Random, watch: Stopwatch) -> None:
        chosen = rng.sample(sorted(self._live), LOOKS)
        with watch.step("stat", LOOKS):
            for path in chosen:
                os.stat(path)
        with watch.step("read", LOOKS):
            found = [read_file(path) for path in chosen]
        if found != [self._live[path] for path in chosen]:
            raise RuntimeError("a file differs from what was written")

    def _edit(self, rng: random.Random, watch: Stopwatch) -> None:
        chosen = rng.sample(sorted(self._live), SAVES)
        bodies = [material.words(rng, len(self._live[path]) + 1) for path in chosen]
        bodies = [body[:32_768] for body in bodies]
        with watch.step("save", SAVES):
            for path, body in zip(chosen, bodies, strict=True):
                write_file(f"{path}.new", body)
                os.rename(f"{path}.new", path)
        self._live.update(zip(chosen, bodies, strict=True))

    def _files(self, rng: random.Random, watch: Stopwatch) -> None:
        with watch.step("create", NEW_FILES):
            self._create(NEW_FILES, rng)
        oldest = list(self._live)[:NEW_FILES]
        with watch.step("delete", NEW_FILES):
            for path in oldest:
                os.unlink(path)
        for path in oldest:
            del self._live[path]

    def _log(self, rng: random.Random, watch: Stopwatch) -> None:
        path = f"{self.root}/agent.log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with watch.step("append", LOG_LINES):
                for _ in range(LOG_LINES):
                    os.write(fd, b"turn: said and done\n" * rng.randrange(1, 50))
            if os.fstat(fd).st_size > LOG_BYTES_MAX:
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def _rows(self, rng: random.Random, watch: Stopwatch) -> None:
        with contextlib.closing(
            sqlite3.connect(f"{self.root}/events.db", isolation_level=None)
        ) as db:
            db.execute("pragma journal_mode=wal")
            db.execute("create table if not exists t (id integer primary key, note text)")
            with watch.step("sqlite", ROWS):
                for _ in range(ROWS):
                    db.execute("insert into t (note) values (?)", ("x" * rng.randrange(2000),))
            db.execute("delete from t where id <= (select max(id) from t) - ?", (ROWS_MAX,))

    def _commit(self, rng: random.Random, watch: Stopwatch) -> None:
        repo = self.root / "repo"
        if not repo.exists():
            repo.mkdir()
            material.run_quietly([*GIT, "init", "-q"], repo)
        for _ in range(5):
            body = material.words(rng, rng.randrange(100, 20_000))
            (repo / f"m{rng.randrange(100)}.py").write_bytes(body)
        with watch.step("commit"):
            material.run_quietly([*GIT, "add", "-A"], repo)
            material.run_quietly([*GIT, "commit", "-q", "--allow-empty", "-m", "turn"], repo)

    def _build(self, rng: random.Random, watch: Stopwatch) -> None:
        body = rng.randbytes(4000)
        with watch.step("build", BUILD_FILES):
            for number in range(BUILD_FILES):
                directory = f"{self.root}/build/o{number % 6}"
                os.makedirs(directory, exist_ok=True)
                write_file(f"{directory}/{number}.o", body)
        with watch.step("clean", BUILD_FILES):
            shutil.rmtree(self.root / "build")

    def _big(self, rng: random.Random, watch: Stopwatch) -> None:
        path, piece = f"{self.root}/download.part", rng.randbytes(MIB)
        with watch.step("big", BIG_MIB), open(path, "xb", 0) as file:
            for _ in range(BIG_MIB):
                file.write(piece)
        os.unlink(path)

    def _packages(self, rng: random.Random, watch: Stopwatch) -> None:
        top = f"{self.root}/packages"
        body = material.words(rng, 3000)
        with watch.step("packages", 2 * PACKAGES):
            for number in range(PACKAGES):
                os.makedirs(f"{top}/p{number % 40}", exist_ok=True)
                write_file(f"{top}/p{number % 40}/{number}.js", body)
            shutil.rmtree(top)


def main() -> None:
    """Answer each line with a turn, until there are no more."""
    day = Day(Path(sys.argv[1]), int(sys.argv[2]))
    answer: Callable[[object], None] = lambda value: print(json.dumps(value), flush=True)  # noqa: E731
    answer({})
    for number, _ in enumerate(sys.stdin):
        steps = day.turn(number).steps
        answer({step.name: [step.seconds, step.amount] for step in steps})


if __name__ == "__main__":
    main()
