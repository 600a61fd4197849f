"""The command: exit codes, plain errors, safe output; against a fake daemon where one is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import s3ws_fs
from s3ws_fs.cli import cli
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.settings import Settings
from s3ws_fs.workspaces.storage import make_default_store
from tests.support.fake_mounts import Place
from tests.support.host import kill_all

ROOT = Path(__file__).resolve().parents[2]

_MAIN = """
import sys
from s3ws_fs.launch import preflight, start
start.DAEMON_MODULE = "tests.support.fake_daemon"
preflight.FUSE_DEVICE = "/dev/null"
from s3ws_fs.cli import main
main(sys.argv[1:])
"""


def s3ws(*args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does, with the fake daemon behind it."""
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def is_plain(text: str) -> bool:
    return "Traceback" not in text and all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("command", ["", "mount", "umount", "status", "sync", "ls", "version"])
def test_help(command: str) -> None:
    result = CliRunner().invoke(cli, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_every_setting_is_in_the_help_of_mount() -> None:
    from s3ws_fs.settings import OPTIONS

    text = CliRunner().invoke(cli, ["mount", "--help"], terminal_width=500).output
    for option in OPTIONS.values():
        assert f"[{option.variable}]" in text
    assert "secret" not in text.lower().replace("aws_secret_access_key", "")


@pytest.mark.parametrize(
    "args",
    [
        ["bogus"],
        ["mount"],
        ["umount"],
        ["sync"],
        ["mount", "--bogus", "x"],
        ["umount", "--timeout", "0", "x"],
        [],
    ],
)
def test_usage_errors(args: list[str]) -> None:
    result = s3ws(*args)
    assert result.returncode == ExitCode.USAGE
    assert "Usage:" in result.stderr and is_plain(result.stderr)


def test_version_as_text_and_json() -> None:
    assert f"s3ws {s3ws_fs.__version__}" in CliRunner().invoke(cli, ["version"]).output
    assert CliRunner().invoke(cli, ["--version"]).output == f"s3ws {s3ws_fs.__version__}\n"
    document = json.loads(CliRunner().invoke(cli, ["version", "--json"]).output)
    assert document["version"] == s3ws_fs.__version__
    assert "lmdb" in document["components"]


def test_bad_settings(place: Place) -> None:
    result = s3ws("mount", place.mountpoint, env={"WORKSPACE_USER_ID": "a/../b"})
    assert result.returncode == ExitCode.BAD_SETTINGS
    assert result.stderr.startswith("s3ws: WORKSPACE_USER_ID: ")
    assert is_plain(result.stderr) and len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize("command", ["umount", "sync", "status", "ls"])
def test_not_mounted(place: Place, command: str) -> None:
    result = s3ws(command, place.mountpoint)
    assert result.returncode == ExitCode.NOT_MOUNTED
    assert place.mountpoint in result.stderr and is_plain(result.stderr)
    assert len(result.stderr.splitlines()) == 2


def test_nothing_mounted_at_all(place: Place) -> None:
    assert s3ws("status").stdout == "nothing is mounted\n"
    assert json.loads(s3ws("status", "--json").stdout) == []


def test_mount_status_sync_umount(place: Place) -> None:
    mounted = s3ws("mount", place.mountpoint)
    assert mounted.returncode == 0, mounted.stderr
    assert "conversations/user/conversation/workspace/" in mounted.stdout
    assert "mount: restoring 1/2" in mounted.stderr

    status = s3ws("status", place.mountpoint)
    assert status.returncode == 0 and is_plain(status.stdout)
    for part in (
        "head 9, sealed 8, mirrored 7",
        "1 file, 4.0 KiB, oldest 1.2 s",
        "next due in 0.8 s",
        "degraded for 5.0 s: timeout",
        "1 B of 1.0 MiB",
        "bad\\x1b[31mname",
        "2 files, 2.0 KiB still only in the bucket",
    ):
        assert part in status.stdout, part

    document = json.loads(s3ws("status", "--json", place.mountpoint).stdout)
    info = place.info()
    assert info is not None and document["pid"] == info.pid
    assert [entry["pid"] for entry in json.loads(s3ws("status", "--json").stdout)] == [info.pid]

    synced = s3ws("sync", place.mountpoint)
    assert synced.returncode == 0 and "sealed 9, mirrored 9" in synced.stdout
    as_json = s3ws("sync", "--json", place.mountpoint)
    assert json.loads(as_json.stdout) == {"sealed": 9, "mirrored": 9, "duration_s": 0.5}
    assert all(json.loads(line)["event"] for line in as_json.stderr.splitlines())

    ended = s3ws("umount", place.mountpoint)
    assert ended.returncode == 0 and "everything is saved" in ended.stdout
    assert "mirroring 1/1" in ended.stderr


def test_mount_json(place: Place) -> None:
    result = s3ws("mount", "--json", place.mountpoint)
    document = json.loads(result.stdout)
    assert document["mountpoint"] == place.mountpoint
    assert document["workspace"]["prefix"] == "conversations/user/conversation/workspace/"
    again = s3ws("mount", place.mountpoint)
    assert again.returncode == ExitCode.ALREADY_MOUNTED and is_plain(again.stderr)


def test_flags_override_the_environment(place: Place) -> None:
    result = s3ws("mount", "--json", "--conversation-id", "other", place.mountpoint)
    assert json.loads(result.stdout)["workspace"]["conversation_id"] == "other"


def test_errors_of_the_daemon(place: Place) -> None:
    result = s3ws("mount", place.mountpoint, env={"S3WS_FAKE": "error"})
    assert result.returncode == ExitCode.STORE
    assert result.stderr == "s3ws: no such bucket\n  make it\n"


def test_what_is_not_saved_is_listed_safely(place: Place) -> None:
    s3ws("mount", place.mountpoint, env={"S3WS_FAKE": "unsaved"})
    result = s3ws("umount", place.mountpoint)
    assert result.returncode == ExitCode.NOT_SAVED
    assert "    a\\x1b[31m\n    b\\xff\n" in result.stderr and is_plain(result.stderr)


def test_what_is_not_saved_as_json(place: Place) -> None:
    s3ws("mount", place.mountpoint, env={"S3WS_FAKE": "unsaved"})
    result = s3ws("umount", "--json", place.mountpoint)
    assert result.returncode == ExitCode.NOT_SAVED
    [document] = json.loads(result.stdout)
    assert document["saved"] is False
    assert document["error"]["unsaved"] == ["a\x1b[31m", "b\udcff"]


def test_one_failed_umount_does_not_stop_the_others(place: Place) -> None:
    s3ws("mount", place.mountpoint)
    result = s3ws("umount", str(place.root / "none"), place.mountpoint)
    assert result.returncode == ExitCode.NOT_MOUNTED
    assert "everything is saved" in result.stdout and place.info() is None


def test_dead_daemon_is_shown_as_dead(place: Place) -> None:
    s3ws("mount", place.mountpoint)
    info = place.info()
    assert info is not None
    kill_all(info)
    one = s3ws("status", place.mountpoint)
    assert one.returncode == ExitCode.NOT_MOUNTED
    assert f"its daemon {info.pid} is gone" in one.stdout and "unknown" in one.stdout
    every = s3ws("status", "--json")
    assert every.returncode == 0
    [document] = json.loads(every.stdout)
    assert document["state"] == "dead" and document["unsaved"] is None
    synced = s3ws("sync", place.mountpoint)
    assert synced.returncode == ExitCode.NOT_MOUNTED and "is dead" in synced.stderr
    listed = s3ws("ls", place.mountpoint)
    assert listed.returncode == ExitCode.BAD_CACHE and is_plain(listed.stderr)


def test_damaged_entries_are_told(place: Place) -> None:
    Path(place.runtime_dir).mkdir(mode=0o700)
    (Path(place.runtime_dir) / "0.json").write_text("{")
    result = s3ws("status")
    assert result.returncode == 0 and "damaged" in result.stderr


def test_unexpected_fault_is_short_and_keeps_its_traceback_in_a_file(place: Place) -> None:
    fault = "import s3ws_fs.cli.commands as c; c.runtime_dir = lambda: 1 // 0\n" + _MAIN
    command = [sys.executable, "-c", fault, "status"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place.root)}
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    result = subprocess.run(command, env=env, **options)
    assert result.returncode == ExitCode.INTERNAL
    assert "internal error: ZeroDivisionError" in result.stderr and is_plain(result.stderr)
    [log] = place.root.glob("s3ws-error-*.log")
    assert "ZeroDivisionError" in log.read_text() and log.stat().st_mode & 0o777 == 0o600
    result = subprocess.run(command, env={**env, "S3WS_DEBUG": "1"}, **options)
    assert "Traceback" in result.stderr


