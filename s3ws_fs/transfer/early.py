"""The daemon's first worker, started before the daemon loads its own modules.

Both take about half a second to load what they need. Started at once they do so beside each other,
on two processors in half the time; and the worker goes on to build its client of the store.

Invariants
1. It imports little (tests/transfer/test_early.py says what): all of it is time that the worker
   starts later.
2. The worker gets nothing but what `client.start_process` gives one: its end of the socket, the
   environment it was passed, and no other descriptor of the daemon's.
3. It is asked for no more than to load (`warm`); it has no cache and sends nothing to the store
   before the daemon's `hello`.
4. Who starts it takes it or ends it. When the daemon dies before, the socket closes, and with it
   the worker ends.

Called by the daemon's entry (start, end) and client (take).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

CONFIG_BYTES_MAX: Final = 256 << 10
"""As core.config has it."""
ARENAS_MAX: Final = 2
"""Heaps of glibc's malloc in a child. By default each thread has its own, and keeps in it what was
freed: a worker's dozen held 60 MiB after 70 turns of an agent, 88 after 300, where two hold 30."""
WARM_ID: Final = -1
"""Nobody waits for its answer."""


class Started:
    """A worker's process, and the socket that leads to it."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock


_started: Started | None = None


def command(fd: int) -> list[str]:
    """What runs as a worker whose end of the socket is `fd`."""
    # -P: what lies in the current directory is no module of ours.
    return [sys.executable, "-P", "-m", "s3ws_fs.transfer.worker", "--fd", str(fd)]


def with_few_heaps(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a child with threads; who sets malloc's variable himself has his way."""
    return {"MALLOC_ARENA_MAX": str(ARENAS_MAX), **environ}


def start(arguments: list[str], environ: Mapping[str, str]) -> None:
    """Start a worker for the daemon with these arguments, if it will need one. Never raises.

    A daemon that follows another (`--device-fd`) asks for one when there is something to save.
    """
    global _started
    if "--device-fd" in arguments or _started is not None:
        return
    # Not started now, it is started when it is asked for, and the error is told then.
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        frame = _warm(int(arguments[arguments.index("--config-fd") + 1]))
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_error, theirs:
            on_error.enter_context(ours)
            ours.sendall(frame)
            process = subprocess.Popen(
                command(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=with_few_heaps(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            on_error.pop_all()
        _started = Started(process, ours)


def take() -> Started | None:
    """The worker that was started, once."""
    global _started
    started, _started = _started, None
    return started


def end() -> None:
    """End the worker if nobody took it."""
    started = take()
    if started is not None:
        started.sock.close()
        # It has done nothing yet that could be lost.
        started.process.kill()
        started.process.wait()


def _warm(config_fd: int) -> bytes:
    """A request as wire.encode makes it, of a configuration that nobody has looked at yet.

    The place in the file stays: the daemon reads it from its beginning.
    """
    config = json.loads(os.pread(config_fd, CONFIG_BYTES_MAX, 0))
    ask = {name: config[name] for name in ("store", "workspace", "read_only")}
    body = json.dumps({**ask, "id": WARM_ID, "cmd": "warm"}, separators=(",", ":")).encode()
    return b"".join((*(n.to_bytes(4, "big") for n in (4 + len(body), len(body))), body))
