#!/opt/s3ws/bin/python
"""The first process of the container: mount the workspace, run the command in it, save, end.

1. The command starts only when the workspace is mounted and ready.
2. Signals go to the command; whatever ends it, the workspace is unmounted with its final flush.
3. The exit code is the command's (128 + n when signal n ended it), unless the flush did not bring
   everything into the bucket: then it is 7, with the list of what is missing on stderr. Codes of a
   mount that failed are those of `s3ws mount` (10: there is no /dev/fuse).
4. Stopped means saved also for processes that the command left behind: they are ended before the
   workspace is unmounted. As process 1 it collects every process that dies.
5. The bucket's credentials are not handed to the command, unless WORKSPACE_PASS_CREDENTIALS=1: who
   has them can read every workspace in the bucket.

Settings of its own, all from the environment: WORKSPACE_MOUNTPOINT (/workspace), WORKSPACE_RUN_AS
(UID:GID, 10001:10001), WORKSPACE_STOP_GRACE (5). All others are those of `s3ws mount`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

EXIT_BAD_SETTINGS = 3
EXIT_NOT_MOUNTED = 4
EXIT_NOT_SAVED = 7
EXIT_NO_FUSE = 10
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

S3WS = os.environ.get("S3WS_COMMAND", "/opt/s3ws/bin/s3ws")
FUSE_DEVICE = "/dev/fuse"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
FORWARDED = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
)
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
POLL_S = 0.05


def say(text: str) -> None:
    print(f"docker-entrypoint: {text}", file=sys.stderr, flush=True)


class Init:
    """Starts processes and waits for them while collecting all others, as process 1 has to."""

    def __init__(self) -> None:
        self.asked_to_end: signal.Signals | None = None
        # Blocked and taken up by sigwaitinfo below, so that none can come between two steps.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def run(
        self,
        command: list[str],
        *,
        forward: bool = False,
        uid: int | None = None,
        gid: int | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> int:
        """Run to the end; the exit code, or 128 + n. `forward`: signals are its signals."""
        process = subprocess.Popen(
            command,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
            cwd=cwd,
            env=env,
            # Standard output belongs to the command alone.
            stdout=None if forward else sys.stderr,
            process_group=0 if forward else None,
            preexec_fn=_default_signals,
        )
        if forward and os.isatty(0):
            os.tcsetpgrp(0, process.pid)
        while True:
            code = self._collect(process.pid)
            if code is not None:
                process.returncode = code
                if forward:
                    _signal_group(process.pid, signal.SIGTERM)
                return code
            number = signal.Signals(signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD}).si_signo)
            if number is signal.SIGCHLD:
                continue
            if number in ENDING:
                self.asked_to_end = number
            if forward:
                _signal_group(process.pid, number)
            elif number in ENDING:
                say(f"{number.name} noted; `{' '.join(command)}` has to end first")

    def _collect(self, wanted: int) -> int | None:
        """Collect all that have ended. The exit code of `wanted`, if it is among them."""
        code = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return code
            if pid == 0:
                return code
            if pid == wanted:
                exit_code = os.waitstatus_to_exitcode(status)
                code = exit_code if exit_code >= 0 else 128 - exit_code

    def end_the_rest(self, spared_session: int | None, grace_s: float) -> None:
        """End every other process of the container, but those of the daemon's session."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + grace_s
            rest = list(_others(spared_session))
            for pid in rest:
                _signal(pid, number)
            while rest and time.monotonic() < deadline:
                time.sleep(POLL_S)
                self._collect(-1)
                rest = list(_others(spared_session))
            if not rest:
                return


