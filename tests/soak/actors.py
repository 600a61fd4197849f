"""The programs of the soak: each works on the mount and says, outside of it, what was done.

`python -m tests.soak.actors KIND DIRECTORY WITNESS SEED` works until it is killed. The witness is a
file on another filesystem, to which a line goes only after the call, commit or member it speaks of
has returned: what stands there was acknowledged.

    steps    single system calls on a tree (tests.soak.model)
    sqlite   one row a transaction, synchronous, rollback journal and write-ahead log in turn
    git      a commit after some edits; garbage collected now and then
    tar      members of archives unpacked (tests.support.extractor)
    cc       a C program edited, compiled and run

Invariants
1. A call that fails ends the program with FAILED: only a mount that is gone may do that.
2. Programs that git or sqlite left locked when they were killed are unlocked as a person does it.

Called by soak.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.soak.model import ShortWriteError, Tree, carry_out, choose
from tests.support.extractor import PIECE_BYTES

FAILED: Final = 3
ROUND_STEPS: Final = 400
"""Steps after which a tree is left as it is and a new one begun."""
ROWS_PER_MODE: Final = 40
TAR_FILES: Final = 60
GC_EVERY: Final = 25

Say = Callable[[str], None]


def next_place(directory: Path) -> Path:
    """A new name below it, of a rising number."""
    numbers = [int(name) for name in os.listdir(directory)]
    return directory / f"{max(numbers, default=0) + 1:06}"


def _steps(directory: Path, say: Say, rng: random.Random) -> None:
    while True:
        place = next_place(directory)
        place.mkdir()
        say(json.dumps({"tree": place.name}))
        tree = Tree()
        for _ in range(ROUND_STEPS):
            step = choose(tree, rng)
            say(json.dumps({"step": step}))
            try:
                carry_out(step, str(place))
            except ShortWriteError as exc:
                # Its rest came to a mount that was dead by then: so must the next call.
                say(json.dumps({"step": [*step, exc.kept]}))
                say(json.dumps({"done": True}))
                os.listdir(place)
                raise AssertionError(f"{step} took {exc.kept} bytes on a living mount") from None
            tree.apply(step)
            say(json.dumps({"done": True}))


def _sqlite(directory: Path, say: Say, rng: random.Random) -> None:
    while True:
        with sqlite3.connect(directory / "rows.db", isolation_level=None, timeout=60) as db:
            mode = rng.choice(["delete", "wal"])
            db.execute(f"pragma journal_mode = {mode}")
            db.execute("pragma synchronous = full")
            db.execute("create table if not exists row (number integer primary key, body blob)")
            (last,) = db.execute("select coalesce(max(number), 0) from row").fetchone()
            for number in range(last + 1, last + 1 + ROWS_PER_MODE):
                body = random.Random(number).randbytes(number % 3000)
                db.execute("insert into row values (?, ?)", (number, body))
                say(str(number))
        db.close()


GIT_ENV: Final[Mapping[str, str]] = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "soak",
    "GIT_AUTHOR_EMAIL": "soak@localhost",
    "GIT_COMMITTER_NAME": "soak",
    "GIT_COMMITTER_EMAIL": "soak@localhost",
}


def git(directory: Path, *words: str) -> str:
    """What git prints. Raises CalledProcessError."""
    done = subprocess.run(
        ["git", "-c", "gc.auto=0", *words],
        cwd=directory,
        env={**os.environ, **GIT_ENV},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _git(directory: Path, say: Say, rng: random.Random) -> None:
    repository = directory / "repository"
    if not (repository / ".git" / "ready").exists():
        repository.mkdir(exist_ok=True)
        git(repository, "init", "-q", "-b", "main")
        (repository / ".git" / "ready").touch()
    for lock in (*repository.rglob("*.lock"), *repository.rglob("packed-refs.new")):
        lock.unlink()
    count = 0
    while True:
        for _ in range(rng.randint(1, 5)):
            path = repository / f"d{rng.randrange(6)}" / f"f{rng.randrange(20)}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{rng.random()}\n" * rng.randint(1, 300))
        git(repository, "add", "-A")
        git(repository, "commit", "-q", "--allow-empty", "-m", f"commit {count}")
        say(git(repository, "rev-parse", "HEAD"))
        count += 1
        if count % GC_EVERY == 0:
            git(repository, "gc", "-q", "--prune=now")


def make_archive(path: Path, seed: int) -> None:
    """An archive of small files, the same for the same seed."""
    import io

    rng = random.Random(seed)
    with tarfile.open(path, "w") as archive:
        for number in range(TAR_FILES):
            body = rng.randbytes(rng.choice([10, 3000, 40_000, 100_000]))
            member = tarfile.TarInfo(f"file-{number}")
            member.size, member.mode, member.mtime = len(body), 0o640, 1_700_000_000 + number
            archive.addfile(member, io.BytesIO(body))


def _tar(directory: Path, say: Say, rng: random.Random) -> None:
    while True:
        place = next_place(directory)
        seed = rng.randrange(1 << 30)
        archive = Path(sys.argv[3]).with_name(f"archive-{os.getpid()}.tar")
        make_archive(archive, seed)
        place.mkdir()
        say(json.dumps({"place": place.name, "seed": seed}))
        with tarfile.open(archive) as members:
            for member in members:
                source = members.extractfile(member)
                assert source is not None
                fd = os.open(place / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                while piece := source.read(PIECE_BYTES):
                    os.write(fd, piece)
                os.fchmod(fd, member.mode)
                os.utime(fd, ns=(int(member.mtime) * 10**9, int(member.mtime) * 10**9))
                os.close(fd)
                say(json.dumps({"member": member.name}))


def _cc(directory: Path, say: Say, rng: random.Random) -> None:
    while True:
        number = rng.randrange(1 << 30)
        source = f'#include <stdio.h>\nint main(void) {{ puts("{number}"); return 0; }}\n'
        temporary = directory / "main.c.tmp"
        temporary.write_text(source)
        temporary.rename(directory / "main.c")
        subprocess.run(
            ["gcc", "-O0", "-o", "main.new", "main.c"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        (directory / "main.new").rename(directory / "main")
        said = subprocess.run([directory / "main"], capture_output=True, text=True, check=True)
        assert said.stdout == f"{number}\n", said.stdout
        say(str(number))


KINDS: Final[Mapping[str, Callable[[Path, Say, random.Random], None]]] = {
    "steps": _steps,
    "sqlite": _sqlite,
    "git": _git,
    "tar": _tar,
    "cc": _cc,
}


def main() -> int:
    """See the module's docstring."""
    kind, directory, witness, seed = sys.argv[1:]
    out = os.open(witness, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(line: str) -> None:
        os.write(out, line.encode() + b"\n")

    try:
        KINDS[kind](Path(directory), say, random.Random(int(seed)))
    except (OSError, sqlite3.Error, subprocess.CalledProcessError) as exc:
        detail = getattr(exc, "stderr", None) or ""
        print(f"{kind}: {type(exc).__name__}: {exc} {detail}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
