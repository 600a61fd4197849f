"""The examples of docs/semantics.md, run: each `console` block in an empty directory on a mount.

A line that starts with "$ " is a command, lines that start with "> " go on with it, and what
follows up to the next command is its output, standard error included, compared literally.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support.mounting import (
    REPOSITORY,
    Workspace,
    mounted_workspace,
    workspace_config,
)

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

DOCUMENT: Final = REPOSITORY / "docs" / "semantics.md"
QUOTA_BYTES: Final = 64 << 20
"""What the document says that its examples ran with."""

EXAMPLE_S_MAX: Final = 60.0

_BLOCK: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """A command and what it prints."""

    command: str
    output: str


class Example(NamedTuple):
    """One block; `line` is where it stands in the document."""

    line: int
    steps: list[Step]


def examples(text: str) -> list[Example]:
    """All console blocks. Raises ValueError for one that does not begin with a command."""
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        steps: list[Step] = []
        for row in match[1].splitlines():
            if row.startswith("$ "):
                steps.append(Step(row[2:], ""))
            elif not steps:
                raise ValueError(f"line {line}: the block does not begin with a command")
            elif row.startswith("> ") and not steps[-1].output:
                steps[-1] = Step(f"{steps[-1].command}\n{row[2:]}", "")
            else:
                steps[-1] = Step(steps[-1].command, f"{steps[-1].output}{row}\n")
        found.append(Example(line, steps))
    return found


def run(example: Example, directory: Path) -> list[Step]:
    """The commands, one after the other in one shell, with what each really printed."""
    mark = f"--- {secrets.token_hex(8)} ---"
    python = Path(sys.executable).parent
    script = "".join(f"{step.command}\nprintf '%s\\n' '{mark}'\n" for step in example.steps)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", script],
        cwd=directory,
        env={
            "PATH": f"{python}:{os.environ.get('PATH', os.defpath)}",
            "LC_ALL": "C",
            "HOME": str(directory),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        timeout=EXAMPLE_S_MAX,
        check=False,
    )
    outputs = done.stdout.split(f"{mark}\n")
    commands = [step.command for step in example.steps]
    return [Step(*pair) for pair in zip(commands, outputs, strict=False)]


EXAMPLES: Final = examples(DOCUMENT.read_text())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    config = workspace_config(tmp_path_factory.mktemp("examples"), max_size_bytes=QUOTA_BYTES)
    with mounted_workspace(config) as mounted:
        yield mounted


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"line{example.line}")
def test_an_example(workspace: Workspace, example: Example) -> None:
    directory = workspace.mountpoint / f"example-{example.line}"
    directory.mkdir()
    assert run(example, directory) == example.steps


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 10


def test_the_runner_tells_a_wrong_example(tmp_path: Path) -> None:
    text = "x\n```console\n$ echo a; cd /\n$ pwd\n> echo b\n/\nc\n$ cat none\n```\n"
    (example,) = examples(text)
    assert example.line == 2
    assert example.steps[1] == Step("pwd\necho b", "/\nc\n")
    said = run(example, tmp_path)
    assert said[0] == Step("echo a; cd /", "a\n")
    assert said[1] == Step("pwd\necho b", "/\nb\n")
    assert said[2].output == "cat: none: No such file or directory\n"
    with pytest.raises(ValueError, match="line 1"):
        examples("```console\nno command\n```\n")
