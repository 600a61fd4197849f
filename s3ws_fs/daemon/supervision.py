"""What the service manager hears of a mount: ready, how far it is saved, that the end takes time.

Invariants
1. Without a service manager nothing runs and nothing is sent.
2. While the workspace is restored, and from the moment the end is asked for until it has come, the
   manager's timeout is extended again and again (EXTEND_EVERY_S, far below EXTEND_S), but not for a
   restore that says nothing for RESTORE_SILENCE_S: the manager may end it. The final flush has
   limits of its own (replica/final.py), and is cut short by nothing here.
3. A mount with nothing to save wakes for it once in IDLE_S; the path of a change is not touched.

Called by daemon.daemon and its entry.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from s3ws_fs.control.servicemanager import ServiceManager
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.daemon.commands import Event, Outcome

if TYPE_CHECKING:
    from s3ws_fs.daemon.daemon import Daemon

EXTEND_EVERY_S: Final = 5.0
EXTEND_S: Final = 30.0
RESTORE_SILENCE_S: Final = 300.0
PENDING_S: Final = 2.0
"""Between two texts while something is not saved."""
IDLE_S: Final = 60.0
PAUSE_S: Final = 1.0
"""At least so long between two looks, whatever happens."""


class Supervision:
    """Tells the service manager of one daemon's mount."""

    def __init__(self, life: Daemon, manager: ServiceManager) -> None:
        self._life = life
        self._manager = manager
        self._news = trio.Event()
        self._heard: Event = {}
        self._heard_s: float | None = None
        self._said_status = ""
        self._said_ready = False
        self._said_stopping = False

    def changed(self) -> None:
        """The mount's state is another one: said at once."""
        if self._manager.is_there:
            self._tell()
            self._news.set()

    def heard(self, event: Event) -> None:
        """Restore or flush went on."""
        if self._manager.is_there:
            self._heard, self._heard_s = event, trio.current_time()

    def ended(self, outcome: Outcome | None) -> None:
        """The last word."""
        text = "ended by an error"
        if outcome is not None:
            text = outcome.message or "unmounted: everything is saved"
        self._manager.tell(STATUS=text)

    async def run(self) -> None:
        """Until cancelled."""
        if not self._manager.is_there:
            return
        while True:
            self._tell()
            await self._next_look()
            await trio.sleep(PAUSE_S)

    async def _next_look(self) -> None:
        """Until there may be something to say."""
        self._news = trio.Event()
        parts, is_under_way = self._life.parts, self._is_under_way()
        if is_under_way or parts is None or pending_text(self._summary() or {}):
            with trio.move_on_after(EXTEND_EVERY_S if is_under_way else PENDING_S):
                await self._news.wait()
            return
        with trio.move_on_after(IDLE_S):
            async with trio.open_nursery() as nursery:
                for wait in (self._news.wait, parts.replica.next_change):
                    nursery.start_soon(_first, nursery.cancel_scope, wait)

    def _is_ending(self) -> bool:
        return self._life.stop.is_set() or self._life.state == "unmounting"

    def _is_under_way(self) -> bool:
        return self._is_ending() or self._life.state != "ready"

    def _tell(self) -> None:
        life = self._life
        words: dict[str, object] = {}
        if life.state == "ready" and not self._said_ready:
            self._said_ready = True
            words["READY"] = 1
        if self._is_ending() and not self._said_stopping:
            self._said_stopping = True
            words["STOPPING"] = 1
        if self._is_ending() or (life.state != "ready" and not self._is_silent()):
            words["EXTEND_TIMEOUT_USEC"] = int(EXTEND_S * 1e6)
        summary = self._summary()
        text = status_text(life.state, summary, self._heard if self._is_under_way() else {})
        if text != self._said_status:
            self._said_status = text
            words["STATUS"] = text
        self._manager.tell(**words)

    def _summary(self) -> Event | None:
        """What the replica says; None while there is none, or when the cache can't be read."""
        parts = self._life.parts
        try:
            return None if parts is None else parts.replica.summary()
        except S3wsError:
            return None

    def _is_silent(self) -> bool:
        if self._heard_s is None:
            self._heard_s = trio.current_time()
        return trio.current_time() - self._heard_s > RESTORE_SILENCE_S


async def _first(scope: trio.CancelScope, wait: Callable[[], Awaitable[None]]) -> None:
    await wait()
    scope.cancel()


def status_text(state: str, summary: Event | None, event: Event) -> str:
    """One line for a person: the state, what is not saved, and what is done about it."""
    text = {"ready": "mounted", "unmounting": "final flush"}.get(state, state)
    if summary is not None and state in ("ready", "unmounting"):
        text += f": {pending_text(summary) or 'everything is saved'}"
    if event.get("phase"):
        done, total = event.get("done"), event.get("total")
        text += f" ({event['phase']}{f' {done}/{total}' if total else ''})"
    health = {} if summary is None else summary["health"]
    if health.get("state", "ok") != "ok":
        text += f"; {health['state']}: {health.get('error')}"
    return text


def pending_text(summary: Event) -> str:
    """What is not saved; "" for nothing."""
    said = []
    if summary.get("changes"):
        least = "at least " if summary["is_floor"] else ""
        said.append(f"{least}{summary['files']} files pending, {summary['changes']} changes")
    if summary.get("to_mirror"):
        said.append(f"{summary['to_mirror']} files to mirror")
    return ", ".join(said)
