"""git at everything it can do to a working tree, beside the same on a native directory.

With the same dates, a story of commits has the same hashes on every filesystem that keeps bytes,
modes and names; and the index is right only where inode numbers and times stay what they are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, trees
from tests.support.e2e_fixtures import Elsewhere
from tests.support.tools import background, finish, same_in_both, shell

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

SOURCE_FILES: Final = 80
LARGE_BYTES: Final = 6 << 20

DATES: Final = {
    "GIT_AUTHOR_DATE": "2024-06-07T08:09:10Z",
    "GIT_COMMITTER_DATE": "2024-06-07T08:09:10Z",
    "GIT_EDITOR": "true",
}
BOOKKEEPING: Final = (b"index", b"config", b"logs", b"gitdir", b".git", b"packs", b"commit-graph")
"""Below .git: names whose content holds times, inode numbers or absolute paths."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository on the native filesystem."""
    tree = tmp_path_factory.mktemp("native") / "project"
    trees.build_source_tree(tree, files=SOURCE_FILES)
    (tree / "link").symlink_to("package0")
    programs.make_repository(tree)
    return tree


def unrefreshed(clone: Path) -> str:
    """What the index takes for changed by stat alone: this git command never refreshes it."""
    return programs.run("git", "-c", "core.trustctime=true", "diff-files", cwd=clone)


START: Final = """
git init -q -b main .
for n in 1 2 3 4 5; do
    seq $n 40 >file; echo "line $n" >>notes; git add -A; git commit -qm "commit $n"
done
"""

STORIES: Final = {
    "rebase with a conflict": """
        git switch -qc topic HEAD~2
        sed -i '1s/.*/changed by topic/' file; git commit -qam "topic 1"
        echo more >other; git add other; git commit -qm "topic 2"
        ! git rebase -q main 2>/dev/null
        test -d .git/rebase-merge
        git diff --name-only --diff-filter=U
        git checkout -q --theirs file; git add file
        git rebase --continue >/dev/null
        test ! -e .git/rebase-merge
    """,
    "interactive rebase": """
        export GIT_SEQUENCE_EDITOR="sed -i -e '2s/^pick/squash/' -e '3s/^pick/edit/'"
        git rebase -qi HEAD~4 >/dev/null 2>&1
        echo amended >other; git add other; git commit -qa --amend --no-edit
        git rebase --continue >/dev/null 2>&1
    """,
    "autosquash": """
        echo fix >>file; git commit -qa --fixup=HEAD~2
        GIT_SEQUENCE_EDITOR=true git rebase -qi --autosquash -X theirs HEAD~4
    """,
    "worktrees": """
        git worktree add -q ../tree -b beside HEAD~1
        (cd ../tree; echo beside >>notes; git commit -qam beside; git status --porcelain)
        git worktree list --porcelain | grep -c ^worktree
        git worktree move ../tree ../moved
        git -C ../moved log --format=%s -1
        git worktree remove ../moved
        test ! -e ../moved
        git worktree prune -v
        git merge -q --no-ff -X theirs -m merged beside
    """,
    "submodules": """
        git clone -q . ../library
        git -c protocol.file.allow=always submodule --quiet add ../library vendor/library
        git commit -qm "with a submodule"
        git submodule status | cut -c 1-41
        git -c protocol.file.allow=always clone -q --recurse-submodules "$PWD" ../again
        diff -r -x .git . ../again
        git -C ../again submodule --quiet deinit -f vendor/library
        rm -rf ../again ../library
    """,
    "stash": """
        echo dirty >>file; echo new >untracked; echo staged >>notes; git add notes
        git stash push -qu
        git status --porcelain
        test ! -e untracked
        git stash pop -q --index
        git status --porcelain
        git commit -qam "from the stash"
        git clean -qfd; git status --porcelain
    """,
    "bisect": """
        git bisect start HEAD HEAD~4 >/dev/null
        git bisect run sh -c '! grep -q "line 4" notes' >/dev/null
        git rev-parse refs/bisect/bad
        git bisect reset >/dev/null 2>&1
    """,
    "pick, revert, reset": """
        git switch -qc side HEAD~3; git cherry-pick -X theirs main >/dev/null
        git revert --no-edit HEAD >/dev/null
        git reset -q --hard HEAD~1; git tag -am tagged v1
        git merge -q -X ours --no-edit main >/dev/null; git log --format=%H
    """,
    "links, modes and case": """
        printf '#!/bin/sh\\necho ran\\n' >tool; chmod +x tool; ln -s tool link
        git add -A; git commit -qm tool; git ls-files -s tool link
        chmod -x tool; git diff --summary; git checkout -q tool; ./link
        git mv notes Notes; git commit -qm case; ls
        git mv Notes dir-to-be 2>/dev/null; mkdir Notes; git mv dir-to-be Notes/notes
        git commit -qm "a file became a directory"; ls -R
        git checkout -q HEAD~1; git checkout -q main; git status --porcelain
        rm link; ln -s file link; git status --porcelain; git checkout -q link; readlink link
    """,
    "archive, bundle, patches": """
        git archive HEAD | sha256sum
        git bundle create -q ../all.bundle --all; git clone -q ../all.bundle ../from
        git -C ../from rev-parse HEAD
        git format-patch -q -2 -o ../patches; git reset -q --hard HEAD~2
        git am -q --committer-date-is-author-date ../patches/*.patch; git rev-parse HEAD^{tree}
        rm -rf ../from ../all.bundle ../patches
    """,
    "sparse checkout and many refs": """
        mkdir -p a b; echo 1 >a/one; echo 2 >b/two; git add -A; git commit -qm dirs
        git sparse-checkout set a; test ! -e b; git sparse-checkout disable; cat b/two
        for n in $(seq 30); do echo "create refs/tags/t$n HEAD"; done | git update-ref --stdin
        git pack-refs --all; git tag | wc -l; git tag -d t7 >/dev/null; git tag | wc -l
    """,
}

