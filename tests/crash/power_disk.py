"""Power cuts below real programs: the cache on an ext4 that really loses what was not flushed.

sqlite (in both journal modes), git (core.fsync=all) and a writer of files work on
the mount. Each says on a pipe, outside of everything, what it was told is durable. In the middle
any pages of the database are written to the disk, the filesystem is shut down, the daemon killed,
and all mounted again under another boot. Everything that was said must be there.

Called by `python -m tests.crash.power --cuts N` and test_power.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import IO, Final

from s3ws_fs.cache import recovery
from s3ws_fs.cache.checking import check_cache
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from tests.crash.power import WrongImageError, another_boot
from tests.support import programs
from tests.support.crash_disk import CrashDisk, write_back
from tests.support.host import Host

SAID_MIN: Final = 8
"""Words that each program must have said before the power goes."""
SAID_S_MAX: Final = 120.0

SQLITE: Final = """
import sqlite3, sys
mode, path = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None)
db.execute(f"pragma journal_mode = {mode}").fetchone()
# FULL does not flush the removal of a rollback journal, which is the commit: EXTRA does.
db.execute(f"pragma synchronous = {'full' if mode == 'wal' else 'extra'}")
db.execute("create table if not exists t (n integer primary key, body blob)")
n = db.execute("select coalesce(max(n), 0) from t").fetchone()[0]
while True:
    db.execute("begin immediate")
    for _ in range(3):
        n += 1
        db.execute("insert into t values (?, ?)", (n, n.to_bytes(4, "big") * (n % 400)))
    db.execute("delete from t where n < ? and n % 7 = 0", (n - 50,))
    db.execute("commit")
    print(n, flush=True)
"""

GIT: Final = """
import os, subprocess, sys
top = sys.argv[1]
def git(*words):
    return subprocess.run(["git", "-C", top, *words], check=True, capture_output=True, text=True)
subprocess.run(["git", "init", "-q", "-b", "main", top], check=True)
n = 0
while True:
    n += 1
    with open(f"{top}/file{n % 5}", "a") as out:
        out.write(f"line {n}\\n" * (n % 50))
    git("add", "-A")
    git("-c", "core.fsync=all", "commit", "-q", "-m", str(n))
    # git flushes files, but not the rename that moves the branch.
    fd = os.open(f"{top}/.git/refs/heads", os.O_RDONLY); os.fsync(fd); os.close(fd)
    print(git("rev-parse", "HEAD").stdout.strip(), flush=True)
