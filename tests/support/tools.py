"""Programs that tests run: which of them are there, scripts of them, and those in the background.

Invariants
1. A missing program is a skip that says its name, never a silent pass.
2. What `background` started has ended when its block is left, whatever happened.

Called by the tests of e2e.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, trees

END_S_MAX: Final = 30.0

CHANGES_WITH_THE_CLOCK: Final = (*trees.OTHER_FILESYSTEM, "mtime_ns")
"""Fields that differ when the same was done in two directories, one after the other."""

_ENV: Final = {"LC_ALL": "C", "TZ": "UTC"}


def need(*names: str) -> None:
    """Skip the test unless all these programs are there."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def need_terminal() -> None:
    """Skip the test where no pseudo terminal can be opened (a chroot without /dev/pts)."""
    try:
        for fd in os.openpty():
            os.close(fd)
    except OSError as exc:
        pytest.skip(f"no pseudo terminal: {exc.strerror}")


def shell(script: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a bash script to its end; what it printed. AssertionError at its first failure."""
    return programs.run(
        "bash", "-euo", "pipefail", "-c", script, cwd=cwd, env={**_ENV, **(env or {})}
    )


def same_in_both(
    script: str,
    here: Path,
    native: Path,
    *,
    env: Mapping[str, str] | None = None,
    ignore: Collection[str] = CHANGES_WITH_THE_CLOCK,
    apart: Collection[bytes] = (),
) -> str:
    """Run the script in both directories: it must print the same and leave the same tree.

    `apart`: names anywhere in the trees whose content is the clock's or the process's.
    Returns what it printed.
    """
    wanted = shell(script, native, env)
    printed = shell(script, here, env)
    assert printed == wanted
    pair = [_without(trees.manifest(top), apart) for top in (native, here)]
    found = trees.differences(*pair, ignore=ignore)
    assert not found, "\n".join(found[:30])
    return printed


def _without(manifest: trees.Manifest, names: Collection[bytes]) -> trees.Manifest:
    return {path: node for path, node in manifest.items() if not set(path.split(b"/")) & set(names)}


@contextlib.contextmanager
def background(
    *command: str | os.PathLike[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: int | None = subprocess.PIPE,
) -> Iterator[subprocess.Popen[str]]:
    """A program with its standard streams as pipes, killed at the end with all it started."""
    process = subprocess.Popen(
        [os.fspath(word) for word in command],
        cwd=cwd,
        env={**os.environ, **programs.GIT_ENV, **_ENV, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def python(program: str, *arguments: str | os.PathLike[str]) -> list[str]:
    """The command that runs a Python program given as text."""
    return [sys.executable, "-I", "-c", program, *(os.fspath(word) for word in arguments)]


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a background program to end by itself with status 0; what it printed."""
    out, err = process.communicate(timeout=END_S_MAX)
    assert process.returncode == 0, f"exit status {process.returncode}\n{out}\n{err}"
    return out or ""
