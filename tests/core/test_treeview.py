"""Paths in records: found inside the workspace, or refused with the reason."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.treeview import LINKS_MAX, NoPathError, TreeView
from s3ws_fs.core.types import ROOT_INO

TREE: dict[bytes, bytes | None] = {
    b"d": None,
    b"d/e": None,
    b"d/e/f": b"",
    b"top": b"",
    b"to-d": b"d",
    b"d/up": b"../top",
    b"d/e/up2": b"../../d/./e//f",
    b"d/through": b"../to-d/e",
    b"out": b"../etc/passwd",
    b"d/out": b"../../etc/passwd",
    b"d/e/far": b"../../../top",
    b"absolute": b"/etc/passwd",
    b"loop": b"loop",
    b"ping": b"pong",
    b"pong": b"ping",
    b"broken": b"nowhere",
}
"""Directories (None), files, and symlinks with their targets."""


def view_of(tree: dict[bytes, bytes | None]) -> TreeView:
    made = TableSet(is_local=False)
    numbers = {b"": ROOT_INO} | {path: ino for ino, path in enumerate(tree, 2)}
    for path, ino in numbers.items():
        above, _, name = path.rpartition(b"/")
        target = tree.get(path)
        kind = stat.S_IFLNK if target else stat.S_IFREG
        mode = (stat.S_IFDIR if target is None else kind) | 0o755
        nlink = 2 if target is None else 1
        rec = InodeRec(
            ino, mode, 0, 0, nlink, 0, 0, 0, 0, 0, 0, 0, numbers[above], name, target or b""
        )
        made.inodes[keys.pack_u64(ino)] = rec.encode()
        if path:
            made.dentries[keys.dentry_key(numbers[above], name)] = keys.pack_u64(ino)
    return TreeView(made)


VIEW = view_of(TREE)


def real(path: bytes, *, follow: bool = True) -> bytes:
    rec = VIEW.find(path, follow=follow)
    return b"" if rec.ino == ROOT_INO else VIEW.path(*VIEW.links(rec)[0])


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (b"", b""),
        (b"/", b""),
        (b"d/..", b""),
        (b"d/e/f", b"d/e/f"),
        (b"/d//e/./f", b"d/e/f"),
        (b"d/e/../../top", b"top"),
        (b"to-d/e/f", b"d/e/f"),
        (b"d/up", b"top"),
        (b"d/e/up2", b"d/e/f"),
        (b"d/through/f", b"d/e/f"),
        # Above a directory that was reached by a symlink is the directory that holds it.
        (b"d/through/../up", b"top"),
    ],
)
def test_paths_that_lead_somewhere(path: bytes, wanted: bytes) -> None:
    assert real(path) == wanted


def test_a_symlink_at_the_end_may_be_meant_itself() -> None:
    for path in (b"to-d", b"loop", b"absolute", b"out", b"broken"):
        assert real(path, follow=False) == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (b"..", "leads out"),
        (b"../top", "leads out"),
        (b"d/../..", "leads out"),
        (b"out", "leads out"),
        (b"d/out", "leads out"),
        (b"d/e/far", "leads out"),
        (b"absolute", "leads out"),
        (b"absolute/x", "leads out"),
        (b"loop", "too many symlinks"),
        (b"ping/x", "too many symlinks"),
        (b"broken", "not there"),
        (b"nowhere/x", "not there"),
        (b"top/x", "no directory"),
        (b"top/..", "no directory"),
    ],
)
def test_paths_that_lead_nowhere(path: bytes, why: str) -> None:
    with pytest.raises(NoPathError, match=why) as error:
        VIEW.find(path)
    assert error.value.path == path


def test_so_many_symlinks_are_followed_and_no_more() -> None:
    def chain(count: int) -> TreeView:
        tree: dict[bytes, bytes | None] = {b"l0": b""}
        tree |= {b"l%d" % at: b"l%d" % (at - 1) for at in range(1, count + 1)}
        return view_of(tree)

    assert chain(LINKS_MAX).find(b"l%d" % LINKS_MAX).name == b"l0"
    with pytest.raises(NoPathError, match="too many"):
        chain(LINKS_MAX + 1).find(b"l%d" % (LINKS_MAX + 1))


parts = st.sampled_from([b"", b".", b"..", b"top", *(path.split(b"/")[-1] for path in TREE)])


@given(st.lists(parts, max_size=8))
def test_no_path_leads_out(names: list[bytes]) -> None:
    try:
        rec = VIEW.find(b"/".join(names))
    except NoPathError:
        return
    assert rec.ino == ROOT_INO or VIEW.path(*VIEW.links(rec)[0]) in TREE


def test_everything_below_a_directory() -> None:
    below = {path for path, _ in VIEW.below(ROOT_INO, b"")}
    assert below == set(TREE)
    moved = {path for path, _ in VIEW.below(VIEW.find(b"d").ino, b"x")}
    assert moved == {b"x" + path[1:] for path in TREE if path.startswith(b"d/")}


def test_names_that_stand_for_nothing_are_damage() -> None:
    view = view_of({b"d": None, b"d/f": b""})
    del view.records.inodes[keys.pack_u64(3)]  # type: ignore[attr-defined]
    with pytest.raises(FormatError):
        view.find(b"d/f")
    with pytest.raises(FormatError):
        list(view.below(ROOT_INO, b""))


def test_a_table_is_counted_once_not_for_each_file() -> None:
    """A table as it was counts by going through all of it: `diff` took minutes for 50,000 files."""

    class Counted(dict[bytes, bytes]):
        times = 0

        def __len__(self) -> int:
            Counted.times += 1
            return super().__len__()

    made = view_of(TREE)
    assert isinstance(made.records, TableSet)
    made.records.chunks = Counted()
    for path in (b"top", b"d/e/f", b"top"):
        assert list(made.places(made.find(path))) == []
    assert Counted.times == 1
