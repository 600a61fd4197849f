"""Repositories in every state that git state has to carry, and how two of them are compared.

Invariants
1. `STORIES` are shell scripts that begin in an empty directory, with fixed authors and dates; each
   ends in the state it is named for, and checks that itself.
2. `picture` is what git itself says of a repository, and the bytes of what it does not ignore.

Called by tests/snapshot and tests/e2e.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Final

from tests.support import programs

ENV: Final = {
    "GIT_AUTHOR_DATE": "2024-06-07T08:09:10Z",
    "GIT_COMMITTER_DATE": "2024-06-07T08:09:10Z",
    "GIT_EDITOR": "true",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
    "HOME": "/nonexistent",
}

BASE: Final = """
set -e
git init -q -b main .
mkdir sub; printf '*.log\\nbuild/\\n' >.gitignore
for n in 1 2 3 4; do
    seq $n 40 >file; echo "line $n" >>notes; echo "$n" >sub/deep; git add -A
    git commit -qm "commit $n"
done
git branch topic HEAD~2; git tag -am tagged v1 HEAD~1; git tag light HEAD~2
"""
DIRTY: Final = """
echo staged >>notes; git add notes; echo more >>notes
echo changed >file; rm sub/deep; echo new >"new file"; mkdir other; echo x >other/y
echo ignored >x.log; mkdir build; echo ignored >build/out
"""
CONFLICT: Final = """
git switch -qc side HEAD~2; seq 100 140 >file; echo side >only; git add -A; git commit -qm "side 1"
echo more >>only; git commit -qam "side 2"
"""

STORIES: Final = {
    "clean": BASE,
    "staged, modified, deleted, untracked, ignored": BASE + DIRTY,
    "modes and links": BASE
    + """
        chmod +x file; chmod 600 notes; ln -s notes link; git add link; ln -s ../away untracked-link
        rm sub/deep; ln -s ../file sub/deep; mkdir empty; chmod 400 .gitignore
    """,
    "a file became a directory, and the reverse": BASE
    + """
        rm file; mkdir file; echo inside >file/inside; rm -r sub; echo flat >sub
    """,
    "staged only: renamed, removed, intent to add": BASE
    + """
        git mv file moved; git rm -q --cached notes; echo later >later; git add -N later
    """,
    "assume unchanged and skip worktree": BASE
    + """
        git update-index --assume-unchanged notes; echo hidden >>notes
        git update-index --skip-worktree file; echo skipped >>file
    """,
    "merge with a conflict": BASE
    + CONFLICT
    + "! git merge -q main >/dev/null 2>&1; test -e .git/MERGE_HEAD; echo half >>only",
    "merge, half resolved": BASE
    + CONFLICT
    + """
        ! git merge -q main >/dev/null 2>&1; seq 7 >file; git add file; echo further >>file
        test -e .git/MERGE_HEAD
    """,
    "rebase with a conflict": BASE
    + CONFLICT
    + "! git rebase -q main >/dev/null 2>&1; test -d .git/rebase-merge; echo half >untracked",
    "rebase by patches with a conflict": BASE
    + CONFLICT
    + "! git rebase -q --apply main >/dev/null 2>&1; test -d .git/rebase-apply",
    "rebase with an autostash": BASE
    + CONFLICT
    + """
        echo dirty >>notes; ! git rebase -q --autostash main >/dev/null 2>&1
        test -e .git/rebase-merge/autostash
    """,
    "interactive rebase, stopped to edit": BASE
    + """
        GIT_SEQUENCE_EDITOR="sed -i -e '1s/^pick/edit/'" git rebase -qi HEAD~3 >/dev/null 2>&1
        echo amended >>notes; test -d .git/rebase-merge
    """,
    "cherry-pick with a conflict": BASE
    + CONFLICT
    + "! git cherry-pick main >/dev/null 2>&1; test -e .git/CHERRY_PICK_HEAD",
    "cherry-pick of several with a conflict": BASE
    + CONFLICT
    + "! git cherry-pick main~2 main~1 main >/dev/null 2>&1; test -d .git/sequencer",
    "revert with a conflict": BASE
    + "! git revert HEAD~2 >/dev/null 2>&1; test -e .git/REVERT_HEAD",
    "bisect": BASE
    + "git bisect start HEAD HEAD~3 >/dev/null; test -e .git/BISECT_LOG\ngit rev-parse bisect/bad",
    "am, stopped": BASE
    + CONFLICT
    + """
        git format-patch -q -2 -o ../patches-$$; git switch -q main
        ! git am -q ../patches-$$/*.patch >/dev/null 2>&1; rm -r ../patches-$$
        test -d .git/rebase-apply
    """,
    "detached": BASE
    + "git checkout -q HEAD~2; echo lost >>notes; git commit -qam detached; echo dirty >>notes",
    "stashes": BASE
    + """
        for n in 1 2 3; do echo "stash $n" >>notes; git add notes; echo "$n" >>file
            echo "$n" >"untracked $n"; git stash push -qu -m "stash number $n"; done
        git stash drop -q stash@{1}; echo dirty >>file
    """,
    "reset, amended, deleted branches: reflogs only": BASE
    + """
        git reset -q --hard HEAD~1; echo a >>notes; git commit -qam one
        git commit -q --amend -m two
        git branch gone HEAD~1; git branch -qD gone
    """,
    "notes, replacements, other refs": BASE
    + """
        git notes add -m "a note"; git notes --ref other add -m "another" HEAD~1
        git update-ref refs/odd/commit HEAD~3; git update-ref refs/odd/tree "HEAD^{tree}"
        git update-ref refs/odd/blob HEAD:notes; git replace HEAD~1 HEAD~2
        git update-ref refs/remotes/origin/main HEAD~1
        git symbolic-ref refs/remotes/origin/HEAD refs/remotes/origin/main
    """,
    "nothing committed yet": """
        set -e; git init -q -b trunk .; echo staged >a; git add a; echo more >>a; echo new >b
    """,
    "empty": "git init -q -b trunk .",
    "an unborn branch beside others": BASE + "git switch -q --orphan fresh; echo x >x; git add x",
    "packed": BASE + "git gc -q; git pack-refs --all; echo dirty >>notes; git tag later",
    "split index": BASE + "git update-index --split-index; echo s >s; git add s; echo t >>notes",
    "sparse": BASE
    + """
        mkdir far; echo far >far/away; git add far; git commit -qm far
        git sparse-checkout set --cone sub; test ! -e far; echo dirty >>notes
    """,
    "index of version 4": BASE + "git update-index --index-version 4; echo s >s; git add s",
    "untracked cache": BASE
    + DIRTY
    + "git update-index --force-untracked-cache; git status -s >x.log",
    "sha256": BASE.replace("git init -q", "git init -q --object-format=sha256") + DIRTY,
    "line ends": BASE
    + """
        printf '* text=auto\\n*.bin -text\\n*.id ident\\n' >.gitattributes
        printf 'a\\r\\nb\\r\\n' >dos
        printf '$Id$\\n' >name.id; git add -A 2>/dev/null; git commit -qm "line ends"
        rm dos name.id; git checkout -q .; printf 'a\\r\\nb\\r\\n' >dos; printf 'c\\r\\n' >new.txt
        git add dos 2>/dev/null
    """,
    "odd names": BASE
    + r"""
        printf x >"$(printf 'new\nline')"; printf x >"$(printf 'raw\377byte')"; printf x >'quo"te'
        printf x >' space '; printf x >'-dash'; printf x >':colon'; printf x >'git~1'
        printf x >'a\b'
        git add -- '-dash' './:colon' 'quo"te'; mkdir ':(top)d'; printf x >':(top)d/*'
    """,
    "ignores that undo each other": BASE
    + r"""
        mkdir -p a/b c; printf '*.o\n!keep.o\n/a/*\n!/a/b/\n' >.gitignore
        printf 'd\n' >c/.gitignore
        touch x.o keep.o a/x a/b/y a/b/z.o c/d c/e; mkdir -p d; touch d/f
        echo secret >>.git/info/exclude
        touch secret; mkdir -p build; echo kept >build/kept; git add -f build/kept; echo >build/not
    """,
}

_ASKED: Final = {
    "status": (
        "status",
        "--porcelain=v2",
        "--branch",
        "--show-stash",
        "-z",
        "--untracked-files=all",
    ),
    "status in words": ("status",),
    "stash list": ("stash", "list"),
    "log --all": ("log", "--all", "--format=%H %s"),
    "refs": ("for-each-ref", "--format=%(refname) %(objectname) %(symref)"),
    "reflogs": ("reflog", "--all", "--format=%H %gD %gs"),
    "index": ("ls-files", "--stage", "-z"),
    "flags": ("ls-files", "-v", "-f", "-z"),
    "resolve undo": ("ls-files", "--resolve-undo"),
    "diff": ("diff", "--no-ext-diff", "--no-textconv"),
    "diff --cached": ("diff", "--cached", "--no-ext-diff"),
    "fsck": ("fsck", "--no-progress"),
    "notes": ("notes", "list"),
}


def build(story: str, top: Path) -> Path:
    """A repository in this state, in the directory `top`."""
    top.mkdir(parents=True, exist_ok=True)
    run_script(STORIES[story], top)
    return top


def run_script(script: str, cwd: Path) -> str:
    """A shell script with fixed dates, to its end."""
    return programs.run("bash", "-e", "-c", script, cwd=cwd, env=ENV)


def git(cwd: Path, *words: str) -> str:
    """What git says, whatever its exit status, which comes last; not what it warns of."""
    done = subprocess.run(
        ["git", *words],
        cwd=cwd,
        env={**os.environ, **programs.GIT_ENV, **ENV},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.stdout.decode(errors="surrogateescape") + f"status {done.returncode}"


def picture(top: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """What git says of the repository at `top`, by question."""
    found = {name: git(top, *words) for name, words in _ASKED.items() if name not in leave_out}
    # Which of the unreachable objects are there is not part of a state.
    found["fsck"] = "\n".join(
        line
        for line in found.get("fsck", "").splitlines()
        if not line.startswith(("dangling", "warning"))
    )
    return found


def files(top: Path) -> dict[str, tuple[str, int, bytes]]:
    """Kind, permissions and bytes of all that git does not ignore."""
    listed = programs.run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=top, env=ENV)
    found = {}
    for name in set(listed.split("\0")) - {""}:
        raw = os.fsencode(top) + b"/" + name.encode(errors="surrogateescape")
        try:
            st = os.lstat(raw)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISLNK(st.st_mode):
            found[name] = ("link", 0, os.readlink(raw))
        elif stat.S_ISREG(st.st_mode):
            with open(raw, "rb") as file:
                found[name] = ("file", st.st_mode & 0o7777, file.read())
    return found


def everything(top: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Each file below `top`, `.git` and all, with its times: to see that nobody touched it."""
    found = {}
    for above, _, names in os.walk(top):
        for name in names:
            path = Path(above) / name
            st = path.lstat()
            data = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
            found[str(path)] = (st.st_ino, st.st_mtime_ns, st.st_ctime_ns, data)
    return found
