"""A repository of ours with the objects and refs of one of the workspace's: what git may look at.

    {shadow}/repo.git/      HEAD, config (ours), refs, packed-refs, shallow: as of this look
             repo.git/objects        copies of packs and loose objects, kept from look to look
             alternates/{n}/objects  the same of its alternates
             base-objects/           what was made for the bundle that the increments build on
             copied.json             what was copied, by path: inode, version and size

Invariants
1. From the workspace come objects, refs and `shallow` only: never a configuration, a hook, a graft,
   a replacement, an attribute, a bitmap, a commit-graph or an index of packs over packs.
2. A file here is a copy of the one there when inode, version and size are equal; else copied anew.
   What went there goes here.
3. It may be removed at any time: the next look costs a copy of everything.

Called by snapshot.git.making.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from s3ws_fs.core.errors import FormatError
from s3ws_fs.snapshot.git.find import Repository
from s3ws_fs.snapshot.git.memory import COPIED_FILE
from s3ws_fs.snapshot.git.objects import OBJECT_FORMATS, SHA1
from s3ws_fs.snapshot.git.running import Git, GitError
from s3ws_fs.snapshot.git.tree import Node, Places, join

OBJECTS_BYTES_MAX: Final = 4 << 30
"""A repository with more object data than this is not bundled."""
NOTED_BYTES: Final = 16 << 20
"""After so many copied bytes it is noted how far a copy is."""
REFS_MAX: Final = 100_000
REF_BYTES_MAX: Final = 4096
PACKED_REFS_BYTES_MAX: Final = 64 << 20
CONFIG_BYTES_MAX: Final = 1 << 20
_LOOSE: Final = re.compile(rb"[0-9a-f]{2}/([0-9a-f]{38}|[0-9a-f]{62})")
_PACK: Final = re.compile(rb"pack/pack-[0-9a-f]{40}([0-9a-f]{24})?\.(pack|idx|promisor)")
_REF: Final = re.compile(rb"(ref:[ \t]*refs/[^\s\0]+|[0-9a-f]{40}|[0-9a-f]{64})\s*")

OWN_REFS: Final = (b"refs/bisect", b"refs/worktree", b"refs/rewritten")
"""Refs that each work tree has for itself."""


class Shadow:
    """See above. `refresh` first."""

    def __init__(self, directory: Path, repository: Repository, places: Places) -> None:
        self.directory = directory
        self.git_dir = directory / "repo.git"
        self._repository = repository
        self._places = places
        self.object_format = SHA1
        self.is_partial = False
        self.is_shallow = False
        self.config: list[tuple[str, str]] = []
        """Name and value of each setting of the repository, as data."""

    @property
    def base_objects(self) -> Path:
        """Where the objects made for the last whole bundle are."""
        return self.directory / "base-objects"

    def refresh(self, scratch: Path) -> None:
        """Bring it up to date. Raises GitError, FormatError, OSError."""
        self.git_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._read_config(scratch)
        self._copy_objects()
        self._copy_refs()
        self._write_config()

    # --- configuration ---------------------------------------------------------------------

    def _read_config(self, scratch: Path) -> None:
        """What its own configuration says, read as data: no file is included."""
        content = self._places.content(
            join(self._repository.common_dir, b"config"), CONFIG_BYTES_MAX
        )
        copy = scratch / "config"
        copy.write_bytes(content or b"")
        listed = Git(self.git_dir, scratch).run(
            "config", "--file", str(copy), "--no-includes", "--null", "--list"
        )
        self.config = []
        for item in listed.split(b"\0"):
            name, _, value = item.partition(b"\n")
            if name:
                self.config.append(
                    (name.decode(errors="surrogateescape"), value.decode(errors="surrogateescape"))
                )
        known = {name.lower(): value for name, value in self.config}
        self.object_format = known.get("extensions.objectformat", SHA1).lower()
        if self.object_format not in OBJECT_FORMATS:
            raise GitError("its object format is not known here")
        storage = known.get("extensions.refstorage", "files").lower()
        if storage != "files":
            # git of Debian 12 reads no others.
            raise GitError(
                f"it keeps its refs as {storage[:20]!a}, which is not supported; its files are"
                " saved like all others. For a bundle: git refs migrate --ref-format=files"
                " (git 2.46 or later)"
            )
        self.is_partial = "extensions.partialclone" in known or any(
            re.fullmatch(r"remote\..*\.promisor", name) for name in known
        )

    def _write_config(self) -> None:
        is_sha1 = self.object_format == SHA1
        lines = [
            "[core]",
            f"\trepositoryformatversion = {0 if is_sha1 and not self.is_partial else 1}",
            "\tbare = true",
        ]
        if not is_sha1 or self.is_partial:
            lines.append("[extensions]")
        if not is_sha1:
            lines.append(f"\tobjectformat = {self.object_format}")
        if self.is_partial:
            # The missing objects are missing on purpose; nobody is asked for them.
            lines += ["\tpartialclone = none", '[remote "none"]', "\tpromisor = true"]
        (self.git_dir / "config").write_text("\n".join(lines) + "\n")

    # --- objects ---------------------------------------------------------------------------

    def _copy_objects(self) -> None:
        wanted: dict[str, tuple[bytes, Node]] = {}
        sources = [join(self._repository.common_dir, b"objects"), *self._repository.alternates]
        total = 0
        for number, source in enumerate(sources):
            where = "repo.git/objects" if number == 0 else f"alternates/{number}/objects"
            for name, node in _object_files(self._places, source):
                wanted[f"{where}/{name.decode()}"] = (join(source, name), node)
                total += node.size
        if total > OBJECTS_BYTES_MAX:
            raise GitError(
                f"it has {total >> 20} MiB of objects, more than {OBJECTS_BYTES_MAX >> 20}"
            )
        known = self._known()
        for gone in known.keys() - wanted.keys():
            (self.directory / gone).unlink(missing_ok=True)
        now: dict[str, list[int]] = {}
        missing: list[tuple[str, bytes, Node]] = []
        for copy, (path, node) in wanted.items():
            marks = [node.ino, node.version, node.size]
            if known.get(copy) == marks and (self.directory / copy).is_file():
                now[copy] = marks
            else:
                missing.append((copy, path, node))
        # Only what is whole is vouched for, also when we are ended in the middle.
        self._note(now)
        since_noted = 0
        for copy, path, node in missing:
            self._copy(path, node, self.directory / copy)
            now[copy] = [node.ino, node.version, node.size]
            since_noted += node.size
            if since_noted >= NOTED_BYTES:
                self._note(now)
                since_noted = 0
        (self.git_dir / "objects").mkdir(exist_ok=True)
        self._write_alternates(len(sources))
        self._note(now)

    def _copy(self, path: bytes, node: Node, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.unlink(missing_ok=True)
        done = 0
        with place.open("xb") as file:
            for piece in self._places.read(path):
                done += len(piece)
                file.write(piece)
        if done != node.size:
            raise FormatError(path.decode(errors="replace"), "its size is not what it was")

    def _write_alternates(self, count: int) -> None:
        info = self.git_dir / "objects" / "info"
        info.mkdir(parents=True, exist_ok=True)
        places = [self.directory / "alternates" / str(n) / "objects" for n in range(1, count)]
        if self.base_objects.is_dir():
            places.append(self.base_objects)
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        (info / "alternates").write_text("".join(f"{place}\n" for place in places))

    def _known(self) -> dict[str, list[int]]:
        try:
            found = json.loads((self.directory / COPIED_FILE).read_bytes())
        except (OSError, ValueError):
            # Nothing is vouched for: begin anew.
            for name in ("repo.git/objects", "alternates"):
                shutil.rmtree(self.directory / name, ignore_errors=True)
            return {}
        return found if isinstance(found, dict) else {}

    def _note(self, copied: dict[str, list[int]]) -> None:
        temporary = self.directory / f"{COPIED_FILE}.new"
        temporary.write_text(json.dumps(copied))
        temporary.replace(self.directory / COPIED_FILE)

    # --- refs ------------------------------------------------------------------------------

    def _copy_refs(self) -> None:
        repository, places = self._repository, self._places
        shutil.rmtree(self.git_dir / "refs", ignore_errors=True)
        (self.git_dir / "refs").mkdir()
        for name in ("packed-refs", "shallow"):
            (self.git_dir / name).unlink(missing_ok=True)
            content = places.content(
                join(repository.common_dir, name.encode()), PACKED_REFS_BYTES_MAX
            )
            if content is not None:
                (self.git_dir / name).write_bytes(content)
        self.is_shallow = (self.git_dir / "shallow").exists()
        count = 0
        for ref, path in self._ref_files():
            count += 1
            if count > REFS_MAX:
                raise GitError(f"it has more than {REFS_MAX} loose refs")
            content = places.content(path, REF_BYTES_MAX)
            if content is None or not _REF.fullmatch(content):
                continue
            place = self.git_dir / ref.decode(errors="surrogateescape")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        head = places.content(join(repository.git_dir, b"HEAD"), REF_BYTES_MAX) or b""
        if not _REF.fullmatch(head):
            raise GitError("it has no HEAD that git would read")
        (self.git_dir / "HEAD").write_bytes(head)

    def _ref_files(self) -> Iterator[tuple[bytes, bytes]]:
        """(name, path) of every loose ref, those of the work tree's own included."""
        repository = self._repository
        refs = join(repository.common_dir, b"refs")
        own = frozenset(join(repository.common_dir, name) for name in OWN_REFS)
        skip = own if repository.git_dir != repository.common_dir else frozenset()
        for path, node in self._places.walk(refs, skip):
            if node.is_file and not path.endswith(b".lock"):
                yield path[len(refs) - len(b"refs") :], path
        for name in OWN_REFS if skip else ():
            top = join(repository.git_dir, name)
            for path, node in self._places.walk(top):
                if node.is_file and not path.endswith(b".lock"):
                    yield path[len(top) - len(name) :], path


def _object_files(places: Places, objects: bytes) -> Iterator[tuple[bytes, Node]]:
    """Loose objects and packs of an object directory, named relative to it."""
    for fan, node in places.children(objects).items():
        if not node.is_dir or (len(fan) != 2 and fan != b"pack"):
            continue
        for name, file in places.children(join(objects, fan)).items():
            path = join(fan, name)
            if file.is_file and (_LOOSE.fullmatch(path) or _PACK.fullmatch(path)):
                yield path, file


def remove(directory: Path) -> None:
    """Remove a shadow."""
    with contextlib.suppress(OSError):
        shutil.rmtree(directory)
