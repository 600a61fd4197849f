"""The oracle finds what it is there to find: differences planted between two plain directories."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.differences import probe
from tests.model.listings import check_listing
from tests.model.look import Difference
from tests.model.twins import Twins


@pytest.fixture
def t(tmp_path: Path) -> Iterator[Twins]:
    """Twins of which neither is a mount."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    twins = Twins(tmp_path / "one", tmp_path / "other", probe(tmp_path / "other"))
    twins.watch.is_of_mount = False
    twins.mkdir("d", 0o755)
    twins.open("d/f", "rdwr creat")
    twins.write(1, (1, 100))
    twins.mknod("g", "file", 0o600)
    yield twins
    twins.close_all()


def _bytes(root: Path) -> None:
    before = (root / "d/f").stat()
    with (root / "d/f").open("r+b") as out:
        out.write(b"another")
    os.utime(root / "d/f", ns=(before.st_atime_ns, before.st_mtime_ns))


def _link(root: Path) -> None:
    (root / "g").unlink()
    os.link(root / "d/f", root / "g")


def _symlink(root: Path) -> None:
    (root / "g").unlink()
    (root / "g").symlink_to("d")


PLANTED: dict[str, Callable[[Path], object]] = {
    "a missing name": lambda root: (root / "g").unlink(),
    "a name too many": lambda root: (root / "d/h").touch(),
    "mode": lambda root: (root / "g").chmod(0o640),
    "size": lambda root: os.truncate(root / "g", 1),
    "bytes": _bytes,
    "an inode shared": _link,
    "mtime moved": lambda root: os.utime(root / "d", ns=(1, 1)),
    "ctime moved": lambda root: (root / "d").chmod(0o755),
    "another type": _symlink,
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("side", ["one", "other"])
def test_planted_difference_is_found(
    t: Twins, tmp_path: Path, side: str, planted: Callable[[Path], object]
) -> None:
    t.look()
    planted(tmp_path / side)
    with pytest.raises(Difference):
        t.compare()


def test_another_result_is_found(t: Twins, tmp_path: Path) -> None:
    os.mkdir(tmp_path / "one/h")
    with pytest.raises(Difference, match=r"mkdir\('h', 0o755\): EEXIST, beside None"):
        t.mkdir("h", 0o755)


def test_xattr_that_differs_is_found(t: Twins, tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path / "one/g", "user.a", b"x")
    except OSError as exc:
        pytest.skip(f"no extended attributes here: {exc.strerror}")
    os.setxattr(tmp_path / "other/g", "user.a", b"y")
    with pytest.raises(Difference, match="xattrs"):
        t.compare()


@pytest.mark.parametrize(
    "names", [["a"], [".", "..", "b"], [".", "..", "a", "a"], [".", "..", "a", "c"]]
)
def test_listing_that_skips_repeats_or_invents_is_found(names: list[str]) -> None:
    check_listing([".", "..", "b", "a"], stay=["a"], ever=["a", "b"])
    with pytest.raises(Difference):
        check_listing(names, stay=["a"], ever=["a", "b"])


def test_failure_names_the_steps(t: Twins, tmp_path: Path) -> None:
    (tmp_path / "one/g").chmod(0o640)
    with pytest.raises(Difference) as failure:
        t.compare()
    text = str(failure.value)
    assert "t.open('d/f', 'rdwr creat')  # 1\n    t.write(1, (1, 100))  # 100\n" in text
    assert text.endswith("t.compare()")


def test_equal_trees_are_equal(t: Twins) -> None:
    mapping = t.map(1, 0, 100, True, True)
    t.map_write(mapping, 10, (2, 20))
    t.msync(mapping)
    t.rename("d/f", "g")
    t.unlink("g")
    assert t.pread(1, 0, 1000) != "EBADF"
    assert t.rmdir("g") == "ENOENT"
