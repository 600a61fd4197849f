"""Bundles of all repositories of one point in time: what the snapshot child does for git.

    {state_dir}/{digest of the path}/    one repository: its shadow, and
        known.json      what stands in the bucket: fingerprint, state, and the whole bundle under it
        pending.json    the same of a bundle that was made
        uploaded        the state whose bundle the daemon saw put: then pending counts as known

Invariants
1. A repository whose files are as they were when its bundle was made costs a look at the listing.
2. A repository that is broken, or a git that fails on it, is told in its outcome; the others go on.
3. Nothing is known before it was put: a process that dies leaves what is made again.
4. An increment is made only over the whole bundle that stands in the bucket now (`base_in_bucket`).

Called by the snapshot child, and by tests with a directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.core.gitkeys import bundle_key, more_key
from s3ws_fs.snapshot.git import bundle, memory, shadow
from s3ws_fs.snapshot.git.find import Broken, Repository, find
from s3ws_fs.snapshot.git.memory import UPLOADED_FILE, place_of
from s3ws_fs.snapshot.git.objects import ObjectWriter
from s3ws_fs.snapshot.git.running import Git, GitError
from s3ws_fs.snapshot.git.shadow import Shadow
from s3ws_fs.snapshot.git.state import State, Taking
from s3ws_fs.snapshot.git.tree import Places, Tree, join

INCREMENT_MIN_BYTES: Final = 16 << 20
"""A whole bundle up to this size is always made anew."""
INCREMENT_SHARE_MAX: Final = 0.5
"""An increment larger than this share of its base is replaced by a new whole bundle."""
SHADOWS_BYTES_MAX: Final = 8 << 30
"""All shadows together; above it those are removed that were not looked at for longest."""
ROOM_BYTES_MIN: Final = 512 << 20
"""Room that is left on the cache's disk: it belongs to the cache."""
KEY_BYTES_MAX: Final = 1024
NOTES_MAX: Final = 20
"""So many notes on one bundle are told."""

MADE: Final = "made"
UNCHANGED: Final = "unchanged"
BROKEN: Final = "broken"

BaseInBucket = Callable[[str], str | None]
"""The state of the bundle that stands at a key; None when there is none, or nobody can tell."""


