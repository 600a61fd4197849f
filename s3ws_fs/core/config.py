"""What a mount needs to know, as plain frozen values that travel to the daemon as JSON.

Invariants
1. A value that exists is valid: the constructors check it and raise UserError (exit code 3).
2. `from_json(to_json(x)) == x`, also for paths that are not UTF-8 (surrogate escapes survive).
3. No secret has a field here: credentials stay in the environment or in AWS profiles.
4. The workspace's own cache directory depends on the bucket (or local path), root prefix, user and
   conversation only: a changed endpoint or region finds the same cache, with its unsaved changes.
   A read-only mount has one of its own beside it, and each point in history one.
5. Standard library only: the daemon imports this and must start fast.

Called by settings (builds), launch (sends), daemon, worker and control registry (read).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast
from urllib.parse import urlsplit

from s3ws_fs.core import jsontext
from s3ws_fs.core.bounds import (
    HISTORY_HOURS,
    HISTORY_MAX_BYTES,
    KEEP_BOTH,
    KEEP_MAX,
    LEASE_S,
    LEASE_S_MAX,
    LEASE_S_MIN,
    POLICIES,
    SNAPSHOT_DAYS,
)
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.core.ids import canonical_id, canonical_root_prefix

if TYPE_CHECKING:
    from s3ws_fs.core.retention import Limits

StoreType = Literal["s3", "local"]
AddressingStyle = Literal["auto", "path", "virtual"]
LogFormat = Literal["text", "json"]

STORE_TYPES: Final = ("s3", "local")
ADDRESSING_STYLES: Final = ("auto", "path", "virtual")
LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

MAX_PARALLEL_MAX: Final = 64
DEBOUNCE_S_MAX: Final = 3600.0
INTERVAL_S_MAX: Final = 7 * 24 * 3600.0
FOLLOW_INTERVAL_S_MIN: Final = 0.1
SIZE_BYTES_MIN: Final = 1 << 20
SIZE_BYTES_MAX: Final = 1 << 44
HISTORY_HOURS_MAX: Final = 10 * 366 * 24.0
SNAPSHOT_DAYS_MAX: Final = 100 * 366.0
AT_NUMBER_MAX: Final = (1 << 63) - 1
AT_REF_CHARS_MAX: Final = 200
INODES_MIN: Final = 16
INODES_MAX: Final = 1 << 32
ADAPTIVE_WAIT_US_MAX: Final = 10_000
ID_MAP_ENTRIES_MAX: Final = 340
ID_MAX: Final = (1 << 32) - 2
PATH_CHARS_MAX: Final = 4095
PATTERNS_CHARS_MAX: Final = 8192
CONFIG_JSON_BYTES_MAX: Final = 256 * 1024

_REGION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}", re.ASCII)

IdMap = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where the bucket is. For `local`, `path` is a directory laid out exactly as the bucket."""

    type: StoreType
    bucket: str = ""
    path: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    verify_tls: bool = True
    ca_bundle: str | None = None
    addressing_style: AddressingStyle = "auto"
    max_parallel: int = 10
    allow_unconditional: bool = False

    def __post_init__(self) -> None:
        _one_of("store.type", self.type, STORE_TYPES)
        _one_of("store.addressing_style", self.addressing_style, ADDRESSING_STYLES)
        _in_range("store.max_parallel", self.max_parallel, 1, MAX_PARALLEL_MAX)
        if self.type == "s3":
            _bucket_name(self.bucket)
            if self.path is not None:
                raise _bad("store.path is set, but the storage type is s3.")
        else:
            if self.path is None:
                raise _bad("store.path is missing: the storage type is local.")
            _absolute("store.path", self.path)
        if self.endpoint_url is not None:
            _http_url("store.endpoint_url", self.endpoint_url)
        if self.region is not None and not _REGION.fullmatch(self.region):
            raise _bad(f"store.region is {self.region[:256]!a}; it is not a region name.")
        if self.ca_bundle is not None:
            _absolute("store.ca_bundle", self.ca_bundle)

    @property
    def location(self) -> str:
        """For people: "s3://bucket (endpoint)" or "file:///directory"."""
        if self.type == "local":
            return f"file://{self.path}"
        return f"s3://{self.bucket}" + (f" ({self.endpoint_url})" if self.endpoint_url else "")

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one member a field."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> StoreConfig:
        """The inverse of `to_json`. Raises UserError for a wrong shape or value."""
        return _build(cls, "store", value, {})


