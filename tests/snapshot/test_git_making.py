"""When a bundle is made, when it is added to, and what is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from s3ws_fs.snapshot.git import making
from s3ws_fs.snapshot.git.bundle import first_state, read_header
from s3ws_fs.snapshot.git.making import BROKEN, MADE, UNCHANGED, Made, make_bundles
from s3ws_fs.snapshot.git.memory import note_uploaded
from s3ws_fs.snapshot.git.restoring import Options, restore
from s3ws_fs.snapshot.git.tree import DirectoryTree
from tests.support import git_states, programs


class Looks:
    """One workspace that is looked at again and again, and its bucket."""

    def __init__(self, top: Path) -> None:
        self.workspace = top / "workspace"
        self.state = top / "cache"
        self.out = top / "out"
        self.out.mkdir()
        self.bucket: dict[str, Path] = {}
        git_states.build("staged, modified, deleted, untracked, ignored", self.workspace)

    def look(self, *, put: bool = True) -> Made:
        """One look; what was made is put."""

        def base(key: str) -> str | None:
            found = self.bucket.get(key)
            return None if found is None else first_state(found.read_bytes()[:4096])

        (made,) = make_bundles(
            DirectoryTree(self.workspace), self.state, self.out, base_in_bucket=base
        )
        if made.outcome == MADE and put:
            assert made.file is not None
            stored = self.out / made.key.replace("/", "_")
            made.file.rename(stored)
            self.bucket[made.key] = stored
            note_uploaded(self.state, made.path, made.state)
        return made

    def run(self, script: str) -> None:
        """A script in the workspace."""
        git_states.run_script(script, self.workspace)


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    """See there."""
    return Looks(tmp_path)


CHANGES = {
    "a file": "echo more >>file",
    "permissions": "chmod +x file",
    "an untracked file": "echo >another",
    "the index": "git add 'new file'",
    "a ref": "git branch another",
    "a stash": "git stash -q",
    "a hook": "echo >.git/hooks/pre-push",
    "the configuration": "git config user.name Somebody",
    "a deletion": "rm file",
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_bundled_and_nothing_else(what: str, looks: Looks) -> None:
    first = looks.look()
    assert first.outcome == MADE
    assert looks.look().outcome == UNCHANGED
    looks.run(CHANGES[what])
    second = looks.look()
    assert second.outcome == MADE
    assert second.state != first.state
    assert looks.look().outcome == UNCHANGED


@pytest.mark.parametrize("script", ["echo >build/more", "touch file", "mkdir -p build/x"])
def test_what_is_no_change_of_state_is_not_bundled(script: str, looks: Looks) -> None:
    looks.look()
    looks.run(script)
    assert looks.look().outcome == UNCHANGED


def test_what_was_not_put_is_made_again(looks: Looks) -> None:
    assert looks.look(put=False).outcome == MADE
    assert looks.look(put=False).outcome == MADE
    assert looks.look().outcome == MADE
    assert looks.look().outcome == UNCHANGED


def test_a_state_is_the_same_wherever_it_is_taken(looks: Looks, tmp_path: Path) -> None:
    looks.run("rm .git/index; git reset -q")
    state = looks.look().state
    programs.run("cp", "-a", looks.workspace, tmp_path / "copy")
    (made,) = make_bundles(DirectoryTree(tmp_path / "copy"), tmp_path / "other", looks.out)
    assert made.state == state


def restored_is_same(looks: Looks, target: Path) -> bool:
    """Whether the bucket gives the workspace."""
    files = [looks.bucket["git/workspace.bundle"]]
    more = looks.bucket.get("git/workspace.bundle-more")
    if more is not None:
        with more.open("rb") as one, files[0].open("rb") as whole:
            if read_header(whole).state in read_header(one).prerequisites:
                files.append(more)
    restore(files, target, Options())
    same: bool = git_states.picture(target) == git_states.picture(looks.workspace)
    return same and git_states.files(target) == git_states.files(looks.workspace)


def test_a_large_repository_is_added_to(
    looks: Looks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "INCREMENT_MIN_BYTES", 100_000)
    (looks.workspace / "large").write_bytes(os.urandom(300_000))
    (looks.workspace / "large and untracked").write_bytes(os.urandom(200_000))
    looks.run("git add large; git commit -qm large")
    whole = looks.look()
    assert not whole.is_increment
    for number in range(3):
        looks.run(f"echo {number} >>file; git add file; git commit -qm 'number {number}'")
        looks.run("echo dirty >>notes; git stash -q; echo dirtier >>notes")
        more = looks.look()
        assert more.is_increment
        assert more.key == "git/workspace.bundle-more"
        assert more.bundle_bytes < 50_000
        assert restored_is_same(looks, tmp_path / f"restored {number}")
    # Plain git, too.
    clone = tmp_path / "clone"
    programs.run("git", "clone", "-q", "--mirror", looks.bucket["git/workspace.bundle"], clone)
    more_file = looks.bucket["git/workspace.bundle-more"]
    programs.run("git", "fetch", "-q", more_file, "+refs/*:refs/*", cwd=clone)
    heads = [programs.run("git", "rev-parse", "main", cwd=c) for c in (clone, looks.workspace)]
    assert heads[0] == heads[1]
    # More than half of it is new: a whole one, and what was added before counts no more.
    (looks.workspace / "another").write_bytes(os.urandom(400_000))
    again = looks.look()
    assert not again.is_increment
    assert again.key == "git/workspace.bundle"
    assert restored_is_same(looks, tmp_path / "restored again")


def test_nothing_is_added_to_what_somebody_else_put(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "INCREMENT_MIN_BYTES", 0)
    looks.look()
    looks.bucket.clear()
    looks.run("echo more >>file")
    made = looks.look()
    assert not made.is_increment


def test_objects_that_were_repacked_or_spoilt_are_copied_anew(looks: Looks, tmp_path: Path) -> None:
    looks.look()
    looks.run("echo x >>notes; git add -A; git commit -qm x; git repack -adq; git prune")
    looks.look()
    assert restored_is_same(looks, tmp_path / "one")
    # The same name with other bytes: as git would be, we are told.
    pack = next((looks.workspace / ".git/objects/pack").glob("*.pack"))
    pack.chmod(0o600)
    data = pack.read_bytes()
    pack.write_bytes(bytes(len(data)))
    looks.run("echo y >>notes")
    assert looks.look().outcome == BROKEN
    pack.write_bytes(data)
    assert looks.look().outcome == MADE
    assert restored_is_same(looks, tmp_path / "two")


def test_reflogs_that_lead_to_lost_objects_cost_these_alone(looks: Looks, tmp_path: Path) -> None:
    looks.run(
        """
        git checkout -q -- . ; git switch -q -c gone; echo 1 >>notes; git commit -qam gone1
        echo 2 >>notes; git commit -qam gone2; parent=$(git rev-parse HEAD~1)
        git switch -q main; git branch -qD gone
        rm -f .git/objects/$(echo $parent | sed 's,^..,&/,')
        """
    )
    made = looks.look()
    assert made.outcome == MADE, made.why
    assert any("reflogs" in note for note in made.notes)
    restore([looks.bucket["git/workspace.bundle"]], tmp_path / "restored", Options())
    assert git_states.files(tmp_path / "restored") == git_states.files(looks.workspace)


def test_a_copy_that_is_gone_is_made_again(looks: Looks, tmp_path: Path) -> None:
    looks.look()
    looks.run("echo more >>file")
    for name in ("copied.json", "repo.git"):
        programs.run("find", looks.state, "-name", name, "-prune", "-exec", "rm", "-rf", "{}", "+")
        looks.run("echo more >>file")
        assert looks.look().outcome == MADE
        assert restored_is_same(looks, tmp_path / f"without {name}")


def test_a_shallow_clone_is_restored_as_one(tmp_path: Path) -> None:
    original = git_states.build("clean", tmp_path / "original")
    shallow = tmp_path / "workspace"
    programs.run("git", "clone", "-q", "--depth=2", f"file://{original}", shallow)
    (made,) = make_bundles(DirectoryTree(shallow), tmp_path / "cache", tmp_path)
    assert made.outcome == MADE, made.why
    assert made.file is not None
    restore([made.file], tmp_path / "restored", Options())
    assert git_states.picture(tmp_path / "restored") == git_states.picture(shallow)


def test_a_partial_clone_is_restored_as_one(tmp_path: Path) -> None:
    original = git_states.build("clean", tmp_path / "original")
    programs.run("git", "config", "uploadpack.allowFilter", "true", cwd=original)
    partial = tmp_path / "workspace"
    programs.run("git", "clone", "-q", "--filter=blob:none", f"file://{original}", partial)
    missing = git_states.git(partial, "rev-list", "--objects", "--all", "--missing=print")
    assert "?" in missing
    (partial / "file").write_text("changed")
    (made,) = make_bundles(DirectoryTree(partial), tmp_path / "cache", tmp_path)
    assert made.outcome == MADE, made.why
    assert made.file is not None
    restore([made.file], tmp_path / "restored", Options())
    assert git_states.files(tmp_path / "restored") == git_states.files(partial)
    assert git_states.picture(tmp_path / "restored") == git_states.picture(partial)
    # What was missing there is missing here, and comes from the same place.
    assert missing == git_states.git(
        tmp_path / "restored", "rev-list", "--objects", "--all", "--missing=print"
    )
    assert git_states.git(tmp_path / "restored", "show", "HEAD~2:file").startswith("2\n")


def test_a_bundle_larger_than_what_git_may_say(
    looks: Looks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (looks.workspace / "large").write_bytes(os.urandom(300_000))
    monkeypatch.setattr("s3ws_fs.snapshot.git.running.OUTPUT_BYTES_MAX", 100_000)
    looks.look()
    assert restored_is_same(looks, tmp_path / "restored")


def test_many_notes_are_told_in_part(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "NOTES_MAX", 3)
    looks.run(
        """
        for n in 1 2 3 4 5; do
            printf '%040d\n' $n >.git/refs/heads/lost$n
        done
        """
    )
    made = looks.look()
    assert made.outcome == MADE, made.why
    assert len(made.notes) == 3
    assert "names an object that is missing" in made.notes[0]


# --- limits ----------------------------------------------------------------------------------


def _too_little_room(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(making, "ROOM_BYTES_MIN", 1 << 60)
    return "no room"


def _too_many_objects(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("s3ws_fs.snapshot.git.shadow.OBJECTS_BYTES_MAX", 1000)
    return "MiB of objects"


def _too_many_refs(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("s3ws_fs.snapshot.git.shadow.REFS_MAX", 3)
    return "more than 3 loose refs"


def _no_git(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", "/nonexistent")
    return "git is not installed"


@pytest.mark.parametrize("limit", [_too_little_room, _too_many_objects, _too_many_refs, _no_git])
def test_a_limit_is_told(
    limit: Callable[[pytest.MonkeyPatch], str], looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        told = limit(patch)
        made = looks.look()
    assert made.outcome == BROKEN
    assert told in made.why
    assert looks.look().outcome == MADE


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("worktree.FILE_BYTES_MAX", 4, {"new file", "other/y", "file", "notes"}),
        ("worktree.UNTRACKED_MAX", 1, {"other/y"}),
        ("worktree.NEW_BYTES_MAX", 10, None),
        ("state.GIT_FILE_BYTES_MAX", 1000, None),
        ("state.GIT_FILES_MAX", 5, None),
    ],
)
def test_what_is_left_out_is_named(
    name: str,
    value: int,
    left: set[str] | None,
    looks: Looks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"s3ws_fs.snapshot.git.{name}", value)
    made = looks.look()
    if made.outcome == BROKEN:
        # Without its index or HEAD there is no state.
        assert name == "state.GIT_FILES_MAX"
        return
    assert made.left_out > 0
    if name.startswith("worktree"):
        done = restore([looks.bucket[made.key]], tmp_path / "restored", Options())
        assert done.left_out_count == made.left_out
        named = {path.decode() for path, _ in done.left_out}
        assert named
        assert left is None or named <= left
        for path in named:
            assert not (tmp_path / "restored" / path).exists()


def test_shadows_are_bounded(looks: Looks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "SHADOWS_BYTES_MAX", 1000)
    looks.look()
    assert not list(looks.state.rglob("*.pack"))
    assert not list(looks.state.rglob("repo.git"))
    assert looks.look().outcome == UNCHANGED
    looks.run("echo more >>file")
    assert looks.look().outcome == MADE
    assert restored_is_same(looks, tmp_path / "restored")


def test_too_many_repositories_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3ws_fs.snapshot.git.find.REPOSITORIES_MAX", 3)
    for number in range(5):
        git_states.build("empty", tmp_path / "workspace" / f"r{number}")
    made = list(make_bundles(DirectoryTree(tmp_path / "workspace"), tmp_path / "cache", tmp_path))
    assert [item.outcome for item in made] == [MADE, MADE, MADE, BROKEN]


def test_the_shadow_of_a_repository_that_is_gone_goes(looks: Looks) -> None:
    looks.look()
    assert any(looks.state.iterdir())
    looks.run("rm -rf .git")
    assert list(make_bundles(DirectoryTree(looks.workspace), looks.state, looks.out)) == []
    assert not any(looks.state.iterdir())


@pytest.mark.parametrize("value", ["reftable", "RefTable", "something-new"])
def test_refs_that_are_stored_otherwise_are_no_reason_to_stop(value: str, tmp_path: Path) -> None:
    """As `git init --ref-format=reftable` of a newer git makes it; this machine's may know none."""
    workspace = tmp_path / "workspace"
    for name in ("other", "usual"):
        (workspace / name).mkdir(parents=True)
        git_states.run_script(git_states.BASE, workspace / name)
    git_dir = workspace / "other" / ".git"
    shutil.rmtree(git_dir / "refs")
    (git_dir / "refs").mkdir()
    (git_dir / "refs" / "heads").write_text("this repository uses the reftable format\n")
    (git_dir / "HEAD").write_text("ref: refs/heads/.invalid\n")
    (git_dir / "reftable").mkdir()
    (git_dir / "reftable" / "tables.list").write_text(
        "0x000000000001-0x000000000001-5ac7ff55.ref\n"
    )
    (git_dir / "reftable" / "0x000000000001-0x000000000001-5ac7ff55.ref").write_bytes(b"REFT\1")
    with (git_dir / "config").open("a") as config:
        config.write(
            f"[core]\n\trepositoryformatversion = 1\n[extensions]\n\trefStorage = {value}\n"
        )
    before = git_states.everything(workspace)
    (tmp_path / "out").mkdir()

    def look() -> dict[bytes, Made]:
        tree = DirectoryTree(workspace)
        return {
            item.path: item for item in make_bundles(tree, tmp_path / "state", tmp_path / "out")
        }

    made = look()
    assert git_states.everything(workspace) == before
    assert made[b"usual"].outcome == MADE
    assert made[b"other"].outcome == BROKEN
    for words in (value.lower(), "not supported", "git refs migrate --ref-format=files"):
        assert words in made[b"other"].why
    # Told as one line, and again as long as it is so; a repository that was migrated has a bundle.
    assert "\n" not in made[b"other"].why
    assert look()[b"other"].why == made[b"other"].why
    shutil.rmtree(workspace / "other")
    (workspace / "other").mkdir()
    git_states.run_script(git_states.BASE, workspace / "other")
    assert look()[b"other"].outcome == MADE
