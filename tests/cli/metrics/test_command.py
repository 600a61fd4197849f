"""`s3ws metrics`: what it prints, over daemons that live, are dead, and say nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from s3ws_fs import launch
from s3ws_fs.cli import cli
from s3ws_fs.cli.metrics import exposition
from s3ws_fs.control import registry
from s3ws_fs.core.errors import ExitCode, UserError
from tests.support.fake_mounts import Place
from tests.support.host import kill_all
from tests.support.mounting import REPOSITORY


def metrics(*words: str) -> Result:
    return CliRunner().invoke(cli, ["metrics", *words])


def values(text: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return found


def test_without_a_mount_there_are_none() -> None:
    """As node_exporter's cron job sees it on a host that is new."""
    done = CliRunner().invoke(cli, ["metrics"], env={"WORKSPACE_RUNTIME_DIR": "/nowhere/s3ws"})
    assert done.exit_code == 0
    assert values(done.output) == {"s3ws_mounts": [0], "s3ws_damaged_entries": [0]}


def test_of_one_mount_and_of_all(place: Place) -> None:
    launch.mount(place.config())
    all_of_them, only = metrics(), metrics(place.mountpoint)
    assert (all_of_them.exit_code, only.exit_code) == (0, 0)
    assert values(all_of_them.output)["s3ws_mounts"] == [1]
    assert "s3ws_mounts" not in values(only.output)
    for done in (all_of_them, only):
        assert values(done.output)["s3ws_up"] == [1]
        assert values(done.output)["s3ws_dirty_bytes"] == [4096]
        assert f'mountpoint="{place.mountpoint}"' in done.output
        assert 'process="daemon"' in done.output


def test_a_mount_that_is_none_is_an_error(place: Place) -> None:
    done = metrics(place.mountpoint)
    assert isinstance(done.exception, UserError)
    assert done.exception.exit_code is ExitCode.NOT_MOUNTED


def test_a_damaged_entry_is_counted(place: Place) -> None:
    launch.mount(place.config())
    (place.root / "run" / "0123456789abcdef.json").write_text("{")
    assert values(metrics().output)["s3ws_damaged_entries"] == [1]


def test_a_dead_mount_is_told_as_given_up(place: Place) -> None:
    launch.mount(place.config())
    info = place.info()
    assert info is not None
    kill_all(info)
    done = metrics()
    assert values(done.output)["s3ws_up"] == [0]
    assert values(done.output)["s3ws_mount_given_up"] == [1]
    assert "s3ws_process_resident_memory_bytes" not in values(done.output)


def test_a_silent_daemon_holds_up_nobody_for_long(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch.mount(place.config())
    monkeypatch.setattr(exposition, "COLLECT_S", 0.3)
    info = place.info()
    assert info is not None
    os.kill(info.pid, signal.SIGSTOP)
    try:
        found = values(metrics().output)
    finally:
        os.kill(info.pid, signal.SIGCONT)
    assert found["s3ws_up"] == [0]
    assert found["s3ws_mount_given_up"] == [0]
    assert values(metrics().output)["s3ws_up"] == [1]


def test_a_mount_that_took_too_long_is_not_left_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch.mount(place.config())
    monkeypatch.setattr(exposition, "wait", lambda _, timeout: None)
    with socket.socket(socket.AF_UNIX) as listener:
        # Nobody takes this connection: the answer never comes.
        path = registry.socket_path(place.runtime_dir, place.mountpoint)
        os.unlink(path)
        listener.bind(path)
        listener.listen()
        monkeypatch.setattr(exposition, "COLLECT_S", 0.3)
        assert values(metrics().output)["s3ws_up"] == [0]


@pytest.mark.parametrize(
    "words",
    [
        ("--textfile", "/x/y.prom", "--listen", "1"),
        ("--every", "5"),
        ("--textfile", "/x/y.txt"),
        ("--textfile", "/x/y.prom", "--every", "0.5"),
    ],
)
def test_wrong_usage(words: tuple[str, ...]) -> None:
    done = metrics(*words)
    assert done.exit_code == ExitCode.USAGE, done.output


def test_the_library_is_loaded_by_this_command_alone() -> None:
    code = "import sys, s3ws_fs.cli; print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_a_port_is_served_until_sigterm(place: Place) -> None:
    launch.mount(place.config())
    import urllib.request

    command = [sys.executable, "-m", "s3ws_fs", "metrics", "--listen", "0"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[-1]
            assert url.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(url, timeout=20) as answer:
                text = answer.read().decode()
            assert values(text)["s3ws_up"] == [1]
            process.terminate()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
