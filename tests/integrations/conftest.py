"""Fixtures of this directory: buckets, hosts, places with a fake daemon, and conversations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from s3ws_fs.control import registry
from s3ws_fs.integrations.openhands import ConversationWorkspace
from s3ws_fs.manager import LocalStorage
from tests.support.buckets import LocalBucket
from tests.support.e2e_fixtures import local_bucket, new_host, s3_bucket, seaweed, user
from tests.support.fake_mounts import Place, faked
from tests.support.host import NEVER_BY_ITSELF, QUICK, kill_all
from tests.support.mounting import REPOSITORY, clear_mountpoint, require_fuse

__all__ = ["local_bucket", "new_host", "place", "s3_bucket", "seaweed", "user"]

FOREIGN: Final = ("WORKSPACE_", "AWS_", "FILE_STORE", "S3WS_", "OPENHANDS_")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Directories and environment of a mount with a fake daemon."""
    with faked(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def own_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a host as the environment of this process says it. What is mounted there is
    ended; nothing flushes by itself.
    """
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    runtime = tmp_path / "run"
    settings = {
        **QUICK,
        **NEVER_BY_ITSELF,
        "WORKSPACE_CACHE_DIR": str(tmp_path / "cache"),
        "WORKSPACE_RUNTIME_DIR": str(runtime),
        "PYTHONPATH": str(REPOSITORY),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    for info in registry.list_mounts(str(runtime))[0]:
        if info.is_alive():
            kill_all(info)
        clear_mountpoint(Path(info.mountpoint))


WorkspaceMaker = Callable[..., ConversationWorkspace]


@pytest.fixture
def new_workspace(own_host: Path, local_bucket: LocalBucket) -> WorkspaceMaker:
    """`new_workspace(conversation, user="alice", **options)` on this host; not mounted."""

    def make(conversation: Any, user: str = "alice", **options: Any) -> ConversationWorkspace:
        require_fuse()
        storage = LocalStorage(local_bucket.root)
        return ConversationWorkspace(
            conversation, user, base_dir=own_host / "workspaces", storage=storage, **options
        )

    return make
