"""Volumes in real containers: podman asks the plugin as Docker does."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.buckets import LocalBucket
from tests.support.mounting import wait_until
from tests.support.podman import Podman, require_podman
from tests.support.volumeclient import Plugin

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

AGENT = ("--user", "10001")


@pytest.fixture
def podman(plugin: Plugin, tmp_path: Path) -> Iterator[Podman]:
    require_podman()
    made = Podman(tmp_path / "podman", plugin.socket)
    try:
        yield made
    finally:
        made.end()


def saved(plugin: Plugin, name: str) -> None:
    """Wait until nobody uses the volume: podman ends a use after `run` came back."""

    def is_unused() -> bool:
        return bool(plugin.call("Get", Name=name)["Volume"]["Status"]["uses"] == 0)

    wait_until(is_unused, timeout_s=120, what="the last use's end")
    # Behind the unmount that is under way, if it is.
    plugin.call("Unmount", Name=name, ID="nobody")


def test_a_conversation_over_two_containers(
    podman: Podman, plugin: Plugin, local_bucket: LocalBucket, user: str
) -> None:
    """Another user in the container, a `run -v` for each turn, and all in the bucket between."""
    podman.run("volume", "create", "--driver", "s3ws", "--opt", "root_uid=10001", "conv-1")
    assert "conv-1" in podman.run("volume", "ls", "--format", "{{.Name}}").split()
    volume = ("-v", "conv-1:/workspace")
    script = "id -u; echo hello > /workspace/hello.txt; ls /workspace"
    said = podman.container("first", *volume, *AGENT, script=script, options=("--rm",))
    assert said.split() == ["10001", "hello.txt"]
    saved(plugin, "conv-1")
    files = f"conversations/{user}/conv-1/workspace/files/"
    assert local_bucket.get(files + "hello.txt").body == b"hello\n"
    script = "cat /workspace/hello.txt; stat -c %u /workspace/hello.txt"
    said = podman.container("second", *volume, *AGENT, script=script, options=("--rm",))
    assert said.split() == ["hello", "10001"]
    saved(plugin, "conv-1")
    podman.run("volume", "rm", "conv-1")
    assert plugin.call("List")["Volumes"] is None or not plugin.call("List")["Volumes"]
    assert local_bucket.get(files + "hello.txt").body == b"hello\n"


def test_two_containers_share_it_and_the_plugin_is_killed_under_them(
    podman: Podman, plugin: Plugin, local_bucket: LocalBucket, user: str
) -> None:
    podman.run("volume", "create", "--driver", "s3ws", "conv-1")
    volume = ("-v", "conv-1:/workspace")
    wait = "while ! cat /workspace/go 2>/dev/null; do sleep 0.1; done"
    podman.container("first", *volume, script=f"{wait}; echo 1 > /workspace/1", options=("-d",))
    podman.container("second", *volume, script="echo 2 > /workspace/2", options=("--rm",))
    plugin.stop(signal.SIGKILL)
    plugin.start()
    (status,) = json.loads(podman.run("volume", "inspect", "conv-1"))
    mountpoint = Path(status["Mountpoint"])
    assert (mountpoint / "2").read_text() == "2\n", "the first container still uses it"
    (mountpoint / "go").write_text("go\n")
    podman.run("wait", "first")
    podman.run("rm", "first")
    saved(plugin, "conv-1")
    files = f"conversations/{user}/conv-1/workspace/files/"
    assert [local_bucket.get(files + name).body for name in "12"] == [b"1\n", b"2\n"]


def test_stop_returns_when_everything_is_saved(
    podman: Podman, plugin: Plugin, local_bucket: LocalBucket, user: str
) -> None:
    podman.run("volume", "create", "--driver", "s3ws", "conv-1")
    script = "echo hello > /workspace/hello.txt; : > /tmp/ready; exec sleep 1000"
    podman.container("agent", "-v", "conv-1:/workspace", script=script, options=("-d",))
    podman.run("exec", "agent", "sh", "-c", "while ! [ -e /tmp/ready ]; do sleep 0.1; done")
    podman.run("stop", "--time", "1", "agent")
    assert plugin.call("Get", Name="conv-1")["Volume"]["Status"]["uses"] == 0
    files = f"conversations/{user}/conv-1/workspace/files/"
    assert local_bucket.get(files + "hello.txt").body == b"hello\n"


def test_what_the_plugin_refuses_podman_says(podman: Podman) -> None:
    done = podman._podman("volume", "create", "--driver", "s3ws", "--opt", "secret=hunter2", "v")
    assert done.returncode == 125
    assert "there is no option 'secret'" in done.stderr and "hunter2" not in done.stderr
