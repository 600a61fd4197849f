"""What is told of a store that does not answer or refuses, and how long it is waited for."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from s3ws_fs.core.errors import PermanentError, TransientError
from tests.replica.conftest import Mounter

pytestmark = pytest.mark.parametrize("store_config", ["local"], indirect=True)

LATE = {
    "op": "put",
    "key": "journal/seg/0000000000000002",
    "waited_s": 12.0,
    "failures": 1,
    "error": "the connection failed",
}


def refuse(m: Any, monkeypatch: pytest.MonkeyPatch, cmds: set[str], error: Exception) -> list[str]:
    """What the worker is asked for of `cmds` is refused; returns what was."""
    ask = m.replica.worker.ask
    asked: list[str] = []

    async def refusing(cmd: str, *args: object, **more: object) -> object:
        if cmd in cmds:
            asked.append(cmd)
            raise error
        return await ask(cmd, *args, **more)

    monkeypatch.setattr(m.replica.worker, "ask", refusing)
    return asked


async def test_a_request_that_waits_is_told_before_it_fails(mounter: Mounter) -> None:
    async with mounter("a") as m:
        assert m.replica.status()["health"] == {"state": "ok", "since_s": None, "error": None}
        m.replica.worker._note_late(LATE)
        health = m.replica.status()["health"]
        assert health["state"] == "degraded"
        assert health["since_s"] >= 12.0
        assert health["error"].startswith("put journal/seg/0000000000000002: no answer for 12 s")
        assert "1 failed: the connection failed" in health["error"]
        m.replica.worker._note_late(None)
        assert m.replica.status()["health"]["state"] == "ok"
        # Answers end it too, whatever the last ping said.
        m.replica.worker._note_late(LATE)
        await m.replica.worker.ask("survey")
        assert m.replica.status()["health"]["state"] == "ok"


async def test_a_store_that_keeps_silent_ends_the_final_flush(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3ws_fs.replica.final.SILENCE_POLL_S", 0.01)
    async with mounter("a") as m:
        m.write("f", b"1")
        said: list[dict[str, Any]] = []

        async def silent(cmd: str, *_: object, **__: object) -> object:
            m.replica.worker._note_late({**LATE, "waited_s": 61.0})
            await trio.sleep_forever()
            raise AssertionError

        with monkeypatch.context() as patch:
            patch.setattr(m.replica.worker, "ask", silent)
            with trio.fail_after(30):
                unsaved = await m.replica.final_flush(said.append)
        assert "f" in unsaved
        assert m.replica.final_error is not None
        assert "no answer for" in m.replica.final_error
        assert said[-1]["phase"] == "waiting for the store"
    async with mounter("a") as m:
        assert await m.read("f") == b"1"
        assert await m.replica.final_flush(lambda _: None) == []


@pytest.mark.parametrize(
    "error",
    [
        TransientError("get", "k", "the server can't be reached"),
        PermanentError("get", "k", "the server does not know this access key"),
    ],
)
async def test_reads_that_fail_are_told_until_the_store_is_back(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with mounter("a") as m:
        m.write("f", b"data")
        await m.sync()
    monkeypatch.setattr("s3ws_fs.core.backoff.RETRY_MIN_S", 0.01)
    async with mounter("b") as m:
        with monkeypatch.context() as patch:
            refuse(m, patch, {"fetch", "check"}, error)
            with trio.move_on_after(0.2):
                await m.read("f")
            health = m.replica.status()["health"]
            assert health["state"] == "degraded"
            assert str(error) in health["error"]
        # Nobody reads any more, and still it is seen that the store answers.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.replica.watch)
            with trio.fail_after(30):
                while m.replica.status()["health"]["state"] != "ok":
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert await m.read("f") == b"data"


async def test_a_read_outlives_a_change_of_keys(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused at first may be allowed a moment later: no EIO before the time is up."""
    async with mounter("a") as m:
        m.write("f", b"data")
        await m.sync()
    async with mounter("b") as m:
        with monkeypatch.context() as patch:
            asked = refuse(m, patch, {"fetch"}, PermanentError("get", "k", "not allowed"))
            async with trio.open_nursery() as nursery:

                async def heal() -> None:
                    while not asked:
                        await trio.sleep(0.01)
                    patch.undo()

                nursery.start_soon(heal)
                assert await m.read("f") == b"data"
