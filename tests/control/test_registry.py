"""The registry of mounts: entries that survive their daemon and never lie about its life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import FormatError


def config(mountpoint: str = "/mnt/w") -> MountConfig:
    return MountConfig(
        mountpoint=mountpoint,
        workspace=WorkspaceId("user", "conversation"),
        store=StoreConfig("local", path="/srv"),
        cache_dir="/var/cache/x",
        runtime_dir="/run/x",
    )


def entry(mountpoint: str = "/mnt/w") -> MountInfo:
    return MountInfo.for_this_process(config(mountpoint), log_path=None, version="1")


def test_write_read_list_remove(tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    first, second = entry("/mnt/a"), entry("/mnt/caf\udce9")
    registry.write(place, second)
    registry.write(place, first)
    assert registry.read(place, "/mnt/a") == first
    assert registry.list_mounts(place) == ([first, second], [])
    path = Path(registry.info_path(place, "/mnt/a"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert not list(Path(place).glob("*.tmp"))
    registry.remove(place, "/mnt/a", pid=first.pid + 1)
    assert registry.read(place, "/mnt/a") == first
    registry.remove(place, "/mnt/a", pid=first.pid)
    assert registry.read(place, "/mnt/a") is None
    registry.remove(place, "/mnt/a")


def test_no_directory_means_no_mounts(tmp_path: Path) -> None:
    assert registry.list_mounts(str(tmp_path / "none")) == ([], [])
    assert registry.read(str(tmp_path / "none"), "/mnt/a") is None


def test_only_the_very_process_counts_as_alive() -> None:
    info = entry()
    assert info.is_alive()
    assert not replace(info, pid_start_ticks=info.pid_start_ticks + 1).is_alive()
    assert not replace(info, boot_id="another boot").is_alive()


def test_a_killed_and_unburied_process_is_dead() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        ticks = registry.start_ticks(child.pid)
        assert ticks is not None
        info = replace(entry(), pid=child.pid, pid_start_ticks=ticks)
        assert info.is_alive()
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not info.is_alive()
    finally:
        child.kill()
        child.communicate()
    assert registry.start_ticks(child.pid) is None


def test_damaged_entries_are_named_and_do_not_hide_the_others(tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    registry.write(place, entry("/mnt/a"))
    bad = Path(registry.info_path(place, "/mnt/b"))
    bad.write_text("{")
    infos, damaged = registry.list_mounts(place)
    assert [info.mountpoint for info in infos] == ["/mnt/a"]
    assert damaged == [str(bad)]
    with pytest.raises(FormatError, match="not JSON"):
        registry.read(place, "/mnt/b")


def test_an_entry_over_the_limit_is_refused(tmp_path: Path) -> None:
    place = tmp_path
    path = Path(registry.info_path(str(place), "/mnt/w"))
    text = json.dumps({"v": 1, **asdict(entry())})
    path.write_text(text.ljust(registry.INFO_BYTES_MAX))
    assert registry.read(str(place), "/mnt/w") is not None
    path.write_text(text.ljust(registry.INFO_BYTES_MAX + 1))
    with pytest.raises(FormatError, match="too long"):
        registry.read(str(place), "/mnt/w")


@given(
    st.sampled_from(sorted(asdict(entry()))),
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers()),
)
def test_any_member_of_any_type_is_read_or_refused(name: str, value: object) -> None:
    data = json.dumps({"v": 1, **asdict(entry()), name: value}).encode()
    try:
        info = registry.decode("entry", data)
    except FormatError:
        return
    assert getattr(info, name) == value


def test_runtime_directories() -> None:
    assert registry.default_runtime_dir({"WORKSPACE_RUNTIME_DIR": "/x"}, 0) == "/x"
    assert (
        registry.default_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/7/"}, 7) == "/run/user/7/s3ws"
    )
    assert registry.default_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/7"}, 0) == "/run/s3ws"
    assert registry.default_runtime_dir({}, 7) == "/tmp/s3ws-7"


def test_socket_and_entry_stand_beside_each_other() -> None:
    socket = registry.socket_path("/run/x", "/mnt/w")
    assert socket.removesuffix(".sock") == registry.info_path("/run/x", "/mnt/w")[: -len(".json")]
    assert socket != registry.socket_path("/run/x", "/mnt/w2")
