"""The configuration values: always valid, and the same after their way to the daemon."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import config as c
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import ExitCode, UserError

LOCAL = StoreConfig("local", path="/srv/store")
CONFIG = MountConfig(
    mountpoint="/mnt/w",
    workspace=WorkspaceId("user", "conversation"),
    store=LOCAL,
    cache_dir="/var/cache/x",
    runtime_dir="/run/x",
)

absolute = st.text(
    st.characters(exclude_characters="\0", min_codepoint=1, max_codepoint=0xDFFF), max_size=50
).map(lambda text: "/" + text)
id_maps = st.dictionaries(st.integers(0, c.ID_MAX), st.integers(0, c.ID_MAX), max_size=5).filter(
    lambda pairs: len(set(pairs.values())) == len(pairs)
)


@given(
    # A root of its own, so that it is not above the other directories.
    mountpoint=absolute.map(lambda path: "/mnt" + path),
    uid_map=id_maps,
    parallel=st.integers(1, c.MAX_PARALLEL_MAX),
    debounce=st.floats(0, c.DEBOUNCE_S_MAX),
    size=st.integers(c.SIZE_BYTES_MIN, c.SIZE_BYTES_MAX),
)
def test_json_round_trip(
    mountpoint: str, uid_map: dict[int, int], parallel: int, debounce: float, size: int
) -> None:
    config = replace(
        CONFIG,
        mountpoint=mountpoint,
        uid_map=tuple(uid_map.items()),
        store=StoreConfig("s3", bucket="bucket", max_parallel=parallel),
        debounce_min_s=debounce,
        debounce_max_s=c.DEBOUNCE_S_MAX,
        max_size_bytes=size,
    )
    line = config.dumps()
    assert line.isascii() and b"\n" not in line
    assert MountConfig.loads(line) == config


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(CONFIG.to_json())), json_values)
def test_any_member_replaced_by_anything_is_taken_or_refused_cleanly(name: str, value: Any) -> None:
    try:
        config = MountConfig.from_json({**CONFIG.to_json(), name: value})
    except UserError as exc:
        assert exc.exit_code is ExitCode.BAD_SETTINGS
    else:
        assert MountConfig.loads(config.dumps()) == config


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_loads_never_fails_otherwise(data: bytes) -> None:
    with pytest.raises(UserError):
        MountConfig.loads(data)


def test_loads_refuses_what_is_too_long_missing_or_unknown() -> None:
    with pytest.raises(UserError, match="longer"):
        MountConfig.loads(b" " * (c.CONFIG_JSON_BYTES_MAX + 1))
    whole = CONFIG.to_json()
    with pytest.raises(UserError, match="incomplete"):
        MountConfig.from_json({k: v for k, v in whole.items() if k != "mountpoint"})
    with pytest.raises(UserError, match="unknown members: extra"):
        MountConfig.from_json({**whole, "extra": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"mountpoint": "relative"},
        {"mountpoint": "/a\0b"},
        {"mountpoint": "/" + "x" * c.PATH_CHARS_MAX},
        {"debounce_min_s": -0.1},
        {"debounce_min_s": float("nan")},
        {"debounce_min_s": 31.0},
        {"debounce_max_s": c.DEBOUNCE_S_MAX + 1},
        {"max_size_bytes": c.SIZE_BYTES_MIN - 1},
        {"max_size_bytes": c.SIZE_BYTES_MAX + 1},
        {"max_inodes": c.INODES_MIN - 1},
        {"max_inodes": c.INODES_MAX + 1},
        {"root_uid": -1},
        {"root_gid": c.ID_MAX + 1},
        {"root_mode": 0o10000},
        {"adaptive_wait_us": c.ADAPTIVE_WAIT_US_MAX + 1},
        {"log_level": "loud"},
        {"log_format": "xml"},
        {"uid_map": ((0, 1), (2, 1))},
        {"gid_map": ((0, 1), (0, 2))},
        {"uid_map": tuple((i, i) for i in range(c.ID_MAP_ENTRIES_MAX + 1))},
        {"cache_dir": "/mnt/w"},
        {"runtime_dir": "/mnt/w/run"},
        {"store": StoreConfig("local", path="/mnt/w/deep/store")},
    ],
)
def test_bad_mount_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        replace(CONFIG, **changes)
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS


def test_values_at_their_limits_are_taken() -> None:
    replace(
        CONFIG,
        max_size_bytes=c.SIZE_BYTES_MIN,
        max_inodes=c.INODES_MIN,
        uid_map=tuple((i, i) for i in range(c.ID_MAP_ENTRIES_MAX)),
        root_uid=c.ID_MAX,
        root_mode=0o7777,
        adaptive_wait_us=c.ADAPTIVE_WAIT_US_MAX,
        debounce_min_s=30.0,
    )


def test_a_directory_beside_the_mount_point_with_its_name_as_prefix_is_fine() -> None:
    replace(CONFIG, cache_dir="/mnt/w-cache")


@pytest.mark.parametrize(
    "arguments",
    [
        {"type": "s3"},
        {"type": "s3", "bucket": "a/b"},
        {"type": "s3", "bucket": "ab"},
        {"type": "s3", "bucket": "bucket", "path": "/x"},
        {"type": "local"},
        {"type": "local", "path": "x"},
        {"type": "ftp"},
        {"type": "s3", "bucket": "bucket", "endpoint_url": "minio:9000"},
        {"type": "s3", "bucket": "bucket", "endpoint_url": "http://h:port"},
        {"type": "s3", "bucket": "bucket", "endpoint_url": "http://"},
        {"type": "s3", "bucket": "bucket", "endpoint_url": "http://[::1"},
        {"type": "s3", "bucket": "bucket", "region": "no region"},
        {"type": "s3", "bucket": "bucket", "max_parallel": 0},
        {"type": "s3", "bucket": "bucket", "max_parallel": c.MAX_PARALLEL_MAX + 1},
        {"type": "s3", "bucket": "bucket", "ca_bundle": "x.pem"},
        {"type": "s3", "bucket": "bucket", "addressing_style": "odd"},
    ],
)
def test_bad_store_values_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        StoreConfig(**arguments)


def test_credentials_in_an_endpoint_are_refused_and_not_repeated() -> None:
    for url in ("http://key:hunter2@host", "http://key:hunter2/x@host"):
        with pytest.raises(UserError) as caught:
            StoreConfig("s3", bucket="bucket", endpoint_url=url)
        assert "hunter2" not in str(caught.value)


def test_a_read_only_mount_has_a_cache_of_its_own() -> None:
    writing, following = CONFIG.workspace_cache_dir, replace(CONFIG, read_only=True)
    assert following.workspace_cache_dir == writing + "-ro"


def test_cache_directory_follows_the_workspace_and_not_the_way_to_it() -> None:
    def where(store: StoreConfig, workspace: WorkspaceId = CONFIG.workspace) -> str:
        return replace(CONFIG, store=store, workspace=workspace).workspace_cache_dir

    here = StoreConfig("s3", bucket="bucket", endpoint_url="http://a")
    assert where(here) == where(replace(here, endpoint_url="http://b", region="eu"))
    others = {
        where(here),
        where(replace(here, bucket="bucket2")),
        where(LOCAL),
        where(here, WorkspaceId("user2", "conversation")),
        where(here, WorkspaceId("user", "conversation2")),
        where(here, WorkspaceId("user", "conversation", "root")),
    }
    assert len(others) == 6
    assert all(path.startswith("/var/cache/x/conversation") for path in others)


def test_workspace_prefix() -> None:
    spelled = WorkspaceId("u", "123E4567-E89B-12D3-A456-426614174000", "team")
    assert spelled.prefix == ("team/conversations/u/123e4567e89b12d3a456426614174000/workspace/")
    with pytest.raises(UserError):
        WorkspaceId("..", "x")


def test_location_for_people() -> None:
    assert LOCAL.location == "file:///srv/store"
    assert StoreConfig("s3", bucket="bkt").location == "s3://bkt"
    minio = StoreConfig("s3", bucket="bkt", endpoint_url="http://minio:9000")
    assert minio.location == "s3://bkt (http://minio:9000)"


def test_a_point_is_shown_read_only_and_has_a_cache_of_its_own() -> None:
    following = replace(CONFIG, read_only=True)
    one = replace(following, at_number=12, at_hash="0123456789abcdef" * 2, at_ref="before")
    other = replace(one, at_hash="f" * 32)
    places = {each.workspace_cache_dir for each in (CONFIG, following, one, other)}
    assert len(places) == 4
    assert one.workspace_cache_dir == following.workspace_cache_dir + "-12-01234567"
    assert MountConfig.loads(one.dumps()) == one
    for changes in (
        {"read_only": False},
        {"at_hash": ""},
        {"at_hash": "x" * 32},
        {"at_number": -1},
        {"at_number": 1 << 63},
        {"at_ref": "r" * 201},
    ):
        with pytest.raises(UserError):
            replace(one, **changes)
    assert replace(one, at_ref="r" * 200, at_number=(1 << 63) - 1).at_number
