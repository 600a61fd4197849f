"""Python's own library on the mount: what tools in it lean on."""

from __future__ import annotations

import fcntl
import logging
import logging.handlers
import mmap
import multiprocessing
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, trees
from tests.support.e2e_fixtures import Elsewhere

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

PROCESSES: Final = 3
TURNS: Final = 40
PAGE: Final = mmap.PAGESIZE


def test_shutil(here: Path, tmp_path: Path) -> None:
    source = here / "source"
    trees.build_rich_tree(source)
    for name in ("special", "sizes"):  # fifos, which it does not copy, and what is only large
        shutil.rmtree(source / name)
    shutil.copytree(source, here / "copy", symlinks=True)
    links = ("nlink", "twins", "uid", "gid")  # which shutil does not keep
    ignore = (*trees.OTHER_FILESYSTEM, *links, "sha256")
    manifests = [trees.manifest(here / name) for name in ("source", "copy")]
    # chown takes a setuid bit away, and shutil does not give the owner.
    found = [line for line in trees.differences(*manifests, ignore=ignore) if "owner" not in line]
    assert found == []
    assert programs.diff(source / "names", here / "copy" / "names") == ""
    shutil.move(here / "copy", tmp_path / "moved")
    assert not (here / "copy").exists()
    shutil.move(tmp_path / "moved", here / "back")
    assert programs.diff(source / "names", here / "back" / "names") == ""
    archive = shutil.make_archive(str(here / "archive"), "gztar", here, "back/times")
    shutil.unpack_archive(archive, here / "unpacked")
    assert programs.diff(here / "back" / "times", here / "unpacked" / "back" / "times") == ""
    usage = shutil.disk_usage(here)
    assert usage.total >= usage.used + usage.free > 0
    for name in ("source", "back", "unpacked"):
        shutil.rmtree(here / name)
    assert os.listdir(here) == ["archive.tar.gz"]


def test_copystat_and_copy2_keep_what_they_promise(here: Path, native: Path) -> None:
    source = native / "source"
    source.write_bytes(b"content")
    source.chmod(0o4750)
    os.utime(source, ns=(946_684_800_123_456_789, 946_684_800_987_654_321))
    for target in (here / "one", here / "two"):
        shutil.copy2(source, target)
        assert target.stat().st_mtime_ns == 946_684_800_987_654_321
        assert stat.S_IMODE(target.stat().st_mode) == 0o4750


