"""The difference of two trees, done to the first, gives the second: against a model of trees."""

from __future__ import annotations

import copy
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import keys, treediff
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import InodeRec, decode_inode, encode_location
from s3ws_fs.core.treediff import ADDED, DELETED, MODIFIED, RENAMED, Change, compare
from s3ws_fs.core.treeview import TreeView
from s3ws_fs.core.types import BLOB_BIT, ROOT_INO, Location

NAMES = (b"a", b"b", b"c")
CONTENTS = (
    b"",
    b"x",
    b"y",
    b"x" * (EXTENT_BYTES + 1),
    bytes(EXTENT_BYTES + 5),
    bytes(EXTENT_BYTES),
)


@dataclass
class Node:
    """A file (`entries` None) or a directory of the model."""

    ino: int
    entries: dict[bytes, Node] | None = None
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    mtime_ns: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def shown(self) -> tuple[object, ...]:
        """All that a comparison may tell apart."""
        xattrs = tuple(sorted(self.xattrs.items()))
        return (self.entries is None, self.content, self.mode, self.uid, self.mtime_ns, xattrs)


@dataclass
class Rows:
    """Records of a tree."""

    inodes: dict[bytes, bytes] = field(default_factory=dict)
    dentries: dict[bytes, bytes] = field(default_factory=dict)
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    links: dict[bytes, bytes] = field(default_factory=dict)


