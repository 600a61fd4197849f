"""Alert rules and dashboard: their names exist, and the rules fire when they should.

Where promtool is there (scripts/setup dev takes it out of Debian's package prometheus) it judges
the syntax of all expressions, and evaluates each rule in a case where it has to fire and in one
where it must not.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from s3ws_fs.cli.metrics.exposition import BASE
from s3ws_fs.cli.metrics.families import FAMILIES
from tests.support.mounting import REPOSITORY

PACKAGING: Final = REPOSITORY / "packaging"
ALERTS: Final = PACKAGING / "prometheus/alerts.yml"
DASHBOARD: Final = PACKAGING / "grafana/s3ws.json"
PROMTOOL_S_MAX: Final = 300
"""It evaluates hours of each rule: seconds where nothing else runs."""
FOREIGN: Final = {"node_textfile_mtime_seconds": {"file"}}
"""Metrics of others that rules use, and their labels."""
OF_TARGET: Final = {"instance", "job"}
"""Labels that Prometheus adds."""
_ENDS: Final[dict[str, dict[str, set[str]]]] = {
    "histogram": {"_bucket": {"le"}, "_count": set(), "_sum": set()},
    "summary": {"_count": set(), "_sum": set()},
}
_NO_ENDS: Final[dict[str, set[str]]] = {"": set()}


def exposed() -> dict[str, set[str]]:
    """Each name that can be queried, with its labels."""
    found: dict[str, set[str]] = {}
    for family in FAMILIES.values():
        base = set() if family.is_of_host else set(BASE)
        for end, more in _ENDS.get(family.type, _NO_ENDS).items():
            found[family.exposed + end] = base | set(family.labels) | more | OF_TARGET
    return found | {name: labels | OF_TARGET for name, labels in FOREIGN.items()}


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load(ALERTS.read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def targets(value: Any) -> Iterator[dict[str, Any]]:
    """All queries in a dashboard."""
    if isinstance(value, dict):
        if "expr" in value:
            yield value
        for inner in value.values():
            yield from targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from targets(inner)


def queries() -> list[str]:
    """Expressions of the dashboard, with its variables as some Grafana would fill them in."""
    found = [target["expr"] for target in targets(dashboard())]
    variables = {v["name"] for v in dashboard()["templating"]["list"]}
    filled = []
    for query in found:
        query = query.replace("$__rate_interval", "5m")
        for name in variables:
            query = query.replace(f"${name}", ".*")
        assert "$" not in query, f"a variable that is none: {query}"
        filled.append(query)
    return filled


def problems(expression: str) -> list[str]:
    """Names and labels in an expression that the program does not expose."""
    known = exposed()
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', expression)
    names = set(re.findall(r"\b(?:s3ws|node)_[a-z0-9_]+", text))
    wrong = [f"no metric {name}" for name in names if name not in known]
    labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"\"", text))
    for group in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", text):
        labels |= {label.strip() for label in group.split(",")}
    having = set().union(*(known[name] for name in names if name in known))
    return wrong + [f"no label {label}" for label in labels - having]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_uses_names_that_there_are_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert problems(rule["expr"]) == []
    assert "s3ws_" in rule["expr"] or FOREIGN.keys() & set(re.findall(r"\w+", rule["expr"]))
    assert rule["labels"]["severity"] in ("warning", "critical")
    texts = rule["annotations"]
    assert set(texts) == {"summary", "description"}
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(texts.values())))
    assert used <= {*BASE, "instance"}, "a label that the alert may not have"
    assert used


def test_the_dashboard_uses_names_that_there_are() -> None:
    wrong = {query: found for query in queries() if (found := problems(query))}
    assert wrong == {}
    assert len(queries()) > 25


def test_legends_and_variables_of_the_dashboard_use_labels_that_there_are() -> None:
    known = exposed()
    for target in targets(dashboard()):
        names = set(re.findall(r"\bs3ws_[a-z0-9_]+", target["expr"]))
        having = set().union(*(known[name] for name in names))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= having, target
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(
                r"label_values\((s3ws_\w+)(?:{.*})?, (\w+)\)", variable["definition"]
            )
            assert match is not None
            assert match[2] in known[match[1]]


def test_panels_of_the_dashboard_stand_beside_each_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_a_wrong_name_would_be_found() -> None:
    assert problems("s3ws_up == 0") == []
    assert problems("s3ws_upp == 0") == ["no metric s3ws_upp"]
    assert problems('sum by (opp) (s3ws_s3_requests_total{code="200"})') == ["no label opp"]
    assert problems('s3ws_up{cod="200"}') == ["no label cod"]


# --- by Prometheus itself ------------------------------------------------------------------------


@pytest.fixture
def promtool() -> str:
    # scripts/setup puts it beside Python.
    beside = str(Path(sys.executable).parent)
    found = shutil.which("promtool", path=beside) or shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (scripts/setup dev gets it on Debian)")
    return found


def judged(promtool: str, *words: str | Path) -> str:
    """What promtool prints. AssertionError when it finds fault."""
    done = subprocess.run(
        [promtool, *words], capture_output=True, text=True, check=False, timeout=PROMTOOL_S_MAX
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules(promtool: str) -> None:
    assert f"{len(rules())} rules found" in judged(promtool, "check", "rules", ALERTS)


def test_promtool_takes_the_dashboards_queries(promtool: str, tmp_path: Path) -> None:
    named = [{"record": f"q:{n}", "expr": query} for n, query in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": named}]}))
    assert f"{len(named)} rules found" in judged(promtool, "check", "rules", file)


MOUNT: Final = '{user="alice",conversation="c1",mountpoint="/w"}'
OTHER: Final = '{user="bob",conversation="c2",mountpoint="/v"}'
Series = dict[str, str]
"""By metric name (and a further label; ! before a whole series), values once a minute in promtool's
notation, until END."""

END: Final = "99m"
BYTES_ARE_FEW: Final = {"used_bytes": "1x99", "quota_bytes": "9x99"}
OLD_BACKUP: Final = {
    "last_backup_timestamp_seconds": "-9000x99",
    "backup_interval_seconds": "300x99",
}
TEXTFILE: Final = '!node_textfile_mtime_seconds{file="/x/s3ws.prom",instance="h"}'
CASES: Final[dict[str, tuple[Series, Series]]] = {
    "S3wsFlushesFail": (
        {"degraded": "1x99", 'flushes_total,result="failed"': "0+6x99"},
        {"degraded": "0x99", 'flushes_total,result="failed"': "0+6x99"},
    ),
    "S3wsDirtTooOld": (
        {"oldest_dirty_age_seconds": "0+60x99"},
        {"oldest_dirty_age_seconds": "30x99"},
    ),
    "S3wsDirtMuchTooOld": (
        {"oldest_dirty_age_seconds": "0+60x99"},
        {"oldest_dirty_age_seconds": "0+18x99"},
    ),
    "S3wsQuotaNearlyFull": (
        {"used_files": "85x99", "quota_files": "100x99"} | BYTES_ARE_FEW,
        {"used_files": "79x99", "quota_files": "100x99"} | BYTES_ARE_FEW,
    ),
    "S3wsFenced": ({"fenced": "1x99"}, {"fenced": "0x99"}),
    "S3wsLeaseLost": ({"lease_held": "0x99", "up": "1x99"}, {"lease_held": "0x99", "up": "0x99"}),
    "S3wsMountGivenUp": ({"mount_given_up": "1x99"}, {"mount_given_up": "0x99"}),
    "S3wsMountSilent": (
        {"up": "0x99", "mount_given_up": "0x99"},
        {"up": "0x99", "mount_given_up": "1x99"},
    ),
    "S3wsDaemonKeepsDying": (
        {"daemon_restarts_total": "0+1x99"},
        {"daemon_restarts_total": "0x50 1x20 2x27"},
    ),
    "S3wsBackupsFail": ({"backup_failing": "1x99"}, {"backup_failing": "1x20 0x78"}),
    "S3wsBackupTooOld": (
        OLD_BACKUP | {"head_generation": "0+1x99"},
        OLD_BACKUP | {"head_generation": "7x99"},
    ),
    "S3wsCacheNotDurable": ({"cache_sync_failing": "1x99"}, {"cache_sync_failing": "0x99"}),
    "S3wsCacheShortOfRoom": ({"cache_short_of_room": "1x99"}, {"cache_short_of_room": "0x99"}),
    "S3wsDamagedFiles": ({"damaged_files": "2x99"}, {"damaged_files": "0x99"}),
    "S3wsFaults": ({"faults_total": "0x90 1x8"}, {"faults_total": "3x99"}),
    "S3wsMirrorBehind": (
        {"mirror_pending_files": "5x99", "degraded": "0x99"},
        {"mirror_pending_files": "5x50 0x48", "degraded": "0x99"},
    ),
    "S3wsFollowerBehind": ({"follow_age_seconds": "0+60x99"}, {"follow_age_seconds": "300x99"}),
    "S3wsMetricsStale": ({TEXTFILE: "0x99"}, {TEXTFILE: "0+60x99"}),
}
"""For each alert what makes it fire, and what is near to that and must not."""


def _series(values: Series, mount: str) -> list[dict[str, str]]:
    made = []
    for name, said in values.items():
        metric, _, more = name.partition(",")
        labels = mount.replace("}", f",{more}}}") if more else mount
        series = name[1:] if name.startswith("!") else f"s3ws_{metric}{labels}"
        made.append({"series": series, "values": said})
    return made


def _test(alert: str, values: Series, mount: str, wanted: int) -> dict[str, Any]:
    firing = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
    samples = [{"labels": "{}", "value": wanted}] if wanted else []
    return {
        "interval": "1m",
        "input_series": _series(values, mount),
        "promql_expr_test": [
            {"expr": f"count({firing})", "eval_time": END, "exp_samples": samples}
        ],
    }


def test_each_rule_fires_when_it_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    tests = []
    for alert, (firing, quiet) in CASES.items():
        tests += [_test(alert, firing, MOUNT, 1), _test(alert, quiet, OTHER, 0)]
    file = tmp_path / "cases.yml"
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(document))
    judged(promtool, "test", "rules", file)


def test_each_rule_has_its_cases() -> None:
    """Also where there is no promtool to evaluate them."""
    assert [rule["alert"] for rule in rules()] == list(CASES)


def test_what_a_rule_says_is_said_of_the_mount(promtool: str, tmp_path: Path) -> None:
    [rule] = [rule for rule in rules() if rule["alert"] == "S3wsQuotaNearlyFull"]
    labels = {"user": "alice", "conversation": "c1", "mountpoint": "/w", "severity": "warning"}
    said = rule["annotations"]["description"].replace("{{ $labels.mountpoint }}", "/w")
    case = _test("S3wsQuotaNearlyFull", CASES["S3wsQuotaNearlyFull"][0], MOUNT, 1)
    case["alert_rule_test"] = [
        {
            "eval_time": "50m",
            "alertname": "S3wsQuotaNearlyFull",
            "exp_alerts": [
                {
                    "exp_labels": labels,
                    "exp_annotations": {
                        "summary": "c1 of alice uses 85% of its quota",
                        "description": said,
                    },
                }
            ],
        }
    ]
    file = tmp_path / "case.yml"
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [case]}
    file.write_text(yaml.safe_dump(document))
    judged(promtool, "test", "rules", file)
