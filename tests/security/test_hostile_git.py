"""Repositories and bundles that would harm whoever looks at them: nothing of them runs, nothing of
them leaves its place, and the repositories beside them are not held up.

A canary is a file that any program named by such a repository would make.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from s3ws_fs.core.errors import FormatError, UserError
from s3ws_fs.snapshot.git import bundle, manifest, running, together
from s3ws_fs.snapshot.git.making import BROKEN, MADE, Made, make_bundles
from s3ws_fs.snapshot.git.objects import EXECUTABLE, FILE, SYMLINK, TREE, ObjectWriter
from s3ws_fs.snapshot.git.restoring import Options, restore
from s3ws_fs.snapshot.git.running import Git, GitError
from s3ws_fs.snapshot.git.tree import DirectoryTree
from tests.support import git_states
from tests.support.mounting import wait_until

PROGRAMS: Final = """
cat >evil.sh <<END
#!/bin/sh
echo "$0 $*" >>"{canary}"
cat
END
chmod +x evil.sh; evil=$PWD/evil.sh
for hook in post-index-change pre-commit post-checkout reference-transaction pre-auto-gc \\
    post-rewrite fsmonitor-watchman sendemail-validate; do cp evil.sh .git/hooks/$hook; done
mkdir ../lure; cp evil.sh ../lure/; cp evil.sh .git/evil
for name in core.fsmonitor core.sshCommand core.editor core.pager core.askPass core.gitProxy \\
    core.alternateRefsCommand credential.helper diff.external gpg.program sequence.editor \\
    uploadpack.packObjectsHook filter.evil.clean filter.evil.smudge filter.evil.process \\
    diff.evil.command diff.evil.textconv merge.evil.driver interactive.diffFilter \\
    pager.log pager.status trailer.evil.command http.proxy submodule.evil.update; do
    git config $name "$evil $name"
