"""Repositories that belong together, restored together: submodules and linked work trees.

Invariants
1. Nothing is joined that is not below the directory that the workspace is restored to, and only to
   a repository that was restored there, too.
2. Where that is not possible, the repository stands for itself: whole, with a `.git` of its own.
3. Nothing comes into another one's git directory but where git keeps its like: submodules in
   `modules`. Elsewhere it would be a hook, or a configuration. And a linked work tree is joined
   to a git directory only that was restored as one: files of a work tree can look like one, too.

Called by cli.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

from s3ws_fs.snapshot.git import config
from s3ws_fs.snapshot.git.find import SUBMODULE, WORKTREE
from s3ws_fs.snapshot.git.restoring import Restored
from s3ws_fs.snapshot.git.tree import normal

MODULES: Final = "modules"


def join_up(
    restored: Restored, target: Path, workspace: Path, bare: Collection[bytes] = ()
) -> bool:
    """Give a repository that was restored to `target` its place among the others that were, of
    which those at the paths `bare` are bare ones.

    False when it stays by itself. Raises OSError.
    """
    kind = restored.kind
    _, git_path, common_path = restored.where
    git_dir, common_dir = (_place(workspace, path) for path in (git_path, common_path))
    if git_dir is None or common_dir is None:
        return False
    if kind == SUBMODULE and not git_dir.exists() and _is_module(git_dir, workspace):
        _as_submodule(target, git_dir)
        return True
    is_there = git_dir.is_dir() and (common_dir / "objects" / "pack").is_dir()
    if kind == WORKTREE and is_there and _is_linked(git_path, common_path, bare):
        _as_worktree(target, git_dir, common_dir)
        return True
    return False


def leads_into_git(path: bytes, workspace: Path) -> bool:
    """Whether the place of a repository is within another's git directory, and not a module's."""
    place = workspace / os.fsdecode(path)
    above = _git_dir_above(place, workspace)
    return above is not None and place.relative_to(above).parts[0] != MODULES


def _is_module(git_dir: Path, workspace: Path) -> bool:
    """Whether it stands where another one's git directory has its submodules."""
    above = _git_dir_above(git_dir, workspace)
    return above is not None and git_dir.relative_to(above).parts[0] == MODULES


def _git_dir_above(place: Path, workspace: Path) -> Path | None:
    above = place.parent
    while above != workspace and workspace in above.parents:
        if above.name == ".git" or ((above / "HEAD").is_file() and (above / "objects").is_dir()):
            return above
        above = above.parent
    return None


def _is_linked(git_path: bytes, common_path: bytes, bare: Collection[bytes]) -> bool:
    above, _, name = git_path.rpartition(b"/")
    if not name or above != common_path + b"/worktrees":
        return False
    # No file of a work tree has `.git` in its path.
    return b".git" in common_path.split(b"/") or common_path in bare


def _place(workspace: Path, path: bytes) -> Path | None:
    """A place below the workspace; no part of it may be a symbolic link."""
    if normal(path) != path or not path:
        return None
    place = workspace
    for part in os.fsdecode(path).split("/"):
        place = place / part
        if place.is_symlink():
            return None
    return place


def _as_submodule(target: Path, git_dir: Path) -> None:
    git_dir.parent.mkdir(parents=True, exist_ok=True)
    (target / ".git").rename(git_dir)
    (target / ".git").write_text(f"gitdir: {os.path.relpath(git_dir, target)}\n")
    with (git_dir / "config").open("a") as file:
        file.write(config.render([("core.worktree", os.path.relpath(target, git_dir))]))


def _as_worktree(target: Path, git_dir: Path, common_dir: Path) -> None:
    own = target / ".git"
    for item in (own / "objects" / "pack").iterdir():
        place = common_dir / "objects" / "pack" / item.name
        if not place.exists():
            item.rename(place)
    for item in own.iterdir():
        if item.name == "index" or item.name.startswith("sharedindex."):
            item.replace(git_dir / item.name)
    (git_dir / "gitdir").write_text(f"{target.absolute() / '.git'}\n")
    own.rename(target / ".git-own")
    (target / ".git").write_text(f"gitdir: {git_dir.absolute()}\n")
    shutil.rmtree(target / ".git-own")
