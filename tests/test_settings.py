"""Settings: environment, flags, OpenHands' names; every error says where it comes from."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import config as limits
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.retention import Limits
from s3ws_fs.settings import OPTIONS, Settings
from s3ws_fs.settings.sources import parse_bool, parse_id_map

VARIABLES = [
    *sorted({variable for option in OPTIONS.values() for variable in option.variables}),
    "FILE_STORE_PATH",
    "AWS_S3_SECURE",
    "HOME",
]
IDS = {"WORKSPACE_USER_ID": "user", "WORKSPACE_CONVERSATION_ID": "conversation"}


def load(**environ: str) -> Settings:
    return Settings.load({**IDS, **environ})


def test_every_setting_has_an_option_and_the_other_way_round() -> None:
    assert set(OPTIONS) == set(Settings.model_fields)


def test_defaults() -> None:
    settings = load(HOME="/home/x")
    config = settings.mount_config("/mnt/w")
    assert (settings.storage_type, config.store.type) == ("local", "local")
    assert config.debounce_min_s == 2.0 and config.debounce_max_s == 30.0
    assert config.max_size_bytes == 500 << 20 and config.backup_interval_s == 300
    assert config.root_uid == os.geteuid()
    assert not config.allow_other and config.store.verify_tls


def test_variables_of_the_design() -> None:
    config = load(
        WORKSPACE_STORAGE_TYPE="S3",
        WORKSPACE_BUCKET="bucket",
        WORKSPACE_PREFIX="team",
        WORKSPACE_BACKUP_INTERVAL="60",
        WORKSPACE_SYNC_DEBOUNCE_MIN="1",
        WORKSPACE_SYNC_DEBOUNCE_MAX="10",
        WORKSPACE_MAX_SIZE_MB="50",
        WORKSPACE_CACHE_DIR="/cache",
        WORKSPACE_UID_MAP="0:10001, 1000:1000",
        WORKSPACE_GID_MAP="0:10001",
        WORKSPACE_ALLOW_OTHER="yes",
        WORKSPACE_VERIFY_TLS="0",
        WORKSPACE_ROOT_MODE="770",
        AWS_ENDPOINT_URL="https://minio:9000",
        AWS_REGION="eu-central-1",
    ).mount_config("/mnt/w")
    assert config.store.location == "s3://bucket (https://minio:9000)"
    assert config.store.region == "eu-central-1" and not config.store.verify_tls
    assert config.workspace.prefix == "team/conversations/user/conversation/workspace/"
    assert (config.debounce_min_s, config.debounce_max_s) == (1, 10)
    assert config.max_size_bytes == 50 << 20 and config.cache_dir == "/cache"
    assert config.uid_map == ((0, 10001), (1000, 1000)) and config.gid_map == ((0, 10001),)
    assert config.allow_other and config.root_mode == 0o770


def test_read_only_and_how_often_it_looks() -> None:
    assert not load().mount_config("/mnt/w").read_only
    config = load(WORKSPACE_READ_ONLY="1", WORKSPACE_FOLLOW_INTERVAL="0.1").mount_config("/mnt/w")
    assert (config.read_only, config.follow_interval_s) == (True, 0.1)
    for wrong in ("0.05", "700000", "often"):
        with pytest.raises(UserError, match="WORKSPACE_FOLLOW_INTERVAL"):
            load(WORKSPACE_FOLLOW_INTERVAL=wrong)


def test_how_much_history_is_kept() -> None:
    assert load().mount_config("/mnt/w").history_limits == Limits(24, 2048 << 20, 30)
    config = load(
        WORKSPACE_HISTORY_HOURS="0.5", WORKSPACE_HISTORY_MAX_MB="0", WORKSPACE_SNAPSHOT_DAYS="7"
    ).mount_config("/mnt/w")
    assert config.history_limits == Limits(0.5, 0, 7)
    for name in ("HISTORY_HOURS", "HISTORY_MAX_MB", "SNAPSHOT_DAYS"):
        with pytest.raises(UserError, match=name):
            load(**{f"WORKSPACE_{name}": "-1"})


def test_precedence() -> None:
    environ = {**IDS, "AWS_ENDPOINT_URL": "http://b", "AWS_ENDPOINT_URL_S3": "http://a"}
    settings = Settings.load(environ, {"storage_type": "s3", "bucket": "flag", "region": None})
    assert settings.endpoint_url == "http://a"
    assert settings.bucket == "flag"
    environ |= {"WORKSPACE_BUCKET": "ours", "AWS_S3_BUCKET": "alias", "AWS_REGION": " "}
    settings = Settings.load(environ | {"AWS_DEFAULT_REGION": "eu"})
    assert (settings.bucket, settings.region) == ("ours", "eu")


def test_a_bucket_alone_means_s3() -> None:
    assert load(WORKSPACE_BUCKET="bucket").storage_type == "s3"
    assert load(AWS_S3_BUCKET="bucket").storage_type == "s3"


@pytest.mark.parametrize(
    ("environ", "location"),
    [
        ({"FILE_STORE": "s3", "FILE_STORE_PATH": "bkt"}, "s3://bkt"),
        ({"FILE_STORE": "s3", "FILE_STORE_PATH": "bkt", "AWS_S3_BUCKET": "other"}, "s3://bkt"),
        ({"FILE_STORE": "s3", "FILE_STORE_PATH": "~/.x", "AWS_S3_BUCKET": "other"}, "s3://other"),
        ({"FILE_STORE": "s3", "FILE_STORE_PATH": "bkt", "WORKSPACE_BUCKET": "ours"}, "s3://ours"),
        ({"FILE_STORE": "local", "FILE_STORE_PATH": "/srv/s"}, "file:///srv/s"),
        ({"FILE_STORE_PATH": "~/s", "HOME": "/home/x"}, "file:///home/x/s"),
        (
            {"FILE_STORE": "s3", "AWS_S3_BUCKET": "bkt", "AWS_S3_ENDPOINT": "minio:9000"},
            "s3://bkt (https://minio:9000)",
        ),
        (
            {
                "FILE_STORE": "s3",
                "AWS_S3_BUCKET": "bkt",
                "AWS_S3_ENDPOINT": "minio:9000",
                "AWS_S3_SECURE": "false",
            },
            "s3://bkt (http://minio:9000)",
        ),
        (
            {"AWS_S3_BUCKET": "bkt", "AWS_S3_ENDPOINT": "http://m:9000", "AWS_S3_SECURE": "true"},
            "s3://bkt (https://m:9000)",
        ),
        (
            {"AWS_S3_BUCKET": "bkt", "AWS_S3_ENDPOINT": "http://m:9000"},
            "s3://bkt (http://m:9000)",
        ),
    ],
)
def test_openhands_names(environ: dict[str, str], location: str) -> None:
    assert load(**environ).store_config().location == location


@pytest.mark.parametrize(
    ("environ", "source"),
    [
        ({"WORKSPACE_USER_ID": ""}, "WORKSPACE_USER_ID"),
        ({"WORKSPACE_CONVERSATION_ID": " "}, "WORKSPACE_CONVERSATION_ID"),
        ({"WORKSPACE_USER_ID": "../x"}, "WORKSPACE_USER_ID"),
        ({"WORKSPACE_CONVERSATION_ID": "a/b"}, "WORKSPACE_CONVERSATION_ID"),
        ({"WORKSPACE_PREFIX": "/x"}, "WORKSPACE_PREFIX"),
        ({"WORKSPACE_STORAGE_TYPE": "ftp"}, "WORKSPACE_STORAGE_TYPE"),
        ({"FILE_STORE": "memory"}, "FILE_STORE"),
        ({"WORKSPACE_STORAGE_TYPE": "s3"}, "WORKSPACE_BUCKET"),
        ({"WORKSPACE_BUCKET": "a b"}, "WORKSPACE_BUCKET"),
        ({"AWS_S3_BUCKET": "a b"}, "AWS_S3_BUCKET"),
        ({"WORKSPACE_BUCKET": "bkt", "AWS_ENDPOINT_URL": "minio"}, "AWS_ENDPOINT_URL"),
        ({"WORKSPACE_BUCKET": "bkt", "AWS_DEFAULT_REGION": "a b"}, "AWS_DEFAULT_REGION"),
        (
            {"AWS_S3_BUCKET": "bkt", "AWS_S3_ENDPOINT": "m", "AWS_S3_SECURE": "x"},
            "AWS_S3_SECURE",
        ),
        ({"WORKSPACE_MAX_SIZE_MB": "0"}, "WORKSPACE_MAX_SIZE_MB"),
        ({"WORKSPACE_MAX_SIZE_MB": "many"}, "WORKSPACE_MAX_SIZE_MB"),
        ({"WORKSPACE_SYNC_DEBOUNCE_MIN": "nan"}, "WORKSPACE_SYNC_DEBOUNCE_MIN"),
        ({"WORKSPACE_SYNC_DEBOUNCE_MIN": "31"}, "WORKSPACE_SYNC_DEBOUNCE_MIN"),
        ({"WORKSPACE_SYNC_DEBOUNCE_MAX": "1"}, "WORKSPACE_SYNC_DEBOUNCE_MIN"),
        ({"WORKSPACE_VERIFY_TLS": "maybe"}, "WORKSPACE_VERIFY_TLS"),
        ({"WORKSPACE_UID_MAP": "1:2,1:3"}, "WORKSPACE_UID_MAP"),
        ({"WORKSPACE_GID_MAP": "x:y"}, "WORKSPACE_GID_MAP"),
        ({"WORKSPACE_ROOT_MODE": "999"}, "WORKSPACE_ROOT_MODE"),
        ({"WORKSPACE_ROOT_UID": "-1"}, "WORKSPACE_ROOT_UID"),
        ({"WORKSPACE_LOG_LEVEL": "loud"}, "WORKSPACE_LOG_LEVEL"),
        ({"WORKSPACE_MAX_PARALLEL": "65"}, "WORKSPACE_MAX_PARALLEL"),
        ({"WORKSPACE_CACHE_DIR": "/a\0b"}, "WORKSPACE_CACHE_DIR"),
    ],
)
def test_errors_name_their_variable_and_a_remedy(environ: dict[str, str], source: str) -> None:
    with pytest.raises(UserError) as caught:
        load(**environ)
    assert caught.value.message.startswith(f"{source}: ")
    assert caught.value.remedy
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS


def test_directories_inside_the_mount_point_are_refused() -> None:
    with pytest.raises(UserError, match=r"^WORKSPACE_CACHE_DIR: .*inside the mount point"):
        load(WORKSPACE_CACHE_DIR="/mnt/w/cache").mount_config("/mnt/w")
    with pytest.raises(UserError, match=r"^WORKSPACE_STORAGE_PATH: .*inside the mount point"):
        load(WORKSPACE_STORAGE_PATH="/mnt/w").mount_config("/mnt/w")


def test_errors_of_flags_name_the_flag() -> None:
    with pytest.raises(UserError, match=r"^--max-size-mb: ") as caught:
        Settings.load(IDS, {"max_size_mb": "0"})
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS
    with pytest.raises(UserError, match="no setting 'colour'"):
        Settings.load(IDS, {"colour": "red"})


def test_secrets_are_neither_kept_nor_shown() -> None:
    settings = load(
        WORKSPACE_BUCKET="bucket", AWS_ACCESS_KEY_ID="AKIA", AWS_SECRET_ACCESS_KEY="hunter2"
    )
    assert "hunter2" not in repr(settings) + repr(settings.mount_config("/mnt/w"))
    with pytest.raises(UserError) as caught:
        load(WORKSPACE_BUCKET="bucket", AWS_ENDPOINT_URL_S3="http://key:hunter2@host")
    assert "hunter2" not in str(caught.value)
    assert caught.value.message.startswith("AWS_ENDPOINT_URL_S3: ")


def test_a_uuid_conversation_is_one_workspace_in_both_spellings() -> None:
    spellings = ("123e4567-e89b-12d3-a456-426614174000", "123E4567E89B12D3A456426614174000")
    configs = [load(WORKSPACE_CONVERSATION_ID=s).mount_config("/mnt/w") for s in spellings]
    assert configs[0] == configs[1]


def test_limits_are_taken_at_the_limit() -> None:
    load(WORKSPACE_MAX_PARALLEL=str(limits.MAX_PARALLEL_MAX))
    load(WORKSPACE_MAX_FILES=str(limits.INODES_MAX))
    load(WORKSPACE_ROOT_UID=str(limits.ID_MAX))
    largest = load(WORKSPACE_MAX_SIZE_MB=str(limits.SIZE_BYTES_MAX >> 20))
    assert largest.mount_config("/mnt/w").max_size_bytes == limits.SIZE_BYTES_MAX


@given(
    st.dictionaries(
        st.sampled_from(VARIABLES),
        st.text(max_size=12)
        | st.sampled_from(["s3", "local", "0", "1", "true", "bucket", "http://x:1", "1:2"]),
        max_size=6,
    )
)
def test_any_environment_gives_a_mount_or_a_settings_error(environ: dict[str, str]) -> None:
    try:
        config = Settings.load({**IDS, **environ}).mount_config("/mnt/w")
    except UserError as exc:
        assert exc.exit_code is ExitCode.BAD_SETTINGS
        assert exc.message.isprintable()
    else:
        assert MountConfig.loads(config.dumps()) == config


@given(st.text(max_size=20))
def test_small_parsers_return_or_raise_value_error(text: str) -> None:
    parsers: tuple[Any, ...] = (parse_bool, parse_id_map)
    for parse in parsers:
        try:
            parse(text)
        except ValueError as exc:
            assert str(exc)


def test_id_map_length_at_the_limit() -> None:
    pairs = [f"{i}:{i}" for i in range(limits.ID_MAP_ENTRIES_MAX)]
    assert len(parse_id_map(",".join(pairs))) == limits.ID_MAP_ENTRIES_MAX
    with pytest.raises(ValueError, match="at most"):
        parse_id_map(",".join([*pairs, "999:999"]))


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [
        ("WORKSPACE_MAX_SIZE_MB", "lots", "it must be a whole number"),
        ("WORKSPACE_SYNC_DEBOUNCE_MIN", "soon", "it must be a number"),
        ("WORKSPACE_STORAGE_TYPE", "gcs", "it must be 's3' or 'local'"),
        ("WORKSPACE_MAX_PARALLEL", "0", "it must be greater than or equal to 1"),
    ],
)
def test_what_a_setting_must_be_is_said_plainly(variable: str, value: str, wanted: str) -> None:
    with pytest.raises(UserError, match=f"^{variable}: .*{wanted}"):
        load(**{variable: value})
