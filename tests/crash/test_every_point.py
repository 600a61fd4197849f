"""A crash at every point of a workload: SIGKILL, and a power cut in its two extremes.

How it is done, and what is looked at each time: rig.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core import failpoints
from tests.crash.rig import Rig, fast_directory
from tests.crash.workloads import FIRST, OF_OTHERS, SECOND, WITH_A_KERNEL

HOSTS = ("first", "second")


@pytest.fixture(scope="module")
def rigs() -> Iterator[dict[str, Rig]]:
    """Both workloads, run once."""
    with fast_directory("s3ws-points-") as base:
        first = Rig(Path(base) / "first")
        first.run(FIRST)
        second = Rig.after(first, Path(base) / "second")
        second.run(SECOND)
        yield dict(zip(HOSTS, (first, second), strict=True))


def test_every_failpoint_is_passed(rigs: dict[str, Rig]) -> None:
    passed = set(rigs["first"].passed | rigs["second"].passed)
    assert passed == set(failpoints.POINTS) - set(WITH_A_KERNEL) - set(OF_OTHERS)
    for name, rig in rigs.items():
        print(f"{name}: {rig.events} events, {len(rig.crashes)} durable states")
        assert len(rig.crashes) > 80


@pytest.mark.parametrize("host", HOSTS)
def test_killed(rigs: dict[str, Rig], host: str) -> None:
    for crash in rigs[host].crashes:
        rigs[host].killed(crash)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("least", [False, True], ids=["all", "least"])
def test_power_cut(rigs: dict[str, Rig], host: str, least: bool) -> None:
    """`all`: everything written has reached the disk; `least`: only what was flushed."""
    for crash in rigs[host].crashes:
        rigs[host].power_cut(crash, least=least)
