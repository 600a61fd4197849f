"""Peers are mounted, started cold and taken away again, also when they fail; none has to be here.

No assertion here is about time.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import peers, processes, runner
from bench.ground import Backing, Ground, ScenarioError, Target, UnavailableError
from bench.peers import PEERS, JuiceFs, Peer, Rclone, S3fs, found
from bench.processes import is_mounted, usage
from bench.proxy import Counts
from bench.results import Options
from bench.targets import HERE, TARGETS
from bench.workloads import TINY
from tests.support.mounting import require_fuse


class Quiet:
    """A proxy through which nothing goes, after some that did."""

    url = "http://127.0.0.1:1"

    def __init__(self, more: int = 0) -> None:
        self.more = more

    def counts(self) -> Counts:
        self.more = max(0, self.more - 1)
        return Counts({"PUT": self.more})


class Null(Peer):
    """The null filesystem, in the place of somebody else's."""

    program = "null"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.nullfs", str(self.mountpoint)]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(HERE)}


def backing(more: int = 0) -> Backing:
    env = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden"}
    return Backing(Quiet(more), "b", None, env, "r")  # type: ignore[arg-type]


def peer(kind: type[Peer], home: Path) -> Peer:
    (home / "mount").mkdir(parents=True)
    return kind(home, "program", backing())


def test_a_program_that_is_missing_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in PEERS:
        with pytest.raises(UnavailableError, match=f"{name} is not installed"):
            found(name, tmp_path)
    options = Options(TINY, 1, 7, [*PEERS], ["small"], tmp_path, tmp_path)
    (tmp_path / "git").symlink_to("/usr/bin/git")
    results = runner.run(options, lambda _: None)
    assert set(results.left_out) == set(PEERS)
    assert results.turns == []


def test_the_directory_of_peers_comes_before_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in ("bin", "path"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "rclone").write_text("#!/bin/sh\n")
        (tmp_path / directory / "rclone").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert found("rclone", tmp_path) == str(tmp_path / "bin" / "rclone")
    assert found("rclone", None) == str(tmp_path / "path" / "rclone")


@pytest.mark.parametrize("kind", [Rclone, JuiceFs, S3fs])
def test_no_credential_stands_in_a_command_line(kind: type[Peer], tmp_path: Path) -> None:
    one = peer(kind, tmp_path)
    assert "hidden" not in " ".join(one.command())
    assert "hidden" in one.environment().values()


def test_what_juicefs_has_not_uploaded_is_what_it_has_staged(tmp_path: Path) -> None:
    one = peer(JuiceFs, tmp_path)
    staged = one.cache / "some-id" / "rawstaging" / "chunks" / "0"
    staged.mkdir(parents=True)
    assert one.pending() == 0
    (staged / "1_0_3").write_bytes(b"abc")
    assert one.pending() == 1


def test_what_rclone_has_not_uploaded_is_queued_or_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = peer(Rclone, tmp_path)
    said = {"uploadsQueued": 2, "uploadsInProgress": 1}
    monkeypatch.setattr(one, "_ask", lambda _command: {"diskCache": said})
    assert one.pending() == 3
    said.update(uploadsQueued=0, uploadsInProgress=0)
    assert one.pending() == 0
    notes = one.cache / "vfsMeta" / "remote" / "bucket"
    notes.mkdir(parents=True)
    (notes / "saved").write_text('{"Dirty": false}')
    assert one.pending() == 0
    (notes / "changed").write_text('{"Dirty": true}')
    (notes / "half").write_text('{"Dir')
    assert one.pending() == 2


def test_an_rclone_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="does not answer vfs/stats"):
        peer(Rclone, tmp_path).pending()


def test_a_peer_is_at_rest_when_nothing_passes_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "QUIET_S", 0.0)
    one = peer(Null, tmp_path)
    one.backing = backing(more=5)
    one.flush()
    assert one.backing.proxy.counts().total == 0
    monkeypatch.setattr(peers, "QUIET_TIMEOUT_S", -1.0)
    with pytest.raises(ScenarioError, match="is not quiet"):
        one.flush()


def test_a_peer_that_ends_at_once_says_why(tmp_path: Path) -> None:
    program = tmp_path / "fails"
    program.write_text("#!/bin/sh\necho no such bucket\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    one = peer(S3fs, tmp_path / "home")
    one.path = str(program)
    try:
        with pytest.raises(UnavailableError, match="s3fs did not mount: no such bucket"):
            one.mount()
    finally:
        one.unmount()


@pytest.mark.fuse
def test_mounted_cold_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_fuse()
    monkeypatch.setattr(peers, "QUIET_S", 0.0)
    one = peer(Null, tmp_path)
    pids = []
    try:
        one.mount()
        pids.append(one.daemon())
        (one.mountpoint / "file").write_bytes(b"content")
        (one.cache / "kept").write_bytes(b"content")
        one.cold()
        pids.append(one.daemon())
        assert is_mounted(one.mountpoint)
        assert list(one.mountpoint.iterdir()) == list(one.cache.iterdir()) == []
    finally:
        one.unmount()
    assert not is_mounted(one.mountpoint)
    assert len(set(pids)) == 2
    assert [usage(pid) for pid in pids] == [None, None]
    # Again is nothing.
    one.unmount()


def test_children_that_outlive_their_parent_are_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {note}.new; mv {note}.new {note}; read line"
    process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    while not note.exists():
        time.sleep(0.01)
    child = int(note.read_text())
    # mv has to be buried first.
    while processes.children(process.pid) != [child]:
        time.sleep(0.01)
    below = processes.identified(process.pid)
    assert list(below) == [child]
    process.communicate()
    processes.end_tree(process, {**below, os.getpid(): "another one's time"})
    deadline = time.monotonic() + 60
    while usage(child) is not None and _state(child) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.fuse
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("name", list(PEERS))
def test_a_peer_for_real(name: str, tmp_path: Path) -> None:
    """Where it is installed. Its directory: PEERS_DIR, or what is in PATH."""
    require_fuse()
    place = os.environ.get("PEERS_DIR")
    directory = Path(place) if place else None
    try:
        found(name, directory)
    except UnavailableError as exc:
        pytest.skip(str(exc))
    with Ground(tmp_path, directory) as ground, TARGETS[name](ground) as target:
        _write_and_read_cold(target)
        pid, mountpoint = target.pid, target.directory
    assert pid is not None
    assert usage(pid) is None
    assert not is_mounted(mountpoint)


def _write_and_read_cold(target: Target) -> None:
    backing, cold = target.backing, target.cold
    assert backing is not None
    assert cold is not None
    (target.directory / "work").mkdir()
    (target.directory / "work" / "file").write_bytes(b"content")
    target.flush()
    before = backing.proxy.counts()
    assert before.up_bytes >= len(b"content")
    if backing.readable:
        assert backing.sizes("work") == {"file": len(b"content")}
        assert backing.body("work/file") == b"content"
    cold()
    assert (target.directory / "work" / "file").read_bytes() == b"content"
    assert backing.proxy.counts().since(before).down_bytes >= len(b"content")