@dataclass(frozen=True, slots=True)
class WorkspaceId:
    """Which workspace: ids are canonicalised on construction (see core.ids)."""

    user_id: str
    conversation_id: str
    root_prefix: str = ""

    def __post_init__(self) -> None:
        for name, value in (
            ("user_id", canonical_id(self.user_id, what="user id")),
            ("conversation_id", canonical_id(self.conversation_id, what="conversation id")),
            ("root_prefix", canonical_root_prefix(self.root_prefix)),
        ):
            object.__setattr__(self, name, value)

    @property
    def prefix(self) -> str:
        """The workspace prefix, ending in `/`: every key of ours starts with it."""
        return f"{self.root_prefix}conversations/{self.user_id}/{self.conversation_id}/workspace/"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one member a field."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> WorkspaceId:
        """The inverse of `to_json`. Raises UserError for a wrong shape or value."""
        return _build(cls, "workspace", value, {})


@dataclass(frozen=True, slots=True)
class MountConfig:
    """Everything the daemon needs. Paths are absolute; id maps are (stored, shown) pairs.

    `backup_exclude` and `local_patterns`: texts of patterns (core.policies.split_patterns).
    `at_number`, `at_hash` (its header's, hex) and `at_ref` (as a person wrote it): the point in
    history that is shown, read-only; 0 for none.
    `root_mode` holds the permission bits of a new workspace's root directory. `take_over`: take the
    lease from whoever holds it.
    """

    mountpoint: str
    workspace: WorkspaceId
    store: StoreConfig
    cache_dir: str
    runtime_dir: str
    debounce_min_s: float = 2.0
    debounce_max_s: float = 30.0
    backup_interval_s: float = 300.0
    backup_keep_last: int = 3
    backup_keep_hourly: int = 6
    backup_keep_daily: int = 7
    backup_keep_weekly: int = 4
    backup_exclude: str = ""
    local_patterns: str = ""
    max_size_bytes: int = 500 << 20
    max_inodes: int = 1_000_000
    allow_other: bool = False
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    root_uid: int = 0
    root_gid: int = 0
    root_mode: int = 0o755
    unmount_grace_s: float = 10.0
    sync_point_interval_s: float = 5.0
    read_timeout_s: float = 60.0
    lease_s: float = LEASE_S
    take_over: bool = False
    log_level: str = "info"
    log_format: LogFormat = "text"
    adaptive_wait_us: int = 40
    read_only: bool = False
    at_number: int = 0
    at_hash: str = ""
    at_ref: str = ""
    follow_interval_s: float = 2.0
    outside_changes: str = KEEP_BOTH
    history_hours: float = HISTORY_HOURS
    history_max_bytes: int = HISTORY_MAX_BYTES
    snapshot_days: float = SNAPSHOT_DAYS

    def __post_init__(self) -> None:
        for name in ("mountpoint", "cache_dir", "runtime_dir"):
            _absolute(name, getattr(self, name))
        self._not_below_mountpoint()
        _in_range("debounce_min_s", self.debounce_min_s, 0.0, DEBOUNCE_S_MAX)
        _in_range("debounce_max_s", self.debounce_max_s, self.debounce_min_s, DEBOUNCE_S_MAX)
        _in_range("backup_interval_s", self.backup_interval_s, 0.0, INTERVAL_S_MAX)
        for name in ("last", "hourly", "daily", "weekly"):
            name = f"backup_keep_{name}"
            _in_range(name, getattr(self, name), 0, KEEP_MAX)
        for name in ("backup_exclude", "local_patterns"):
            _patterns(name, getattr(self, name))
        _in_range("max_size_bytes", self.max_size_bytes, SIZE_BYTES_MIN, SIZE_BYTES_MAX)
        _in_range("max_inodes", self.max_inodes, INODES_MIN, INODES_MAX)
        _in_range("unmount_grace_s", self.unmount_grace_s, 0.0, INTERVAL_S_MAX)
        _in_range("sync_point_interval_s", self.sync_point_interval_s, 0.1, INTERVAL_S_MAX)
        _in_range("read_timeout_s", self.read_timeout_s, 0.1, INTERVAL_S_MAX)
        _in_range("lease_s", self.lease_s, LEASE_S_MIN, LEASE_S_MAX)
        _in_range("adaptive_wait_us", self.adaptive_wait_us, 0, ADAPTIVE_WAIT_US_MAX)
        _in_range(
            "follow_interval_s", self.follow_interval_s, FOLLOW_INTERVAL_S_MIN, INTERVAL_S_MAX
        )
        _in_range("history_hours", self.history_hours, 0.0, HISTORY_HOURS_MAX)
        _in_range("history_max_bytes", self.history_max_bytes, 0, SIZE_BYTES_MAX)
        _in_range("snapshot_days", self.snapshot_days, 0.0, SNAPSHOT_DAYS_MAX)
        _in_range("at_number", self.at_number, 0, AT_NUMBER_MAX)
        if self.at_number and not (self.read_only and _HASH.fullmatch(self.at_hash)):
            raise _bad("a point in history can only be mounted read-only, and by its hash.")
        if len(self.at_ref) > AT_REF_CHARS_MAX:
            raise _bad(f"at_ref is longer than {AT_REF_CHARS_MAX} characters.")
        _in_range("root_uid", self.root_uid, 0, ID_MAX)
        _in_range("root_gid", self.root_gid, 0, ID_MAX)
        _in_range("root_mode", self.root_mode, 0, 0o7777)
        _one_of("log_level", self.log_level, LOG_LEVELS)
        _one_of("log_format", self.log_format, LOG_FORMATS)
        _one_of("outside_changes", self.outside_changes, POLICIES)
        _id_map("uid_map", self.uid_map)
        _id_map("gid_map", self.gid_map)

    def _not_below_mountpoint(self) -> None:
        # The daemon would wait for itself on the first access.
        own = self.mountpoint.rstrip("/") + "/"
        for name, path in (
            ("cache_dir", self.cache_dir),
            ("runtime_dir", self.runtime_dir),
            ("store.path", self.store.path),
        ):
            if path is not None and f"{path.rstrip('/')}/".startswith(own):
                raise _bad(f"{name} is {path!a}, which is inside the mount point.")

    @property
    def history_limits(self) -> Limits:
        """How much history is kept."""
        # Only a daemon wants to know.
        from s3ws_fs.core.retention import Limits

        return Limits(self.history_hours, self.history_max_bytes, self.snapshot_days)

    @property
    def workspace_cache_dir(self) -> str:
        """The directory of this workspace's cache, below `cache_dir`."""
        store, ws = self.store, self.workspace
        place = store.path if store.type == "local" else store.bucket
        identity = "\0".join((store.type, place or "", ws.prefix))
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        name = f"{ws.conversation_id[:64]}-{digest}" + ("-ro" if self.read_only else "")
        if self.at_number:
            name += f"-{self.at_number}-{self.at_hash[:8]}"
        return f"{self.cache_dir.rstrip('/')}/{name}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one member a field; the nested values likewise."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> MountConfig:
        """The inverse of `to_json`. Raises UserError for a wrong shape or value."""
        return _build(
            cls,
            "mount",
            value,
            {
                "workspace": WorkspaceId.from_json,
                "store": StoreConfig.from_json,
                "uid_map": lambda v: _pairs("uid_map", v),
                "gid_map": lambda v: _pairs("gid_map", v),
            },
        )

    def dumps(self) -> bytes:
        """One line of ASCII JSON, without the line end."""
        return json.dumps(self.to_json(), separators=(",", ":")).encode("ascii")

    @classmethod
    def loads(cls, data: bytes) -> MountConfig:
        """The inverse of `dumps`. Raises UserError when too long, no JSON, or of a wrong shape."""
        if len(data) > CONFIG_JSON_BYTES_MAX:
            raise _bad(f"The mount configuration is longer than {CONFIG_JSON_BYTES_MAX} bytes.")
        try:
            value = jsontext.value_of(data, "mount configuration")
        except FormatError as exc:
            raise _bad("The mount configuration is not JSON.") from exc
        return cls.from_json(value)


