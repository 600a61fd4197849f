"""Repositories that belong together, restored together: submodules and linked work trees.

Invariants
1. Nothing is joined that is not below the directory that the workspace is restored to, and only to
   a repository that was restored there, too.
2. Where that is not possible, the repository stands for itself: whole, with a `.git` of its own.

Called by cli.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from s3ws_fs.snapshot.git import config
from s3ws_fs.snapshot.git.find import SUBMODULE, WORKTREE
from s3ws_fs.snapshot.git.restoring import Restored
from s3ws_fs.snapshot.git.tree import normal


def join_up(restored: Restored, target: Path, workspace: Path) -> bool:
    """Give a repository that was restored to `target` its place among the others that were.

    False when it stays by itself. Raises OSError.
    """
    kind = restored.kind
    git_dir, common_dir = (_place(workspace, path) for path in restored.where[1:])
    if git_dir is None or common_dir is None:
        return False
    if kind == SUBMODULE and not git_dir.exists() and _has_repository_above(git_dir, workspace):
        _as_submodule(target, git_dir)
        return True
    if kind == WORKTREE and git_dir.is_dir() and (common_dir / "objects" / "pack").is_dir():
        _as_worktree(target, git_dir, common_dir)
        return True
    return False


def _has_repository_above(git_dir: Path, workspace: Path) -> bool:
    """Whether it is within another one's git directory that is there."""
    above = git_dir.parent
    while above != workspace and workspace in above.parents:
        if (above / "HEAD").is_file() and (above / "objects").is_dir():
            return True
        above = above.parent
    return False


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
