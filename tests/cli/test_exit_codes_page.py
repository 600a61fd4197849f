"""docs/exit-codes.md and the command's own help against core/errors.py, in both directions."""

from __future__ import annotations

import re
from typing import Final

from s3ws_fs.cli import cli
from s3ws_fs.core.errors import ExitCode
from tests.docs.reading import PAGES, Document

PAGE: Final = Document("docs/exit-codes.md")


def test_every_code_stands_there_once_with_its_name() -> None:
    rows = [(int(cells[0]), cells[1]) for _, cells in PAGE.rows()]
    assert rows == [(code.value, code.name) for code in sorted(ExitCode)]


def test_every_code_but_success_says_what_to_do() -> None:
    for where, (code, _name, meaning, remedy) in PAGE.rows():
        assert meaning, where
        assert remedy or int(code) in (ExitCode.OK, ExitCode.RESTART), where


def test_the_help_lists_every_code_of_a_command() -> None:
    listed = [int(n) for n in re.findall(r"^ +(\d+)  ", cli.epilog or "", re.M)]
    assert listed == sorted(code for code in ExitCode if code is not ExitCode.RESTART)


def test_no_document_speaks_of_another_code() -> None:
    known = {*ExitCode, 126, 127, 128, 130, 137, 141, 143}
    unknown = {
        f"{page.name}: {number}"
        for page in PAGES
        for number in re.findall(r"\b[Ee]xits?(?:ed)? (?:codes? )?(\d+)\b", page.text)
        if int(number) not in known
    }
    assert unknown == set()
