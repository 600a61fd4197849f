"""What reaches a service manager, and that none is needed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from s3ws_fs.control.servicemanager import VALUE_CHARS_MAX, VARIABLE, ServiceManager
from tests.support.notified import listening


def test_words_come_as_one_datagram(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as manager:
        ServiceManager(manager.address).tell(READY=1, STATUS="mounted")
        assert manager.take() == [{"READY": "1", "STATUS": "mounted"}]


def test_an_abstract_address(tmp_path: Path) -> None:
    with listening(f"@s3ws-test-{os.getpid()}") as manager:
        ServiceManager(manager.address).tell(READY=1)
        assert manager.take() == [{"READY": "1"}]


def test_a_path_longer_than_an_address_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    monkeypatch.chdir(directory)
    with listening("notify") as manager:
        ServiceManager(str(directory / "notify")).tell(READY=1)
        assert manager.take() == [{"READY": "1"}]


def test_a_value_makes_no_second_assignment_and_is_not_endless(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as manager:
        ServiceManager(manager.address).tell(STATUS="a\nREADY=1\x1b" + "x" * 10_000)
        [words] = manager.take()
    assert words.keys() == {"STATUS"}
    assert words["STATUS"].startswith("a?READY=1?x") and len(words["STATUS"]) == VALUE_CHARS_MAX


def test_the_variable_is_taken_out_of_the_environment() -> None:
    environ = {VARIABLE: "/run/notify", "PATH": "/bin"}
    assert ServiceManager.of(environ).is_there
    assert environ == {"PATH": "/bin"}
    assert not ServiceManager.of(environ).is_there


@pytest.mark.parametrize("address", [None, "", "relative", "/nobody/is/here"])
def test_nobody_there_is_no_error(address: str | None) -> None:
    ServiceManager(address).tell(READY=1)


def test_one_that_does_not_read_delays_nothing(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(address)
        manager = ServiceManager(address)
        for _ in range(10_000):  # a datagram socket queues some hundred
            manager.tell(STATUS="x" * VALUE_CHARS_MAX)
