"""`s3ws doctor`: all checks are made, each with its remedy, and the exit code is the first's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from s3ws_fs.cli import cli
from s3ws_fs.cli.doctor import DOCTOR, lines, summary
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.workspaces import diagnosis, doctor_host
from tests.support.fake_mounts import Place


@pytest.fixture(autouse=True)
def host(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A host that can mount."""
    (place.root / "store").mkdir()
    monkeypatch.setattr(
        doctor_host, "trial_mount", lambda: diagnosis.ok("mounting", "as if\x1b[1m")
    )
    return place


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *args], standalone_mode=False)


def test_all_is_well(host: Place) -> None:
    result = run()
    assert result.return_value == ExitCode.OK
    assert "as if\\x1b[1m" in result.stdout and "\x1b" not in result.stdout
    names = [line[9:29].strip() for line in result.stdout.splitlines()[:-1] if line[:8].strip()]
    assert names[:5] == ["versions", "kernel", "fuse device", "fusermount3", "mounting"]
    assert "conditional writes" in names and "clock" in names and len(set(names)) == len(names)
    found = json.loads(run("--json").stdout)
    assert found["exit_code"] == 0
    assert [check["name"] for check in found["checks"]] == names


def test_the_first_failure_decides_and_the_rest_is_looked_at(
    host: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = diagnosis.failed("fuse device", "none", "Install it.", ExitCode.NO_FUSE)
    monkeypatch.setattr(doctor_host, "fuse_device", lambda: bad)
    monkeypatch.setenv("WORKSPACE_MAX_FILES", "many")
    result = run()
    assert result.return_value == ExitCode.NO_FUSE
    assert "FAILED   fuse device" in result.stdout and "Install it." in result.stdout
    assert "skipped  mounting" in result.stdout and "FAILED   settings" in result.stdout
    assert "WORKSPACE_MAX_FILES" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("2 failed")


def test_without_ids_a_prefix_of_its_own_is_tried(
    host: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKSPACE_CONVERSATION_ID")
    monkeypatch.delenv("WORKSPACE_USER_ID")
    result = run()
    assert result.return_value == ExitCode.OK
    assert "WORKSPACE_USER_ID and WORKSPACE_CONVERSATION_ID not given" in result.stdout
    assert f"conversations/{DOCTOR}/{DOCTOR}/workspace/" in result.stdout
    assert not (host.root / "store" / "conversations").exists()


def test_the_bucket_may_be_left_alone(host: Place) -> None:
    assert "ok       bucket" not in run("--no-store").stdout
    before = sorted(Path(host.root / "store").rglob("*"))
    assert "--no-write" in run("--no-write").stdout
    assert sorted(Path(host.root / "store").rglob("*")) == before


def test_words() -> None:
    check = diagnosis.warning("clock", "off", "Set it.")
    assert [line.split() for line in lines(check)] == [["warning", "clock", "off"], ["Set", "it."]]
    assert summary([check]) == "0 failed, 1 warning"
    assert summary([diagnosis.skipped("x", "y")]) == "all is well"
