"""The bucket's credentials are where they are needed, and nowhere else."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from s3ws_fs.fuse import mount as fuse_mount
from s3ws_fs.launch import preflight
from s3ws_fs.transfer import client
from tests.support.buckets import S3Bucket
from tests.support.host import Host, HostMaker
from tests.support.mounting import REPOSITORY
from tests.support.seaweed import SECRET_KEY

MARK = "planted-secret-6f1c2a"
"""What nobody may ever find again."""


def processes(host: Host) -> dict[str, int]:
    """Holder, daemon and worker of a mount."""
    status = host.now()
    info = host.info()
    assert info is not None
    found = {"daemon": info.pid, "worker": status["worker_pid"]}
    if info.holder_pid is not None:
        found["holder"] = info.holder_pid
    return {name: pid for name, pid in found.items() if pid is not None}


def files_with(top: Path, secrets: tuple[str, ...]) -> Iterator[Path]:
    """Files below `top` that hold one of them."""
    for directory, _, names in os.walk(top):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and any(s.encode() in path.read_bytes() for s in secrets):
                yield path


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.s3
def test_a_whole_life_leaves_the_secret_nowhere(
    s3_bucket: S3Bucket, new_host: HostMaker, tmp_path: Path
) -> None:
    host = new_host(s3_bucket)
    host.settings["WORKSPACE_LOG_LEVEL"] = "debug"
    assert host.settings["AWS_SECRET_ACCESS_KEY"] == SECRET_KEY
    said = [host.s3ws("mount", host.mountpoint)]
    (host.mountpoint / "file").write_bytes(b"x" * 100_000)
    said.append(host.s3ws("sync", "--json", host.mountpoint))
    # The worker of an idle mount ends soon, so it is looked at first.
    running = processes(host)
    assert {"daemon", "worker"} <= set(running)
    for name, pid in running.items():
        for what in ("cmdline", "comm", "status", "maps"):
            text = Path(f"/proc/{pid}/{what}").read_bytes()
            assert SECRET_KEY.encode() not in text, f"{what} of the {name}"
    core = Path(f"/proc/{running['daemon']}/limits").read_text()
    assert [line.split()[4:6] for line in core.splitlines() if "core file" in line] == [["1", "1"]]
    said += [
        host.s3ws(*words, host.mountpoint)
        for words in (("status",), ("status", "--json"), ("check", "--bucket"))
    ]
    host.umount()
    for done in said:
        assert SECRET_KEY not in done.stdout + done.stderr
    assert list(files_with(host.base, (SECRET_KEY,))) == []
    for key in s3_bucket.listing(host.prefix):
        seen = s3_bucket.get(key)
        assert SECRET_KEY.encode() not in seen.body + repr(seen.metadata).encode(), key


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.s3
def test_a_refused_secret_is_not_repeated(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    host = new_host(s3_bucket)
    host.settings |= {
        "AWS_SECRET_ACCESS_KEY": MARK,
        "AWS_SESSION_TOKEN": MARK + "-token",
        "S3WS_DEBUG": "1",
        "WORKSPACE_LOG_LEVEL": "debug",
    }
    for words in (("mount", host.mountpoint), ("mount", host.mountpoint, "--json")):
        done = host.s3ws(*words, ok=ExitCode.STORE)
        assert MARK not in done.stdout + done.stderr
    assert list(files_with(host.base, (MARK,))) == []
    host.settings["AWS_ENDPOINT_URL_S3"] = f"http://key:{MARK}@127.0.0.1:1/"
    done = host.s3ws("mount", host.mountpoint, ok=ExitCode.BAD_SETTINGS)
    assert MARK not in done.stdout + done.stderr


def test_an_internal_error_shows_no_environment(tmp_path: Path) -> None:
    """What the command writes about a fault of its own holds no values."""
    program = (
        "from s3ws_fs.cli import report\n"
        "try:\n raise RuntimeError('a fault')\n"
        "except RuntimeError as exc:\n report.report_unexpected(exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path), "AWS_SECRET_ACCESS_KEY": MARK},
        capture_output=True,
        text=True,
        check=True,
    )
    (report,) = tmp_path.iterdir()
    assert report.stat().st_mode & 0o777 == 0o600
    assert "a fault" in report.read_text()
    assert MARK not in report.read_text() + done.stderr


def test_only_workers_get_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_withheld", {})
    for name in client.CREDENTIALS:
        monkeypatch.setenv(name, MARK)
    monkeypatch.setenv("AWS_REGION", "here")
    client.withhold_credentials()
    env = dict(os.environ)
    assert MARK not in env.values()
    assert env["AWS_REGION"] == "here"
    assert set(client._withheld) == set(client.CREDENTIALS)
    # Seen by a real child, not by this mapping alone: os.environ is the C library's.
    seen = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert MARK not in seen
    client.withhold_credentials()
    assert set(client._withheld) == set(client.CREDENTIALS), "a second time takes nothing away"


def test_fusermount_gets_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The program that unmounts for a user is setuid root, and knows nothing of ours."""
    seen = tmp_path / "seen"
    shim = tmp_path / "fusermount3"
    shim.write_text(f"#!/bin/sh\nenv >> {seen}\nexit 1\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", MARK)

    class Refusing:
        """umount2(2) as a user without rights gets it."""

        def umount2(self, path: bytes, flags: int) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing())
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EPERM)
    preflight._detach(str(tmp_path))
    monkeypatch.setattr(fuse_mount, "_libc", Refusing())
    monkeypatch.setattr(fuse_mount.Mount, "stands", lambda self: True)
    with pytest.raises(OSError, match="fusermount3"):
        fuse_mount._umount(fuse_mount.Mount(str(tmp_path), 1), 0)
    text = seen.read_text()
    assert text.count("PATH=") == 2
    assert MARK not in text
    assert "AWS_" not in text


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.s3
def test_a_crash_leaves_no_core_file(
    s3_bucket: S3Bucket, new_host: HostMaker, tmp_path: Path
) -> None:
    """Even where the person's limit allows one."""
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    host = new_host(s3_bucket)
    host.mount()
    limits = [
        Path(f"/proc/{pid}/limits").read_text()
        for name, pid in processes(host).items()
        if name != "holder"
    ]
    for text in limits:
        (line,) = (line for line in text.splitlines() if "core file" in line)
        assert line.split()[4:6] == ["1", "1"]
    host.signal_and_wait(signal.SIGTERM)
