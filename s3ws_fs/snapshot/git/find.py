"""Which git repositories a workspace holds, and where each keeps what.

    repository   a directory with a `.git` directory
    submodule    a directory whose `.git` file names a directory with all of it
    worktree     a directory whose `.git` file names one that shares another's objects and refs
    bare         a directory that is one itself (also what a submodule without a tree left behind)

Invariants
1. Nothing outside the workspace is ever named: a `gitdir:` or `alternates` that leads out makes the
   repository a broken one, with the reason. An absolute path is where the workspace was mounted,
   which may be elsewhere now: it counts when it ends like a path that is in the workspace.
2. What is broken keeps nothing else from being found.

Called by snapshot.git.making.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from s3ws_fs.core.errors import S3wsError
from s3ws_fs.snapshot.git.tree import Places, join, normal

REPOSITORIES_MAX: Final = 1000
"""Repositories that are looked after; there is no telling what an archive of tests holds."""
ALTERNATES_MAX: Final = 8
POINTER_BYTES_MAX: Final = 8192

REPOSITORY: Final = "repository"
SUBMODULE: Final = "submodule"
WORKTREE: Final = "worktree"
BARE: Final = "bare"
KINDS: Final = (REPOSITORY, SUBMODULE, WORKTREE, BARE)

_HEAD: Final = re.compile(rb"(ref:\s*refs/\S.*|[0-9a-f]{40}|[0-9a-f]{64})\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Repository:
    """Where one is: `path` of its work tree (of itself, when bare), its own git directory, the one
    with objects and refs (the same but for a linked worktree), and those of its alternates."""

    path: bytes
    kind: str
    git_dir: bytes
    common_dir: bytes
    alternates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Broken:
    """One that can't be looked at, and why."""

    path: bytes
    why: str


def find(places: Places, mountpoint: bytes = b"") -> Iterator[Repository | Broken]:
    """Every repository, at most REPOSITORIES_MAX of them. `mountpoint`: where programs see it."""
    claimed: set[bytes] = set()
    seen = 0
    with_modules: list[bytes] = []
    pending = [b""]
    while pending:
        directory = pending.pop()
        entries = places.children(directory)
        found = _at(places, directory, mountpoint)
        if found is not None:
            seen += 1
            if seen > REPOSITORIES_MAX:
                yield Broken(directory, f"more than {REPOSITORIES_MAX} repositories")
                return
            yield found
            if isinstance(found, Repository):
                claimed.add(found.git_dir)
                if found.kind == BARE:
                    continue
                if found.kind != WORKTREE:
                    with_modules.append(found.git_dir)
        pending += sorted(
            (
                join(directory, name)
                for name, node in entries.items()
                if node.is_dir and name != b".git"
            ),
            reverse=True,
        )
    for path in _unclaimed_modules(places, with_modules, claimed):
        seen += 1
        if seen > REPOSITORIES_MAX:
            return
        yield _checked(places, path, BARE, path, mountpoint)


def _at(places: Places, directory: bytes, mountpoint: bytes) -> Repository | Broken | None:
    entries = places.children(directory)
    node = entries.get(b".git")
    git = join(directory, b".git")
    if node is None:
        if directory and is_git_dir(places, directory):
            return _checked(places, directory, BARE, directory, mountpoint)
        return None
    if node.is_link:
        return Broken(directory, "its .git is a symbolic link")
    if node.is_dir:
        # An empty one, or a program's own directory of that name, is none, as for git itself.
        return (
            _checked(places, directory, REPOSITORY, git, mountpoint)
            if places.children(git)
            else None
        )
    if not node.is_file:
        return Broken(directory, "its .git is neither a file nor a directory")
    try:
        text = places.content(git, POINTER_BYTES_MAX)
    except (OSError, S3wsError) as exc:
        return Broken(directory, f"its .git can't be read: {exc}")
    if text is None or not text.startswith(b"gitdir:"):
        return None
    pointer = text[len(b"gitdir:") :].strip()
    git_dir = inside(places, directory, pointer, mountpoint)
    if git_dir is None:
        return Broken(directory, "its .git file names a place outside of the workspace")
    kind = WORKTREE if places.is_file(join(git_dir, b"commondir")) else SUBMODULE
    return _checked(places, directory, kind, git_dir, mountpoint)


