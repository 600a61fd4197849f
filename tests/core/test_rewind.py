"""The planner of a restore against a plain model: paths and what stands there, before and after.

Trees are made by the filesystem over a real cache, and "then" is its records at some moment. The
changes are put into the records as the cache would do it; the checker judges the result.
"""

from __future__ import annotations

import itertools
import stat
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import judge
from s3ws_fs.cache.tableset import TableSet, copy_out
from s3ws_fs.core import keys, rewind
from s3ws_fs.core.errors import FormatError, FsError, UserError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import Head, decode_head, decode_inode, encode_dirty
from s3ws_fs.core.rewind import Changes, Counters, nothing_kept, select
from s3ws_fs.core.rewind_records import plan
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from tests.support import caches

IDENTITY = Identity(prefix=caches.PREFIX, store="local:/somewhere")


@dataclass(frozen=True)
class Node:
    """What stands at a path, but for its number. `twins`: all paths of the same inode."""

    kind: int
    mode: int
    uid: int
    gid: int
    rdev: int
    mtime_ns: int
    size: int
    content: tuple[tuple[int, bytes], ...]
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    twins: frozenset[bytes]


Model = dict[bytes, Node]


class Maker:
    """A filesystem of which the records are taken now and then."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.fs = FileSystem(cache, quota_bytes=1 << 30, quota_inodes=100_000)

    def fresh(self) -> None:
        """An empty tree."""
        # Freed pages serve again after it.
        self.cache.sync_point()
        self.cache.clear_all()
        self.cache.set_head(Head(generation=0, next_ino=ROOT_INO + 1, used_bytes=0, inodes=0))
        self.fs = caches.filesystem(self.cache)

    def at(self, path: bytes) -> int | None:
        with self.cache.read() as view:
            return view.resolve(path)

    def make_dirs(self, path: bytes) -> int:
        ino = ROOT_INO
        for name in filter(None, path.split(b"/")):
            with self.cache.read() as view:
                found = view.dentry(ino, name)
            ino = self.fs.mkdir(ino, name, 0o755, caches.CRED).ino if found is None else found
        return ino

    def write(self, path: bytes, data: bytes, offset: int = 0) -> int:
        above, _, name = path.rpartition(b"/")
        parent = self.make_dirs(above)
        with self.cache.read() as view:
            ino = view.dentry(parent, name)
        if ino is None:
            ino = self.fs.create(parent, name, 0o644, caches.CRED).ino
        assert self.fs.write(ino, offset, data) == len(data)
        return ino

    def take(self) -> TableSet:
        """Seal all there is, and copy it out as the journal has it."""
        self.fs.drop_orphans_unmounted()
        caches.seal(self.cache)
        with self.cache.read() as view:
            return copy_out(view)

    def now(self) -> TableSet:
        """As it is: with orphans, and dirt."""
        with self.cache.read() as view:
            return copy_out(view)


@pytest.fixture(scope="module")
def maker() -> Iterator[Maker]:
    with (
        tempfile.TemporaryDirectory() as base,
        open_cache(
            Path(base),
            IDENTITY,
            quota_bytes=64 << 20,
            now_ns=itertools.count(1).__next__,
            boot_id="boot",
        ) as cache,
    ):
        yield Maker(cache)


def model(tables: TableSet) -> Model:
    """The tree by path, from the names alone."""
    children: dict[int, list[tuple[bytes, int]]] = {}
    for key, raw in tables.dentries.items():
        parent, _, name = keys.split_dentry_key(key)
        children.setdefault(parent, []).append((name, keys.unpack_u64(raw)))
    paths: dict[int, list[bytes]] = {ROOT_INO: [b""]}
    stack = [(b"", ROOT_INO)]
    while stack:
        path, ino = stack.pop()
        for name, child in children.get(ino, []):
            here = path + b"/" + name if path else name
            paths.setdefault(child, []).append(here)
            stack.append((here, child))
    found: Model = {}
    for ino, all_paths in paths.items():
        key = keys.pack_u64(ino)
        rec = decode_inode(ino, tables.inodes[key])
        chunks = sorted((k[8:], v[16:]) for k, v in tables.chunks.items() if k[:8] == key)
        node = Node(
            stat.S_IFMT(rec.mode),
            stat.S_IMODE(rec.mode),
            rec.uid,
            rec.gid,
            rec.rdev,
            rec.mtime_ns,
            rec.size,
            tuple((int.from_bytes(index, "big"), raw) for index, raw in chunks),
            rec.target,
            tuple(sorted((k[8:], v) for k, v in tables.xattrs.items() if k[:8] == key)),
            frozenset(all_paths),
        )
        found.update((path, node) for path in all_paths)
    return found


def dirty_chunks(tables: TableSet) -> set[bytes]:
    """Chunks whose extents tell what they hold, and their records do not."""
    return {key[1:] for key in tables.dirty if key[0] == keys.T_CHUNKS} & tables.extents


def apply(now: TableSet, changes: Changes) -> TableSet:
    """What the cache makes of it, on a copy."""
    made = deepcopy(now)
    head = decode_head(made.meta[b"head"])
    for table in keys.JOURNAL_TABLES:
        rows = made.journal_table(table)
        gone = changes.gone[table]
        assert len(set(gone)) == len(gone)
        for key in gone:
            del rows[key]
        rows.update(changes.puts[table])
        assert not (set(gone) & changes.puts[table].keys())
    made.orphans.update((key, b"") for key in changes.orphans)
    for key, new in changes.warm:
        assert key in made.extents
        made.extents.add(new)
    # Chunks are as sealed: their records tell all.
    for table in set(keys.JOURNAL_TABLES) - {keys.T_CHUNKS}:
        for key in (*changes.puts[table], *changes.gone[table]):
            made.dirty[keys.dirty_key(table, key)] = encode_dirty(head.generation + 1, 0)
    made.meta[b"head"] = Head(
        head.generation + 1,
        changes.next_ino,
        head.used_bytes + changes.new_bytes,
        head.inodes + changes.new_inodes,
    ).encode()
    return made


def restored(
    now: TableSet,
    then: TableSet,
    paths: tuple[bytes, ...] = (),
    is_kept: rewind.IsKept = nothing_kept,
) -> tuple[Changes, TableSet]:
    """Plan, apply, and judge."""
    head = decode_head(now.meta[b"head"])
    changes = plan(
        now,
        then,
        select(paths, is_kept),
        is_kept,
        Counters(head.next_ino, head.generation + 1, 10**15),
        warm=now.extents,
        dirty_chunks=dirty_chunks(now),
    )
    made = apply(now, changes)
    report = Report()
    judge(made, report, len(caches.PREFIX))
    # The mirror's rows are of no state at all here; extents without bytes can't be judged.
    codes = {finding.code for finding in report.findings} - {"mirror-path", "mirror-data"}
    assert not codes, [f for f in report.findings if f.code in codes]
    return changes, made


def same(one: Model, other: Model) -> bool:
    return one == other


# --- hypothesis -----------------------------------------------------------------------------------

NAMES = (b"a", b"b", b"k", b"dd")
names = st.sampled_from(NAMES)
some_paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
steps = st.tuples(
    st.sampled_from(
        ["write", "write", "mkdir", "unlink", "rmtree", "link", "rename", "rename", "chmod",
         "xattr", "unxattr", "symlink", "truncate", "fifo", "utime"]
    ),
    some_paths,
    some_paths,
    st.integers(0, 3),
)  # fmt: skip
many_steps = st.lists(steps, max_size=25)
Steps = list[tuple[str, bytes, bytes, int]]


def step(maker: Maker, what: str, path: bytes, other: bytes, number: int) -> None:
    """One change; what can't be done is left."""
    fs = maker.fs
    above, _, name = path.rpartition(b"/")
    to_above, _, to_name = other.rpartition(b"/")
    try:
        if what == "write":
            maker.write(path, bytes([65 + number]) * (number * 3 + 1), number * EXTENT_BYTES)
            return
        if what == "mkdir":
            maker.make_dirs(path)
            return
        parent, ino = maker.at(above), maker.at(path)
        if what == "symlink":
            fs.symlink(maker.make_dirs(above), name, b"to %d" % number, caches.CRED)
        elif what == "fifo":
            parent = maker.make_dirs(above)
            fs.mknod(parent, name, stat.S_IFIFO | 0o600, 0, caches.CRED)
        if parent is None or ino is None or ino == ROOT_INO:
            return
        if what == "unlink":
            fs.unlink(parent, name)
        elif what == "rmtree":
            remove_tree(maker, parent, name)
        elif what == "link":
            fs.link(ino, maker.make_dirs(to_above), to_name)
        elif what == "rename":
            fs.rename(parent, name, maker.make_dirs(to_above), to_name)
        elif what == "chmod":
            fs.setattr(ino, mode=0o600 + number)
        elif what == "utime":
            fs.setattr(ino, mtime_ns=number)
        elif what == "xattr":
            fs.setxattr(ino, b"user.%d" % number, bytes([number]))
        elif what == "unxattr":
            fs.removexattr(ino, b"user.%d" % number)
        elif what == "truncate":
            fs.setattr(ino, size=number)
    except FsError:
        return


