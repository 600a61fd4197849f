"""Pages that describe the inside, against the inside: layers, format, the figures of outages."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from s3ws_fs.core import backoff, journal, layout
from s3ws_fs.core.limits import EXTENT_BYTES, FORMAT_VERSION
from s3ws_fs.core.types import BLOB_BIT
from s3ws_fs.replica import final
from s3ws_fs.settings import Settings
from s3ws_fs.store import s3_client, s3_http
from s3ws_fs.transfer import client, mirror
from tests.docs.reading import ROOT, Document, code_of

ARCHITECTURE: Final = Document("docs/architecture.md")
FORMAT: Final = Document("docs/format.md")
OUTAGES: Final = Document("docs/outages.md")


def test_the_layers_are_those_that_are_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (checked,) = (each["layers"] for each in contracts if each["id"] == "layers")
    (drawn,) = (b.text for b in ARCHITECTURE.blocks() if re.search("^core", b.text, re.M))
    assert drawn.split("\n")[:-1] == [re.sub("[()]", "", layer) for layer in checked]


def test_every_part_has_its_line_and_no_other_has() -> None:
    package = ROOT / "s3ws_fs"
    parts = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    parts |= {path.stem for path in package.glob("[a-z]*.py")}
    named = {
        name.rstrip("/")
        for _, cells in ARCHITECTURE.rows()
        if len(cells) == 3
        for name in code_of(cells[0])
    }
    assert named == parts


def test_every_key_in_the_bucket_is_specified() -> None:
    keys = {
        value
        for name, value in vars(layout).items()
        if name.endswith(("_KEY", "_PREFIX")) and isinstance(value, str)
    }
    assert len(keys) >= 11
    table = " ".join(code for _, cells in FORMAT.rows() for code in code_of(cells[0]))
    assert {key for key in keys if key not in table} == set()


def test_every_field_of_a_header_is_specified() -> None:
    fields = {field.name for field in dataclasses.fields(journal.Header)}
    named = {code for _, cells in FORMAT.rows() for code in code_of(cells[0])}
    assert fields - named == set()


def test_figures_of_the_format() -> None:
    assert f"`extent_bytes` ({EXTENT_BYTES})" in FORMAT.text
    assert f"`format` ({FORMAT_VERSION})" in FORMAT.text
    assert BLOB_BIT == 1 << 63  # "with the top bit"


POLICY: Final = s3_client.RetryPolicy()


@pytest.mark.parametrize(
    ("what", "figure"),
    [
        ("connect", f"{s3_http.CONNECT_TIMEOUT_S:g} s, {s3_http.READ_TIMEOUT_S:g} s"),
        ("attempts of one request", f"{s3_client.ATTEMPTS_MAX}, all ours"),
        ("for ever", f"fails after at most {POLICY.silence_s:g} s"),
        ("between flushes", f"{backoff.RETRY_MIN_S:g} s doubling to **{backoff.RETRY_MAX_S:g} s**"),
        ("transient failures", f"{mirror.TRANSIENT_STOP}"),
        ("final flush", f"{final.FINAL_SILENCE_S:g} s; failed flushes that end it: "
                        f"{final.FINAL_TRIES}"),
        ("ping", f"ended after {client.STUCK_S:g} s"),
        ("cold bytes", f"({Settings.model_fields['read_timeout_s'].default:g} s), then EIO"),
        ("on the wire", f"({Settings.model_fields['max_parallel'].default})"),
    ],
)  # fmt: skip
def test_a_figure_of_outages_is_the_codes(what: str, figure: str) -> None:
    (row,) = [cells for _, cells in OUTAGES.rows() if what in cells[0] and len(cells) == 3]
    assert figure in row[1]


def test_the_changelog_is_of_this_version() -> None:
    import s3ws_fs

    text = Path(ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(s3ws_fs.__version__)} ", text, re.M)


def test_numbers_of_decisions_are_given_once() -> None:
    names = sorted(path.name for path in (ROOT / "docs/decisions").glob("*.md"))
    assert len({name[:4] for name in names}) == len(names), names
    for name in names:
        head = (ROOT / "docs/decisions" / name).read_text().partition("\n")[0]
        assert re.match(rf"# (?:Decision )?{name[:4]}\b", head), name
