"""Putting a tree back, first half: which inode stands at which name in the end. Pure.

Inodes are handled by their keys (eight bytes), directories as dicts of names: so two directories
that are equal are told by one comparison, and only what differs is looked at name by name.

Invariants
1. `entries` has every directory whose names may change, with all its names in the end.
2. No directory is placed twice, nor below itself: what is placed follows the tree of then, and
   what stays hangs below what is placed.

Called by core.rewind_records.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.records import decode_inode
from s3ws_fs.core.rewind import (
    Counters,
    IsKept,
    Listed,
    Selection,
    Tables,
    in_the_way_error,
    missing_error,
)
from s3ws_fs.core.types import ROOT_INO

ROOT: Final = keys.pack_u64(ROOT_INO)
ROUNDS_MAX: Final = 4
"""How often the tree is laid out: again only when a directory counted on elsewhere was left."""

_DIRECTORY: Final = 0o4
REGULAR: Final = 0o10
SYMLINK: Final = 0o12
_NO_LINKS: Final = bytes(4)
_ATTRIBUTES: Final = (slice(0, 12), slice(16, 24), slice(40, 56))
"""Of an inode record: mode and owners, rdev, times but ctime."""

Names = dict[bytes, bytes]
"""Name -> key of an inode."""
Place = tuple[bytes, bytes]
"""Key of a directory, name in it."""


def kind(raw: bytes) -> int:
    """The file type of an inode record: st_mode >> 12."""
    return raw[2] >> 4


def is_dir(raw: bytes) -> bool:
    """Whether an inode record is a directory's."""
    return raw[2] >> 4 == _DIRECTORY


def same_attributes(one: bytes, other: bytes) -> bool:
    """Whether two inode records show the same, but for links, ctime and content."""
    return all(one[part] == other[part] for part in _ATTRIBUTES)


def join(path: bytes, name: bytes) -> bytes:
    """A path one name longer; b"" is the root."""
    return path + b"/" + name if path else name


class Side:
    """One of the two trees, by keys."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.inodes = tables.inodes
        self._dirs = {
            ino
            for ino, raw in tables.inodes.items()
            if raw[2] >> 4 == _DIRECTORY and raw[12:16] != _NO_LINKS
        }
        self.names: dict[bytes, Names] = {}
        for key, child in tables.dentries.items():
            self.names.setdefault(key[:8], {})[key[16:]] = child
        self.links: dict[bytes, list[Place]] = {}
        for key in tables.links:
            self.links.setdefault(key[:8], []).append((key[8:16], key[16:]))
        self._chunks: dict[bytes, list[tuple[bytes, bytes]]] | None = None
        self._xattrs: dict[bytes, dict[bytes, bytes]] | None = None

    def lives(self, ino: bytes) -> bool:
        """Whether there is such an inode, with a name."""
        raw = self.inodes.get(ino)
        return raw is not None and raw[12:16] != _NO_LINKS

    def is_dir(self, ino: bytes | None) -> bool:
        """Whether it is a directory of this tree."""
        return ino in self._dirs

    def raw(self, ino: bytes) -> bytes:
        """An inode's record. Raises FormatError."""
        raw = self.inodes.get(ino)
        if raw is None:
            raise FormatError(f"inode {keys.unpack_u64(ino)}", "it has a name, and no record")
        return raw

    def child(self, ino: bytes | None, name: bytes) -> bytes | None:
        """The inode that a name stands for."""
        return None if ino is None else self.names.get(ino, {}).get(name)

    def places(self, ino: bytes) -> list[Place]:
        """All names of a file, or the one of a directory."""
        raw = self.raw(ino)
        if raw[12:16] == _NO_LINKS:
            return []
        if not is_dir(raw) and ino in self.links:
            return self.links[ino]
        rec = decode_inode(0, raw)
        return [(keys.pack_u64(rec.parent), rec.name)]

    def chunks(self, ino: bytes) -> list[tuple[bytes, bytes]]:
        """(extent index, chunk record) of a file."""
        if self._chunks is None:
            self._chunks = {}
            for key, raw in self.tables.chunks.items():
                self._chunks.setdefault(key[:8], []).append((key[8:], raw))
        return self._chunks.get(ino, [])

    def xattrs(self, ino: bytes) -> dict[bytes, bytes]:
        """Extended attributes by name."""
        if self._xattrs is None:
            self._xattrs = {}
            for key, value in self.tables.xattrs.items():
                self._xattrs.setdefault(key[:8], {})[key[8:]] = value
        return self._xattrs.get(ino, {})


