"""Repositories within repositories: submodules, linked work trees, nested and bare ones, shared
objects; restored each by itself, and all together."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from s3ws_fs.snapshot.git import together
from s3ws_fs.snapshot.git.making import BROKEN, MADE, Made
from s3ws_fs.snapshot.git.restoring import Options, Restored, restore
from tests.snapshot.test_git_states import bundle_of, bundles
from tests.support import git_states

TOGETHER: Final = {
    "a submodule": git_states.BASE
    + """
        git clone -q . ../library
        git -c protocol.file.allow=always submodule --quiet add ../library vendor/library
        git commit -qm "with a submodule"; rm -rf ../library
        cd vendor/library; echo inside >>notes; git add notes; echo new >new; git stash -qu
        echo again >>notes
    """,
    "a linked work tree": git_states.BASE
    + """
        mkdir trees; echo trees >>.git/info/exclude
        git worktree add -q trees/beside -b beside HEAD~1
        git worktree add -q --detach trees/off HEAD~2
        cd trees/beside; echo beside >>notes; git add notes; echo more >>notes; echo new >new
        cd ../off; echo off >>notes; git commit -qam "only here"
    """,
    "a nested repository": git_states.BASE
    + """
        mkdir -p deep/nested; cd deep/nested; git init -q -b main; echo a >a; git add a
        git commit -qm nested; echo b >>a
    """,
    "a bare repository, and one that shares its objects": git_states.BASE
    + """
        echo shared.git >>.git/info/exclude; git clone -q --bare . shared.git
        git clone -q --shared shared.git user
        cd user; echo more >>notes; git commit -qam more; echo dirty >>notes
    """,
    "a submodule without its tree": git_states.BASE
    + """
        git clone -q . ../library
        git -c protocol.file.allow=always submodule --quiet add ../library vendor/library
        git commit -qm "with a submodule"; rm -rf ../library
        git -C vendor/library commit -q --allow-empty -m "not pushed"
        git submodule --quiet deinit -f vendor/library
    """,
}


def restore_all(made: dict[bytes, Made], target: Path) -> dict[bytes, Restored]:
    """Every repository at its path, joined as they were."""
    done = {}
    for path in sorted(made):
        at = target / path.decode() if path else target
        done[path] = restore([bundle_of(made[path])], at, Options())
    for path, item in done.items():
        together.join_up(item, target / path.decode() if path else target, target)
    return done


@pytest.mark.parametrize("story", TOGETHER)
def test_all_together_are_as_they_were(story: str, tmp_path: Path) -> None:
    original = tmp_path / "workspace"
    original.mkdir()
    git_states.run_script(TOGETHER[story], original)
    before = git_states.everything(original)
    made = bundles(original, tmp_path / "cache")
    assert git_states.everything(original) == before
    assert len(made) > 1
    target = tmp_path / "restored"
    done = restore_all(made, target)
    for path, item in done.items():
        here, there = (top / path.decode() for top in (original, target))
        if item.kind == "bare":
            leave_out: tuple[str, ...] = ("status", "status in words", "stash list", "diff")
        else:
            leave_out = ()
            assert git_states.files(there) == git_states.files(here)
        assert git_states.picture(there, leave_out=leave_out) == git_states.picture(
            here, leave_out=leave_out
        )


@pytest.mark.parametrize("story", TOGETHER)
def test_each_by_itself_is_whole(story: str, tmp_path: Path) -> None:
    original = tmp_path / "workspace"
    original.mkdir()
    git_states.run_script(TOGETHER[story], original)
    for number, (path, made) in enumerate(bundles(original, tmp_path / "cache").items()):
        here, there = original / path.decode(), tmp_path / f"restored {number}"
        item = restore([bundle_of(made)], there, Options())
        assert git_states.git(there, "fsck", "--no-dangling").endswith("status 0")
        for question in ("log --format=%H", "ls-files --stage", "stash list", "rev-parse HEAD"):
            words = question.split()
            assert git_states.git(there, *words) == git_states.git(here, *words)
        if item.kind != "bare":
            assert git_states.files(there) == git_states.files(here)


def test_objects_outside_of_the_workspace_are_refused(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    git_states.run_script(
        git_states.BASE
        + """
            git clone -q . ../outside; git clone -q --shared ../outside user
            git init -q good; cd good; echo x >x; git add x
        """,
        workspace,
    )
    made = bundles(workspace, tmp_path / "cache")
    assert made[b"user"].outcome == BROKEN
    assert made[b"user"].why == "its alternates name objects outside of the workspace"
    assert made[b""].outcome == made[b"good"].outcome == MADE
