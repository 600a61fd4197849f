"""WorkspaceManager: from asyncio and trio, against a fake daemon; end to end where FUSE is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import s3ws_fs
from s3ws_fs.control import wire
from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.manager import LocalStorage, S3Storage, WorkspaceManager
from s3ws_fs.settings import Settings
from tests.support.fake_mounts import Place, faked
from tests.support.host import kill_all
from tests.support.mounting import clear_mountpoint, require_fuse
from tests.support.seaweed import Seaweed


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Directories and environment of a mount with a fake daemon."""
    with faked(tmp_path, monkeypatch) as made:
        yield made


def manager(place: Place) -> WorkspaceManager:
    storage = LocalStorage(place.root / "store")
    return WorkspaceManager(storage, "conversation", "user", place.mountpoint)


def test_is_the_public_name() -> None:
    assert s3ws_fs.WorkspaceManager is WorkspaceManager


async def use(workspace: WorkspaceManager) -> None:
    await workspace.cleanup()
    await workspace.initialize()
    await workspace.initialize()
    assert (await workspace.status())["state"] == "ready"
    assert (await workspace.manual_sync())["sealed"] == 9
    assert (await workspace.backup())["entries"] == 3
    await workspace.cleanup()
    await workspace.cleanup()
    with pytest.raises(UserError) as caught:
        await workspace.manual_sync()
    assert caught.value.exit_code is ExitCode.NOT_MOUNTED


def test_from_asyncio(place: Place) -> None:
    asyncio.run(use(manager(place)))
    assert place.info() is None


async def test_from_trio(place: Place) -> None:
    await use(manager(place))
    assert place.info() is None


async def test_context_manager_cleans_up_after_an_error(place: Place) -> None:
    with pytest.raises(RuntimeError, match="body"):
        async with manager(place):
            assert place.info() is not None
            raise RuntimeError("body")
    assert place.info() is None


async def test_adopts_the_mount_of_an_earlier_run_only_when_told(place: Place) -> None:
    first, second = manager(place), manager(place)
    await first.initialize()
    with pytest.raises(UserError) as caught:
        await second.initialize()
    assert caught.value.exit_code is ExitCode.ALREADY_MOUNTED
    await second.cleanup()
    before = place.info()
    assert before is not None
    await second.initialize(adopt=True)
    assert place.info() == before
    await second.cleanup()
    assert place.info() is None


async def test_adopts_no_mount_of_another_workspace(place: Place) -> None:
    await manager(place).initialize()
    storage = LocalStorage(place.root / "store")
    other = WorkspaceManager(storage, "another", "user", place.mountpoint)
    with pytest.raises(UserError) as caught:
        await other.initialize(adopt=True)
    assert caught.value.exit_code is ExitCode.ALREADY_MOUNTED


async def test_mounts_where_there_is_nothing_to_adopt(place: Place) -> None:
    workspace = manager(place)
    await workspace.initialize(adopt=True)
    assert (await workspace.status())["state"] == "ready"
    await workspace.cleanup()


