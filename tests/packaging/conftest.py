"""One engine and one image for the whole run; each test's containers are removed after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.buckets import S3Bucket
from tests.support.containers import running_engine, why_not
from tests.support.e2e_fixtures import new_host, s3_bucket, seaweed, user
from tests.support.host import QUICK
from tests.support.podman import Podman

__all__ = ["new_host", "s3_bucket", "seaweed", "user"]


@pytest.fixture(scope="session")
def engine() -> Iterator[Podman]:
    """podman with the base image and ours."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with running_engine() as podman:
        yield podman


@pytest.fixture
def podman(engine: Podman) -> Iterator[Podman]:
    """The engine; what a test started is gone after it."""
    yield engine
    engine.remove_containers()


@pytest.fixture
def settings(s3_bucket: S3Bucket, user: str) -> dict[str, str]:
    """The environment of a container with this test's workspace in the shared bucket."""
    quick = {**QUICK, "WORKSPACE_BACKUP_INTERVAL": "0"}
    del quick["WORKSPACE_UNMOUNT_GRACE"]
    ids = {"WORKSPACE_USER_ID": user, "WORKSPACE_CONVERSATION_ID": "conversation"}
    return {**s3_bucket.env, **quick, **ids}


@pytest.fixture
def files(user: str) -> str:
    """Where the bucket shows the workspace's files."""
    return f"conversations/{user}/conversation/workspace/files/"