"""

FILES: Final = """
import hashlib, mmap, os, random, sys
top = sys.argv[1]
os.mkdir(top)
rng, n = random.Random(1), 0
log = os.open(f"{top}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    n += 1
    body = rng.randbytes(rng.choice((0, 10, 5000, 70_000)))
    name = f"f{n % 20}" if n % 3 else f"n{n}"
    how = n % 4
    if how == 0:    # as editors do
        fd = os.open(f"{top}/tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, body); os.fsync(fd); os.close(fd)
        os.rename(f"{top}/tmp", f"{top}/{name}")
        fd = os.open(top, os.O_RDONLY); os.fsync(fd); os.close(fd)
    elif how == 1:  # synchronous writes
        fd = os.open(f"{top}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_SYNC)
        os.write(fd, body)
        os.fsync(fd) if not body else None
        os.close(fd)
    elif how == 2:  # fdatasync
        fd = os.open(f"{top}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, body); os.fdatasync(fd); os.close(fd)
    else:           # a shared mapping
        body = body or b"x"
        fd = os.open(f"{top}/{name}", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.ftruncate(fd, len(body))
        with mmap.mmap(fd, len(body)) as view:
            view[:] = body
            view.flush()
        os.close(fd)
    os.write(log, b"%d\\n" % n); os.fsync(log)
    print(n, name, hashlib.sha256(body).hexdigest(), flush=True)
"""


class Witness:
    """A program on the mount, and what it was told."""

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self.said: list[str] = []
        self._rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", *command],
            env={**os.environ, **programs.GIT_ENV},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        out = self.process.stdout
        assert out is not None
        self.out: IO[bytes] = out

    def hear(self) -> bool:
        """What it has said since; False when it has ended."""
        piece = os.read(self.out.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self.said += [line.decode() for line in lines]
        return bool(piece)

    def complaint(self) -> str:
        """What it says when it ends by itself."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode(errors="replace")[-2000:]

    def end(self) -> None:
        """Its filesystem is gone: what it was told before counts."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        while self.hear():
            pass
        self.process.communicate()


def start(top: Path) -> list[Witness]:
    """All programs, each in its place."""
    return [
        Witness("sqlite delete", SQLITE, "delete", str(top / "delete.db")),
        Witness("sqlite wal", SQLITE, "wal", str(top / "wal.db")),
        Witness("git", GIT, str(top / "git")),
        Witness("files", FILES, str(top / "files")),
    ]


def listen(witnesses: list[Witness], rng: random.Random) -> None:
    """Until each has said enough, and a moment longer."""
    wanted = {id(one): rng.randrange(SAID_MIN, 3 * SAID_MIN) for one in witnesses}
    deadline = time.monotonic() + SAID_S_MAX
    poll = select.poll()
    by_fd = {one.out.fileno(): one for one in witnesses}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while any(len(one.said) < wanted[id(one)] for one in witnesses):
        assert time.monotonic() < deadline, {one.name: len(one.said) for one in witnesses}
        for fd, _ in poll.poll(1000):
            if not by_fd[fd].hear():
                raise AssertionError(f"{by_fd[fd].name} ended: {by_fd[fd].complaint()}")
    poll.poll(rng.randrange(30))


def one_cut(disk: CrashDisk, host: Host, rng: random.Random, counts: Counter[str]) -> None:
    """Work, cut, come back, and compare. The host is unmounted before and after.

    Raises WrongImageError.
    """
    host.mount()
    # A new directory each time: what earlier cuts left is compared as well, by the checker.
    top = host.mountpoint / f"cut {counts['cuts']}"
    top.mkdir()
    witnesses = start(top)
    try:
        listen(witnesses, rng)
        data_file = host.workspace_cache() / DATA_DIR / DATA_FILE
        counts["pages written back"] += write_back(data_file, rng)
        disk.cut()
        with contextlib.suppress(AssertionError):
            host.kill()
    finally:
        for one in witnesses:
            one.end()
        host.end()
    disk.umount()
    disk.mount()
    another_boot(host.workspace_cache())
    found = check_cache(host.workspace_cache(), lambda _: None).report
    if not found.ok:
        raise WrongImageError(f"the checker says {[str(f) for f in found.findings][:5]}")
    host.mount()
    opened = host.now()["cache"]["opened"]
    if opened != recovery.SYNC_POINT:
        raise WrongImageError(f"opened as {opened}")
    for one in witnesses:
        counts[one.name] += len(one.said)
    try:
        _sqlite(top / "delete.db", int(witnesses[0].said[-1]))
        _sqlite(top / "wal.db", int(witnesses[1].said[-1]))
        _git(top / "git", witnesses[2].said)
        _files(top / "files", witnesses[3].said)
    except (AssertionError, OSError, sqlite3.Error) as exc:
        raise WrongImageError(f"after {dict(counts)}: {exc}") from exc
    host.umount()
    counts["cuts"] += 1


def _sqlite(path: Path, last: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        (sound,) = db.execute("pragma integrity_check").fetchone()
        (found,) = db.execute("select max(n) from t").fetchone()
        wrong = [
            n
            for n, body in db.execute("select n, body from t")
            if body != n.to_bytes(4, "big") * (n % 400)
        ]
        (held,) = db.execute("select count(*) from t where n > ? - 50", (found,)).fetchone()
    if sound != "ok" or found < last or wrong or held < min(found, 50) - 50 // 7 - 1:
        raise WrongImageError(f"{path.name}: {sound}, {found} of {last}, wrong {wrong}, {held}")


def _git(top: Path, said: list[str]) -> None:
    # Objects that a cut-off commit left are no damage: "dangling" is what fsck calls them.
    printed = programs.run("git", "-C", top, "fsck", "--full", "--no-progress", "--no-dangling")
    if printed.strip():
        raise WrongImageError(f"git fsck: {printed}")
    known = set(programs.run("git", "-C", top, "rev-list", "HEAD").split())
    lost = [commit for commit in said if commit not in known]
    if lost:
        raise WrongImageError(f"git: {len(lost)} of {len(said)} commits are lost")


def _files(top: Path, said: list[str]) -> None:
    log = (top / "log").read_text().split()
    last = int(said[-1].split()[0])
    if log != [str(n + 1) for n in range(len(log))] or not last <= len(log) <= last + 1:
        raise WrongImageError(f"files: the log ends at {log[-1:]}, {last} was said")
    # The one after it may have begun when the power went.
    begun = f"f{(last + 1) % 20}"
    newest = {name: (n, body) for n, name, body in (line.split() for line in said)}
    for name, (n, body) in newest.items():
        got = hashlib.sha256((top / name).read_bytes()).hexdigest()
        if got != body and name != begun:
            raise WrongImageError(f"files: {name} of {n} (last {last}) has other bytes")
