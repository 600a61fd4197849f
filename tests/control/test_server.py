"""Server and client of the control socket, over real sockets."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from s3ws_fs.control import client, server, wire
from s3ws_fs.control.server import Emit
from s3ws_fs.core.errors import ExitCode, UserError

Event = dict[str, Any]


class Handlers:
    """Handlers that a test can watch."""

    def __init__(self) -> None:
        self.waiting = trio.Event()
        self.release = trio.Event()
        self.cancelled = trio.Event()
        self.finished = trio.Event()

    def table(self) -> dict[str, Callable[[Event, Emit], Awaitable[Event]]]:
        return {
            "echo": self.echo,
            "count": self.count,
            "wait": self.wait,
            "unmount": self.wait,
            "refuse": self.refuse,
            "crash": self.crash,
            "flood": self.flood,
        }

    async def echo(self, args: Event, emit: Emit) -> Event:
        return args

    async def count(self, args: Event, emit: Emit) -> Event:
        for number in range(3):
            await emit({"event": "progress", "done": number})
        return {"counted": 3}

    async def wait(self, args: Event, emit: Emit) -> Event:
        self.waiting.set()
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        self.finished.set()
        return {"saved": True}

    async def refuse(self, args: Event, emit: Emit) -> Event:
        raise wire.ReplyError(
            "no", remedy="yes", exit_code=ExitCode.BUSY, details={"unsaved": ["a"]}
        )

    async def crash(self, args: Event, emit: Emit) -> Event:
        raise RuntimeError("secret detail")

    async def flood(self, args: Event, emit: Emit) -> Event:
        for number in range(20_000):
            await emit({"event": "progress", "done": number, "pad": "x" * 100})
        self.finished.set()
        return {}


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[str, Handlers]]:
    path, handlers = str(tmp_path / "run" / "x.sock"), Handlers()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, path, handlers.table())
        yield path, handlers
        nursery.cancel_scope.cancel()
    assert not Path(path).exists()


async def ask(path: str, cmd: str, args: Event | None = None, **more: Any) -> Event:
    return await trio.to_thread.run_sync(lambda: client.request(path, cmd, args, **more))


async def raw(path: str) -> trio.SocketStream:
    return await trio.open_unix_socket(path)


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    with trio.fail_after(10):
        async with stream:
            async for chunk in stream:
                data += chunk
    return data


async def test_request_events_and_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        assert await ask(path, "echo", {"a": "caf\udce9"}) == {"a": "caf\udce9"}
        events: list[Event] = []
        assert await ask(path, "count", on_event=events.append) == {"counted": 3}
        assert [event["done"] for event in events] == [0, 1, 2]
        mode = os.stat(path).st_mode
        assert stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE(os.stat(Path(path).parent).st_mode) == 0o700


async def test_failures_come_back_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as (path, _):
        with pytest.raises(wire.ReplyError, match="no") as refused:
            await ask(path, "refuse")
        assert refused.value.exit_code is ExitCode.BUSY
        assert refused.value.details == {"unsaved": ["a"]}
        with pytest.raises(UserError, match="failed inside") as crashed:
            await ask(path, "crash")
        assert "secret" not in str(crashed.value)
        assert "secret detail" in caplog.text
        with pytest.raises(UserError, match="does not know"):
            await ask(path, "nothing")
        assert await ask(path, "echo") == {}


async def test_second_server_is_refused_and_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, handlers):
        with pytest.raises(UserError) as caught:
            await server.serve(path, handlers.table())
        assert caught.value.exit_code is ExitCode.ALREADY_MOUNTED
        assert await ask(path, "echo") == {}
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with serving(tmp_path) as (path, _):
        assert await ask(path, "echo") == {}


async def test_long_runtime_path(tmp_path: Path) -> None:
    async with serving(tmp_path / ("d" * 150)) as (path, _):
        assert await ask(path, "echo", {"x": 1}) == {"x": 1}


async def test_a_client_that_hangs_up_cancels_its_handler(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, handlers):
        stream = await raw(path)
        await stream.send_all(wire.encode_request("wait", {}))
        await handlers.waiting.wait()
        await stream.aclose()
        with trio.fail_after(10):
            await handlers.cancelled.wait()


async def test_unmount_goes_on_without_its_client(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, handlers):
        stream = await raw(path)
        await stream.send_all(wire.encode_request("unmount", {}))
        await handlers.waiting.wait()
        await stream.aclose()
        assert await ask(path, "echo") == {}
        handlers.release.set()
        with trio.fail_after(10):
            await handlers.finished.wait()
        assert not handlers.cancelled.is_set()


async def test_a_client_that_does_not_read_does_not_delay_the_handler(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, handlers):
        stream = await raw(path)
        await stream.send_all(wire.encode_request("flood", {}))
        with trio.fail_after(10):
            await handlers.finished.wait()
        await stream.aclose()


async def test_silent_and_slow_clients_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.05)
    async with serving(tmp_path) as (path, _):
        stream = await raw(path)
        await stream.send_all(b'{"v":1,')
        assert await read_all(stream) == b""


async def test_requests_over_the_limit_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        frame = len(wire.encode_request("echo", {"a": ""}))
        longest = "x" * (wire.REQUEST_BYTES_MAX - frame)
        assert await ask(path, "echo", {"a": longest}) == {"a": longest}
        stream = await raw(path)
        await stream.send_all(b"x" * (wire.REQUEST_BYTES_MAX + 1))
        assert b"too long" in await read_all(stream)


async def test_connections_over_the_limit_are_refused_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)
    async with serving(tmp_path) as (path, handlers):
        async with await raw(path) as stream:
            await stream.send_all(wire.encode_request("wait", {}))
            await handlers.waiting.wait()
            with pytest.raises(UserError, match="too many"):
                await ask(path, "echo")
        await handlers.cancelled.wait()
        with trio.fail_after(10):
            while True:
                try:
                    assert await ask(path, "echo") == {}
                    return
                except UserError:
                    await trio.sleep(0.01)


async def test_a_refusal_is_heard_when_the_server_hung_up_before_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)
    refused = threading.Event()
    send_refusal = server._refuse

    async def refuse(stream: trio.SocketStream, message: str) -> None:
        await send_refusal(stream, message)
        await stream.aclose()
        refused.set()

    monkeypatch.setattr(server, "_refuse", refuse)

    class Late(Mapping[str, Any]):
        """Arguments that are ready when the server has closed its end."""

        def __getitem__(self, key: str) -> Any:
            raise KeyError(key)

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[str]:
            assert refused.wait(10)
            return iter(())

    async with serving(tmp_path) as (path, handlers), await raw(path) as stream:
        await stream.send_all(wire.encode_request("wait", {}))
        await handlers.waiting.wait()
        with pytest.raises(UserError, match="too many"):
            await trio.to_thread.run_sync(lambda: client.request(path, "echo", Late()))


async def test_another_users_process_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as (path, _):
        monkeypatch.setattr(server, "peer_uid", lambda sock: os.geteuid() + 1)
        with pytest.raises(UserError, match="another user"):
            await ask(path, "echo")


async def test_peer_uid_is_that_of_the_other_end(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right:
        assert server.peer_uid(left) == os.geteuid()


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(client.DaemonGoneError) as caught:
        client.request(str(tmp_path / "none.sock"), "status")
    assert caught.value.exit_code is ExitCode.NOT_MOUNTED
    missing = str(tmp_path / ("x" * 150) / "none.sock")
    with pytest.raises(client.DaemonGoneError):
        client.request(missing, "status")


async def test_client_timeout(tmp_path: Path) -> None:
    async with serving(tmp_path) as (path, _):
        with pytest.raises(client.DaemonSilentError, match=r"within 0\.05 s"):
            await ask(path, "wait", timeout_s=0.05)


async def test_client_sees_a_daemon_that_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with trio.open_nursery() as nursery:

            async def ask_and_fail() -> None:
                with pytest.raises(client.DaemonGoneError, match="ended before"):
                    await ask(path, "wait", timeout_s=None)

            nursery.start_soon(ask_and_fail)
            connection, _ = await trio.to_thread.run_sync(listener.accept)
            connection.close()


@pytest.mark.parametrize("answer", [b"nonsense\n", b"[]\n", b'{"ok":true}\n', b'{"ok":false}\n'])
async def test_client_survives_any_answer(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "x.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve_once)
            with pytest.raises(UserError):
                await ask(path, "status")


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_get_an_answer_or_a_hang_up(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def run() -> None:
        place = tmp_path_factory.mktemp("fuzz")
        async with serving(place) as (path, _):
            stream = await raw(path)
            await stream.send_all(data + b"\n")
            answer = wire.decode(await read_all(stream))
            assert answer["ok"] is False
            assert await ask(path, "echo") == {}

    trio.run(run)
