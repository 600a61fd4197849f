"""Rates are between two looks at one daemon, and whatever a daemon says, never an error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.control import client, registry
from s3ws_fs.workspaces import rates
from s3ws_fs.workspaces.rates import Look, rows, total


def document(**more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mountpoint": "/m",
        "pid": 7,
        "state": "ready",
        "workspace": {"user_id": "u", "conversation_id": "c"},
        "health": {"state": "ok", "error": None},
        "holder": {"restarts": 2},
        "dirty": {"files": 3, "bytes": 4096, "oldest_age_s": 1.5},
        "quota": {"used_bytes": 25, "max_bytes": 100},
        "generation": {"head": 100},
        "faults": 1,
        "counts": counts(),
    }
    return found | more


def counts(scale: int = 1) -> dict[str, Any]:
    return {
        "fuse": {"ops": {name: {"count": n * scale} for name, n in
                         (("read", 10), ("write", 20), ("getattr", 70))}},
        "store": {
            "requests": {"put 200": 5 * scale, "get NoSuchKey": 2, "put SlowDown": 3,
                         "get 404": 1, "head ENOENT": 1},
            "sent_bytes": 1000 * scale,
            "received_bytes": 500 * scale,
        },
    }  # fmt: skip


def test_what_two_looks_come_to() -> None:
    before = Look(10.0, [document()])
    now = Look(12.0, [document(counts=counts(3), generation={"head": 150})])
    [row] = rows(before, now)
    assert (row.ops, row.reads, row.writes, row.changes) == (100.0, 10.0, 20.0, 25.0)
    assert (row.upload_bytes, row.download_bytes, row.requests) == (1000.0, 500.0, 5.0)
    assert (row.dirty_files, row.dirty_bytes, row.oldest_dirty_s) == (3, 4096, 1.5)
    assert (row.errors, row.store_errors, row.restarts, row.used) == (1, 3, 2, 0.25)
    sums = total([row, row])
    assert (sums.mounts, sums.ops, sums.dirty_bytes, sums.troubled) == (2, 200.0, 8192, 0)


@pytest.mark.parametrize(
    "before",
    [
        None,
        Look(10.0, []),
        Look(12.0, [document()]),
        Look(10.0, [document(pid=6)]),
        Look(10.0, [document(mountpoint="/other")]),
    ],
)
def test_without_two_looks_at_one_daemon_there_is_no_rate(before: Look | None) -> None:
    [row] = rows(before, Look(12.0, [document()]))
    assert (row.ops, row.upload_bytes, row.changes) == (None, None, None)
    assert row.dirty_files == 3


def test_counts_that_went_back_are_no_rate() -> None:
    [row] = rows(Look(0.0, [document(counts=counts(5))]), Look(1.0, [document()]))
    assert row.ops is None and row.upload_bytes is None


def test_the_busiest_comes_first_and_trouble_is_counted() -> None:
    idle = document(mountpoint="/a")
    busy = [document(mountpoint="/z", counts=counts(n)) for n in (1, 9)]
    dead = {"mountpoint": "/d", "state": "dead"}
    silent = {"mountpoint": "/s", "state": "silent", "error": {"message": "no answer"}}
    found = rows(Look(0.0, [idle, busy[0]]), Look(1.0, [idle, dead, busy[1], silent]))
    assert [row.mountpoint for row in found] == ["/z", "/a", "/d", "/s"]
    assert found[3].error == "no answer" and found[2].ops is None
    assert total(found).troubled == 2


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(document())), _json))
def test_whatever_a_daemon_says(said: dict[str, Any]) -> None:
    [row] = rows(*[Look(at_s, [document(**said)]) for at_s in (1.0, 2.0)])
    assert row.to_json() and total([row]).mounts == 1


def test_all_daemons_are_asked_for_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [type("Info", (), {"mountpoint": f"/{n}"})() for n in range(3)]
    asked: list[tuple[str, bool]] = []

    def ask(info: Any, *, counts: bool, timeout_s: float) -> dict[str, Any]:
        asked.append((info.mountpoint, counts))
        assert timeout_s == rates.LOOK_S < client.STATUS_TIMEOUT_S
        return document(mountpoint=info.mountpoint)

    monkeypatch.setattr(rates, "status_document", ask)
    for some in (infos, infos[:1], []):
        asked.clear()
        monkeypatch.setattr(registry, "list_mounts", lambda _, some=some: (some, ["bad"]))
        found = rates.look()
        assert sorted(asked) == [(info.mountpoint, True) for info in some]
        assert len(found.documents) == len(some) and found.damaged == ["bad"]