done
git config core.hooksPath "$PWD/.git"
git config alias.status "!$evil alias"; git config alias.fsck "!$evil alias"
git config filter.evil.required true
printf '[alias]\\n\\tlog = !%s included\\n[core]\\n\\tfsmonitor = %s\\n' "$evil" "$evil" >.git/more
git config include.path more; git config includeIf.gitdir:/.path more
git config remote.origin.url "ext::sh -c $evil"; git config remote.origin.promisor true
git config remote.origin.vcs evil; git config url."ext::$evil ".insteadOf https://
printf '* filter=evil diff=evil merge=evil\\n' >.gitattributes
echo dirty >>file
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A directory with a harmless repository in `good`."""
    top = tmp_path / "workspace"
    (top / "good").mkdir(parents=True)
    git_states.run_script("git init -q .; echo x >x; git add x", top / "good")
    return top


def bundles(workspace: Path, place: Path) -> dict[bytes, Made]:
    """Bundles of a workspace; the harmless one among them must always be made."""
    (place / "out").mkdir(parents=True, exist_ok=True)
    out = place / "out"
    made = {
        item.path: item for item in make_bundles(DirectoryTree(workspace), place / "state", out)
    }
    assert made[b"good"].outcome == MADE, made[b"good"].why
    return made


def evil(workspace: Path, script: str = "") -> Path:
    """A repository in `evil`, made by the script."""
    top = workspace / "evil"
    top.mkdir()
    git_states.run_script(git_states.BASE + script, top)
    return top


def test_no_program_of_a_repository_runs(workspace: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    top = evil(workspace, PROGRAMS.format(canary=canary))
    canary.unlink(missing_ok=True)
    # It bites: whoever runs git there has it run.
    subprocess.run(["git", "-C", top, "diff"], capture_output=True, check=False)
    assert canary.exists()
    canary.unlink()
    before = git_states.everything(top)
    made = bundles(workspace, tmp_path / "cache")[b"evil"]
    assert git_states.everything(top) == before
    assert made.outcome == MADE, made.why
    assert not canary.exists()
    assert made.file is not None
    restored = tmp_path / "restored"
    done = restore([made.file], restored, Options())
    assert not canary.exists()
    for words in ("status", "diff", "log", "add -A", "commit -qm x", "fsck", "gc -q", "fetch"):
        git_states.git(restored, *words.split())
    assert not canary.exists()
    assert (restored / ".git" / "hooks.restored" / "pre-commit").exists()
    assert not (restored / ".git" / "hooks").exists()
    assert (restored / "file").read_bytes() == (top / "file").read_bytes()
    assert {"core.fsmonitor", "include.path", "alias.status"} <= {
        name.lower() if not name.startswith("alias") else name for name in done.inert
    }


CANARY_CONFIG: Final = """
mkdir -p fake.git/hooks fake.git/refs; cd fake.git
printf '[core]\\nrepositoryformatversion = 0\\nfsmonitor = touch {canary}; false\\n' >config
printf '#!/bin/sh\\ntouch {canary}\\n' >hooks/pre-commit; chmod +x hooks/pre-commit; cd ..
"""


def test_no_other_directory_is_made_gits_own(workspace: Path, tmp_path: Path) -> None:
    """A `commondir` in a repository's own directory: git took its configuration and hooks from a
    directory of the work tree."""
    canary = tmp_path / "canary"
    script = CANARY_CONFIG.format(canary=canary)
    top = evil(
        workspace,
        script + "cp -r .git/objects .git/refs fake.git/; echo ../fake.git >.git/commondir",
    )
    subprocess.run(["git", "-C", top, "status"], capture_output=True, check=False)
    assert canary.exists(), "it does not bite"
    canary.unlink()
    made = bundles(workspace, tmp_path / "cache")[b"evil"]
    assert made.outcome == MADE and made.file is not None, made.why
    restored = tmp_path / "restored"
    restore([made.file], restored, Options())
    assert (restored / "fake.git" / "config").exists()
    for words in ("status", "add -A", "commit -qm x"):
        git_states.git(restored, *words.split())
    assert not canary.exists()


def test_a_linked_work_trees_own_configuration_is_none(workspace: Path, tmp_path: Path) -> None:
    """It came as it was, with the repository that it is linked to."""
    canary = tmp_path / "canary"
    top = evil(
        workspace,
        "git config extensions.worktreeConfig true; git worktree add -q beside; "
        f"git -C beside config --worktree core.fsmonitor 'touch {canary}; false'; "
        "mkdir -p .git/worktrees/beside/modules/m; cp .git/config .git/worktrees/beside/modules/m",
    )
    git_states.git(top / "beside", "status")
    assert canary.exists(), "it does not bite"
    canary.unlink()
    made = bundles(workspace, tmp_path / "cache")
    target = tmp_path / "restored"
    done = {}
    for path in (b"evil", b"evil/beside"):
        file = made[path].file
        assert file is not None
        done[path] = restore([file], target / path.decode(), Options())
    for path, item in done.items():
        assert together.join_up(item, target / path.decode(), target) == (item.kind == "worktree")
    for words in ("status", "add -A", "commit --allow-empty -qm x"):
        git_states.git(target / "evil" / "beside", *words.split())
    assert not canary.exists()
    admin = target / "evil" / ".git" / "worktrees" / "beside"
    assert (admin / "config.worktree.original").exists()
    assert not (admin / "modules").exists()


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("submodule", (b"sub", b".git/hooks", b".git/hooks")),
        ("submodule", (b"sub", b".git/hooks/x/modules/y", b".git/hooks/x/modules/y")),
        ("worktree", (b"sub", b"fake.git/worktrees/x", b"fake.git")),
        ("worktree", (b"sub", b"fake.git", b".git")),
    ],
)
def test_a_repository_is_joined_to_nothing_but_a_git_directory(
    kind: str, where: tuple[bytes, bytes, bytes], forge: Forge, tmp_path: Path
) -> None:
    """A submodule became another one's hooks; a linked work tree's git was files of a work tree."""
    top = tmp_path / "top"
    restore([forge.bundle()], top, Options())
    for name in ("objects/pack", "worktrees/x"):
        (top / "fake.git" / name).mkdir(parents=True)
    for name in ("HEAD", "worktrees/x/HEAD"):
        (top / "fake.git" / name).write_text("ref: refs/heads/main\n")
    before = set(top.rglob("*"))
    forge.file.unlink()
    hook = {b"pre-commit": (0o755, b"#!/bin/sh\n")}
    done = restore([forge.bundle(git=hook, kind=kind, where=where)], top / "sub", Options())
    assert not together.join_up(done, top / "sub", top)
    assert (top / "sub" / ".git").is_dir()
    assert {path for path in top.rglob("*") if "sub" not in path.parts} == before


@pytest.mark.parametrize(
    ("path", "leads"),
    [
        (b".git/hooks", True),
        (b".git/modules/a", False),
        (b".git/modules/a/modules/b", False),
        (b".git/modules/a/hooks", True),
        (b"bare.git/hooks", True),
        (b"deep/nested", False),
        (b"", False),
    ],
)
def test_no_repository_is_restored_into_anothers(path: bytes, leads: bool, tmp_path: Path) -> None:
    for place in (".git", ".git/modules/a", "bare.git"):
        (tmp_path / place / "objects").mkdir(parents=True)
        (tmp_path / place / "HEAD").touch()
    assert together.leads_into_git(path, tmp_path) == leads


def test_what_a_person_asks_for_is_restored(workspace: Path, tmp_path: Path) -> None:
    top = evil(workspace, "cp /bin/true .git/hooks/pre-commit; git config alias.st status")
    made = bundles(workspace, tmp_path / "cache")[b"evil"]
    assert made.file is not None
    restored = tmp_path / "restored"
    restore([made.file], restored, Options(with_hooks=True, with_config=True))
    assert os.access(restored / ".git" / "hooks" / "pre-commit", os.X_OK)
    assert (restored / ".git" / "config").read_bytes() == (top / ".git" / "config").read_bytes()


def test_a_missing_object_is_asked_of_nobody(workspace: Path, tmp_path: Path) -> None:
    """A partial clone whose promisor is a program."""
    canary = tmp_path / "canary"
    top = evil(
        workspace,
        f"""
        git config extensions.partialclone origin; git config remote.origin.promisor true
        git config core.repositoryformatversion 1
        git config remote.origin.url "ext::sh -c 'touch {canary}'"
        git config protocol.ext.allow always
        blob=$(git rev-parse HEAD~2:file); rm -f .git/objects/$(echo $blob | sed 's,^..,&/,')
        """,
    )
    bundles(workspace, tmp_path / "cache")
    assert not canary.exists()
    assert top.exists()


def _link_git(top: Path, outside: Path) -> None:
    shutil.move(top / ".git", outside)
    (top / ".git").symlink_to(outside)


def _file_absolute(top: Path, outside: Path) -> None:
    shutil.move(top / ".git", outside)
    (top / ".git").write_text(f"gitdir: {outside}\n")


def _file_relative(top: Path, outside: Path) -> None:
    shutil.move(top / ".git", outside)
    (top / ".git").write_text(f"gitdir: {os.path.relpath(outside, top)}\n")


def _link_objects(top: Path, outside: Path) -> None:
    shutil.move(top / ".git" / "objects", outside)
    (top / ".git" / "objects").symlink_to(outside)


def _link_refs(top: Path, outside: Path) -> None:
    shutil.move(top / ".git" / "refs", outside)
    (top / ".git" / "refs").symlink_to(outside)


def _link_head(top: Path, outside: Path) -> None:
    shutil.move(top / ".git" / "HEAD", outside)
    (top / ".git" / "HEAD").symlink_to(outside)


def _commondir(top: Path, outside: Path) -> None:
    shutil.move(top / ".git", outside)
    admin = top / "admin"
    admin.mkdir()
    (admin / "HEAD").write_text("ref: refs/heads/main\n")
    (admin / "commondir").write_text(f"{outside}\n")
    (top / ".git").write_text("gitdir: admin\n")


def _alternates(top: Path, outside: Path) -> None:
    shutil.move(top / ".git" / "objects", outside)
    (top / ".git" / "objects" / "info").mkdir(parents=True)
    (top / ".git" / "objects" / "info" / "alternates").write_text(f"{outside}\n")


@pytest.mark.parametrize(
    "how",
    [
        _link_git,
        _file_absolute,
        _file_relative,
        _link_objects,
        _link_refs,
        _link_head,
        _commondir,
        _alternates,
    ],
)
def test_nothing_outside_of_the_workspace_is_taken(
    how: Callable[[Path, Path], None], workspace: Path, tmp_path: Path
) -> None:
    top = evil(workspace)
    how(top, tmp_path / "outside")
    made = bundles(workspace, tmp_path / "cache")[b"evil"]
    assert made.outcome == BROKEN
    assert made.why


def test_links_within_a_repository_are_taken_as_links(workspace: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "deep").write_text("secret bytes")
    (secret / "packed-refs").write_text("secret bytes")
    top = evil(
        workspace,
        f"""
        rm -r sub; ln -s {secret} sub; rm .gitignore; ln -s {secret}/deep .gitignore
        ln -s {secret}/packed-refs .git/packed-refs; ln -s {secret} .git/refs/away
        rm -rf .git/info; ln -s {secret} .git/info; ln -s {secret}/deep .git/MERGE_MSG
        rm .git/index; ln -s {secret}/deep .git/index; mkfifo pipe .git/pipe
        """,
    )
    made = bundles(workspace, tmp_path / "cache")[b"evil"]
    assert made.outcome == MADE, made.why
    assert made.left_out
    assert made.file is not None
    restored = tmp_path / "restored"
    restore([made.file], restored, Options())
    assert (restored / "sub").is_symlink()
    for path in restored.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"secret bytes" not in path.read_bytes()
    assert top.exists()


@pytest.mark.parametrize("what", ["commit", "blob", "pack", "index", "idx", "HEAD", "packed-refs"])
def test_a_damaged_repository_is_told_and_holds_nobody_up(
    what: str, workspace: Path, tmp_path: Path
) -> None:
    top = evil(workspace, "git gc -q; echo new >new; git add new; git commit -qm new")
    git_dir = top / ".git"
    if what in ("commit", "blob"):
        name = git_states.git(top, "rev-parse", "HEAD" if what == "commit" else "HEAD:new")[:40]
        victim = git_dir / "objects" / name[:2] / name[2:]
    elif what in ("pack", "idx"):
        victim = next((git_dir / "objects" / "pack").glob(f"*.{what}"))
    else:
        victim = git_dir / what
    victim.chmod(0o600)
    data = bytearray(victim.read_bytes())
    data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
    victim.write_bytes(data)
    made = bundles(workspace, tmp_path / "cache")[b"evil"]
    if made.outcome == MADE:
        # What git does without, it may do without here, too; what came out of it is whole.
        assert made.file is not None
        restore([made.file], tmp_path / "restored", Options())
    else:
        assert made.why


def test_a_bundle_that_is_cut_off_leaves_nothing(workspace: Path, tmp_path: Path) -> None:
    evil(workspace)
    made = bundles(workspace, tmp_path / "cache")[b"evil"]
    assert made.file is not None
    data = made.file.read_bytes()
    for size in (0, 10, 40, len(data) // 2, len(data) - 1):
        made.file.write_bytes(data[:size])
        with pytest.raises((UserError, GitError, FormatError)):
            restore([made.file], tmp_path / "restored", Options())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "workspace"]


# --- bundles made to do harm -----------------------------------------------------------------


class Forge:
    """Bundles whose trees and manifests say what they like."""

    def __init__(self, place: Path) -> None:
        self.git_dir = place / "forge.git"
        scratch = place / "forge-scratch"
        scratch.mkdir()
        self.git = Git(self.git_dir, scratch)
        self.git.run("init", "-q", "--bare", "--template=")
        self.writer = ObjectWriter(self.git_dir / "objects", "sha1")
        self.file = place / "forged.bundle"

    def bundle(
        self,
        *,
        git: dict[bytes, tuple[int, bytes]] | None = None,
        tree: list[tuple[int, bytes, str]] | None = None,
        modes: dict[bytes, int] | None = None,
        raw: bytes | None = None,
        kind: str = "repository",
        where: tuple[bytes, bytes, bytes] = (b"", b".git", b".git"),
    ) -> Path:
        """A bundle with these files of git's own, this work tree, or this manifest."""
        own = {b"HEAD": (0o644, b"ref: refs/heads/main\n"), **(git or {})}
        said = manifest.Manifest(kind, where, "sha1", modes=modes or {})
        said.git = {name: (mode, self.writer.data(data)) for name, (mode, data) in own.items()}
        blobs = {oid for _, oid in said.git.values()}
        state = self.writer.commit(
            self.writer.tree(
                [
                    (FILE, b"manifest.json", self.writer.data(raw or said.encode())),
                    (TREE, b"git", self.writer.tree((FILE, b.encode(), b) for b in blobs)),
                    (TREE, b"worktree", self.writer.tree(tree or [])),
                ]
            ),
            [],
            "forged",
        )
        bundle.write(self.file, self.git, [(manifest.STATE_REF, state)], "sha1")
        return self.file


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """See there."""
    return Forge(tmp_path)