@dataclass(slots=True)
class Made:
    """What became of one repository. `file` is to be put at `key` (`outcome` MADE)."""

    path: bytes
    outcome: str
    why: str = ""
    kind: str = ""
    key: str = ""
    file: Path | None = None
    state: str = ""
    bundle_bytes: int = 0
    is_increment: bool = False
    duration_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the daemon and for status."""
        document = asdict(self)
        document["path"] = self.path.decode("utf-8", "surrogateescape")
        document["file"] = None if self.file is None else str(self.file)
        return document


@dataclass(slots=True)
class _Known:
    """What stands in the bucket, as this cache knows it."""

    fingerprint: str = ""
    state: str = ""
    base: str = ""
    base_bytes: int = 0


def make_bundles(
    tree: Tree,
    state_dir: Path,
    out_dir: Path,
    *,
    mountpoint: bytes = b"",
    base_in_bucket: BaseInBucket = lambda key: None,
    prefix_bytes: int = 0,
) -> Iterator[Made]:
    """An outcome for each repository; files of bundles are made below `out_dir`."""
    places = Places(tree)
    found = list(find(places, mountpoint))
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    healthy = [item for item in found if isinstance(item, Repository)]
    nested = frozenset(item.path for item in healthy if item.path)
    wanted = {place_of(state_dir, item.path).name for item in found}
    for directory in state_dir.iterdir():
        if directory.name not in wanted:
            shadow.remove(directory)
    for item in found:
        if isinstance(item, Broken):
            yield Made(item.path, BROKEN, item.why)
            continue
        making = _Making(item, places, state_dir, out_dir, nested, base_in_bucket)
        yield making.outcome(prefix_bytes)
    _bound(state_dir)


class _Making:
    """The bundle of one repository."""

    def __init__(
        self,
        repository: Repository,
        places: Places,
        state_dir: Path,
        out_dir: Path,
        nested: frozenset[bytes],
        base_in_bucket: BaseInBucket,
    ) -> None:
        self._repository = repository
        self._places = places
        self._directory = place_of(state_dir, repository.path)
        self._out_dir = out_dir
        self._nested = nested
        self._base_in_bucket = base_in_bucket
        self._scratch = self._directory / "scratch"

    def outcome(self, prefix_bytes: int) -> Made:
        """Make it if there is anything new. Never raises for what is wrong with the repository."""
        started_s = time.monotonic()
        repository = self._repository
        key = bundle_key(repository.path)
        try:
            if prefix_bytes + len(key.encode()) > KEY_BYTES_MAX:
                raise GitError("its key in the bucket would be too long")
            made = self._make()
        except (S3wsError, OSError) as exc:
            made = Made(repository.path, BROKEN, str(exc))
        made.kind = repository.kind
        made.key = made.key or key
        made.duration_s = round(time.monotonic() - started_s, 3)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return made

    def _make(self) -> Made:
        known = self._settle()
        fingerprint = self._fingerprint()
        if known.fingerprint == fingerprint:
            return Made(self._repository.path, UNCHANGED, state=known.state)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True, mode=0o700)
        self._require_room()
        copy = Shadow(self._directory, self._repository, self._places)
        copy.refresh(self._scratch)
        objects = self._directory / "made-objects"
        shutil.rmtree(objects, ignore_errors=True)
        git = Git(copy.git_dir, self._scratch, objects=objects)
        writer = ObjectWriter(objects, copy.object_format)
        taking = self._taking(copy, git, writer)
        state = taking.take()
        taking.seen.save(self._directory)
        if state.oid == known.state:
            self._write("known.json", fingerprint, known)
            return Made(self._repository.path, UNCHANGED, state=known.state)
        try:
            return self._bundle(state, copy, git, known, fingerprint)
        except GitError as exc:
            # Objects that only reflogs lead to may be half gone: the rest is worth having.
            state = self._taking(copy, git, writer).take(with_named=False)
            made = self._bundle(state, copy, git, known, fingerprint)
            made.notes.append(f"without what only reflogs lead to: {exc}")
            return made

    def _taking(self, copy: Shadow, git: Git, writer: ObjectWriter) -> Taking:
        return Taking(
            self._repository,
            self._places,
            copy,
            git,
            writer,
            self._scratch,
            self._nested,
            memory.load(self._directory),
        )

    def _bundle(
        self, state: State, copy: Shadow, git: Git, known: _Known, fingerprint: str
    ) -> Made:
        path = self._repository.path
        key = bundle_key(path)
        file = self._out_dir / f"git-{self._directory.name}.bundle"
        made = Made(path, MADE, key=key, file=file, state=state.oid)
        made.notes = state.notes[:NOTES_MAX]
        made.left_out = state.manifest.left_out_count
        new = _Known(fingerprint, state.oid, known.base, known.base_bytes)
        if self._may_add(known) and self._base_in_bucket(key) == known.base:
            file.unlink(missing_ok=True)
            made.bundle_bytes = bundle.write(
                file,
                git,
                state.refs,
                copy.object_format,
                base=known.base,
                is_partial=copy.is_partial,
            )
            made.is_increment = made.bundle_bytes <= known.base_bytes * INCREMENT_SHARE_MAX
        if made.is_increment:
            made.key = more_key(path)
        else:
            file.unlink(missing_ok=True)
            made.bundle_bytes = bundle.write(
                file, git, state.refs, copy.object_format, is_partial=copy.is_partial
            )
            new.base, new.base_bytes = state.oid, made.bundle_bytes
        failpoints.hit(failpoints.BUNDLE_MADE)
        self._write("pending.json", fingerprint, new)
        return made

    def _may_add(self, known: _Known) -> bool:
        objects = self._directory / "base-objects"
        return known.base_bytes >= INCREMENT_MIN_BYTES and objects.is_dir()

    # --- what is known ---------------------------------------------------------------------

    def _settle(self) -> _Known:
        """What stands in the bucket, with what was put since the last look."""
        directory = self._directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        pending = self._read("pending.json")
        with contextlib.suppress(OSError):
            if pending.state and (directory / UPLOADED_FILE).read_text() == pending.state:
                if pending.base == pending.state and (directory / "made-objects").is_dir():
                    shutil.rmtree(directory / "base-objects", ignore_errors=True)
                    (directory / "made-objects").rename(directory / "base-objects")
                (directory / "pending.json").replace(directory / "known.json")
        (directory / "pending.json").unlink(missing_ok=True)
        (directory / UPLOADED_FILE).unlink(missing_ok=True)
        return self._read("known.json")

    def _read(self, name: str) -> _Known:
        try:
            return _Known(**json.loads((self._directory / name).read_bytes()))
        except (OSError, ValueError, TypeError):
            return _Known()

    def _write(self, name: str, fingerprint: str, known: _Known) -> None:
        known.fingerprint = fingerprint
        temporary = self._directory / f"{name}.new"
        temporary.write_text(json.dumps(asdict(known)))
        temporary.replace(self._directory / name)

    def _fingerprint(self) -> str:
        """Of the listing of everything that the state is taken from."""
        repository = self._repository
        digest = hashlib.sha256(repr(repository).encode())
        for git_dir in dict.fromkeys((repository.git_dir, repository.common_dir)):
            skip = frozenset(join(git_dir, name) for name in (b"objects", b"modules"))
            self._add(digest, git_dir, skip)
        if repository.path != repository.git_dir:
            self._add(digest, repository.path, self._nested | {join(repository.path, b".git")})
        return digest.hexdigest()

    def _add(self, digest: Any, top: bytes, skip: frozenset[bytes]) -> None:
        for path, node in self._places.walk(top, skip):
            if node.is_dir:
                digest.update(path + b"/\0")
            else:
                digest.update(
                    b"%b\0%o %d %d %d\n" % (path, node.mode, node.ino, node.version, node.size)
                )

    def _require_room(self) -> None:
        objects = join(self._repository.common_dir, b"objects")
        size = sum(node.size for _, node in self._places.walk(objects) if node.is_file)
        held = _tree_bytes(self._directory)
        free = shutil.disk_usage(self._directory).free
        # A copy of the objects, and the bundle.
        need = max(0, size - held) + size + ROOM_BYTES_MIN
        if free < need:
            raise GitError(f"no room for its bundle on the cache's disk ({need >> 20} MiB)")


def _tree_bytes(directory: Path) -> int:
    total = 0
    for above, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(above) / name).lstat().st_size
    return total


def _bound(state_dir: Path) -> None:
    """Keep all shadows within their limit."""
    sizes = {directory: _tree_bytes(directory) for directory in state_dir.iterdir()}
    total = sum(sizes.values())
    for directory in sorted(sizes, key=lambda path: path.stat().st_mtime):
        if total <= SHADOWS_BYTES_MAX:
            return
        # Which of them stand in the bucket is not forgotten, only the copies.
        for name in ("repo.git", "alternates", "base-objects", memory.COPIED_FILE):
            place = directory / name
            if place.is_dir():
                shadow.remove(place)
            else:
                place.unlink(missing_ok=True)
        total -= sizes[directory]
