"""mount.s3ws and umount.s3ws: their command lines and exit codes, with a fake daemon."""

from __future__ import annotations

import pytest

from s3ws_fs import launch
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.integrations import mounthelper
from s3ws_fs.integrations.mounthelper import (
    MOUNT_FAILED,
    MOUNT_SYSTEM,
    MOUNT_USAGE,
    mount_main,
    umount_main,
)
from tests.support.fake_mounts import Place


def test_mounts_and_umounts(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_main(["alice/conv", place.mountpoint, "-o", "rw,_netdev,max_size_mb=9"]) == 0
    info = place.info()
    assert info is not None and info.is_alive()
    assert (info.user_id, info.conversation_id) == ("alice", "conv")
    assert mount_main(["s3ws", place.mountpoint]) == MOUNT_FAILED
    assert "still saving" in capsys.readouterr().err
    assert umount_main([place.mountpoint]) == 0
    assert not info.is_alive() and place.info() is None
    assert capsys.readouterr() == ("", "")


def test_options_beat_the_source_and_the_source_the_environment(place: Place) -> None:
    assert mount_main(["-o", "user_id=bob", "alice/conv", place.mountpoint, "-t", "s3ws"]) == 0
    info = place.info()
    assert info is not None and (info.user_id, info.conversation_id) == ("bob", "conv")
    assert umount_main([place.mountpoint, "-v"]) == 0


def test_fake_checks_settings_and_mounts_nothing(place: Place) -> None:
    assert mount_main(["s3ws", place.mountpoint, "-fnv"]) == 0
    assert place.info() is None
    assert mount_main(["s3ws", place.mountpoint, "-f", "-o", "max_size_mb=x"]) == MOUNT_USAGE


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["s3ws"],
        ["s3ws", "/a", "/b"],
        ["s3ws", "/a", "-N", "/proc/1/ns/mnt"],
        ["s3ws", "/a", "-Q"],
        ["no-slash", "/a"],
        ["a/b/c", "/a"],
        ["/c", "/a"],
        ["s3ws", "/a", "-o", "unknown=hunter2"],
        ["s3ws", "/a", "-o", "noexec"],
    ],
)
def test_wrong_usage(
    arguments: list[str], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mount_main(arguments) == MOUNT_USAGE
    said = "".join(capsys.readouterr())
    assert said and "hunter2" not in said and "Traceback" not in said


def test_umount_of_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert umount_main([place.mountpoint]) == MOUNT_FAILED
    assert "not mounted" in capsys.readouterr().err
    assert umount_main([]) == MOUNT_USAGE


def test_what_failed_is_said_with_the_code_of_mount(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = UserError("not everything is saved", remedy="wait", exit_code=ExitCode.NOT_SAVED)

    def fail(*_: object, **__: object) -> None:
        raise raised

    assert mount_main(["s3ws", place.mountpoint]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(launch, "umount_and_wait", fail)
        assert umount_main([place.mountpoint]) == MOUNT_FAILED
    assert capsys.readouterr().err == "umount.s3ws: not everything is saved\n  wait\n"
    assert umount_main([place.mountpoint]) == 0
    raised.exit_code = ExitCode.NO_FUSE
    monkeypatch.setattr(launch, "mount", fail)
    assert mount_main(["s3ws", place.mountpoint]) == MOUNT_SYSTEM


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_main(["--help"]) == 0
    assert umount_main(["-V"]) == 0
    said = capsys.readouterr().out
    assert "mount.s3ws SOURCE DIR" in said and "umount.s3ws from s3ws " in said
    assert mounthelper.__doc__ is not None