FINISH: Final = """
git status --porcelain
git fsck --strict --full --no-progress
git for-each-ref
git gc -q --aggressive --prune=now
git count-objects -v | grep -E '^(count|packs|garbage)'
git fsck --strict --full --no-progress
git diff-files
"""


@pytest.mark.parametrize("story", STORIES)
def test_a_story_has_the_same_end_everywhere(here: Path, native: Path, story: str) -> None:
    script = f"mkdir repo; cd repo; {START}\n{STORIES[story]}\n{FINISH}"
    printed = same_in_both(script, here, native, env=DATES, apart=BOOKKEEPING)
    assert "count: 0\npacks: 1\n" in printed
    assert "refs/heads/main" in printed
    assert "garbage: 0" in printed


def test_clones_of_all_kinds(here: Path, repository: Path) -> None:
    first = here / "first"
    programs.run("git", "clone", "-q", f"file://{repository}", first)
    programs.check_clone(repository, first)
    linked = here / "linked"
    programs.run("git", "clone", "-q", first, linked)
    programs.check_clone(repository, linked)
    for pack in (first / ".git" / "objects" / "pack").glob("*.pack"):
        twin = linked / ".git" / "objects" / "pack" / pack.name
        assert pack.samefile(twin), "a local clone on one filesystem links its packs"
    for options in (["--shared"], ["--mirror"], ["--depth=1", "--no-local"]):
        clone = here / options[0].strip("-").replace("=", "")
        programs.run("git", "clone", "-q", *options, first, clone)
        assert programs.run("git", "fsck", "--strict", "--no-progress", cwd=clone).strip() == ""
    programs.run("git", "worktree", "add", "-q", here / "tree", cwd=first)
    assert programs.diff(repository, here / "tree", "-x", ".git") == ""


def test_repack_and_prune(here: Path, repository: Path) -> None:
    clone = programs.git_clone(repository, here)
    shell(
        """
        for n in $(seq 12); do echo $n >n; git add n; git commit -qm $n; done
        git reset -q --hard HEAD~3
        git repack -qd; git repack -qad --write-bitmap-index; git multi-pack-index write
        git reflog expire --expire=now --all; git prune --expire=now
        git commit-graph write --reachable; git multi-pack-index verify; git commit-graph verify
        git gc -q --prune=now
        """,
        clone,
    )
    programs.run("git", "fsck", "--strict", "--full", "--no-progress", cwd=clone)
    assert programs.run("git", "log", "--format=%s", "-1", cwd=clone) == "9\n"
    assert "count: 0" in programs.run("git", "count-objects", "-v", cwd=clone)


def test_a_new_index_is_right_at_once(here: Path, repository: Path) -> None:
    clone = programs.git_clone(repository, here)
    assert unrefreshed(clone) == ""
    assert programs.run("git", "status", "--porcelain", cwd=clone) == ""
    # The same second, the same size: only the times to the nanosecond tell.
    path = next(iter(sorted(clone.glob("package*/*/*.py"))))
    text = path.read_text()
    for old, new in (("w", "v"), ("w", "u")):
        path.write_text(text.replace(old, new))
        assert programs.run("git", "status", "--porcelain", cwd=clone).startswith(" M ")
    path.write_text(text)
    assert programs.run("git", "status", "--porcelain", cwd=clone) == ""
    assert unrefreshed(clone) == ""


def test_large_blobs(here: Path, repository: Path) -> None:
    clone = programs.git_clone(repository, here)
    content = os.urandom(LARGE_BYTES)
    (clone / "large").write_bytes(content)
    config = ["-c", "core.bigFileThreshold=1m"]
    programs.run("git", *config, "add", "large", cwd=clone)
    programs.run("git", *config, "commit", "-q", "-m", "large", cwd=clone)
    programs.run("git", *config, "repack", "-qad", cwd=clone)
    (clone / "large").unlink()
    programs.run("git", *config, "checkout", "-q", "large", cwd=clone)
    assert (clone / "large").read_bytes() == content
    assert programs.run("git", "fsck", "--strict", "--no-progress", cwd=clone).strip() == ""


def test_status_by_several_at_once(here: Path, repository: Path) -> None:
    clone = programs.git_clone(repository, here)
    command = "for n in 1 2 3 4 5; do git status --porcelain; git diff-index HEAD; done"
    with (
        background("bash", "-c", command, cwd=clone) as one,
        background("bash", "-c", command, cwd=clone) as two,
        background("bash", "-c", command, cwd=clone) as three,
    ):
        assert [finish(process) for process in (one, two, three)] == ["", "", ""]
    assert not (clone / ".git" / "index.lock").exists()
    assert programs.run("git", "fsck", "--no-progress", cwd=clone).strip() == ""


def test_the_index_is_right_on_another_host(
    here: Path, repository: Path, elsewhere: Elsewhere
) -> None:
    """Last in this module. Inode numbers, ctime and mtime come back: git reads no file again."""
    name = programs.git_clone(repository, here).relative_to(here.parent)
    clone = elsewhere() / name
    assert unrefreshed(clone) == ""
    programs.check_clone(repository, clone)
    programs.git_commit(clone)
