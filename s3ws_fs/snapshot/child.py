"""The daemon's side of the snapshot child: start it, hear it, end it.

Invariants
1. It is ended, and has ended, when `run` returns or is cancelled, whatever happened.
2. While it copies, it holds a read transaction, and the cache's file grows by what is written: one
   that says nothing for COPY_SILENCE_S then is ended. Afterwards it may take SILENCE_S for a step.
3. After its end the cache's reader slots are checked, so that a dead reader pins no pages.

Called by service and by the git state's, on the trio loop. Imports nothing heavy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import FormatError, TransientError
from s3ws_fs.transfer import wire
from s3ws_fs.transfer.client import environment

COPY_SILENCE_S: Final = 120.0
SILENCE_S: Final = 900.0
LINE_BYTES_MAX: Final = 1 << 20

OnEvent = Callable[[dict[str, Any]], None]
RunJob = Callable[[dict[str, Any], OnEvent], Awaitable[dict[str, Any]]]


def ignore(_: dict[str, Any]) -> None:
    """An OnEvent for whom nobody listens."""
    return


"""Does a job: an async function like `run`."""


async def run(
    job: dict[str, Any], on_event: OnEvent, *, reader_check: Callable[[], object]
) -> dict[str, Any]:
    """Have a child do a job; returns what came of it.

    Raises what the child raised; TransientError when it died or was ended.
    """
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "s3ws_fs.snapshot"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdin.send_all(json.dumps(job).encode("ascii") + b"\n")
        return await _hear(process.stdout, on_event)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise TransientError("snapshot", "", "the snapshot child died") from None
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()
            reader_check()


async def _hear(stream: trio.abc.ReceiveStream, on_event: OnEvent) -> dict[str, Any]:
    silence_s = COPY_SILENCE_S
    held = b""
    while True:
        with trio.move_on_after(silence_s) as patience:
            data = await stream.receive_some(1 << 16)
        if patience.cancelled_caught:
            raise TransientError("snapshot", "", f"no word from its child for {silence_s:g} s")
        if not data:
            raise TransientError("snapshot", "", "the snapshot child died")
        held += data
        *lines, held = held.split(b"\n")
        if len(held) > LINE_BYTES_MAX:
            raise FormatError("snapshot child", "a line that is too long")
        for line in lines:
            said = jsontext.object_of(line, "snapshot child")
            if "error" in said:
                raise wire.error_from(said["error"])
            if "ok" in said:
                done: dict[str, Any] = said["ok"]
                return done
            if said.get("phase") != "copying":
                silence_s = SILENCE_S
            on_event(said)
