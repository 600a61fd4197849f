"""What the page changes: only what was shown, once, and soon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.control.registry import MountInfo
from s3ws_fs.control.wire import encode_request
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.web import acts
from s3ws_fs.web.acts import PLAN_S, PLANS_MAX, Acts, Plans
from s3ws_fs.web.mounts import Mounts


def listed(*paths: bytes) -> dict[str, Any]:
    return {"count": len(paths), "paths": [path.decode("latin-1") for path in paths]}


class Daemon:
    """What a daemon answers, and what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr("s3ws_fs.control.client.request", self.request)

    def request(self, _: str, cmd: str, args: dict[str, Any], **__: Any) -> dict[str, Any]:
        self.asked.append((cmd, args))
        return {
            "point": {"number": 7, "generation": 70, "created_ns": 10**18, "snapshot": None},
            "added": listed(b"a\x1b[31m\xff", b""),
            "changed": listed(),
            "deleted": listed(*(b"%d" % n for n in range(acts.SHOWN_MAX + 1))),
            "kept": listed(),
            "bytes_back": 1,
            "bytes_gone": 2,
            "is_nothing": False,
            "restored": not args.get("dry_run"),
            "is_shown": True,
        }


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(monkeypatch)


def test_a_restore_is_shown_then_done_once(living: MountInfo, daemon: Daemon) -> None:
    made = Acts(Mounts())
    shown = made.look_at_restore(living, "15m")
    assert daemon.asked == [("restore", {"ref": "15m", "dry_run": True})]
    assert shown["added"] == {"count": 2, "paths": [".", "a\\x1b[31m\\xff"]}
    assert len(shown["deleted"]["paths"]) == acts.SHOWN_MAX < shown["deleted"]["count"]
    made.carry_out(living, shown["plan"])
    # By its number: the point that was shown, not what the words mean by now.
    assert daemon.asked[1:] == [("restore", {"ref": "#7"})]
    for plan in (shown["plan"], "x", None, 7):
        with pytest.raises(UserError, match="too old"):
            made.carry_out(living, plan)
    assert len(daemon.asked) == 2


def test_single_paths_are_shown_then_done(living: MountInfo, daemon: Daemon) -> None:
    made = Acts(Mounts())
    shown = made.look_at_restore(living, "15m", ["src/a.py", "%ff%25%C3%BC"])
    paths = ["src/a.py", "\udcff%\u00fc"]
    assert daemon.asked == [("restore", {"ref": "15m", "paths": paths, "dry_run": True})]
    made.carry_out(living, shown["plan"])
    assert daemon.asked[1:] == [("restore", {"ref": "#7", "paths": paths})]


@pytest.mark.parametrize(
    "paths",
    [[], [""], ["a", ""], "a", 7, {}, [7], [None], [["a"]], ["/a"], ["a/"], ["a//b"], ["."],
     ["a/../.."], ["%2e%2e/a"], ["%2fa"], ["a"] * (acts.PATHS_MAX + 1),
     ["a" * acts.PATHS_BYTES_MAX, "a"]],
)  # fmt: skip
def test_what_is_no_list_of_paths_restores_nothing(
    living: MountInfo, daemon: Daemon, paths: Any
) -> None:
    """Least of all everything."""
    with pytest.raises(UserError) as caught:
        Acts(Mounts()).look_at_restore(living, "15m", paths)
    assert caught.value.exit_code == ExitCode.USAGE and daemon.asked == []


def test_as_many_paths_as_may_be_fit_into_a_request(living: MountInfo, daemon: Daemon) -> None:
    size = acts.PATHS_BYTES_MAX // acts.PATHS_MAX
    paths = ["%ff" * size] * acts.PATHS_MAX
    Acts(Mounts()).look_at_restore(living, "turn:" + "x" * 64, paths)
    ((cmd, args),) = daemon.asked
    assert len(args["paths"]) == acts.PATHS_MAX and encode_request(cmd, args)


def test_an_undo_is_shown_then_done(living: MountInfo, daemon: Daemon) -> None:
    made = Acts(Mounts())
    made.carry_out(living, made.look_at_undo(living)["plan"])
    assert daemon.asked == [("undo", {"dry_run": True}), ("undo", {})]


@pytest.mark.parametrize("ref", [None, 7, "", "no such form!", "x" * 200, "../x"])
def test_what_is_no_point_is_not_asked_for(living: MountInfo, daemon: Daemon, ref: Any) -> None:
    with pytest.raises(UserError) as caught:
        Acts(Mounts()).look_at_restore(living, ref)
    assert caught.value.exit_code == ExitCode.USAGE and daemon.asked == []


@pytest.mark.parametrize("name", [None, 7, "", "../x", "backup-1", "backup-20260131T120000Z/.."])
def test_what_is_no_backup_is_not_looked_for(living: MountInfo, name: Any) -> None:
    with pytest.raises(UserError, match="no backup"):
        Acts(Mounts()).look_at_backup(living, name)


@pytest.mark.parametrize("name", [None, "", "a b", "head", "15m", "x" * 65])
def test_what_is_no_name_is_no_snapshot(living: MountInfo, daemon: Daemon, name: Any) -> None:
    with pytest.raises(UserError):
        Acts(Mounts()).snapshot(living, name)
    assert daemon.asked == []


def test_nothing_is_done_to_a_dead_mount(dead: MountInfo, daemon: Daemon) -> None:
    made = Acts(Mounts())
    for act in (made.sync, made.backup, made.look_at_undo):
        with pytest.raises(UserError, match="is dead"):
            act(dead)
    assert daemon.asked == []


def test_a_plan_is_of_one_mount_for_a_while(
    living: MountInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    plans = Plans()
    name = plans.keep(living, "undo", {})
    with pytest.raises(UserError):
        plans.take(replace(living, mountpoint="/other"), name)
    now_s = [0.0]
    monkeypatch.setattr("s3ws_fs.web.acts.time.monotonic", lambda: now_s[0])
    name = plans.keep(living, "undo", {})
    now_s[0] = PLAN_S + 1
    with pytest.raises(UserError):
        plans.take(living, name)


def test_plans_have_a_limit(living: MountInfo) -> None:
    plans = Plans()
    names = [plans.keep(living, "undo", {"n": n}) for n in range(PLANS_MAX + 1)]
    with pytest.raises(UserError):
        plans.take(living, names[0])
    assert plans.take(living, names[1]).args == {"n": 1}


def test_a_directory_for_a_backup_is_always_new(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to("/")
    made = []
    for _ in range(2):
        name, fd = acts._new_directory(str(tmp_path), "b")
        os.close(fd)
        made.append(name)
    assert made == ["b-2", "b-3"] and (tmp_path / "b-2").stat().st_mode & 0o777 == 0o700
    for number in range(4, acts.TRIES_MAX):
        (tmp_path / f"b-{number}").mkdir()
    with pytest.raises(UserError, match="already"):
        acts._new_directory(str(tmp_path), "b")


def test_a_backup_goes_nowhere_but_into_a_mount(
    living: MountInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(living.mountpoint).mkdir()
    made = Acts(Mounts())
    plan = made._plans.keep(living, "restore-backup", {"name": "backup-20260131T120000Z"})
    with pytest.raises(UserError, match="Nothing is mounted"):
        made.carry_out(living, plan)
    assert os.listdir(living.mountpoint) == []
