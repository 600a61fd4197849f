"""Databases on the mount: sqlite in all its journal modes, lmdb, dbm; several processes at once."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shelve
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import lmdb
import pytest

from tests.support import programs
from tests.support.e2e_fixtures import Elsewhere
from tests.support.tools import background, finish, need, python, same_in_both

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

ROWS: Final = 40
BUSY_S: Final = 60

WRITER: Final = f"""
import sqlite3, sys
path, mode, name = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None, timeout={BUSY_S})
assert db.execute(f"pragma journal_mode = {{mode}}").fetchone() == (mode,)
for number in range({ROWS}):
    db.execute("begin immediate")
    db.execute("insert into log values (?, ?, ?)", (name, number, bytes(900)))
    db.execute("update counter set n = n + 1")
    db.execute("commit")
"""

READER: Final = f"""
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout={BUSY_S})
seen = -1
while seen < {2 * ROWS}:
    db.execute("begin")
    (n,) = db.execute("select n from counter").fetchone()
    (rows,) = db.execute("select count(*) from log").fetchone()
    db.execute("commit")
    assert rows == n and n >= seen, (rows, n, seen)
    seen = n
"""

DYING_WRITER: Final = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma journal_mode = delete")
db.execute("pragma cache_size = 4")
db.execute("begin immediate")
db.execute("update t set body = zeroblob(length(body)), n = n + 1000")
print("in the middle", flush=True)
time.sleep(1000)
"""


@contextlib.contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection in autocommit mode, closed at the end."""
    connection = sqlite3.connect(database, isolation_level=None, timeout=BUSY_S)
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist"])
def test_two_writers_and_a_reader_lose_nothing(here: Path, mode: str) -> None:
    database = here / "shared.db"
    with opened(database) as db:
        db.execute(f"pragma journal_mode = {mode}")
        db.execute("create table log (who text, number integer, body blob)")
        db.execute("create table counter (n integer)")
        db.execute("insert into counter values (0)")
    with (
        background(*python(WRITER, database, mode, "one")) as one,
        background(*python(WRITER, database, mode, "two")) as two,
        background(*python(READER, database)) as reader,
    ):
        for process in (one, two, reader):
            finish(process)
    with opened(database) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert db.execute("select n from counter").fetchone() == (2 * ROWS,)
        counted = db.execute("select who, count(distinct number) from log group by who").fetchall()
        assert sorted(counted) == [("one", ROWS), ("two", ROWS)]
    left = sorted(os.listdir(here))
    keeps_its_journal = mode in ("truncate", "persist")
    assert left == ["shared.db"] + ["shared.db-journal"] * keeps_its_journal


def die_in_the_middle(database: Path) -> None:
    """SIGKILL a process whose transaction has reached the database file, and not its end."""
    programs.sqlite_work(database.parent, "delete", transactions=100).rename(database)
    before = database.read_bytes()
    with background(*python(DYING_WRITER, database)) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in the middle\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert database.read_bytes() != before, "nothing had reached the file"
    assert (database.parent / f"{database.name}-journal").stat().st_size > 0


def check_rolled_back(database: Path) -> None:
    """The hot journal brought back what was there before."""
    programs.check_sqlite(database, transactions=100)
    with opened(database) as db:
        assert db.execute("select max(n) < 1000 from t").fetchone() == (1,)
    assert not (database.parent / f"{database.name}-journal").exists()


def test_a_hot_journal_is_rolled_back(here: Path) -> None:
    die_in_the_middle(here / "hot.db")
    check_rolled_back(here / "hot.db")


def test_a_wal_of_a_killed_writer_is_recovered(here: Path) -> None:
    database = here / "wal.db"
    program = f"""
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma journal_mode = wal")
db.execute("create table t (n integer)")
for n in range({ROWS}):
    db.execute("insert into t values (?)", (n,))
