"""Whole daemons on the local store: every way to start, and every way to the end."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing

from s3ws_fs.control import registry
from s3ws_fs.core.config import MountConfig, WorkspaceId
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.daemon.daemon import Daemon, _keep_running
from s3ws_fs.daemon.parts import Parts
from s3ws_fs.fuse import table
from tests.daemon.conftest import StuckReplica, parts_over
from tests.support.mounting import (
    REPOSITORY,
    Workspace,
    loaded_by,
    mounted_workspace,
    wait_until,
    workspace_config,
)

pytestmark = pytest.mark.fuse

HEAVY_MODULES: Final = {"boto3", "botocore", "pydantic", "click", "rich", "asyncio"}
RESIDENT_KIB_MAX: Final = 45 * 1024
"""Of a daemon that has just mounted, pages of the cache file not counted (32 MiB at the time)."""


def _mirror(config: MountConfig) -> Path:
    return Path(config.store.path or "") / config.workspace.prefix / "files"


def _assert_ended_well(child: Workspace) -> None:
    assert child.wait() == ExitCode.OK, child.log()
    config = child.config
    assert not table.is_mounted(config.mountpoint)
    assert registry.read(config.runtime_dir, config.mountpoint) is None
    assert not Path(registry.socket_path(config.runtime_dir, config.mountpoint)).exists()


def _end_by_control(child: Workspace) -> None:
    assert child.control("unmount") == {"saved": True}


def _end_by_sigterm(child: Workspace) -> None:
    child.signal(signal.SIGTERM)


def _end_by_sigint(child: Workspace) -> None:
    child.signal(signal.SIGINT)


def _end_by_fusermount(child: Workspace) -> None:
    subprocess.run(["fusermount3", "-u", str(child.mountpoint)], check=True)


@pytest.mark.parametrize(
    "end", [_end_by_control, _end_by_sigterm, _end_by_sigint, _end_by_fusermount]
)
def test_every_end_saves_everything(config: MountConfig, end: Any) -> None:
    with mounted_workspace(config) as child:
        (child.mountpoint / "dir").mkdir()
        (child.mountpoint / "dir" / "f").write_text("saved")
        end(child)
        _assert_ended_well(child)
    assert (_mirror(config) / "dir" / "f").read_text() == "saved"
    shutil.rmtree(config.workspace_cache_dir)
    with mounted_workspace(config) as child:
        assert (child.mountpoint / "dir" / "f").read_text() == "saved"
        assert os.listdir(child.mountpoint) == ["dir"]


def test_status_and_sync(config: MountConfig) -> None:
    with mounted_workspace(config) as child:
        (child.mountpoint / "f").write_bytes(b"x" * 5000)
        status = child.status()
        assert status["state"] == "ready"
        assert status["pid"] == child.pid
        assert status["mountpoint"] == config.mountpoint
        assert status["workspace"]["prefix"] == config.workspace.prefix
        assert status["quota"]["used_bytes"] == 8192
        assert status["quota"]["max_bytes"] == config.max_size_bytes
        assert status["quota"]["used_inodes"] == 2
        assert status["faults"] == 0
        child.control("sync")
        assert (_mirror(config) / "f").read_bytes() == b"x" * 5000
        after = child.status()
        assert after["dirty"]["files"] == 0
        assert after["generation"]["sealed"] == after["generation"]["head"]
        assert after["generation"]["mirrored"] == after["generation"]["sealed"]


def test_sync_takes_what_was_written_through_mmap(config: MountConfig) -> None:
    with mounted_workspace(config) as child:
        path = child.mountpoint / "f"
        path.write_bytes(b"\0" * 8192)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[4096:4100] = b"mmap"  # no msync: the page is dirty in the kernel only
            child.control("sync")
            assert (_mirror(config) / "f").read_bytes()[4096:4100] == b"mmap"


def test_unmount_of_a_busy_mount_is_refused_and_changes_nothing(config: MountConfig) -> None:
    with mounted_workspace(config) as child:
        file = (child.mountpoint / "f").open("w")
        with pytest.raises(UserError) as caught:
            child.control("unmount")
        assert caught.value.exit_code is ExitCode.BUSY
        assert "still" not in child.status()["state"]
        file.write("go on")
        file.close()
        _end_by_control(child)
        _assert_ended_well(child)
    assert (_mirror(config) / "f").read_text() == "go on"


def test_unmount_waits_for_the_grace_it_is_given(config: MountConfig) -> None:
    with mounted_workspace(config) as child:
        user = subprocess.Popen(["sleep", "0.3"], cwd=child.mountpoint)
        try:
            assert child.control("unmount", grace_s=20.0) == {"saved": True}
        finally:
            user.wait()
        _assert_ended_well(child)


def test_sigterm_on_a_busy_mount_saves_what_was_acknowledged(tmp_path: Path) -> None:
    config = workspace_config(tmp_path, unmount_grace_s=0.3)
    with mounted_workspace(config) as child:
        fd = os.open(child.mountpoint / "f", os.O_CREAT | os.O_WRONLY)
        try:
            os.write(fd, b"acknowledged")
            child.signal(signal.SIGTERM)
            assert child.wait() == ExitCode.OK, child.log()
            with pytest.raises(OSError, match=r"not connected|Input/output|abort"):
                os.write(fd, b"too late")
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)
        assert "still in use" in child.log()
        assert f"(pid {os.getpid()})" in child.log()
    assert (_mirror(config) / "f").read_bytes() == b"acknowledged"


def test_a_killed_daemon_loses_nothing_and_the_next_one_goes_on(tmp_path: Path) -> None:
    config = workspace_config(tmp_path, debounce_min_s=30.0, debounce_max_s=30.0)
    with mounted_workspace(config) as child:
        for number in range(50):
            (child.mountpoint / f"f{number}").write_text(str(number))
        child.kill()
        assert table.is_dead(config.mountpoint)
        with mounted_workspace(config) as again:
            assert len(os.listdir(again.mountpoint)) == 50
            assert again.status()["dirty"]["files"] > 0
            _end_by_control(again)
            _assert_ended_well(again)
    for number in range(50):
        assert (_mirror(config) / f"f{number}").read_text() == str(number)


def test_files_deleted_while_open_leave_nothing_behind(config: MountConfig) -> None:
    with mounted_workspace(config) as child:
        with (child.mountpoint / "f").open("wb") as file:
            file.write(b"x" * 100_000)
            file.flush()
            child.control("sync")
            (child.mountpoint / "f").unlink()
            file.write(b"y" * 100_000)
        (child.mountpoint / "g").write_text("g")
        (child.mountpoint / "g").unlink()
        _end_by_sigterm(child)
        _assert_ended_well(child)
    assert not any(path.is_file() for path in _mirror(config).rglob("*"))
    with mounted_workspace(config) as child:
        quota = child.status()["quota"]
        assert (quota["used_bytes"], quota["used_inodes"]) == (0, 1)


def test_changes_are_flushed_by_themselves(config: MountConfig) -> None:
    with mounted_workspace(config) as child:
        (child.mountpoint / "f").write_text("x")
        wait_until(lambda: (_mirror(config) / "f").exists(), timeout_s=20)


@pytest.mark.slow
def test_a_mount_whose_store_fails_ends_with_the_list(config: MountConfig) -> None:
    journal = Path(config.store.path or "") / config.workspace.prefix / "journal"
    with mounted_workspace(config) as child:
        (child.mountpoint / "before").write_text("x")
        child.control("sync")
        journal.rename(journal.with_name("away"))
        journal.write_text("a file where the journal was")
        (child.mountpoint / "after").write_text("unsaved")
        child.signal(signal.SIGTERM)
        assert child.wait(60) == ExitCode.NOT_SAVED, child.log()
        assert "after" in child.log()
        assert registry.read(config.runtime_dir, config.mountpoint) is not None
        journal.unlink()
        journal.with_name("away").rename(journal)
        with mounted_workspace(config) as again:
            assert (again.mountpoint / "after").read_text() == "unsaved"
            _end_by_control(again)
            _assert_ended_well(again)
    assert (_mirror(config) / "after").read_text() == "unsaved"


async def test_a_signal_during_the_restore_ends_it(config: MountConfig) -> None:
    class Restoring(StuckReplica):
        async def prepare(self, progress: object) -> None:
            daemon.request_stop()
            await trio.sleep_forever()

    daemon = Daemon(config, lambda _: None)
    with pytest.raises(UserError, match="before the mount was ready"):
        await daemon._prepare(parts_over(Restoring()))


async def test_when_serving_fails_everything_is_saved_all_the_same(
    config: MountConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    class Replica(StuckReplica):
        async def final_flush(self, progress: object) -> list[str]:
            flushed.append(1)
            return []

    async def nothing(_: Parts) -> None:
        return None

    async def fail(_: Parts) -> None:
        raise OSError("/dev/fuse broke")

    daemon = Daemon(config, lambda _: None)
    monkeypatch.setattr(daemon, "_prepare", nothing)
    monkeypatch.setattr(daemon, "_serve", fail)
    monkeypatch.setattr(Parts, "services", lambda *_: {})
    async with trio.open_nursery() as nursery:
        outcome = await daemon._live(parts_over(Replica()), nursery)
        nursery.cancel_scope.cancel()
    assert flushed == [1]
    assert outcome.exit_code is ExitCode.INTERNAL


async def test_a_service_that_fails_starts_again(autojump_clock: trio.testing.MockClock) -> None:
    times: list[float] = []

    async def service() -> None:
        times.append(trio.current_time())
        if len(times) < 5:
            raise OSError("down")

    await _keep_running("test", service)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == [1, 2, 4, 8]


def _run_to_error(config: MountConfig) -> dict[str, Any]:
    """Start a daemon that must refuse; returns the error it told the launcher."""
    fd = os.memfd_create("config")
    os.write(fd, config.dumps())
    os.lseek(fd, 0, os.SEEK_SET)
    ready, theirs = os.pipe()
    command = [sys.executable, "-m", "s3ws_fs.daemon"]
    try:
        done = subprocess.run(
            [*command, "--config-fd", str(fd), "--ready-fd", str(theirs)],
            pass_fds=(fd, theirs),
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(fd)
        os.close(theirs)
    with os.fdopen(ready) as lines:
        last = json.loads(lines.read().splitlines()[-1])
    assert last["event"] == "error"
    assert done.returncode == last["error"]["exit_code"]
    error: dict[str, Any] = last["error"]
    return error


def test_a_second_daemon_on_the_same_cache_is_refused(tmp_path: Path) -> None:
    config = workspace_config(tmp_path)
    (tmp_path / "other").mkdir()
    second = workspace_config(tmp_path, mountpoint=str(tmp_path / "other"))
    with mounted_workspace(config) as child:
        error = _run_to_error(second)
        assert error["exit_code"] == ExitCode.ALREADY_MOUNTED
        assert str(child.pid) in error["message"]
        assert error["remedy"]
        assert not table.is_mounted(second.mountpoint)
        assert registry.read(second.runtime_dir, second.mountpoint) is None


def test_a_cache_of_another_workspace_is_refused(tmp_path: Path) -> None:
    config = workspace_config(tmp_path)
    other = workspace_config(tmp_path, workspace=WorkspaceId("user-1", "other"))
    with mounted_workspace(config):
        pass
    Path(config.workspace_cache_dir).rename(other.workspace_cache_dir)
    error = _run_to_error(other)
    assert error["exit_code"] == ExitCode.BAD_CACHE
    assert "another workspace" in error["message"]


def test_a_mountpoint_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    config = workspace_config(tmp_path, mountpoint=str(tmp_path / "absent"))
    assert _run_to_error(config)["exit_code"] == ExitCode.BAD_SETTINGS


def test_a_configuration_that_is_none_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "s3ws_fs.daemon", "--config-fd", "0"],
        input=b"{}",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.BAD_SETTINGS


def test_root_of_a_new_workspace_is_as_configured(tmp_path: Path) -> None:
    config = workspace_config(tmp_path, root_mode=0o770)
    with mounted_workspace(config) as child:
        info = child.mountpoint.stat()
        assert info.st_mode & 0o7777 == 0o770
        assert (info.st_uid, info.st_gid) == (config.root_uid, config.root_gid)


def test_the_daemon_is_small(config: MountConfig) -> None:
    assert HEAVY_MODULES.isdisjoint(loaded_by("s3ws_fs.daemon.entry"))
    with mounted_workspace(config) as child:
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{child.pid}/status").read_text().splitlines()
        )
        assert int(fields["RssAnon"].split()[0]) < RESIDENT_KIB_MAX


def test_the_daemons_log_is_json_when_asked(tmp_path: Path) -> None:
    config = workspace_config(tmp_path, log_format="json")
    with mounted_workspace(config) as child:
        entries = [json.loads(line) for line in child.log().splitlines()]
    assert any(entry["message"].startswith("mounted on") for entry in entries)