_T = TypeVar("_T", StoreConfig, WorkspaceId, MountConfig)


def _build(
    cls: type[_T], where: str, value: object, decoders: Mapping[str, Callable[[object], object]]
) -> _T:
    """Make `cls` from a decoded JSON object: no unknown member, no missing one, exact types."""
    if not isinstance(value, dict):
        raise _bad(f"The {where} configuration is not a JSON object.")
    known = {field.name: field for field in fields(cls)}
    unknown = sorted(str(name) for name in value.keys() - known.keys())
    if unknown:
        raise _bad(f"The {where} configuration has unknown members: {', '.join(unknown)}.")
    arguments: dict[str, object] = {}
    for name, item in value.items():
        decode = decoders.get(name)
        if decode is None:
            arguments[name] = _scalar(f"{where}.{name}", str(known[name].type), item)
        else:
            arguments[name] = decode(item)
    try:
        return cast(Callable[..., _T], cls)(**arguments)
    except TypeError as exc:
        raise _bad(f"The {where} configuration is incomplete.") from exc


def _scalar(where: str, annotation: str, item: object) -> object:
    """Check a JSON scalar against a field's annotation (a string in this module)."""
    if item is None and annotation.endswith("| None"):
        return None
    if annotation == "bool":
        good = isinstance(item, bool)
    elif annotation == "int":
        good = isinstance(item, int) and not isinstance(item, bool)
    elif annotation == "float":
        good = isinstance(item, int | float) and not isinstance(item, bool)
    else:
        good = isinstance(item, str)
    if not good:
        raise _bad(f"{where} has the wrong type ({type(item).__name__}).")
    return item


