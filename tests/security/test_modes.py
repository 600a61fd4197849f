"""What is made is private, whatever the umask says; what others made is not believed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from s3ws_fs.control import server
from s3ws_fs.control.paths import ensure_private_dir
from s3ws_fs.core.errors import ExitCode
from tests.support.actors import as_user, require_root
from tests.support.buckets import LocalBucket
from tests.support.host import HostMaker


def open_to_others(top: Path) -> list[str]:
    """What others may read, write or enter below `top`, itself included."""
    found = []
    for directory, names, files in os.walk(top):
        for path in (directory, *(os.path.join(directory, name) for name in (*names, *files))):
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode) and mode & 0o077:
                found.append(f"{os.path.relpath(path, top)} {stat.filemode(mode)}")
    return sorted(set(found))


@pytest.mark.e2e
@pytest.mark.fuse
def test_a_whole_life_with_umask_zero(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    # None of them is there yet: their parents are made, too.
    for name in ("WORKSPACE_CACHE_DIR", "WORKSPACE_RUNTIME_DIR", "WORKSPACE_STORAGE_PATH"):
        host.settings[name] = str(host.base / "made" / name / "deeper")
    (host.base / "made" / "WORKSPACE_STORAGE_PATH").mkdir(parents=True, mode=0o700)
    (host.base / "made").chmod(0o700)
    host.cache = Path(host.settings["WORKSPACE_CACHE_DIR"])
    host.runtime = Path(host.settings["WORKSPACE_RUNTIME_DIR"])
    before = os.umask(0)
    try:
        host.mount()
        (host.mountpoint / "file").write_bytes(b"x" * 300_000)
        host.sync()
        host.s3ws("check", host.mountpoint)
        assert open_to_others(host.base / "made") == []
        host.kill()
        host.mount()
        assert open_to_others(host.base / "made") == []
        host.umount()
        assert open_to_others(host.base / "made") == []
    finally:
        os.umask(before)


def test_missing_parents_are_private_too(tmp_path: Path) -> None:
    """They were made as the umask says: whoever may write there could swap what is below."""
    before = os.umask(0)
    try:
        ensure_private_dir(str(tmp_path / "a" / "b" / "c"))
    finally:
        os.umask(before)
    for place in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE((tmp_path / place).stat().st_mode) == 0o700


async def test_another_user_is_not_answered(tmp_path: Path) -> None:
    """By who it is: here the modes, which keep them out as well, are taken away."""
    require_root()
    asked = []

    async def handler(args: dict[str, object], emit: server.Emit) -> dict[str, object]:
        asked.append(args)
        return {}

    path = tmp_path / "run" / "x.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, str(path), {"status": handler})
        for place in (*path.parents, path):
            if tmp_path in (place, *place.parents) or place in tmp_path.parents:
                place.chmod(place.stat().st_mode | 0o755)
        path.chmod(0o666)

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                # Who is refused may be hung up on before the question was sent.
                with contextlib.suppress(BrokenPipeError):
                    sock.sendall(b'{"v":1,"cmd":"status","args":{}}\n')
                return sock.recv(4096)

        answer = await trio.to_thread.run_sync(lambda: as_user(12345, 12345, [], ask))
        assert b"another user" in answer
        assert asked == []
        assert b'"ok":true' in await trio.to_thread.run_sync(ask)
        nursery.cancel_scope.cancel()


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.parametrize("which", ["cache", "runtime"])
@pytest.mark.parametrize("how", ["link", "theirs", "writable"])
def test_a_place_that_another_user_prepared_is_refused(
    local_bucket: LocalBucket, new_host: HostMaker, which: str, how: str
) -> None:
    host = new_host(local_bucket)
    place = host.cache if which == "cache" else host.runtime
    if how == "link":
        (host.base / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(host.base / "elsewhere")
    else:
        place.mkdir(mode=0o700)
        if how == "theirs":
            require_root()
            os.chown(place, 12345, 12345)
        else:
            place.chmod(0o777)
    done = host.s3ws("mount", host.mountpoint, ok=None)
    if how == "link":
        # Followed when the settings were read: what counts is the directory itself.
        assert done.returncode in (ExitCode.OK, ExitCode.BAD_SETTINGS)
        if done.returncode == ExitCode.OK:
            assert open_to_others(host.base / "elsewhere") == []
        return
    assert done.returncode == ExitCode.BAD_SETTINGS
    assert "another user" in done.stderr
    assert os.listdir(place) == []


@pytest.mark.e2e
@pytest.mark.fuse
def test_the_mount_point_may_be_a_link(local_bucket: LocalBucket, new_host: HostMaker) -> None:
    host = new_host(local_bucket)
    link = host.base / "link"
    link.symlink_to(host.mountpoint)
    host.s3ws("mount", link)
    assert os.path.ismount(host.mountpoint)
    (link / "file").write_bytes(b"through the link")
    host.s3ws("umount", link)
    assert not os.path.ismount(host.mountpoint)


def test_the_current_directory_holds_no_modules_of_ours(tmp_path: Path) -> None:
    """A workspace with a trio.py in it is no place to be run from: -P keeps it out."""
    from s3ws_fs.launch import start
    from tests.support.mounting import workspace_config

    command = start._command(workspace_config(tmp_path), 3, None)
    daemon = command[command.index("--") + 1 :]
    assert "-P" in daemon[: daemon.index("-m")]
    (tmp_path / "trio.py").write_text("raise SystemExit('hostile code ran')")
    done = subprocess.run(
        [*daemon, "--help"],
        cwd=tmp_path,
        env=start._environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    unsafe = [word for word in daemon if word != "-P"]
    control = subprocess.run(
        [*unsafe, "--help"],
        cwd=tmp_path,
        env=start._environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "hostile code ran" in control.stderr, "the control shows nothing"
