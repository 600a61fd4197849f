"""Running git on what nobody trusts: a repository of our own making, and nothing else around it.

Invariants
1. git sees the repository given by `--git-dir` only, made by `shadow`: its configuration and its
   HEAD are ours, and no file of the workspace's repository is a configuration, a hook or a program.
2. No configuration of the system or of a user, no hook, no fsmonitor, no credential helper, no
   editor, no prompt, no network: by the environment and by `-c`, which outranks every file.
3. The environment is made here, not inherited: no secret of ours reaches git.
4. Every run ends: by itself, by its limits of time, memory and output, or by SIGKILL to its group;
   and the kernel ends it when the process that started it dies.

Called by snapshot.git.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from s3ws_fs.core.errors import S3wsError

RUN_S_MAX: Final = 300.0
"""How long one run of git may take."""
MEMORY_BYTES_MAX: Final = 4 << 30
"""Address space of a git: it maps packs by windows, which `core.packedGitLimit` bounds."""
OUTPUT_BYTES_MAX: Final = 512 << 20
"""Of a run whose output is read."""
FILE_BYTES_MAX: Final = 8 << 30
"""Largest file that a git may write: a bundle's pack."""
ERROR_CHARS_MAX: Final = 300
PIECE_BYTES: Final = 1 << 20

CONFIG: Final = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.untrackedCache": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.protectNTFS": "false",
    "core.protectHFS": "false",
    "core.bigFileThreshold": "8m",
    "core.packedGitWindowSize": "32m",
    "core.packedGitLimit": "512m",
    "core.deltaBaseCacheLimit": "32m",
    "core.commitGraph": "false",
    "core.multiPackIndex": "false",
    "core.pager": "cat",
    "core.logAllRefUpdates": "false",
    "credential.helper": "",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "pack.threads": "1",
    "pack.window": "3",
    "pack.windowMemory": "64m",
    "pack.useBitmaps": "false",
    "protocol.allow": "never",
    "safe.directory": "*",
    "submodule.recurse": "false",
    "uploadpack.packObjectsHook": "",
}


class GitError(S3wsError):
    """git failed on a repository, or there is no git. The text is for people."""


def git_program() -> str:
    """Where git is. Raises GitError."""
    found = shutil.which("git")
    if found is None:
        raise GitError("git is not installed on this machine")
    return found


