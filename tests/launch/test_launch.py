"""Starting and ending daemons: nothing left behind, nothing taken for saved that is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs import launch
from s3ws_fs.control import client, registry, wire
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.fuse import table
from s3ws_fs.launch import end, preflight, start
from tests.support.fake_mounts import Place
from tests.support.host import kill_all


def fails(code: ExitCode, function: Any, *args: Any, **more: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        function(*args, **more)
    assert caught.value.exit_code is code, caught.value
    return caught.value


def test_mount_and_umount(place: Place) -> None:
    events: list[dict[str, Any]] = []
    info = launch.mount(place.config(), on_event=events.append)
    assert info.is_alive() and info == place.info()
    assert [event["phase"] for event in events] == ["restoring"]
    assert Path(place.mountpoint).is_dir()
    events.clear()
    result = launch.umount_and_wait(place.mountpoint, place.runtime_dir, on_event=events.append)
    assert result == {"saved": True}
    assert [event["phase"] for event in events] == ["mirroring"]
    assert not info.is_alive() and place.info() is None
    fails(ExitCode.NOT_MOUNTED, launch.umount_and_wait, place.mountpoint, place.runtime_dir)


def test_daemon_is_detached_and_its_log_private(place: Place) -> None:
    info = launch.mount(place.config())
    assert os.getsid(info.pid) == info.holder_pid
    assert os.readlink(f"/proc/{info.pid}/cwd") == "/"
    log = Path(place.config().workspace_cache_dir + ".log")
    assert os.path.samefile(f"/proc/{info.pid}/fd/2", log)
    assert log.stat().st_mode & 0o777 == 0o600


def test_secrets_travel_in_the_environment_only(place: Place) -> None:
    info = launch.mount(place.config(), secret_env={"AWS_SECRET_ACCESS_KEY": "hunter2"})
    status = client.request(registry.socket_path(place.runtime_dir, place.mountpoint), "status")
    assert status["secret"] == "hunter2"
    assert b"hunter2" not in Path(f"/proc/{info.pid}/cmdline").read_bytes()
    assert "hunter2" not in os.environ.values()
    for path in place.root.rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes()


def test_error_of_the_daemon_is_raised_as_it_said(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3WS_FAKE", "error")
    error = fails(ExitCode.STORE, launch.mount, place.config())
    assert (error.message, error.remedy) == ("no such bucket", "make it")


def test_crash_names_the_log_and_its_last_line(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3WS_FAKE", "crash")
    error = fails(ExitCode.BAD_SETTINGS, launch.mount, place.config())
    assert "the last words" in error.message and "first line" not in error.message
    assert ".log" in error.remedy


def children() -> set[str]:
    """Child processes of this one, also dead ones that nobody waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


def test_a_daemon_that_says_nothing_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3WS_FAKE", "hang")
    monkeypatch.setattr(start, "SILENCE_TIMEOUT_S", 0.2)
    before = children()
    error = fails(ExitCode.INTERNAL, launch.mount, place.config())
    assert "no progress" in error.message
    assert children() == before


def test_second_mount_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    info = launch.mount(place.config())
    error = fails(ExitCode.ALREADY_MOUNTED, launch.mount, place.config())
    # No FUSE here: to the launcher it looks like a daemon that saves after umount(8).
    assert "still saving" in error.message
    monkeypatch.setattr(table, "is_mounted", lambda path: True)
    error = fails(ExitCode.ALREADY_MOUNTED, launch.mount, place.config())
    assert f"daemon {info.pid}" in error.message


def test_two_launches_at_once(place: Place) -> None:
    config = place.config()
    preflight.prepare(config, nonempty=False)
    with start._launch_lock(config):
        fails(ExitCode.ALREADY_MOUNTED, launch.mount, config)
    launch.mount(config)


def test_mount_point_must_be_an_empty_directory(place: Place) -> None:
    directory = Path(place.mountpoint)
    directory.mkdir()
    (directory / "file").touch()
    error = fails(ExitCode.BUSY, launch.mount, place.config())
    assert "--nonempty" in error.remedy
    launch.mount(place.config(), nonempty=True)
    launch.umount_and_wait(place.mountpoint, place.runtime_dir)
    (directory / "file").unlink()
    directory.rmdir()
    directory.touch()
    fails(ExitCode.BAD_SETTINGS, launch.mount, place.config())


