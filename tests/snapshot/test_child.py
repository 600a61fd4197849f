"""The child as a process: it does its job, and it ends, whatever happens to it or to us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.errors import FormatError, PermanentError, TransientError, UserError
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot import child
from tests.support.host import child_pids, wait_for_exit
from tests.transfer.conftest import PREFIX, write

Children = Callable[[], set[int]]

NAME = "backup-20260131T120000Z"


@pytest.fixture
def job(cache: Cache, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "bucket").mkdir()
    return {
        "kind": "backup",
        "cache_dir": str(cache.directory),
        "directory": str(cache.spool_dir),
        "store": {"type": "local", "path": str(tmp_path / "bucket")},
        "prefix": PREFIX,
        "name": NAME,
        "workspace": "w",
        "host": "here",
        "local": "",
        "exclude": "",
        "limit_bytes": 1 << 30,
        "offline": False,
    }


@pytest.fixture
def children() -> Children:
    """Children that came since the test began: a server of other tests is one, too."""
    before = set(child_pids(os.getpid()))
    return lambda: set(child_pids(os.getpid())) - before


class Run:
    """A job of a child, and what is heard of it."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.events: list[dict[str, Any]] = []
        self.checked = 0

    async def __call__(self) -> dict[str, Any]:
        def check() -> None:
            self.checked += 1

        return await child.run(self.job, self.events.append, reader_check=check)


async def test_a_job(cache: Cache, fs: FileSystem, job: dict[str, Any], children: Children) -> None:
    write(fs, b"file", b"x" * 100_000)
    run = Run(job)
    done = await run()
    assert done["entries"] == 2
    assert done["memory_bytes"] > 1 << 20
    assert run.events[0] == {"phase": "copying"}
    assert run.checked == 1
    assert sorted(path.name for path in cache.spool_dir.iterdir()) == [
        f"{NAME}.index.jsonl.gz",
        f"{NAME}.tar.gz",
    ]
    assert not children()


async def test_its_errors_are_its_own(cache: Cache, fs: FileSystem, job: dict[str, Any]) -> None:
    write(fs, b"file", b"x" * 100_000)
    with pytest.raises(UserError, match="do not fit"):
        await Run(job | {"limit_bytes": 10})()
    with pytest.raises(PermanentError, match="KeyError"):
        await Run({"kind": "nothing"})()
    assert list(cache.spool_dir.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_child_that_dies_or_stops(
    cache: Cache,
    fs: FileSystem,
    job: dict[str, Any],
    number: signal.Signals,
    children: Children,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the middle of its copy, it would pin the cache's pages for good."""
    write(fs, b"file", b"x" * 100_000)
    run = Run(job)
    monkeypatch.setattr(child, "COPY_SILENCE_S", 0.3)
    real = trio.lowlevel.open_process

    async def stopped(*args: Any, **kwargs: Any) -> trio.Process:
        process = await real(*args, **kwargs)
        os.kill(process.pid, number)
        return process

    monkeypatch.setattr(trio.lowlevel, "open_process", stopped)
    with pytest.raises(TransientError):
        await run()
    assert run.checked == 1
    assert not children()


async def test_a_cancelled_job_ends_its_child(
    cache: Cache, fs: FileSystem, job: dict[str, Any], children: Children
) -> None:
    write(fs, b"file", b"x")
    with trio.CancelScope() as scope:

        def cancel(_: dict[str, Any]) -> None:
            scope.cancel()

        await child.run(job, cancel, reader_check=lambda: None)
    assert scope.cancelled_caught
    assert not children()


def test_it_ends_with_its_parent() -> None:
    """The daemon is killed: its end of the pipe closes."""
    with subprocess.Popen(
        [sys.executable, "-m", "s3ws_fs.snapshot"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        fd = os.pidfd_open(process.pid)
        assert process.stdin is not None
        process.stdin.close()
        wait_for_exit(fd)
        os.close(fd)
        assert process.stdout is not None
        assert b"cut off" in process.stdout.read()


async def test_lines_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    monkeypatch.setattr(child, "LINE_BYTES_MAX", 10)
    await theirs.send_all(b'{"phase"' + b"x" * 10)
    with pytest.raises(FormatError, match="too long"):
        await child._hear(ours, lambda _: None)


@pytest.mark.parametrize(("form", "found"), [("text", "error snapshot: "), ("json", '{"time": ')])
def test_a_fault_of_ours_is_one_line_of_the_log(form: str, found: str) -> None:
    command = [sys.executable, "-m", "s3ws_fs.snapshot"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        # It ends with its parent, so its input stays open until it has said what it says.
        process.stdin.write(f'{{"kind": "nonsense", "log_format": "{form}"}}\n')
        process.stdin.flush()
        [line] = process.stderr.read().splitlines()
    assert found in line
    assert "nonsense failed" in line
    assert "KeyError" in line
