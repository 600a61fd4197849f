"""The state of one repository as a commit: what no ref holds, beside what refs do (manifest.py).

Invariants
1. Objects that git's own files name by their full names (reflogs, stash, a rebase under way, …)
   are kept when they exist, whatever file names them.
2. What can't be kept is told, never silently missing: `left_out` of the manifest.

Called by snapshot.git.making.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from s3ws_fs.snapshot.git import worktree
from s3ws_fs.snapshot.git.find import BARE, WORKTREE, Repository
from s3ws_fs.snapshot.git.manifest import (
    KEEP_PREFIX,
    LEFT_OUT_MAX,
    OUR_REFS,
    STATE_REF,
    WORKTREE_REF,
    Manifest,
)
from s3ws_fs.snapshot.git.memory import Seen
from s3ws_fs.snapshot.git.objects import FILE, GITLINK, TREE, ObjectWriter
from s3ws_fs.snapshot.git.running import Git, lines_of
from s3ws_fs.snapshot.git.shadow import Shadow
from s3ws_fs.snapshot.git.tree import Places, join

GIT_FILE_BYTES_MAX: Final = 64 << 20
"""One of git's own files that is larger is left out."""
GIT_FILES_MAX: Final = 100_000
GIT_BYTES_MAX: Final = 1 << 30
SCANNED_BYTES_MAX: Final = 16 << 20
"""In a larger one of git's own files no object names are looked for."""
NAMED_MAX: Final = 200_000
"""Object names taken from git's own files."""

_NAMES: Final = re.compile(rb"(?<![0-9a-zA-Z])(?:[0-9a-f]{64}|[0-9a-f]{40})(?![0-9a-zA-Z])")

# Of the shared directory, what belongs to the first work tree alone.
_FIRST_TREE_ONLY: Final = re.compile(
    rb"HEAD|index|[A-Z_]+_HEAD|[A-Z_]+_MSG|AUTO_MERGE|MERGE_[A-Z]+|BISECT_[A-Z_]+|COMMIT_EDITMSG"
    rb"|(rebase-merge|rebase-apply|sequencer|worktrees)(/.*)?|logs/HEAD|sharedindex\..*"
    rb"|config\.worktree|info/sparse-checkout|(logs/)?refs/(bisect|worktree|rewritten)(/.*)?"
)
_OTHER_TREES_OWN: Final = re.compile(rb"worktrees/[^/]+/(index|sharedindex\..*)")
_ADMIN_ONLY: Final = (b"gitdir", b"commondir", b"locked")
_NOT_DATA: Final = re.compile(
    rb"objects(/.*)?|modules(/.*)?|.*\.lock|gc\.(pid|log)|fsmonitor--daemon(/.*)?|.*\.ipc"
    rb"|(.*/)?tmp_[^/]*"
)


@dataclass(slots=True)
class State:
    """What goes into the bundle: `refs` as its header names them, `tips` as packs them."""

    oid: str
    refs: list[tuple[str, str]]
    manifest: Manifest
    notes: list[str] = field(default_factory=list)


