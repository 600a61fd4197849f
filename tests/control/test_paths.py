"""Private directories and long socket paths."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from s3ws_fs.control.paths import SUN_PATH_BYTES_MAX, ensure_private_dir, socket_address
from s3ws_fs.core.errors import ExitCode, UserError


def test_a_missing_directory_is_made_private(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    ensure_private_dir(str(place))
    assert place.stat().st_mode & 0o777 == 0o700
    ensure_private_dir(str(place))


def test_a_directory_that_others_can_write_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "shared"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(UserError, match="another user") as caught:
        ensure_private_dir(str(place))
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS
    assert place.stat().st_mode & 0o777 == 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    with pytest.raises(UserError, match="another user"):
        ensure_private_dir(str(place))


def test_symlinks_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("link", "file", "file/below"):
        with pytest.raises(UserError):
            ensure_private_dir(str(tmp_path / name))


@pytest.mark.parametrize("extra", [0, 1, 300])
def test_sockets_below_at_and_beyond_the_kernels_limit(tmp_path: Path, extra: int) -> None:
    length = SUN_PATH_BYTES_MAX + extra - len(str(tmp_path)) - len("/x.sock") - 1
    place = tmp_path
    while length > 0:
        part = "d" * min(length, 200)
        place = place / part
        length -= len(part) + 1
    place.mkdir(parents=True, exist_ok=True)
    path = str(place / "x.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with socket_address(path) as address:
            server.bind(address)
        server.listen()
        with socket_address(path) as address:
            client.connect(address)
    assert Path(path).is_socket()