@dataclass(slots=True)
class Wanted:
    """A file of then, at one name of the end. `stood`: the file that stands there now."""

    place: Place
    stood: bytes | None


@dataclass(slots=True)
class Layout:
    """The tree of the end, save for the numbers of files."""

    entries: dict[bytes, Names] = field(default_factory=dict)
    """By directory; names of `wanted` are missing still."""
    made_from: dict[bytes, bytes] = field(default_factory=dict)
    """Directory of the end -> directory of then whose attributes it has."""
    paths: dict[bytes, bytes] = field(default_factory=dict)
    """Paths in the end of the directories of `entries` and `made_from`."""
    wanted: dict[bytes, list[Wanted]] = field(default_factory=dict)
    """By file of then."""
    gone_dirs: list[bytes] = field(default_factory=list)
    kept: Listed = field(default_factory=Listed)


@dataclass(slots=True)
class _Task:
    """A directory of the end to be laid out: from which of now, and from which of then."""

    ino: bytes
    sources: tuple[bytes, ...]
    then: bytes | None
    path: bytes
    selection: Selection


class Planner:
    """Lays out the end. After `run`: `layout`, `region`, `differ`, and who is inside."""

    def __init__(
        self,
        now: Tables,
        then: Tables,
        selection: Selection,
        is_kept: IsKept,
        counters: Counters,
    ) -> None:
        self.now, self.then = Side(now), Side(then)
        self.selection = selection
        self._is_kept = is_kept
        self.next_ino = counters.next_ino
        self._first_ino = counters.next_ino
        self.differ = self._differing()
        """Inodes of then whose record or extended attributes are others now."""
        self.region: dict[bytes, bytes] = {}
        """Directories of now that are to go back, with their paths."""
        self._spares: dict[bytes, Selection] = {}
        self._spared: set[Place] = set()
        self._selected: set[Place] = set()
        self.layout = Layout()
        self._placing: set[bytes] = set()
        self._husks: dict[bytes, bool] = {}

    def _differing(self) -> set[bytes]:
        now, then = self.now, self.then
        inodes = now.inodes
        found = {ino for ino, raw in then.inodes.items() if inodes.get(ino) != raw}
        attributes = now.tables.xattrs.items() ^ then.tables.xattrs.items()
        found.update(key[:8] for key, _ in attributes)
        return found

    def new_ino(self) -> bytes:
        """A number that no inode ever had."""
        self.next_ino += 1
        return keys.pack_u64(self.next_ino - 1)

    def run(self) -> None:
        """Find out where everything stands in the end. Raises UserError, FormatError."""
        self._placing = self._then_dirs()
        self._find_region()
        for _ in range(ROUNDS_MAX):
            self.next_ino = self._first_ino
            self.layout = Layout()
            self._husks = {}
            self._lay_out()
            placed = self.layout.made_from
            gone = [ino for ino in self.region if ino not in self.layout.paths]
            self.layout.gone_dirs = gone
            if self._placing.isdisjoint(gone):
                break
            # Then had them below what stays now: they are not placed, so they may be taken.
            for ino in self._placing.intersection(gone):
                self._ask_all(ino)
            self._placing.intersection_update(placed)

    # --- what of now may change ----------------------------------------------------------------

    def _find_region(self) -> None:
        now = self.now
        stack = [(ROOT, b"", self.selection)]
        while stack:
            ino, path, selection = stack.pop()
            if selection.is_whole:
                self.region[ino] = path
                self._spares[ino] = selection
                for name, child in now.names.get(ino, {}).items():
                    # Only where it matters: asking costs more than anything else here.
                    if now.is_dir(child):
                        below = join(path, name)
                        if not self._ask(ino, name, below, True, selection):
                            stack.append((child, below, selection))
                    elif self._is_other(ino, name, child):
                        self._ask(ino, name, join(path, name), False, selection)
                continue
            for name, sub in selection.names.items():
                found = now.child(ino, name)
                if sub.is_whole:
                    self._selected.add((ino, name))
                if found is not None and now.is_dir(found):
                    if sub.is_whole and self._ask(ino, name, join(path, name), True, sub):
                        continue
                    stack.append((found, join(path, name), sub))

    def _is_other(self, ino: bytes, name: bytes, child: bytes) -> bool:
        return (
            child in self.differ or ino not in self._placing or self.then.child(ino, name) != child
        )

    def _ask_all(self, ino: bytes) -> None:
        for name, child in self.now.names.get(ino, {}).items():
            if not self.now.is_dir(child):
                self._ask(ino, name, join(self.region[ino], name), False, self._spares[ino])

    def _ask(
        self, ino: bytes, name: bytes, path: bytes, is_dir: bool, selection: Selection
    ) -> bool:
        spared = selection.spares and self._is_kept(path, is_dir)
        if spared:
            self._spared.add((ino, name))
        return spared

    def stays(self, place: Place) -> bool:
        """Whether a name of now is left as it is: outside of the paths, or kept."""
        if place in self._spared:
            return True
        return place[0] not in self.region and place not in self._selected

    def has_name_that_stays(self, ino: bytes) -> bool:
        """Whether a file of now has one."""
        return any(self.stays(place) for place in self.now.places(ino))

    def _then_dirs(self) -> set[bytes]:
        then = self.then
        found: set[bytes] = set()
        stack: list[tuple[bytes, Selection]] = [(ROOT, self.selection)]
        while stack:
            ino, selection = stack.pop()
            if selection.is_whole:
                found.add(ino)
                for child in then.names.get(ino, {}).values():
                    if then.is_dir(child) and child not in found:
                        stack.append((child, selection))
                continue
            for name, sub in selection.names.items():
                step = then.child(ino, name)
                if step is not None and then.is_dir(step):
                    stack.append((step, sub))
        return found

    # --- the layout ----------------------------------------------------------------------------

    def _lay_out(self) -> None:
        then = ROOT if self.then.is_dir(ROOT) else None
        placed: set[bytes] = set()
        stack = [_Task(ROOT, (ROOT,), then, b"", self.selection)]
        while stack:
            task = stack.pop()
            if task.then in placed or task.ino in self.layout.paths:
                raise FormatError(f"directory {task.path!r}", "it stands at two places")
            if task.then is not None:
                placed.add(task.then)
            self.layout.paths[task.ino] = task.path
            if task.selection.is_whole:
                assert task.then is not None
                self.layout.made_from[task.ino] = task.then
                stack += self._whole(task, task.then)
            else:
                stack += self._above(task)

    def _is_equal(self, task: _Task, then: bytes) -> bool:
        if task.sources != (task.ino,) or task.ino != then:
            return False
        return self.now.names.get(then) == self.then.names.get(then)

    def _whole(self, task: _Task, then: bytes) -> Iterator[_Task]:
        """Lay out a directory that goes back with all that is in it."""
        names = self.then.names.get(then, {})
        entries: Names = {}
        is_equal = self._is_equal(task, then)
        for name, child in names.items():
            raw = self.then.raw(child)
            if is_equal and raw[2] >> 4 != _DIRECTORY and child not in self.differ:
                entries[name] = child
                continue
            place, stands = self._standing(task, name)
            if stands is not None and place in self._spared:
                self._keep(task, name, stands, entries, stands != child or child in self.differ)
                continue
            found = self._place(task, name, stands, child, entries)
            if found is not None:
                yield found
        for source in task.sources:
            for name, child in self.now.names.get(source, {}).items():
                if name not in names and name not in entries:
                    self._left_over(task, source, name, child, entries)
        if not (is_equal and entries == self.now.names.get(task.ino, {})):
            self.layout.entries[task.ino] = entries

    def _standing(self, task: _Task, name: bytes) -> tuple[Place, bytes | None]:
        for source in task.sources:
            found = self.now.child(source, name)
            if found is not None:
                return (source, name), found
        return (task.ino, name), None

    def _keep(self, task: _Task, name: bytes, child: bytes, entries: Names, is_other: bool) -> None:
        entries[name] = child
        if is_other:
            self.layout.kept.add(join(task.path, name))

    def _left_over(
        self, task: _Task, source: bytes, name: bytes, child: bytes, entries: Names
    ) -> None:
        """A name of now that then did not have: it goes, or stays if it is kept."""
        if (source, name) in self._spared:
            self._keep(task, name, child, entries, True)
        elif self.now.is_dir(child) and self._has_kept(child):
            entries[name] = child
            self._lay_out_husk(child, join(task.path, name))

    def _has_kept(self, ino: bytes) -> bool:
        """Whether a directory that would go holds kept names, at any depth."""
        if ino not in self.region or ino in self._placing:
            return False
        known = self._husks.get(ino)
        if known is not None:
            return known
        order, stack = [], [ino]
        while stack:
            at = stack.pop()
            order.append(at)
            for child in self.now.names.get(at, {}).values():
                if self.now.is_dir(child) and child in self.region and child not in self._placing:
                    stack.append(child)
        for at in reversed(order):
            self._husks[at] = any(
                (at, name) in self._spared or self._husks.get(child, False)
                for name, child in self.now.names.get(at, {}).items()
            )
        return self._husks[ino]

    def _lay_out_husk(self, ino: bytes, path: bytes) -> None:
        stack = [(ino, path)]
        while stack:
            at, here = stack.pop()
            self.layout.paths[at] = here
            entries = self.layout.entries[at] = {}
            for name, child in self.now.names.get(at, {}).items():
                if (at, name) in self._spared:
                    entries[name] = child
                    self.layout.kept.add(join(here, name))
                elif self.now.is_dir(child) and self._has_kept(child):
                    entries[name] = child
                    stack.append((child, join(here, name)))

    def _place(
        self, task: _Task, name: bytes, stands: bytes | None, child: bytes, entries: Names
    ) -> _Task | None:
        """A name of then: a directory is placed, a file noted as wanted here."""
        stood_dir = stands if stands is not None and self.now.is_dir(stands) else None
        if not is_dir(self.then.raw(child)):
            stood = None if stood_dir is not None else stands
            self.layout.wanted.setdefault(child, []).append(Wanted((task.ino, name), stood))
            return None
        ino, sources = self._directory(child, stood_dir)
        entries[name] = ino
        sub = task.selection if task.selection.is_whole else task.selection.names[name]
        return _Task(ino, sources, child, join(task.path, name), sub)

    def _directory(self, then: bytes, stands: bytes | None) -> tuple[bytes, tuple[bytes, ...]]:
        """The number of a directory of then in the end, and from which of now it has what stays."""
        is_free = stands is not None and stands in self.region and stands not in self._placing
        if then in self.region:
            if is_free and stands is not None:
                return then, (then, stands)
            return then, (then,)
        if is_free and stands is not None:
            return stands, (stands,)
        return self.new_ino(), ()

    def _above(self, task: _Task) -> Iterator[_Task]:
        """A directory above selected paths: nothing else of it changes."""
        source = task.sources[0] if task.sources else None
        entries = dict(self.now.names.get(source, {})) if source is not None else {}
        self.layout.entries[task.ino] = entries
        if source is None and task.then is not None:
            self.layout.made_from[task.ino] = task.then
        for name, sub in task.selection.names.items():
            path = join(task.path, name)
            stands = entries.get(name)
            was = self.then.child(task.then, name)
            if sub.is_whole:
                found = self._selected_name(task, name, path, stands, was, entries)
            else:
                found = self._step(task, name, path, stands, was, entries)
            if found is not None:
                yield found

    def _selected_name(
        self,
        task: _Task,
        name: bytes,
        path: bytes,
        stands: bytes | None,
        was: bytes | None,
        entries: Names,
    ) -> _Task | None:
        if stands is None and was is None:
            self._refuse_missing(path)
            return None
        entries.pop(name, None)
        if was is not None:
            place = (task.ino, name)
            if stands is not None and place in self._spared:
                entries[name] = stands
                return None
            return self._place(task, name, stands, was, entries)
        assert stands is not None
        self._left_over(task, task.ino, name, stands, entries)
        return None

    def _refuse_missing(self, path: bytes) -> None:
        if not self.selection.is_lenient:
            raise missing_error(path)

    def _step(
        self,
        task: _Task,
        name: bytes,
        path: bytes,
        stands: bytes | None,
        was: bytes | None,
        entries: Names,
    ) -> _Task | None:
        """One name down towards the selected paths."""
        selection = task.selection.names[name]
        then = was if self.then.is_dir(was) else None
        if stands is not None and self.now.is_dir(stands):
            return _Task(stands, (stands,), then, path, selection)
        first = join(path, next(iter(selection.names)))
        if then is None:
            self._refuse_missing(first)
            return None
        if stands is not None:
            raise in_the_way_error(first, path)
        entries[name] = ino = self.new_ino()
        return _Task(ino, (), then, path, selection)