def remove_tree(maker: Maker, parent: int, name: bytes) -> None:
    fs = maker.fs
    ino = fs.lookup(parent, name).ino
    if not stat.S_ISDIR(fs.getattr(ino).mode):
        fs.unlink(parent, name)
        return
    for entry in fs.readdir(ino, 0, 1000):
        remove_tree(maker, ino, entry.name)
    fs.rmdir(parent, name)


def two_states(
    maker: Maker, before: Steps, after: Steps, sealed: bool
) -> tuple[TableSet, TableSet]:
    maker.fresh()
    for item in before:
        step(maker, *item)
    then = maker.take()
    for item in after:
        step(maker, *item)
    return then, maker.take() if sealed else maker.now()


@settings(deadline=None)
@given(many_steps, many_steps, st.booleans())
def test_the_whole_tree_is_as_it_was_and_back_again(
    maker: Maker,
    before: Steps,
    after: Steps,
    sealed: bool,
) -> None:
    then, now = two_states(maker, before, after, sealed)
    snapshot = now if sealed else maker.take()
    _, made = restored(now, then)
    assert same(model(made), model(then))
    again, _ = restored(made, then)
    assert again.is_empty
    _, undone = restored(made, strip(snapshot))
    assert same(model(undone), model(snapshot))
    _, redone = restored(undone, strip(made))
    assert same(model(redone), model(then))


