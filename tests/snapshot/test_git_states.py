"""Repositories in every state, bundled and restored: git itself says that both are the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from s3ws_fs.snapshot.git.making import MADE, Made, make_bundles
from s3ws_fs.snapshot.git.restoring import Options, restore
from s3ws_fs.snapshot.git.tree import DirectoryTree
from tests.support import git_states, programs


def bundles(workspace: Path, place: Path) -> dict[bytes, Made]:
    """Bundles of all repositories of a directory, by path."""
    out = place / "out"
    out.mkdir(parents=True, exist_ok=True)
    return {
        made.path: made for made in make_bundles(DirectoryTree(workspace), place / "state", out)
    }


def bundle_of(made: Made) -> Path:
    """The file of a bundle that was made."""
    assert made.outcome == MADE, made.why
    assert made.notes == []
    assert made.left_out == 0
    assert made.file is not None
    return made.file


@pytest.mark.parametrize("story", git_states.STORIES)
def test_a_repository_from_its_bundle_is_as_the_original(story: str, tmp_path: Path) -> None:
    original = git_states.build(story, tmp_path / "workspace")
    before = git_states.everything(original)
    file = bundle_of(bundles(original, tmp_path / "cache")[b""])
    assert git_states.everything(original) == before
    # Nothing but the bundle is there any more.
    shutil.rmtree(tmp_path / "cache" / "state")
    restored = tmp_path / "restored"
    restore([file], restored, Options())
    assert git_states.files(restored) == git_states.files(original)
    assert git_states.picture(restored) == git_states.picture(original)
    if story not in ("nothing committed yet", "empty"):
        check_clone(file, original, tmp_path / "clone")


def check_clone(file: Path, original: Path, clone: Path) -> None:
    """Anybody's git makes a repository of it."""
    programs.run("git", "bundle", "verify", "-q", file, cwd=original)
    programs.run("git", "clone", "-q", file, clone)
    fsck = programs.run("git", "fsck", "--no-progress", "--no-dangling", cwd=clone).splitlines()
    assert [line for line in fsck if not line.startswith(("warning", "notice"))] == []
    head = git_states.git(original, "rev-parse", "--verify", "-q", "HEAD")
    if head.endswith("status 0"):
        assert git_states.git(clone, "rev-parse", "--verify", "-q", "HEAD") == head
