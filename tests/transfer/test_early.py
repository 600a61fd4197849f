"""The daemon's first worker: started before there is a loop, adopted by the first request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import config as limits
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import early, wire
from s3ws_fs.transfer.client import WorkerClient
from s3ws_fs.transfer.requests import Handlers
from s3ws_fs.transfer.session import Means, Session
from tests.support.mounting import REPOSITORY, loaded_by

WORKSPACE = WorkspaceId("u", "c")


@pytest.fixture
def config(tmp_path: Path) -> MountConfig:
    (tmp_path / "bucket").mkdir()
    return MountConfig(
        mountpoint=str(tmp_path / "mount"),
        workspace=WORKSPACE,
        store=StoreConfig(type="local", bucket="", path=str(tmp_path / "bucket")),
        cache_dir=str(tmp_path / "cache"),
        runtime_dir=str(tmp_path / "run"),
    )


@pytest.fixture
def config_fd(config: MountConfig) -> Iterator[int]:
    fd = os.memfd_create("config", 0)
    os.write(fd, config.dumps())
    os.lseek(fd, 0, os.SEEK_SET)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    early.end()


def _start(config_fd: int, *more: str) -> None:
    arguments = ["daemon", "--config-fd", str(config_fd), *more]
    early.start(arguments, {**os.environ, "PYTHONPATH": str(REPOSITORY), "ONLY_FOR": "workers"})


def _client(cache: Cache, config: MountConfig) -> WorkerClient:
    hello = {
        "store": config.store.to_json(),
        "prefix": config.workspace.prefix,
        "cache_dir": str(cache.directory),
        "spool_dir": str(cache.spool_dir),
    }
    return WorkerClient(hello, reader_check=cache.reader_check)


async def _until_buried(client: WorkerClient) -> None:
    while client.pid is not None:
        await trio.lowlevel.checkpoint()


def test_it_imports_little_so_that_the_worker_starts_soon() -> None:
    names = loaded_by("s3ws_fs.daemon.__main__")
    assert [name for name in names if name.startswith("s3ws_fs.")] == [
        "s3ws_fs.daemon",
        "s3ws_fs.transfer",
        "s3ws_fs.transfer.early",
        "s3ws_fs.daemon.__main__",
    ]
    assert {"trio", "logging", "argparse", "dataclasses"}.isdisjoint(names)


def test_its_constants_are_those_of_modules_it_does_not_import() -> None:
    assert early.CONFIG_BYTES_MAX == limits.CONFIG_JSON_BYTES_MAX
    started = "import s3ws_fs.daemon.__main__ as m; from s3ws_fs.control import servicemanager as s"
    script = f"{started}; assert m.NOTIFY_SOCKET == s.VARIABLE"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY)


def test_it_asks_as_the_daemon_would_and_leaves_the_configuration_to_be_read(
    config_fd: int, config: MountConfig
) -> None:
    frame = early._warm(config_fd)
    ask, payload = wire.decode(frame[: wire.HEAD_BYTES], frame[wire.HEAD_BYTES :])
    assert wire.rest_bytes(frame[: wire.HEAD_BYTES]) == len(frame) - wire.HEAD_BYTES
    assert (ask["cmd"], ask["id"], len(payload)) == ("warm", early.WARM_ID, 0)
    assert StoreConfig.from_json(ask["store"]) == config.store
    assert WorkspaceId.from_json(ask["workspace"]) == WORKSPACE
    with os.fdopen(os.dup(config_fd), "rb") as source:
        assert MountConfig.loads(source.read()) == config


async def test_the_first_request_adopts_it(
    cache: Cache, fs: FileSystem, config: MountConfig, config_fd: int
) -> None:
    _start(config_fd)
    assert early._started is not None
    pid = early._started.process.pid
    client = _client(cache, config)
    await client.ask("survey")
    assert (client.pid, client.spawned) == (pid, 1)
    assert b"MALLOC_ARENA_MAX=" in Path(f"/proc/{pid}/environ").read_bytes()
    await client.close()
    assert not Path(f"/proc/{pid}").exists()


async def test_when_it_dies_another_one_is_started_as_ever(
    cache: Cache, fs: FileSystem, config: MountConfig, config_fd: int
) -> None:
    _start(config_fd)
    client = _client(cache, config)
    await client.ask("survey")
    first = client.pid
    assert first is not None
    os.kill(first, 9)
    await _until_buried(client)
    await client.ask("survey")
    assert client.pid not in (None, first)
    await client.close()


async def test_one_that_ended_before_it_was_needed_is_not_adopted(
    cache: Cache, fs: FileSystem, config: MountConfig, config_fd: int
) -> None:
    _start(config_fd)
    assert early._started is not None
    early._started.process.kill()
    early._started.process.wait()
    client = _client(cache, config)
    await client.ask("survey")
    assert client.pid is not None
    await client.close()


def test_it_has_its_environment_and_its_socket_and_nothing_else_of_ours(config_fd: int) -> None:
    kept, other = os.pipe()
    os.set_inheritable(other, True)
    os.set_inheritable(config_fd, True)
    try:
        _start(config_fd)
        assert early._started is not None
        sock, pid = early._started.sock, early._started.process.pid
        # It answers, so it has started.
        head = sock.recv(wire.HEAD_BYTES, 0x100)
        message, _ = wire.decode(head, sock.recv(wire.rest_bytes(head), 0x100))
        assert message == {"id": early.WARM_ID, "ok": {}}
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        assert not any("memfd" in link or "pipe" in link for link in links if "null" not in link)
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"ONLY_FOR=workers" in environ
        assert "--fd" in (line := Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
        assert not any("bucket" in word for word in line)
    finally:
        os.close(kept)
        os.close(other)


def test_it_ends_when_its_parent_goes(config_fd: int) -> None:
    _start(config_fd)
    started = early.take()
    assert started is not None
    started.sock.close()
    assert started.process.wait(timeout=60) == 0


def test_one_that_nobody_took_is_ended(config_fd: int) -> None:
    _start(config_fd)
    assert early._started is not None
    process = early._started.process
    early.end()
    assert process.returncode is not None
    assert early.take() is None
    early.end()


def test_a_daemon_that_follows_another_starts_none(config_fd: int) -> None:
    _start(config_fd, "--device-fd", "9")
    assert early.take() is None


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_none_starts_none(text: bytes) -> None:
    fd = os.memfd_create("config", 0)
    try:
        os.write(fd, text)
        _start(fd)
    finally:
        os.close(fd)
    assert early.take() is None


def test_arguments_that_are_none_start_none() -> None:
    for arguments in ([], ["--config-fd"], ["--config-fd", "x"], ["--config-fd", "99999"]):
        early.start(arguments, {})
        assert early.take() is None


class _Opened:
    """Counts the stores that are built."""

    def __init__(self) -> None:
        self.prefixes: list[tuple[str, bool]] = []

    def __call__(self, config: StoreConfig, prefix: str, *, read_only: bool = False) -> ScopedStore:
        self.prefixes.append((prefix, read_only))
        return ScopedStore(MemoryStore(), prefix, read_only=read_only)


@pytest.mark.parametrize(
    ("changed", "built"),
    [({}, 1), ({"prefix": "conversations/u/other/workspace/"}, 2), ({"read_only": True}, 2)],
)
def test_hello_finds_what_was_built_when_it_names_the_same(
    cache: Cache, config: MountConfig, config_fd: int, changed: dict[str, Any], built: int
) -> None:
    opened = _Opened()
    means = Means(open_store=opened, open_reader=lambda _: cast(Any, cache))
    handlers = Handlers(Session(means))
    handlers["warm"](json.loads(early._warm(config_fd)[wire.HEAD_BYTES :]), lambda *_: None)
    hello = {
        "store": config.store.to_json(),
        "prefix": config.workspace.prefix,
        "cache_dir": str(cache.directory),
        "spool_dir": str(cache.spool_dir),
    }
    handlers["hello"]({**hello, **changed}, lambda *_: None)
    wanted = (changed.get("prefix", config.workspace.prefix), changed.get("read_only", False))
    assert len(opened.prefixes) == built
    assert opened.prefixes[-1] == wanted
    # A second hello, as after a hello that failed, builds its own.
    handlers["hello"](hello, lambda *_: None)
    assert len(opened.prefixes) == built + 1
