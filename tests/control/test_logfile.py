"""The log file: private and bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3ws_fs.control import logfile


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "LOG_BYTES_MAX", 100)


def test_log_is_private_appended_to_and_cut_only_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("old\n")
    path.chmod(0o644)
    fd = logfile.open_log(str(path))
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        os.write(fd, b"x" * 96)
        assert path.stat().st_size == 100
        assert not logfile.cap(fd, str(path))
        os.write(fd, b"y")
        assert logfile.cap(fd, str(path))
        os.write(fd, b"new")
    finally:
        os.close(fd)
    assert path.read_bytes() == b"new"
    older = tmp_path / "x.log.1"
    assert older.read_bytes() == b"old\n" + b"x" * 96 + b"y"
    assert older.stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_left_alone(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        assert not logfile.cap(write, str(tmp_path / "none"))
    finally:
        os.close(read)
        os.close(write)


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        logfile.open_log(str(tmp_path / "x.log"))
