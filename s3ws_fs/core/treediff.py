"""What changed between two points of a workspace: their records compared.

Invariants
1. Pure. Records that do not decode, or directories that are nowhere, raise FormatError.
2. What is compared are links (directory, name). One that stands for the same inode at both points
   did not move, whatever became of the directories above: a moved tree is one change.
3. Links that went and links that came are matched in this order: the same inode (a rename); the
   same name in the same directory, or in one that took its place (another file in its stead); files
   of equal bytes whose inode is at one point only (a rename by copying). Each link is in one
   change at most; what is left was deleted or added.
4. Done to the tree before, the changes give the tree after: first all old paths are taken away,
   then the new ones come, from the root down.
5. Bytes are compared by the digests of their extents (treeview, invariant 3).
6. ctime is not compared: setting a thing to and fro leaves no difference.

Called by transfer and cli.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.treeview import Records, Table, TreeView, bytes_of
from s3ws_fs.core.types import ROOT_INO

ADDED: Final = "added"
DELETED: Final = "deleted"
MODIFIED: Final = "modified"
RENAMED: Final = "renamed"

CONTENT: Final = "content"
MODE: Final = "mode"
OWNER: Final = "owner"
TIMES: Final = "times"
XATTRS: Final = "xattrs"
ASPECTS: Final = (CONTENT, MODE, OWNER, TIMES, XATTRS)

Touched = Mapping[int, Collection[bytes]]
"""Keys by table: those that may differ."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `path` is where it is now, or where a deleted thing was.

    `before` and `after` are the inode at each point. `aspects`: of ASPECTS, what differs, of what
    was modified or renamed. `is_link`: a link came or went of an inode that is there at both
    points. `is_copy`: the rename was found by equal bytes.
    """

    kind: str
    path: bytes
    before: InodeRec | None = None
    after: InodeRec | None = None
    old_path: bytes | None = None
    aspects: tuple[str, ...] = ()
    is_link: bool = False
    is_copy: bool = False

    @property
    def rec(self) -> InodeRec:
        """The inode as it is now, or as it was before it was deleted."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def is_noise(self) -> bool:
        """Whether it is no more than a directory's times: they follow from what is in it."""
        return self.kind == MODIFIED and self.aspects == (TIMES,) and self.rec.is_dir


def differing(before: Records, after: Records) -> dict[int, set[bytes]]:
    """All keys whose values differ, by table."""
    found = {}
    for table, name in keys.TABLE_NAMES.items():
        old: Table = getattr(before, name)
        new: Table = getattr(after, name)
        came = {key for key, raw in new.items() if old.get(key) != raw}
        found[table] = came | {key for key in old if key not in new}
    return found


_Link = tuple[int, bytes]
"""Directory and name."""


@dataclass(slots=True)
class _Links:
    """Links that are at one point only, by inode."""

    by_ino: dict[int, set[_Link]] = field(default_factory=dict)

    def add(self, ino: int, link: _Link) -> None:
        self.by_ino.setdefault(ino, set()).add(link)

    def take(self, ino: int, link: _Link) -> None:
        self.by_ino[ino].discard(link)

    def names(self) -> dict[int, dict[bytes, int]]:
        """Inode by directory and name."""
        found: dict[int, dict[bytes, int]] = {}
        for ino, links in self.by_ino.items():
            for parent, name in links:
                found.setdefault(parent, {})[name] = ino
        return found


def compare(before: Records, after: Records, touched: Touched | None = None) -> list[Change]:
    """All changes, by path. Raises FormatError.

    `touched`: keys that may differ; all others are known to be equal.
    """
    return _Comparison(before, after, touched).run()


