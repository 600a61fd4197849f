"""The benchmark harness works: what it measures it also checks, and it leaves nothing behind.

No assertion here is about time.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import growth, nullfs, pieces, programs, report, runner
from bench.bucketwork import Stage
from bench.ground import Ground, ScenarioError, Target, UnavailableError
from bench.processes import is_mounted, usage
from bench.results import Options, Results
from bench.targets import TARGETS
from bench.workloads import SCENARIOS, STEPS, TINY, Job, Step, Stopwatch, small
from s3ws_fs.fuse import translate
from tests.support import seaweed

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
    measured = {step["name"] for turn in found["turns"] for step in turn["steps"]}
    assert {"create", "clone", "untar", "seq_write", "rand_write", "sqlite_wal"} <= measured
    assert tables.read_text() == capsys.readouterr().out
    for name in measured:
        assert STEPS[name].title.split("{")[0] in tables.read_text()


@needs_fuse
def test_the_null_filesystem_passes_the_checks_of_every_scenario(tmp_path: Path) -> None:
    options = Options(TINY, 1, 7, ["native", "null"], tuple(SCENARIOS), tmp_path)
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
    with pytest.raises(ZeroDivisionError), TARGETS["null"](Ground(tmp_path)) as target:
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
    def missing(_ground: Ground) -> object:
        raise UnavailableError("there is none here")

    monkeypatch.setitem(TARGETS, "null", missing)
    options = Options(TINY, 1, 7, ["native", "null"], ["small"], tmp_path)
    results = runner.run(options, lambda _: None)
    assert results.left_out == {"null": "there is none here"}
    assert "null was left out: there is none here" in report.markdown(results)


def test_a_scenario_that_fails_is_not_tried_again_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = runner._in_child, []

    def child(job: Job) -> list[Step]:
        tried.append(job.scenario)
        if job.scenario == "tar":
            raise ScenarioError(f"wrong bytes in {job.directory}")
        return real(job)

    monkeypatch.setattr(runner, "_in_child", child)
    options = Options(TINY, 2, 7, ["native"], ["tar", "sqlite"], tmp_path)
    kept: list[int] = []
    results = runner.run(options, lambda _: None, lambda so_far: kept.append(len(so_far.turns)))
    assert kept == [0, 1, 2]
    assert tried == ["tar", "sqlite", "sqlite"]
    assert results.failed == {"native tar": "wrong bytes in MOUNT/tar-0"}
    assert results.left_out == {}
    assert {turn.scenario for turn in results.turns} == {"sqlite"}
    assert "native tar failed: wrong bytes in MOUNT/tar-0" in report.markdown(results)
    assert command.failures(results) == ["native tar"]


def test_a_target_that_hangs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(_job: Job) -> list[Step]:
        raise runner.HangError("no end after 600 s")

    monkeypatch.setattr(runner, "_in_child", child)
    options = Options(TINY, 2, 7, ["native"], ["tar", "sqlite"], tmp_path)
    results = runner.run(options, lambda _: None)
    assert results.left_out == {"native": "tar: no end after 600 s"}
    assert results.turns == []


def test_a_child_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far too little even for the interpreter to start.
    monkeypatch.setattr(runner, "SCENARIO_TIMEOUT_S", 0.001)
    with pytest.raises(runner.HangError):
        runner._in_child(Job("small", str(tmp_path), str(tmp_path), 7, TINY))


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="FileNotFoundError"):
        runner._in_child(Job("large_change", str(tmp_path), str(tmp_path), 7, TINY))


def test_a_program_that_is_missing_takes_its_scenario_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    options = Options(TINY, 1, 7, ["native"], ["npm", "fio"], tmp_path)
    results = runner.run(options, lambda _: None)
    assert results.turns == []
    assert results.not_run == {"npm": "npm is not installed", "fio": "fio is not installed"}
    assert "fio was not run: fio is not installed" in report.markdown(results)


@pytest.mark.parametrize("scenario", ["pip", "npm", "fio"])
def test_installers_and_fio_run_offline_and_are_checked(scenario: str, tmp_path: Path) -> None:
    reason = programs.missing(scenario)
    if reason is not None:
        pytest.skip(reason)
    results = runner.run(Options(TINY, 1, 7, ["native"], [scenario], tmp_path), lambda _: None)
    assert (results.failed, results.left_out) == ({}, {})
    (turn,) = results.turns
    assert [step.name for step in turn.steps] == [scenario]
    assert turn.steps[0].seconds > 0


def test_growth_counts_what_is_there(tmp_path: Path) -> None:
    results = runner.run(Options(TINY, 2, 7, ["native"], ["growth"], tmp_path), lambda _: None)
    assert [(each.target, each.files) for each in results.growths] == [
        ("native", files) for files in TINY.growth
    ]
    assert all(each.list_per_s > 0 and each.flush_s is None for each in results.growths)


def test_sizes_are_worked_in_and_checked(tmp_path: Path) -> None:
    results = runner.run(Options(TINY, 2, 7, ["native"], ["sizes"], tmp_path), lambda _: None)
    assert (results.failed, results.left_out) == ({}, {})
    assert [(each.target, each.mib) for each in results.sizes] == [
        ("native", mib) for mib in TINY.sizes_mib
    ]
    assert all(each.change_s is None and each.write_us > 0 for each in results.sizes)


def test_the_null_filesystem_gets_no_files_that_memory_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "NULL_MIB_MAX", 1)
    tried: list[int] = []

    def inside(_: object, mib: int) -> object:
        tried.append(mib)
        return None

    monkeypatch.setattr(growth, "_inside", inside)
    results = Results(Options(TINY, 1, 7, ["null"], ["sizes"]), {})
    job = Job("sizes", str(tmp_path), str(tmp_path), 7, TINY)
    growth.sizes(Stage(results, Target("null", tmp_path), job, 0, lambda _: []))
    assert tried == [1]


def test_a_wrong_large_file_is_found(tmp_path: Path) -> None:
    scale = replace(TINY, large_mib=3)
    job = Job("sized_fill", str(tmp_path), str(tmp_path), 7, scale)
    pieces.sized_fill(job, Stopwatch())
    pieces.sized_read(job, Stopwatch())
    with (tmp_path / "sized.bin").open("r+b") as file:
        for number in range(3):
            file.seek(number << 20)
            file.write(bytes(7) + b"\x09")
    with pytest.raises(RuntimeError, match="wrong at"):
        pieces.sized_read(job, Stopwatch())


def test_the_floor_has_the_kernel_options_of_our_mount() -> None:
    assert nullfs.KERNEL_CACHE_S == translate.KERNEL_CACHE_S
    assert nullfs.IO_BLOCK_BYTES == translate.IO_BLOCK_BYTES
    assert nullfs.NullFs.enable_writeback_cache is False


def test_a_server_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def running(_: Path) -> None:
        raise RuntimeError("weed ended at start:\naddress in use")

    monkeypatch.setattr(seaweed, "running_seaweed", running)
    monkeypatch.setattr(seaweed, "weed_program", lambda: "weed")
    with Ground(tmp_path) as found, pytest.raises(UnavailableError, match="in use"):
        found.server()
