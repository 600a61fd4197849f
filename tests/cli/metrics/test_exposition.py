"""Status documents as Prometheus sees them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from s3ws_fs.cli.metrics import exposition
from s3ws_fs.cli.metrics.kinds import BUCKET_BITS, FAMILIES, LABELLED_MAX
from s3ws_fs.core import backups

NOW_S = 1_800_000_000.0
BACKUP = "backup-20260131T120000Z"
DOCUMENT: dict[str, Any] = {
    "version": "1.2",
    "mountpoint": "/w",
    "state": "ready",
    "read_only": False,
    "workspace": {"user_id": "alice", "conversation_id": "c1"},
    "store": {"type": "s3"},
    "holder": {"restarts": 2},
    "generation": {"head": 9, "sealed": 8, "mirrored": 7},
    "dirty": {"records": 3, "files": 1, "bytes": 4096, "oldest_age_s": 1.25},
    "flush": {"last_sealed_age_s": 3.0},
    "mirror": {"pending_files": 4, "unmirrored": [{"path": "x"}], "conflicts": []},
    "health": {"state": "degraded", "since_s": 5.0, "error": "secret text of a server"},
    "lease": {"state": "held", "left_s": 55.5},
    "quota": {
        "used_bytes": 80,
        "max_bytes": 100,
        "used_inodes": 1,
        "max_inodes": 9,
        "warning": "w",
    },
    "hydration": {"cold_bytes": 2048, "cold_files": 2, "damaged": [{"path": "p", "reason": "r"}]},
    "cache": {
        "file_bytes": 7,
        "sync_point_error": None,
        "quarantines": [],
        "room": {"reason": None},
    },
    "backup": {"interval_s": 300.0, "last": {"name": BACKUP, "bytes": 5}, "error": "no"},
    "faults": 1,
    "started_at_s": NOW_S - 100,
    "counts": {
        "fuse": {
            "ops": {"getattr": {"count": 40, "sum_ns": 3_000_000, "bits": {"10": 3, "21": 1}}},
            "errors": {"EIO": 2},
            "read_bytes": 11,
            "written_bytes": 12,
        },
        "store": {"requests": {"put 200": 6, "put SlowDown": 1}, "sent_bytes": 13},
        "flushes": {"ok": 5, "failed": 1},
        "seals": {"count": 5, "sum_s": 2.5},
        "log": {"warning": 3},
    },
    "processes": {"daemon": {"resident_bytes": 1024, "cpu_s": 0.5}},
}


class Told(Collector):
    """What `_families` makes of documents."""

    def __init__(self, documents: Sequence[dict[str, Any]]) -> None:
        self._documents = documents

    def collect(self) -> list[Metric]:
        return list(exposition._families(self._documents))


Parsed = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(*documents: dict[str, Any]) -> Parsed:
    """Samples as a Prometheus reads them from the text, by name and labels (but for those of the
    mount, when there is one mount).
    """
    found: Parsed = {}
    for family in text_string_to_metric_families(generate_latest(Told(documents)).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            if len(documents) == 1:
                for name in exposition.BASE:
                    del labels[name]
            key = sample.name, frozenset(labels.items())
            assert key not in found, "Prometheus refuses a scrape with one sample twice"
            found[key] = sample.value
    return found


def one(found: Parsed, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW_S)


def test_what_a_living_mount_says() -> None:
    found = parsed(DOCUMENT)
    for name, value in {
        "up": 1,
        "mount_given_up": 0,
        "daemon_restarts_total": 2,
        "faults_total": 1,
        "start_time_seconds": NOW_S - 100,
        "dirty_records": 3,
        "dirty_bytes": 4096,
        "oldest_dirty_age_seconds": 1.25,
        "sealed_generation": 8,
        "last_seal_timestamp_seconds": NOW_S - 3,
        "degraded": 1,
        "degraded_seconds": 5,
        "fenced": 0,
        "lease_held": 1,
        "lease_remaining_seconds": 55.5,
        "used_bytes": 80,
        "quota_bytes": 100,
        "quota_warning": 1,
        "cache_sync_failing": 0,
        "cache_short_of_room": 0,
        "damaged_files": 1,
        "unmirrored_files": 1,
        "mirror_conflicts": 0,
        "last_backup_timestamp_seconds": backups.time_of(BACKUP),
        "backup_failing": 1,
        "fuse_read_bytes_total": 11,
        "s3_sent_bytes_total": 13,
        "seal_duration_seconds_count": 5,
        "seal_duration_seconds_sum": 2.5,
    }.items():
        assert one(found, f"s3ws_{name}") == value, name
    assert one(found, "s3ws_s3_requests_total", op="put", code="SlowDown") == 1
    assert one(found, "s3ws_flushes_total", result="failed") == 1
    assert one(found, "s3ws_fuse_ops_total", op="getattr") == 40
    assert one(found, "s3ws_fuse_errors_total", errno="EIO") == 2
    assert one(found, "s3ws_process_resident_memory_bytes", process="daemon") == 1024
    said = {"version": "1.2", "state": "ready", "store": "s3", "read_only": "false"}
    assert one(found, "s3ws_mount_info", **said) == 1


def test_durations_are_a_histogram_that_adds_up() -> None:
    found = parsed(DOCUMENT)
    name = "s3ws_fuse_op_duration_seconds"
    buckets = {
        float(dict(labels)["le"]): value
        for (sample, labels), value in found.items()
        if sample == f"{name}_bucket" and ("op", "getattr") in labels
    }
    assert list(buckets) == [*((1 << n) / 1e9 for n in BUCKET_BITS), math.inf]
    assert buckets[(1 << 14) / 1e9] == buckets[(1 << 20) / 1e9] == 3
    assert buckets[(1 << 22) / 1e9] == buckets[math.inf] == 4
    assert one(found, f"{name}_count", op="getattr") == 4
    assert one(found, f"{name}_sum", op="getattr") == 0.003


def test_of_a_dead_mount_what_is_not_saved() -> None:
    said = {"records": 3, "files": 2, "oldest_ns": int((NOW_S - 60) * 1e9)}
    dead = {name: DOCUMENT[name] for name in ("mountpoint", "workspace", "store")}
    found = parsed(dead | {"state": "dead", "unsaved": said})
    assert one(found, "s3ws_up") == 0
    assert one(found, "s3ws_mount_given_up") == 1
    assert one(found, "s3ws_dirty_records") == 3
    assert one(found, "s3ws_oldest_dirty_age_seconds") == 60
    assert {name for name, _ in found} == {
        f"s3ws_{name}"
        for name in (
            "up",
            "mount_info",
            "mount_given_up",
            "dirty_records",
            "dirty_files",
            "oldest_dirty_age_seconds",
        )
    }, "what nobody knows is no sample"
    unreadable = parsed(dead | {"state": "dead", "unsaved": None})
    assert ("s3ws_dirty_records", frozenset()) not in unreadable


def test_a_clean_mount_has_no_old_dirt() -> None:
    clean = DOCUMENT | {"dirty": {"records": 0, "files": 0, "bytes": 0, "oldest_age_s": None}}
    assert one(parsed(clean), "s3ws_oldest_dirty_age_seconds") == 0


def test_mounts_are_told_apart_whatever_their_names() -> None:
    paths = ["/w", "/w\udcff", "/w\\xff", '/w"\n}', "/w\u202e", "/w\\"]
    found = parsed(*(DOCUMENT | {"mountpoint": path} for path in paths))
    ups = [dict(labels) for name, labels in found if name == "s3ws_up"]
    assert len(ups) == len(paths)
    for labels in ups:
        assert set(labels) == set(exposition.BASE)
        assert (labels["user"], labels["conversation"]) == ("alice", "c1")
        assert labels["mountpoint"].isprintable()


def test_no_text_of_others_is_exposed() -> None:
    text = generate_latest(Told([DOCUMENT])).decode()
    assert "secret text" not in text
    assert DOCUMENT["health"]["error"] not in text


def test_samples_of_a_family_are_bounded() -> None:
    document = copy.deepcopy(DOCUMENT)
    many = {f"put E{number}": 1 for number in range(LABELLED_MAX + 10)}
    document["counts"]["store"]["requests"] = many
    found = parsed(document)
    assert sum(name == "s3ws_s3_requests_total" for name, _ in found) == LABELLED_MAX


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "bytes", "10", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def _paths(value: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [above]
    return [above, *(p for name, inner in value.items() for p in _paths(inner, (*above, name)))]


@given(path=st.sampled_from(_paths(DOCUMENT)[1:]), value=JSON)
def test_a_daemon_of_another_version_is_told_as_far_as_it_goes(
    path: tuple[str, ...], value: Any
) -> None:
    document = copy.deepcopy(DOCUMENT)
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert any(name == "s3ws_up" for name, _ in parsed(document))


def test_every_family_is_well_named() -> None:
    for name, family in FAMILIES.items():
        assert name == family.name
        assert not name.startswith("s3ws_") and not name.endswith("_total")
        assert family.help and not family.help.endswith(".")
        assert not set(family.labels) & set(exposition.BASE)