@pytest.mark.parametrize(
    "name", [b"../escaped", b"/escaped", b"a/../../escaped", b"", b".", b"a//b", b"x\0y"]
)
def test_a_name_of_gits_own_files_leads_nowhere_else(
    name: bytes, forge: Forge, tmp_path: Path
) -> None:
    file = forge.bundle(git={name: (0o644, b"x")})
    with pytest.raises((FormatError, ValueError)):
        restore([file], tmp_path / "top" / "restored", Options())
    assert not list(tmp_path.rglob("escaped*"))
    assert not list((tmp_path / "top").iterdir())


@pytest.mark.parametrize("name", [b".git", b".GIT", b"..", b"."])
def test_a_name_of_the_work_tree_leads_nowhere_else(
    name: bytes, forge: Forge, tmp_path: Path
) -> None:
    blob = forge.writer.data(b"x")
    inner = forge.writer.tree([(EXECUTABLE, b"escaped", blob)])
    file = forge.bundle(tree=[(TREE, name, inner)])
    with pytest.raises((FormatError, GitError)):
        restore([file], tmp_path / "top" / "restored", Options())
    assert not list(tmp_path.rglob("escaped*"))


def test_no_file_is_written_through_a_link(forge: Forge, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    link = forge.writer.data(os.fsencode(away))
    inner = forge.writer.tree([(FILE, b"escaped", forge.writer.data(b"x"))])
    file = forge.bundle(tree=[(SYMLINK, b"a", link), (TREE, b"a", inner)])
    with pytest.raises((FormatError, GitError)):
        restore([file], tmp_path / "top" / "restored", Options())
    assert not list(away.iterdir())


def test_no_file_gets_more_rights_than_a_file_of_git(forge: Forge, tmp_path: Path) -> None:
    tree = [(EXECUTABLE, b"run", forge.writer.data(b"x"))]
    file = forge.bundle(tree=tree, modes={b"run": 0o7777}, git={b"x": (0o7777, b"x")})
    restore([file], tmp_path / "restored", Options())
    for path in ("run", ".git/x"):
        assert stat.S_IMODE((tmp_path / "restored" / path).stat().st_mode) == 0o777


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"format": 2}', b'{"format": 1}', b"null"])
def test_a_manifest_of_another_shape_is_refused(raw: bytes, forge: Forge, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        restore([forge.bundle(raw=raw)], tmp_path / "top" / "restored", Options())
    assert not list((tmp_path / "top").iterdir())


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../../../../etc/passwd", ".git/hooks/pre-commit"]
)
def test_a_link_is_made_and_not_followed(target: str, forge: Forge, tmp_path: Path) -> None:
    link = forge.writer.data(target.encode())
    restore([forge.bundle(tree=[(SYMLINK, b"link", link)])], tmp_path / "restored", Options())
    assert os.readlink(tmp_path / "restored" / "link") == target