class _Comparison:
    def __init__(self, before: Records, after: Records, touched: Touched | None) -> None:
        self._before, self._after = TreeView(before), TreeView(after)
        self._touched = differing(before, after) if touched is None else touched
        self._gone, self._came = _Links(), _Links()
        self._changed = self._changed_inodes()
        self._found: list[Change] = []

    def run(self) -> list[Change]:
        self._collect_links()
        self._moved()
        self._replaced()
        self._copied()
        self._rest()
        self._in_place()
        return sorted(self._found, key=lambda each: (each.path, each.old_path or b"", each.kind))

    def _changed_inodes(self) -> dict[int, tuple[str, ...]]:
        """Inodes that are there at both points, with what differs in them."""
        inos = {keys.unpack_u64(key) for key in self._touched.get(keys.T_INODES, ())}
        contents = self._of(keys.T_CHUNKS, bytes_of)
        xattrs = self._of(keys.T_XATTRS, lambda raw: raw)
        found = {}
        for ino in inos | contents | xattrs:
            old, new = self._before.inode(ino), self._after.inode(ino)
            if old is not None and new is not None:
                found[ino] = _aspects(old, new, ino in contents, ino in xattrs)
        return found

    def _of(self, table: int, seen: Callable[[bytes | None], object]) -> set[int]:
        """Inodes with a touched key of a table behind which something else is now."""
        old: Table = getattr(self._before.records, keys.TABLE_NAMES[table])
        new: Table = getattr(self._after.records, keys.TABLE_NAMES[table])
        return {
            keys.unpack_u64(key)
            for key in self._touched.get(table, ())
            if seen(old.get(key)) != seen(new.get(key))
        }

    def _collect_links(self) -> None:
        old, new = self._before.records.dentries, self._after.records.dentries
        for key in self._touched.get(keys.T_DENTRIES, ()):
            was, now = old.get(key), new.get(key)
            if was == now:
                continue
            parent, _, name = keys.split_dentry_key(key)
            if was is not None:
                self._gone.add(keys.unpack_u64(was), (parent, name))
            if now is not None:
                self._came.add(keys.unpack_u64(now), (parent, name))

    def _moved(self) -> None:
        for ino in sorted(self._gone.by_ino.keys() & self._came.by_ino.keys()):
            for old, new in zip(
                sorted(self._gone.by_ino[ino]), sorted(self._came.by_ino[ino]), strict=False
            ):
                self._pair(ino, old, ino, new, self._changed.get(ino, ()))

    def _replaced(self) -> None:
        gone, came = self._gone.names(), self._came.names()
        pending = [(parent, parent) for parent in sorted(gone.keys() & came.keys())]
        while pending:
            old_parent, new_parent = pending.pop()
            was, now = gone.get(old_parent, {}), came.get(new_parent, {})
            for name in was.keys() & now.keys():
                old, new = self._old(was[name]), self._new(now[name])
                if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
                    continue
                aspects = self._compare(old, new)
                self._pair(old.ino, (old_parent, name), new.ino, (new_parent, name), aspects)
                if old.is_dir:
                    pending.append((old.ino, new.ino))

    def _copied(self) -> None:
        """Files that went and files that came, with equal bytes."""
        gone: dict[tuple[object, ...], list[_Link]] = {}
        for ino, link in _left(self._gone):
            rec = self._old(ino)
            if _is_worth(rec) and self._after.inode(ino) is None:
                gone.setdefault(self._before.content(rec), []).append(link)
        if not gone:
            return
        came: dict[tuple[object, ...], list[_Link]] = {}
        for ino, link in _left(self._came):
            rec = self._new(ino)
            if _is_worth(rec) and self._before.inode(ino) is None:
                content = self._after.content(rec)
                if content in gone:
                    came.setdefault(content, []).append(link)
        for content, links in came.items():
            for old, new in _by_name(gone[content], links):
                was, now = self._before.entry(*old), self._after.entry(*new)
                assert was is not None and now is not None
                aspects = self._compare(self._old(was), self._new(now))
                self._pair(was, old, now, new, aspects, is_copy=True)

    def _rest(self) -> None:
        for ino, link in _left(self._gone):
            is_link = self._after.inode(ino) is not None
            path = self._before.path(*link)
            self._found.append(Change(DELETED, path, before=self._old(ino), is_link=is_link))
        for ino, link in _left(self._came):
            is_link = self._before.inode(ino) is not None
            path = self._after.path(*link)
            self._found.append(Change(ADDED, path, after=self._new(ino), is_link=is_link))

    def _in_place(self) -> None:
        """Changed inodes, at each link that stayed."""
        for ino, aspects in self._changed.items():
            if not aspects:
                continue
            old, new = self._old(ino), self._new(ino)
            if ino == ROOT_INO:
                self._found.append(Change(MODIFIED, b"", old, new, None, aspects))
            for link in self._after.links(new):
                if self._before.entry(*link) == ino:
                    path = self._after.path(*link)
                    self._found.append(Change(MODIFIED, path, old, new, None, aspects))

    def _pair(
        self,
        was: int,
        old: _Link,
        now: int,
        new: _Link,
        aspects: tuple[str, ...],
        *,
        is_copy: bool = False,
    ) -> None:
        self._gone.take(was, old)
        self._came.take(now, new)
        is_replaced = was != now and not is_copy
        if is_replaced and not aspects:
            return
        kind = MODIFIED if is_replaced else RENAMED
        path = self._after.path(*new)
        old_path = None if is_replaced else self._before.path(*old)
        recs = (self._old(was), self._new(now))
        self._found.append(Change(kind, path, *recs, old_path, aspects, is_copy=is_copy))

    def _compare(self, old: InodeRec, new: InodeRec) -> tuple[str, ...]:
        content = self._before.content(old) != self._after.content(new)
        xattrs = self._before.xattrs(old.ino) != self._after.xattrs(new.ino)
        return _aspects(old, new, content, xattrs)

    def _old(self, ino: int) -> InodeRec:
        return _required(self._before, ino)

    def _new(self, ino: int) -> InodeRec:
        return _required(self._after, ino)


