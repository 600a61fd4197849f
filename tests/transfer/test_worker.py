"""The worker as a process of its own, over its protocol, on a local store."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import xxhash

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import layout
from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import FormatError, PermanentError, TransientError
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.base import OPS
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import wire
from s3ws_fs.transfer.client import Traffic, WorkerClient, environment
from s3ws_fs.transfer.early import ARENAS_MAX
from tests.transfer.conftest import PREFIX

CLAIM = {
    "writer": "w" * 32,
    "host": "here",
    "pid": 1,
    "since_ns": 0,
    "lease_s": 60.0,
    "epoch_floor": 0,
    "take_over": False,
}


@pytest.fixture
def local(tmp_path: Path) -> StoreConfig:
    (tmp_path / "bucket").mkdir()
    return StoreConfig(type="local", bucket="", path=str(tmp_path / "bucket"))


@pytest.fixture
def direct(local: StoreConfig) -> ScopedStore:
    return open_store(local, PREFIX)


@pytest.fixture
async def client(cache: Cache, fs: FileSystem, local: StoreConfig) -> AsyncIterator[WorkerClient]:
    made = WorkerClient(
        {
            "store": local.to_json(),
            "prefix": PREFIX,
            "cache_dir": str(cache.directory),
            "spool_dir": str(cache.spool_dir),
        },
        reader_check=cache.reader_check,
    )
    yield made
    with trio.CancelScope(shield=True):
        await made.close()


async def test_it_is_spawned_on_demand_and_ends_with_us(client: WorkerClient) -> None:
    assert client.spawned == 0
    state = await client.ask("survey")
    assert state["workspace"] is None
    assert state["newest"] == 0
    pid = client.pid
    assert pid is not None
    await client.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(TransientError, match="shut down"):
        await client.ask("survey")


class Dying:
    """A worker's process that takes its time to end."""

    pid = 1

    def __init__(self) -> None:
        self.ended = trio.Event()

    async def wait(self) -> int:
        await self.ended.wait()
        return 0

    def kill(self) -> None:
        self.ended.set()


async def test_closing_waits_for_one_that_died_before() -> None:
    """Found by the simulation: a worker died just before the end, and after the end the cache that
    was closed by then was asked to check its readers."""
    ours, theirs = trio.testing.memory_stream_pair()
    process = Dying()
    happened: list[str] = []

    async def start() -> tuple[Dying, trio.abc.Stream]:
        return process, ours

    async def close() -> None:
        await asked.close()
        happened.append("closed")

    asked = WorkerClient({}, reader_check=lambda: happened.append("checked"), start=start)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(TransientError, match="died"):
                await asked.ask("survey")

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await theirs.send_all(wire.encode({"id": 1, "ok": {}}))
        await trio.testing.wait_all_tasks_blocked()
        await theirs.aclose()
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert happened == []
        process.ended.set()
    assert happened == ["checked", "closed"]


async def test_probe(client: WorkerClient) -> None:
    found = await client.ask("probe", allow_unconditional=False)
    assert found["conditional"]["put_must_create"]
    assert client.requests["put"] > 0
    traffic = client.traffic
    assert (
        traffic.requests["put 200"] + traffic.requests["put ConflictError"]
        == (client.requests["put"])
    )
    assert traffic.sent_bytes > 0
    # The next worker begins at nothing; what is told goes on.
    pid = client.pid
    assert pid is not None
    await client.rest()
    assert client.traffic == traffic
    await client.ask("survey")
    assert client.pid != pid
    assert client.traffic.requests["put 200"] == traffic.requests["put 200"]
    assert client.traffic.requests.total() > traffic.requests.total()


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"requests": [], "sent_bytes": 0, "received_bytes": 0},
        {"requests": {"put 200": "1"}, "sent_bytes": 0, "received_bytes": 0},
        {"requests": {}, "sent_bytes": None, "received_bytes": 0},
    ],
)
def test_traffic_of_another_shape_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        Traffic.from_json(said)


def test_traffic_survives_the_way() -> None:
    traffic = Traffic(Counter({"put 200": 2, "get NoSuchKey": 1}), 5, 6)
    assert Traffic.from_json(traffic.to_json()) == traffic
    assert traffic.by_op()["put"] == 2
    assert Traffic().by_op() == dict.fromkeys(OPS, 0)


async def test_an_unknown_request_is_an_error_not_a_death(client: WorkerClient) -> None:
    with pytest.raises(PermanentError):
        await client.ask("nonsense")
    pid = client.pid
    await client.ask("survey")
    assert client.pid == pid


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_fault_of_ours_is_one_line_of_the_log(
    client: WorkerClient, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    client.hello["log_format"] = form
    with pytest.raises(PermanentError):
        await client.ask("nonsense")
    [line] = capfd.readouterr().err.splitlines()
    if form == "json":
        entry = json.loads(line)
        assert (entry["level"], entry["message"]) == ("error", "nonsense failed")
        assert "KeyError" in entry["error"]
    else:
        assert " error transfer.worker: nonsense failed\\nTraceback" in line


async def test_a_killed_worker_is_spawned_again(client: WorkerClient) -> None:
    await client.ask("survey")
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with trio.open_nursery() as nursery:

        async def waiting() -> None:
            with pytest.raises(TransientError, match="died"):
                await client.ask("survey")

        nursery.start_soon(waiting)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)
    await client.ask("survey")
    assert client.spawned == 2
    assert client.pid != pid


