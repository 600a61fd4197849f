"""An agent's day: it runs, checks what it reads, looks at everything, and is judged."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from bench import agentday, churn, churnfigures
from bench.churnfigures import Day, Look, Turns
from tests.support.mounting import require_fuse

LOOK = Look(
    at_s=1.0,
    turn=3,
    daemon_mib=26.0,
    children_mib=40.0,
    descriptors=23,
    cache_bytes=60 << 20,
    used_bytes=8 << 20,
    journal_bytes=10 << 20,
    bucket_bytes=14 << 20,
    objects=700,
    after_leap=False,
    cpu_ms=100.0,
    us={"save": 300.0, "packages": 200.0},
)


TURNS = Turns([100.0, 900.0, 90.0], [{"save": 300.0, "stat": 9.0}, {"save": 310.0}, {"build": 1.0}])


def day_of(aged: Turns = TURNS, **changed: object) -> Day:
    """Thirty looks, the last ten of which are changed so; each third ends with a leap."""
    looks = [replace(LOOK, turn=n, after_leap=n % 10 == 9) for n in range(30)]
    looks[20:] = [replace(look, **changed) for look in looks[20:]]  # type: ignore[arg-type]
    return Day(looks, aged, TURNS)


def not_met(found: Day) -> list[str]:
    return [each.goal for each in churnfigures.judge(found) if not each.met]


def test_what_stays_as_it_is_is_within_all_bounds() -> None:
    assert not_met(day_of()) == []


@pytest.mark.parametrize(
    ("changed", "goal"),
    [
        ({"daemon_mib": 31.0}, "memory of the daemon"),
        ({"children_mib": 60.0}, "memory of its children"),
        ({"cache_bytes": 400 << 20}, "cache file"),
        ({"cache_bytes": 70 << 20}, "cache file, end"),
        ({"bucket_bytes": 30 << 20}, "bucket a day later"),
        ({"descriptors": 24}, "open descriptors"),
        ({"aged": replace(TURNS, cpu_ms=[140.0])}, "processor time"),
        ({"aged": replace(TURNS, us=[{"save": 500.0}])}, "median operation"),
    ],
)
def test_what_grows_is_named(changed: dict[str, object], goal: str) -> None:
    found = not_met(day_of(**changed))  # type: ignore[arg-type]
    assert any(each.startswith(goal) or goal in each for each in found), found


def test_an_operation_is_held_against_itself() -> None:
    aged = replace(TURNS, us=[{"save": 610.0, "packages": 9.0}])
    # No packages came on the fresh one: nothing is said of them.
    assert churnfigures.slowdowns(day_of(aged)) == {"save": 2.0}


def test_the_agents_workspace_stays_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agentday, "LIVE_FILES", 80)
    monkeypatch.setattr(agentday, "REPOSITORY_TURNS", 3)
    day = agentday.Day(tmp_path, 7)
    for number in range(3):
        kinds = {step.name for step in day.turn(number).steps}
        assert {"stat", "read", "save", "create", "delete", "append", "sqlite", "big"} <= kinds
        assert ("packages" in kinds) == (number == 0)
        assert len([path for path in (tmp_path / "src").rglob("*") if path.is_file()]) == 80
    left = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in left if not name.startswith("events.db-")] == [
        *("agent.log", "events.db", "src")
    ]


def test_the_agent_finds_wrong_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agentday, "LIVE_FILES", 80)
    day = agentday.Day(tmp_path, 7)
    for path in (tmp_path / "src").rglob("*.py"):
        path.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="differs"):
        day.turn(0)


@pytest.mark.fuse
@pytest.mark.slow
def test_a_short_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_fuse()
    monkeypatch.setattr(churn, "LEAPS", 2)
    monkeypatch.setattr(churn, "SYNC_EVERY", 1)
    monkeypatch.setattr(churn, "COMPARED_TURNS", 2)
    monkeypatch.setattr(churn, "WARM_TURNS", 1)
    monkeypatch.setattr(churn, "FLUSHES_A_LEAP", 3)
    # What is measured in a moment is not to be judged.
    monkeypatch.setattr(churn, "judge", lambda _: [])
    place = tmp_path / "place"
    place.mkdir()
    figures = tmp_path / "figures.json"
    words = ["--seconds", "0.01", "--seed", "7", "--dir", str(place), "--json", str(figures)]
    assert churn.main([*words, "--plots", str(tmp_path)]) == 0
    assert list(place.iterdir()) == []
    found = json.loads(figures.read_text())
    for turns in (found["aged"], found["fresh"]):
        assert len(turns["cpu_ms"]) == len(turns["us"]) == 2
        assert min(turns["cpu_ms"]) > 0
    looks = [Look(**each) for each in found["looks"]]
    assert [look.after_leap for look in looks] == [True, True]
    for look in looks:
        assert 5 < look.daemon_mib < 200
        assert look.cache_bytes >= look.used_bytes > 1 << 20
        assert look.objects > agentday.LIVE_FILES
        assert 0 < look.journal_bytes < look.bucket_bytes
        assert look.us["save"] > 0 and look.cpu_ms > 0 and look.descriptors > 5
    assert "A day of an agent" in capsys.readouterr().out
    assert ET.fromstring((tmp_path / "bench-churn.svg").read_text()).tag.endswith("svg")
