"""Git state through a real mount: sync, unmount, and a repository made of the bundle elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import git_states, programs
from tests.support.buckets import Bucket, LocalBucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

SETTINGS = {"WORKSPACE_SYNC_POINT_INTERVAL": "1", "WORKSPACE_LEASE_S": "3", **NEVER_BY_ITSELF}


def restored(host: Host, target: Path, *words: str) -> Any:
    """`s3ws git restore` on a host without a mount or a cache."""
    return host.json("git", "restore", *words, "--to", target)


def bundle(bucket: Bucket, host: Host, name: str = "workspace") -> bytes:
    """A bundle as it stands in the bucket."""
    return bucket.get(f"{host.prefix}git/{name}.bundle").body


def make(host: Host, script: str, where: str = ".") -> Path:
    """A repository on the mount."""
    top = host.mountpoint / where
    top.mkdir(exist_ok=True)
    git_states.run_script(script, top)
    return top


def keep_pictures(tops: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    """What git says of repositories, and their files."""
    return {name: (git_states.picture(top), git_states.files(top)) for name, top in tops.items()}


def test_unmounted_and_restored_elsewhere(
    bucket: Bucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(bucket, settings=SETTINGS)
    host.mount()
    tops = {
        "": make(host, git_states.STORIES["rebase with a conflict"]),
        "stashes": make(host, git_states.STORIES["stashes"], "stashes"),
        "dirty": make(
            host, git_states.STORIES["staged, modified, deleted, untracked, ignored"], "dirty"
        ),
    }
    before = keep_pictures(tops)
    host.umount()
    # What others may do with the copies of objects and refs: nothing.
    kept = list((host.workspace_cache() / "git").rglob("*"))
    assert len(kept) > 20
    assert [path for path in kept if path.stat().st_mode & 0o077] == []
    host.lose_cache()
    other = host.elsewhere(tmp_path / "other")
    assert [item["name"] for item in other.json("git", "list")] == ["", "dirty", "stashes"]
    target = tmp_path / "all"
    restored(other, target, "--all")
    assert keep_pictures({name: target / name for name in tops}) == before
    assert not other.cache.exists()
    # Anybody's git.
    file = tmp_path / "workspace.bundle"
    file.write_bytes(bundle(bucket, host))
    programs.run("git", "clone", "-q", file, tmp_path / "clone")
    head = git_states.git(target, "rev-parse", "HEAD")
    assert git_states.git(tmp_path / "clone", "rev-parse", "HEAD") == head


def test_the_repository_is_not_touched(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """No ref, no index, no lock, no time of any file; and a hook that would tell."""
    host = new_host(local_bucket, settings=SETTINGS)
    host.mount()
    canary = tmp_path / "canary"
    top = make(
        host,
        git_states.STORIES["merge, half resolved"]
        + f"""
            printf '#!/bin/sh\\ntouch {canary}\\n' >.git/hooks/post-index-change
            chmod +x .git/hooks/post-index-change
            git config core.fsmonitor .git/hooks/post-index-change
        """,
    )
    before = git_states.everything(top)
    result = host.sync()
    assert result["git"]["error"] is None
    assert result["git"]["last"]["repositories"] == 1
    assert bundle(local_bucket, host)
    assert git_states.everything(top) == before
    assert not canary.exists()
    host.umount()
    assert not canary.exists()


def test_a_sync_saves_what_changed_and_only_that(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(local_bucket, settings=SETTINGS)
    host.mount()
    make(host, "echo no repository yet >file")
    assert host.sync()["git"]["last"] is None
    top = make(host, git_states.BASE, "one")
    make(host, git_states.BASE, "two")
    last = host.sync()["git"]["last"]
    assert [item["name"] for item in last["bundles"]] == ["one", "two"]
    make(host, "git switch -q topic; echo more >>notes; git add notes; echo new >new", "one")
    last = host.sync()["git"]["last"]
    assert [item["name"] for item in last["bundles"]] == ["one"]
    target = tmp_path / "restored"
    restored(host, target, "one")
    assert keep_pictures({"": target}) == keep_pictures({"": top})
    assert "one" in host.s3ws("git", "list").stdout
    # Another host goes on where this one was.
    host.umount()
    other = host.elsewhere(tmp_path / "other")
    other.mount()
    make(other, "echo there >>notes; git stash -q", "two")
    other.umount()
    target = tmp_path / "restored there"
    assert restored(other, target, "two")[0]["kind"] == "repository"
    assert git_states.git(target, "stash", "list").startswith("stash@{0}: WIP on main")


def test_a_broken_repository_is_told_and_nothing_is_lost(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=SETTINGS)
    host.mount()
    make(host, git_states.BASE, "good")
    make(host, "echo 'gitdir: /nowhere/at/all' >.git; echo x >x", "bad")
    result = host.sync()["git"]["last"]
    assert [item["name"] for item in result["broken"]] == ["bad"]
    status = host.status()
    assert status["git"]["last"]["broken"] == result["broken"]
    text = host.s3ws("status", host.mountpoint).stdout
    assert "bad" in text and "outside of the workspace" in text
    make(host, "echo more >>notes", "good")
    done = host.s3ws("umount", host.mountpoint)
    assert "everything is saved" in done.stdout
    assert bundle(local_bucket, host, "good")


def test_killed_and_mounted_again(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """The daemon dies with git state unsaved: the next mount saves it at its end."""
    host = new_host(local_bucket, settings=SETTINGS)
    host.mount()
    make(host, git_states.BASE)
    host.sync()
    top = make(host, "echo later >>notes; git add notes; echo dirty >>notes; git tag later")
    before = keep_pictures({"": top})
    host.kill()
    host.mount()
    host.umount()
    target = tmp_path / "restored"
    restored(host, target)
    assert keep_pictures({"": target}) == before


def test_a_machine_without_git(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket, settings=SETTINGS)
    without = host.base / "bin"
    without.mkdir()
    for name in ("fusermount3", "sh"):
        if (found := shutil.which(name)) is not None:
            (without / name).symlink_to(found)
    host.settings["PATH"] = str(without)
    host.mount()
    make(host, git_states.BASE)
    last = host.sync()["git"]["last"]
    assert "git is not installed" in last["broken"][0]["why"]
    assert json.loads(host.s3ws("umount", host.mountpoint, "--json").stdout)[0]["saved"]
