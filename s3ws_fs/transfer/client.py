"""The daemon's side of the transfer worker: spawn on demand, ask, stream, survive its death.

Invariants
1. The daemon never waits for the store itself: every request has a deadline (TransientError).
2. A worker that died is spawned again by the next request, not more often than RESPAWN_S allows;
   whoever waited for it gets TransientError: what was under way is planned again.
3. A worker that is stopped or stuck is as good as dead: while anything is asked of it, silence is
   broken by a ping, and one that is not answered for STUCK_S ends it. What it does with the store
   may take as long as it takes: it answers pings all the while, with what it waits for (`late`).
4. After a death the cache's reader slots are checked, so that a dead reader pins no pages.
5. Credentials reach the worker, and the snapshot child, by their environment only, and no other
   child of the daemon.
6. `hello["lease"]` is the newest proof that a worker reported: the next worker goes on from it.

Called by replica (in the daemon, on the trio loop).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import trio

from s3ws_fs.core.errors import FormatError, StartOverError, TransientError
from s3ws_fs.transfer import early, wire

HELLO_DEADLINE_S: Final = 60.0
REQUEST_DEADLINE_S: Final = 600.0
RESPAWN_S: Final = 1.0
SEND_DEADLINE_S: Final = 30.0
"""A worker that reads nothing for so long is ended."""
END_GRACE_S: Final = 3.0
PING_S: Final = 5.0
STUCK_S: Final = 30.0
"""Much longer than a busy machine needs: ending a worker that was only slow costs what it did."""

TOLD_S: Final = 10.0
"""A worker silent for so long is told."""
SILENT: Final[dict[str, Any]] = {"op": "the transfer", "key": "worker", "failures": 0}
PING_ID: Final = 0
"""Requests proper are numbered from 1."""

_TRAFFIC: Final = ("requests", "sent_bytes", "received_bytes")
OPS: Final = ("put", "get", "list", "copy", "delete", "head")
"""As store.base has them, which the daemon does not load."""

OnPart = Callable[[dict[str, Any], memoryview], Awaitable[None]]


class Running(Protocol):
    """A worker's process, as far as it is used here: trio.Process, or a simulated one."""

    @property
    def pid(self) -> int:
        """Its process id."""

    async def wait(self) -> int:
        """Until it has ended."""

    def kill(self) -> None:
        """End it at once."""


CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
"""Variables that hold secrets themselves (others name files or roles)."""

_withheld: dict[str, str] = {}


def withhold_credentials() -> None:
    """Take the credentials out of this process's environment: from now on only workers get them."""
    for name in CREDENTIALS:
        value = os.environ.pop(name, None)
        if value is not None:
            _withheld[name] = value


def environment() -> dict[str, str]:
    """This process's environment with the credentials: for a child that talks to the store."""
    return early.with_few_heaps({**os.environ, **_withheld})


Start = Callable[[], Awaitable[tuple[Running, trio.abc.Stream]]]
"""Starts a worker; the stream leads to it."""


class _Early:
    """A worker's process that was started before there was a loop."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Until it has ended."""
        if self._process.poll() is None:
            fd = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(fd)
            finally:
                os.close(fd)
        return self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


