"""`s3ws ls` and what is said of a dead daemon, on a real cache with nobody serving it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from s3ws_fs import launch
from s3ws_fs.cache.cache import Identity, open_cache
from s3ws_fs.cli import cli
from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.types import ROOT_INO, Cred
from s3ws_fs.fs.filesystem import FileSystem
from tests.support.fake_mounts import Place

CRED = Cred(uid=1000, gid=1000)


@pytest.fixture
def dead(place: Place) -> Iterator[MountInfo]:
    """A mount whose daemon died and left a cache with a few unsaved files."""
    config = place.config()
    cache = open_cache(
        Path(config.workspace_cache_dir),
        Identity(prefix=config.workspace.prefix, store="local:x"),
        quota_bytes=64 << 20,
        now_ns=lambda: 1_700_000_000_000_000_000,
    )
    with cache:
        fs = FileSystem(cache, quota_bytes=1 << 20, quota_inodes=100)
        fs.make_root(uid=0, gid=0, mode=0o755)
        directory = fs.mkdir(ROOT_INO, b"dir", 0o755, CRED)
        inner = fs.create(directory.ino, b"inner.txt", 0o640, CRED)
        fs.write(inner.ino, 0, b"hello")
        fs.create(ROOT_INO, b"odd\x1b[31m\xff", 0o600, CRED)
        fs.symlink(ROOT_INO, b"link", b"dir/inner.txt", CRED)
    info = MountInfo.for_this_process(config, log_path=None, version="0")
    info = replace(info, pid_start_ticks=1)
    registry.write(place.runtime_dir, info)
    yield info


def ls(*args: str) -> str:
    result = CliRunner().invoke(cli, ["ls", *args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_names(dead: MountInfo) -> None:
    assert ls(dead.mountpoint) == "dir/\nlink\nodd\\x1b[31m\\xff\n"
    assert ls(dead.mountpoint + "/dir") == "inner.txt\n"
    assert ls(dead.mountpoint + "/dir/../dir/inner.txt") == "inner.txt\n"


def test_recursive_long(dead: MountInfo) -> None:
    lines = ls("-R", "-l", dead.mountpoint).splitlines()
    assert [line.split()[0] for line in lines] == [
        "drwxr-xr-x",
        "lrwxrwxrwx",
        "-rw-------",
        "-rw-r-----",
    ]
    assert lines[1].endswith("link -> dir/inner.txt")
    assert lines[3].endswith("dir/inner.txt")
    assert all(" dirty " in line for line in lines[1:])


def test_json(dead: MountInfo) -> None:
    rows: list[dict[str, Any]] = json.loads(ls("--json", "-R", dead.mountpoint))
    by_name = {row["name"]: row for row in rows}
    assert by_name["dir/inner.txt"]["size"] == 5
    assert by_name["dir/inner.txt"]["state"] == "dirty"
    assert by_name["link"]["target"] == {"name": "dir/inner.txt"}
    assert by_name["dir"]["type"] == "directory"
    [odd] = [row for row in rows if "name_b64" in row]
    assert odd["name"] == "odd\x1b[31m\ufffd"


def test_what_is_not_there(dead: MountInfo) -> None:
    result = CliRunner().invoke(cli, ["ls", dead.mountpoint + "/none"])
    assert isinstance(result.exception, UserError)
    assert result.exception.exit_code is ExitCode.USAGE


def test_from_inside_by_a_relative_path(dead: MountInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Path(dead.mountpoint) / "dir"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert ls() == "inner.txt\n"
    assert ls("inner.txt") == "inner.txt\n"


def test_status_of_a_dead_daemon_counts_what_its_cache_keeps(dead: MountInfo) -> None:
    left = launch.unsaved_of(dead)
    assert left is not None
    assert left["records"] > 0 and left["files"] >= 3
    assert {"dir/inner.txt", "link", "odd\x1b[31m\udcff"} <= set(left["paths"])
    result = CliRunner().invoke(cli, ["status", dead.mountpoint], standalone_mode=False)
    assert result.return_value == ExitCode.NOT_MOUNTED
    assert f"{left['records']} changes" in result.output


def test_umount_of_a_dead_daemon_does_not_call_it_saved(dead: MountInfo, place: Place) -> None:
    with pytest.raises(UserError) as caught:
        launch.umount_and_wait(dead.mountpoint, place.runtime_dir)
    assert caught.value.exit_code is ExitCode.NOT_SAVED
    assert os.fspath(dead.cache_path) in caught.value.message
