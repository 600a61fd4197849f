"""A configuration, and the parts of a daemon of which only the replica matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import trio

from s3ws_fs.core.config import MountConfig
from s3ws_fs.daemon.parts import Parts
from tests.support.mounting import workspace_config


@pytest.fixture
def config(tmp_path: Path) -> MountConfig:
    return workspace_config(tmp_path)


class StuckReplica:
    """A final flush that never ends."""

    def __init__(self) -> None:
        self.flushing = trio.Event()

    async def final_flush(self, progress: object) -> list[str]:
        self.flushing.set()
        await trio.sleep_forever()
        raise AssertionError


class _EmptyFileSystem:
    def drop_orphans_unmounted(self) -> int:
        return 0


def parts_over(replica: object) -> Parts:
    """Parts that do nothing, and this replica."""
    fs = cast(Any, _EmptyFileSystem())
    none = cast(Any, None)
    return Parts(none, none, fs, cast(Any, replica), none, none, none)


@pytest.fixture
def one_path_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parts, "unsaved", lambda _: ["left"])
