"""Processes of a container, as its first process has to treat them.

Invariants
1. Signals are blocked and taken up one by one, so that none can come between two steps.
2. Every process that dies below us is collected, also when another init is process 1.
3. SIGTERM starts the grace. All that counts on it asks `Grace`; it starts once.
4. A command that outlasts its part of the grace is killed, with its process group.
5. When memory is short the kernel takes the command, not what saves its work.

Called by container.entrypoint only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
FORWARDED: Final = ENDING | {signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH}
OOM_SCORE: Final = Path("/proc/self/oom_score_adj")
OOM_SCORE_OF_COMMAND: Final = 500
AGAIN_S: Final = 1.2
"""A daemon takes two signals within a second for one."""
KILL_WAIT_S: Final = 2.0
"""How long processes that were killed may take to be gone."""
POLL_S: Final = 0.05
_PR_SET_CHILD_SUBREAPER: Final = 36


def say(text: str) -> None:
    """A line for whoever reads the container's log."""
    sys.stderr.write(f"s3ws-entrypoint: {text}\n")
    sys.stderr.flush()


class Grace:
    """The time between SIGTERM and the runtime's SIGKILL, and the command's part of it."""

    def __init__(self, whole_s: float, command_s: float) -> None:
        self.whole_s = whole_s
        self.command_s = command_s
        self._started_s: float | None = None

    @property
    def runs(self) -> bool:
        """Whether it has started."""
        return self._started_s is not None

    def start(self) -> None:
        """From now on; once."""
        if self._started_s is None:
            self._started_s = time.monotonic()

    def command_left_s(self) -> float | None:
        """Seconds that the command has left; None when no grace has started."""
        return self._left_s(self.command_s)

    def left_s(self, before_end_s: float) -> float | None:
        """Seconds until so long before the end; None when no grace has started."""
        return self._left_s(self.whole_s - before_end_s)

    def _left_s(self, part_s: float) -> float | None:
        if self._started_s is None:
            return None
        return max(0.0, self._started_s + part_s - time.monotonic())


class Init:
    """Starts processes and waits for them, while it collects all others."""

    def __init__(self, grace: Grace) -> None:
        self._grace = grace
        self.asked_to_end: signal.Signals | None = None
        self.collected: set[int] = set()
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def next_signal(self, timeout_s: float | None) -> signal.Signals | None:
        """The next signal for us, SIGCHLD among them; None when time is over."""
        wanted = FORWARDED | {signal.SIGCHLD}
        if timeout_s is None:
            info: signal.struct_siginfo | None = signal.sigwaitinfo(wanted)
        else:
            info = signal.sigtimedwait(wanted, timeout_s)
        if info is None:
            return None
        number = signal.Signals(info.si_signo)
        if number in ENDING:
            self.asked_to_end = number
        if number is signal.SIGTERM:
            self._grace.start()
        return number

    def run(
        self,
        command: list[str],
        *,
        name: str,
        left_s: Callable[[], float | None] = lambda: None,
        too_late: Callable[[], None] = lambda: None,
    ) -> int:
        """Run a command of ours to its end; its exit code, or 128 + n.

        `too_late` is called when `left_s` says that no time is left, and again every AGAIN_S.
        """
        # Standard output belongs to the container's command alone.
        process = subprocess.Popen(command, stdout=sys.stderr, preexec_fn=default_signals)
        told_s: float | None = None
        while (code := self.collect(process.pid)) is None:
            remaining_s = left_s() if told_s is None else told_s + AGAIN_S - time.monotonic()
            if remaining_s is not None and remaining_s <= 0:
                told_s = time.monotonic()
                too_late()
            elif (number := self.next_signal(remaining_s)) in ENDING:
                say(f"{number.name} noted; `{name}` has to end first")
        process.returncode = code
        return code

    def run_command(
        self, command: list[str], env: Mapping[str, str], *, cwd: str, uid: int, gid: int
    ) -> int:
        """Run the container's command to its end: our signals are its. Raises OSError."""
        other = (uid, gid) != (os.getuid(), os.getgid())
        with _chosen_first_by_oom():
            process = subprocess.Popen(
                command,
                user=uid if other else None,
                group=gid if other else None,
                extra_groups=[] if other else None,
                cwd=cwd,
                env=env,
                process_group=0,
                preexec_fn=default_signals,
            )
        if os.isatty(0):
            os.tcsetpgrp(0, process.pid)
        is_late = False
        while (code := self.collect(process.pid)) is None:
            remaining_s = None if is_late else self._grace.command_left_s()
            if remaining_s == 0.0:
                is_late = True
                say(f"the command did not end in {self._grace.command_s:g} s: killing it")
                _signal_group(process.pid, signal.SIGKILL)
                continue
            number = self.next_signal(remaining_s)
            if number is not None and number is not signal.SIGCHLD:
                _signal_group(process.pid, number)
        process.returncode = code
        _signal_group(process.pid, signal.SIGTERM)
        return code

    def collect(self, wanted: int) -> int | None:
        """Collect all that have ended. The exit code of `wanted`, if it is among them."""
        code = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return code
            if pid == 0:
                return code
            self.collected.add(pid)
            if pid == wanted:
                exit_code = os.waitstatus_to_exitcode(status)
                code = exit_code if exit_code >= 0 else 128 - exit_code

    def end_the_rest(self, spared_session: int | None) -> None:
        """End every other process of the container, but those of the daemon's session."""
        left_s = self._grace.command_left_s()
        polite_s = self._grace.command_s if left_s is None else left_s
        for number, limit_s in ((signal.SIGTERM, polite_s), (signal.SIGKILL, KILL_WAIT_S)):
            deadline_s = time.monotonic() + limit_s
            rest = list(_others(spared_session))
            for pid in rest:
                send(pid, number)
            while rest and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
                self.collect(-1)
                rest = list(_others(spared_session))
            if not rest:
                return


def default_signals() -> None:
    """Between fork and exec: what a program expects."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)


@contextlib.contextmanager
def _chosen_first_by_oom() -> Iterator[None]:
    """What is started in the block is what the kernel ends first when memory is short.

    By inheritance: after the change of user it can't be set any more. Where the runtime asked for
    more than this, it stays.
    """
    before = int(OOM_SCORE.read_text())
    if before < OOM_SCORE_OF_COMMAND:
        with contextlib.suppress(OSError):
            OOM_SCORE.write_text(str(OOM_SCORE_OF_COMMAND))
    try:
        yield
    finally:
        # Down to where it was is allowed to everybody, but not below what the runtime set.
        with contextlib.suppress(OSError):
            OOM_SCORE.write_text(str(before))


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _others(spared_session: int | None) -> Iterator[int]:
    """Living processes below us (for process 1: all others), without the spared session."""
    ours = os.getpid()
    parents: dict[int, int] = {}
    candidates: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == ours:
            continue
        try:
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, ppid, _pgrp, session = text.rpartition(")")[2].split()[:4]
        parents[int(entry.name)] = int(ppid)
        if state not in "ZX" and int(session) != spared_session:
            candidates.append(int(entry.name))
    for pid in candidates:
        above = pid
        while above in parents:
            above = parents[above]
        if ours in (1, above):
            yield pid
