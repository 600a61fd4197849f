"""Where settings come from: variables, their aliases, flags and defaults, still unvalidated.

Invariants
1. An empty variable counts as not set. Flags beat variables; our own names beat the aliases.
2. OpenHands' names have its meaning: `FILE_STORE` the storage type, `FILE_STORE_PATH` the bucket
   (s3) or the directory (local), `AWS_S3_BUCKET`, `AWS_S3_ENDPOINT` (scheme optional) and
   `AWS_S3_SECURE` (which scheme).

Called by settings only; OPTIONS (for flags and help) and default_storage_path also by the cli.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.control.registry import default_runtime_dir
from s3ws_fs.core import config as limits
from s3ws_fs.core.config import IdMap
from s3ws_fs.core.errors import ExitCode, UserError

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Option:
    """Where one setting comes from: variables in order of precedence, and what it means."""

    variables: tuple[str, ...]
    help: str

    @property
    def variable(self) -> str:
        """Its own name, the one that messages recommend."""
        return self.variables[0]


OPTIONS: Final[dict[str, Option]] = {
    "storage_type": Option(
        ("WORKSPACE_STORAGE_TYPE", "FILE_STORE"),
        "s3 or local; s3 when only a bucket is named, else local.",
    ),
    "storage_path": Option(("WORKSPACE_STORAGE_PATH",), "Directory of the local storage."),
    "bucket": Option(("WORKSPACE_BUCKET", "AWS_S3_BUCKET"), "S3 bucket."),
    "prefix": Option(("WORKSPACE_PREFIX",), "Key prefix above conversations/."),
    "user_id": Option(("WORKSPACE_USER_ID",), "User the workspace belongs to."),
    "conversation_id": Option(
        ("WORKSPACE_CONVERSATION_ID",), "Conversation that owns the workspace."
    ),
    "endpoint_url": Option(
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT"),
        "S3 endpoint, for MinIO and other servers.",
    ),
    "region": Option(("AWS_REGION", "AWS_DEFAULT_REGION"), "S3 region."),
    "verify_tls": Option(("WORKSPACE_VERIFY_TLS",), "Verify the server's certificate."),
    "ca_bundle": Option(("WORKSPACE_CA_BUNDLE", "AWS_CA_BUNDLE"), "File of CA certificates."),
    "addressing_style": Option(
        ("WORKSPACE_ADDRESSING_STYLE",), "auto, path or virtual bucket addressing."
    ),
    "max_parallel": Option(("WORKSPACE_MAX_PARALLEL",), "Parallel transfers."),
    "allow_unconditional": Option(
        ("WORKSPACE_ALLOW_UNCONDITIONAL",),
        "Accept a store that ignores conditional writes (two writers are then not fenced).",
    ),
    "cache_dir": Option(("WORKSPACE_CACHE_DIR",), "Directory of the local caches."),
    "runtime_dir": Option(
        ("WORKSPACE_RUNTIME_DIR",),
        "Directory of the control sockets. The other commands know only the variable.",
    ),
    "debounce_min_s": Option(("WORKSPACE_SYNC_DEBOUNCE_MIN",), "Seconds from change to flush."),
    "debounce_max_s": Option(("WORKSPACE_SYNC_DEBOUNCE_MAX",), "The same during bursts."),
    "backup_interval_s": Option(
        ("WORKSPACE_BACKUP_INTERVAL",), "Seconds between backups; 0 for none."
    ),
    "backup_keep_last": Option(
        ("WORKSPACE_BACKUP_KEEP_LAST",), "Backups that are kept: so many of the newest."
    ),
    "backup_keep_hourly": Option(
        ("WORKSPACE_BACKUP_KEEP_HOURLY",), "And the newest of so many hours that have one."
    ),
    "backup_keep_daily": Option(("WORKSPACE_BACKUP_KEEP_DAILY",), "The same for days."),
    "backup_keep_weekly": Option(("WORKSPACE_BACKUP_KEEP_WEEKLY",), "The same for weeks."),
    "backup_exclude": Option(
        ("WORKSPACE_BACKUP_EXCLUDE",),
        "Patterns as in .gitignore, between ; or line ends: left out of backups.",
    ),
    "local_patterns": Option(
        ("WORKSPACE_LOCAL",),
        "Patterns of what backups leave out and restores leave alone, added to the defaults "
        "(caches, node_modules, temporary files); !pattern takes one back.",
    ),
    "max_size_mb": Option(("WORKSPACE_MAX_SIZE_MB",), "Quota in MiB."),
    "max_inodes": Option(("WORKSPACE_MAX_FILES",), "Quota of files and directories."),
    "allow_other": Option(("WORKSPACE_ALLOW_OTHER",), "Let other users into the mount."),
    "uid_map": Option(("WORKSPACE_UID_MAP",), "User ids as stored:shown, separated by commas."),
    "gid_map": Option(("WORKSPACE_GID_MAP",), "Group ids as stored:shown, separated by commas."),
    "root_uid": Option(("WORKSPACE_ROOT_UID",), "Owner of a new workspace's root directory."),
    "root_gid": Option(("WORKSPACE_ROOT_GID",), "Group of a new workspace's root directory."),
    "root_mode": Option(("WORKSPACE_ROOT_MODE",), "Its permissions, in octal."),
    "unmount_grace_s": Option(
        ("WORKSPACE_UNMOUNT_GRACE",), "Seconds to wait for programs that still use the mount."
    ),
    "sync_point_interval_s": Option(
        ("WORKSPACE_SYNC_POINT_INTERVAL",), "Seconds between power-loss-safe states of the cache."
    ),
    "read_timeout_s": Option(
        ("WORKSPACE_READ_TIMEOUT",),
        "Seconds that a read of what is only in the bucket waits for the store.",
    ),
    "lease_s": Option(
        ("WORKSPACE_LEASE_S",),
        "Seconds after which another host may take a workspace whose host is gone.",
    ),
    "log_level": Option(("WORKSPACE_LOG_LEVEL",), "debug, info, warning or error."),
    "log_format": Option(("WORKSPACE_LOG_FORMAT",), "text or json."),
    "adaptive_wait_us": Option(
        ("WORKSPACE_ADAPTIVE_WAIT_US",), "Microseconds the daemon spins before it sleeps."
    ),
    "read_only": Option(
        ("WORKSPACE_READ_ONLY",),
        "Show what is sealed, beside a mount that writes, and follow it; nothing can be changed.",
    ),
    "follow_interval_s": Option(
        ("WORKSPACE_FOLLOW_INTERVAL",),
        "Seconds between two looks of a read-only mount for new seals; more while there are none.",
    ),
    "outside_changes": Option(
        ("WORKSPACE_OUTSIDE_CHANGES",),
        "What becomes of objects below files/ that others change: keep-both (theirs becomes a copy "
        "beside ours), bucket-wins or workspace-wins.",
    ),
    "history_hours": Option(
        ("WORKSPACE_HISTORY_HOURS",),
        "Hours back to which every sealed state can be looked at and restored; 0 for none.",
    ),
    "history_max_mb": Option(
        ("WORKSPACE_HISTORY_MAX_MB",),
        "MiB in the bucket that history may keep beyond the newest state; the oldest goes first.",
    ),
    "snapshot_days": Option(
        ("WORKSPACE_SNAPSHOT_DAYS",),
        "Days for which marks of turns and points before a restore are kept.",
    ),
}


def collect(
    environ: Mapping[str, str], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Raw values, and for each the variable or flag it came from."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, option in OPTIONS.items():
        if name in given:
            values[name] = given[name]
            sources[name] = "--" + name.removesuffix("_s").replace("_", "-")
            continue
        for variable in option.variables:
            if environ.get(variable, "").strip():
                values[name] = environ[variable]
                sources[name] = variable
                break
    if unknown := sorted(given.keys() - OPTIONS.keys()):
        raise UserError(
            f"There is no setting {unknown[0]!a}.",
            remedy=f"Settings are: {', '.join(OPTIONS)}.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    _storage(environ, values, sources)
    _defaults(environ, values, sources)
    _require_ids(values)
    return values, sources


def _storage(environ: Mapping[str, str], values: dict[str, Any], sources: dict[str, str]) -> None:
    """The storage type, and OpenHands' variables whose meaning depends on it."""
    if "storage_type" not in values:
        values["storage_type"] = "s3" if "bucket" in values else "local"
    kind = str(values["storage_type"]).strip().lower()
    alias = environ.get("FILE_STORE_PATH", "").strip()
    if kind == "s3":
        # In OpenHands the path of the store is the bucket and beats AWS_S3_BUCKET; its default
        # (a directory) is no bucket name.
        if (
            alias
            and not set(alias) & set("/~")
            and sources.get("bucket") in (None, "AWS_S3_BUCKET")
        ):
            values["bucket"], sources["bucket"] = alias, "FILE_STORE_PATH"
        if sources.get("endpoint_url") == "AWS_S3_ENDPOINT":
            values["endpoint_url"] = _openhands_endpoint(environ)
    elif alias and "storage_path" not in values:
        values["storage_path"], sources["storage_path"] = alias, "FILE_STORE_PATH"


