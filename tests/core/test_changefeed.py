"""Marks of changes, and what a person reads of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from s3ws_fs.core import changefeed
from s3ws_fs.core.changefeed import (
    ATTRIBUTES,
    BULK,
    CHANGED,
    CONTENT,
    CREATED,
    GONE,
    LINKED,
    MARKS_MAX,
    NAME,
    NEW,
    REMOVED,
    RENAMED,
    RESTORED,
    TOUCHED,
    Change,
    Mark,
    Marks,
    Teller,
    mark_from,
    mark_json,
    tidy,
)
from s3ws_fs.core.errors import FormatError


@dataclass
class Tree:
    """What stands now: directories by number, and paths of files."""

    dirs: dict[int, bytes] = field(default_factory=dict)
    files: dict[int, list[bytes]] = field(default_factory=dict)

    def teller(self) -> Teller:
        return Teller(self.dirs.get, lambda ino: self.files.get(ino, []))


def tell(tree: Tree, *marks: tuple[int, Mark], teller: Teller | None = None) -> list[Change]:
    return list((teller or tree.teller()).changes(list(marks)))


def test_a_mark_travels_with_any_name() -> None:
    for mark in (Mark(NAME, 5, 1, bytes(range(1, 256))), Mark(CONTENT, 1 << 60), Mark(BULK, 0)):
        assert mark_from(json.loads(json.dumps(mark_json(mark, 7)))) == (7, mark)


@pytest.mark.parametrize(
    "value",
    [None, 5, [], [1, "?", 2, 3, ""], [1, "c", 2, 3], [1, "c", 2, 3, "\u20ac"],
     [True, "c", 2, 3, ""], ["1", "c", 2, 3, ""], [1, "c", 2, 3, None]],
)  # fmt: skip
def test_what_is_no_mark_is_told(value: object) -> None:
    with pytest.raises(FormatError):
        mark_from(value)


def test_a_file_that_is_written_again_and_again_is_one_mark() -> None:
    marks = Marks()
    for generation in range(1, 1001):
        marks.add(generation, [Mark(CONTENT, 5)])
    assert marks
    assert marks.take() == ([(1000, Mark(CONTENT, 5))], 0)
    assert not marks and marks.take() == ([], 0)


def test_marks_are_bounded_and_a_loss_is_counted() -> None:
    marks = Marks()
    marks.add(1, (Mark(CONTENT, ino) for ino in range(MARKS_MAX)))
    assert marks.lost == 0
    marks.add(2, [Mark(CONTENT, 0), Mark(CONTENT, MARKS_MAX)])
    taken, lost = marks.take()
    assert (len(taken), lost) == (MARKS_MAX, 1)
    # By generation; the one that was there already has the newer.
    assert taken[-1] == (2, Mark(CONTENT, 0))


def test_attributes_that_go_with_a_name_are_left_out() -> None:
    step = [Mark(NAME, 5, 2, b"a"), Mark(ATTRIBUTES, 2), Mark(ATTRIBUTES, 5), Mark(ATTRIBUTES, 9)]
    assert tidy(step) == [Mark(NAME, 5, 2, b"a"), Mark(ATTRIBUTES, 9)]
    assert tidy([Mark(ATTRIBUTES, 2)]) == [Mark(ATTRIBUTES, 2)]
    assert tidy([Mark(NAME, 5, 2, b"a"), Mark(BULK, 0)]) == [Mark(BULK, 0)]
    assert tidy([]) == []


def test_what_happened_to_a_file() -> None:
    tree = Tree({2: b"src"}, {5: [b"src/a"], 6: [b"x", b"y"]})
    assert tell(tree, (1, Mark(NEW, 5)), (1, Mark(NAME, 5, 2, b"a")), (2, Mark(CONTENT, 5))) == [
        Change(1, CREATED, b"src/a")
    ]
    assert tell(tree, (3, Mark(CONTENT, 5)), (4, Mark(ATTRIBUTES, 5))) == [
        Change(3, CHANGED, b"src/a"),
        Change(4, TOUCHED, b"src/a"),
    ]
    assert tell(tree, (5, Mark(CONTENT, 6))) == [Change(5, CHANGED, b"x"), Change(5, CHANGED, b"y")]
    assert tell(tree, (6, Mark(NAME, 5, 1, b"b"))) == [Change(6, LINKED, b"b")]
    assert tell(tree, (7, Mark(GONE, 5, 1, b"b"))) == [Change(7, REMOVED, b"b")]
    assert tell(tree, (8, Mark(BULK, 0))) == [Change(8, RESTORED, b"")]


def test_a_second_name_of_a_new_file_is_a_link() -> None:
    marks = (1, Mark(NEW, 5)), (1, Mark(NAME, 5, 1, b"a")), (2, Mark(NAME, 5, 1, b"b"))
    assert tell(Tree(), *marks) == [Change(1, CREATED, b"a"), Change(2, LINKED, b"b")]


def test_renames_also_over_another_and_back() -> None:
    tree = Tree({2: b"d"}, {5: [b"d/new"]})
    assert tell(tree, (1, Mark(GONE, 5, 1, b"old")), (1, Mark(NAME, 5, 2, b"new"))) == [
        Change(1, RENAMED, b"d/new", b"old")
    ]
    # An editor: a temporary file takes the place of the old one.
    found = tell(
        tree,
        (2, Mark(GONE, 9, 2, b"f")), (2, Mark(GONE, 5, 2, b".f.tmp")), (2, Mark(NAME, 5, 2, b"f")),
    )  # fmt: skip
    assert found == [Change(2, RENAMED, b"d/f", b"d/.f.tmp")]
    exchanged = tell(
        tree,
        (3, Mark(GONE, 5, 1, b"a")), (3, Mark(GONE, 6, 1, b"b")),
        (3, Mark(NAME, 6, 1, b"a")), (3, Mark(NAME, 5, 1, b"b")),
    )  # fmt: skip
    assert exchanged == [Change(3, RENAMED, b"a", b"b"), Change(3, RENAMED, b"b", b"a")]


def test_a_tree_that_is_removed_has_its_paths() -> None:
    """Bottom up, as rm -r goes: by the time it is told, no directory is left."""
    found = tell(
        Tree(),
        (1, Mark(GONE, 7, 6, b"file")), (2, Mark(GONE, 6, 5, b"sub")), (3, Mark(GONE, 5, 1, b"d")),
    )  # fmt: skip
    assert [change.path for change in found] == [b"d/sub/file", b"d/sub", b"d"]


def test_a_directory_that_went_before_is_remembered_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(changefeed, "DIRS_MAX", 2)
    tree = Tree({5: b"d"})
    teller = tree.teller()
    tell(tree, (1, Mark(GONE, 99, 5, b"x")), teller=teller)
    tree.dirs.clear()
    assert tell(tree, (2, Mark(GONE, 98, 5, b"y")), teller=teller) == [Change(2, REMOVED, b"d/y")]
    tree.dirs.update({6: b"e", 7: b"f"})
    tell(tree, (3, Mark(GONE, 97, 6, b"x")), (4, Mark(GONE, 96, 7, b"x")), teller=teller)
    tree.dirs.clear()
    assert tell(tree, (5, Mark(GONE, 95, 5, b"z")), teller=teller) == [Change(5, REMOVED, b"?/z")]


def test_what_has_no_name_any_more() -> None:
    found = tell(Tree(), (1, Mark(CONTENT, 5)), (2, Mark(GONE, 5, 1, b"a")))
    assert found == [Change(1, CHANGED, b"a"), Change(2, REMOVED, b"a")]
    # Open and unlinked since long: nobody can name it.
    assert tell(Tree(), (3, Mark(CONTENT, 5))) == []
    # A loop that can't be is no endless one.
    assert tell(Tree(), (1, Mark(GONE, 5, 6, b"a")), (2, Mark(GONE, 6, 5, b"b")))