async def start_process() -> tuple[Running, trio.abc.Stream]:
    """A worker as a child process: the early one, if there is one that still waits."""
    if (started := early.take()) is not None:
        if started.process.poll() is None:
            return _Early(started.process), _stream(started.sock)
        started.sock.close()
    ours, theirs = socket.socketpair()
    with theirs:
        process = await trio.lowlevel.open_process(
            early.command(theirs.fileno()),
            pass_fds=(theirs.fileno(),),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    return process, _stream(ours)


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests to the store by "operation outcome" (store.base.Counters), and bytes of objects."""

    requests: Counter[str] = field(default_factory=Counter)
    sent_bytes: int = 0
    received_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.requests + other.requests,
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
        )

    def by_op(self) -> dict[str, int]:
        """Requests by operation; every name of OPS is there."""
        totals = dict.fromkeys(OPS, 0)
        for name, count in self.requests.items():
            op = name.partition(" ")[0]
            totals[op] = totals.get(op, 0) + count
        return totals

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Traffic:
        """The inverse of `to_json`. Raises FormatError."""
        requests, sent, received = (value.get(name) for name in _TRAFFIC)
        numbers = [sent, received, *(requests.values() if isinstance(requests, dict) else (None,))]
        if not all(type(number) is int for number in numbers):
            raise FormatError("worker frame", "not what went to the store and came from it")
        return cls(Counter(requests), cast(int, sent), cast(int, received))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "requests": dict(sorted(self.requests.items())),
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
        }


@dataclass(eq=False)
class _Asked:
    """A request under way: parts and the answer go through `send` in order."""

    send: trio.MemorySendChannel[tuple[dict[str, Any], memoryview]]


@dataclass(eq=False)
class _Process:
    """One incarnation of the worker."""

    process: Running
    stream: trio.abc.Stream
    asked: dict[int, _Asked] = field(default_factory=dict)
    heard_s: float = 0.0
    is_up: bool = False
    dead: bool = False
    buried: trio.Event = field(default_factory=trio.Event)


class WorkerClient:
    """Asks the worker; `close` ends it. Its listener is a system task: it needs no nursery."""

    def __init__(
        self,
        hello: dict[str, Any],
        *,
        reader_check: Callable[[], object],
        start: Start = start_process,
    ) -> None:
        """`hello` is the worker's first request (see Session.open); it may be changed later."""
        self.hello = hello
        self._start = start
        self._reader_check = reader_check
        self._current: _Process | None = None
        self._last: _Process | None = None
        self._spawn_lock = trio.Lock()
        self._write_lock = trio.Lock()
        self._next_id = 1
        self._last_spawn_s = -RESPAWN_S
        self._closed = False
        self._traffic_before = Traffic()
        self._traffic_now = Traffic()
        self.spawned = 0
        self.stuck = 0
        """Workers that were ended because they kept silent."""
        self._late: tuple[dict[str, Any], float] | None = None

    @property
    def late(self) -> tuple[str, float] | None:
        """What the store has not answered that it should have: in words, and since when.

        Times are those of trio's clock.
        """
        if self._late is None:
            return None
        said, since_s = self._late
        waited_s = trio.current_time() - since_s
        why = f", {said['failures']} failed: {said['error']}" if said["failures"] else ""
        return f"{said['op']} {said['key']}: no answer for {waited_s:.0f} s{why}", since_s

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None while there is none."""
        return None if self._current is None else self._current.process.pid

    @property
    def traffic(self) -> Traffic:
        """What went to the store and came from it since the daemon began."""
        return self._traffic_before + self._traffic_now

    @property
    def requests(self) -> dict[str, int]:
        """Requests to the store since the daemon began, by operation."""
        return self.traffic.by_op()

    async def close(self) -> None:
        """End the worker: its socket closes, so it exits by itself; killed after END_GRACE_S.

        When this returns, nobody here uses the cache any more, also not for one that died before.
        """
        self._closed = True
        if self._last is not None:
            await self._bury(self._last)

    async def rest(self) -> None:
        """End the worker if nothing is asked of it; the next request starts one again."""
        current = self._current
        if current is not None and not current.asked:
            await self._bury(current)

    async def ask(
        self,
        cmd: str,
        on_part: OnPart | None = None,
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
        **args: Any,
    ) -> dict[str, Any]:
        """One request. Raises what the worker raised; StartOverError when it died, TransientError
        when it took too long.

        The deadline is of silence: it starts anew with every part.
        """
        worker = await self._alive()
        return await self._ask(worker, cmd, on_part, deadline_s, args)

    async def _ask(
        self,
        worker: _Process,
        cmd: str,
        on_part: OnPart | None,
        deadline_s: float,
        args: dict[str, Any],
    ) -> dict[str, Any]:
        number, self._next_id = self._next_id, self._next_id + 1
        send, receive = trio.open_memory_channel[tuple[dict[str, Any], memoryview]](0)
        if not worker.asked:
            worker.heard_s = trio.current_time()
        worker.asked[number] = _Asked(send)
        frame = wire.encode({**args, "id": number, "cmd": cmd})
        try:
            with receive:
                await self._send(worker, frame)
                while True:
                    try:
                        with trio.fail_after(deadline_s):
                            message, payload = await receive.receive()
                    except trio.TooSlowError:
                        raise TransientError(cmd, "", f"no answer in {deadline_s:g} s") from None
                    except (trio.EndOfChannel, trio.ClosedResourceError):
                        raise StartOverError(cmd, "", "the transfer worker died") from None
                    if "part" in message:
                        if on_part is not None:
                            await on_part(message["part"], payload)
                        continue
                    if "error" in message:
                        raise wire.error_from(message["error"])
                    ok: dict[str, Any] = message.get("ok", {})
                    return ok
        finally:
            worker.asked.pop(number, None)
            if not worker.asked:
                self._late = None

    async def _send(self, worker: _Process, frame: bytes) -> None:
        try:
            # Shielded: half a frame would garble every later one.
            async with self._write_lock:
                with trio.move_on_after(SEND_DEADLINE_S, shield=True) as scope:
                    await worker.stream.send_all(frame)
            if scope.cancelled_caught:
                await self._bury(worker)
                raise TransientError("worker", "", "the transfer worker takes no requests")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StartOverError("worker", "", "the transfer worker died") from None

    async def _alive(self) -> _Process:
        async with self._spawn_lock:
            current = self._current
            if current is not None and not current.dead:
                return current
            if self._closed:
                raise TransientError("worker", "", "the transfer worker is shut down")
            wait_s = self._last_spawn_s + RESPAWN_S - trio.current_time()
            if self.spawned and wait_s > 0:
                await trio.sleep(wait_s)
            return await self._spawn()

    async def _spawn(self) -> _Process:
        self._last_spawn_s = trio.current_time()
        process, stream = await self._start()
        self.spawned += 1
        worker = _Process(process, stream)
        self._current = self._last = worker
        trio.lowlevel.spawn_system_task(self._listen, worker)
        try:
            await self._ask(worker, "hello", None, HELLO_DEADLINE_S, self.hello)
            worker.is_up = True
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._bury(worker)
            raise
        return worker

    async def _listen(self, worker: _Process) -> None:
        try:
            while True:
                head = await self._read(worker, wire.HEAD_BYTES)
                rest = await self._read(worker, wire.rest_bytes(head))
                message, payload = wire.decode(head, rest)
                if "traffic" in message:
                    self._traffic_now = Traffic.from_json(message["traffic"])
                if message["id"] == PING_ID and "ok" in message:
                    self._note_late(message["ok"]["late"])
                if "lease" in message:
                    self.hello["lease"] = message["lease"]
                asked = worker.asked.get(message["id"])
                if asked is not None:
                    # Whoever asked may have given up meanwhile: its answer is dropped.
                    with contextlib.suppress(trio.BrokenResourceError):
                        await asked.send.send((message, payload))
        except (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            EOFError,
            FormatError,
            TransientError,
        ):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await self._bury(worker)

    async def _read(self, worker: _Process, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = await self._receive(worker, min(count - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    async def _receive(self, worker: _Process, count: int) -> bytes | bytearray:
        """Some bytes; invariant 3. Only time spent here counts: we may be the slow ones."""
        since_s = trio.current_time()
        while True:
            with trio.move_on_after(PING_S):
                part = await worker.stream.receive_some(count)
                worker.heard_s = trio.current_time()
                if self._late is not None and self._late[0] is SILENT:
                    self._late = None
                return part
            if not worker.is_up or not worker.asked:
                continue
            silent_s = trio.current_time() - max(since_s, worker.heard_s)
            if silent_s >= TOLD_S:
                self._late = (SILENT, trio.current_time() - silent_s)
            if silent_s >= STUCK_S:
                self.stuck += 1
                raise TransientError("worker", "", "the transfer worker is stuck")
            await self._send(worker, wire.encode({"id": PING_ID, "cmd": "ping"}))

    def _note_late(self, said: dict[str, Any] | None) -> None:
        if said is None:
            self._late = None
        else:
            self._late = (said, trio.current_time() - said["waited_s"])

    async def _bury(self, worker: _Process) -> None:
        if worker.dead:
            await worker.buried.wait()
            return
        worker.dead = True
        self._late = None
        if self._current is worker:
            self._current = None
        try:
            await self._end(worker)
        finally:
            worker.buried.set()

    async def _end(self, worker: _Process) -> None:
        for asked in list(worker.asked.values()):
            asked.send.close()
        await worker.stream.aclose()
        with trio.move_on_after(END_GRACE_S) as grace:
            await worker.process.wait()
        if grace.cancelled_caught:
            worker.process.kill()
            await worker.process.wait()
        self._traffic_before, self._traffic_now = self.traffic, Traffic()
        self._reader_check()
