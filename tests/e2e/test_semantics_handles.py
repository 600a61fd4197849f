"""What open files, and processes that stand in directories, see when names go: as on a local disk.

The same is done on the mount and in a plain directory, by several processes where it matters.
"""

from __future__ import annotations

import functools
import itertools
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.pair import Pair, at_once, outcome

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

WRITERS: Final = 4
RECORDS: Final = 150
ROUNDS: Final = 40


def test_appending_processes_lose_and_tear_nothing(pair: Pair) -> None:
    def write(path: Path, who: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in range(RECORDS):
            # Lengths across pages and extents.
            filler = "x" * (number * 37 % 9000)
            record = f"{who} {number} {filler}\n".encode()
            assert os.write(fd, record) == len(record)
        os.close(fd)

    def scenario(top: Path) -> list[tuple[int, list[int]]]:
        path = top / "log"
        at_once([functools.partial(write, path, who) for who in range(WRITERS)])
        found: dict[int, list[int]] = {}
        for line in path.read_text().splitlines():
            who, number, filler = line.split(" ")
            assert filler == "x" * (int(number) * 37 % 9000), "torn"
            found.setdefault(int(who), []).append(int(number))
        return sorted(found.items())

    wanted = [(who, list(range(RECORDS))) for who in range(WRITERS)]
    assert pair.same(scenario) == wanted


def test_append_wins_over_positions(pair: Pair) -> None:
    def scenario(top: Path) -> Any:
        path = top / "f"
        path.write_bytes(b"0123456789")
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        other = os.open(path, os.O_RDWR)
        os.lseek(fd, 2, os.SEEK_SET)
        os.write(fd, b"A")
        os.pwrite(fd, b"B", 0)
        os.ftruncate(other, 5)
        os.write(fd, b"C")
        seen = os.lseek(fd, 0, os.SEEK_CUR), path.read_bytes()
        os.close(fd)
        os.close(other)
        return seen

    assert pair.same(scenario) == (6, b"01234C")


def test_exactly_one_of_several_processes_creates_exclusively(pair: Pair) -> None:
    def try_all(top: Path, who: int) -> list[str]:
        won = []
        for number in range(ROUNDS):
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            got = outcome(os.open, top / f"lock{number}", flags)
            if got == "EEXIST":
                continue
            os.write(got, b"%d" % who)
            os.close(got)
            won.append(f"lock{number}")
            if outcome(os.mkdir, top / f"dir{number}") is None:
                won.append(f"dir{number}")
        return won

    def scenario(top: Path) -> list[str]:
        won = at_once([functools.partial(try_all, top, who) for who in range(WRITERS)])
        for who, names in enumerate(won):
            for name in names:
                if name.startswith("lock"):
                    assert (top / name).read_text() == str(who)
        return sorted(itertools.chain(*won))

    won = pair.same(scenario)
    assert len(won) == len(set(won)) == 2 * ROUNDS


def test_racing_renames_links_and_unlinks_have_one_winner(pair: Pair) -> None:
    def take(top: Path, who: int) -> Counter[str]:
        won: Counter[str] = Counter()
        for number in range(ROUNDS):
            for call, to in (
                (os.rename, top / f"mine{who}-{number}"),
                (os.link, top / "dir" / f"first{number}"),
            ):
                source = top / (f"ticket{number}" if call is os.rename else "ready")
                if outcome(call, source, to) is None:
                    won[call.__name__] += 1
            if outcome(os.unlink, top / f"gone{number}") is None:
                won["unlink"] += 1
        return won

    def scenario(top: Path) -> list[tuple[str, int]]:
        (top / "dir").mkdir()
        (top / "ready").touch()
        for number in range(ROUNDS):
            (top / f"ticket{number}").touch()
            (top / f"gone{number}").touch()
        won = at_once([functools.partial(take, top, who) for who in range(WRITERS)])
        assert (top / "ready").stat().st_nlink == 1 + ROUNDS
        return sorted(sum(won, Counter()).items())

    assert pair.same(scenario) == [("link", ROUNDS), ("rename", ROUNDS), ("unlink", ROUNDS)]


def test_an_unlinked_file_stays_with_all_who_hold_it(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        path = top / "f"
        path.write_bytes(b"first")
        fd, twin = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
        os.unlink(path)
        seen: list[Any] = [os.fstat(fd).st_nlink, os.fstat(fd).st_size]
        os.pwrite(fd, b"F" * 100_000, 0)
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(3, 4))
        os.fsync(fd)
        info = os.fstat(twin)
        seen += [info.st_size, stat.S_IMODE(info.st_mode), info.st_mtime_ns]
        seen += [os.pread(twin, 3, 99_997), os.readlink(f"/proc/self/fd/{fd}")[-12:]]
        # No way back in by a new name, and the name is free.
        seen.append(outcome(os.link, f"/proc/self/fd/{fd}", top / "back", follow_symlinks=True))
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        seen.append(os.pread(again, 1, 0))
        path.write_bytes(b"second")
        os.ftruncate(again, 1)
        seen += [os.pread(twin, 9, 0), path.read_bytes(), path.stat().st_nlink]
        for each in (fd, twin, again):
            os.close(each)
        return seen

    assert pair.same(scenario)[0] == 0


def test_a_replaced_file_stays_with_all_who_hold_it(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        (top / "old").write_bytes(b"old")
        (top / "new").write_bytes(b"new")
        os.link(top / "old", top / "old too")
        held, moved = os.open(top / "old", os.O_RDWR), os.open(top / "new", os.O_RDWR)
        os.rename(top / "new", top / "old")
        seen: list[Any] = [os.fstat(held).st_nlink, os.fstat(moved).st_nlink]
        os.pwrite(held, b"O", 0)
        os.pwrite(moved, b"N", 0)
        seen += [(top / "old").read_bytes(), (top / "old too").read_bytes()]
        os.unlink(top / "old too")
        seen += [os.fstat(held).st_nlink, os.pread(held, 9, 0), sorted(os.listdir(top))]
        for each in (held, moved):
            os.close(each)
        return seen

    assert pair.same(scenario)[-1] == ["old"]


def test_rename_over_what_it_may_and_may_not(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        for name in ("full/x", "empty", "dir/sub", "also full/y"):
            (top / name).mkdir(parents=True)
        (top / "file").write_bytes(b"f")
        (top / "link").symlink_to("full")
        os.link(top / "file", top / "twin")
        inside = os.open(top / "empty", os.O_RDONLY)
        pairs = [
            ("dir", "full"),
            ("dir", "file"),
            ("file", "empty"),
            ("file", "full"),
            ("dir", "dir/sub"),
            ("dir", "dir/sub/deeper"),
            ("dir/sub", "dir"),
            ("file", "twin"),
            ("file", "file/x"),
            ("file", "full/x/"),
            ("absent", "file"),
            ("absent", "none/x"),
            ("file", "none/x"),
            ("dir", "link"),
            ("dir/.", "z"),
            ("dir/..", "z"),
            ("file", "dir/."),
            ("dir", "dir"),
            ("dir", "empty"),
            ("link", "twin"),
            ("also full", "new name/"),
        ]
        seen: list[Any] = [outcome(os.rename, f"{top}/{a}", f"{top}/{b}") for a, b in pairs]
        # A directory that was replaced while open: empty, without a link, and no place for more.
        seen += [os.fstat(inside).st_nlink, os.listdir(inside)]
        seen.append(outcome(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
        os.close(inside)
        tree = sorted(str(path.relative_to(top)) for path in top.rglob("*"))
        return [*seen, tree, (top / "file").read_bytes()]

    assert pair.same(scenario)[:4] == ["ENOTEMPTY", "ENOTDIR", "EISDIR", "EISDIR"]


def _in_a_removed_directory() -> list[Any]:
    names = (os.getcwd, os.listdir, lambda: len(os.listdir("..")))
    seen: list[Any] = [outcome(call) for call in names]
    info = os.stat(".")
    seen += [info.st_nlink, stat.S_ISDIR(info.st_mode), stat.S_IMODE(info.st_mode)]
    creating = os.O_CREAT | os.O_WRONLY
    for call, *arguments in (
        (os.open, "x", creating),
        (os.mkdir, "x"),
        (os.symlink, "a", "x"),
        (os.mkfifo, "x"),
        (os.stat, "x"),
        (os.link, "../file", "x"),
        (os.rename, "../file", "x"),
        (os.rename, ".", "x"),
        (os.rmdir, "."),
        (os.unlink, "x"),
        (os.chmod, ".", 0o711),
        (os.chdir, "."),
        (os.access, ".", os.W_OK),
    ):
        seen.append(outcome(call, *arguments))
    seen.append(stat.S_IMODE(os.stat(".").st_mode))
    seen.append(outcome(os.utime, ".", ns=(1, 2)))
    seen.append(os.stat(".").st_mtime_ns)
    fd = os.open(".", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return seen


def test_a_process_in_a_removed_directory(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        (top / "file").touch()
        (top / "cwd").mkdir(mode=0o755)
        os.chdir(top / "cwd")
        os.rmdir(top / "cwd")
        seen = _in_a_removed_directory()
        # The name comes back as another directory: ours stays the removed one.
        (top / "cwd").mkdir()
        (top / "cwd" / "inside").touch()
        seen += [outcome(os.listdir), outcome(os.stat, "inside")]
        os.chdir("..")
        return [*seen, os.path.samefile(".", top), sorted(os.listdir(top))]

    seen = pair.same(scenario)
    assert seen[:2] == ["ENOENT", []]


def test_a_process_in_a_directory_that_moves_or_is_replaced(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        (top / "a" / "cwd").mkdir(parents=True)
        (top / "b").mkdir()
        (top / "other").mkdir()
        os.chdir(top / "a" / "cwd")
        os.rename(top / "a" / "cwd", top / "b" / "moved")
        seen: list[Any] = [os.path.relpath(os.getcwd(), top)]
        Path("made here").touch()
        seen += [os.listdir(top / "b" / "moved"), os.path.samefile("..", top / "b")]
        seen.append(outcome(os.rename, top / "other", top / "b" / "moved"))
        os.unlink("made here")
        os.rename(top / "other", top / "b" / "moved")
        seen += [outcome(os.getcwd), os.stat(".").st_nlink, os.listdir()]
        seen.append(outcome(os.mkdir, "x"))
        return seen

    assert pair.same(scenario)[0] == "b/moved"


def test_a_directory_that_was_removed_while_being_read(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        (top / "d").mkdir()
        for number in range(5):
            (top / "d" / f"{number}").touch()
        fd = os.open(top / "d", os.O_RDONLY)
        with os.scandir(fd) as entries:
            next(entries)
            for number in range(5):
                os.unlink(top / "d" / f"{number}")
            os.rmdir(top / "d")
        seen = [os.listdir(fd), os.fstat(fd).st_nlink]
        os.close(fd)
        return seen

    assert pair.same(scenario) == [[], 0]


def test_hard_links_are_one_file_across_directories(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        for name in "abc":
            (top / name).mkdir()
        (top / "a" / "f").write_bytes(b"1")
        os.link(top / "a" / "f", top / "b" / "f")
        os.link(top / "b" / "f", top / "c" / "g")
        numbers = {path.stat().st_ino for path in top.glob("*/*")}
        seen: list[Any] = [len(numbers), (top / "c" / "g").stat().st_nlink]
        with (top / "c" / "g").open("ab") as file:
            file.write(b"2")
        (top / "a" / "f").chmod(0o604)
        os.rename(top / "b", top / "c" / "b")
        os.unlink(top / "a" / "f")
        left = top / "c" / "b" / "f"
        seen += [left.read_bytes(), stat.S_IMODE(left.stat().st_mode), left.stat().st_nlink]
        seen.append(left.stat().st_ino in numbers)
        seen += [
            outcome(os.link, top / "c", top / "directory"),
            outcome(os.link, left, top / "c" / "g"),
            outcome(os.link, top / "none", top / "x"),
            outcome(os.link, left, top / "none" / "x"),
        ]
        (top / "s").symlink_to("nowhere")
        os.link(top / "s", top / "s too", follow_symlinks=False)
        os.mkfifo(top / "p")
        os.link(top / "p", top / "c" / "p too")
        seen += [os.lstat(top / "s").st_nlink, os.stat(top / "p").st_nlink]
        return seen

    assert pair.same(scenario)[:2] == [1, 3]


def test_opening_flags(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        (top / "f").write_bytes(b"content")
        (top / "d").mkdir()
        (top / "link").symlink_to("f")
        (top / "to d").symlink_to("d")
        (top / "dangling").symlink_to("target")
        tries = [
            ("f", os.O_RDONLY | os.O_DIRECTORY),
            ("f/", os.O_RDONLY),
            ("d", os.O_WRONLY),
            ("d", os.O_RDWR | os.O_CREAT),
            ("d", os.O_RDONLY | os.O_CREAT),
            ("link", os.O_RDONLY | os.O_NOFOLLOW),
            ("to d", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY),
            ("dangling", os.O_RDONLY),
            ("dangling", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
            ("dangling", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW),
            ("new/", os.O_WRONLY | os.O_CREAT),
            ("none/new", os.O_WRONLY | os.O_CREAT),
            ("f", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        ]
        seen: list[Any] = [outcome(os.open, f"{top}/{name}", flags) for name, flags in tries]
        for name, flags in (
            ("f", os.O_RDONLY | os.O_NOATIME),
            ("f", os.O_PATH),
            ("link", os.O_PATH | os.O_NOFOLLOW),
            ("dangling", os.O_WRONLY | os.O_CREAT),
            ("f", os.O_RDONLY | os.O_TRUNC),
        ):
            fd = os.open(top / name, flags, 0o600)
            seen.append(stat.S_IFMT(os.fstat(fd).st_mode))
            seen.append(outcome(os.read, fd, 3))
            os.close(fd)
        seen += [(top / "target").stat().st_size, (top / "f").stat().st_size]
        return seen

    assert pair.same(scenario)[0] == "ENOTDIR"


@pytest.mark.parametrize("flag", ["O_SYNC", "O_DSYNC", "O_APPEND"])
def test_synchronous_writes(pair: Pair, flag: str) -> None:
    def scenario(top: Path) -> Any:
        fd = os.open(top / "f", os.O_RDWR | os.O_CREAT | getattr(os, flag))
        seen = [os.write(fd, b"x" * 5000), os.pread(fd, 2, 4998), os.fstat(fd).st_size]
        os.close(fd)
        return seen

    assert pair.same(scenario) == [5000, b"xx", 5000]
