"""The first process of a container: mount the workspace, run the command in it, save, end.

    s3ws-entrypoint COMMAND…     run the command in the workspace
    s3ws-entrypoint --serve      only keep it mounted, for other containers (a sidecar)
    s3ws-entrypoint --health     exit 0 when the mount is there and its daemon answers

Invariants
1. The command starts only when the workspace is mounted and ready.
2. Signals go to the command; whatever ends it, the workspace is unmounted with its final flush.
3. SIGTERM starts the grace: the command first, which is killed when its part of the grace is over;
   then the flush, which gives up in time to say what is not saved before the runtime kills us.
4. The exit code is the command's (128 + n when signal n ended it), unless the flush did not bring
   everything into the bucket: then it is 7, with the list of what is missing on stderr. Codes of a
   mount that failed are those of `s3ws mount` (10: this container may not mount).
5. Stopped means saved also for processes that the command left behind: they are ended before the
   workspace is unmounted.
6. The bucket's credentials are not handed to the command, unless WORKSPACE_PASS_CREDENTIALS=1: who
   has them can read every workspace in the bucket.

Started by container runtimes. It runs `s3ws` as a person does, and imports nothing heavy.
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from s3ws_fs.container.preflight import MountRefusedError, check_container
from s3ws_fs.container.processes import Grace, Init, default_signals, say, send
from s3ws_fs.core.errors import ExitCode

S3WS: Final = (sys.executable, "-P", "-m", "s3ws_fs")
SERVE: Final = "--serve"
HEALTH: Final = "--health"
EXIT_UNHEALTHY: Final = 1
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
STOP_GRACE_S: Final = 10.0
"""What `docker stop` gives."""
STOP_GRACE_S_MAX: Final = 86_400.0
COMMAND_SHARE: Final = 0.4
GIVE_UP_S: Final = 3.0
"""So long before the end of the grace the flush gives up: what is missing has to be told."""
BUSY_TRIES_MAX: Final = 600
"""How often a mount that other containers use is asked for (each waits a second)."""
SERVE_LOOK_S: Final = 30.0


class SettingsError(Exception):
    """A variable of ours holds what it can't."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says to the entrypoint alone."""

    mountpoint: str
    uid: int
    gid: int
    stop_grace_s: float
    command_grace_s: float
    take_over: bool
    pass_credentials: bool

    @classmethod
    def load(cls, env: Mapping[str, str]) -> Settings:
        """From the environment. Raises SettingsError."""
        try:
            uid, _, gid = env.get("WORKSPACE_RUN_AS", "10001:10001").partition(":")
            ids = (int(uid), int(gid or uid))
            stop_s = float(env.get("WORKSPACE_STOP_GRACE", STOP_GRACE_S))
            command_s = float(env.get("WORKSPACE_COMMAND_GRACE", stop_s * COMMAND_SHARE))
        except ValueError as exc:
            raise SettingsError(
                "WORKSPACE_RUN_AS is UID:GID, WORKSPACE_STOP_GRACE and WORKSPACE_COMMAND_GRACE are"
                f" seconds: {exc}"
            ) from None
        if not 0 <= command_s <= stop_s <= STOP_GRACE_S_MAX or min(ids) < 0:
            raise SettingsError(
                f"WORKSPACE_COMMAND_GRACE ({command_s:g} s) is a part of WORKSPACE_STOP_GRACE"
                f" ({stop_s:g} s, at most {STOP_GRACE_S_MAX:g}), and ids are not negative"
            )
        if os.getuid() != 0:
            # Who is not root can be nobody else.
            ids = (os.getuid(), os.getgid())
        return cls(
            mountpoint=env.get("WORKSPACE_MOUNTPOINT", "/workspace"),
            uid=ids[0],
            gid=ids[1],
            stop_grace_s=stop_s,
            command_grace_s=command_s,
            take_over=_is_on(env.get("WORKSPACE_TAKE_OVER", "")),
            pass_credentials=_is_on(env.get("WORKSPACE_PASS_CREDENTIALS", "")),
        )


