"""Fixtures of this directory: plugins on a host of their own, ended together with their mounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.control import registry
from tests.support.buckets import LocalBucket
from tests.support.e2e_fixtures import user
from tests.support.fake_mounts import Place, faked
from tests.support.host import NEVER_BY_ITSELF, Host, kill_all
from tests.support.mounting import clear_mountpoint, require_fuse
from tests.support.volumeclient import Plugin, running

__all__ = ["user"]


@pytest.fixture
def local_bucket(tmp_path: Path) -> LocalBucket:
    """A directory as the bucket."""
    (tmp_path / "store").mkdir()
    return LocalBucket(tmp_path / "store")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Directories and environment of a mount with a fake daemon."""
    with faked(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def host(tmp_path: Path, local_bucket: LocalBucket, user: str) -> Iterator[Host]:
    """The settings of a host; whatever was mounted on it is ended."""
    require_fuse()
    settings = {**NEVER_BY_ITSELF, "WORKSPACE_UNMOUNT_GRACE": "1"}
    made = Host(tmp_path / "host", local_bucket.env, user=user, settings=settings)
    yield made
    infos, _ = registry.list_mounts(str(made.runtime))
    for info in infos:
        if info.is_alive():
            kill_all(info)
        clear_mountpoint(Path(info.mountpoint))


@pytest.fixture
def plugin(host: Host, tmp_path: Path) -> Iterator[Plugin]:
    """A running plugin whose volumes are mounted on `host`."""
    with running(tmp_path / "plugin", host.env) as made:
        yield made
