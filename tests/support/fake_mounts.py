"""A place for mounts without FUSE: directories, environment, and the fake daemon in use.

Called by the tests of launch, cli and the manager, through the fixture `place`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3ws_fs.control import registry
from s3ws_fs.core.config import MountConfig
from s3ws_fs.launch import preflight, start
from s3ws_fs.settings import Settings
from tests.support.host import kill_all


@dataclass(frozen=True)
class Place:
    """Where a test mounts."""

    root: Path

    @property
    def mountpoint(self) -> str:
        return str(self.root / "mnt")

    @property
    def runtime_dir(self) -> str:
        return str(self.root / "run")

    @property
    def environ(self) -> dict[str, str]:
        return {
            "WORKSPACE_USER_ID": "user",
            "WORKSPACE_CONVERSATION_ID": "conversation",
            "WORKSPACE_STORAGE_TYPE": "local",
            "WORKSPACE_STORAGE_PATH": str(self.root / "store"),
            "WORKSPACE_CACHE_DIR": str(self.root / "cache"),
            "WORKSPACE_RUNTIME_DIR": self.runtime_dir,
        }

    def config(self) -> MountConfig:
        return Settings.load(self.environ).mount_config(self.mountpoint)

    def info(self) -> registry.MountInfo | None:
        return registry.read(self.runtime_dir, self.mountpoint)


@contextmanager
def faked(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A Place whose daemons are fake; they are ended by their ids afterwards."""
    place = Place(root.resolve())
    for name in list(os.environ):
        if name.startswith(("WORKSPACE_", "AWS_", "FILE_STORE", "S3WS_")):
            monkeypatch.delenv(name)
    for name, value in place.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(start, "DAEMON_MODULE", "tests.support.fake_daemon")
    monkeypatch.setattr(preflight, "FUSE_DEVICE", os.devnull)
    yield place
    infos, _ = registry.list_mounts(place.runtime_dir)
    for info in infos:
        if info.is_alive():
            kill_all(info)
