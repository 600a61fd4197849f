"""One validated settings object from the environment and the flags that override it.

Invariants
1. Nothing is read but the mapping and the overrides passed in: no global environment, no files.
2. Every error names the variable or flag it comes from, and what to do (UserError, exit code 3).
3. No secret is read or kept: credentials go to the transfer worker by the environment alone, and a
   URL that holds some is refused without being repeated.

Called by cli and the manager.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from s3ws_fs.core import config as limits
from s3ws_fs.core.bounds import KEEP_MAX, LEASE_S, LEASE_S_MAX, LEASE_S_MIN
from s3ws_fs.core.config import IdMap, MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import UserError
from s3ws_fs.core.ids import canonical_id, canonical_root_prefix
from s3ws_fs.core.policies import Patterns, split_patterns
from s3ws_fs.settings.sources import (
    OPTIONS,
    Option,
    bad_setting,
    collect,
    parse_bool,
    parse_id_map,
)

__all__ = ["OPTIONS", "Option", "Settings"]

MIB: Final = 1 << 20

_STORE_FIELDS: Final = {
    "store.endpoint_url": "endpoint_url",
    "store.region": "region",
    "store.ca_bundle": "ca_bundle",
    "store.path": "storage_path",
}

_NUMBERS: Final = {
    "int_parsing": "it must be a whole number",
    "float_parsing": "it must be a number",
}


class Settings(BaseModel):
    """All settings of a mount. Build it with `load`; paths are absolute afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    storage_type: Literal["s3", "local"]
    storage_path: str | None = None
    bucket: str = ""
    prefix: str = ""
    user_id: str
    conversation_id: str
    endpoint_url: str | None = None
    region: str | None = None
    verify_tls: bool = True
    ca_bundle: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    max_parallel: int = Field(default=10, ge=1, le=limits.MAX_PARALLEL_MAX)
    allow_unconditional: bool = False
    cache_dir: str
    runtime_dir: str
    debounce_min_s: float = Field(default=2.0, ge=0, le=limits.DEBOUNCE_S_MAX)
    debounce_max_s: float = Field(default=30.0, ge=0, le=limits.DEBOUNCE_S_MAX)
    backup_interval_s: float = Field(default=300.0, ge=0, le=limits.INTERVAL_S_MAX)
    backup_keep_last: int = Field(default=3, ge=0, le=KEEP_MAX)
    backup_keep_hourly: int = Field(default=6, ge=0, le=KEEP_MAX)
    backup_keep_daily: int = Field(default=7, ge=0, le=KEEP_MAX)
    backup_keep_weekly: int = Field(default=4, ge=0, le=KEEP_MAX)
    backup_exclude: str = Field(default="", max_length=limits.PATTERNS_CHARS_MAX)
    local_patterns: str = Field(default="", max_length=limits.PATTERNS_CHARS_MAX)
    max_size_mb: int = Field(default=500, ge=1, le=limits.SIZE_BYTES_MAX // MIB)
    max_inodes: int = Field(default=1_000_000, ge=limits.INODES_MIN, le=limits.INODES_MAX)
    allow_other: bool = False
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    root_uid: int = Field(ge=0, le=limits.ID_MAX)
    root_gid: int = Field(ge=0, le=limits.ID_MAX)
    root_mode: int = Field(default=0o755, ge=0, le=0o7777)
    unmount_grace_s: float = Field(default=10.0, ge=0, le=limits.INTERVAL_S_MAX)
    sync_point_interval_s: float = Field(default=5.0, ge=0.1, le=limits.INTERVAL_S_MAX)
    read_timeout_s: float = Field(default=60.0, ge=0.1, le=limits.INTERVAL_S_MAX)
    lease_s: float = Field(default=LEASE_S, ge=LEASE_S_MIN, le=LEASE_S_MAX)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    adaptive_wait_us: int = Field(default=40, ge=0, le=limits.ADAPTIVE_WAIT_US_MAX)
    read_only: bool = False
    follow_interval_s: float = Field(
        default=2.0, ge=limits.FOLLOW_INTERVAL_S_MIN, le=limits.INTERVAL_S_MAX
    )
    outside_changes: Literal["keep-both", "bucket-wins", "workspace-wins"] = "keep-both"
    history_hours: float = Field(default=24.0, ge=0, le=limits.HISTORY_HOURS_MAX)
    history_max_mb: int = Field(default=2048, ge=0, le=limits.SIZE_BYTES_MAX // MIB)
    snapshot_days: float = Field(default=30.0, ge=0, le=limits.SNAPSHOT_DAYS_MAX)

    @field_validator(
        "storage_type",
        "addressing_style",
        "log_level",
        "log_format",
        "outside_changes",
        mode="before",
    )
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("verify_tls", "allow_unconditional", "allow_other", "read_only", mode="before")
    @classmethod
    def _boolean(cls, value: object) -> object:
        return parse_bool(value) if isinstance(value, str) else value

    @field_validator("uid_map", "gid_map", mode="before")
    @classmethod
    def _ids(cls, value: object) -> object:
        return parse_id_map(value) if isinstance(value, str) else value

    @field_validator("root_mode", mode="before")
    @classmethod
    def _octal(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return int(value, 8)
        except ValueError:
            raise ValueError("it must be an octal number such as 755") from None

    @classmethod
    def load(cls, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Self:
        """Settings from `environ`, with `overrides` (field name to value; None is no override).

        Raises UserError (exit code 3), naming the variable or flag.
        """
        given = {name: value for name, value in (overrides or {}).items() if value is not None}
        values, sources = collect(environ, given)
        try:
            settings = cls.model_validate(values)
        except ValidationError as exc:
            raise _first_error(exc, sources) from None
        settings._check_together(sources)
        return settings

    def store_config(self) -> StoreConfig:
        """Where the bucket is."""
        is_s3 = self.storage_type == "s3"
        return StoreConfig(
            type=self.storage_type,
            bucket=self.bucket if is_s3 else "",
            path=None if is_s3 else self.storage_path,
            endpoint_url=self.endpoint_url if is_s3 else None,
            region=self.region if is_s3 else None,
            verify_tls=self.verify_tls,
            ca_bundle=self.ca_bundle if is_s3 else None,
            addressing_style=self.addressing_style,
            max_parallel=self.max_parallel,
            allow_unconditional=self.allow_unconditional,
        )

    def mount_config(self, mountpoint: str) -> MountConfig:
        """Everything the daemon needs to mount on the canonical path `mountpoint`.

        Raises UserError when one of the directories is inside it.
        """
        try:
            return self._mount_config(mountpoint)
        except UserError as exc:
            member = exc.message.partition(" ")[0]
            name = _STORE_FIELDS.get(member, member)
            if name not in OPTIONS:
                raise
            raise bad_setting(OPTIONS[name].variable, exc.message, exc.remedy) from None

    def _mount_config(self, mountpoint: str) -> MountConfig:
        return MountConfig(
            mountpoint=mountpoint,
            workspace=WorkspaceId(self.user_id, self.conversation_id, self.prefix),
            store=self.store_config(),
            cache_dir=self.cache_dir,
            runtime_dir=self.runtime_dir,
            debounce_min_s=self.debounce_min_s,
            debounce_max_s=self.debounce_max_s,
            backup_interval_s=self.backup_interval_s,
            backup_keep_last=self.backup_keep_last,
            backup_keep_hourly=self.backup_keep_hourly,
            backup_keep_daily=self.backup_keep_daily,
            backup_keep_weekly=self.backup_keep_weekly,
            backup_exclude=self.backup_exclude,
            local_patterns=self.local_patterns,
            max_size_bytes=self.max_size_mb * MIB,
            max_inodes=self.max_inodes,
            allow_other=self.allow_other,
            uid_map=self.uid_map,
            gid_map=self.gid_map,
            root_uid=self.root_uid,
            root_gid=self.root_gid,
            root_mode=self.root_mode,
            unmount_grace_s=self.unmount_grace_s,
            sync_point_interval_s=self.sync_point_interval_s,
            read_timeout_s=self.read_timeout_s,
            lease_s=self.lease_s,
            log_level=self.log_level,
            log_format=self.log_format,
            adaptive_wait_us=self.adaptive_wait_us,
            read_only=self.read_only,
            follow_interval_s=self.follow_interval_s,
            outside_changes=self.outside_changes,
            history_hours=self.history_hours,
            history_max_bytes=self.history_max_mb * MIB,
            snapshot_days=self.snapshot_days,
        )

    def _check_together(self, sources: Mapping[str, str]) -> None:
        """What only the core can judge, or what concerns two settings."""
        for name in ("backup_exclude", "local_patterns"):
            try:
                Patterns(split_patterns(getattr(self, name)))
            except UserError as exc:
                raise bad_setting(sources.get(name, name), exc.message, exc.remedy) from None
        try:
            name = "user_id"
            canonical_id(self.user_id, what="user id")
            name = "conversation_id"
            canonical_id(self.conversation_id, what="conversation id")
            name = "prefix"
            canonical_root_prefix(self.prefix)
        except UserError as exc:
            raise bad_setting(sources[name], exc.message, exc.remedy) from None
        if self.debounce_min_s > self.debounce_max_s:
            raise bad_setting(
                sources.get("debounce_min_s", OPTIONS["debounce_min_s"].variable),
                f"{self.debounce_min_s:g} s is more than the maximum, {self.debounce_max_s:g} s.",
                f"Lower it, or raise {OPTIONS['debounce_max_s'].variable}.",
            )
        if self.storage_type == "s3" and not self.bucket:
            raise bad_setting(
                OPTIONS["bucket"].variable,
                "no bucket is named, but the storage type is s3.",
                "Set it to the name of an existing bucket.",
            )
        try:
            self.store_config()
        except UserError as exc:
            name = next((n for mark, n in _STORE_FIELDS.items() if mark in exc.message), "bucket")
            source = sources.get(name, OPTIONS[name].variable)
            remedy = f"Correct it. Meaning: {OPTIONS[name].help}"
            raise bad_setting(source, exc.message, remedy) from None


def _first_error(exc: ValidationError, sources: Mapping[str, str]) -> UserError:
    error = exc.errors(include_url=False, include_context=False)[0]
    name = str(error["loc"][0]) if error["loc"] else ""
    option = OPTIONS.get(name)
    source = sources.get(name) or (option.variable if option else name)
    shown = ascii(error["input"])[:200]
    message = _NUMBERS.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "it must be")
    meaning = option.help if option else ""
    return bad_setting(
        source, f"{shown} is not valid: {message}.", f"Correct it. Meaning: {meaning}"
    )