def _openhands_endpoint(environ: Mapping[str, str]) -> str:
    endpoint = environ["AWS_S3_ENDPOINT"].strip()
    secure = environ.get("AWS_S3_SECURE", "").strip()
    if not secure and "://" in endpoint:
        return endpoint
    try:
        scheme = "https" if not secure or parse_bool(secure) else "http"
    except ValueError as exc:
        raise bad_setting(
            "AWS_S3_SECURE", f"{exc}.", "Set it to true (https) or false (http)."
        ) from None
    return f"{scheme}://{endpoint.removeprefix('http://').removeprefix('https://')}"


def _defaults(environ: Mapping[str, str], values: dict[str, Any], sources: dict[str, str]) -> None:
    uid = os.geteuid()
    values.setdefault("root_uid", uid)
    values.setdefault("root_gid", os.getegid())
    values.setdefault("runtime_dir", default_runtime_dir(environ, uid))
    home = environ.get("HOME") or "/"
    if "cache_dir" not in values:
        base = environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
        values["cache_dir"] = "/var/cache/s3ws" if uid == 0 else f"{base}/s3ws"
    if "storage_path" not in values and values["storage_type"] == "local":
        values["storage_path"] = default_storage_path(environ, uid)
    for name in ("cache_dir", "runtime_dir", "storage_path", "ca_bundle"):
        if isinstance(values.get(name), str | os.PathLike):
            values[name] = _absolute(os.fspath(values[name]), home, sources.get(name, name))


