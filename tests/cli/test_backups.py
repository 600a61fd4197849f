"""`s3ws backups` and `restore-backup`: what is listed, restored, refused, and how it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click import UsageError
from click.testing import CliRunner, Result

from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cli import cli
from s3ws_fs.control import client
from s3ws_fs.core import backups
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.daemon.parts import identity
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot.reading import list_backups
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from tests.snapshot.backups import NAME, make
from tests.support.caches import CRED
from tests.support.fake_mounts import Place


@pytest.fixture
def config(place: Place) -> MountConfig:
    """A workspace in a directory as the bucket."""
    found = place.config()
    assert found.store.path is not None
    Path(found.store.path).mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture
def store(config: MountConfig) -> Iterator[ScopedStore]:
    """Its bucket."""
    opened = open_store(config.store, config.workspace.prefix)
    yield opened
    opened.close()


@pytest.fixture
def cache(config: MountConfig) -> Iterator[Cache]:
    """A workspace with a file in a directory, one at the top, a symlink, and an odd name."""
    directory = Path(config.workspace_cache_dir)
    with open_cache(
        directory, identity(config), quota_bytes=64 << 20, now_ns=time.time_ns
    ) as opened:
        fs = FileSystem(opened, quota_bytes=64 << 20, quota_inodes=1000)
        fs.make_root(uid=0, gid=0, mode=0o755)
        below = fs.mkdir(ROOT_INO, b"dir", 0o755, CRED).ino
        fs.write(fs.create(below, b"file", 0o644, CRED).ino, 0, b"in the backup")
        fs.write(fs.create(ROOT_INO, b"top \xff\x1b[31m", 0o644, CRED).ino, 0, b"odd")
        fs.symlink(ROOT_INO, b"link", b"dir/file", CRED)
        yield opened


DEFAULTS: Any = client.request.__kwdefaults__


def run(*args: object) -> Result:
    words = [str(arg) for arg in args]
    return CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)


def document(result: Result) -> Any:
    return json.loads(result.stdout)


def refused(*args: object) -> UserError:
    with pytest.raises(UserError) as caught:
        run(*args)
    return caught.value


def test_nothing_is_there(config: MountConfig, store: ScopedStore, tmp_path: Path) -> None:
    assert "no backups" in run("backups").output
    assert document(run("backups", "--json"))["backups"] == []
    said = refused("restore-backup", "latest", "--to", tmp_path / "out")
    assert said.exit_code is ExitCode.BAD_SETTINGS
    assert not (tmp_path / "out").exists()


def test_listing(cache: Cache, store: ScopedStore, tmp_path: Path) -> None:
    make(cache, store, tmp_path / "spool")
    store.put(backups.archive_key("backup-20260131T130000Z"), b"no index")
    lines = run("backups").output.splitlines()
    assert lines[0].startswith("backup-20260131T130000Z") and "not whole" in lines[0]
    assert lines[1].startswith(NAME) and "5 entries" in lines[1]
    (broken, whole) = document(run("backups", "--json"))["backups"]
    assert not broken["good"]
    assert whole["good"] and whole["time"] == "2026-01-31T12:00:00Z"


@pytest.mark.parametrize(("command", "module"), [("backups", "backups"), ("snapshots", "history")])
def test_the_mount_is_named_as_an_argument_or_as_everywhere(
    monkeypatch: pytest.MonkeyPatch, command: str, module: str
) -> None:
    seen: list[str | None] = []

    def chosen(mountpoint: str | None, overrides: dict[str, Any]) -> None:
        seen.append(mountpoint)
        raise UserError("that is all")

    monkeypatch.setattr(f"s3ws_fs.cli.{module}.chosen", chosen)
    for words in (["/m"], ["-m", "/m"], ["--json", "--mountpoint", "/m"], []):
        refused(command, *words)
    assert seen == ["/m", "/m", "/m", None]
    with pytest.raises(UsageError, match="once"):
        run(command, "/m", "-m", "/m")


def test_what_is_in_it(cache: Cache, store: ScopedStore, tmp_path: Path) -> None:
    make(cache, store, tmp_path / "spool")
    output = run("restore-backup", "latest", "--list").output
    assert "dir/file" in output and "link -> dir/file" in output
    # A name can't speak to the terminal.
    assert "\x1b" not in output and "top " in output
    listed = document(run("restore-backup", NAME, "dir", "--list", "--json"))
    assert [entry["path"] for entry in listed["entries"]] == ["dir", "dir/file"]
    assert listed["entries"][1]["size"] == 13


def test_restoring(cache: Cache, store: ScopedStore, tmp_path: Path) -> None:
    make(cache, store, tmp_path / "spool")
    out = tmp_path / "out"
    result = run("restore-backup", "20260131T120000Z", "--to", out)
    assert result.return_value == ExitCode.OK
    assert "5 entries" in result.output
    assert (out / "link").read_text() == "in the backup"
    assert (out / "link").is_symlink()
    some = document(
        run("restore-backup", "latest", "dir/file", "--to", tmp_path / "some", "--json")
    )
    assert (some["entries"], some["bytes"], some["exit_code"]) == (1, 13, 0)
    assert [path.name for path in (tmp_path / "some").rglob("*")] == ["dir", "file"]


def test_a_directory_that_is_not_empty(cache: Cache, store: ScopedStore, tmp_path: Path) -> None:
    make(cache, store, tmp_path / "spool")
    out = tmp_path / "out"
    (out / "dir").mkdir(parents=True)
    (out / "dir" / "file").write_text("mine")
    assert refused("restore-backup", "latest", "--to", out).exit_code is ExitCode.USAGE
    assert not (out / "link").is_symlink()
    result = run("restore-backup", "latest", "--to", out, "--merge", "--json")
    assert result.return_value == ExitCode.NOT_SAVED
    (left,) = document(result)["not_restored"]
    assert (left["name"], left["reason"]) == ("dir/file", "something stands there already")
    assert (out / "dir" / "file").read_text() == "mine"
    again = run("restore-backup", "latest", "--to", out, "--merge")
    assert again.return_value == ExitCode.NOT_SAVED
    assert "NOT RESTORED" in again.output


def test_refusals(cache: Cache, store: ScopedStore, config: MountConfig, tmp_path: Path) -> None:
    make(cache, store, tmp_path / "spool")
    for args, code in (
        (("latest", "no/such", "--to", tmp_path / "out"), ExitCode.BAD_SETTINGS),
        (("backup-19990101T000000Z", "--to", tmp_path / "out"), ExitCode.BAD_SETTINGS),
        (("latest", "--to", tmp_path / "a" / "b"), ExitCode.USAGE),
    ):
        assert refused("restore-backup", *args).exit_code is code
    assert not (tmp_path / "out").exists()
    archive = store.get(backups.archive_key(NAME)).data
    store.put(backups.archive_key(NAME), archive[:-1] + bytes((archive[-1] ^ 1,)))
    said = refused("restore-backup", "latest", "--to", tmp_path / "bad")
    assert said.exit_code is ExitCode.DAMAGED
    assert "compressed/" in said.message
    assert config.store.path is not None
    Path(config.store.path).rename(tmp_path / "moved")
    assert refused("backups").exit_code is ExitCode.STORE


def test_an_archive_on_this_machine(cache: Cache, store: ScopedStore, tmp_path: Path) -> None:
    make(cache, store, tmp_path / "spool")
    for key in (backups.archive_key(NAME), backups.index_key(NAME)):
        (tmp_path / key.rpartition("/")[2]).write_bytes(store.get(key).data)
    for backup in list_backups(store):
        store.delete_many(backup.keys)
    archive = tmp_path / f"{NAME}.tar.gz"
    assert run("restore-backup", archive, "--to", tmp_path / "out").return_value == ExitCode.OK
    assert (tmp_path / "out" / "dir" / "file").read_text() == "in the backup"
    archive.write_bytes(b"x" * archive.stat().st_size)
    said = refused("restore-backup", archive, "--to", tmp_path / "bad")
    assert said.exit_code is ExitCode.DAMAGED


def test_a_backup_of_a_mount(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: found with 50,000 files, when the client gave up after 10 s."""
    mountpoint = place.mountpoint
    monkeypatch.setenv("S3WS_FAKE_BACKUP_S", "0.2")
    run("mount", mountpoint)
    with monkeypatch.context() as patch:
        patch.setattr(client.request, "__kwdefaults__", {**DEFAULTS, "timeout_s": 0.1})
        said = run("backup", mountpoint).output
    assert "backup-20260131T120000Z: 3 entries, 4.0 KiB as 2.0 KiB, in 1.5 s" in said
    assert document(run("backup", mountpoint, "--json"))["bytes"] == 2048
    run("umount", mountpoint)


def test_a_backup_needs_a_living_mount(place: Place) -> None:
    assert refused("backup", place.config().mountpoint).exit_code is ExitCode.NOT_MOUNTED
