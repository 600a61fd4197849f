"""The status page served in a thread, and an HTTP client that does what it is told.

Invariants
1. The page has ended when the block is left.

Called by the tests of web.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from s3ws_fs.web.guard import KEY_HEADER
from s3ws_fs.web.server import Listening, serve

START_S: Final = 30.0


@dataclass
class Running:
    """A page that serves. `links`: what it gave out, the newest last."""

    port: int
    links: list[str]

    @property
    def token(self) -> str:
        """That of the newest link."""
        return urlsplit(self.links[-1]).fragment.removeprefix("token=")


@contextlib.contextmanager
def serving(hosts: tuple[str, ...] = ()) -> Iterator[Running]:
    """Serve on a free port of loopback."""
    links: list[str] = []
    started: queue.Queue[tuple[int, trio.lowlevel.TrioToken, trio.CancelScope]] = queue.Queue()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            where = Listening(port=0, hosts=hosts)
            port = await nursery.start(serve, where, links.append)
            started.put((port, trio.lowlevel.current_trio_token(), nursery.cancel_scope))

    thread = threading.Thread(target=trio.run, args=(run,), name="page")
    thread.start()
    port, token, scope = started.get(timeout=START_S)
    try:
        yield Running(port, links)
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join()


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The document."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """What a refusal says."""
        return str(self.json()["error"]["message"])


@dataclass
class Client:
    """A browser without a window: it keeps the cookie and the key, and shows what it is told to."""

    port: int
    cookie: str = ""
    key: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """One request; a header of None is left out."""
        said: dict[str, str | None] = {"Cookie": self.cookie or None, KEY_HEADER: self.key or None}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            said["Content-Type"] = "application/json"
        said |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S)
        try:
            shown = {name: value for name, value in said.items() if value is not None}
            connection.request(method, path, data, shown)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def get(self, path: str, status: int = 200) -> Any:
        """A document."""
        answer = self.ask("GET", path)
        assert answer.status == status, (answer.status, answer.body)
        return answer.json()

    def post(self, path: str, body: object, status: int = 200) -> Any:
        """What came of it."""
        answer = self.ask("POST", path, body)
        assert answer.status == status, (answer.status, answer.body)
        return answer.json()

    def enter(self, token: str) -> Answer:
        """Be let in."""
        answer = self.ask("POST", "/api/session", {"token": token})
        if answer.status == 200:
            self.key = answer.json()["key"]
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return answer
