"""docs/metrics.md against the program: each metric and each alert, and nothing else."""

from __future__ import annotations

from typing import Any, Final

import yaml

from s3ws_fs.cli.metrics.families import FAMILIES
from s3ws_fs.cli.metrics.kinds import Family
from tests.docs.reading import ROOT, Document

PAGE: Final = Document("docs/metrics.md")
RULES: Final = ROOT / "packaging/prometheus/alerts.yml"


def _row(family: Family) -> list[str]:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    kind = f"{family.type}: {labels}" if labels else family.type
    return [
        f"`{family.exposed}`",
        kind + (" (of the host)" if family.is_of_host else ""),
        family.help,
    ]


def _alert(rule: dict[str, Any]) -> list[str]:
    lasting = f" for {rule['for']}" if "for" in rule else ""
    return [rule["alert"], rule["labels"]["severity"], f"`{rule['expr']}`{lasting}"]


def test_each_metric_has_its_row() -> None:
    rows = [cells for _, cells in PAGE.rows() if cells[0].startswith("`s3ws_")]
    assert rows == [_row(family) for family in FAMILIES.values()]


def test_each_alert_has_its_row() -> None:
    rows = [cells for _, cells in PAGE.rows() if cells[0].startswith("S3ws")]
    groups = yaml.safe_load(RULES.read_text())["groups"]
    assert rows == [_alert(rule) for group in groups for rule in group["rules"]]
