"""`s3ws delete`: what it asks, what it refuses, and what it says."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from s3ws_fs.cli import cli
from s3ws_fs.cli.delete import LEFT_SHOWN_MAX, kept_lines
from s3ws_fs.control import registry
from s3ws_fs.core.errors import ExitCode, PermanentError, UserError
from s3ws_fs.store.base import DeleteFailure, Keeps
from s3ws_fs.store.scoped import ScopedStore
from tests.support.fake_mounts import Place

CONVERSATION = "conversation"
PREFIX = "conversations/user/conversation/workspace/"


@pytest.fixture(autouse=True)
def workspace(place: Place) -> Path:
    root = place.root / "store" / PREFIX
    for name in ("journal/workspace.json", "files/a", "compressed/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"1")
    return root


def run(*args: str, answer: str = "") -> Result:
    return CliRunner().invoke(cli, ["delete", CONVERSATION, *args], input=answer)


def stands(root: Path) -> bool:
    return (root / "files" / "a").exists()


def test_it_asks(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run()
    assert isinstance(refused.exception, UserError) and "--dry-run" in refused.exception.remedy
    assert refused.exception.exit_code is ExitCode.USAGE
    monkeypatch.setattr(sys.modules[kept_lines.__module__], "is_at_terminal", lambda: True)
    declined = run(answer="n\n")
    assert PREFIX in declined.stderr and "3 objects" in declined.stderr
    assert "nothing was changed" in declined.stderr and stands(workspace)
    assert f"deleted {PREFIX}: 3 objects" in run(answer="y\n").stdout
    assert not workspace.exists()


def test_a_dry_run_deletes_nothing(workspace: Path) -> None:
    assert "3 objects" in run("--dry-run").stdout
    assert json.loads(run("--dry-run", "--json").stdout)["found"]["objects"] == 3
    assert stands(workspace)


def test_what_is_mounted_here_is_refused(place: Place, workspace: Path) -> None:
    info = registry.MountInfo.for_this_process(place.config(), log_path=None, version="0")
    registry.write(place.runtime_dir, info)
    try:
        refused = run("--yes")
        assert isinstance(refused.exception, UserError)
        assert refused.exception.exit_code is ExitCode.ALREADY_MOUNTED
        assert place.mountpoint in refused.exception.message and stands(workspace)
        assert run("--yes", "--take-over").exception is None
        assert not stands(workspace)
        # A living mount keeps its entry.
        assert place.info() is not None
    finally:
        # It is this process that the fixture would end.
        registry.remove(place.runtime_dir, place.mountpoint)


def test_a_dead_mount_goes_too(place: Place, workspace: Path) -> None:
    info = registry.MountInfo.for_this_process(place.config(), log_path=None, version="0")
    registry.write(place.runtime_dir, replace(info, pid_start_ticks=1))
    cache = Path(info.cache_path)
    cache.mkdir(parents=True)
    (cache / "identity.json").write_text(json.dumps({"prefix": PREFIX}))
    shown = run("--dry-run").stdout
    assert str(cache) in shown and "can't be read" in shown
    assert run("--yes", "--keep-cache").exception is None and cache.exists()
    assert place.info() is None
    result = run("--yes")
    assert "nothing stands below" in result.stdout and f"removed the cache {cache}" in result.stdout


def test_what_could_not_be_deleted_is_listed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = LEFT_SHOWN_MAX + 2
    for number in range(count):
        (workspace / "files" / f"left-{number:02}").write_bytes(b"")
    purge = ScopedStore.purge

    def refuse(self: ScopedStore, keys: Any) -> list[DeleteFailure]:
        listed = list(keys)
        left = [key for key in listed if "left" in key]
        purge(self, [key for key in listed if key not in left])
        return [DeleteFailure(key, PermanentError("delete", key, "denied\x1b[1m")) for key in left]

    monkeypatch.setattr(ScopedStore, "purge", refuse)
    result = run("--yes")
    assert "files/left-00: denied\\x1b[1m" in result.stderr and "and 2 more" in result.stderr
    assert "Remove the reason" in result.stderr and not stands(workspace)
    found = json.loads(run("--yes", "--json").stdout)
    assert len(found["left"]) == count
    assert sorted(os.listdir(workspace / "journal")) == ["deleted.json", "lease.json"]


def test_it_says_what_the_bucket_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScopedStore, "keeps", lambda _: Keeps("enabled", "enabled"))
    result = run("--yes")
    assert "older versions" in result.stderr and "object lock" in result.stderr
    assert kept_lines(Keeps()) == []
    assert "suspended" in kept_lines(Keeps("suspended"))[0]
    assert "not known" in kept_lines(Keeps("unknown", "unknown"))[0]