def is_git_dir(places: Places, path: bytes) -> bool:
    """Whether a directory looks like git's own."""
    entries = places.children(path)
    return all(
        name in entries and (entries[name].is_file if name == b"HEAD" else entries[name].is_dir)
        for name in (b"HEAD", b"objects", b"refs")
    )


def _checked(
    places: Places, path: bytes, kind: str, git_dir: bytes, mountpoint: bytes
) -> Repository | Broken:
    try:
        common = git_dir
        if kind == WORKTREE:
            text = places.content(join(git_dir, b"commondir"), POINTER_BYTES_MAX)
            found = inside(places, git_dir, (text or b"").strip(), mountpoint)
            if found is None:
                return Broken(path, "its commondir names a place outside of the workspace")
            common = found
        head = places.content(join(git_dir, b"HEAD"), POINTER_BYTES_MAX)
        if head is None or not _HEAD.fullmatch(head):
            return Broken(path, "it has no HEAD that git would read")
        for name in (b"objects", b"refs"):
            if not places.is_dir(join(common, name)):
                return Broken(path, f"its {name.decode()} directory is missing, or none")
        return Repository(path, kind, git_dir, common, _alternates(places, common, mountpoint))
    except _OutsideError as exc:
        return Broken(path, str(exc))
    except (OSError, S3wsError) as exc:
        return Broken(path, f"it can't be read: {exc}")


class _OutsideError(Exception):
    pass


def _alternates(places: Places, common: bytes, mountpoint: bytes) -> tuple[bytes, ...]:
    """The other object directories it needs, also by way of theirs."""
    found: list[bytes] = []
    pending = [join(common, b"objects")]
    while pending:
        objects = pending.pop()
        text = places.content(join(objects, b"info/alternates"), POINTER_BYTES_MAX)
        for line in (text or b"").splitlines():
            if not line.strip() or line.startswith(b"#"):
                continue
            place = inside(places, objects, line.strip(), mountpoint)
            if place is None:
                raise _OutsideError("its alternates name objects outside of the workspace")
            if place not in found:
                found.append(place)
                pending.append(place)
            if len(found) > ALTERNATES_MAX:
                raise _OutsideError(f"it has more than {ALTERNATES_MAX} alternates")
    return tuple(found)


def inside(places: Places, base: bytes, pointer: bytes, mountpoint: bytes) -> bytes | None:
    """The directory of the workspace that a path names, seen from `base`; None when there is none.

    An absolute path: below the mount point, else its longest end that is a directory here.
    """
    if not pointer or b"\0" in pointer:
        return None
    if not pointer.startswith(b"/"):
        path = normal(join(base, pointer))
        return path if path is not None and path and places.is_dir(path) else None
    root = mountpoint.rstrip(b"/") + b"/"
    if mountpoint and pointer.startswith(root):
        path = normal(pointer[len(root) :])
        return path if path and places.is_dir(path) else None
    parts = [part for part in pointer.split(b"/") if part]
    if b".." in parts or b"." in parts:
        return None
    for start in range(1, len(parts)):
        path = b"/".join(parts[start:])
        if places.is_dir(path):
            return path
    return None


def _unclaimed_modules(
    places: Places, git_dirs: list[bytes], claimed: set[bytes]
) -> Iterator[bytes]:
    """Git directories below `modules` that no work tree names."""
    pending = [join(git_dir, b"modules") for git_dir in git_dirs]
    while pending:
        directory = pending.pop()
        for name, node in sorted(places.children(directory).items()):
            path = join(directory, name)
            if not node.is_dir:
                continue
            if not is_git_dir(places, path):
                pending.append(path)
                continue
            if path not in claimed:
                yield path
            pending.append(join(path, b"modules"))
