"""The examples of docs/semantics.md, run: each `console` block in an empty directory on a mount.

What they print, standard error included, is compared literally (tests/docs/shell.py reads them).
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.reading import Block, Document
from tests.docs.shell import Step, of_console
from tests.support.mounting import (
    Workspace,
    mounted_workspace,
    workspace_config,
)

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

QUOTA_BYTES: Final = 64 << 20
"""What the document says that its examples ran with."""

EXAMPLE_S_MAX: Final = 60.0

BLOCKS: Final = [b for b in Document("docs/semantics.md").blocks() if b.language == "console"]


def run(example: list[Step], directory: Path) -> list[str]:
    """The commands, one after the other in one shell: what each really printed."""
    mark = f"--- {secrets.token_hex(8)} ---"
    python = Path(sys.executable).parent
    script = "".join(f"{step.command}\nprintf '%s\\n' '{mark}'\n" for step in example)
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
    return done.stdout.split(f"{mark}\n")[: len(example)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    config = workspace_config(tmp_path_factory.mktemp("examples"), max_size_bytes=QUOTA_BYTES)
    with mounted_workspace(config) as mounted:
        yield mounted


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line{block.line}")
def test_an_example(workspace: Workspace, block: Block) -> None:
    directory = workspace.mountpoint / f"example-{block.line}"
    directory.mkdir()
    example = of_console(block)
    printed = run(example, directory)
    assert [*zip(example, printed, strict=True)] == [(step, step.output) for step in example]


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 10


def test_the_runner_tells_a_wrong_example(tmp_path: Path) -> None:
    text = "$ echo a; cd /\n$ pwd\n> echo b\n/\nc\n$ cat none\n"
    example = of_console(Block("d", 2, "console", text))
    assert example[1] == Step("d:3", "pwd\necho b", "/\nc\n")
    said = run(example, tmp_path)
    assert said == ["a\n", "/\nb\n", "cat: none: No such file or directory\n"]
    with pytest.raises(ValueError, match="d:1"):
        of_console(Block("d", 1, "console", "no command\n"))
