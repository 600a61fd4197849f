"""Options of mount(8), fstab and volumes as settings of a mount.

Invariants
1. No option takes a secret. One that is not known is refused by its name alone: what somebody put
   behind it may be a key. Credentials are found by `env_file`, `credentials` or `profile`.
2. An option that asks for something the mount does not do is refused, never ignored (`noexec`);
   ignored is what the mount does anyway, or what is for mount(8) and systemd alone.
3. An environment file is this user's or root's; nobody else may write it, nor read it when it holds
   secrets. No message repeats a line of it.

Called by integrations only.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.settings import OPTIONS, Settings

OPTIONS_CHARS_MAX: Final = 16 * 1024
ENV_FILE_BYTES_MAX: Final = 64 * 1024

FOR_OTHERS: Final = frozenset(
    {
        "_netdev",
        "auto",
        "noauto",
        "nofail",
        "user",
        "nouser",
        "users",
        "nousers",
        "owner",
        "noowner",
        "group",
        "nogroup",
        "defaults",
        "rw",
        "async",
        "sync",
        "dirsync",
        "nosuid",
        "nodev",
        "exec",
        "default_permissions",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "silent",
        "loud",
    }
)
"""For mount(8) or systemd, or what the mount does anyway: it is nosuid,nodev, checks permissions,
and an operation is in the cache before its call returns."""
FOR_OTHERS_PREFIXES: Final = ("x-", "X-", "comment=", "user=")
CANT: Final = {
    "noexec": "the mount can't forbid execution (`user` in fstab implies it: write user,exec)",
    "suid": "the mount is always nosuid,nodev",
    "dev": "the mount is always nosuid,nodev",
    "remount": "a mount can't be changed; unmount it and mount it again",
    "runtime_dir": "umount(8) and `s3ws status` would not find the mount; set WORKSPACE_RUNTIME_DIR"
    " for all of them",
}
BY_FILE: Final = {"credentials": "AWS_SHARED_CREDENTIALS_FILE", "profile": "AWS_PROFILE"}
NO_KEYS: Final = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": ""}
"""Keys in the environment would beat those that a file or profile is named for."""
SWITCHES: Final = ("allow_other", "read_only", "verify_tls", "allow_unconditional")

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SECRET: Final = re.compile(r"SECRET|TOKEN|PASSWORD", re.IGNORECASE)
_BY_FLAG: Final = {name.removesuffix("_s"): name for name in OPTIONS}


@dataclass
class Wanted:
    """What options ask for: `overrides` are settings, `environ` joins the environment."""

    overrides: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    nonempty: bool = False

    def settings(self, environ: Mapping[str, str]) -> Settings:
        """Validated. Raises UserError (exit code 3), naming the option."""
        try:
            return Settings.load({**environ, **self.environ}, self.overrides)
        except UserError as exc:
            name, colon, rest = exc.message.partition(":")
            if colon and name.startswith("--"):
                exc.message = f"option {name[2:].replace('-', '_')}:{rest}"
            raise


def split(text: str) -> list[str]:
    """The options of a list as in fstab: commas part them, but not within double quotes.

    Raises UserError when the list is too long, or a quote is never closed.
    """
    if len(text) > OPTIONS_CHARS_MAX:
        raise _usage(f"the options have more than {OPTIONS_CHARS_MAX} characters")
    found, current, quoted = [], "", False
    for char in text:
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            found.append(current)
            current = ""
        else:
            current += char
    if quoted:
        raise _usage("a double quote in the options is never closed")
    return [option for option in (*found, current) if option]


def read(options: Iterable[tuple[str, str | None]], *, sloppy: bool = False) -> Wanted:
    """What (name, value) pairs ask for; `sloppy` leaves unknown ones out. Raises UserError."""
    wanted = Wanted()
    for name, value in options:
        _take(wanted, name, value, sloppy)
    return wanted


def pairs(options: Iterable[str]) -> list[tuple[str, str | None]]:
    """Options of mount(8) as pairs, without those that are for others."""
    found = []
    for option in options:
        if option in FOR_OTHERS or option.startswith(FOR_OTHERS_PREFIXES):
            continue
        name, equals, value = option.partition("=")
        found.append((name, value if equals else None))
    return found


def _take(wanted: Wanted, name: str, value: str | None, sloppy: bool) -> None:
    plain = name.replace("-", "_")
    setting = _BY_FLAG.get(plain, plain)
    if plain in CANT:
        raise _usage(f"option {plain}: {CANT[plain]}")
    if plain == "ro":
        wanted.overrides["read_only"] = True
    elif plain == "nonempty":
        wanted.nonempty = True
    elif setting in SWITCHES and value is None:
        wanted.overrides[setting] = True
    elif plain == "env_file":
        found = env_file(_value(plain, value))
        # A token of our own environment would belong to other keys.
        token = {"AWS_SESSION_TOKEN": ""} if "AWS_ACCESS_KEY_ID" in found else {}
        wanted.environ |= {**token, **found}
    elif plain in BY_FILE:
        check = _path if plain == "credentials" else _value
        wanted.environ = {**NO_KEYS, **wanted.environ, BY_FILE[plain]: check(plain, value)}
    elif setting in OPTIONS:
        wanted.overrides[setting] = _value(plain, value)
    elif not sloppy:
        shown = f"{name!a}" if _NAME.fullmatch(name) else "(not a name)"
        raise _usage(
            f"there is no option {shown}; its value is not repeated here",
            "Options are the settings of `s3ws mount --help` with underscores, and env_file,"
            " credentials, profile, nonempty. Keys belong into a file that env_file or credentials"
            " names.",
        )


def _value(name: str, value: str | None) -> str:
    if not value:
        raise _usage(f"option {name} needs a value")
    return value


def _path(name: str, value: str | None) -> str:
    path = _value(name, value)
    if not path.startswith("/"):
        raise _usage(f"option {name} is {path[:256]!a}; it must be an absolute path")
    return path


def env_file(path: str) -> dict[str, str]:
    """The variables of an environment file: NAME=VALUE lines, as systemd's EnvironmentFile and
    `docker --env-file` have them. Raises UserError; see invariant 3.
    """
    _path("env_file", path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as source:
            info = os.fstat(fd)
            data = source.read(ENV_FILE_BYTES_MAX + 1) if stat.S_ISREG(info.st_mode) else None
    except OSError as exc:
        raise _bad(f"The environment file {path!a} can't be read: {exc.strerror}.") from exc
    if data is None or len(data) > ENV_FILE_BYTES_MAX:
        raise _bad(f"{path!a} is no file of at most {ENV_FILE_BYTES_MAX} bytes.")
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
        raise _bad(
            f"The environment file {path!a} could be changed by another user.",
            f"It must belong to you or root: chmod 600 {path!a}",
        )
    found = _variables(path, data)
    if info.st_mode & 0o044 and any(map(_SECRET.search, found)):
        raise _bad(
            f"The environment file {path!a} holds secrets, and other users may read it.",
            f"chmod 600 {path!a}",
        )
    return found


def _variables(path: str, data: bytes) -> dict[str, str]:
    found = {}
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise _bad(f"The environment file {path!a} is not UTF-8 text.") from None
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ").lstrip()
        if not text or text.startswith(("#", ";")):
            continue
        name, equals, value = text.partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
            raise _bad(f"Line {number} of the environment file {path!a} is not NAME=VALUE.")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found


def _usage(message: str, remedy: str = "Correct the options.") -> UserError:
    return UserError(message, remedy=remedy, exit_code=ExitCode.USAGE)


def _bad(message: str, remedy: str = "Correct it, or name another by env_file.") -> UserError:
    return UserError(message, remedy=remedy, exit_code=ExitCode.BAD_SETTINGS)