def _required(side: TreeView, ino: int) -> InodeRec:
    rec = side.inode(ino)
    if rec is None:
        raise FormatError(f"inode {ino}", "a name stands for it, but it is not there")
    return rec


def _left(links: _Links) -> Iterable[tuple[int, _Link]]:
    return sorted((ino, link) for ino, found in links.by_ino.items() for link in found)


def _is_worth(rec: InodeRec) -> bool:
    """Whether equal bytes say that it is the same file."""
    return stat.S_ISREG(rec.mode) and rec.size > 0


def _by_name(gone: list[_Link], came: list[_Link]) -> Iterator[tuple[_Link, _Link]]:
    """Pairs: those of one name first, then whatever is left, in order."""
    names: dict[bytes, list[_Link]] = {}
    for link in reversed(gone):
        names.setdefault(link[1], []).append(link)
    rest = []
    for link in came:
        same = names.get(link[1])
        if same:
            yield same.pop(), link
        else:
            rest.append(link)
    yield from zip(sorted(link for left in names.values() for link in left), rest, strict=False)


def _aspects(old: InodeRec, new: InodeRec, content: bool, xattrs: bool) -> tuple[str, ...]:
    is_other = (old.target, old.rdev) != (new.target, new.rdev)
    size = old.size != new.size and not old.is_dir
    differs = {
        CONTENT: content or is_other or size,
        MODE: old.mode != new.mode,
        OWNER: (old.uid, old.gid) != (new.uid, new.gid),
        TIMES: (old.mtime_ns, old.atime_ns) != (new.mtime_ns, new.atime_ns),
        XATTRS: xattrs,
    }
    return tuple(aspect for aspect in ASPECTS if differs[aspect])


def by_files(changes: Iterable[Change], before: TreeView, after: TreeView) -> list[Change]:
    """The same for a world without directories: what is not one, each with the path it had.

    A moved directory becomes moves of all that is in it. Raises FormatError.
    """
    found: dict[bytes, Change] = {}
    moved: list[Change] = []
    gone = []
    for change in changes:
        if change.rec.is_dir:
            moved += [change] if change.kind == RENAMED else []
        elif change.kind == DELETED:
            gone.append(change)
        else:
            found[change.path] = _from_where(change, before, after)
    for change in moved:
        for path, rec in after.below(change.rec.ino, change.path):
            if path not in found and not rec.is_dir:
                was = before.inode(rec.ino)
                stayed = Change(MODIFIED, path, was, rec)
                found[path] = _from_where(stayed, before, after)
    return sorted((*gone, *found.values()), key=lambda each: (each.path, each.kind))


def _from_where(change: Change, before: TreeView, after: TreeView) -> Change:
    """What stayed in a directory that moved was renamed, seen from the root."""
    if change.kind != MODIFIED or change.before is None:
        return change
    above, _, name = change.path.rpartition(b"/")
    parent = after.find(above, follow=False).ino
    if before.entry(parent, name) != change.before.ino:
        return change
    old_path = before.path(parent, name)
    if old_path == change.path:
        return change
    return replace(change, kind=RENAMED, old_path=old_path)


def is_below(path: bytes, wanted: Collection[bytes]) -> bool:
    """Whether a path is one of `wanted`, or below one; without any, every path is."""
    if not wanted or b"" in wanted:
        return True
    return any(path == each or path.startswith(each + b"/") for each in wanted)


def select(changes: Iterable[Change], wanted: Collection[bytes]) -> list[Change]:
    """Changes at or below some paths, at either point; also moves of a directory above one."""
    if not wanted:
        return list(changes)
    return [
        change
        for change in changes
        if is_below(change.path, wanted)
        or (change.old_path is not None and is_below(change.old_path, wanted))
        or (change.kind == RENAMED and _carries(change, wanted))
    ]


def _carries(change: Change, wanted: Collection[bytes]) -> bool:
    tops = (change.path, change.old_path or b"")
    return any(each.startswith(top + b"/") for each in wanted for top in tops if top)
