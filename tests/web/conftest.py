"""A page that serves in a thread of the test, and a workspace of which a cache is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import open_cache
from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.daemon.parts import identity
from s3ws_fs.fs.filesystem import FileSystem
from tests.support.caches import CRED
from tests.support.fake_mounts import Place, faked
from tests.support.webclient import Client, Running, serving

HOSTILE = b"<img src=x onerror=alert(1)>\x1b[31m\xff\xe2\x80\xae.txt"
"""A name with markup, a terminal's escape, a byte that is no UTF-8, and a turn of direction."""
CONTENT = b"<script>alert(1)</script>\n\x1b[31m\xe2\x80\xae\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Directories and environment of a mount."""
    with faked(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def dead(place: Place) -> MountInfo:
    """A mount whose daemon died and left a cache."""
    config = place.config()
    with open_cache(
        Path(config.workspace_cache_dir),
        identity(config),
        quota_bytes=64 << 20,
        now_ns=lambda: 1_700_000_000_000_000_000,
    ) as cache:
        fs = FileSystem(cache, quota_bytes=64 << 20, quota_inodes=1000)
        fs.make_root(uid=0, gid=0, mode=0o755)
        below = fs.mkdir(ROOT_INO, b"dir", 0o755, CRED).ino
        fs.write(fs.create(below, b"inner.txt", 0o644, CRED).ino, 0, b"hello\r\nworld\n")
        fs.write(fs.create(ROOT_INO, HOSTILE, 0o644, CRED).ino, 0, CONTENT)
        fs.write(fs.create(ROOT_INO, b"binary", 0o644, CRED).ino, 0, b"a\0b")
        sparse = fs.create(ROOT_INO, b"sparse", 0o644, CRED).ino
        fs.write(sparse, 3 << 20, b"end")
        fs.symlink(ROOT_INO, b"out", b"/etc/passwd", CRED)
    info = replace(
        MountInfo.for_this_process(config, log_path=None, version="0"), pid_start_ticks=1
    )
    registry.write(place.runtime_dir, info)
    return info


@pytest.fixture
def living(dead: MountInfo, place: Place) -> Iterator[MountInfo]:
    """The same mount with a process that lives (this one); nobody listens for it."""
    info = replace(dead, pid_start_ticks=registry.start_ticks(dead.pid) or 0)
    registry.write(place.runtime_dir, info)
    yield info
    # Whoever clears the place ends the processes that are registered.
    registry.remove(place.runtime_dir, info.mountpoint)


@pytest.fixture
def page(place: Place) -> Iterator[Running]:
    """The page, served."""
    with serving() as running:
        yield running


@pytest.fixture
def client(page: Running) -> Client:
    """A browser that was let in."""
    made = Client(page.port)
    made.enter(page.token)
    return made
