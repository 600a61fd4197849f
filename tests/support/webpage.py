"""`s3ws web` as a process of its own, beside the mounts of a host.

Invariants
1. It has ended when the block is left, by SIGINT as a person ends it; what it said is in `said`.

Called by the tests of web, and by scripts/webshots.py.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.support.mounting import wait_until

START_S: Final = 60.0
END_S: Final = 60.0


@dataclass
class Page:
    """A running page. `link_file` holds the newest link."""

    process: subprocess.Popen[bytes]
    link_file: Path
    log: Path

    @property
    def link(self) -> str:
        """The link that lets the next browser in."""
        return self.link_file.read_text().strip()

    @property
    def port(self) -> int:
        """Where it listens."""
        port = urlsplit(self.link).port
        assert port is not None
        return port

    @property
    def token(self) -> str:
        """That of the link."""
        return urlsplit(self.link).fragment.removeprefix("token=")

    @property
    def said(self) -> str:
        """Standard output and error."""
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def running_page(env: Mapping[str, str], directory: Path, *flags: str) -> Iterator[Page]:
    """A page on a free port of loopback."""
    directory.mkdir(parents=True, exist_ok=True)
    link_file, log = directory / "link", directory / "web.log"
    command = [sys.executable, "-m", "s3ws_fs", "web", "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--link-file", str(link_file), *flags],
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    page = Page(process, link_file, log)
    try:

        def up() -> bool:
            assert process.poll() is None, page.said
            return link_file.exists()

        wait_until(up, timeout_s=START_S, what="the status page")
        yield page
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the status page did not end: {page.said}") from None