db.execute("begin"); db.execute("insert into t values (-1)")
print("written", flush=True)
time.sleep(1000)
"""
    with background(*python(program, database)) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert (here / "wal.db-wal").stat().st_size > 0
    (here / "wal.db-shm").unlink()
    with opened(database) as db:
        assert db.execute("select count(*), min(n) from t").fetchone() == (ROWS, 0)
        assert db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_memory_mapped_reads_see_what_others_write(here: Path) -> None:
    database = programs.sqlite_work(here, "delete", transactions=50)
    with opened(database) as mapped, opened(database) as plain:
        assert mapped.execute("pragma mmap_size = 67108864").fetchone() == (64 << 20,)
        for turn in range(5):
            plain.execute("update t set body = ?", (bytes([turn]) * 1500,))
            rows = mapped.execute("select distinct body from t").fetchall()
            assert rows == [(bytes([turn]) * 1500,)]
            mapped.execute("insert into t values (?, ?, 0)", (1000 + turn, bytes([turn]) * 1500))
            assert plain.execute("select max(id) from t").fetchone() == (1000 + turn,)
        assert plain.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_vacuum_gives_the_space_back(here: Path) -> None:
    database = here / "big.db"
    with opened(database) as db:
        db.execute("create table t (id integer primary key, body blob)")
        db.execute(
            "with recursive c(n) as (select 1 union all select n + 1 from c where n < 500)"
            " insert into t select n, randomblob(3000) from c"
        )
        full = database.stat()
        db.execute("delete from t where id > 5")
        (sums,) = db.execute("select sum(length(body)) from t").fetchone()
        db.execute("vacuum")
        db.execute("vacuum into ?", (str(here / "copy.db"),))
    assert sums == 5 * 3000
    small = database.stat()
    assert small.st_size < full.st_size // 10
    assert small.st_blocks < full.st_blocks // 10
    with opened(here / "copy.db") as db:
        assert db.execute("select sum(length(body)) from t").fetchone() == (sums,)


def test_the_sqlite_command(here: Path, native: Path) -> None:
    need("sqlite3")
    script = """
    seq 300 | sed 's/$/,word/' >rows.csv
    sqlite3 one.db 'create table t (n integer, word text)' '.mode csv' '.import rows.csv t'
    sqlite3 one.db 'create index i on t (n)' 'select sum(n), count(*) from t' 'pragma quick_check'
    sqlite3 one.db .dump >dump.sql; sqlite3 two.db <dump.sql
    sqlite3 one.db '.backup three.db'; sqlite3 three.db 'select max(n) from t'
    sqlite3 two.db 'attach "three.db" as b' \
        'select count(*) from (select * from t except select * from b.t)'
    sha256sum dump.sql
    """
    printed = same_in_both(script, here, native, apart=(b"three.db",))
    assert printed.startswith("45150|300\nok\n300\n0\n")


LMDB_WRITER: Final = """
import lmdb, sys
path, name, count, writemap = sys.argv[1:]
env = lmdb.open(path, map_size=64 << 20, max_dbs=2, writemap=bool(int(writemap)))
db = env.open_db(b"log")
for number in range(int(count)):
    with env.begin(write=True) as txn:
        n = int(txn.get(b"counter", b"0")) + 1
        txn.put(b"counter", b"%d" % n)
        txn.put(f"{name} {number:04d}".encode(), bytes(number % 3000), db=db)
env.close()
"""


@pytest.mark.parametrize("writemap", ["0", "1"])
def test_lmdb_of_two_processes(here: Path, writemap: str) -> None:
    path = here / "env"
    with lmdb.open(str(path), map_size=64 << 20, max_dbs=2) as env:
        env.open_db(b"log")
    with (
        background(*python(LMDB_WRITER, path, "one", str(ROWS), writemap)) as one,
        background(*python(LMDB_WRITER, path, "two", str(ROWS), writemap)) as two,
    ):
        finish(one)
        finish(two)
    with lmdb.open(str(path), map_size=64 << 20, max_dbs=2) as env:
        log = env.open_db(b"log", create=False)
        with env.begin() as txn:
            assert txn.get(b"counter") == b"%d" % (2 * ROWS)
            pairs = list(txn.cursor(db=log))
        with env.begin(write=True) as txn:
            txn.drop(log, delete=False)
        env.copy(str(copied(here)), compact=True)
    assert [len(value) for key, value in pairs] == [*range(ROWS), *range(ROWS)]


def copied(here: Path) -> Path:
    """An empty directory for a copy."""
    (here / "copy").mkdir()
    return here / "copy"


def test_dbm_and_shelve(here: Path) -> None:
    """dbm.dumb is always there; gdbm and ndbm depend on how Python was built."""
    kinds = [kind for kind in ("dbm.dumb", "dbm.gnu", "dbm.ndbm") if importlib.util.find_spec(kind)]
    for kind in kinds:
        try:
            module = importlib.import_module(kind)
        except ImportError:
            continue
        path = str(here / kind)
        for turn in range(3):
            with contextlib.closing(module.open(path, "c")) as db:
                for number in range(100):
                    db[f"{number}".encode()] = f"{turn} {number} ".encode() * (number % 40)
                del db[b"7"]
        with contextlib.closing(module.open(path, "r")) as db:
            assert len(list(db.keys())) == 99
            assert db[b"99"] == b"2 99 " * 19
    with shelve.open(str(here / "shelf"), writeback=True) as shelf:
        shelf["list"] = [1]
        shelf["list"].append({"nested": True})
    with shelve.open(str(here / "shelf"), "r") as shelf:
        assert shelf["list"] == [1, {"nested": True}]


def test_a_hot_journal_is_rolled_back_on_another_host(here: Path, elsewhere: Elsewhere) -> None:
    """Last in this module: database and journal are of one instant there."""
    die_in_the_middle(here / "hot.db")
    shutil.copytree(here, here.parent / "second of the same")
    top = elsewhere()
    check_rolled_back(top / here.name / "hot.db")
    check_rolled_back(top / "second of the same" / "hot.db")
