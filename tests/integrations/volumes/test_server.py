"""The protocol over a socket: a real HTTP client, and a driver that only notes what is asked."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.integrations.volumes import server as module
from s3ws_fs.integrations.volumes.driver import Driver
from s3ws_fs.integrations.volumes.server import BODY_BYTES_MAX, CONNECTIONS_MAX, Server
from tests.support.volumeclient import Connection, ask, call


class _Driver:
    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Event()

    def _note(self, *asked: Any) -> None:
        self.asked.append(asked)
        self.begun.set()
        assert self.go_on.wait(60)
        if self.error is not None:
            raise self.error

    def create(self, name: str, given: dict[str, str]) -> None:
        self._note("create", name, given)

    def remove(self, name: str) -> None:
        self._note("remove", name)

    def mount(self, name: str, ident: str) -> str:
        self._note("mount", name, ident)
        return f"/mnt/{name}"

    def unmount(self, name: str, ident: str) -> None:
        self._note("unmount", name, ident)

    def path(self, name: str) -> str:
        self._note("path", name)
        return f"/mnt/{name}"

    def describe(self, name: str) -> dict[str, Any]:
        self._note("describe", name)
        return {"Name": name, "Mountpoint": "", "Status": {"uses": 0}}

    def names(self) -> list[str]:
        return ["a", "b"]


class Made:
    def __init__(self, path: str) -> None:
        self.path = path
        self.driver = _Driver()
        self.server = Server(path, cast(Driver, self.driver))
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()
        self._is_closed = False

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.driver.go_on.set()
            self.server.close()
            self._thread.join()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    served = Made(str(tmp_path / "run" / "s3ws.sock"))
    yield served
    served.close()


def test_every_call_of_the_protocol(made: Made) -> None:
    def said(name: str, **members: Any) -> dict[str, Any]:
        status, document = call(made.path, name, **members)
        assert status == 200 and document.pop("Err") == ""
        return document

    assert said("Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    assert said("VolumeDriver.Capabilities") == {"Capabilities": {"Scope": "local"}}
    assert said("VolumeDriver.Create", Name="a", Opts={"user_id": "u"}) == {}
    assert said("VolumeDriver.Create", Name="b", Opts=None) == {}
    assert said("VolumeDriver.Mount", Name="a", ID="1") == {"Mountpoint": "/mnt/a"}
    assert said("VolumeDriver.Path", Name="a") == {"Mountpoint": "/mnt/a"}
    assert said("VolumeDriver.Unmount", Name="a", ID="1") == {}
    assert said("VolumeDriver.Get", Name="a")["Volume"]["Name"] == "a"
    assert said("VolumeDriver.List") == {
        "Volumes": [{"Name": n, "Mountpoint": f"/mnt/{n}"} for n in "ab"]
    }
    assert said("VolumeDriver.Remove", Name="a") == {}
    assert made.driver.asked == [
        ("create", "a", {"user_id": "u"}),
        ("create", "b", {}),
        ("mount", "a", "1"),
        ("path", "a"),
        ("unmount", "a", "1"),
        ("describe", "a"),
        ("path", "a"),
        ("path", "b"),
        ("remove", "a"),
    ]


def test_many_requests_on_one_connection(made: Made) -> None:
    with contextlib.closing(Connection(made.path)) as connection:
        for number in range(20):
            status, _ = ask(connection, "VolumeDriver.Path", Name=str(number))
            assert status == 200


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("is busy", remedy="wait", exit_code=ExitCode.BUSY), "is busy wait"),
        (FormatError("file", "damaged"), "file: damaged"),
        (OSError(28, "No space left on device"), "No space"),
        (RuntimeError("hunter2"), "internal error: RuntimeError"),
    ],
)
def test_errors_are_said_in_the_way_of_the_protocol(
    made: Made, error: Exception, said: str
) -> None:
    made.driver.error = error
    status, document = call(made.path, "VolumeDriver.Mount", Name="a", ID="1")
    assert status == 500 and said in document["Err"] and "hunter2" not in document["Err"]


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("Create", {}),
        ("Create", {"Name": ""}),
        ("Create", {"Name": 7}),
        ("Create", {"Name": "a", "Opts": ["x"]}),
        ("Create", {"Name": "a", "Opts": {"x": 1}}),
        ("Mount", {"Name": "a"}),
        ("Unmount", {"ID": "a"}),
    ],
)
def test_requests_of_a_wrong_shape(made: Made, name: str, members: dict[str, Any]) -> None:
    status, document = call(made.path, f"VolumeDriver.{name}", **members)
    assert status == 500 and document["Err"] and made.driver.asked == []


def test_unknown_paths_methods_and_bodies(made: Made) -> None:
    assert call(made.path, "VolumeDriver.Format")[0] == 404
    with contextlib.closing(Connection(made.path)) as connection:
        connection.request("POST", "/VolumeDriver.Path", body=b"\xff not JSON")
        answer = connection.getresponse()
        assert answer.status == 500 and "not JSON" in json.loads(answer.read())["Err"]
        connection.request("GET", "/Plugin.Activate")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 501
    assert made.driver.asked == []


def test_a_body_at_its_limit(made: Made) -> None:
    start, end = b'{"Name": "', b'"}'
    name = b"x" * (BODY_BYTES_MAX - len(start) - len(end))
    with contextlib.closing(Connection(made.path)) as connection:
        connection.request("POST", "/VolumeDriver.Path", body=start + name + end)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    for headers in ({"Content-Length": str(BODY_BYTES_MAX + 1)}, {"Transfer-Encoding": "chunked"}):
        with contextlib.closing(Connection(made.path)) as connection:
            connection.putrequest("POST", "/VolumeDriver.Path")
            for header, value in headers.items():
                connection.putheader(header, value)
            connection.endheaders()
            assert connection.getresponse().status == 413
    assert len(made.driver.asked) == 1


def test_connections_beyond_the_limit_wait(made: Made) -> None:
    with contextlib.ExitStack() as stack:
        idle = []
        for _ in range(CONNECTIONS_MAX):
            connection = stack.enter_context(contextlib.closing(Connection(made.path)))
            ask(connection, "Plugin.Activate")
            idle.append(connection)
        answers: list[int] = []
        late = threading.Thread(
            target=lambda: answers.append(call(made.path, "Plugin.Activate")[0])
        )
        late.start()
        late.join(0.2)
        assert late.is_alive() and answers == []
        idle[0].close()
        late.join(60)
        assert answers == [200]


def test_a_silent_connection_is_ended(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(60)
        silent.connect(made.path)
        assert silent.recv(1) == b""


def test_the_end_lets_a_request_under_way_finish(made: Made) -> None:
    made.driver.go_on.clear()
    answers: list[int] = []
    asking = threading.Thread(
        target=lambda: answers.append(call(made.path, "VolumeDriver.Mount", Name="a", ID="1")[0])
    )
    asking.start()
    assert made.driver.begun.wait(60)
    with contextlib.closing(Connection(made.path)) as idle:
        ask(idle, "Plugin.Activate")
        closing = threading.Thread(target=made.server.close)
        made._is_closed = True
        closing.start()
        made._thread.join(60)
        assert closing.is_alive() and answers == [], "it waits for the mount"
        made.driver.go_on.set()
        closing.join(60)
    asking.join(60)
    assert answers == [200] and not closing.is_alive()
    assert not os.path.exists(made.path)


def test_the_socket_is_private_and_nobody_else_is_answered(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert os.stat(made.path).st_mode & 0o777 == 0o600
    monkeypatch.setattr(module, "peer_uid", lambda _: os.geteuid() + 12345)
    with contextlib.closing(Connection(made.path)) as connection, pytest.raises(OSError):
        ask(connection, "Plugin.Activate")


def test_a_second_server_is_refused_and_a_dead_one_s_socket_is_taken(
    made: Made, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        Server(made.path, cast(Driver, made.driver))
    assert caught.value.exit_code is ExitCode.ALREADY_MOUNTED
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    served = Made(path)
    try:
        assert call(path, "Plugin.Activate")[0] == 200
    finally:
        served.close()
