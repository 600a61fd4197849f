"""`s3ws watch` beside real mounts: of the one that writes, one that follows, and over a restart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.buckets import LocalBucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


class Watching:
    """A running `s3ws watch --json`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.seen: list[dict[str, Any]] = []

    def until(self, what: str, path: str) -> list[tuple[str, str]]:
        """All changes up to this one, in which it is."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = json.loads(line)
            self.seen.append(found)
            if found["what"] == what and found.get("path", {}).get("name", "") == path:
                return [(each["what"], each.get("path", {}).get("name", "")) for each in self.seen]
        raise AssertionError(f"it ended without {what} {path!r}: {self.seen}")


@contextmanager
def watching(host: Host) -> Iterator[Watching]:
    """From the first line on; it has ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "s3ws_fs", "watch", "--json", str(host.mountpoint)],
        env=host.env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        made = Watching(process)
        made.until("watching", "")
        yield made
    finally:
        process.kill()
        process.communicate()


def test_it_shows_what_programs_do_also_under_the_next_daemon(
    local_bucket: LocalBucket, new_host: HostMaker
) -> None:
    host = new_host(local_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    top = host.mountpoint
    with watching(host) as watch:
        (top / "d").mkdir()
        (top / "d" / "f").write_text("one")
        watch.until("created", "d/f")
        (top / "d" / ".f.tmp").write_text("two")
        (top / "d" / ".f.tmp").rename(top / "d" / "f")
        assert ("created", "d/.f.tmp") in watch.until("renamed", "d/f")
        # Sealed at once, so that nothing of it is dirty when it is told.
        (top / "d" / "f").write_text("three")
        host.sync()
        watch.until("changed", "d/f")
        host.s3ws("restart", top)
        (top / "later").write_text("4")
        # Before the watcher found the next daemon, or after: told, or told as missed.
        (top / "d" / "f").unlink()
        (top / "d").rmdir()
        host.umount()
        assert watch.process.stdout is not None
        watch.seen += [json.loads(line) for line in watch.process.stdout]
        assert watch.process.wait(60) == 0
    said = [(each["what"], each.get("path", {}).get("name")) for each in watch.seen]
    assert ("removed", "d") in said or "missed" in [what for what, _ in said], said
    generations = [each["generation"] for each in watch.seen]
    assert generations == sorted(generations)


def test_a_mount_that_follows_shows_what_another_sealed(
    local_bucket: LocalBucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(local_bucket, settings=NEVER_BY_ITSELF)
    host.mount()
    (host.mountpoint / "old").write_text("1")
    host.sync()
    other = host.elsewhere(tmp_path / "follower")
    try:
        other.mount("--read-only")
        with watching(other) as watch:
            (host.mountpoint / "new").write_bytes(os.urandom(10))
            (host.mountpoint / "old").rename(host.mountpoint / "moved")
            host.sync()
            other.s3ws("sync", other.mountpoint)
            assert ("created", "new") in watch.until("renamed", "moved")
    finally:
        other.end()