def test_parent_of_the_mount_point_must_exist(place: Place) -> None:
    from dataclasses import replace

    config = replace(place.config(), mountpoint=place.mountpoint + "/deep/deeper")
    fails(ExitCode.BAD_SETTINGS, launch.mount, config)


def test_no_fuse(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "FUSE_DEVICE", str(place.root / "none"))
    error = fails(ExitCode.NO_FUSE, launch.mount, place.config())
    assert "--device /dev/fuse" in error.remedy


def test_not_saved_lists_what_is_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3WS_FAKE", "unsaved")
    info = launch.mount(place.config())
    error = fails(ExitCode.NOT_SAVED, launch.umount_and_wait, place.mountpoint, place.runtime_dir)
    assert isinstance(error, wire.ReplyError)
    assert error.details["unsaved"] == ["a\x1b[31m", "b\udcff"]
    assert not info.is_alive(), "the next mount does not find it still ending"


def test_busy_mount_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3WS_FAKE", "busy")
    info = launch.mount(place.config())
    fails(ExitCode.BUSY, launch.umount_and_wait, place.mountpoint, place.runtime_dir)
    assert info.is_alive()


def test_daemon_that_dies_in_unmount_is_not_taken_for_saved(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3WS_FAKE", "die")
    launch.mount(place.config())
    error = fails(ExitCode.NOT_SAVED, launch.umount_and_wait, place.mountpoint, place.runtime_dir)
    assert "unknown" in error.message
    assert place.info() is not None


def test_daemon_that_saved_and_died_before_its_answer_is_taken_for_saved(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3WS_FAKE", "saved_die")
    launch.mount(place.config())
    assert launch.umount_and_wait(place.mountpoint, place.runtime_dir) == {"saved": True}


def test_timeout_leaves_the_daemon_saving(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3WS_FAKE", "slow")
    monkeypatch.setenv("S3WS_FAKE_GATE", str(place.root / "gate"))
    info = launch.mount(place.config())
    fails(
        ExitCode.NOT_SAVED,
        launch.umount_and_wait,
        place.mountpoint,
        place.runtime_dir,
        timeout_s=0.1,
    )
    assert info.is_alive()
    (place.root / "gate").touch()
    assert launch.umount_and_wait(place.mountpoint, place.runtime_dir) == {"saved": True}


def test_killed_daemon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    info = launch.mount(place.config())
    kill_all(info)
    error = fails(ExitCode.NOT_SAVED, launch.umount_and_wait, place.mountpoint, place.runtime_dir)
    assert "keeps it all" in error.message
    left: dict[str, Any] = {
        "records": 0,
        "files": 0,
        "oldest_ns": None,
        "unmirrored": 0,
        "paths": [],
    }
    monkeypatch.setattr(end, "unsaved_of", lambda info: left)
    result = launch.umount_and_wait(place.mountpoint, place.runtime_dir)
    assert result["saved"] and place.info() is None


def test_mount_after_a_killed_daemon(place: Place) -> None:
    first = launch.mount(place.config())
    kill_all(first)
    second = launch.mount(place.config())
    assert second.pid != first.pid and second.is_alive()


def test_foreground_keeps_the_process(place: Place) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["S3WS_FAKE"] = "unsaved"
            launch.exec_foreground(place.config())
        finally:
            os._exit(99)
    path = registry.socket_path(place.runtime_dir, place.mountpoint)
    from tests.support.mounting import wait_until

    wait_until(lambda: place.info() is not None and Path(path).exists())
    info = place.info()
    assert info is not None and info.holder_pid == pid
    with pytest.raises(UserError):
        client.request(path, "unmount")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == ExitCode.NOT_SAVED


def test_canonical_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path.resolve() / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    assert launch.canonical_mountpoint(str(tmp_path / "link")) == str(real)
    assert launch.canonical_mountpoint(str(tmp_path / "link" / ".." / "real" / ".")) == str(real)
    assert launch.canonical_mountpoint(str(tmp_path / "link" / "new")) == str(real / "new")
    monkeypatch.chdir(real)
    assert launch.canonical_mountpoint(".") == str(real)
    monkeypatch.setenv("HOME", str(real))
    assert launch.canonical_mountpoint("~/x") == str(real / "x")
