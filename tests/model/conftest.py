"""Fixtures of the model tests: one world for a module, and twins in it for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model.twins import Twins
from tests.model.world import Home
from tests.support.mounting import require_fuse


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Where twins work."""
    require_fuse()
    home = Home(tmp_path_factory.mktemp("home"))
    try:
        yield home
    finally:
        home.leave()


@pytest.fixture
def t(home: Home) -> Iterator[Twins]:
    """Twins in a directory of their own; afterwards both trees are compared."""
    with home.world().twins() as twins:
        yield twins
        twins.compare()