class Git:
    """git over one git directory of ours; `scratch` is its home."""

    def __init__(
        self,
        git_dir: Path,
        scratch: Path,
        *,
        objects: Path | None = None,
        work_tree: Path | None = None,
        run_s_max: float = RUN_S_MAX,
    ) -> None:
        """`objects`: where new objects go; those of `git_dir` are read, too."""
        self._git_dir = git_dir
        self._scratch = scratch
        self._run_s_max = run_s_max
        self._env = _environment(scratch)
        if objects is not None:
            self._env["GIT_OBJECT_DIRECTORY"] = str(objects)
            self._env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = str(git_dir / "objects")
        self._work_tree = work_tree

    def run(
        self,
        *words: str,
        stdin: bytes | IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        env: dict[str, str] | None = None,
        ok: tuple[int, ...] = (0,),
        writes_objects: bool = False,
    ) -> bytes:
        """Run git to its end; what it said, unless that goes to the file `stdout`.

        `writes_objects`: it makes a pack, not only text.

        Raises GitError for another status than `ok`, and when a limit is met.
        """
        with (
            tempfile.TemporaryFile(dir=self._scratch) as said,
            tempfile.TemporaryFile(dir=self._scratch) as errors,
            tempfile.TemporaryFile(dir=self._scratch) as asked,
        ):
            if isinstance(stdin, bytes):
                asked.write(stdin)
                asked.seek(0)
            source: IO[bytes] | int = (
                asked if isinstance(stdin, bytes) else stdin or subprocess.DEVNULL
            )
            target = said if stdout is None else stdout
            is_large = writes_objects or stdout is not None
            limit = FILE_BYTES_MAX if is_large else OUTPUT_BYTES_MAX
            process = self._start(words, source, target, errors, env or {}, limit)
            status = self._wait(process)
            if status not in ok:
                raise GitError(f"git {words[0]}: {_complaint(errors, status)}")
            said.seek(0)
            return said.read()

    def converse(self, *words: str) -> Conversation:
        """Start a git that answers what it is asked, one after the other."""
        return Conversation(
            self._start(words, subprocess.PIPE, subprocess.PIPE, subprocess.DEVNULL, {}, 0)
        )

    def _start(
        self,
        words: tuple[str, ...],
        source: IO[bytes] | int,
        target: IO[bytes] | int,
        errors: IO[bytes] | int,
        env: dict[str, str],
        limit: int,
    ) -> subprocess.Popen[bytes]:
        command = [git_program(), f"--git-dir={self._git_dir}"]
        if self._work_tree is not None:
            command.append(f"--work-tree={self._work_tree}")
        for name, value in CONFIG.items():
            command += ["-c", f"{name}={value}"]
        try:
            process = subprocess.Popen(
                [*command, *words],
                stdin=source,
                stdout=target,
                stderr=errors,
                cwd=self._work_tree or self._scratch,
                env={**self._env, **env},
                start_new_session=True,
                preexec_fn=functools.partial(_before_git, limit),
            )
        except OSError as exc:
            raise GitError(f"git can't be run: {exc.strerror}") from exc
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(self._run_s_max)
        except BaseException as exc:
            # Also when we are ended ourselves: nothing of it stays behind.
            end(process)
            if isinstance(exc, subprocess.TimeoutExpired):
                raise GitError(f"git did not end within {self._run_s_max:g} s") from None
            raise


def end(process: subprocess.Popen[bytes]) -> None:
    """End a git and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Conversation:
    """A `git cat-file --batch` that is asked for one object after the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ask(self, name: str) -> Iterator[bytes]:
        """An object's content in pieces, the first of which is its type and size in words.

        Raises GitError. All of it must be taken before the next is asked for.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(name.encode() + b"\n")
            stdin.flush()
        except OSError as exc:
            raise GitError(f"git ended: {exc.strerror}") from exc
        words = stdout.readline(256).split()
        if len(words) != 3:
            raise GitError(f"{name}: the object is missing or damaged")
        yield b" ".join(words[1:])
        left = int(words[2])
        while left:
            piece = stdout.read(min(left, PIECE_BYTES))
            if not piece:
                raise GitError(f"{name}: the object is damaged")
            left -= len(piece)
            yield piece
        stdout.read(1)

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        end(self._process)


_PR_SET_PDEATHSIG: Final = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def _before_git(file_bytes: int) -> None:
    """In the new process, before it is git: limits set later would miss what git starts at once.

    That of memory comes last: this process may have more than that mapped.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))


def _environment(scratch: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(scratch),
        "XDG_CONFIG_HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "SSH_ASKPASS": "false",
        "GIT_SSH_COMMAND": "false",
        "GIT_EDITOR": "false",
        "GIT_PAGER": "cat",
        "GIT_ALLOW_PROTOCOL": "",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_CEILING_DIRECTORIES": str(scratch),
        "GIT_ADVICE": "0",
    }


def _complaint(errors: IO[bytes], status: int) -> str:
    """The first line that says what is wrong, or how it ended."""
    errors.seek(0)
    lines = errors.read(64 << 10).decode(errors="replace").splitlines()
    for start in ("fatal:", "error:", ""):
        for line in lines:
            if line.startswith(start) and line.strip():
                text = line.removeprefix(start).strip()
                return "".join(c if c.isprintable() else "?" for c in text)[:ERROR_CHARS_MAX]
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-status).name}"
    return f"exit status {status}"


def lines_of(items: Iterable[str]) -> bytes:
    """Names for a git's standard input, one a line."""
    return b"".join(item.encode() + b"\n" for item in items)
