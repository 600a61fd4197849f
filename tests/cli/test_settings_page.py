"""docs/settings.md against the code: each variable, flag, default and limit, and nothing else."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Iterator
from typing import Any, Final, Literal, get_args, get_origin

import pytest

from s3ws_fs.settings import OPTIONS, Settings
from tests.docs.reading import PAGES, ROOT, Document, code_of
from tests.docs.words import all_commands

PAGE: Final = Document("docs/settings.md")
ROWS: Final = {
    name: (where, cells)
    for where, cells in PAGE.rows()
    if len(cells) == 5
    for name, option in OPTIONS.items()
    if f"`{option.variable}`" in cells[0]
}
IN_WORDS: Final = {
    "storage_type", "storage_path", "user_id", "conversation_id", "cache_dir", "runtime_dir",
    "root_uid", "root_gid", "endpoint_url", "region", "ca_bundle",
}  # fmt: skip
"""Defaults that depend on who asks and where: the page says it in words."""

VARIABLE: Final = re.compile(r"(?:WORKSPACE|S3WS|FILE_STORE|AWS_S3)(?:_[A-Z0-9]+)*")
OURS: Final = re.compile(r"\b(?:WORKSPACE_|S3WS_|FILE_STORE|AWS_S3_)[A-Z0-9_]*[A-Z0-9]\b")


def strings_of_the_code() -> Iterator[tuple[str, str]]:
    """Every string of the package and of what is packaged with it, with its file."""
    for top in ("s3ws_fs", "packaging"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield path.relative_to(ROOT).as_posix(), node.value


def variables_of_the_code() -> set[str]:
    """Those that are nothing but the name of a variable of ours."""
    return {text for _, text in strings_of_the_code() if VARIABLE.fullmatch(text)}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_setting_stands_there_as_it_is(name: str) -> None:
    assert name in ROWS, f"docs/settings.md has no row for {OPTIONS[name].variable}"
    where, (variables, flag, default, values, meaning) = ROWS[name]
    assert code_of(variables) == list(OPTIONS[name].variables), where
    (parameter,) = (p for p in all_commands()["mount"].params if p.name == name)
    assert code_of(flag) == parameter.opts, where
    assert values, where
    assert meaning, where
    field = Settings.model_fields[name]
    if name in IN_WORDS:
        assert field.is_required() or field.default is None
    else:
        assert default == _shown(name, field.default), where
    if limits := _limits(field.annotation, field.metadata):
        assert values == limits, where


def test_there_is_no_row_without_a_setting() -> None:
    rows = [cells[0] for _, cells in PAGE.rows() if len(cells) == 5]
    assert len(rows) == len(OPTIONS)


def test_every_variable_that_the_program_reads_stands_there() -> None:
    missing = {name for name in variables_of_the_code() if f"`{name}`" not in PAGE.text}
    assert missing == set(), "docs/settings.md: a row of the last table, please"


def test_no_document_names_a_variable_that_nobody_reads() -> None:
    known = variables_of_the_code() | {v for o in OPTIONS.values() for v in o.variables}
    # Of the tests alone, and said so where they stand.
    known |= set(re.findall(r"S3WS_TEST_[A-Z_]+", _of_the_tests()))
    unknown = {
        f"{page.name}: {name}"
        for page in PAGES
        for name in OURS.findall(page.text)
        if name not in known and not any(other.startswith(f"{name}_") for other in known)
    }
    assert unknown == set()


def test_what_a_person_is_told_to_set_can_be_set() -> None:
    known = variables_of_the_code() | {v for o in OPTIONS.values() for v in o.variables}
    unknown = {
        f"{path}: {name}"
        for path, text in strings_of_the_code()
        for name in OURS.findall(text)
        if name not in known and not any(other.startswith(f"{name}_") for other in known)
    }
    assert unknown == set()


def _of_the_tests() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))


def _shown(name: str, default: Any) -> str:
    if name == "root_mode":
        return f"{default:o}"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str | tuple):
        return f"`{default}`" if default else ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def _limits(annotation: Any, metadata: list[Any]) -> str:
    if isinstance(annotation, types.UnionType):
        return ""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if annotation is bool:
        return "true, false"
    low = next((m.ge for m in metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in metadata if hasattr(m, "le")), None)
    if low is None or high is None or (low, high) == (0, 0o7777):
        return ""
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
