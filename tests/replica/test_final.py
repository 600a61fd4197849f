"""The end of a mount: it comes, whatever the store does."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing

from s3ws_fs.core.errors import TransientError
from s3ws_fs.replica import final, report
from s3ws_fs.replica.final import FINAL_CYCLES_MAX, FINAL_TRIES, FinalFlush


class Stub:
    """Worker, lease, cycle and schedule of a mount of which something is never saved."""

    late = None
    next_try_s = 0.0

    def quiet_left_s(self) -> float:
        return 0.0

    async def quiet_over(self, progress: object) -> None:
        await trio.lowlevel.checkpoint()

    def is_clean(self) -> bool:
        return False


async def nothing(*_: object) -> None:
    raise AssertionError("the lease is given back only when all is saved")


@pytest.mark.parametrize(
    ("error", "cycles"), [(None, FINAL_CYCLES_MAX), (TransientError("put", "k", "x"), FINAL_TRIES)]
)
async def test_it_ends_and_says_what_is_not_saved(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    error: Exception | None,
    cycles: int,
) -> None:
    monkeypatch.setattr(report, "unsaved", lambda _: ["left"])
    done = 0

    async def cycle(_: object) -> Exception | None:
        nonlocal done
        done += 1
        await trio.lowlevel.checkpoint()
        return error

    stub = cast(Any, Stub())
    flush = FinalFlush(stub, stub, stub, stub, stub, stub, trio.Lock(), cycle, nothing)
    with trio.fail_after(final.FINAL_SILENCE_S):
        assert await flush.run(lambda _: None) == ["left"]
    assert done == cycles
    assert flush.error == (None if error is None else str(error))