class Tree:
    """The model: a root, and the numbers that were never used."""

    def __init__(self) -> None:
        self.root = Node(ROOT_INO, {}, mode=0o755)
        self.next_ino = ROOT_INO + 1

    def walk(self) -> Iterator[tuple[bytes, Node, Node]]:
        """Path, node and its directory, of every link."""
        pending = [(b"", self.root)]
        while pending:
            above, at = pending.pop()
            assert at.entries is not None
            for name, node in at.entries.items():
                path = above + b"/" + name if above else name
                yield path, node, at
                if node.entries is not None:
                    pending.append((path, node))

    def paths(self) -> dict[bytes, tuple[object, ...]]:
        return {b"": self.root.shown} | {path: node.shown for path, node, _ in self.walk()}

    def find(self, path: bytes) -> Node:
        node = self.root
        for name in path.split(b"/") if path else ():
            assert node.entries is not None
            node = node.entries[name]
        return node

    def records(self) -> Rows:
        """As the cache would hold it. Each file's bytes stand somewhere else each time."""
        rows = Rows()
        links: dict[int, list[tuple[int, bytes]]] = {ROOT_INO: [(ROOT_INO, b"")]}
        nodes = {ROOT_INO: self.root}
        for path, node, above in self.walk():
            name = path.rpartition(b"/")[2]
            rows.dentries[keys.dentry_key(above.ino, name)] = keys.pack_u64(node.ino)
            links.setdefault(node.ino, []).append((above.ino, name))
            nodes[node.ino] = node
        for ino, node in nodes.items():
            self._inode(rows, node, links[ino])
        return rows

    def _inode(self, rows: Rows, node: Node, links: list[tuple[int, bytes]]) -> None:
        is_dir = node.entries is not None
        below = [each for each in (node.entries or {}).values() if each.entries is not None]
        nlink = 2 + len(below) if is_dir else len(links)
        parent, name = links[0] if is_dir or nlink == 1 else (0, b"")
        if not is_dir and nlink > 1:
            rows.links.update({keys.link_key(node.ino, *link): b"" for link in links})
        rec = InodeRec(
            node.ino, node.mode | (stat.S_IFDIR if is_dir else stat.S_IFREG), node.uid, 0, nlink, 0,
            len(node.content), 0, 0, node.mtime_ns, 0, 0, parent, name, b"",
        )  # fmt: skip
        rows.inodes[keys.pack_u64(node.ino)] = rec.encode()
        for key, value in node.xattrs.items():
            rows.xattrs[keys.xattr_key(node.ino, key)] = value
        for index in range(-(-len(node.content) // EXTENT_BYTES)):
            piece = node.content[index * EXTENT_BYTES :][:EXTENT_BYTES]
            if node.mtime_ns % 2 and not any(piece):
                # A hole, as well as zeros: they read alike.
                continue
            digest = xxhash.xxh3_128_digest(piece)
            loc = Location(BLOB_BIT | id(node) & 0xFFFF, index, len(piece), digest)
            rows.chunks[keys.chunk_key(node.ino, index)] = encode_location(loc)


def act(tree: Tree, pick: Callable[[int], int]) -> None:
    """One change, as a program would make it; what can't be done is left out."""
    everything = [(b"", tree.root, tree.root), *sorted(tree.walk(), key=lambda item: item[0])]
    directories = [item for item in everything if item[1].entries is not None]
    path, node, above = everything[pick(len(everything))]
    where = directories[pick(len(directories))]
    name, what = NAMES[pick(len(NAMES))], pick(9)
    assert where[1].entries is not None
    if what <= 1:
        if name in where[1].entries and where[1].entries[name].entries is not None:
            return
        content = CONTENTS[pick(len(CONTENTS))]
        made = Node(tree.next_ino, {} if what == 0 else None, b"" if what == 0 else content)
        if what == 0 and name in where[1].entries:
            return
        tree.next_ino += 1
        where[1].entries[name] = made
    elif what <= 4:
        own = path.rpartition(b"/")[2]
        inside = where[0] == path or where[0].startswith(path + b"/")
        if not path or (what < 4 and (inside or name in where[1].entries)):
            return
        if what == 3 and node.entries is None:
            where[1].entries[name] = node
            return
        assert above.entries is not None
        del above.entries[own]
        if what == 2:
            where[1].entries[name] = node
    elif what == 5 and node.entries is None:
        node.content = CONTENTS[pick(len(CONTENTS))]
        node.mtime_ns += pick(3)
    elif what == 6:
        node.mode = (0o600, 0o644, 0o755)[pick(3)]
    elif what == 7:
        node.uid, node.mtime_ns = pick(2), pick(3)
    else:
        node.xattrs = {b"user.x": bytes([pick(2)])} if pick(2) else {}


@st.composite
def histories(draw: st.DrawFn) -> tuple[Tree, Tree]:
    """A tree, and what became of it."""
    tree = Tree()

    def pick(count: int) -> int:
        return draw(st.integers(0, count - 1))

    for _ in range(draw(st.integers(0, 14))):
        act(tree, pick)
    before = copy.deepcopy(tree)
    for _ in range(draw(st.integers(0, 10))):
        act(tree, pick)
    return before, tree


def done(before: Tree, changes: list[Change], after: Tree) -> Tree:
    """The tree before with all changes done to it, by their paths alone."""
    tree = copy.deepcopy(before)
    moved = {c.old_path: tree.find(c.old_path) for c in changes if c.old_path is not None}
    away = [c.path for c in changes if c.kind == DELETED] + list(moved)
    for path in sorted(away, reverse=True):
        above, _, name = path.rpartition(b"/")
        entries = tree.find(above).entries
        assert entries is not None
        del entries[name]
    for change in sorted(changes, key=lambda each: each.path):
        if change.kind == DELETED:
            continue
        above, _, name = change.path.rpartition(b"/")
        entries = tree.find(above).entries
        assert entries is not None
        if change.kind == ADDED:
            assert name not in entries
            new = after.find(change.path)
            entries[name] = Node(new.ino, None if new.entries is None else {})
            show(entries[name], new)
        elif change.kind == RENAMED:
            assert name not in entries and change.old_path is not None
            node = copy.copy(moved[change.old_path])
            entries[name] = node
            if change.aspects:
                show(node, after.find(change.path))
        elif change.kind == MODIFIED:
            assert change.aspects
            node = copy.copy(tree.find(change.path))
            if change.path:
                entries[name] = node
            else:
                tree.root = node
            show(node, after.find(change.path))
    return tree


def show(node: Node, like: Node) -> None:
    node.content, node.mode, node.uid = like.content, like.mode, like.uid
    node.mtime_ns, node.xattrs = like.mtime_ns, dict(like.xattrs)


@given(histories())
def test_the_changes_done_to_the_tree_before_give_the_tree_after(case: tuple[Tree, Tree]) -> None:
    before, after = case
    changes = compare(before.records(), after.records())
    assert done(before, changes, after).paths() == after.paths()


@given(histories())
def test_every_change_is_one_and_no_path_is_told_twice(case: tuple[Tree, Tree]) -> None:
    before, after = case
    old, new = before.paths(), after.paths()
    changes = compare(before.records(), after.records())
    ends = [change.path for change in changes if change.kind != DELETED]
    starts = [change.old_path or change.path for change in changes if change.kind != ADDED]
    assert len(set(ends)) == len(ends) and len(set(starts)) == len(starts)
    for change in changes:
        if change.kind == MODIFIED and change.before and change.after:
            assert (
                old.get(change.path, 0) != new[change.path] or change.before.ino == change.rec.ino
            )
        if change.kind == RENAMED:
            assert change.old_path is not None
            is_copy = change.before is not None and change.before.ino != change.rec.ino
            assert change.is_copy == is_copy


@given(histories())
def test_a_tree_does_not_differ_from_itself(case: tuple[Tree, Tree]) -> None:
    for tree in case:
        assert compare(tree.records(), copy.deepcopy(tree).records()) == []


@given(histories(), st.data())
def test_keys_known_to_be_equal_need_not_be_looked_at(
    case: tuple[Tree, Tree], data: st.DataObject
) -> None:
    before, after = (tree.records() for tree in case)
    touched = treediff.differing(before, after)
    for table, name in keys.TABLE_NAMES.items():
        # What may differ, and does not, changes nothing.
        more = sorted(getattr(after, name))
        touched[table] |= data.draw(st.sets(st.sampled_from(more))) if more else set()
    assert compare(before, after, touched) == compare(before, after)


# --- what a person calls it


def trees(build: Callable[[Tree], object], change: Callable[[Tree], object]) -> list[Change]:
    tree = Tree()
    build(tree)
    before = copy.deepcopy(tree)
    change(tree)
    return compare(before.records(), tree.records())


def put(tree: Tree, path: bytes, content: bytes | None = b"x", **more: object) -> Node:
    above, _, name = path.rpartition(b"/")
    entries = tree.find(above).entries
    assert entries is not None
    node = Node(tree.next_ino, {} if content is None else None, content or b"", **more)  # type: ignore[arg-type]
    tree.next_ino += 1
    entries[name] = node
    return node


def drop(tree: Tree, path: bytes) -> Node:
    above, _, name = path.rpartition(b"/")
    entries = tree.find(above).entries
    assert entries is not None
    return entries.pop(name)


def link(tree: Tree, path: bytes, node: Node) -> None:
    above, _, name = path.rpartition(b"/")
    entries = tree.find(above).entries
    assert entries is not None
    entries[name] = node


def told(changes: list[Change]) -> list[tuple[object, ...]]:
    return [(c.kind, c.old_path, c.path, c.aspects) for c in changes]


def many(tree: Tree) -> None:
    put(tree, b"d", None)
    for number in range(10):
        put(tree, b"d/%d" % number, b"%d" % number)


def test_a_moved_tree_is_one_change() -> None:
    changes = trees(many, lambda tree: link(tree, b"e", drop(tree, b"d")))
    assert told(changes) == [(RENAMED, b"d", b"e", ())]


def test_an_editor_that_writes_anew_and_renames_modified_the_file() -> None:
    def edit(tree: Tree) -> None:
        put(tree, b"d/.3.swp", b"new", mtime_ns=7)
        link(tree, b"d/3", drop(tree, b"d/.3.swp"))

    assert told(trees(many, edit)) == [(MODIFIED, None, b"d/3", ("content", "times"))]


def test_a_tree_made_anew_is_told_by_its_files() -> None:
    def again(tree: Tree) -> None:
        drop(tree, b"d")
        many(tree)
        tree.find(b"d/4").content = b"other"
        put(tree, b"d/new")
        drop(tree, b"d/5")

    assert told(trees(many, again)) == [
        (MODIFIED, None, b"d/4", ("content",)),
        (DELETED, None, b"d/5", ()),
        (ADDED, None, b"d/new", ()),
    ]


def test_a_file_copied_and_removed_was_renamed_by_its_bytes() -> None:
    def move(tree: Tree) -> None:
        put(tree, b"moved", drop(tree, b"d/3").content, mode=0o600)

    changes = trees(many, move)
    assert told(changes) == [(RENAMED, b"d/3", b"moved", ("mode",))]
    assert changes[0].is_copy


def test_of_files_with_equal_bytes_those_of_one_name_belong_together() -> None:
    def build(tree: Tree) -> None:
        put(tree, b"x", None)
        put(tree, b"x/1", b"same")
        put(tree, b"x/2", b"same")

    def move(tree: Tree) -> None:
        drop(tree, b"x")
        put(tree, b"y", None)
        put(tree, b"y/2", b"same")
        put(tree, b"y/0", b"same")

    assert told(trees(build, move)) == [
        (DELETED, None, b"x", ()),
        (ADDED, None, b"y", ()),
        (RENAMED, b"x/1", b"y/0", ()),
        (RENAMED, b"x/2", b"y/2", ()),
    ]


def test_empty_files_say_nothing_of_each_other() -> None:
    def move(tree: Tree) -> None:
        drop(tree, b"old")
        put(tree, b"new", b"")

    changes = trees(lambda tree: put(tree, b"old", b""), move)
    assert told(changes) == [(ADDED, None, b"new", ()), (DELETED, None, b"old", ())]


def test_two_files_that_changed_places_were_renamed() -> None:
    def swap(tree: Tree) -> None:
        one, two = drop(tree, b"d/1"), drop(tree, b"d/2")
        link(tree, b"d/1", two)
        link(tree, b"d/2", one)

    assert told(trees(many, swap)) == [
        (RENAMED, b"d/2", b"d/1", ()),
        (RENAMED, b"d/1", b"d/2", ()),
    ]


def test_a_file_in_the_place_of_a_directory_is_another_thing() -> None:
    def replace(tree: Tree) -> None:
        drop(tree, b"empty")
        put(tree, b"empty", b"now a file")

    changes = trees(lambda tree: put(tree, b"empty", None), replace)
    assert told(changes) == [(ADDED, None, b"empty", ()), (DELETED, None, b"empty", ())]


def test_links_come_and_go_without_their_file() -> None:
    changes = trees(many, lambda tree: link(tree, b"hard", tree.find(b"d/1")))
    assert told(changes) == [(ADDED, None, b"hard", ())] and changes[0].is_link

    def build(tree: Tree) -> None:
        link(tree, b"hard", put(tree, b"first"))

    changes = trees(build, lambda tree: drop(tree, b"first"))
    assert told(changes) == [(DELETED, None, b"first", ())] and changes[0].is_link


def test_a_file_of_several_links_is_modified_at_each() -> None:
    def build(tree: Tree) -> None:
        link(tree, b"hard", put(tree, b"first"))

    def change(tree: Tree) -> None:
        tree.find(b"first").content = b"z"

    assert told(trees(build, change)) == [
        (MODIFIED, None, b"first", ("content",)),
        (MODIFIED, None, b"hard", ("content",)),
    ]


def test_times_of_a_directory_are_noise_and_those_of_a_file_are_not() -> None:
    def touch(tree: Tree) -> None:
        tree.find(b"d").mtime_ns = tree.find(b"d/1").mtime_ns = tree.root.mtime_ns = 5

    changes = trees(many, touch)
    assert [(c.path, c.is_noise) for c in changes] == [(b"", True), (b"d", True), (b"d/1", False)]


# --- paths


def test_paths_select_what_is_at_or_below_them_at_either_point() -> None:
    def change(tree: Tree) -> None:
        link(tree, b"out", drop(tree, b"d/1"))
        tree.find(b"d/2").content = b"z"
        put(tree, b"dd")

    changes = trees(many, change)
    assert [c.path for c in treediff.select(changes, [b"d"])] == [b"d/2", b"out"]
    assert [c.path for c in treediff.select(changes, [b"dd", b"out"])] == [b"dd", b"out"]
    assert treediff.select(changes, []) == treediff.select(changes, [b""]) == changes


def test_a_path_was_moved_with_the_directory_above_it() -> None:
    changes = trees(many, lambda tree: link(tree, b"e", drop(tree, b"d")))
    assert treediff.select(changes, [b"e/3"]) == treediff.select(changes, [b"d/3"]) == changes
    assert treediff.select(changes, [b"dx"]) == []


# --- records that are none


def test_damaged_records_are_an_error_and_nothing_else() -> None:
    tree = Tree()
    put(tree, b"d", None)
    put(tree, b"d/f")
    good = tree.records()
    breaks: tuple[Callable[[Rows], object], ...] = (
        lambda rows: rows.inodes.update({keys.pack_u64(3): b"short"}),
        lambda rows: rows.inodes.pop(keys.pack_u64(3)),
        lambda rows: rows.inodes.pop(keys.pack_u64(2)),
        lambda rows: rows.dentries.update({keys.dentry_key(9, b"lost"): keys.pack_u64(3)}),
    )
    for break_it in breaks:
        rows = copy.deepcopy(good)
        break_it(rows)
        with pytest.raises(FormatError):
            compare(Tree().records(), rows)


def test_a_cycle_of_directories_ends() -> None:
    tree = Tree()
    put(tree, b"d", None)
    put(tree, b"d/e", None)
    put(tree, b"d/e/f")
    rows = tree.records()
    rec = decode_inode(2, rows.inodes[keys.pack_u64(2)])
    rec.parent = 3
    rows.inodes[keys.pack_u64(2)] = rec.encode()
    with pytest.raises(FormatError, match="nowhere"):
        compare(Tree().records(), rows)


def test_a_huge_file_of_holes_costs_what_it_holds() -> None:
    tree = Tree()
    put(tree, b"huge")
    rows = tree.records()
    rec = decode_inode(2, rows.inodes[keys.pack_u64(2)])
    rec.size = 8 << 40
    rows.inodes[keys.pack_u64(2)] = rec.encode()
    last = (rec.size - 1) // EXTENT_BYTES
    loc = Location(BLOB_BIT, 0, 1, xxhash.xxh3_128_digest(b"!"))
    rows.chunks[keys.chunk_key(2, last)] = encode_location(loc)
    side = TreeView(rows)
    assert [index for index, _ in side.places(rec)] == [0, last]
