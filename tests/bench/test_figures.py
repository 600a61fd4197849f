"""Medians, ratios, the judging of goals, tables and plots, on figures made by hand."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from bench import figures, goals, plots, report
from bench.figures import BEST_PEER
from bench.results import Growth, Idle, Lag, Options, Results, Sized, Turn, Wire
from bench.workloads import STEPS, TINY, Step

TARGETS = ("native", "null", "ours-s3", "rclone", "juicefs")


def results_of(**seconds: dict[str, list[float]]) -> Results:
    """step → target → seconds by round; every amount is 100."""
    results = Results(Options(TINY, 3, 7, TARGETS, ["small"]), {"cpus": "2"})
    for step, by_target in seconds.items():
        for target, each in by_target.items():
            for number, took in enumerate(each):
                results.turns.append(
                    Turn(number, target, "small", [Step(step, took, 100)], None, None)
                )
    return results


def verdict(results: Results, goal: str) -> goals.Verdict:
    """The first one with this in its name."""
    return next(each for each in goals.judge(results) if goal in each.goal)


def test_ratios_are_taken_within_a_round() -> None:
    results = results_of(create={"ours-s3": [2.0, 20.0, 3.0], "null": [1.0, 10.0, 1.0]})
    step = figures.seconds_by_round(results)["create"]
    assert figures.ratio(step, "ours-s3", "null") == 2.0
    assert figures.ratio(step, "ours-s3", "native") is None
    assert figures.ratio(step, "ours-s3", BEST_PEER) is None
    assert figures.seconds(step, "ours-s3") == 3.0
    assert figures.rate(step, "ours-s3") == pytest.approx(100 / 3)
    assert figures.seconds(step, "native") is None
    assert figures.rate(step, "native") is None


def test_the_best_peer_is_that_of_the_round() -> None:
    results = results_of(
        create={"ours-s3": [1.0, 1.0, 1.0], "rclone": [2.0, 9.0, 4.0], "juicefs": [8.0, 4.0, 2.0]}
    )
    step = figures.seconds_by_round(results)["create"]
    assert figures.ratios(step, "ours-s3", BEST_PEER) == [0.5, 0.25, 0.5]


def test_the_table_shows_the_best_peer_in_bold_and_says_what_is_missing() -> None:
    results = results_of(
        create={"ours-s3": [1.0], "null": [2.0], "rclone": [4.0], "juicefs": [8.0]},
        seq_read={"ours-s3": [1.0], "juicefs": [2.0]},
    )
    sheet = report.main_sheet(results)
    assert sheet.head == [
        *("seconds, or what is said", "null", "ours-s3", "rclone", "juicefs"),
        *("ours-s3 ÷ null", "ours-s3 ÷ best peer"),
    ]
    by_title = {row[0]: row[1:] for row in sheet.rows}
    created = STEPS["create"].title.format(small_files=TINY.small_files)
    assert by_title[created] == ["2.00", "1.00", "**4.00**", "8.00", "0.50", "0.25"]
    read = "sequential read after it, MiB/s"
    assert by_title[read] == ["–", "100", "–", "**50**", "–", "0.50"]


def test_without_peers_both_of_ours_are_held_against_both_floors() -> None:
    results = results_of(create={name: [1.0] for name in ("native", "null", "ours-s3")})
    assert report.main_sheet(results).head[-2:] == ["ours-s3 ÷ null", "ours-s3 ÷ native"]


def test_the_worst_workload_decides_a_goal_and_is_named() -> None:
    results = results_of(
        create={"ours-s3": [0.7], "null": [1.0], "rclone": [3.0]},
        save={"ours-s3": [0.9], "null": [1.0], "rclone": [0.5]},
        stat_again={"ours-s3": [1.2], "null": [1.0], "rclone": [1.0]},
    )
    small = verdict(results, "small files")
    assert (small.met, small.goal) == (False, "1 small files and metadata ÷ null")
    assert small.figure == "1 of 2; not: 5 saves by temp + rename 0.90"
    peers = verdict(results, "best peer")
    assert peers.figure == "1 of 2; not: 5 saves by temp + rename 1.80"
    assert verdict(results, "warm stats").met


def test_goals_of_small_files_are_met_within_the_limit() -> None:
    results = results_of(create={"ours-s3": [0.8], "null": [1.0]})
    assert verdict(results, "small files") == goals.Verdict(
        *("1 small files and metadata ÷ null", "≤ 0.8"),
        *("at most 0.80 (create+write+close 20 files of 1–8 KiB)", True),
    )


@pytest.mark.parametrize(("seconds", "met"), [(0.25, True), (0.26, False)])
def test_sqlite_is_judged_by_its_rate(seconds: float, met: bool) -> None:
    results = results_of(sqlite_delete={"ours-s3": [seconds]})
    assert verdict(results, "DELETE").met is met


LAG = Lag(
    *(0, "ours-s3", 2000, 0.0, 1.0, 0.9, 9.9),
    *({"PUT": 20}, {"PUT": 2010, "HEAD": 10}, 0),
)


@pytest.mark.parametrize(
    ("change", "goal", "met"),
    [
        ({}, "→ sealed", True),
        ({"sealed_s": 1.0}, "→ sealed", False),
        ({"late_s": 0.03, "sealed_s": 1.9}, "30 ms late", True),
        ({"late_s": 0.03, "sealed_s": 2.0}, "30 ms late", False),
        ({}, "requests for it", True),
        ({"sealed_requests": {"PUT": 20, "GET": 1}}, "requests for it", False),
        ({}, "mirrored", True),
        ({"mirrored_s": 10.0}, "mirrored", False),
        ({}, "for changed files", True),
        ({"requests": {"PUT": 2021}}, "for changed files", False),
        ({}, "for unchanged ones", True),
        ({"again": 1}, "for unchanged ones", False),
    ],
)
def test_durability_and_requests(change: dict[str, object], goal: str, met: bool) -> None:
    results = results_of()
    results.lags.append(replace(LAG, **change))  # type: ignore[arg-type]
    results.lags.append(replace(LAG, target="rclone", sealed_s=99.0))
    assert verdict(results, goal).met is met


@pytest.mark.parametrize(("during", "met"), [(1.25, True), (1.26, False)])
def test_the_foreground_during_an_upload(during: float, met: bool) -> None:
    results = results_of(alone={"ours-s3": [1.0]}, during={"ours-s3": [during]})
    assert verdict(results, "during an upload").met is met


@pytest.mark.parametrize(
    ("what", "up_bytes", "goal", "met"),
    [
        ("large_change", 10_000_000, "changed in", True),
        ("large_change", 10_000_001, "changed in", False),
        ("large_append", 2 << 20, "appended", True),
        ("large_append", (2 << 20) + 1, "appended", False),
        ("large_rename", 100_000, "renamed", True),
        ("large_rename", 100_001, "renamed", False),
    ],
)
def test_large_files(what: str, up_bytes: int, goal: str, met: bool) -> None:
    results = results_of()
    results.wires.append(Wire(0, "ours-s3", what, 1.0, {"PUT": 2}, up_bytes, 9))
    results.wires.append(Wire(0, "rclone", what, 1.0, {"PUT": 2}, 1 << 30, 9))
    assert verdict(results, goal).met is met


def test_cold() -> None:
    results = results_of(
        cold_ready={"ours-s3": [0.3]},
        cold_ls={"ours-s3": [0.3]},
        cold_read={"ours-s3": [0.05]},
        cold_large={"ours-s3": [0.6]},
    )
    for what, requests in (("cold find", 2), ("cold read late", 3)):
        results.wires.append(Wire(0, "ours-s3", what, 1.0, {"GET": requests}, 0, 9))
    found = [(each.figure, each.met) for each in goals.judge(results)]
    assert found == [
        ("0.60 s (20 files)", False),
        ("2 in 1.00 s", True),
        ("3 in 1.00 s", False),
        ("2,000 files/s", True),
        ("167 MiB/s", False),
    ]


def test_cost_and_growth() -> None:
    results = results_of()
    results.peak_mib["ours-s3"] = 46.0
    results.idle["ours-s3"] = Idle(20.0, 0.01, 0)
    for files, create_us, flush_s in ((1000, 100.0, 1.0), (100_000, 130.0, 1.4)):
        results.growths.append(
            Growth("ours-local", files, create_us, 9, 99, 50_000, flush_s, 7, 30)
        )
    found = {each.goal: each.met for each in goals.judge(results)}
    assert found == {
        "5 daemon's peak memory": False,
        "5 CPU when idle": True,
        "5 worker gone when idle": True,
        "6 create, 100,000 files ÷ 1,000": True,
        "6 stat, 100,000 files ÷ 1,000": True,
        "6 save, 100,000 files ÷ 1,000": True,
        "6 sync, 100,000 files ÷ 1,000": False,
        "6 a directory of 100,000 listed": True,
    }


def test_growth_is_judged_by_the_processor_too_and_by_the_last_target_alone() -> None:
    results = results_of()
    for files, cpu_us, change_cpu_s in ((10, 20.0, 0.01), (1000, 30.0, 0.012)):
        results.growths.append(
            replace(
                Growth("ours-local", files, 9, 9, 9, 50_000, 1, 7, 30),
                cpu_us={"create": cpu_us},
                change_s=9.0,
                change_cpu_s=change_cpu_s,
            )
        )
    results.growths.append(Growth("ours-s3", 9, 999, 9, 9, 1, 1, 7, 30))
    for mib, read_us in ((1, 10.0), (10_240, 14.0)):
        results.sizes.append(sized("ours-s3", mib, read_us))
    found = {each.goal: each.met for each in goals.judge(results)}
    assert found["6 create, daemon's CPU, 1,000 files ÷ 10"] is False
    assert found["6 sync of one change, CPU, 1,000 files ÷ 10"] is True
    assert found["6 4 KiB read, a file of 10,240 MiB ÷ 1"] is False
    assert found["6 append, a file of 10,240 MiB ÷ 1"] is True
    assert found["6 4 KiB changed in 10,240 MiB: uploads"] is True
    assert not any("ours-s3" in goal or "÷ 9" in goal for goal in found)


def sized(target: str, mib: int, read_us: float = 10.0) -> Sized:
    return Sized(
        *(target, mib, 2.0, 50.0, read_us, 60.0, {"write": 40.0}),
        *(1.0, 0.5, 5_000_000, 0.6, 6_000_000, 30.0),
    )


def full() -> Results:
    """Something of each kind."""
    results = results_of(
        create={name: [1.0, 2.0] for name in TARGETS}, during={"ours-s3": [2.0]}, alone={}
    )
    results.lags += [LAG, replace(LAG, target="juicefs", mirrored_s=None, late_s=0.03)]
    results.wires.append(Wire(0, "ours-s3", "large_change", 1.0, {"PUT": 2}, 2_000_000, 9))
    for files in (10, 1000):
        results.growths.append(Growth("null", files, 100.0, 9, 99, 50_000, None, None, 30))
        ours = Growth("ours-local", files, 100.0, 9, 99, 50_000, 2, 7, 30)
        results.growths.append(
            replace(ours, cpu_us={"create": 40.0, "list": 1.0}, change_s=0.3, change_cpu_s=0.01)
        )
        results.sizes.append(sized("ours-s3", files))
    results.private_mib["null"] = results.peak_mib["null"] = 19.0
    results.peak_children_mib["null"] = 2.0
    results.idle["null"] = Idle(20.0, 0.1, 1)
    results.left_out["s3fs"] = "there is none"
    results.failed["rclone tar"] = "it <could> not & so on"
    results.not_run["fio"] = "fio is not installed"
    return results


def test_the_json_gives_the_same_results_again() -> None:
    results = full()
    again = Results.from_json(json.loads(json.dumps(results.to_json())))
    assert report.markdown(again) == report.markdown(results)
    assert plots.plots(again) == plots.plots(results)


def test_everything_is_in_the_report() -> None:
    text = report.markdown(full())
    for wanted in (
        "| juicefs | 2,000 | 30 | 1.00 | 0.90 | 1.90 | never | 20 PUT |",
        "| large change | 1.00 s, 2, 2.00, 0.00 |",
        "| null | 1,000 | 100 | 9 | 99 | 50,000 | – | – | – | – | 30 |",
        "| ours-local | 10 | 100 (40) | 9 | 99 | 50,000 | 2.00 | 7 | 0.30 | 0.010 | 30 |",
        "| ours-s3 | 10 | 50 (40) | 10 | 60 | 5 | 1.00 | 0.50 | 5.00 | 0.60 | 6.00 | 30 |",
        "| its peak, MiB | 19 + 2 |",
        "| left alone: % of a CPU, children | 0.50, 1 |",
        "s3fs was left out: there is none",
        "rclone tar failed: it <could> not & so on",
        "fio was not run: fio is not installed",
    ):
        assert wanted in text
    for sheet in report.sheets(full()):
        assert all(len(row) == len(sheet.head) for row in sheet.rows), sheet.title


def test_the_plots_are_svg_with_a_mark_for_every_figure() -> None:
    drawn = plots.plots(full())
    assert set(drawn) == {"bench-workloads", "bench-growth", "bench-growth-cpu", "bench-sizes"}
    for svg in drawn.values():
        tree = ET.fromstring(svg)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    # Three in the legend, three on the line.
    shapes = [e for e in ET.fromstring(drawn["bench-workloads"]) if e.tag.endswith(("gon", "cle"))]
    assert len(shapes) == 6
    assert "files of 1–8 KiB" in drawn["bench-workloads"]


def test_a_plot_holds_what_is_beyond_its_scale() -> None:
    axis = plots.Axis(0.1, 10, 100, 300)
    assert [axis.at(value) for value in (0.01, 0.1, 1, 10, 99)] == [100, 100, 200, 300, 300]
    assert axis.ticks() == pytest.approx([0.1, 1, 10])
    assert plots.spanning([1.0], 0, 1).ticks() == [1, 10]
    assert plots.spanning([0.2, 30], 0, 1) == plots.Axis(0.1, 100, 0, 1)


def test_a_run_that_was_ended_has_its_peaks() -> None:
    results = full()
    results.private_mib.clear()
    sheet = report.cost_sheet(results)
    assert sheet is not None
    assert [row[0] for row in sheet.rows][-2:] == [
        "its peak, MiB",
        "left alone: % of a CPU, children",
    ]
    assert len(sheet.rows) == 3
