"""What the mirror's large objects are made of: kept for one object, bounded, and never trusted."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from s3ws_fs.core.ranges import Run
from s3ws_fs.core.records import MirrorRow
from s3ws_fs.transfer import layouts
from s3ws_fs.transfer.layouts import Layouts

ROW = MirrorRow(b"d/big", 7, 3, 2, "abc-4", bytes(range(16)))
RUNS = [Run(0, 100, 1 << 63, -7), Run(100, 90_000, 0, 0), Run(90_000, 90_001, 5, 1 << 40)]


@pytest.fixture
def kept(tmp_path: Path) -> Layouts:
    return Layouts(tmp_path / "layouts", "w")


def test_a_layout_is_of_one_object(kept: Layouts, tmp_path: Path) -> None:
    assert kept.of(ROW) == []
    kept.note(ROW, RUNS)
    assert kept.of(ROW) == RUNS
    assert kept.of(replace(ROW, generation=9)) == RUNS
    assert kept.of(replace(ROW, path=b"d/other")) == []
    assert kept.of(replace(ROW, etag="abc-5")) == []
    assert kept.of(replace(ROW, hash=bytes(16))) == []
    assert Layouts(tmp_path / "layouts", "another").of(ROW) == []
    kept.note(replace(ROW, etag="new"), RUNS[:1])
    assert kept.of(ROW) == []
    assert kept.of(replace(ROW, etag="new")) == RUNS[:1]


def test_a_copy_is_made_of_the_same(kept: Layouts) -> None:
    kept.note(ROW, RUNS)
    moved = replace(ROW, path=b"moved", etag="other")
    kept.carry(ROW, moved)
    assert kept.of(moved) == kept.of(ROW) == RUNS
    kept.carry(replace(ROW, etag="unknown"), replace(ROW, path=b"third"))
    assert kept.of(replace(ROW, path=b"third")) == []


def test_damage_is_no_layout(kept: Layouts, tmp_path: Path) -> None:
    kept.note(ROW, RUNS)
    (path,) = (tmp_path / "layouts").iterdir()
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at])
        assert kept.of(ROW) == []
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert kept.of(ROW) == []
    path.write_bytes(raw + b"\0")
    assert kept.of(ROW) == []
    path.write_bytes(raw)
    assert kept.of(ROW) == RUNS


def test_a_file_of_too_many_runs_has_none(kept: Layouts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "RUNS_MAX", len(RUNS))
    kept.note(ROW, RUNS)
    assert kept.of(ROW) == RUNS
    kept.note(ROW, [*RUNS, Run(90_001, 90_002, 5, 0)])
    assert kept.of(ROW) == []


def test_the_oldest_go(kept: Layouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "FILES_MAX", 3)
    rows = [replace(ROW, path=b"%d" % number) for number in range(4)]
    for number, row in enumerate(rows):
        before = set((tmp_path / "layouts").iterdir()) if number else set()
        kept.note(row, RUNS)
        for path in set((tmp_path / "layouts").iterdir()) - before:
            os.utime(path, ns=(0, number))
    # The fourth was written now, and made the first go.
    assert [bool(kept.of(row)) for row in rows] == [False, True, True, True]


def test_a_directory_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "layouts").write_text("a file")
    kept = Layouts(tmp_path / "layouts", "w")
    kept.note(ROW, RUNS)
    assert kept.of(ROW) == []
