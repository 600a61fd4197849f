"""A read-only mount beside the writer, by the command, as on two hosts: it follows the seals."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from s3ws_fs import WorkspaceManager
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.settings import Settings
from tests.support import trees
from tests.support.buckets import Bucket, LocalBucket, S3Bucket
from tests.support.host import NEVER_BY_ITSELF, Host, HostMaker
from tests.support.mounting import REPOSITORY, wait_until
from tests.support.recorder import Recorder, recording

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

only_local = pytest.mark.parametrize("bucket", ["local"], indirect=True)
"""What the kind of bucket has no part in."""

NAMED = Path(__file__).parents[1] / "support" / "named"
SHORT_LEASE = {"WORKSPACE_LEASE_S": "6"}
LONG_LEASE = {"WORKSPACE_LEASE_S": "3600"}
"""The writer renews none while a test looks at what stands in the bucket."""

FOLLOWING = {"WORKSPACE_READ_ONLY": "true", "WORKSPACE_FOLLOW_INTERVAL": "0.1"}


@pytest.fixture
def writer(bucket: Bucket, new_host: HostMaker) -> Host:
    """A mounted workspace with one file, sealed. It seals only when it is asked to."""
    host = new_host(bucket, "writer", settings=NEVER_BY_ITSELF | LONG_LEASE)
    host.mount()
    (host.mountpoint / "first").write_text("one")
    host.sync()
    return host


@pytest.fixture
def reader(writer: Host, tmp_path: Path) -> Iterator[Host]:
    """Another host, mounted read-only."""
    host = writer.elsewhere(tmp_path / "reader")
    host.settings |= FOLLOWING
    try:
        host.mount()
        yield host
    finally:
        host.end()


def _segment(host: Host) -> int:
    return int(host.now()["follow"]["segment"])


def _standing(bucket: Bucket, prefix: str) -> list[tuple[str, object]]:
    """All that stands in the bucket; of the local one also when each directory last changed."""
    found: list[tuple[str, object]] = [
        (key, bucket.get(key).body) for key in bucket.listing(prefix)
    ]
    if isinstance(bucket, LocalBucket):
        for directory, _, _ in os.walk(bucket.root):
            found.append((directory, os.stat(directory).st_mtime_ns))
    return found


def test_it_shows_what_is_sealed_and_follows(writer: Host, reader: Host) -> None:
    assert (reader.mountpoint / "first").read_text() == "one"
    (writer.mountpoint / "dir").mkdir()
    (writer.mountpoint / "dir" / "second").write_text("two")
    (writer.mountpoint / "first").write_text("changed")
    assert sorted(os.listdir(reader.mountpoint)) == ["first"]
    writer.sync()
    wait_until(lambda: (reader.mountpoint / "dir" / "second").exists(), timeout_s=30)
    assert trees.differences(
        trees.manifest(writer.mountpoint), trees.manifest(reader.mountpoint)
    ) == []  # fmt: skip
    status = reader.status()
    sealed = writer.status()["generation"]["sealed"]
    assert (status["read_only"], status["follow"]["generation"]) == (True, sealed)
    assert status["health"]["state"] == "ok"
    assert "read-only, segment 2" in reader.s3ws("status", reader.mountpoint).stdout


def test_it_writes_nothing_at_all(writer: Host, reader: Host, bucket: Bucket) -> None:
    reader.umount()
    reader.lose_cache()
    before = _standing(bucket, writer.prefix)
    reader.mount()
    assert (reader.mountpoint / "first").read_text() == "one"
    assert reader.json("sync", reader.mountpoint)["read_only"] is True
    requests = reader.now()["requests"]
    assert (requests["put"], requests["copy"], requests["delete"]) == (0, 0, 0)
    assert requests["get"] > 0
    assert writer.now()["requests"]["put"] > 0  # the control: these counters count
    done = reader.s3ws("umount", reader.mountpoint)
    assert "everything is saved" not in done.stdout
    assert _standing(bucket, writer.prefix) == before


@pytest.mark.s3
def test_on_the_wire_there_are_only_gets(s3_bucket: S3Bucket, new_host: HostMaker) -> None:
    with recording(s3_bucket.env["AWS_ENDPOINT_URL_S3"]) as control:
        writer = new_host(s3_bucket, "writer")
        writer.settings["AWS_ENDPOINT_URL_S3"] = control.url
        writer.mount()
        (writer.mountpoint / "file").write_bytes(os.urandom(3_000_000))
        writer.umount()
        assert b"PUT" in _methods(control)
    with recording(s3_bucket.env["AWS_ENDPOINT_URL_S3"]) as recorder:
        reader = writer.elsewhere(writer.base.parent / "reader")
        reader.settings |= {**FOLLOWING, "AWS_ENDPOINT_URL_S3": recorder.url}
        try:
            reader.mount()
            assert len((reader.mountpoint / "file").read_bytes()) == 3_000_000
            wait_until(lambda: reader.now()["follow"]["next_look_s"] > 0, timeout_s=30)
            reader.umount()
        finally:
            reader.end()
        assert _methods(recorder) == {b"GET"}


def _methods(recorder: Recorder) -> set[bytes]:
    lines = recorder.sent().split(b"\r\n")
    return {line.split(b" ")[0] for line in lines if line.endswith(b" HTTP/1.1")}


@only_local
def test_nothing_can_be_changed(reader: Host) -> None:
    top = reader.mountpoint
    attempts: dict[str, Callable[[], object]] = {
        "create": lambda: (top / "new").touch(),
        "write": lambda: (top / "first").write_text("x"),
        "truncate": lambda: os.truncate(top / "first", 0),
        "unlink": lambda: (top / "first").unlink(),
        "rename": lambda: (top / "first").rename(top / "other"),
        "mkdir": lambda: (top / "new").mkdir(),
        "link": lambda: os.link(top / "first", top / "other"),
        "symlink": lambda: (top / "new").symlink_to("x"),
        "chmod": lambda: (top / "first").chmod(0o600),
        "utime": lambda: os.utime(top / "first"),
        "xattr": lambda: os.setxattr(top / "first", "user.x", b""),
    }
    seen = {}

    def try_all() -> None:
        for name, attempt in attempts.items():
            try:
                attempt()
            except OSError as exc:
                seen[name] = exc.errno

    try_all()
    assert seen == dict.fromkeys(attempts, errno.EROFS)
    assert not os.access(top / "first", os.W_OK)
    if os.geteuid() == 0:
        # Whom the kernel lets through, the daemon refuses.
        seen.clear()
        subprocess.run(["mount", "-i", "-o", "remount,rw", str(top)], check=True)
        try_all()
        assert seen == dict.fromkeys(attempts, errno.EROFS)
    assert (top / "first").read_text() == "one"


def test_at_every_moment_it_shows_one_seal(writer: Host, reader: Host) -> None:
    """Commits and renames of trees; the reader looks all the time, and so does git."""
    source = writer.mountpoint / "tree 0"
    source.mkdir()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "safe.directory=*"]
    subprocess.run([*git, "init", "-q", writer.mountpoint / "repo"], check=True)
    sealed: dict[int, trees.Manifest] = {}
    looks = 0
    for number in range(SEALS):
        for name in range(20):
            (source / f"file {name}").write_text(str(number) * 50)
        target = writer.mountpoint / f"tree {number + 1}"
        source.rename(target)
        source = target
        (writer.mountpoint / "repo" / "file").write_text(str(number))
        subprocess.run([*git, "add", "."], cwd=writer.mountpoint / "repo", check=True)
        subprocess.run(
            [*git, "commit", "-qm", str(number)], cwd=writer.mountpoint / "repo", check=True
        )
        writer.sync()
        sealed[number + 2] = trees.manifest(writer.mountpoint)
        looks += _looks_right(reader, sealed, git)
    wait_until(lambda: _segment(reader) == SEALS + 1, timeout_s=60)
    assert _looks_right(reader, sealed, git)
    assert looks > 0


SEALS = 5


def _looks_right(reader: Host, sealed: dict[int, trees.Manifest], git: list[str]) -> bool:
    """Whether nothing changed while we looked; AssertionError when what we saw was no seal."""
    before = _segment(reader)
    if before < min(sealed):
        return False  # the repository is not there yet
    found, why = None, None
    try:
        found = trees.manifest(reader.mountpoint)
        fsck = subprocess.run(
            [*git, "fsck", "--full", "--strict"],
            cwd=reader.mountpoint / "repo",
            capture_output=True,
            check=False,
        )
    except OSError as exc:
        why = exc
    if _segment(reader) != before:
        return False
    assert found is not None, why
    assert why is None, why
    assert fsck.returncode == 0, fsck
    assert trees.differences(sealed[before], found) == []
    return True


@only_local
def test_open_files_stay_usable(writer: Host, reader: Host) -> None:
    here, there = writer.mountpoint, reader.mountpoint
    (here / "unlinked").write_bytes(b"kept")
    (here / "replaced").write_bytes(b"old")
    (here / "rewritten").write_bytes(b"a" * 100_000)
    (here / "dir").mkdir()
    writer.sync()
    reader.sync()
    files = [(there / name).open("rb") for name in ("unlinked", "replaced", "rewritten")]
    unlinked, replaced, rewritten = files
    assert [file.read(4) for file in files] == [b"kept", b"old", b"aaaa"]
    cwd = os.open(there / "dir", os.O_RDONLY)
    (here / "unlinked").unlink()
    (here / "dir").rmdir()
    (here / "new").write_bytes(b"new")
    (here / "new").rename(here / "replaced")
    mapped = mmap.mmap(rewritten.fileno(), 0, prot=mmap.PROT_READ)
    assert mapped[:4] == b"aaaa"
    rewritten_ns = (there / "rewritten").stat().st_mtime_ns
    with (here / "rewritten").open("r+b", buffering=0) as raw:
        raw.write(b"bb")
        # Same size, same time: nothing but the daemon tells the kernel.
        os.utime(raw.fileno(), ns=(0, rewritten_ns))
    writer.sync()
    reader.sync()
    assert set(os.listdir(there)) == {"first", "replaced", "rewritten"}
    assert (there / "replaced").read_bytes() == b"new"
    assert (there / "rewritten").read_bytes()[:3] == b"bba"
    assert (there / "rewritten").stat().st_mtime_ns == rewritten_ns
    assert os.pread(unlinked.fileno(), 9, 0) == b"kept"
    assert os.fstat(unlinked.fileno()).st_nlink == 0
    assert os.pread(replaced.fileno(), 9, 0) == b"old"
    assert os.pread(rewritten.fileno(), 4, 0) == mapped[:4] == b"bbaa"
    mapped.close()
    assert os.listdir(cwd) == []
    os.close(cwd)
    for file in files:
        file.close()
    reader.s3ws("check", reader.mountpoint)
    assert reader.now()["faults"] == 0


@only_local
def test_it_is_checked_like_any_mount(writer: Host, reader: Host) -> None:
    reader.s3ws("check", "--bucket", reader.mountpoint)
    reader.umount()
    (writer.mountpoint / "later").write_text("x")
    writer.sync()
    # Its cache is behind, which is no fault of anything.
    reader.s3ws("check", "--bucket", "--cache", reader.workspace_cache())


@only_local
def test_from_python(writer: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in writer.settings.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load(os.environ)
    look = tmp_path / "look"
    look.mkdir()

    async def main() -> None:
        workspace = WorkspaceManager(
            settings, settings.conversation_id, settings.user_id, look, read_only=True
        )
        async with workspace:
            assert (look / "first").read_text() == "one"
            assert (await workspace.manual_sync())["read_only"] is True
            assert (await workspace.status())["read_only"] is True

    trio.run(main)
    assert not os.path.ismount(look)


@only_local
def test_a_killed_reader_comes_back_at_a_seal(writer: Host, reader: Host) -> None:
    for number in range(3):
        for name in range(200):
            (writer.mountpoint / f"file {name}").write_text(str(number))
        writer.sync()
        reader.kill()
        reader.s3ws("check", "--cache", reader.workspace_cache())
        reader.mount()
        assert {path.read_text() for path in reader.mountpoint.glob("file *")} == {str(number)}
    reader.signal_and_wait(signal.SIGTERM)
    assert reader.info() is None


@only_local
def test_it_follows_on_when_its_daemon_died(writer: Host, reader: Host) -> None:
    """The holder starts another under the living mount: open files stay, seals are followed."""
    (writer.mountpoint / "unlinked").write_bytes(b"kept")
    (writer.mountpoint / "rewritten").write_bytes(b"before")
    writer.sync()
    reader.sync()
    with (
        (reader.mountpoint / "unlinked").open("rb") as unlinked,
        (reader.mountpoint / "rewritten").open("rb") as rewritten,
    ):
        assert (unlinked.read(), rewritten.read()) == (b"kept", b"before")
        reader.kill_daemon()
        (writer.mountpoint / "unlinked").unlink()
        with (writer.mountpoint / "rewritten").open("r+b") as file:
            file.write(b"after!")
        writer.sync()
        reader.sync()
        assert not (reader.mountpoint / "unlinked").exists()
        assert os.pread(unlinked.fileno(), 9, 0) == b"kept"
        assert os.pread(rewritten.fileno(), 9, 0) == b"after!"
        assert (reader.mountpoint / "rewritten").read_bytes() == b"after!"
    reader.s3ws("check", reader.mountpoint)
    reader.umount()


def test_it_goes_on_over_a_crash_of_the_writer(writer: Host, reader: Host) -> None:
    (writer.mountpoint / "unsealed").write_text("in the cache only")
    writer.kill()
    assert (reader.mountpoint / "first").read_text() == "one"
    writer.mount()
    writer.sync()
    wait_until(lambda: (reader.mountpoint / "unsealed").exists(), timeout_s=30)
    assert (reader.mountpoint / "unsealed").read_text() == "in the cache only"


@only_local
def test_both_on_one_host_have_caches_of_their_own(writer: Host, tmp_path: Path) -> None:
    other = tmp_path / "second mount point"
    writer.s3ws("mount", "--read-only", "--follow-interval", "0.1", other)
    try:
        assert (other / "first").read_text() == "one"
        assert len([path for path in writer.cache.iterdir() if path.is_dir()]) == 2
    finally:
        writer.s3ws("umount", other)


@only_local
def test_there_has_to_be_a_workspace(bucket: Bucket, new_host: HostMaker) -> None:
    host = new_host(bucket)
    done = host.s3ws("mount", host.mountpoint, "--read-only", ok=ExitCode.STORE)
    assert "mount it for writing first" in done.stderr
    assert bucket.listing(host.prefix) == []


@only_local
def test_a_workspace_without_a_seal_is_empty_until_there_is_one(
    bucket: Bucket, new_host: HostMaker, tmp_path: Path
) -> None:
    writer = new_host(bucket, "writer", settings=NEVER_BY_ITSELF)
    writer.mount()
    reader = writer.elsewhere(tmp_path / "reader")
    reader.settings |= FOLLOWING
    try:
        reader.mount()
        assert os.listdir(reader.mountpoint) == []
        (writer.mountpoint / "file").write_text("x")
        writer.sync()
        wait_until(lambda: os.listdir(reader.mountpoint) == ["file"], timeout_s=30)
    finally:
        reader.end()


@only_local
def test_it_goes_on_when_its_daemon_is_killed(writer: Host, reader: Host) -> None:
    """Also with a file open that goes in the bucket meanwhile: no daemon counted that handle."""
    with (reader.mountpoint / "first").open() as file:
        reader.kill_daemon()
        assert file.read() == "one"
        writer.now()
        (writer.mountpoint / "first").unlink()
        (writer.mountpoint / "second").write_text("two")
        writer.sync()
        wait_until(lambda: os.listdir(reader.mountpoint) == ["second"], timeout_s=30)
        assert (reader.mountpoint / "second").read_text() == "two"
        reader.kill_daemon()
        file.seek(0)
        assert file.read() == "one"
        assert os.fstat(file.fileno()).st_size == 3
    (writer.mountpoint / "second").write_text("two and a half")
    writer.sync()
    wait_until(lambda: (reader.mountpoint / "second").read_text() == "two and a half", timeout_s=30)
    assert reader.json("restart", reader.mountpoint)["pid"] == reader.pid()
    assert (reader.mountpoint / "second").read_text() == "two and a half"
    reader.umount()


def _as_named(host: Host, name: str) -> Host:
    """This host's daemons think that their machine is called so."""
    host.settings |= {"PYTHONPATH": f"{NAMED}:{REPOSITORY}", "TESTED_HOST_NAME": name}
    return host


