"""`s3ws web`: where the link goes, and where it does not."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from s3ws_fs.cli import cli
from s3ws_fs.cli.web import is_loopback
from s3ws_fs.core.errors import ExitCode, UserError
from tests.support.fake_mounts import Place
from tests.support.webclient import Client
from tests.support.webpage import running_page


def test_the_link_is_in_a_private_file_and_nowhere_else(place: Place, tmp_path: Path) -> None:
    with running_page(os.environ, tmp_path / "page") as page:
        assert stat.S_IMODE(page.link_file.stat().st_mode) == 0o600
        token, port = page.token, page.port
        command = Path(f"/proc/{page.process.pid}/cmdline").read_bytes()
        assert token.encode() not in command
        client = Client(port)
        assert client.enter(token).status == 200
        # The next link is in its place.
        assert page.token != token
        assert Client(port).enter(token).status == 403
        assert client.get("/api/mounts")["mounts"] == []
    assert token not in page.said and client.key not in page.said
    assert page.process.returncode == 0 and "closed" in page.said


def test_a_port_in_use_is_said(place: Place, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli, ["web", "--port", str(port)])
    assert isinstance(result.exception, UserError)
    assert result.exception.exit_code == ExitCode.USAGE and "--port" in result.exception.remedy


def test_a_link_file_that_can_not_be_is_said(place: Place, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["web", "--port", "0", "--link-file", str(tmp_path / "no/x")])
    assert isinstance(result.exception, UserError), result.exception
    assert result.exception.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("address", "is_ours"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_what_loopback_is(address: str, is_ours: bool) -> None:
    assert is_loopback(address) is is_ours
