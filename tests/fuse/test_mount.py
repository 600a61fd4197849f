"""Mounting and unmounting: dead mounts, busy mounts, and what the mount table says."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import cast

import pyfuse3
import pytest

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.fuse import mount, table
from s3ws_fs.fuse.operations import Operations
from tests.support.actors import as_user, require_root
from tests.support.mounting import mounted_layer, wait_until
from tests.support.pair import let_others_pass

pytestmark = pytest.mark.fuse


def test_the_table_knows_living_dead_and_none(tmp_path: Path) -> None:
    base = tmp_path / "with space\tand\\backslash"
    base.mkdir()
    mountpoint = base / "mnt"
    assert not table.is_mounted(str(mountpoint))
    with mounted_layer(base) as child:
        assert table.is_mounted(str(mountpoint))
        assert not table.is_dead(str(mountpoint))
        assert not table.is_mounted(str(base))
        child.kill()
        assert table.is_mounted(str(mountpoint))
        assert table.is_dead(str(mountpoint))
    assert not table.is_mounted(str(mountpoint))


def test_a_dead_mount_is_cleared_by_the_next_one_and_nothing_is_lost(tmp_path: Path) -> None:
    with mounted_layer(tmp_path) as child:
        (child.mountpoint / "f").write_text("kept")
        child.kill()
        with mounted_layer(tmp_path) as again:
            assert (again.mountpoint / "f").read_text() == "kept"


def test_a_living_mount_is_refused(tmp_path: Path) -> None:
    with mounted_layer(tmp_path) as child:
        with pytest.raises(UserError) as caught:
            mount.check_mountpoint(str(child.mountpoint))
        assert caught.value.exit_code is ExitCode.ALREADY_MOUNTED


def test_a_mountpoint_must_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(UserError) as caught:
            mount.check_mountpoint(str(path))
        assert caught.value.exit_code is ExitCode.BAD_SETTINGS


def test_the_owner_of_a_fresh_root_may_change_it_first(tmp_path: Path) -> None:
    """The kernel has to have asked whose it is, before anybody did anything else."""
    if os.geteuid() != 0:
        with mounted_layer(tmp_path) as again:
            again.mountpoint.chmod(0o700)
        return
    with mounted_layer(tmp_path, uid_map=[[0, 10001]]) as again:
        let_others_pass(again.mountpoint.parent)
        as_user(10001, 10001, [], lambda: Path("mnt").chmod(0o700), cwd=tmp_path)
        assert again.mountpoint.stat().st_mode & 0o777 == 0o700


def test_a_session_that_fails_leaves_no_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where we mount by ourselves, nobody else clears it away."""
    require_root()

    def fail(*_: object) -> None:
        assert table.is_mounted(str(tmp_path)), "mounted before the session begins"
        raise RuntimeError("no session")

    monkeypatch.setattr(pyfuse3, "init", fail)
    open_files = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(UserError, match="no session"),
        mount.mounted(cast(Operations, None), str(tmp_path), allow_other=False),
    ):
        pass
    assert not table.is_mounted(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_users_of_a_mount_are_named(tmp_path: Path) -> None:
    with mounted_layer(tmp_path) as child:
        (child.mountpoint / "f").touch()
        inside = subprocess.Popen(["sleep", "60"], cwd=child.mountpoint)
        with (child.mountpoint / "f").open() as file:
            reader = subprocess.Popen(["sleep", "60"], stdin=file, cwd="/")
        try:
            wait_until(
                lambda: (
                    {
                        (inside.pid, "sleep"),
                        (reader.pid, "sleep"),
                    }
                    <= set(table.users(str(child.mountpoint), 10))
                )
            )
            assert len(table.users(str(child.mountpoint), 1)) == 1
        finally:
            inside.kill()
            reader.kill()
            inside.wait()
            reader.wait()


def test_unmounting_waits_while_the_mount_is_in_use(tmp_path: Path) -> None:
    with mounted_layer(tmp_path) as child:
        file = (child.mountpoint / "f").open("w")
        child.signal(signal.SIGTERM)
        file.write("written while the unmount waits")
        file.flush()
        assert child.process.poll() is None
        file.close()
        assert child.wait() == 0
    with mounted_layer(tmp_path) as child:
        assert (child.mountpoint / "f").read_text() == "written while the unmount waits"


@pytest.mark.parametrize("command", [["fusermount3", "-u"], ["umount"]])
def test_an_unmount_from_outside_ends_serving(tmp_path: Path, command: list[str]) -> None:
    with mounted_layer(tmp_path) as child:
        (child.mountpoint / "f").write_text("x")
        subprocess.run([*command, str(child.mountpoint)], check=True)
        assert child.wait() == 0
        assert os.listdir(child.mountpoint) == []


@pytest.mark.parametrize("wait_us", [0, 1, 40])
def test_all_ways_of_waiting_serve(tmp_path: Path, wait_us: int) -> None:
    with mounted_layer(tmp_path, adaptive_wait_us=wait_us) as child:
        script = 'i=0; while [ $i -lt 200 ]; do echo $i >"$1$i"; cat "$1$i"; i=$((i+1)); done'
        jobs = [
            subprocess.Popen(
                ["sh", "-c", script, "sh", str(child.mountpoint / name)], stdout=subprocess.DEVNULL
            )
            for name in "abcd"
        ]
        assert [job.wait(60) for job in jobs] == [0, 0, 0, 0]
        assert len(os.listdir(child.mountpoint)) == 800


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can force an unmount")
def test_an_aborted_connection_leaves_no_dead_mount(tmp_path: Path) -> None:
    with mounted_layer(tmp_path) as child, (child.mountpoint / "f").open("w"):
        # Forced on a busy mount: refused, but the kernel cuts the connection.
        subprocess.run(["umount", "-f", str(child.mountpoint)], check=False)
        assert child.wait() == 0
        assert not table.is_mounted(str(child.mountpoint))


def test_another_mount_at_the_same_place_is_left_alone(tmp_path: Path) -> None:
    with mounted_layer(tmp_path) as child:
        theirs = mount.Mount(str(child.mountpoint), -1)
        assert not theirs.stands()
        mount._umount(theirs, 0)
        assert table.is_mounted(str(child.mountpoint))


def test_what_libfuse_says_is_heard_and_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with mount._captured_stderr() as said:
        assert said() == ""
        os.write(2, b"fusermount3: no\n")
        assert said() == "fusermount3: no"
    assert capfd.readouterr().err == "fusermount3: no\n"
    os.write(2, b"as before")
    assert capfd.readouterr().err == "as before"
