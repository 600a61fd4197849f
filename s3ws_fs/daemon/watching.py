"""The control command `changes`: what was changed since the last answer, for `s3ws watch`.

    {"watcher": null | id}  ->  {"watcher": id, "from": g, "generation": g, "marks": […], "lost": n}

The answer comes as soon as something was changed, or after WAIT_S without marks. Whoever asks
again with the id misses nothing in between, but what did not fit (`lost`); with an id that is not
known (another daemon, or too long ago) it gets a new one, and knows by `from` what it missed.

Invariants
1. A watcher that hangs up before it has its answer is forgotten at once, and one that has not
   asked for FORGET_S then: nothing more is noted for it.
2. Nothing is sent that was not asked for: one that reads slowly holds up nobody, and what waits for
   it is bounded by core/changefeed.MARKS_MAX.

Called by daemon.commands.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.feed import Feed
from s3ws_fs.control import server
from s3ws_fs.core.changefeed import Marks, mark_json
from s3ws_fs.core.errors import ExitCode, UserError

if TYPE_CHECKING:
    from s3ws_fs.daemon.daemon import Daemon

WATCHERS_MAX: Final = 8
WAIT_S: Final = 20.0
GATHER_S: Final = 0.1
"""How long changes gather before an answer: it bounds the answers in a second."""
FORGET_S: Final = 15.0

Event = dict[str, Any]


@dataclass(slots=True)
class _Watcher:
    marks: Marks
    generation: int
    asked_s: float
    busy: int = 0
    more: trio.Event = field(default_factory=trio.Event)


class Watchers:
    """Those who look on at one cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._feed = Feed(cache)
        self._feed.on_marks = self._wake
        self._found: dict[str, _Watcher] = {}
        self._any = trio.Event()

    def _wake(self) -> None:
        for watcher in self._found.values():
            watcher.more.set()

    async def run(self) -> None:
        """Forget those that went. Until cancelled; it sleeps while there are none."""
        while True:
            await self._any.wait()
            await trio.sleep(FORGET_S)
            self.forget()
            if not self._found:
                self._any = trio.Event()

    def forget(self) -> None:
        """Invariant 1."""
        now_s = trio.current_time()
        for name, watcher in list(self._found.items()):
            if not watcher.busy and now_s - watcher.asked_s >= FORGET_S:
                del self._found[name]
                self._feed.unwatch(watcher.marks)

    def _get(self, name: object) -> tuple[str, _Watcher]:
        if isinstance(name, str) and name in self._found:
            return name, self._found[name]
        self.forget()
        if len(self._found) >= WATCHERS_MAX:
            raise UserError(
                f"{WATCHERS_MAX} others watch this mount already",
                remedy="end one of them; it is forgotten 15 s later",
                exit_code=ExitCode.BUSY,
            )
        made = secrets.token_hex(8)
        watcher = _Watcher(self._feed.watch(), self._cache.generation, trio.current_time())
        self._found[made] = watcher
        self._any.set()
        return made, watcher

    async def changes(self, args: Event) -> Event:
        """One answer. A watcher that is new is answered at once."""
        name, watcher = self._get(args.get("watcher"))
        watcher.busy += 1
        try:
            if name == args.get("watcher"):
                await self._wait(watcher)
            self._feed.settle()
            marks, lost = watcher.marks.take()
            before, watcher.generation = watcher.generation, self._cache.generation
        except trio.Cancelled:
            watcher.asked_s = -math.inf
            raise
        else:
            watcher.asked_s = trio.current_time()
        finally:
            watcher.busy -= 1
            self.forget()
        return {
            "watcher": name,
            "from": before,
            "generation": watcher.generation,
            "marks": [mark_json(mark, generation) for generation, mark in marks],
            "lost": lost,
        }

    async def _wait(self, watcher: _Watcher) -> None:
        with trio.move_on_after(WAIT_S):
            while True:
                watcher.more = trio.Event()
                self._feed.settle()
                if watcher.marks:
                    break
                await watcher.more.wait()
            await trio.sleep(GATHER_S)


class WatchCommands:
    """The handler."""

    def __init__(self, life: Daemon) -> None:
        self._life = life

    def handlers(self) -> dict[str, server.Handler]:
        """By command."""
        return {"changes": self._changes}

    async def _changes(self, args: Event, emit: server.Emit) -> Event:
        life = self._life
        if life.parts is None or life.state == "restoring":
            raise UserError(
                "the workspace is not mounted yet, or any more",
                remedy="try again when it is",
                exit_code=ExitCode.NOT_MOUNTED,
            )
        return await life.parts.watchers.changes(args)
