"""The command on real mounts, with the directory store: every way to the end, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.fuse import table
from tests.support.host import kill_all
from tests.support.mounting import clear_mountpoint, require_fuse, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Host:
    """One host's directories, and the command on it."""

    root: Path

    @property
    def mnt(self) -> Path:
        return self.root / "mnt"

    @property
    def files(self) -> Path:
        return self.root / "store" / "conversations" / "user" / "test-1" / "workspace" / "files"

    @property
    def environ(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WORKSPACE_", "AWS_"))}
        return kept | {
            "PYTHONPATH": str(ROOT),
            "WORKSPACE_USER_ID": "user",
            "WORKSPACE_CONVERSATION_ID": "test-1",
            "WORKSPACE_STORAGE_TYPE": "local",
            "WORKSPACE_STORAGE_PATH": str(self.root / "store"),
            "WORKSPACE_CACHE_DIR": str(self.root / "cache"),
            "WORKSPACE_RUNTIME_DIR": str(self.root / "run"),
            # So late that only a sync or the final flush can have saved something.
            "WORKSPACE_SYNC_DEBOUNCE_MIN": "600",
            "WORKSPACE_SYNC_DEBOUNCE_MAX": "600",
        }

    def s3ws(
        self, *args: str | Path, code: int = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "s3ws_fs", *map(str, args)],
            env=self.environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert result.returncode == code, (args, result)
        assert "Traceback" not in result.stderr
        return result

    def status(self, code: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(
            self.s3ws("status", "--json", self.mnt, code=code).stdout
        )
        return document

    def info(self) -> MountInfo | None:
        return registry.read(str(self.root / "run"), str(self.mnt))

    def kill(self) -> MountInfo:
        info = self.info()
        assert info is not None
        kill_all(info)
        return info


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    require_fuse()
    made = Host(tmp_path.resolve())
    yield made
    info = made.info()
    if info is not None and info.is_alive():
        kill_all(info, meanwhile=lambda: clear_mountpoint(made.mnt))
    clear_mountpoint(made.mnt)


def test_mount_work_sync_umount_and_back_without_the_cache(host: Host) -> None:
    host.s3ws("mount", host.mnt)
    (host.mnt / "dir").mkdir()
    (host.mnt / "dir" / "a.txt").write_text("hello")
    before = host.status()
    assert before["state"] == "ready" and before["dirty"]["files"] > 0
    [row] = json.loads(host.s3ws("ls", "--json", host.mnt / "dir").stdout)
    assert (row["name"], row["state"]) == ("a.txt", "dirty")
    synced = json.loads(host.s3ws("sync", "--json", host.mnt).stdout)
    assert synced["sealed"] == synced["mirrored"] == host.status()["generation"]["head"]
    assert (host.files / "dir" / "a.txt").read_text() == "hello"
    [row] = json.loads(host.s3ws("ls", "--json", host.mnt / "dir").stdout)
    assert row["state"] == "mirrored"
    (host.mnt / "last").write_text("unsynced")
    host.s3ws("umount", host.mnt)
    assert (host.files / "last").read_text() == "unsynced"
    assert not table.is_mounted(str(host.mnt)) and host.info() is None

    (host.root / "cache").rename(host.root / "lost")
    host.s3ws("mount", host.mnt)
    assert (host.mnt / "dir" / "a.txt").read_text() == "hello"
    assert (host.mnt / "last").read_text() == "unsynced"
    host.s3ws("umount", host.mnt)


def test_second_mount_and_busy_umount(host: Host) -> None:
    host.s3ws("mount", host.mnt)
    again = host.s3ws("mount", host.mnt, code=ExitCode.ALREADY_MOUNTED)
    assert "already mounted" in again.stderr
    with (host.mnt / "open").open("w"):
        busy = host.s3ws("umount", host.mnt, code=ExitCode.BUSY)
        assert str(host.mnt) in busy.stderr
        assert host.status()["state"] == "ready"
    host.s3ws("umount", host.mnt)


def test_umount_through_a_symlink_and_from_a_relative_path(host: Host) -> None:
    host.mnt.mkdir()
    link = host.root / "link"
    link.symlink_to(host.mnt)
    host.s3ws("mount", link)
    assert host.status()["mountpoint"] == str(host.mnt)
    host.s3ws("umount", f"{link}/../link/")
    assert host.info() is None


def test_umount_8_ends_in_the_same_final_flush(host: Host) -> None:
    host.s3ws("mount", host.mnt)
    (host.mnt / "a").write_text("saved")
    info = host.info()
    assert info is not None
    subprocess.run(["umount", str(host.mnt)], check=True, timeout=60)
    wait_until(lambda: not info.is_alive(), timeout_s=60, what="daemon ended")
    assert (host.files / "a").read_text() == "saved"
    assert host.info() is None
    host.s3ws("umount", host.mnt, code=ExitCode.NOT_MOUNTED)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground_and_signals(host: Host, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "s3ws_fs", "mount", "--foreground", str(host.mnt)],
        env=host.environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        wait_until(
            lambda: table.is_mounted(str(host.mnt)) and host.info() is not None, timeout_s=30
        )
        info = host.info()
        assert info is not None and info.holder_pid == process.pid
        (host.mnt / "a").write_text("saved")
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == ExitCode.OK
    assert (host.files / "a").read_text() == "saved"


def test_killed_daemon_is_told_and_the_next_mount_goes_on(host: Host) -> None:
    host.s3ws("mount", host.mnt)
    (host.mnt / "a").write_text("unsaved")
    info = host.kill()
    dead = host.status(code=ExitCode.NOT_MOUNTED)
    assert dead["state"] == "dead" and dead["unsaved"]["paths"] == ["a"]
    assert f"daemon {info.pid} is gone" in host.s3ws("status").stdout
    assert host.s3ws("ls", host.mnt).stdout == "a\n"
    left = host.s3ws("umount", host.mnt, code=ExitCode.NOT_SAVED)
    assert "    a\n" in left.stderr
    assert not table.is_mounted(str(host.mnt))
    host.s3ws("mount", host.mnt)
    assert (host.mnt / "a").read_text() == "unsaved"
    host.s3ws("umount", host.mnt)
    assert (host.files / "a").read_text() == "unsaved"


def test_mount_clears_what_a_killed_daemon_left(host: Host) -> None:
    host.s3ws("mount", host.mnt)
    (host.mnt / "a").write_text("kept")
    host.kill()
    assert table.is_mounted(str(host.mnt))
    host.s3ws("mount", host.mnt)
    assert (host.mnt / "a").read_text() == "kept"
    host.s3ws("umount", host.mnt)


def test_killed_after_everything_was_saved(host: Host) -> None:
    host.s3ws("mount", host.mnt)
    (host.mnt / "a").write_text("saved")
    host.s3ws("sync", host.mnt)
    host.kill()
    assert "everything is saved" in host.s3ws("umount", host.mnt).stdout
    assert host.info() is None


def test_unreachable_store_is_said_and_nothing_is_left_behind(host: Host) -> None:
    (host.root / "store").write_text("a file where the store should be")
    failed = host.s3ws("mount", host.mnt, code=ExitCode.STORE)
    assert len(failed.stderr.splitlines()) >= 2
    assert host.info() is None and not table.is_mounted(str(host.mnt))


def test_umount_from_inside_the_mount_is_not_busy_by_itself(host: Host) -> None:
    host.s3ws("mount", host.mnt)
    (host.mnt / "a").write_text("x")
    host.s3ws("umount", ".", cwd=host.mnt)
    assert not table.is_mounted(str(host.mnt)) and (host.files / "a").read_text() == "x"
