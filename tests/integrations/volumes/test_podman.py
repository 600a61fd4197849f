"""Volumes in real containers: podman asks the plugin as Docker does."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.buckets import LocalBucket
from tests.support.mounting import wait_until
from tests.support.podman import SHELL_IMAGE, Container, Podman, shell_engine
from tests.support.volumeclient import Plugin

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

AGENT = ("--user", "10001")
VOLUME = ("-v", "conv-1:/workspace")


@pytest.fixture
def podman(plugin: Plugin) -> Iterator[Podman]:
    with shell_engine(plugin=plugin.socket) as made:
        yield made


def create(podman: Podman, name: str, *options: str) -> None:
    """A volume of the plugin."""
    podman.call("volume", "create", "--driver", "s3ws", *options, name)


def started(podman: Podman, script: str, *options: str) -> Container:
    """A shell's script in a container with the volume, in the background."""
    return podman.start("/bin/sh", "-c", script, image=SHELL_IMAGE, options=[*VOLUME, *options])


def ran(podman: Podman, script: str, *options: str) -> list[str]:
    """The same to its end: the words that it printed."""
    words = ("/bin/sh", "-c", script)
    code, out, err = podman.run(*words, image=SHELL_IMAGE, options=[*VOLUME, *options])
    assert code == 0, err
    return out.split()


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
    create(podman, "conv-1", "--opt", "root_uid=10001")
    assert "conv-1" in podman.call("volume", "ls", "--format", "{{.Name}}").stdout.split()
    script = "id -u; echo hello > /workspace/hello.txt; ls /workspace"
    assert ran(podman, script, *AGENT) == ["10001", "hello.txt"]
    saved(plugin, "conv-1")
    files = f"conversations/{user}/conv-1/workspace/files/"
    assert local_bucket.get(files + "hello.txt").body == b"hello\n"
    script = "cat /workspace/hello.txt; stat -c %u /workspace/hello.txt"
    assert ran(podman, script, *AGENT) == ["hello", "10001"]
    saved(plugin, "conv-1")
    podman.call("volume", "rm", "conv-1")
    assert plugin.call("List")["Volumes"] is None or not plugin.call("List")["Volumes"]
    assert local_bucket.get(files + "hello.txt").body == b"hello\n"


def test_two_containers_share_it_and_the_plugin_is_killed_under_them(
    podman: Podman, plugin: Plugin, local_bucket: LocalBucket, user: str
) -> None:
    create(podman, "conv-1")
    wait = "while ! cat /workspace/go 2>/dev/null; do sleep 0.1; done"
    first = started(podman, f"{wait}; echo 1 > /workspace/1")
    ran(podman, "echo 2 > /workspace/2")
    plugin.stop(signal.SIGKILL)
    plugin.start()
    (status,) = json.loads(podman.call("volume", "inspect", "conv-1").stdout)
    mountpoint = Path(status["Mountpoint"])
    assert (mountpoint / "2").read_text() == "2\n", "the first container still uses it"
    (mountpoint / "go").write_text("go\n")
    first.wait()
    first.remove()
    saved(plugin, "conv-1")
    files = f"conversations/{user}/conv-1/workspace/files/"
    assert [local_bucket.get(files + name).body for name in "12"] == [b"1\n", b"2\n"]


def test_stop_returns_when_everything_is_saved(
    podman: Podman, plugin: Plugin, local_bucket: LocalBucket, user: str
) -> None:
    create(podman, "conv-1")
    script = "echo hello > /workspace/hello.txt; : > /tmp/ready; exec sleep 1000"
    agent = started(podman, script)
    agent.wait_for("sh", "-c", "[ -e /tmp/ready ]")
    podman.call("stop", "--time", "1", agent.name)
    assert plugin.call("Get", Name="conv-1")["Volume"]["Status"]["uses"] == 0
    files = f"conversations/{user}/conv-1/workspace/files/"
    assert local_bucket.get(files + "hello.txt").body == b"hello\n"


def test_what_the_plugin_refuses_podman_says(podman: Podman) -> None:
    words = ("--driver", "s3ws", "--opt", "secret=hunter2", "v")
    done = podman.call("volume", "create", *words, ok=125)
    assert "there is no option 'secret'" in done.stderr and "hunter2" not in done.stderr
