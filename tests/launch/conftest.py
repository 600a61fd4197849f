"""Fixtures of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_mounts import Place, faked


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Directories and environment of a mount with a fake daemon."""
    with faked(tmp_path, monkeypatch) as made:
        yield made
