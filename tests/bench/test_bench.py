"""The benchmark harness works: what it measures it also checks, and it leaves nothing behind.

No assertion here is about time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import nullfs, report, runner
from bench.processes import is_mounted, usage
from bench.targets import TARGETS, UnavailableError
from bench.workloads import SCENARIOS, STEPS, TINY, Job, Stopwatch, small
from s3ws_fs.fuse import translate

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse may not be used here"
)


def test_a_tiny_run_measures_every_step_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    tables = tmp_path / "tables.md"
    place = tmp_path / "place"
    place.mkdir()

    arguments = ["--scale", "tiny", "--target", "native", "--seed", "7", "--rounds", "2"]
    arguments += ["--dir", str(place), "--json", str(figures), "--markdown", str(tables)]
    code = command.main(arguments)

    assert code == 0
    assert list(place.iterdir()) == []
    found = json.loads(figures.read_text())
    assert found["left_out"] == {}
    assert {turn["round"] for turn in found["turns"]} == {0, 1}
    assert {step["name"] for turn in found["turns"] for step in turn["steps"]} == set(STEPS)
    assert tables.read_text() == capsys.readouterr().out
    for info in STEPS.values():
        assert info.title.split("{")[0] in tables.read_text()


@needs_fuse
def test_the_null_filesystem_passes_the_checks_of_every_scenario(tmp_path: Path) -> None:
    options = runner.Options(TINY, 1, 7, ["native", "null"], tuple(SCENARIOS), tmp_path)
    said: list[str] = []

    results = runner.run(options, said.append)

    assert results.left_out == {}, said
    assert {turn.target for turn in results.turns} == {"native", "null"}
    assert results.private_mib["null"] > 0
    sheet = report.main_sheet(results)
    assert sheet.head[-1] == "null ÷ native"
    assert all(len(row) == len(sheet.head) for row in sheet.rows)


@needs_fuse
def test_the_null_filesystem_is_gone_after_an_error(tmp_path: Path) -> None:
    pid = 0
    with pytest.raises(ZeroDivisionError), TARGETS["null"](tmp_path) as target:
        assert is_mounted(target.directory)
        assert target.pid is not None
        pid = target.pid
        raise ZeroDivisionError
    assert not is_mounted(tmp_path / "null")
    assert usage(pid) is None


def test_wrong_bytes_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("small", str(tmp_path), str(tmp_path), 7, TINY)
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: real(fd, size).replace(b"a", b"b"))
    with pytest.raises(RuntimeError, match="differs"):
        small(job, Stopwatch())


def test_a_target_that_is_not_to_be_had_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_base: Path) -> object:
        raise UnavailableError("there is none here")

    monkeypatch.setitem(TARGETS, "null", missing)
    options = runner.Options(TINY, 1, 7, ["native", "null"], ["small"], tmp_path)
    results = runner.run(options, lambda _: None)
    assert results.left_out == {"null": "there is none here"}
    assert "null was left out: there is none here" in report.markdown(results)


def test_ratios_are_taken_within_a_round() -> None:
    step = {
        "ours-s3": {0: (2.0, 1.0), 1: (20.0, 1.0), 2: (3.0, 1.0)},
        "null": {0: (1.0, 1.0), 1: (10.0, 1.0), 2: (1.0, 1.0)},
    }
    assert report.ratio(step, "ours-s3", "null") == 2.0
    assert report.ratio(step, "ours-s3", "native") is None


def test_the_floor_has_the_kernel_options_of_our_mount() -> None:
    assert nullfs.KERNEL_CACHE_S == translate.KERNEL_CACHE_S
    assert nullfs.IO_BLOCK_BYTES == translate.IO_BLOCK_BYTES
    assert nullfs.NullFs.enable_writeback_cache is False
