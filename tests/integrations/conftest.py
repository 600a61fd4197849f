"""Fixtures of this directory: buckets, hosts, and places with a fake daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.e2e_fixtures import local_bucket, new_host, s3_bucket, seaweed, user
from tests.support.fake_mounts import Place, faked

__all__ = ["local_bucket", "new_host", "place", "s3_bucket", "seaweed", "user"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Directories and environment of a mount with a fake daemon."""
    with faked(tmp_path, monkeypatch) as made:
        yield made