async def test_cleanup_after_a_failed_initialize(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3WS_FAKE", "error")
    workspace = manager(place)
    with pytest.raises(UserError) as caught:
        await workspace.initialize()
    assert caught.value.exit_code is ExitCode.STORE
    await workspace.cleanup()


async def test_cleanup_raises_with_the_list_and_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3WS_FAKE", "unsaved")
    workspace = manager(place)
    await workspace.initialize()
    with pytest.raises(wire.ReplyError) as caught:
        await workspace.cleanup()
    assert caught.value.details["unsaved"] == ["a\x1b[31m", "b\udcff"]
    with pytest.raises(UserError) as again:
        await workspace.cleanup()
    assert again.value.exit_code is ExitCode.NOT_SAVED


def test_cancelled_initialize_leaves_nothing_unnoticed(place: Place) -> None:
    async def run() -> None:
        workspace = manager(place)
        task = asyncio.create_task(workspace.initialize())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await workspace.cleanup()
        assert place.info() is None

    asyncio.run(run())


async def test_mount_survives_and_is_found_again_after_its_daemon_was_killed(place: Place) -> None:
    workspace = manager(place)
    await workspace.initialize()
    info = place.info()
    assert info is not None
    kill_all(info)
    await workspace.initialize()
    second = place.info()
    assert second is not None and second.pid != info.pid
    await workspace.cleanup()


async def test_another_workspaces_mount_is_left_alone(place: Place) -> None:
    first = manager(place)
    await first.initialize()
    second = WorkspaceManager(LocalStorage(place.root / "store"), "other", "user", first.mountpoint)
    with pytest.raises(UserError) as caught:
        await second.initialize()
    assert caught.value.exit_code is ExitCode.ALREADY_MOUNTED
    await second.cleanup()
    assert place.info() is not None
    await first.cleanup()


async def test_keys_reach_the_daemons_environment_and_nothing_else(place: Place) -> None:
    storage = S3Storage("bucket", "http://127.0.0.1:9", access_key="AKIA", secret_key="hunter2")
    assert "hunter2" not in repr(storage)
    workspace = WorkspaceManager(storage, "conversation", "user", place.mountpoint)
    assert "hunter2" not in repr(workspace.config)
    async with workspace:
        status = await workspace.status()
        assert status["secret"] == "hunter2"
        assert "hunter2" not in " ".join(status["argv"])


def location(storage: object, place: Place) -> str:
    workspace = WorkspaceManager(storage, "c", "u", place.mountpoint)  # type: ignore[arg-type]
    return workspace.config.store.location + "|" + workspace.config.workspace.root_prefix


def test_kinds_of_storage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own:
        config = StoreConfig("s3", bucket="own", endpoint_url="http://own:1")

    settings = Settings.load({**place.environ, "WORKSPACE_STORAGE_PATH": "/srv/five"})
    assert location(StoreConfig("local", path="/srv/one"), place) == "file:///srv/one|"
    assert location(LocalStorage("/srv/two"), place) == "file:///srv/two|"
    assert location("file:///srv/th%20ree", place) == "file:///srv/th ree|"
    assert location("s3://bucket/team/", place) == "s3://bucket|team/"
    assert location(Own(), place) == "s3://own (http://own:1)|"
    assert location(settings, place) == "file:///srv/five|"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://env:2")
    assert location("s3://bucket", place) == "s3://bucket (http://env:2)|"
    assert location(S3Storage("bucket"), place) == "s3://bucket (http://env:2)|"
    assert location(Own(), place) == "s3://own (http://own:1)|"


@pytest.mark.parametrize("url", ["", "bucket", "http://x/y", "s3://", "s3://k:s@b", "file://h/x"])
def test_bad_urls(place: Place, url: str) -> None:
    with pytest.raises(UserError) as caught:
        location(url, place)
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS


def test_bad_ids_and_options_are_refused_at_once(place: Place) -> None:
    for ids in (("../c", "u"), ("c", "")):
        with pytest.raises(UserError):
            WorkspaceManager(LocalStorage("/srv"), ids[0], ids[1], place.mountpoint)
    with pytest.raises(UserError, match="no setting"):
        WorkspaceManager(LocalStorage("/srv"), "c", "u", place.mountpoint, colour="red")
    workspace = WorkspaceManager(LocalStorage("/srv"), "c", "u", place.mountpoint, max_size_mb=7)
    assert workspace.config.max_size_bytes == 7 << 20


@pytest.mark.e2e
@pytest.mark.fuse
def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the documentation: after manual_sync the mirror holds the bytes."""
    require_fuse()
    monkeypatch.setenv("WORKSPACE_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("WORKSPACE_CACHE_DIR", str(tmp_path / "cache"))
    mountpoint = tmp_path / "mnt"
    mirror = tmp_path / "store" / "conversations" / "user" / "test-123" / "workspace" / "files"

    async def run() -> None:
        storage = LocalStorage(tmp_path / "store")
        async with WorkspaceManager(storage, "test-123", "user", mountpoint) as workspace:
            (mountpoint / "test.py").write_text("print('hello')\n")
            result = await workspace.manual_sync()
            assert result["sealed"] > 0
            assert (mirror / "test.py").read_text() == "print('hello')\n"
            (mountpoint / "last.txt").write_text("saved by the final flush")
        assert (mirror / "last.txt").read_text() == "saved by the final flush"
        assert not (mountpoint / "test.py").exists()

    try:
        asyncio.run(run())
    finally:
        clear_mountpoint(mountpoint)


@pytest.mark.e2e
@pytest.mark.fuse
@pytest.mark.s3
async def test_end_to_end_on_s3_with_given_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seaweed: Seaweed
) -> None:
    """Keys that only the S3Storage knows: nothing of them in argv or on disk."""
    require_fuse()
    for name in list(os.environ):
        if name.startswith(("AWS_", "WORKSPACE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WORKSPACE_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("WORKSPACE_CACHE_DIR", str(tmp_path / "cache"))
    keys = seaweed.env
    secret = keys["AWS_SECRET_ACCESS_KEY"]
    storage = S3Storage(
        seaweed.bucket,
        seaweed.endpoint_url,
        access_key=keys["AWS_ACCESS_KEY_ID"],
        secret_key=secret,
    )
    mountpoint = tmp_path / "mnt"
    try:
        async with WorkspaceManager(storage, "manager-1", "user", mountpoint) as workspace:
            (mountpoint / "test.py").write_text("print('hello')\n")
            await workspace.manual_sync()
            key = workspace.config.workspace.prefix + "files/test.py"
            body = seaweed.client().get_object(Bucket=seaweed.bucket, Key=key)["Body"].read()
            assert body == b"print('hello')\n"
            status = await workspace.status()
            for pid in (status["pid"], status["worker_pid"]):
                if pid is not None:
                    assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert secret not in str(status)
    finally:
        clear_mountpoint(mountpoint)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