def _default_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _others(spared_session: int | None) -> Iterable[int]:
    """Living processes of this pid namespace, without ourselves and the spared session."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                state, _ppid, _pgrp, session = file.read().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX" and int(session) != spared_session:
            yield int(name)


def daemon_session(mountpoint: str) -> int | None:
    """The session of the daemon and its holder, which the holder leads."""
    done = subprocess.run(
        [S3WS, "status", "--json", mountpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=_default_signals,
        check=False,
    )
    try:
        return os.getsid(json.loads(done.stdout)["pid"])
    except (ValueError, KeyError, TypeError, OSError):
        return None


def run_as() -> tuple[int, int]:
    """(uid, gid) for the command. Raises ValueError."""
    uid, _, gid = os.environ.get("WORKSPACE_RUN_AS", "10001:10001").partition(":")
    return int(uid), int(gid or uid)


def command_environment(uid: int) -> dict[str, str]:
    env = dict(os.environ)
    if os.environ.get("WORKSPACE_PASS_CREDENTIALS") != "1":
        for name in CREDENTIALS:
            env.pop(name, None)
    if uid != os.getuid():
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            env["HOME"] = "/tmp"
        else:
            env |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    return env


def run_command(init: Init, command: list[str], mountpoint: str, uid: int, gid: int) -> int:
    if shutil.which(command[0]) is None:
        say(f"there is no program {command[0]!r}")
        return EXIT_NOT_FOUND
    env = command_environment(uid)
    other = (uid, gid) != (os.getuid(), os.getgid())
    try:
        return init.run(
            command,
            forward=True,
            uid=uid if other else None,
            gid=gid if other else None,
            cwd=mountpoint,
            env=env,
        )
    except OSError as exc:
        say(f"can't run {command[0]!r}: {exc}")
        return EXIT_NOT_EXECUTABLE


def save(init: Init, mountpoint: str) -> bool:
    """Unmount with the final flush. True when everything is in the bucket."""
    code = init.run([S3WS, "umount", mountpoint])
    if code == EXIT_NOT_MOUNTED:
        say("the daemon is gone; mounting once more to save what its cache holds")
        code = init.run([S3WS, "mount", mountpoint]) or init.run([S3WS, "umount", mountpoint])
    if code:
        cache = os.environ.get("WORKSPACE_CACHE_DIR", "the cache directory")
        say(
            f"the final flush ended with code {code}: NOT everything is in the bucket.\n"
            f"What is missing stands in {cache}. Start a container with the same settings and that"
            " directory, and it will be saved."
        )
    return code == 0


def main(command: list[str]) -> int:
    mountpoint = os.environ.get("WORKSPACE_MOUNTPOINT", "/workspace")
    try:
        uid, gid = run_as()
        grace_s = float(os.environ.get("WORKSPACE_STOP_GRACE", "5"))
    except ValueError as exc:
        say(f"WORKSPACE_RUN_AS is UID:GID, WORKSPACE_STOP_GRACE is seconds: {exc}")
        return EXIT_BAD_SETTINGS
    if not os.path.exists(FUSE_DEVICE):
        say(
            f"there is no {FUSE_DEVICE} in this container, so the workspace can't be mounted.\n"
            "Start it with --device /dev/fuse --cap-add SYS_ADMIN (and, where AppArmor is in use,"
            " --security-opt apparmor=unconfined)."
        )
        return EXIT_NO_FUSE
    if uid != os.getuid():
        os.environ.setdefault("WORKSPACE_ALLOW_OTHER", "true")
        os.environ.setdefault("WORKSPACE_ROOT_UID", str(uid))
        os.environ.setdefault("WORKSPACE_ROOT_GID", str(gid))
    os.makedirs(mountpoint, exist_ok=True)
    init = Init()
    code = init.run([S3WS, "mount", mountpoint])
    if code:
        return code
    if init.asked_to_end is None:
        code = run_command(init, command, mountpoint, uid, gid)
    else:
        code = 128 + init.asked_to_end
    if os.getpid() == 1:
        init.end_the_rest(daemon_session(mountpoint), grace_s)
    os.chdir("/")
    return code if save(init, mountpoint) else EXIT_NOT_SAVED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["/bin/bash"]))
