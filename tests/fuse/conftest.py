"""A mount of the fuse layer for a whole module, and a directory of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounting import Child, mounted_layer


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with mounted_layer(tmp_path_factory.mktemp("layer")) as child:
        yield child


@pytest.fixture
def here(layer: Child, request: pytest.FixtureRequest) -> Path:
    """An empty directory on the mount."""
    directory = layer.mountpoint / str(request.node.name)[:200]
    directory.mkdir()
    return directory