class Taking:
    """Takes the state of one repository; `git` reads its shadow and writes to `writer`."""

    def __init__(
        self,
        repository: Repository,
        places: Places,
        shadow: Shadow,
        git: Git,
        writer: ObjectWriter,
        scratch: Path,
        nested: frozenset[bytes],
        before: Seen,
    ) -> None:
        self._repository = repository
        self._places = places
        self._shadow = shadow
        self._git = git
        self._writer = writer
        self._scratch = scratch
        self._nested = nested
        self._before = before
        self.seen = Seen()
        self._named: set[str] = set()
        self.manifest = Manifest(
            repository.kind,
            (repository.path, repository.git_dir, repository.common_dir),
            shadow.object_format,
            is_partial=shadow.is_partial,
        )

    def take(self, *, with_named: bool = True) -> State:
        """The state. `with_named`: keep what only git's own files name.

        Raises GitError, FormatError, OSError.
        """
        git_tree = self._own_files()
        entries = self._index()
        kinds = self._kinds(entries)
        found = self._work_tree(entries, kinds)
        refs, tips, lost = self._refs()
        extra = [oid for oid in sorted(self._named) if with_named and oid in kinds]
        index_only = sorted(
            {
                e.oid
                for e in entries
                if e.mode != GITLINK and kinds.get(e.oid, ("", 0))[0] == "blob"
            }.union(self._undo_blobs(kinds)).difference(oid for _, oid in found.files.values())
        )
        self._tell(found)
        worktree_tree = self._writer.trees(found.files)
        entries_of_state = [
            (FILE, b"manifest.json", self._writer.data(self.manifest.encode())),
            (TREE, b"git", git_tree),
            (TREE, b"worktree", worktree_tree),
        ]
        blobs = index_only + [oid for oid in extra if kinds[oid][0] == "blob"]
        if blobs:
            tree = self._writer.tree((FILE, oid.encode(), oid) for oid in sorted({*blobs}))
            entries_of_state.append((TREE, b"index", tree))
        parents = dict.fromkeys(tips)
        parents.update(dict.fromkeys(oid for oid in extra if kinds[oid][0] == "commit"))
        oid = self._writer.commit(
            self._writer.tree(entries_of_state), parents, "state of the repository (s3ws-fs)"
        )
        keep = [
            (f"{KEEP_PREFIX}{name}", name) for name in extra if kinds[name][0] in ("tag", "tree")
        ]
        shown = []
        if self._repository.kind != BARE:
            head = [target for name, target in refs if name == "HEAD"]
            shown.append(
                (WORKTREE_REF, self._writer.commit(worktree_tree, head, "the work tree (s3ws-fs)"))
            )
        notes = [f"{name} names an object that is missing" for name in lost]
        return State(oid, [(STATE_REF, oid), *shown, *refs, *keep], self.manifest, notes)

    # --- git's own files -------------------------------------------------------------------

    def _own_files(self) -> str:
        """Take git's own files as blobs; the tree that holds them."""
        blobs: dict[str, None] = {}
        total = 0
        for name, path in self._own_paths():
            node = self._places.node(path)
            assert node is not None
            if node.is_link and name == b"HEAD":
                continue
            if not node.is_file:
                self.manifest.left_out.append((join(b".git", name), "not a regular file"))
                continue
            total += node.size
            if node.size > GIT_FILE_BYTES_MAX or total > GIT_BYTES_MAX:
                self.manifest.left_out.append(
                    (join(b".git", name), f"too large ({node.size >> 20} MiB)")
                )
                total -= node.size
                continue
            if len(self.manifest.git) >= GIT_FILES_MAX:
                self.manifest.left_out.append((join(b".git", name), "too many files"))
                break
            content = b"".join(self._places.read(path))
            oid = self._writer.data(content)
            blobs[oid] = None
            self.manifest.git[name] = (node.mode & 0o777, oid)
            if len(content) <= SCANNED_BYTES_MAX and name != b"index":
                self._scan(content)
        return self._writer.tree((FILE, oid.encode(), oid) for oid in blobs)

    def _scan(self, content: bytes) -> None:
        length = 40 if self._shadow.object_format == "sha1" else 64
        for found in _NAMES.finditer(content):
            if len(found[0]) == length and len(self._named) < NAMED_MAX:
                self._named.add(found[0].decode())

    def _own_paths(self) -> Iterator[tuple[bytes, bytes]]:
        """(name, path) of git's own files, as if the repository had one work tree only."""
        own, common = self._repository.git_dir, self._repository.common_dir
        is_linked = self._repository.kind == WORKTREE
        for name, path in self._files_below(common):
            if is_linked and _FIRST_TREE_ONLY.fullmatch(name):
                continue
            if not _OTHER_TREES_OWN.fullmatch(name):
                yield name, path
        if is_linked:
            for name, path in self._files_below(own):
                if name not in _ADMIN_ONLY:
                    yield name, path

    def _files_below(self, top: bytes) -> Iterator[tuple[bytes, bytes]]:
        skip = frozenset(join(top, name) for name in (b"objects", b"modules"))
        for path, node in self._places.walk(top, skip):
            name = path[len(top) + 1 :]
            if not node.is_dir and not _NOT_DATA.fullmatch(name):
                yield name, path

    # --- refs ------------------------------------------------------------------------------

    def _refs(self) -> tuple[list[tuple[str, str]], list[str], list[str]]:
        """Refs as the bundle names them, the commits they lead to, and those that are lost."""
        # Nothing more of an object is asked: one that is missing would end it.
        out = self._git.run("for-each-ref", "--format=%(objectname) %(refname)")
        refs: list[tuple[str, str]] = []
        lost: list[str] = []
        named = [
            line.decode(errors="surrogateescape").split(" ", 1)[::-1] for line in out.splitlines()
        ]
        found = self._look(oid for _, oid in named)
        for name, oid in named:
            if oid not in found:
                lost.append(name)
            elif not name.startswith(OUR_REFS):
                refs.append((name, oid))
        head = self._git.run("rev-parse", "--verify", "-q", "HEAD^{commit}", ok=(0, 1, 128))
        if head:
            refs.insert(0, ("HEAD", head.decode().strip()))
        return refs, self._commits([oid for _, oid in refs], found), lost

    def _commits(self, oids: list[str], found: dict[str, tuple[str, int]]) -> list[str]:
        """The commits that these are, or tags lead to."""
        tags = [oid for oid in oids if found.get(oid, ("", 0))[0] == "tag"]
        peeled = self._look(f"{tag}^{{}}" for tag in tags)
        commits = [oid for oid in oids if found.get(oid, ("commit", 0))[0] == "commit"]
        return commits + [oid for oid, (kind, _) in peeled.items() if kind == "commit"]

    def _look(self, oids: Iterable[str]) -> dict[str, tuple[str, int]]:
        """Type and size of the objects that exist."""
        out = self._git.run(
            "cat-file",
            "--batch-check=%(objectname) %(objecttype) %(objectsize)",
            "--buffer",
            stdin=lines_of(dict.fromkeys(oids)),
        )
        found = {}
        for line in out.splitlines():
            words = line.decode().split(" ")
            if len(words) == 3:
                found[words[0]] = (words[1], int(words[2]))
        return found

    def _kinds(self, entries: list[worktree.Entry]) -> dict[str, tuple[str, int]]:
        return self._look(
            [*self._named, *(entry.oid for entry in entries if entry.mode != GITLINK)]
        )

    # --- index and work tree ---------------------------------------------------------------

    def _index(self) -> list[worktree.Entry]:
        if b"index" not in self.manifest.git or self._repository.kind == BARE:
            return []
        self._index_file.parent.mkdir(parents=True, exist_ok=True)
        for name in self.manifest.git:
            if name == b"index" or name.startswith(b"sharedindex."):
                path = join(self._repository.git_dir, name)
                place = self._index_file.parent / name.decode()
                place.write_bytes(b"".join(self._places.read(path)))
                # A shared index is looked for in the git directory.
                if name != b"index":
                    (self._shadow.git_dir / name.decode()).write_bytes(place.read_bytes())
        return worktree.read_index(self._git, self._index_file)

    @property
    def _index_file(self) -> Path:
        return self._scratch / "index-of" / "index"

    def _undo_blobs(self, kinds: dict[str, tuple[str, int]]) -> set[str]:
        """Blobs by which a resolved conflict can be brought back."""
        if not self._index_file.exists():
            return set()
        out = self._git.run(
            "ls-files", "--resolve-undo", "-z", env={"GIT_INDEX_FILE": str(self._index_file)}
        )
        oids = {item.split(b" ")[1].decode() for item in out.split(b"\0") if item}
        return {oid for oid, (kind, _) in self._look(oids).items() if kind == "blob"}

    def _work_tree(
        self, entries: list[worktree.Entry], kinds: dict[str, tuple[str, int]]
    ) -> worktree.WorkTree:
        repository, places = self._repository, self._places
        if repository.kind == BARE:
            return worktree.WorkTree()
        index = places.node(join(repository.git_dir, b"index"))
        config = {name.lower(): value for name, value in self._shadow.config}
        looking = worktree.Looking(
            places,
            repository.path,
            self._writer,
            nested=self._nested,
            index_mtime_ns=0 if index is None else index.mtime_ns,
            converts=worktree.converts(places, repository.path, (repository.common_dir,), config),
            blob_sizes={oid: size for oid, (kind, size) in kinds.items() if kind == "blob"},
            before=self._before,
        )
        looking.tracked(entries)
        skeleton = self._scratch / "ignoring"
        looking.untracked(self._ignoring(skeleton), skeleton, entries)
        self.seen = looking.seen
        return looking.found

    def _ignoring(self, skeleton: Path) -> Git:
        """A git that knows nothing but which files are ignored."""
        git_dir = self._scratch / "ignoring.git"
        for name in ("objects", "refs", "info"):
            (git_dir / name).mkdir(parents=True, exist_ok=True)
        skeleton.mkdir(exist_ok=True)
        (git_dir / "HEAD").write_text("ref: refs/heads/none\n")
        exclude = self._places.content(
            join(self._repository.common_dir, b"info/exclude"), worktree.IGNORE_BYTES_MAX
        )
        (git_dir / "info" / "exclude").write_bytes(exclude or b"")
        return Git(git_dir, self._scratch, work_tree=skeleton)

    def _tell(self, found: worktree.WorkTree) -> None:
        manifest = self.manifest
        manifest.modes, manifest.empty_dirs = found.modes, found.empty_dirs
        left_out = manifest.left_out + found.left_out
        manifest.left_out, manifest.left_out_count = left_out[:LEFT_OUT_MAX], len(left_out)
        manifest.counts = {
            "modified": found.modified,
            "deleted": found.deleted,
            "untracked": found.untracked,
        }