def _is_on(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")


class Mounted:
    """The workspace of this container, by the `s3ws` command."""

    def __init__(self, init: Init, grace: Grace, settings: Settings) -> None:
        self._init = init
        self._grace = grace
        self._settings = settings
        self._pid: int | None = None
        self._gave_up = False

    def mount(self) -> int:
        """Mount; the exit code of `s3ws mount`."""
        options = ["--take-over"] if self._settings.take_over else []
        return self._s3ws("mount", *options)

    def session(self) -> int | None:
        """The session of the daemon and its holder, which the holder leads."""
        try:
            return os.getsid(status_of(self._settings.mountpoint)["pid"])
        except (KeyError, TypeError, OSError):
            return None

    def save(self) -> bool:
        """Unmount with the final flush. True when everything is in the bucket."""
        status = status_of(self._settings.mountpoint)
        if status.get("state") == "dead":
            say("the daemon is gone; mounting once more to save what its cache holds")
            if code := self.mount():
                return _not_saved(code)
            status = status_of(self._settings.mountpoint)
        pid = status.get("pid")
        self._pid = pid if isinstance(pid, int) else None
        if self._grace.runs:
            # Then the end does not wait for those who use the mount, and one more signal ends it.
            self._signal_daemon()
        code = self._s3ws("umount")
        if code == ExitCode.BUSY:
            # By other containers. The daemon saves, refuses changes, saves the rest, and leaves.
            self._signal_daemon()
            for _ in range(BUSY_TRIES_MAX):
                code = self._s3ws("umount")
                if code != ExitCode.BUSY:
                    break
        # Its entry goes only when everything is saved: a mount that is gone by now is no loss.
        return code in (ExitCode.OK, ExitCode.NOT_MOUNTED) or _not_saved(code)

    def _s3ws(self, word: str, *options: str) -> int:
        mountpoint = self._settings.mountpoint
        return self._init.run(
            [*S3WS, word, *options, mountpoint],
            name=f"s3ws {word} {mountpoint}",
            left_s=lambda: None if self._pid is None else self._grace.left_s(GIVE_UP_S),
            too_late=self._give_up,
        )

    def _give_up(self) -> None:
        if not self._gave_up:
            say("the grace is nearly over: giving up on the flush")
        self._gave_up = True
        # To a daemon that flushes, a signal says: give up, and tell what is missing.
        self._signal_daemon()

    def _signal_daemon(self) -> None:
        if self._pid is not None:
            send(self._pid, signal.SIGTERM)


def status_of(mountpoint: str) -> dict[str, Any]:
    """What `s3ws status` knows of the mount; {} when it knows nothing."""
    done = subprocess.run(
        [*S3WS, "status", "--json", mountpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=default_signals,
        check=False,
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _not_saved(code: int) -> bool:
    cache = os.environ.get("WORKSPACE_CACHE_DIR", "the cache directory")
    say(
        f"the final flush ended with code {code}: NOT everything is in the bucket.\n"
        f"What is missing stands in {cache}. Start a container with the same settings and that"
        " directory, and it will be saved."
    )
    return False


def command_environment(settings: Settings) -> dict[str, str]:
    """What the command gets of ours."""
    env = dict(os.environ)
    if not settings.pass_credentials:
        for name in CREDENTIALS:
            env.pop(name, None)
    if settings.uid != os.getuid():
        try:
            user = pwd.getpwuid(settings.uid)
        except KeyError:
            env["HOME"] = "/tmp"  # noqa: S108 - the only place a nameless user can write to
        else:
            env |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    return env


def _run_command(init: Init, command: list[str], settings: Settings) -> int:
    if shutil.which(command[0]) is None:
        say(f"there is no program {command[0]!a}")
        return EXIT_NOT_FOUND
    try:
        return init.run_command(
            command,
            command_environment(settings),
            cwd=settings.mountpoint,
            uid=settings.uid,
            gid=settings.gid,
        )
    except OSError as exc:
        say(f"can't run {command[0]!a}: {exc.strerror}")
        return EXIT_NOT_EXECUTABLE


def _serve(init: Init, mounted: Mounted, mountpoint: str) -> int:
    """Stay until a signal says to end, or the mount is over."""
    holder = mounted.session()
    say(f"{mountpoint} is mounted")
    while init.asked_to_end is None:
        init.next_signal(SERVE_LOOK_S)
        init.collect(-1)
        if holder in init.collected:
            say("the mount has ended")
            break
    return 0


def _stands(mountpoint: str) -> bool:
    """Whether a FUSE filesystem is mounted there, as the kernel's table says: it is not touched."""
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == mountpoint and after.startswith("fuse"):
            return True
    return False


def health(mountpoint: str) -> int:
    """For health checks: a store that is away is no reason to start a container anew."""
    status = status_of(mountpoint) if _stands(mountpoint) else {}
    state = status.get("state", "not mounted")
    sys.stdout.write(f"{mountpoint}: {state}\n")
    return 0 if state == "ready" else EXIT_UNHEALTHY


def _run(command: list[str], settings: Settings) -> int:
    if settings.uid != os.getuid():
        os.environ.setdefault("WORKSPACE_ALLOW_OTHER", "true")
        os.environ.setdefault("WORKSPACE_ROOT_UID", str(settings.uid))
        os.environ.setdefault("WORKSPACE_ROOT_GID", str(settings.gid))
    os.environ.setdefault("WORKSPACE_UNMOUNT_GRACE", f"{settings.command_grace_s:g}")
    with contextlib.suppress(OSError):
        # It may answer ENOTCONN: what a killed container left there, which `mount` clears.
        Path(settings.mountpoint).mkdir(parents=True, exist_ok=True)
    grace = Grace(settings.stop_grace_s, settings.command_grace_s)
    init = Init(grace)
    mounted = Mounted(init, grace, settings)
    if code := mounted.mount():
        return code
    if init.asked_to_end is not None:
        code = 128 + init.asked_to_end
    elif command == [SERVE]:
        code = _serve(init, mounted, settings.mountpoint)
    else:
        code = _run_command(init, command, settings)
    init.end_the_rest(mounted.session())
    os.chdir("/")
    return code if mounted.save() else ExitCode.NOT_SAVED


def main() -> None:
    """Run to the end of the container; exits."""
    command = sys.argv[1:] or [SERVE]
    try:
        settings = Settings.load(os.environ)
        if command == [HEALTH]:
            sys.exit(health(settings.mountpoint))
        check_container()
    except SettingsError as exc:
        say(str(exc))
        sys.exit(ExitCode.BAD_SETTINGS)
    except MountRefusedError as exc:
        say(str(exc))
        sys.exit(ExitCode.NO_FUSE)
    sys.exit(_run(command, settings))