def strip(tables: TableSet) -> TableSet:
    """As a journal has it: no orphans."""
    made = deepcopy(tables)
    gone = set(made.orphans)
    for key in gone:
        del made.inodes[key]
    for rows in (made.chunks, made.xattrs):
        for key in [key for key in rows if key[:8] in gone]:
            del rows[key]
    return made


@settings(deadline=None)
@given(many_steps, many_steps, st.lists(some_paths, min_size=1, max_size=3))
def test_selected_paths_are_as_they_were_and_nothing_else_changed(
    maker: Maker,
    before: Steps,
    after: Steps,
    paths: list[bytes],
) -> None:
    then, now = two_states(maker, before, after, True)
    was, is_now = model(then), model(now)
    try:
        _, made = restored(now, then, tuple(paths))
    except UserError:
        assert any(refused(was, is_now, path) for path in paths)
        return
    found = model(made)

    def inside(path: bytes) -> bool:
        return any(path == top or path.startswith(top + b"/") for top in paths)

    above = {top[:at] for top in paths for at in range(len(top)) if top[at : at + 1] == b"/"} | {
        b""
    }
    expected = {path for path in was if inside(path)} | {
        path for path in is_now if not inside(path)
    }
    assert found.keys() - expected <= above and expected <= found.keys()
    for path, node in found.items():
        source = was[path] if inside(path) or path not in is_now else is_now[path]
        assert (node.kind, node.mode, node.uid, node.gid) == (
            source.kind, source.mode, source.uid, source.gid,
        )  # fmt: skip
        assert (node.content, node.target, node.xattrs, node.size) == (
            source.content, source.target, source.xattrs, source.size,
        )  # fmt: skip
        if path not in above:
            assert node.mtime_ns == source.mtime_ns
        mine = inside(path)
        assert {twin for twin in node.twins if inside(twin) == mine} == {
            twin for twin in source.twins if inside(twin) == mine
        }


