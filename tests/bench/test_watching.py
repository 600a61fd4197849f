"""What a watcher costs is measured against turns of the same round, and nothing is left."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from bench import processes, watching
from bench.watching import WAYS, Turn
from tests.support.mounting import require_fuse


@pytest.mark.fuse
@pytest.mark.e2e
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_fuse()
    words = ["--rounds", "1", "--count", "5", "--work", "save", "--dir", str(tmp_path), "--json"]
    watching.main(words)
    turns = {each["way"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(turns) == set(WAYS)
    for way, each in turns.items():
        assert each["wall_s"] > 0 and each["daemon_s"] > 0
        assert (each["watcher_s"] > 0) is (way == "watched")
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_taken_within_a_round() -> None:
    times = {0: (2.0, 4.0, 3.0), 1: (20.0, 30.0, 10.0)}
    turns = [
        Turn("save", way, number, wall_s, 0.0, 0.0)
        for number, walls in times.items()
        for way, wall_s in zip(WAYS, walls, strict=True)
    ]
    found = watching.ratios(turns, "save", lambda each: each.wall_s)
    assert found == {"watched": [1.6, 2.0], "noise": [1.5, 0.5]}


def test_processor_time_is_of_all_threads_and_to_the_microsecond() -> None:
    ours_s, before_s = time.process_time(), processes.cpu_s(os.getpid())
    until_s = time.thread_time() + 0.002
    while time.thread_time() < until_s:
        pass
    spent_s = processes.cpu_s(os.getpid()) - before_s
    assert 0.002 <= spent_s <= time.process_time() - ours_s
