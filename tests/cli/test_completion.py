"""Completion in real shells: what a person gets who presses the tab key.

bash and zsh are interactive, on a pseudo terminal; fish says what it would offer.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from scripts.manual import COMPLETION
from tests.docs.reading import ROOT
from tests.docs.words import all_commands
from tests.support.tools import need, need_terminal

ANSWER_S_MAX: Final = 60.0
PROMPT: Final = "ready> "
ESCAPES: Final = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[=>]|\][^\x07]*\x07)|\x07|\r")


class Terminal:
    """An interactive shell. `screen` is what it wrote, without what only moves or colours."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path) -> None:
        self._fd, theirs = pty.openpty()
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=cwd,
            start_new_session=True, preexec_fn=lambda: os.close(self._fd),
        )  # fmt: skip
        os.close(theirs)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, *words: str) -> str:
        """What came since the last wait, once all the words are in it."""
        deadline = time.monotonic() + ANSWER_S_MAX
        while not all(word in self.screen for word in words):
            ready, _, _ = select.select([self._fd], [], [], deadline - time.monotonic())
            assert ready, f"never seen: {words}, but {self.screen!r}"
            self.screen += ESCAPES.sub("", os.read(self._fd, 1 << 16).decode(errors="replace"))
        seen, self.screen = self.screen, ""
        return seen

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._fd)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home with nothing in it, and our command first in the path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    command = programs / "s3ws"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m s3ws_fs "$@"\n')
    command.chmod(0o755)
    (tmp_path / "workspace").mkdir()
    return {
        "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "200",
    }


@pytest.fixture
def shell(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    need_terminal()
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> Terminal:
            need(command[0])
            terminal = Terminal(list(command), env, tmp_path)
            stack.callback(terminal.end)
            return terminal

        yield start


def set_up(terminal: Terminal, prompt: str, line: str) -> None:
    """The prompt first, so that it is known when the line is done."""
    terminal.type(f"{prompt}\n")
    terminal.wait_for(f"\n{PROMPT}")
    terminal.type(f"{line}\n")
    terminal.wait_for(PROMPT)


def complete_in(terminal: Terminal) -> None:
    """The same keys in bash and in zsh."""
    terminal.type("s3ws umo\t")
    terminal.wait_for("umount ")
    terminal.type("work\t")
    terminal.wait_for("workspace/")
    terminal.type("\x15s3ws turn \t\t")
    terminal.wait_for("begin", "end")
    terminal.type("\x15s3ws mount --outside-changes buc\t")
    terminal.wait_for("bucket-wins")
    terminal.type("\x15s3ws restore-backup --tru\t")
    terminal.wait_for("--trust")


@pytest.mark.slow
@pytest.mark.parametrize("is_file", [True, False], ids=["installed", "eval"])
def test_bash(shell: Callable[..., Terminal], is_file: bool) -> None:
    terminal = shell("bash", "--noprofile", "--norc", "-i")
    line = 'eval "$(_S3WS_COMPLETE=bash_source s3ws)"'
    if is_file:
        line = f". {shlex.quote(str(COMPLETION['bash']))}"
    set_up(terminal, f"bind 'set enable-bracketed-paste off'; PS1={PROMPT!r}", line)
    if is_file:
        complete_in(terminal)
    else:
        terminal.type("s3ws umo\t")
        terminal.wait_for("umount ")


def test_zsh(shell: Callable[..., Terminal]) -> None:
    terminal = shell("zsh", "-f", "-i")
    set_up(
        terminal,
        f"unsetopt zle_bracketed_paste prompt_sp; PS1={PROMPT!r}; RPS1=",
        f"fpath=({shlex.quote(str(COMPLETION['zsh'].parent))} $fpath); "
        "autoload -Uz compinit && compinit -D -u",
    )
    complete_in(terminal)


def test_fish(env: dict[str, str], tmp_path: Path) -> None:
    need("fish")

    def offered(line: str) -> set[str]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", 'source $argv[1]; complete -C "$argv[2]"',
             str(COMPLETION["fish"]), line],
            env=env, cwd=tmp_path, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=ANSWER_S_MAX, check=True,
        )  # fmt: skip
        return {row.partition("\t")[0] for row in done.stdout.splitlines()}

    assert offered("s3ws ") >= {path.split()[0] for path in all_commands()}
    assert offered("s3ws umo") == {"umount"}
    assert offered("s3ws turn ") == {"begin", "end"}
    assert offered("s3ws mount --outside-changes buc") == {"bucket-wins"}
    assert "workspace/" in offered("s3ws umount wor")
