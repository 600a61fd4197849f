"""`s3ws list` and `s3ws du` over a directory as the bucket, and their tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from s3ws_fs.cli import cli, fleet
from s3ws_fs.cli.tables import text_table
from s3ws_fs.control import registry
from s3ws_fs.core import layout
from s3ws_fs.core.errors import ExitCode, TransientError, UserError
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import tally
from tests.support.fake_mounts import Place


@pytest.fixture(autouse=True)
def store(place: Place) -> Path:
    """Three workspaces of two users, a conversation without one, and what is none of ours."""
    root = place.root / "store"
    for name, size in {
        "conversations/alice/one/workspace/journal/workspace.json": 1,
        "conversations/alice/one/workspace/journal/seg/0000000000000001": 10,
        "conversations/alice/one/workspace/files/a": 2000,
        "conversations/alice/two/workspace/journal/deleted.json": 1,
        "conversations/alice/events-only/events/1": 5000,
        "conversations/bob/three/workspace/files/by hand": 3,
        "conversations/-odd/c/workspace/files/x": 9,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return root


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args))


def document(*args: str) -> dict[str, Any]:
    found = json.loads(run(*args, "--json").stdout)
    assert isinstance(found, dict)
    return found


def test_users_with_their_sums() -> None:
    found = document("list")
    alice, bob = found["users"]
    assert (alice["user_id"], alice["workspaces"], alice["objects"]) == ("alice", 2, 4)
    assert alice["bytes"] == 2012 and alice["areas"]["mirror"] == 2000
    # What was put by hand is no workspace yet, but takes room.
    assert (bob["user_id"], bob["workspaces"], bob["objects"], bob["bytes"]) == ("bob", 0, 1, 3)
    assert found["is_complete"] and alice["last_seal_s"] > 0 and bob["last_seal_s"] is None
    lines = run("list").stdout.splitlines()
    assert lines[0].split("  ")[0] == "user" and lines[1].startswith("alice")
    assert "2.0 KiB" in lines[1]


def test_the_workspaces_of_one_user_and_of_all() -> None:
    rows = document("list", "--user", "alice")["workspaces"]
    assert [(row["conversation_id"], row["state"]) for row in rows] == [
        ("one", "workspace"),
        ("two", "deleting"),
    ]
    assert len(document("list", "--all")["workspaces"]) == 3
    assert "deleting" in run("list", "--user", "alice").stdout
    assert "no workspaces" in run("list", "--user", "nobody-here").stdout
    assert isinstance(run("list", "--user", "no/id").exception, UserError)


def test_names_only_ask_nothing_of_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScopedStore, "everything", lambda _: pytest.fail("listed"))
    [alice, bob] = document("list", "--quick")["users"]
    assert (alice["workspaces"], bob["workspaces"]) == (3, 1)


@pytest.mark.parametrize(("limit", "complete"), [(1, False), (3, False), (4, True), (5, True)])
def test_the_limit_is_kept_and_told(limit: int, complete: bool) -> None:
    found = document("list", "--all", "--limit", str(limit))
    assert found["is_complete"] is complete
    assert len(found["workspaces"]) <= limit
    told = run("list", "--limit", str(limit)).stderr
    assert ("only the first" in told) is not complete


def test_what_one_takes_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "live", lambda *_: None)
    users = document("du")["users"]
    assert [each["user_id"] for each in users] == ["alice", "bob"]
    rows = document("du", "--user", "alice")["workspaces"]
    assert [row["bytes"] for row in rows] == [2011, 1]
    text = run("du", "--user", "alice").stdout
    assert text.splitlines()[0].split() == [
        "conversation",
        "objects",
        "bytes",
        *tally.AREAS,
        "live",
    ]


def test_one_that_cant_be_read_is_a_row_and_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tally.tally

    def fail(store: ScopedStore) -> tally.Tally:
        if "/one/" in store.prefix:
            raise TransientError("list", store.prefix, "slow\x1b[31m")
        return real(store)

    monkeypatch.setattr(tally, "tally", fail)
    result = run("list", "--user", "alice")
    assert "unreadable" in result.stdout
    assert "slow\\x1b[31m" in result.stderr and "\x1b" not in result.output
    found = document("list", "--user", "alice")
    assert ["error" in row for row in found["workspaces"]] == [True, False]
    assert fleet.Found("x", rows=[fleet.Row("u", "c", error="e")]).exit_code == ExitCode.STORE


def test_mounts_of_this_host_are_joined(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    info = registry.MountInfo.for_this_process(place.config(), log_path=None, version="0")
    info = replace(
        info,
        user_id="alice",
        conversation_id="one",
        prefix="conversations/alice/one/workspace/",
        mountpoint="/mnt/\x1b[31mone",
    )
    registry.write(place.runtime_dir, info)
    try:
        status = {"state": "ready", "dirty": {"oldest_age_s": 1.5, "files": 2, "bytes": 3}}
        monkeypatch.setattr("s3ws_fs.control.client.request", lambda *_, **__: status)
        alice, bob = document("list")["users"]
        assert (alice["mounted"], alice["oldest_dirty_s"], bob["mounted"]) == (1, 1.5, 0)
        text = run("list", "--user", "alice").stdout
        assert "/mnt/\\x1b[31mone" in text and "1.5 s" in text and "\x1b" not in text
        table = run("list", "--mounts").stdout
        assert "ready" in table and "2 files" in table and "\x1b" not in table
        assert document("list", "--mounts")["mounts"][0]["state"] == "ready"
    finally:
        # It is this process that the fixture would end.
        registry.remove(place.runtime_dir, info.mountpoint)
    assert "nothing is mounted" in run("list", "--mounts").stdout


def test_it_writes_nothing(store: Path) -> None:
    before = sorted(store.rglob("*"))
    for args in (["list"], ["list", "--all"], ["du"], ["du", "--user", "alice"]):
        run(*args)
    assert sorted(store.rglob("*")) == before
    assert layout.WORKSPACE_KEY in tally._MARKS


def test_columns() -> None:
    lines = text_table(("a", "count"), [("x", "1"), ("longer\n", "22")], right=(1,))
    assert lines == ["a         count", "x             1", "longer\\n     22"]
    assert text_table(("a",), []) == []
