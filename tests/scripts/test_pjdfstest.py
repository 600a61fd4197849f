"""Reading what a suite says, and comparing two runs of it: a wrong "all passed" helps nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts import pjdfstest
from scripts.pjdfstest import Difference, FileResult, differences, read_tap


def test_every_verdict_is_told_apart() -> None:
    result = read_tap(
        "chmod/00.t",
        "1..6\n"
        "ok 1\n"
        "not ok 2 - tried 'chmod x', expected 0, got EPERM\n"
        "ok 3 # skip not here\n"
        "not ok 4 # TODO some day\n"
        "ok 5 # TODO done already\n"
        "some noise of a program\n"
        "ok 6 - said something\n",
        0,
    )
    assert result.passed == {1, 5, 6}
    assert result.failed == {2: "tried 'chmod x', expected 0, got EPERM"}
    assert (result.skipped, result.todo, result.tests) == ({3}, {4}, 6)


@pytest.mark.parametrize(
    ("text", "status", "why"),
    [
        ("", 0, "None planned"),
        ("1..2\nok 1\nok 2\n", 3, "exit code 3"),
        ("ok 1\n", 0, "None planned"),
        ("1..1\nok 1\nok 2\n", 0, "1 planned, 2 run"),
    ],
)
def test_a_file_that_ends_early_has_failed(text: str, status: int, why: str) -> None:
    assert why in read_tap("x.t", text, status).failed[0]


def test_tests_that_were_planned_and_not_run_have_failed() -> None:
    assert read_tap("x.t", "1..3\nok 1\n", 0).failed == {2: "not run", 3: "not run"}


def test_what_passes_natively_has_to_pass() -> None:
    native = FileResult("a.t", passed={1, 2, 3, 4}, failed={5: "anyway"}, todo={6})
    mount = FileResult("a.t", passed={1, 6}, skipped={2}, todo={3}, failed={4: "EIO", 5: "too"})
    assert differences([native], [mount]) == [
        Difference("a.t", 2, "skipped"),
        Difference("a.t", 3, "todo"),
        Difference("a.t", 4, "EIO"),
    ]
    assert differences([native], []) == [
        Difference("a.t", number, "not run") for number in (1, 2, 3, 4)
    ]
    assert differences([native], [native]) == []


def test_a_run_gives_each_file_a_directory_and_cleans_up(tmp_path: Path) -> None:
    tests = tmp_path / "suite" / "tests"
    (tests / "one").mkdir(parents=True)
    (tests / "two").mkdir()
    (tests / "misc.sh").touch()
    (tests / "one" / "00.t").write_text("echo 1..1; ls -A; touch x; rm x; echo ok 1\n")
    (tests / "one" / "01.t").write_text("echo 1..1; mkdir left; echo ok 1\n")
    (tests / "two" / "00.t").write_text("echo 1..1; echo not ok 1\n")
    suite = tests.parent
    names = pjdfstest.test_files(suite, [])
    assert names == ["one/00.t", "one/01.t", "two/00.t"]
    assert pjdfstest.test_files(suite, ["two"]) == ["two/00.t"]
    with pytest.raises(pjdfstest.CannotRunError, match="there are: one two"):
        pjdfstest.test_files(suite, ["three"])

    ended: list[None] = []
    here = tmp_path / "here"
    results = pjdfstest.run_side(suite, names, here, 2, lambda: ended.append(None))
    assert [result.failed for result in results] == [{}, {0: "left behind: ['left']"}, {1: ""}]
    assert len(ended) == 3
    assert os.listdir(here) == []


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pjdfstest.CannotRunError, match=r"no tests/misc\.sh"):
        pjdfstest.prepare(tmp_path, tmp_path, "EXT4")
