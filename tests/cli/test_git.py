"""`s3ws git list` and `restore`: straight from the bucket, or from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from s3ws_fs.cli import cli
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.snapshot.git.making import make_bundles
from s3ws_fs.snapshot.git.tree import DirectoryTree
from tests.support import git_states


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with two repositories, whose bundles are in a bucket that the settings name."""
    top = git_states.build("stashes", tmp_path / "workspace")
    git_states.build("merge with a conflict", top / "deep" / "nested")
    out, bucket = tmp_path / "out", tmp_path / "store"
    out.mkdir()
    prefix = bucket / "conversations" / "user" / "test-1" / "workspace"
    for made in make_bundles(DirectoryTree(top), tmp_path / "state", out):
        assert made.file is not None
        (prefix / made.key).parent.mkdir(parents=True, exist_ok=True)
        made.file.rename(prefix / made.key)
    for name, value in {
        "USER_ID": "user",
        "CONVERSATION_ID": "test-1",
        "STORAGE_TYPE": "local",
        "STORAGE_PATH": str(bucket),
    }.items():
        monkeypatch.setenv(f"WORKSPACE_{name}", value)
    return top


def s3ws_git(*args: str | Path) -> Result:
    words = ["git", *map(str, args)]
    return CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)


def document(*args: str | Path) -> Any:
    return json.loads(s3ws_git(*args, "--json").stdout)


def test_list(workspace: Path) -> None:
    found = document("list")
    assert [(item["name"], item["key"]) for item in found] == [
        ("", "git/workspace.bundle"),
        ("deep/nested", "git/deep/nested.bundle"),
    ]
    assert all(item["bundle_bytes"] > 1000 for item in found)
    assert "deep/nested" in s3ws_git("list").stdout


@pytest.mark.parametrize("path", ["", "deep/nested", "deep/../deep/nested/"])
def test_restore_one(path: str, workspace: Path, tmp_path: Path) -> None:
    target = tmp_path / "restored"
    words = [path] if path else []
    result = s3ws_git("restore", *words, "--to", target)
    assert "restored to" in result.stdout
    assert git_states.files(target) == git_states.files(workspace / path)
    if path:
        assert git_states.picture(target) == git_states.picture(workspace / path)


def test_restore_all(workspace: Path, tmp_path: Path) -> None:
    target = tmp_path / "restored"
    found = document("restore", "--all", "--to", target)
    assert [item["place"] for item in found] == [str(target), str(target / "deep/nested")]
    for path in ("", "deep/nested"):
        assert git_states.picture(target / path) == git_states.picture(workspace / path)


def test_restore_from_a_file(workspace: Path, tmp_path: Path) -> None:
    file = next((tmp_path / "store").rglob("nested.bundle"))
    target = tmp_path / "restored"
    s3ws_git("restore", "--from", file, "--to", target)
    assert git_states.picture(target) == git_states.picture(workspace / "deep/nested")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere"], ExitCode.USAGE, "no bundle"),
        (["../x"], ExitCode.USAGE, "no bundle"),
        (["nowhere", "--all"], ExitCode.USAGE, "No repository has a bundle"),
        (["x", "--from", "y"], ExitCode.USAGE, "--from names"),
        (["--from", "/nonexistent/y"], ExitCode.USAGE, "can't be read"),
        (["--from", "/etc/passwd"], ExitCode.USAGE, "no bundle of git"),
        (["--storage-path", "/nonexistent"], ExitCode.STORE, "can't be used"),
    ],
)
def test_what_can_not_be_restored(
    words: list[str], code: ExitCode, said: str, workspace: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        s3ws_git("restore", *words, "--to", tmp_path / "restored")
    assert caught.value.exit_code == code
    assert said in caught.value.message
    assert not (tmp_path / "restored").exists()


def test_a_place_that_is_taken(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    with pytest.raises(UserError) as caught:
        s3ws_git("restore", "--to", tmp_path / "taken")
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_damaged_bundle(workspace: Path, tmp_path: Path) -> None:
    file = next((tmp_path / "store").rglob("nested.bundle"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        s3ws_git("restore", "deep/nested", "--to", tmp_path / "restored")
    assert caught.value.exit_code == ExitCode.DAMAGED
    assert not (tmp_path / "restored").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_of_plain_git(workspace: Path, tmp_path: Path) -> None:
    git_states.git(workspace, "bundle", "create", "-q", "../plain.bundle", "--all")
    with pytest.raises(UserError, match="not made by s3ws"):
        s3ws_git("restore", "--from", tmp_path / "plain.bundle", "--to", tmp_path / "restored")