def _pairs(where: str, value: object) -> IdMap:
    if not isinstance(value, list | tuple):
        raise _bad(f"{where} is not a list of pairs.")
    pairs: list[tuple[int, int]] = []
    for item in value:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise _bad(f"{where} is not a list of pairs.")
        stored, shown = item
        if type(stored) is not int or type(shown) is not int:
            raise _bad(f"{where} holds something that is not a number.")
        pairs.append((stored, shown))
    return tuple(pairs)


def _id_map(where: str, pairs: IdMap) -> None:
    if len(pairs) > ID_MAP_ENTRIES_MAX:
        raise _bad(f"{where} has {len(pairs)} entries; at most {ID_MAP_ENTRIES_MAX} are allowed.")
    for pair in pairs:
        for number in pair:
            _in_range(where, number, 0, ID_MAX)
    for side, name in ((0, "stored"), (1, "shown")):
        if len({pair[side] for pair in pairs}) != len(pairs):
            raise _bad(f"{where} names a {name} id twice: the mapping must be one to one.")


def _one_of(where: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _bad(f"{where} is {value!a}; it must be one of {', '.join(allowed)}.")


def _patterns(where: str, value: str) -> None:
    # What they mean is the business of core.policies, which is not loaded here.
    if len(value) > PATTERNS_CHARS_MAX or "\0" in value:
        raise _bad(
            f"{where} is no list of patterns, or longer than {PATTERNS_CHARS_MAX} characters."
        )


def _in_range(where: str, value: float, low: float, high: float) -> None:
    # Written so that a NaN is out of range too.
    if not low <= value <= high:
        raise _bad(f"{where} is {value}; it must be between {low} and {high}.")


def _absolute(where: str, value: str) -> None:
    if not value.startswith("/") or "\0" in value or len(value) > PATH_CHARS_MAX:
        raise _bad(f"{where} is {value[:256]!a}; it must be an absolute path.")


def _bucket_name(value: str) -> None:
    # Looser than AWS on purpose: other servers accept underscores and capitals.
    if not _BUCKET.fullmatch(value):
        raise _bad(f"{value[:256]!a} is not a bucket name.")


def _http_url(where: str, value: str) -> None:
    if "@" in value:
        # The value is not repeated: what stands before the @ is a password.
        raise _bad(f"{where} holds credentials; give them by AWS_ACCESS_KEY_ID or a profile.")
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise _bad(f"{where} is {value[:256]!a}; it is not a URL.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not value.isprintable():
        raise _bad(f"{where} is {value[:256]!a}; it must be an http:// or https:// URL.")


def _bad(message: str) -> UserError:
    return UserError(
        message,
        remedy="Correct the setting it comes from (see `s3ws mount --help`).",
        exit_code=ExitCode.BAD_SETTINGS,
    )