def test_tempfile(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    with tempfile.TemporaryFile() as anonymous:
        anonymous.write(b"x" * 100_000)
        anonymous.seek(50_000)
        assert anonymous.read() == b"x" * 50_000
        assert os.fstat(anonymous.fileno()).st_nlink == 0
        assert os.listdir(here) == []
    with tempfile.NamedTemporaryFile(suffix=".txt") as named:
        named.write(b"named")
        named.flush()
        assert Path(named.name).read_bytes() == b"named"
        assert stat.S_IMODE(os.stat(named.name).st_mode) == 0o600
    with tempfile.TemporaryDirectory() as directory:
        os.makedirs(f"{directory}/a/b")
        Path(directory, "a/b/read only").touch(0o400)
    with tempfile.SpooledTemporaryFile(max_size=10) as spooled:
        spooled.write(b"more than ten bytes")
        spooled.seek(0)
        assert spooled.read() == b"more than ten bytes"
    fd, path = tempfile.mkstemp()
    os.close(fd)
    os.unlink(path)
    assert os.listdir(here) == []


def test_pathlib(here: Path) -> None:
    path = here / "a" / "b" / "c.txt"
    path.parent.mkdir(parents=True)
    assert path.write_text("text") == 4
    (here / "hard").hardlink_to(path)
    (here / "soft").symlink_to(path)
    assert (here / "soft").resolve() == path
    assert (here / "hard").samefile(here / "soft")
    assert sorted(found.name for found in here.rglob("*")) == ["a", "b", "c.txt", "hard", "soft"]
    assert path.rename(here / "renamed").read_text() == "text"
    assert not (here / "soft").exists() and (here / "soft").is_symlink()
    with pytest.raises(FileExistsError):
        (here / "renamed").touch(exist_ok=False)
    with pytest.raises(OSError, match="not empty"):
        (here / "a").rmdir()
    (here / "hard").chmod(0o444)
    assert stat.S_IMODE((here / "renamed").stat().st_mode) == 0o444
    assert pathlib.Path(here, "renamed").owner() == pathlib.Path(here).owner()
    (here / "soft").unlink()
    assert not list(here.glob("s*"))


def test_mmap(here: Path) -> None:
    path = here / "mapped"
    path.write_bytes(bytes(4 * PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        shared[PAGE - 2 : PAGE + 2] = b"over"
        file.seek(PAGE - 2)
        assert file.read(4) == b"over"
        os.pwrite(file.fileno(), b"written", 2 * PAGE)
        assert shared[2 * PAGE : 2 * PAGE + 7] == b"written"
        shared.resize(6 * PAGE)
        shared[5 * PAGE :] = b"n" * PAGE
        shared.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as private:
            private[:3] = b"own"
            assert shared[:3] == bytes(3)
        assert shared.find(b"written") == 2 * PAGE
    assert path.stat().st_size == 6 * PAGE
    assert path.read_bytes()[5 * PAGE :] == b"n" * PAGE
    assert path.read_bytes()[:3] == bytes(3)


def _count_up(path: str) -> int:
    """Read, add one, write, under a lock of the whole file."""
    for _ in range(TURNS):
        with open(path, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            number = int(file.read())
            file.seek(0)
            file.write(str(number + 1))
            file.flush()
            fcntl.lockf(file, fcntl.LOCK_UN)
    return os.getpid()


def _write_own(path: str) -> int:
    """One of many files of a pool."""
    with open(path, "wb") as file:
        return file.write(path.encode() * 100)


def test_pools_of_processes_and_threads(here: Path) -> None:
    counter = here / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        list(pool.map(_count_up, [str(counter)] * PROCESSES))
    assert counter.read_text() == str(PROCESSES * TURNS)
    paths = [str(here / f"file {number}") for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_write_own, paths))
    assert sizes == [os.path.getsize(path) for path in paths]


def test_imports_from_the_mount(here: Path) -> None:
    package = here / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import VALUE\n")
    (package / "inner.py").write_text("VALUE = 'from a directory'\n")
    with zipfile.ZipFile(here / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zipped/__init__.py", "VALUE = 'from an archive'\n")
        archive.writestr("__main__.py", "import zipped; print(zipped.VALUE)\n")
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import package, zipped; print(package.VALUE, zipped.VALUE)"
    )
    output = programs.run(sys.executable, "-I", "-c", program, here, here / "all.zip")
    assert output == "from a directory from an archive\n"
    assert programs.run(sys.executable, here / "all.zip") == "from an archive\n"
    # A source that changes within the second, to the same size.
    for value in ("one", "two", "six"):
        (package / "inner.py").write_text(f"VALUE = {value!r}\n")
        os.utime(package / "inner.py", (hash(value) % 10**9, hash(value) % 10**9))
        output = programs.run(sys.executable, "-I", "-c", program, here, here / "all.zip")
        assert output == f"{value} from an archive\n"


def test_rotating_logs(here: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(here / "log", maxBytes=1000, backupCount=3)
    logger = logging.Logger("rotating")
    logger.addHandler(handler)
    try:
        for number in range(200):
            logger.info("message number %04d", number)
    finally:
        handler.close()
    assert sorted(os.listdir(here)) == ["log", "log.1", "log.2", "log.3"]
    text = "".join((here / name).read_text() for name in ("log.3", "log.2", "log.1", "log"))
    numbers = [int(line.split()[-1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 200))
    assert all((here / name).stat().st_size <= 1000 for name in os.listdir(here))


def test_walking_while_removing(here: Path) -> None:
    for number in range(300):
        (here / f"entry {number:03d}").touch()
    with os.scandir(here) as entries:
        for entry in entries:
            os.unlink(entry)
    assert os.listdir(here) == []
    for top, directories, files in os.walk(here):
        assert (top, directories, files) == (str(here), [], [])


def test_what_python_left_is_the_same_on_another_host(elsewhere: Elsewhere) -> None:
    """Last in this module."""
    elsewhere()
