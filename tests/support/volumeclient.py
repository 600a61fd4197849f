"""What Docker does to a volume plugin: HTTP with the standard library's client, over the socket.

Called by the tests of integrations/volumes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3ws_fs.control.paths import socket_address
from s3ws_fs.integrations.volumes.server import CONTENT_TYPE
from tests.support.mounting import REPOSITORY
from tests.support.notified import listening

ANSWER_S_MAX = 130.0
EXIT_S_MAX = 60.0


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("plugin", timeout=ANSWER_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with socket_address(self._path) as address:
            self.sock.connect(address)


def call(path: str, name: str, **members: Any) -> tuple[int, dict[str, Any]]:
    """One request on a connection of its own: HTTP status and the answer."""
    with contextlib.closing(Connection(path)) as connection:
        return ask(connection, name, **members)


def ask(connection: Connection, name: str, **members: Any) -> tuple[int, dict[str, Any]]:
    """One request."""
    connection.request("POST", f"/{name}", body=json.dumps(members))
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == CONTENT_TYPE
    document = json.loads(answer.read())
    assert isinstance(document, dict)
    return answer.status, document


class Plugin:
    """A plugin process on a socket below a directory of its own."""

    def __init__(self, base: Path, env: Mapping[str, str]) -> None:
        self.base = base
        self.socket = str(base / "s3ws.sock")
        self.state = base / "state"
        self.env = dict(env)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it says READY."""
        word = "s3ws_fs.integrations.volumes"
        command = [sys.executable, "-m", word]
        command += ["--socket", self.socket, "--state-dir", str(self.state)]
        notify = str(self.base / "notify")
        Path(notify).unlink(missing_ok=True)
        with listening(notify) as manager, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**self.env, "NOTIFY_SOCKET": notify, "PYTHONPATH": str(REPOSITORY)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
            manager.until(lambda words: "READY" in words)

    @property
    def log(self) -> Path:
        """What it said."""
        return self.base / "plugin.log"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(EXIT_S_MAX)

    def call(self, name: str, **members: Any) -> dict[str, Any]:
        """A request that has to succeed."""
        status, document = call(self.socket, f"VolumeDriver.{name}", **members)
        assert (status, document["Err"]) == (200, ""), (document, self.log.read_text())
        del document["Err"]
        return document

    def refused(self, name: str, **members: Any) -> str:
        """A request that has to fail: why it did."""
        status, document = call(self.socket, f"VolumeDriver.{name}", **members)
        assert status == 500 and document["Err"], document
        assert "Traceback" not in document["Err"]
        return str(document["Err"])

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def running(base: Path, env: Mapping[str, str]) -> Iterator[Plugin]:
    """A plugin; ended for sure."""
    base.mkdir(parents=True, exist_ok=True)
    plugin = Plugin(base, env)
    try:
        plugin.start()
        yield plugin
    finally:
        plugin.end()
