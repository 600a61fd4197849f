"""Names and paths: any bytes, up to the limits and beyond; links that lead nowhere or round."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.pair import Pair, opened, outcome

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

PATH_MAX: Final = 4096
"""With the NUL at the end."""

ALL_BYTES: Final = [bytes([byte]) for byte in range(1, 256) if byte != ord("/")]


def test_every_byte_is_a_name_but_slash_and_nul(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        base = os.fsencode(top) + b"/"
        names = [name for name in ALL_BYTES if name != b"."]
        for name in names:
            with open(base + name, "xb") as file:
                file.write(name)
        everything = b"".join(ALL_BYTES)
        os.mkdir(base + everything[1:])
        for name in names:
            with open(base + name, "rb") as file:
                assert file.read() == name
        return sorted(os.listdir(base))

    assert len(pair.same(scenario)) == 254


def test_names_end_at_255_bytes(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        base = os.fsencode(top) + b"/"
        good, bad = b"\xff" * 255, b"\xff" * 256
        seen: list[Any] = []
        for name in (good, bad):
            path = base + name
            seen.append(opened(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
            seen.append(outcome(lambda p=path: os.stat(p).st_size))
            seen += [
                outcome(os.rename, path, base + name[:-1] + b"r"),
                outcome(os.rename, base + name[:-1] + b"r", path),
                outcome(os.link, path, base + name[:-1] + b"l"),
                outcome(os.symlink, "x", base + name[:-1] + b"s"),
                outcome(os.mkdir, base + name[:-1] + b"d"),
                outcome(os.mkfifo, base + name[:-1] + b"p"),
                outcome(os.rmdir, base + name[:-1] + b"d"),
                outcome(os.unlink, path),
            ]
        # Counted in bytes, not in characters.
        seen += [outcome(os.mkdir, top / ("é" * 127)), outcome(os.mkdir, top / ("é" * 128))]
        return seen

    seen = pair.same(scenario)
    assert seen.count("ENAMETOOLONG") == 11


def test_paths_end_at_path_max(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        os.chdir(top)
        step = "d" * 200
        while len(path := f"{step}/" * 20) < PATH_MAX - 201:
            step += "d"
        os.makedirs(path)
        room = PATH_MAX - 1 - len(path)
        longest, too_long = path + "f" * room, path + "f" * (room + 1)
        seen: list[Any] = [len(longest)]
        for each in (longest, too_long):
            seen.append(opened(each, os.O_CREAT | os.O_WRONLY))
            seen.append(outcome(os.unlink, each))
        return seen

    assert pair.same(scenario) == [PATH_MAX - 1, None, None, "ENAMETOOLONG", "ENAMETOOLONG"]


def test_a_tree_deeper_than_any_path(pair: Pair) -> None:
    """Relative steps lead beyond PATH_MAX; what is there works, and getcwd says that it can't."""

    def scenario(top: Path) -> list[Any]:
        name = "deep" * 60
        fd = os.open(top, os.O_RDONLY)
        for _ in range(30):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        with open(os.open("bottom", os.O_CREAT | os.O_RDWR, dir_fd=fd), "w+") as file:
            file.write("7,000 bytes down")
        os.fchdir(fd)
        seen: list[Any] = [outcome(os.getcwd) == "ENAMETOOLONG", Path("bottom").read_text()]
        os.rename("bottom", "../renamed")
        seen += [os.listdir(".."), os.listdir(".")]
        os.close(fd)
        os.chdir(top)
        # One rename moves it all; the bottom stays reachable step by step.
        os.rename(name, "moved")
        os.chdir("moved")
        levels = 1
        while os.path.isdir(name):
            os.chdir(name)
            levels += 1
        return [*seen, levels, Path("../renamed").read_text()]

    assert pair.same(scenario)[-2:] == [30, "7,000 bytes down"]


def test_symbolic_links_that_lead_nowhere_or_round(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        os.chdir(top)
        os.symlink("self", "self")
        os.symlink("b", "a")
        os.symlink("a", "b")
        os.symlink("none/below", "dangling")
        os.symlink("d", "to d")
        os.mkdir("d")
        os.symlink("../d/./f", "d/../via")
        Path("d/f").write_text("found")
        os.symlink("f", "chain0")
        for number in range(45):
            os.symlink(f"chain{number}" if number else "d/f", f"chain{number + 1}")
        seen = [
            outcome(lambda p=path: Path(p).read_text())
            for path in ("self", "a", "self/x", "dangling", "to d/f", "chain40", "chain41")
        ]
        for call, *arguments in (
            (os.stat, "self"),
            (os.open, "a", os.O_WRONLY | os.O_CREAT),
            (os.open, "dangling", os.O_WRONLY | os.O_CREAT),
            (os.chdir, "b"),
            (os.mkdir, "dangling"),
            (os.mkdir, "self"),
            (os.rmdir, "to d"),
            (os.readlink, "d/f"),
            (os.readlink, "d"),
            (os.symlink, "", "empty"),
            (os.symlink, "x", "self"),
            (os.truncate, "self", 0),
            (os.chmod, "dangling", 0o600),
            (os.link, "self", "self too"),
        ):
            got = outcome(call, *arguments)
            seen.append(got)
        info = os.lstat("dangling")
        seen += [stat.S_ISLNK(info.st_mode), stat.S_IMODE(info.st_mode), info.st_size]
        seen += [os.lstat("self").st_nlink, os.readlink("self too")]
        os.rename("self", "renamed")
        os.unlink("a")
        return [*seen, os.readlink("renamed"), sorted(os.listdir("."))]

    assert pair.same(scenario)[0] == "ELOOP"


def test_symbolic_link_targets(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        seen: list[Any] = []
        for number, target in enumerate((b"\xff\n\x01", b"x" * 4095, b"/" * 100, b" ", b".")):
            path = os.fsencode(top / f"link{number}")
            os.symlink(target, path)
            seen += [os.readlink(path) == target, os.lstat(path).st_size]
        return [*seen, outcome(os.symlink, b"x" * 4096, os.fsencode(top / "long"))]

    assert pair.same(scenario)[-1] == "ENAMETOOLONG"


def test_names_with_meaning_elsewhere_have_none_here(pair: Pair) -> None:
    def scenario(top: Path) -> list[str]:
        for name in (
            ".fuse_hidden0001",
            "CON",
            "a:b",
            "..a",
            "...",
            " ",
            "~",
            "*",
            "%2F",
            "A",
        ):
            (top / name).write_text(name)
        os.mkdir(top / "a")
        return sorted(os.listdir(top))

    assert len(pair.same(scenario)) == 11