def _end_unsaved(host: Host) -> None:
    host.s3ws("umount", host.mountpoint, ok=ExitCode.FENCED)


@only_local
def test_it_follows_who_took_over_while_it_was_away(
    bucket: Bucket, new_host: HostMaker, tmp_path: Path
) -> None:
    _follows_who_takes_over(bucket, new_host, tmp_path, is_away=True)


def test_it_follows_who_takes_over(bucket: Bucket, new_host: HostMaker, tmp_path: Path) -> None:
    _follows_who_takes_over(bucket, new_host, tmp_path, is_away=False)


def _follows_who_takes_over(
    bucket: Bucket, new_host: HostMaker, tmp_path: Path, *, is_away: bool
) -> None:
    """The take-over's seal is empty, and the next ones are another host's; what the first host
    still does is never seen."""
    settings = NEVER_BY_ITSELF | SHORT_LEASE
    first = _as_named(new_host(bucket, "first", settings=settings), "host-one")
    first.mount()
    (first.mountpoint / "file").write_text("one")
    first.sync()
    reader = first.elsewhere(tmp_path / "reader")
    reader.settings |= FOLLOWING
    second = _as_named(first.elsewhere(tmp_path / "second"), "host-two")
    try:
        reader.mount()
        before = reader.now()["follow"]
        assert before["sealed_by"] == "host-one"
        shown = trees.manifest(reader.mountpoint)
        if is_away:
            reader.umount()
        (first.mountpoint / "file").write_text("never sealed")
        second.mount(take_over=True)
        if is_away:
            reader.mount()
        wait_until(lambda: reader.now()["follow"]["sealed_by"] == "host-two", timeout_s=30)
        follow = reader.now()["follow"]
        assert follow["segment"] == before["segment"] + 1
        assert follow["generation"] == before["generation"]
        assert trees.differences(shown, trees.manifest(reader.mountpoint)) == []
        # Who was taken over from is told, and seals nothing.
        (first.mountpoint / "stale").write_text("x")
        first.s3ws("sync", first.mountpoint, ok=ExitCode.FENCED)
        (second.mountpoint / "file").write_text("two")
        (second.mountpoint / "new").write_text("2")
        second.sync()
        wait_until(lambda: (reader.mountpoint / "new").exists(), timeout_s=30)
        assert sorted(os.listdir(reader.mountpoint)) == ["file", "new"]
        assert (reader.mountpoint / "file").read_text() == "two"
        status = reader.status()
        assert (status["follow"]["sealed_by"], status["health"]["state"]) == ("host-two", "ok")
        _end_unsaved(first)
        second.umount()
        assert sorted(os.listdir(reader.mountpoint)) == ["file", "new"]
        reader.s3ws("check", reader.mountpoint)
        reader.umount()
    finally:
        reader.end()
        second.end()
