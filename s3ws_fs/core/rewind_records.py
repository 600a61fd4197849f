"""Putting a tree back, second half: the records that make the layout true. Pure.

Which names come and go is told by comparing each directory's names of the end with those of now;
from that follow links, link counts and who is an orphan.

Invariants
1. A record is put only when it changes; then its ctime is now.
2. What is dirty as an inode is all the mirror looks at: whatever gains or loses a name is put.
3. Inodes that are in `now` and in no name of the end are orphans; nothing is ever deleted here.

Called by transfer (in the worker).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.limits import LINKS_MAX
from s3ws_fs.core.records import InodeRec, decode_inode, relinked
from s3ws_fs.core.rewind import (
    WARM_BYTES_MAX,
    Changes,
    Counters,
    IsKept,
    Selection,
    Tables,
)
from s3ws_fs.core.rewind_tree import (
    REGULAR,
    ROOT,
    SYMLINK,
    Layout,
    Place,
    Planner,
    Side,
    Wanted,
    join,
    kind,
    same_attributes,
)

_DATA_GEN: Final = slice(64, 72)
_NLINK: Final = slice(12, 16)
_SIZE: Final = slice(24, 32)
_ALLOC: Final = slice(32, 40)
_SIZE_AND_ALLOC: Final = slice(24, 40)
_SAME_BYTES: Final = slice(16, 36)
"""Of a chunk record: length and digest."""
_EMPTY: Final = b""
_NOWHERE: Final = bytes(8)


def plan(
    now: Tables,
    then: Tables,
    selection: Selection,
    is_kept: IsKept,
    counters: Counters,
    *,
    warm: frozenset[bytes] | set[bytes] = frozenset(),
    dirty_chunks: frozenset[bytes] | set[bytes] = frozenset(),
) -> Changes:
    """What makes `now` as it was `then`.

    `warm` are the keys of now's warm extents, `dirty_chunks` those of the chunks whose records do
    not tell what the extent holds. Raises UserError (a path that was never there), FormatError.
    """
    tree = Planner(now, then, selection, is_kept, counters)
    tree.run()
    return _Records(tree, counters, warm, dirty_chunks).make()


class _Records:
    def __init__(
        self,
        tree: Planner,
        counters: Counters,
        warm: frozenset[bytes] | set[bytes],
        dirty_chunks: frozenset[bytes] | set[bytes],
    ) -> None:
        self._tree = tree
        self._now: Side = tree.now
        self._then: Side = tree.then
        self._layout: Layout = tree.layout
        self._counters = counters
        self._warm = warm
        self._warm_left_bytes = WARM_BYTES_MAX
        self._dirty_inos = {key[:8] for key in dirty_chunks}
        self._dirty_chunks = dirty_chunks
        self.changes = Changes()
        self._gained: dict[bytes, list[Place]] = {}
        self._lost: dict[bytes, list[Place]] = {}
        self._file_from: dict[bytes, bytes] = {}
        """File of the end -> file of then whose attributes it gets."""
        self._claimed: set[bytes] = set()
        self._new_dirs: set[bytes] = set()

    def make(self) -> Changes:
        """All changes. Raises FormatError."""
        self._settle_files()
        self._compare_names()
        for ino in self._touched_files():
            self._file(ino)
        for ino in self._touched_dirs():
            self._directory(ino)
        changes = self.changes
        changes.next_ino = self._tree.next_ino
        changes.summary.kept = self._layout.kept
        return changes

    # --- which file stands for which of then ------------------------------------------------------

    def _settle_files(self) -> None:
        wanted = self._layout.wanted
        own = {then for then in wanted if self._keeps_number(then, wanted[then])}
        self._claimed.update(own)
        for then, names in wanted.items():
            ino = then if then in own else self._stand_in(then, names) or self._new_file(then)
            self._file_from[ino] = then
            for name in names:
                self._layout.entries[name.place[0]][name.place[1]] = ino

    def _keeps_number(self, then: bytes, names: list[Wanted]) -> bool:
        """Rule 2: it lives and has the same bytes; and rule 3."""
        now = self._now
        if not now.lives(then):
            return False
        raw, was = now.raw(then), self._then.raw(then)
        if kind(raw) != kind(was) or raw[_DATA_GEN] != was[_DATA_GEN]:
            return False
        if raw[16:24] != was[16:24] or (kind(raw) == SYMLINK and _target(raw) != _target(was)):
            return False
        return self._may_have(then, then, names)

    def _may_have(self, ino: bytes, then: bytes, names: list[Wanted]) -> bool:
        """Rule 3: whether a file of now may get these names, and the attributes of then."""
        staying = [place for place in self._now.places(ino) if self._tree.stays(place)]
        if not staying:
            return True
        if len(staying) + len(names) > LINKS_MAX:
            return False
        same = same_attributes(self._now.raw(ino), self._then.raw(then))
        return same and self._now.xattrs(ino) == self._then.xattrs(then)

    def _stand_in(self, then: bytes, names: list[Wanted]) -> bytes | None:
        """A file that stands at one of the names and has exactly the bytes of then."""
        for name in names:
            ino = name.stood
            if ino is None or ino in self._claimed or not self._has_bytes_of(ino, then):
                continue
            if self._may_have(ino, then, names):
                self._claimed.add(ino)
                return ino
        return None

    def _has_bytes_of(self, ino: bytes, then: bytes) -> bool:
        raw, was = self._now.raw(ino), self._then.raw(then)
        if kind(raw) != kind(was) or raw[_SIZE_AND_ALLOC] != was[_SIZE_AND_ALLOC]:
            return False
        if raw[16:24] != was[16:24] or ino in self._dirty_inos:
            return False
        if kind(raw) != REGULAR:
            return _target(raw) == _target(was)
        have, had = self._now.chunks(ino), self._then.chunks(then)
        return len(have) == len(had) and all(
            index == other and chunk[_SAME_BYTES] == same[_SAME_BYTES]
            for (index, chunk), (other, same) in zip(have, had, strict=True)
        )

    def _new_file(self, then: bytes) -> bytes:
        ino = self._tree.new_ino()
        changes = self.changes
        was = self._then.raw(then)
        changes.new_inodes += 1
        if kind(was) == REGULAR:
            changes.new_bytes += int.from_bytes(was[_ALLOC], "big")
            changes.summary.bytes_back += int.from_bytes(was[_SIZE], "big")
        chunks = changes.puts[keys.T_CHUNKS]
        for index, raw in self._then.chunks(then):
            chunks[ino + index] = raw
        xattrs = changes.puts[keys.T_XATTRS]
        for name, value in self._then.xattrs(then).items():
            xattrs[ino + name] = value
        self._keep_warm(ino, then)
        return ino

    def _keep_warm(self, ino: bytes, then: bytes) -> None:
        """Rule 7: extents that are warm in what stands there, or in what it was."""
        if not self._warm:
            return
        stood = (name.stood for name in self._layout.wanted[then] if name.stood is not None)
        for source in dict.fromkeys((then, *stood)):
            chunks = self._now.chunks(source)
            if not chunks:
                continue
            have = dict(chunks)
            for index, raw in self._then.chunks(then):
                key, there = source + index, have.get(index)
                if there is None or there[_SAME_BYTES] != raw[_SAME_BYTES]:
                    continue
                if key not in self._warm or key in self._dirty_chunks:
                    continue
                length = int.from_bytes(raw[16:20], "big")
                if length > self._warm_left_bytes:
                    return
                self._warm_left_bytes -= length
                self.changes.warm.append((key, ino + index))

    # --- names -----------------------------------------------------------------------------------

    def _compare_names(self) -> None:
        now, layout, summary = self._now, self._layout, self.changes.summary
        for ino, entries in layout.entries.items():
            old = now.names.get(ino, {})
            path = layout.paths[ino]
            if not now.is_dir(ino):
                self._new_dirs.add(ino)
            for name, child in old.items():
                if name not in entries:
                    self._lose(ino, name, child)
                    summary.deleted.add(join(path, name))
            for name, child in entries.items():
                before = old.get(name)
                if before == child:
                    continue
                self._gain(ino, name, child)
                if before is not None:
                    self._lost.setdefault(before, []).append((ino, name))
                    summary.changed.add(join(path, name))
                elif child in self._file_from or child in layout.made_from:
                    summary.added.add(join(path, name))
        self._lose_all()

    def _lose_all(self) -> None:
        """Directories that go lose all names, and with them what is below and has no other."""
        now, layout = self._now, self._layout
        going = [(ino, self._tree.region[ino]) for ino in layout.gone_dirs]
        gone = set(layout.gone_dirs)
        for ino, places in self._lost.items():
            if now.is_dir(ino) and ino not in self._gained and ino not in gone:
                gone.add(ino)
                going.append((ino, self._path(places[0])))
        # It grows meanwhile: what is below comes behind what is above.
        for ino, path in going:
            for name, child in now.names.get(ino, {}).items():
                below = join(path, name)
                self._lose(ino, name, child)
                if child not in self._gained:
                    self.changes.summary.deleted.add(below)
                    if now.is_dir(child) and child not in layout.paths and child not in gone:
                        gone.add(child)
                        going.append((child, below))

    def _gain(self, ino: bytes, name: bytes, child: bytes) -> None:
        self._gained.setdefault(child, []).append((ino, name))
        self.changes.puts[keys.T_DENTRIES][_dentry(ino, name)] = child

    def _lose(self, ino: bytes, name: bytes, child: bytes) -> None:
        self._lost.setdefault(child, []).append((ino, name))
        self.changes.gone[keys.T_DENTRIES].append(_dentry(ino, name))

    # --- files -------------------------------------------------------------------------------

    def _touched_files(self) -> Iterable[bytes]:
        touched = dict.fromkeys(self._file_from)
        for ino in (*self._lost, *self._gained):
            if not self._is_directory(ino):
                touched[ino] = None
        return touched

    def _is_directory(self, ino: bytes) -> bool:
        return self._now.is_dir(ino) or ino in self._layout.paths

    def _file(self, ino: bytes) -> None:
        then = self._file_from.get(ino)
        is_new = not self._now.lives(ino)
        lost, gained = self._lost.get(ino, ()), self._gained.get(ino, ())
        places = [*self._left(ino, lost), *gained]
        changed = is_new or bool(lost or gained)
        if then is not None and not is_new:
            changed = self._back_to(ino, then) or changed
        if len(places) > 1 or ino in self._now.links:
            self._links(ino, places)
        if not changed:
            return
        raw = self._then.raw(then) if then is not None else self._now.raw(ino)
        self.changes.puts[keys.T_INODES][ino] = self._with_places(
            raw, places, None if is_new else self._now.raw(ino)
        )
        if not places:
            self._orphan(ino, raw)
        elif then is not None and not is_new and not gained:
            self.changes.summary.changed.add(self._path(places[0]))

    def _left(self, ino: bytes, lost: Sequence[Place]) -> list[Place]:
        """The names of now that a file keeps. Counting is enough for most that go."""
        if not self._now.lives(ino) or self._now.raw(ino)[_NLINK] == len(lost).to_bytes(4, "big"):
            return []
        places = self._now.places(ino)
        return [place for place in places if place not in lost] if lost else places

    def _with_places(self, raw: bytes, places: Sequence[Place], stood: bytes | None) -> bytes:
        """A file's record with these names; `stood`: what it is now, if it lives."""
        counters = self._counters
        data_gen = counters.generation
        if stood is not None:
            data_gen = int.from_bytes(stood[_DATA_GEN], "big")
        parent, name = places[0] if len(places) == 1 else (_NOWHERE, _EMPTY)
        return relinked(
            raw,
            len(places),
            keys.unpack_u64(parent),
            name,
            ctime_ns=counters.now_ns,
            data_gen=data_gen,
        )

    def _back_to(self, ino: bytes, then: bytes) -> bool:
        """Put back the extended attributes of then; whether these, or any others, differed."""
        changed = not same_attributes(self._now.raw(ino), self._then.raw(then))
        have, had = self._now.xattrs(ino), self._then.xattrs(then)
        if have != had:
            changed = True
            puts, gone = self.changes.puts[keys.T_XATTRS], self.changes.gone[keys.T_XATTRS]
            puts.update(
                (ino + name, value) for name, value in had.items() if have.get(name) != value
            )
            gone += [ino + name for name in have if name not in had]
        return changed

    def _links(self, ino: bytes, places: list[Place]) -> None:
        """The table of links: of files with two or more names."""
        old = set(self._now.links.get(ino, ())) if self._now.lives(ino) else set()
        new = set(places) if len(places) > 1 else set()
        puts, gone = self.changes.puts[keys.T_LINKS], self.changes.gone[keys.T_LINKS]
        for parent, name in new - old:
            puts[ino + parent + name] = _EMPTY
        gone += [ino + parent + name for parent, name in old - new]

    def _path(self, place: Place) -> bytes:
        above = self._layout.paths.get(place[0])
        if above is None:
            above = self._tree.region.get(place[0], b"")
        return join(above, place[1])

    def _orphan(self, ino: bytes, raw: bytes) -> None:
        changes = self.changes
        changes.orphans.append(ino)
        if kind(raw) == REGULAR:
            changes.orphan_bytes += int.from_bytes(raw[_ALLOC], "big")
            changes.summary.bytes_gone += int.from_bytes(raw[_SIZE], "big")

    # --- directories -------------------------------------------------------------------------

    def _touched_dirs(self) -> Iterable[bytes]:
        layout, differ = self._layout, self._tree.differ
        touched = dict.fromkeys(layout.entries)
        for ino, then in layout.made_from.items():
            if ino != then or then in differ:
                touched[ino] = None
        for ino in (*self._lost, *self._gained):
            if self._is_directory(ino):
                touched[ino] = None
        return touched

    def _directory(self, ino: bytes) -> None:
        now, layout = self._now, self._layout
        then = layout.made_from.get(ino)
        is_new = not now.is_dir(ino)
        raw = self._then.raw(then) if then is not None else now.raw(ino)
        rec = decode_inode(keys.unpack_u64(ino), raw)
        entries = layout.entries.get(ino)
        moved = self._gained.get(ino, ())
        changed = bool(moved) or (entries is not None and entries != now.names.get(ino, {}))
        attributes = False
        if is_new:
            self.changes.new_inodes += 1
            rec.data_gen = self._counters.generation
            assert then is not None
            for name, value in self._then.xattrs(then).items():
                self.changes.puts[keys.T_XATTRS][ino + name] = value
        else:
            stands = decode_inode(0, now.raw(ino))
            rec.nlink, rec.data_gen = stands.nlink, stands.data_gen
            if then is not None:
                attributes = self._back_to(ino, then)
                if now.raw(ino)[:12] != raw[:12]:
                    self.changes.summary.changed.add(layout.paths[ino])
            elif entries is not None and changed:
                rec.mtime_ns = self._counters.now_ns
        self._set_place(ino, rec, moved)
        if ino in self._lost and not moved:
            # It went: with all its names.
            rec.nlink, rec.parent, rec.name = 0, 0, _EMPTY
            self._put_dir(ino, rec, True)
            self._orphan(ino, raw)
            return
        if entries is not None:
            rec.nlink = 2 + sum(map(self._is_directory, entries.values()))
            if rec.nlink > LINKS_MAX:
                raise FormatError(repr(layout.paths[ino]), "it would have too many directories")
        self._put_dir(ino, rec, changed or attributes or is_new)

    def _set_place(self, ino: bytes, rec: InodeRec, moved: Iterable[Place]) -> None:
        if ino == ROOT:
            rec.parent, rec.name = keys.unpack_u64(ROOT), _EMPTY
            return
        for parent, name in moved:
            rec.parent, rec.name = keys.unpack_u64(parent), name
            return
        (parent, name), *_ = self._now.places(ino)
        rec.parent, rec.name = keys.unpack_u64(parent), name

    def _put_dir(self, ino: bytes, rec: InodeRec, changed: bool) -> None:
        if changed:
            rec.ctime_ns = self._counters.now_ns
            self.changes.puts[keys.T_INODES][ino] = rec.encode()


def _dentry(ino: bytes, name: bytes) -> bytes:
    return ino + keys.pack_u64(keys.name_cookie(name)) + name


def _target(raw: bytes) -> bytes:
    return decode_inode(0, raw).target
