"""`s3ws restore` and `undo`: what they ask, and what they say."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from s3ws_fs.cli import cli, rewind
from s3ws_fs.cli.rewind import SHOWN_MAX, lines
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.rewind import answer_json

POINT = {"number": 7, "generation": 70, "created_ns": 10**18, "snapshot": None}


def listed(*paths: bytes, count: int | None = None) -> dict[str, Any]:
    names = [path.decode("latin-1") for path in paths]
    return {"count": len(paths) if count is None else count, "paths": names}


def answer(**more: Any) -> dict[str, Any]:
    """What a daemon says."""
    return {
        "point": POINT,
        "added": listed(b"a\x1b[31m", b"\xff"),
        "changed": listed(b"same"),
        "deleted": listed(*(b"%d" % n for n in range(SHOWN_MAX + 5)), count=1000),
        "kept": listed(),
        "bytes_back": 2048,
        "bytes_gone": 3,
        "is_nothing": False,
        "is_shown": True,
        "restored": False,
        "snapshot": None,
        **more,
    }


class Fake:
    """The daemon's side: what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, terminal: bool = True) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        info = type("Info", (), {"mountpoint": "/mnt/w", "pid": 1, "is_alive": lambda _: True})()
        monkeypatch.setattr(rewind, "registered", lambda _: info)
        monkeypatch.setattr(rewind, "runtime_dir", lambda: "/run/x")
        monkeypatch.setattr("s3ws_fs.control.client.request", self.request)
        monkeypatch.setattr(rewind, "is_at_terminal", lambda: terminal)
        self.is_nothing = False

    def request(self, _: str, cmd: str, args: dict[str, Any], **more: Any) -> dict[str, Any]:
        self.asked.append((cmd, args))
        is_real = not args.get("dry_run") and not self.is_nothing
        return answer(restored=is_real, is_nothing=self.is_nothing)


def test_it_shows_asks_and_restores_what_it_showed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    command = ["restore", "15m", "/mnt/w", "a/./b", "/mnt/w/c", "--all"]
    done = CliRunner().invoke(cli, command, input="y\n", standalone_mode=False)
    assert done.return_value == ExitCode.OK, done
    args = {"everything": True, "ref": "15m", "paths": ["a/b", "c"]}
    assert fake.asked == [
        ("restore", args | {"dry_run": True}),
        ("restore", args | {"ref": "#7"}),
    ]
    assert "would restore #7" in done.output and "restored #7" in done.output
    assert "s3ws undo /mnt/w" in done.output and "\x1b" not in done.output


def test_who_declines_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    done = CliRunner().invoke(cli, ["undo", "/mnt/w"], input="n\n", standalone_mode=False)
    assert done.return_value == ExitCode.USAGE
    assert fake.asked == [("undo", {"everything": False, "dry_run": True})]


def test_nothing_to_do_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    fake.is_nothing = True
    done = CliRunner().invoke(cli, ["undo", "/mnt/w"], standalone_mode=False)
    assert done.return_value == ExitCode.OK and "nothing to do" in done.output


@pytest.mark.parametrize("flag", ["--yes", "--dry-run"])
def test_without_a_terminal(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    fake = Fake(monkeypatch, terminal=False)
    done = CliRunner().invoke(cli, ["restore", "x", "/mnt/w"], standalone_mode=False)
    assert isinstance(done.exception, UserError) and not fake.asked
    assert done.exception.exit_code == ExitCode.USAGE and "--yes" in done.exception.remedy
    done = CliRunner().invoke(cli, ["restore", "x", "/mnt/w", flag], standalone_mode=False)
    assert done.return_value == ExitCode.OK and len(fake.asked) == 1


def test_a_path_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    for path in ("/etc", "/mnt/w/../x"):
        done = CliRunner().invoke(cli, ["restore", "x", "/mnt/w", path], standalone_mode=False)
        assert isinstance(done.exception, UserError) and "not below" in str(done.exception)
    assert not fake.asked


def test_too_many_paths_for_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    many = [f"some/path/number-{number}" for number in range(5000)]
    done = CliRunner().invoke(cli, ["restore", "x", "/mnt/w", *many, "-y"], standalone_mode=False)
    assert isinstance(done.exception, UserError) and "too many paths" in str(done.exception)
    assert not fake.asked


def test_lines_are_safe_and_short() -> None:
    shown = list(lines(answer(), "/mnt/w"))
    assert shown[0].startswith("would restore #7 of 2001-09-09 01:46:40 UTC: 2 added, 1 changed")
    assert "  + a\\x1b[31m" in shown and "  + \\xff" in shown
    assert f"  - and {1000 - SHOWN_MAX} more" in shown
    snap = {"kind": "named", "name": "one"}
    (line,) = lines(answer(is_nothing=True, point=POINT | {"snapshot": snap}), "/mnt/w")
    assert (
        line == "nothing to do: the tree is as it was at #7 of 2001-09-09 01:46:40 UTC, named one"
    )


def test_a_kernel_that_was_not_told_is_told_to_the_person() -> None:
    remark = "some names may still be shown as before: `s3ws restart /mnt/w` ends that"
    assert remark not in lines(answer(restored=True), "/mnt/w")
    assert remark in lines(answer(restored=True, is_shown=False), "/mnt/w")


def test_json_names_bytes() -> None:
    found = answer_json(answer())
    assert found["added"]["paths"][1]["name_b64"] == "/w=="
    assert found["deleted"]["count"] == 1000


def test_a_dead_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = type("Info", (), {"mountpoint": "/mnt/w", "pid": 1, "is_alive": lambda _: False})()
    monkeypatch.setattr(rewind, "registered", lambda _: dead)
    done = CliRunner().invoke(cli, ["undo", "/mnt/w", "-y"], standalone_mode=False)
    assert isinstance(done.exception, UserError)
    assert done.exception.exit_code == ExitCode.NOT_MOUNTED