def test_a_place_that_is_taken_is_left_alone(forge: Forge, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    away = tmp_path / "link"
    away.symlink_to(tmp_path / "nowhere")
    for place in (taken, away, taken / "mine"):
        with pytest.raises(UserError, match="exists"):
            restore([forge.bundle()], place, Options())
        forge.file.unlink()
    assert (taken / "mine").read_text() == "mine"


# --- git itself ------------------------------------------------------------------------------


def test_git_gets_no_secret_and_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\n\tname = Somebody\n")
    for name, value in {
        "HOME": str(home),
        "AWS_SECRET_ACCESS_KEY": "sesame",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "user.name",
        "GIT_CONFIG_VALUE_0": "Somebody",
        "GIT_DIR": "/elsewhere",
    }.items():
        monkeypatch.setenv(name, value)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    git = Git(tmp_path / "a.git", scratch)
    git.run("init", "-q", "--bare", "--template=")
    assert git.run("config", "user.name", ok=(1,)) == b""
    # An alias by -c is a way to see the environment that programs of git would get.
    seen = git.run("-c", "alias.env=!env", "env").decode()
    assert "sesame" not in seen
    assert str(home) not in seen
    assert "/elsewhere" not in seen


def test_git_ends_with_whoever_started_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    script = f"""
from pathlib import Path
from s3ws_fs.snapshot.git.running import Git
top = Path({str(tmp_path)!r})
git = Git(top / "a.git", top)
git.run("init", "-q", "--bare", "--template=")
talk = git.converse("cat-file", "--batch")
Path({str(marker)!r}).write_text(str(talk._process.pid))
input()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as parent:
        wait_until(lambda: marker.exists() and marker.read_text() != "")
        at = Path(f"/proc/{marker.read_text()}/stat")
        assert at.exists()
        parent.kill()
        wait_until(lambda: not at.exists() or at.read_text().rsplit(")", 1)[1].split()[0] in "ZX")


def test_git_ends_by_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    git = Git(tmp_path / "a.git", scratch, run_s_max=1.0)
    Git(tmp_path / "a.git", scratch).run("init", "-q", "--bare", "--template=")
    marker = tmp_path / "pid"
    with pytest.raises(GitError, match="did not end within"):
        git.run("-c", f"alias.wait=!echo $$ >{marker}; exec sleep 1000", "wait")
    # Killed with it; whose child it is by now buries it.
    if marker.exists():
        at = Path(f"/proc/{marker.read_text().strip()}/stat")
        wait_until(lambda: not at.exists() or at.read_text().rsplit(")", 1)[1].split()[0] in "ZX")
    monkeypatch.setattr(running, "OUTPUT_BYTES_MAX", 1024)
    # What git starts has the limits from its first moment on: it once got them a little later.
    for _ in range(10):
        said = Git(tmp_path / "a.git", scratch).run("-c", "alias.limits=!ulimit -f", "limits")
        assert said == b"2\n"  # of 512 bytes
    with pytest.raises(GitError):
        Git(tmp_path / "a.git", scratch).run("-c", "alias.much=!yes", "much")
    monkeypatch.setattr(running, "git_program", lambda: "/nonexistent/git")
    with pytest.raises(GitError, match="can't be run"):
        git.run("version")