def default_storage_path(environ: Mapping[str, str], uid: int) -> str:
    """Where the local storage of user `uid` is unless it is named."""
    base = environ.get("XDG_DATA_HOME") or f"{environ.get('HOME') or '/'}/.local/share"
    return "/var/lib/s3ws" if uid == 0 else f"{base}/s3ws"


def _absolute(path: str, home: str, source: str) -> str:
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    try:
        return os.path.realpath(path)
    except (OSError, ValueError) as exc:
        raise bad_setting(
            source, f"{path!a} is not a usable path ({exc}).", "Give another path."
        ) from None


def _require_ids(values: Mapping[str, Any]) -> None:
    for name, what in (("user_id", "user"), ("conversation_id", "conversation")):
        if name not in values:
            variable = OPTIONS[name].variable
            flag = "--" + name.replace("_", "-")
            raise bad_setting(
                variable, f"the {what} is not given.", f"Set {variable} or use {flag} to say which."
            )


def parse_bool(text: str) -> bool:
    """1/true/yes/on or 0/false/no/off in any letter case. Raises ValueError."""
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError("it must be true or false")


def parse_id_map(text: str) -> IdMap:
    """ "stored:shown,stored:shown" as pairs. Raises ValueError."""
    pairs: list[tuple[int, int]] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        stored, colon, shown = item.partition(":")
        if not (colon and _is_number(stored) and _is_number(shown)):
            raise ValueError("it must be pairs such as 0:10001,1000:1000")
        pairs.append((int(stored), int(shown)))
    if any(number > limits.ID_MAX for pair in pairs for number in pair):
        raise ValueError(f"an id is larger than {limits.ID_MAX}")
    if len(pairs) > limits.ID_MAP_ENTRIES_MAX:
        raise ValueError(f"at most {limits.ID_MAP_ENTRIES_MAX} pairs are allowed")
    for side in (0, 1):
        if len({pair[side] for pair in pairs}) != len(pairs):
            raise ValueError("an id stands twice on the same side; it must be one to one")
    return tuple(pairs)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


def bad_setting(source: str, message: str, remedy: str) -> UserError:
    """The error for one setting: where it comes from, what is wrong, what to do."""
    return UserError(f"{source}: {message}", remedy=remedy, exit_code=ExitCode.BAD_SETTINGS)