def refused(was: Model, is_now: Model, path: bytes) -> bool:
    """Whether a path is nowhere, or below something that is no directory now."""
    if path not in was and path not in is_now:
        return True
    tops = [path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"]
    return any(top in is_now and is_now[top].kind != stat.S_IFDIR for top in tops)


def is_k(path: bytes, _: bool) -> bool:
    return b"k" in path.split(b"/")


@settings(deadline=None)
@given(many_steps, many_steps)
def test_kept_names_stay(
    maker: Maker,
    before: Steps,
    after: Steps,
) -> None:
    # Without moves of directories a kept name is at its path, so that the model is plain.
    still = [item for item in after if item[0] != "rename"]
    then, now = two_states(maker, before, still, True)
    was, is_now = model(then), model(now)
    _, made = restored(now, then, (), is_k)
    found = model(made)
    assert {path: tidy(node) for path, node in found.items()} == expect_kept(was, is_now)


def tidy(node: Node) -> tuple[object, ...]:
    return (node.kind, node.content, node.target, node.size)


def expect_kept(was: Model, is_now: Model) -> dict[bytes, tuple[object, ...]]:
    """Kept names of now, directories above them, and then for the rest."""

    def blocked(path: bytes) -> bool:
        # Then had something that is no directory above it, which was not kept itself.
        files = {cut for cut in cuts_of(path) if cut in was and was[cut].kind != stat.S_IFDIR}
        return any(not is_k(cut, True) for cut in files)

    stays = {path for path in is_now if is_k(path, True) and not blocked(path)}
    for path in list(stays):
        stays.update(path[:at] for at in range(len(path)) if path[at : at + 1] == b"/")
    tops = {path for path in stays if is_k(path, True)}
    result = {}
    for path, node in was.items():
        parts = path.split(b"/")
        top = next(
            (b"/".join(parts[: n + 1]) for n, part in enumerate(parts) if part == b"k"), None
        )
        if top is None or top not in tops:
            result[path] = tidy(node)
    for path in stays:
        if path not in result or is_k(path, True):
            result[path] = tidy(is_now[path])
    return result


@settings(deadline=None)
@given(many_steps, many_steps)
def test_kept_names_never_vanish_whatever_is_moved(
    maker: Maker,
    before: Steps,
    after: Steps,
) -> None:
    then, now = two_states(maker, before, after, True)
    _, made = restored(now, then, (), is_k)
    is_now, found, was = model(now), model(made), model(then)
    files = {path for path, node in was.items() if node.kind != stat.S_IFDIR}
    kept = {tidy(node) for path, node in is_now.items() if is_k(path, True)}
    if not any(cut in files for path in is_now for cut in cuts_of(path)):
        assert kept <= {tidy(node) for node in found.values()}


def cuts_of(path: bytes) -> Iterator[bytes]:
    yield from (path[:at] for at in range(len(path)) if path[at : at + 1] == b"/")


# --- single rules -----------------------------------------------------------------------------


def numbers(tables: TableSet) -> dict[bytes, int]:
    """Inode numbers by path."""
    found: dict[bytes, int] = {}
    stack = [(b"", ROOT_INO)]
    while stack:
        path, ino = stack.pop()
        found[path] = ino
        for key, raw in tables.dentries.items():
            parent, _, name = keys.split_dentry_key(key)
            if parent == ino:
                stack.append((path + b"/" + name if path else name, keys.unpack_u64(raw)))
    return found


def test_numbers_stay_where_bytes_do(maker: Maker) -> None:
    maker.fresh()
    for path in (b"d/same", b"d/other", b"moved/x"):
        maker.write(path, path)
    then = maker.take()
    maker.fs.rename(ROOT_INO, b"moved", maker.make_dirs(b"d"), b"inside")
    maker.fs.setattr(maker.write(b"d/other", b"changed"), mode=0o600)
    maker.fs.setattr(maker.at(b"d/same") or 0, mode=0o600)
    _, made = restored(maker.take(), then)
    before, after = numbers(then), numbers(made)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {b"d/other"}


def test_what_was_made_anew_with_the_same_bytes_is_taken_for_it(maker: Maker) -> None:
    maker.fresh()
    maker.write(b"d/file", b"bytes")
    then = maker.take()
    remove_tree(maker, ROOT_INO, b"d")
    maker.write(b"d/file", b"bytes")
    now = maker.take()
    changes, made = restored(now, then)
    assert changes.new_inodes == 0 and not changes.orphans
    assert numbers(made) == numbers(now) and model(made) == model(then)


def test_warm_bytes_go_over_up_to_a_limit(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.fresh()
    maker.write(b"file", bytes(3 * EXTENT_BYTES))
    then = maker.take()
    maker.write(b"file", b"x", 0)
    now = maker.take()
    changes, _ = restored(now, then)
    assert [int.from_bytes(new[8:], "big") for _, new in changes.warm] == [1, 2]
    monkeypatch.setattr("s3ws_fs.core.rewind_records.WARM_BYTES_MAX", EXTENT_BYTES)
    changes, _ = restored(now, then)
    assert [int.from_bytes(new[8:], "big") for _, new in changes.warm] == [1]


def test_a_named_kept_path_goes_back(maker: Maker) -> None:
    maker.fresh()
    maker.write(b"a/k/file", b"then")
    then = maker.take()
    maker.write(b"a/k/file", b"now!")
    now = maker.take()
    changes, _ = restored(now, then, (), is_k)
    assert changes.is_empty
    _, made = restored(now, then, (b"a/k",), is_k)
    assert model(made) == model(then)


def test_limits_of_a_selection_and_of_a_summary() -> None:
    many = [b"p%d" % number for number in range(rewind.PATHS_MAX)]
    assert len(select(many, nothing_kept).names) == rewind.PATHS_MAX
    with pytest.raises(UserError, match="more than"):
        select([*many, b"one more"], nothing_kept)
    with pytest.raises(UserError, match=r"'\.\.'"):
        select([b"a/../b"], nothing_kept)
    listed = rewind.Listed()
    for number in range(rewind.PATHS_LISTED_MAX + 1):
        listed.add(b"%d" % number)
    assert listed.count == rewind.PATHS_LISTED_MAX + 1
    assert len(listed.paths) == rewind.PATHS_LISTED_MAX
    long = rewind.Listed()
    for _ in range(100):
        long.add(bytes(4096))
    assert long.count == 100
    assert sum(map(len, long.paths)) <= rewind.LISTED_BYTES_MAX


def test_a_name_without_a_record_is_damage(maker: Maker) -> None:
    maker.fresh()
    ino = maker.write(b"file", b"then")
    then = maker.take()
    maker.write(b"file", b"now!")
    now = maker.now()
    del then.inodes[keys.pack_u64(ino)]
    with pytest.raises(FormatError, match="no record"):
        restored(now, then)


def test_a_directory_at_two_places_is_damage(maker: Maker) -> None:
    maker.fresh()
    ino = maker.make_dirs(b"a/b")
    then = maker.take()
    remove_tree(maker, ROOT_INO, b"a")
    now = maker.take()
    # It would never come to an end.
    then.dentries[keys.dentry_key(ino, b"again")] = keys.pack_u64(ino)
    with pytest.raises(FormatError, match="two places"):
        restored(now, then)
