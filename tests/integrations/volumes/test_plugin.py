"""The plugin as a process, with real mounts: what Docker asks, restarts, kills, the final flush."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3ws_fs.control import registry
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.fuse import table
from tests.support.buckets import LocalBucket
from tests.support.host import Host
from tests.support.mounting import wait_until
from tests.support.volumeclient import Plugin, call

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


def files(user: str, conversation: str) -> str:
    return f"conversations/{user}/{conversation}/workspace/files/"


def test_a_volume_s_whole_life(
    plugin: Plugin, host: Host, local_bucket: LocalBucket, user: str
) -> None:
    plugin.call("Create", Name="conv-1", Opts={"max_size_mb": "88", "root_uid": "10001"})
    assert plugin.call("Path", Name="conv-1") == {"Mountpoint": ""}
    mountpoint = Path(plugin.call("Mount", Name="conv-1", ID="container-a")["Mountpoint"])
    assert table.is_mounted(str(mountpoint)), "it stands when the answer comes"
    assert os.stat(mountpoint).st_uid == 10001
    assert os.statvfs(mountpoint).f_blocks * os.statvfs(mountpoint).f_frsize == 88 << 20
    (mountpoint / "file").write_bytes(b"bytes")
    volume = plugin.call("Get", Name="conv-1")["Volume"]
    assert volume["Mountpoint"] == str(mountpoint)
    status = volume["Status"]
    assert (status["state"], status["files_pending"], status["uses"]) == ("ready", 2, 1)
    assert plugin.call("Mount", Name="conv-1", ID="container-b")["Mountpoint"] == str(mountpoint)
    plugin.call("Unmount", Name="conv-1", ID="container-a")
    assert (mountpoint / "file").read_bytes() == b"bytes"
    assert local_bucket.listing(files(user, "conv-1")) == []
    plugin.call("Unmount", Name="conv-1", ID="container-b")
    assert not table.is_mounted(str(mountpoint))
    assert local_bucket.get(files(user, "conv-1") + "file").body == b"bytes"
    assert plugin.call("List")["Volumes"] == [{"Name": "conv-1", "Mountpoint": ""}]
    plugin.call("Remove", Name="conv-1")
    assert local_bucket.get(files(user, "conv-1") + "file").body == b"bytes", "the workspace stays"
    # On an empty cache: what was saved is what is there.
    plugin.call("Create", Name="conv-1")
    again = Path(plugin.call("Mount", Name="conv-1", ID="c")["Mountpoint"])
    assert (again / "file").read_bytes() == b"bytes"
    plugin.call("Unmount", Name="conv-1", ID="c")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_mounts_outlive_the_plugin(
    plugin: Plugin, host: Host, local_bucket: LocalBucket, user: str, number: int
) -> None:
    plugin.call("Create", Name="conv-1")
    mountpoint = Path(plugin.call("Mount", Name="conv-1", ID="a")["Mountpoint"])
    with (mountpoint / "open").open("wb", buffering=0) as written:
        written.write(b"before")
        assert plugin.stop(number) == (0 if number == signal.SIGTERM else -number)
        written.write(b", between")
        plugin.start()
        written.write(b", after")
    info = registry.read(str(host.runtime), str(mountpoint))
    assert info is not None and info.is_alive()
    assert plugin.call("List")["Volumes"] == [{"Name": "conv-1", "Mountpoint": str(mountpoint)}]
    assert "in use" in plugin.refused("Remove", Name="conv-1")
    # SIGTERM reaches the mount as ever: the plugin has blocked no signal for its children.
    os.kill(info.pid, signal.SIGTERM)
    wait_until(lambda: not info.is_alive(), timeout_s=60, what="the end by SIGTERM")
    assert local_bucket.get(files(user, "conv-1") + "open").body == b"before, between, after"
    plugin.call("Unmount", Name="conv-1", ID="a")


def test_killed_between_mount_and_note_the_next_plugin_ends_the_mount(
    plugin: Plugin, host: Host, local_bucket: LocalBucket, user: str
) -> None:
    plugin.call("Create", Name="conv-1")
    mountpoint = plugin.state / "mounts" / "conv-1"
    plugin.stop(signal.SIGKILL)
    # As the dead plugin would have left it.
    ours = {"WORKSPACE_CONVERSATION_ID": "conv-1"}
    host.settings |= ours
    host.s3ws("mount", mountpoint)
    (mountpoint / "file").write_bytes(b"bytes")
    plugin.start()
    info = registry.read(str(host.runtime), str(mountpoint))
    wait_until(
        lambda: info is None or not info.is_alive(), timeout_s=60, what="the end of the mount"
    )
    assert local_bucket.get(files(user, "conv-1") + "file").body == b"bytes"


def test_what_is_not_saved_is_said_and_not_lost(
    plugin: Plugin, host: Host, local_bucket: LocalBucket, user: str
) -> None:
    plugin.call("Create", Name="conv-1")
    mountpoint = Path(plugin.call("Mount", Name="conv-1", ID="a")["Mountpoint"])
    (mountpoint / "file").write_bytes(b"bytes")
    journal = local_bucket.root / f"conversations/{user}/conv-1/workspace/journal"
    away = journal.with_name("away")
    journal.rename(away)
    journal.write_bytes(b"no directory")
    said = plugin.refused("Unmount", Name="conv-1", ID="a")
    assert "not saved" in said and "mount" in said
    assert "not" in plugin.refused("Remove", Name="conv-1")
    journal.unlink()
    away.rename(journal)
    assert Path(plugin.call("Mount", Name="conv-1", ID="b")["Mountpoint"]) == mountpoint
    assert (mountpoint / "file").read_bytes() == b"bytes"
    plugin.call("Unmount", Name="conv-1", ID="b")
    assert local_bucket.get(files(user, "conv-1") + "file").body == b"bytes"


def test_a_volume_with_an_environment_file_of_its_own(
    plugin: Plugin, local_bucket: LocalBucket, tmp_path: Path
) -> None:
    env = tmp_path / "alice.env"
    env.write_text("WORKSPACE_USER_ID=alice\nAWS_SECRET_ACCESS_KEY=not-for-the-state\n")
    env.chmod(0o600)
    plugin.call("Create", Name="conv-1", Opts={"env_file": str(env)})
    mountpoint = Path(plugin.call("Mount", Name="conv-1", ID="a")["Mountpoint"])
    (mountpoint / "file").write_bytes(b"bytes")
    plugin.call("Unmount", Name="conv-1", ID="a")
    assert local_bucket.get(files("alice", "conv-1") + "file").body == b"bytes"
    for path in (plugin.state / "volumes.json", plugin.log):
        assert "not-for-the-state" not in path.read_text()


def test_a_second_plugin_is_refused(plugin: Plugin, tmp_path: Path) -> None:
    words = ["--state-dir", str(plugin.state), "--socket", str(tmp_path / "second.sock")]
    done = subprocess.run(
        [sys.executable, "-m", "s3ws_fs.integrations.volumes", *words],
        env=plugin.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == ExitCode.ALREADY_MOUNTED
    assert "Another plugin" in done.stderr and "--state-dir" in done.stderr
    assert call(plugin.socket, "Plugin.Activate")[0] == 200
