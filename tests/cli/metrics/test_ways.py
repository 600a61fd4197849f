"""A file that is never half, and a port that is for this host."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from s3ws_fs.cli.metrics import ways
from s3ws_fs.core.errors import ExitCode, UserError


class One(Collector):
    """One metric; `fails` when told to."""

    fails = False

    def collect(self) -> Iterator[Metric]:
        if self.fails:
            raise RuntimeError("no")
        yield GaugeMetricFamily("s3ws_mounts", "Mounts", value=3)


# --- a file --------------------------------------------------------------------------------------


def test_the_file_is_replaced_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "s3ws.prom"
    path.write_text("old")
    before = path.stat().st_ino
    old_mask = os.umask(0o077)
    try:
        ways.write_textfile(path, One())
    finally:
        os.umask(old_mask)
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o644
    assert [f.name for f in text_string_to_metric_families(path.read_text())] == ["s3ws_mounts"]
    assert os.listdir(tmp_path) == ["s3ws.prom"]


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s3ws.prom"
    path.write_text("old")
    collector = One()
    collector.fails = True
    with pytest.raises(RuntimeError):
        ways.write_textfile(path, collector)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match="No space left"):
        ways.write_textfile(path, One())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["s3ws.prom"]


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        ways.write_textfile(tmp_path / "none" / "s3ws.prom", One())
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS


def test_it_is_repeated_until_a_signal() -> None:
    done = []

    def work() -> None:
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    ways.repeat(work, 0.01)
    assert len(done) == 3
    assert signal.getsignal(signal.SIGTERM) is before


# --- a port --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("9748", ("127.0.0.1", 9748)),
        (":9748", ("127.0.0.1", 9748)),
        ("127.0.0.2:0", ("127.0.0.2", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_loopback_addresses(given: str, wanted: tuple[str, int]) -> None:
    assert ways.loopback(given) == wanted


@pytest.mark.parametrize(
    "given",
    ["0.0.0.0:9748", "[::]:9748", "192.0.2.1:9748", "localhost:1", "", "x", "65536", "-1", "²"],
)
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(UserError) as caught:
        ways.loopback(given)
    assert caught.value.exit_code is ExitCode.USAGE


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[ways.Server]:
    with ways.Server(address, 0, One()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(
    server: ways.Server, path: str = "/metrics", *, host: str | None = None, accept: str = ""
) -> tuple[int, str]:
    address, port = server.socket.getsockname()[:2]
    connection = http.client.HTTPConnection(address, port, timeout=20)
    headers = {"Accept": accept} | ({} if host is None else {"Host": host})
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::1"])
def test_metrics_are_served(address: str) -> None:
    try:
        with serving(address) as server:
            status, text = get(server)
            assert status == 200
            assert "s3ws_mounts 3.0" in text
            assert server.url.endswith(f":{server.socket.getsockname()[1]}/metrics")
    except UserError as exc:
        if address != "::1":
            raise
        pytest.skip(f"this machine has no IPv6 loopback: {exc}")


def test_who_wants_openmetrics_gets_it() -> None:
    with serving() as server:
        status, text = get(server, accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    families = openmetrics.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    assert [family.name for family in families] == ["s3ws_mounts"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9748", "[::2]:1", ""])
def test_a_name_of_somebody_else_is_refused(host: str) -> None:
    with serving() as server:
        status, text = get(server, host=host)
    assert status == 421
    assert "s3ws_mounts" not in text


@pytest.mark.parametrize("host", ["localhost", "localhost:9748", "127.0.0.1:1", "[::1]:1"])
def test_names_of_loopback_are_taken(host: str) -> None:
    with serving() as server:
        assert get(server, host=host)[0] == 200


def test_nothing_else_is_there() -> None:
    with serving() as server:
        assert get(server, "/other")[0] == 404
        assert get(server, "/")[0] == 200


def test_a_client_that_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways._Quiet, "timeout", 0.2)
    with serving() as server, socket.create_connection(server.socket.getsockname()) as silent:
        # Its turn comes first; the other waits for it, and is served.
        assert get(server)[0] == 200
        assert silent.recv(1) == b""


def test_a_port_in_use_is_told() -> None:
    with serving() as server, pytest.raises(UserError, match="in use"):
        address, port = server.socket.getsockname()
        ways.Server(address, port, One())
