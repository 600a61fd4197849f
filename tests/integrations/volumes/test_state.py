"""What the plugin remembers, on disk before anything else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from s3ws_fs.core.errors import FormatError, UserError
from s3ws_fs.integrations.volumes import state as module
from s3ws_fs.integrations.volumes.state import State


def made(tmp_path: Path) -> State:
    return State(str(tmp_path / "state"))


def test_it_is_there_again(tmp_path: Path) -> None:
    state = made(tmp_path)
    state.add("one", {"user_id": "alice"}, "/cache/one")
    state.add("two", {}, "/cache/two")
    state.use("one", "a")
    state.use("one", "b")
    state.use("one", "b")
    state.release("one", "a")
    state.release("one", "unknown")
    state.remove("two")
    again = made(tmp_path)
    assert again.volumes == state.volumes
    assert again.volumes["one"].uses == ["b"]
    assert again.volumes["one"].options == {"user_id": "alice"}


def test_it_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made(tmp_path).add("one", {}, "/cache")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state/volumes.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "state") == ["volumes.json"]


def test_uses_of_another_boot_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = made(tmp_path)
    state.add("one", {}, "/cache")
    state.use("one", "a")
    monkeypatch.setattr(module, "boot_id", lambda: "another")
    assert made(tmp_path).volumes["one"].uses == []


def test_what_can_t_be_written_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = made(tmp_path)
    state.add("one", {}, "/cache")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        state.add("two", {}, "/other")
    with pytest.raises(OSError, match="No space"):
        state.use("one", "a")
    with pytest.raises(OSError, match="No space"):
        state.remove("one")
    assert state.volumes.keys() == {"one"} and state.volumes["one"].uses == []
    monkeypatch.undo()
    assert made(tmp_path).volumes == state.volumes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not JSON",
        b"[]",
        b'{"v": 2, "volumes": []}',
        b'{"v": 1}',
        b'{"v": 1, "volumes": [1]}',
        b'{"v": 1, "volumes": [{"name": "a"}]}',
        b'{"v": 1, "volumes": [{"name": 1, "options": {}, "cache": "", "uses": [],'
        b' "created_s": 0}]}',
        b'{"v": 1, "volumes": [{"name": "a", "options": [], "cache": "", "uses": [],'
        b' "created_s": 0}]}',
        b'{"v": 1, "volumes": [{"name": "a", "options": {}, "cache": "", "uses": "ab",'
        b' "created_s": 0}]}',
        b'{"v": 1, "volumes": [{"name": "a", "options": {}, "cache": "", "uses": [],'
        b' "created_s": "x"}]}',
    ],
)
def test_a_damaged_file_is_an_error_and_never_no_volumes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state/volumes.json").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        made(tmp_path)
    assert "volumes.json" in str(caught.value)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOLUMES_MAX", 3)
    monkeypatch.setattr(module, "USES_MAX", 2)
    state = made(tmp_path)
    for number in range(3):
        state.add(f"v{number}", {}, f"/cache/{number}")
    with pytest.raises(UserError):
        state.add("v3", {}, "/cache/3")
    state.use("v0", "a")
    state.use("v0", "b")
    with pytest.raises(UserError):
        state.use("v0", "c")
    assert json.loads((tmp_path / "state/volumes.json").read_text())["volumes"][-1]["uses"] == [
        "a",
        "b",
    ]
