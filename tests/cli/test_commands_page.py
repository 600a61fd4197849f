"""docs/commands.md and the manual page against the commands: each one, and no other."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Final

import pytest

from scripts import manual
from tests.docs.reading import Document, code_of
from tests.docs.words import all_commands

COMMANDS: Final = Document("docs/commands.md")


def test_the_page_has_each_command_and_no_other() -> None:
    """That there is no other, and no other option, is said by tests/docs/test_words.py."""
    codes = [code.replace("\\|", "|") for _, cells in COMMANDS.rows() for code in code_of(cells[0])]
    missing = {
        name
        for name in all_commands()
        if not any(re.match(rf"s3ws {_alternatives(name)}(?:\s|$)", code) for code in codes)
    }
    assert missing == set(), "docs/commands.md: a row for each, please"


def _alternatives(name: str) -> str:
    """`turn begin` also fits `turn begin|end`."""
    return " ".join(rf"(?:[a-z|-]*\|)?{re.escape(word)}(?:\|[a-z|-]*)?" for word in name.split())


def test_the_manual_page_is_of_these_commands() -> None:
    assert manual.PAGE.read_text() == manual.page(), "run `make manual`, and commit what it wrote"


def test_the_manual_page_has_every_command_option_setting_and_code() -> None:
    text = manual.page().replace("\\-", "-")
    for path, command in all_commands().items():
        assert f".SS s3ws {path}\n" in text
        assert command.help, path
    assert text.count("\n.B ") >= 19


@pytest.mark.parametrize("shell", manual.COMPLETION)
def test_the_completion_is_clicks(shell: str) -> None:
    wanted = manual.completion(shell)
    assert "s3ws" in wanted
    assert manual.COMPLETION[shell].read_text() == wanted, "run `make manual`, and commit"


@pytest.mark.parametrize(
    "command",
    [
        ("mandoc", "-T", "lint", "-W", "warning", str(manual.PAGE)),
        ("man", "--warnings", "-E", "UTF-8", "-l", str(manual.PAGE)),
    ],
    ids=lambda command: command[0],
)
def test_the_manual_page_is_sound(command: tuple[str, ...]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"not installed: {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    complaints = done.stderr + (done.stdout if command[0] == "mandoc" else "")
    if "minimized" in done.stdout[:2000]:
        pytest.skip("man is a stub on this system")
    assert complaints == ""
    assert done.returncode == 0


def test_text_is_no_request_of_the_formatter() -> None:
    assert manual._text(".x `a-b` \\ …") == "\\&.x \\fBa\\-b\\fR \\e \\[u2026]"
    assert manual._text("'tis") == "\\&'tis"