async def test_a_deadline(client: WorkerClient) -> None:
    await client.ask("survey")
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TransientError, match="no answer"):
            await client.ask("survey", deadline_s=0.05)
    finally:
        os.kill(pid, signal.SIGCONT)
    # The late answer is dropped, and the next one is its own.
    assert (await client.ask("survey"))["newest"] == 0


async def test_a_stopped_worker_is_ended_and_replaced(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP, a deadlock: the request's own deadline may be an hour."""
    await client.ask("survey")
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr("s3ws_fs.transfer.client.PING_S", 0.05)
        patch.setattr("s3ws_fs.transfer.client.STUCK_S", 0.2)
        patch.setattr("s3ws_fs.transfer.client.END_GRACE_S", 0.05)
        with pytest.raises(TransientError, match="died"):
            await client.ask("survey", deadline_s=3600.0)
    assert client.stuck == 1
    await client.ask("survey")
    assert client.pid != pid
    with trio.fail_after(60):
        while Path(f"/proc/{pid}").exists():
            await trio.sleep(0.01)


async def test_a_silent_worker_is_told(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.ask("survey")
    pid = client.pid
    assert pid is not None
    monkeypatch.setattr("s3ws_fs.transfer.client.PING_S", 0.05)
    monkeypatch.setattr("s3ws_fs.transfer.client.TOLD_S", 0.1)
    monkeypatch.setattr("s3ws_fs.transfer.client.STUCK_S", 3600.0)
    os.kill(pid, signal.SIGSTOP)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ask, "survey")
            with trio.fail_after(60):
                while (late := client.late) is None:
                    await trio.sleep(0.01)
            assert late[0].startswith("the transfer worker: no answer for")
            os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert client.late is None
    assert client.pid == pid


async def test_a_fetch_that_nobody_waits_for_is_not_begun(
    client: WorkerClient, direct: ScopedStore
) -> None:
    direct.put(layout.seg_key(1), b"abc")
    locations = [[1, 0, 3, xxhash.xxh3_128_hexdigest(b"abc")]]
    await client.ask("fetch", locations=locations, patience_s=60.0)
    with pytest.raises(TransientError, match="nobody waits"):
        await client.ask("fetch", locations=locations, patience_s=-1.0)


async def test_fetch_verifies(client: WorkerClient, direct: ScopedStore) -> None:
    parts = [b"a" * 1000, b"b" * 500, b"c" * 10]
    direct.put(layout.seg_key(1), b"".join(parts))
    direct.put(layout.seg_key(2), b"z" * 100)

    def place(number: int, offset: int, data: bytes) -> list[Any]:
        return [number, offset, len(data), xxhash.xxh3_128_hexdigest(data)]

    wanted = [
        place(1, 0, parts[0]),
        place(2, 50, b"z" * 50),
        place(1, 1500, parts[2]),
        place(1, 1000, parts[1]),
    ]
    got: dict[tuple[int, int], bytes] = {}

    async def on_part(part: dict[str, Any], payload: memoryview) -> None:
        at = 0
        for number, offset, length in part["items"]:
            got[number, offset] = bytes(payload[at : at + length])
            at += length

    before = client.requests["get"]
    await client.ask("fetch", on_part, locations=wanted)
    assert got == {(1, 0): parts[0], (1, 1000): parts[1], (1, 1500): parts[2], (2, 50): b"z" * 50}
    assert client.requests["get"] - before == 2
    with pytest.raises(FormatError, match="does not match"):
        await client.ask("fetch", on_part, locations=[place(1, 0, b"x" * 1000)])
    with pytest.raises(FormatError, match="instead of"):
        await client.ask("fetch", on_part, locations=[place(2, 90, b"z" * 50)])
    with pytest.raises(FormatError, match="missing"):
        await client.ask("fetch", on_part, locations=[place(3, 0, b"z")])


async def test_the_cache_is_never_written(
    client: WorkerClient, cache: Cache, fs: FileSystem
) -> None:
    data_file = cache.directory / "data" / "data.mdb"
    before = data_file.read_bytes()
    await client.ask("probe", allow_unconditional=False)
    await client.ask("lease", claim=CLAIM, uuid="a" * 32, ours=False)
    await client.ask("make-workspace", uuid="a" * 32, created_ns=1)
    assert data_file.read_bytes() == before


def spawn(*more: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A worker without a client."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "s3ws_fs.transfer.worker", "--fd", str(theirs.fileno()), *more],
            pass_fds=(theirs.fileno(),),
        )
    return ours, process


def test_it_ends_when_idle() -> None:
    ours, process = spawn("--idle-s", "0.1")
    with ours:
        assert process.wait(20) == 0


def test_it_ends_when_its_parent_is_gone() -> None:
    ours, process = spawn()
    ours.close()
    assert process.wait(20) == 0


ALLOCATING = """
import ctypes, sys, tempfile, threading
libc = ctypes.CDLL(None)
barrier = threading.Barrier(9)
def work():
    kept = bytearray(100_000)
    barrier.wait()
    barrier.wait()
for _ in range(8):
    threading.Thread(target=work).start()
barrier.wait()
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    told = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, ctypes.c_void_p(told))
    libc.fclose(ctypes.c_void_p(told))
    print(file.read().count(b"<heap nr="))
barrier.wait()
"""


def test_the_threads_of_a_child_share_few_heaps(monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("this C library has no heaps of that kind")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)

    def heaps() -> int:
        words = [sys.executable, "-c", ALLOCATING]
        return int(subprocess.run(words, env=environment(), capture_output=True, check=True).stdout)

    assert heaps() == ARENAS_MAX
    monkeypatch.setenv("MALLOC_ARENA_MAX", "5")
    assert heaps() == 5
