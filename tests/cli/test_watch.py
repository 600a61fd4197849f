"""`s3ws watch`: what it says, line by line, and what it does when a daemon goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from s3ws_fs.cache import inspect
from s3ws_fs.cli import cli
from s3ws_fs.cli.watch import json_lines, text_lines
from s3ws_fs.control import client, registry
from s3ws_fs.core.changefeed import CHANGED, RENAMED, RESTORED, Change
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.workspaces.watching import Batch, Watch
from tests.support.fake_mounts import Place

CHANGES = [
    Change(5, CHANGED, b"a\x1b[31m\n"),
    Change(6, RENAMED, b"new\xff", b"old"),
    Change(7, RESTORED, b""),
]


def test_a_person_reads_one_line_a_change() -> None:
    lines = list(text_lines(Batch(7, CHANGES, lost=3, since=2)))
    assert [line[9:].split() for line in lines] == [
        ["7", "MISSED", "what", "changed", "since", "2"],
        ["5", "changed", "a\\x1b[31m\\n"],
        ["6", "renamed", "old", "->", "new\\xff"],
        ["7", "restored", "many", "paths", "(a", "restore)"],
        ["7", "MISSED", "3", "more", "changes:", "too", "many", "at", "once"],
    ]
    assert all(character.isprintable() for line in lines for character in line)
    assert next(text_lines(Batch(7))).endswith("watching from here on")


def test_a_program_reads_one_object_a_line() -> None:
    found = [json.loads(line) for line in json_lines(Batch(7, CHANGES, lost=3, since=2))]
    assert [each.pop("when_s") > 0 for each in found] == [True] * 5
    assert found == [
        {"what": "missed", "generation": 7, "since": 2},
        {"what": "changed", "generation": 5, "path": {"name": "a\x1b[31m\n"}},
        {
            "what": "renamed",
            "generation": 6,
            "path": {"name": "new\ufffd", "name_b64": "bmV3/w=="},
            "was": {"name": "old"},
        },
        {"what": "restored", "generation": 7},
        {"what": "missed", "generation": 7, "lost": 3},
    ]
    assert [json.loads(line)["what"] for line in json_lines(Batch(7))] == ["watching"]


class Answers:
    """A daemon that says these, in turn; an exception is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.left = list(answers)
        self.asked: list[Any] = []
        monkeypatch.setattr(client, "request", self.request)

        class Nothing:
            def __enter__(self) -> Nothing:
                return self

            def __exit__(self, *_: object) -> None:
                pass

        monkeypatch.setattr(inspect, "open_readonly", lambda _: Nothing())

    def request(self, _: str, cmd: str, args: Any, **more: Any) -> Any:
        assert cmd == "changes"
        self.asked.append(args["watcher"])
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def answer(watcher: str, start: int, generation: int, lost: int = 0) -> dict[str, Any]:
    return {
        "watcher": watcher, "from": start, "generation": generation, "marks": [], "lost": lost
    }  # fmt: skip


@pytest.fixture
def info(place: Place) -> registry.MountInfo:
    return registry.MountInfo.for_this_process(place.config(), log_path=None, version="0")


GONE = client.DaemonGoneError("gone")


def test_a_daemon_that_is_replaced_is_waited_for_and_the_gap_is_told(
    info: registry.MountInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [info, info, None]
    monkeypatch.setattr(registry, "read", lambda *_: entries.pop(0))
    answers = Answers(
        monkeypatch,
        answer("one", 5, 5),
        answer("one", 5, 9, lost=2),
        answer("one", 9, 9),
        GONE,
        GONE,
        answer("two", 12, 12),
        answer("two", 12, 12),
        GONE,
    )
    paused: list[float] = []
    batches = list(Watch(info, pause=paused.append).run())
    assert answers.asked[:4] == [None, "one", "one", "one"] and answers.asked[-1] == "two"
    assert [(batch.generation, batch.lost, batch.since) for batch in batches] == [
        (5, 0, None),
        (9, 2, None),
        (12, 0, 9),
    ]
    assert len(paused) == 2


@pytest.mark.parametrize(
    "bad", [{}, {"from": "x"}, {"marks": [[1]]}, {"marks": None}, {"generation": None}]
)
def test_an_answer_that_is_none_is_told(
    info: registry.MountInfo, monkeypatch: pytest.MonkeyPatch, bad: dict[str, Any]
) -> None:
    Answers(monkeypatch, answer("one", 1, 1) | bad if bad else {})
    with pytest.raises(UserError, match="not understood"):
        list(Watch(info).run())


def test_where_nothing_is_mounted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path("/"))
    for args in (["watch"], ["watch", place.mountpoint]):
        result = CliRunner().invoke(cli, args)
        assert isinstance(result.exception, UserError)
        assert result.exception.exit_code is ExitCode.NOT_MOUNTED