def test_rich_is_not_imported_without_a_terminal(place: Place) -> None:
    check = _MAIN.replace("main(sys.argv[1:])", "")
    check += """
try:
    main(sys.argv[1:])
finally:
    print("rich" in sys.modules, "boto3" in sys.modules, "pyfuse3" in sys.modules, file=sys.stderr)
"""
    result = subprocess.run(
        [sys.executable, "-c", check, "mount", place.mountpoint],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr.splitlines()[-1] == "False False False"


def test_only_the_default_store_is_made_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "share" / "s3ws"
    ids = {"WORKSPACE_USER_ID": "u", "WORKSPACE_CONVERSATION_ID": "c"}
    settings = Settings.load({**ids, "WORKSPACE_STORAGE_PATH": str(path)})
    make_default_store(settings, str(tmp_path / "another" / "s3ws"))
    assert list(tmp_path.iterdir()) == []
    make_default_store(settings, str(path))
    assert path.stat().st_mode & 0o7777 == 0o700
    make_default_store(settings, str(path))
    (tmp_path / "file").touch()
    blocked = str(tmp_path / "file" / "s3ws")
    settings = Settings.load({**ids, "WORKSPACE_STORAGE_PATH": blocked})
    with pytest.raises(UserError) as caught:
        make_default_store(settings, blocked)
    assert caught.value.exit_code == ExitCode.STORE


def test_every_command_has_its_module_and_no_module_a_command_besides() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
    named = set(cli.list_commands(context))
    nested = {
        child
        for name in named
        if isinstance(group := cli.get_command(context, name), click.Group)
        for child in group.commands
    }
    found = set()
    for path in Path(s3ws_fs.cli.__path__[0]).glob("[!_]*.py"):
        module = import_module(f"s3ws_fs.cli.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, click.Command) and value is not cli:
                found.add(value.name)
    assert found - nested <= named
    assert cli.get_command(context, "no such") is None


@pytest.mark.parametrize("words", [["--version"], ["restore", "--help"], ["status", "--help"]])
def test_a_command_loads_no_more_than_it_needs(words: list[str]) -> None:
    """What others need takes a quarter of a second, each time somebody types a command."""
    code = (
        "import sys\n"
        "from s3ws_fs.cli import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'boto3', 'pydantic', 'pyfuse3', 'rich', 'trio'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
