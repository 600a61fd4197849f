"""Targets: the small JSON objects of a bucket's journal, and notes of that kind in a cache.

Each carries a digest of its other members: most cases have it made anew over what was changed, so
that what stands behind it is reached.

Called by tests.fuzz.
"""

from __future__ import annotations

import json
import random
from typing import Any, Final

from s3ws_fs.core import history, jsontext, layout
from s3ws_fs.core.errors import UserError
from s3ws_fs.core.forks import Mark, Origin, decode_mark
from s3ws_fs.core.journal import json_digest
from s3ws_fs.core.lease import HELD, RELEASED, Lease, decode_lease
from s3ws_fs.core.types import Outdated
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling
from tests.fuzz.mutate import any_text, changed_value, json_bytes
from tests.fuzz.target import Target

WORKSPACE: Final = "w" * 32
NOW_NS: Final = 1_800_000_000 * 10**9

LEASE: Final = json.loads(Lease(3, HELD, "a" * 32, "host", 77, NOW_NS, 60_000, 20_000, 5).encode())
MIRRORED: Final = {"format": 1, "workspace": WORKSPACE, "generation": 9}
NOTE: Final = {"format": 1, "workspace": WORKSPACE, "extent_bytes": 32768, "created_ns": NOW_NS}
SNAPSHOT: Final = history.Snapshot(
    WORKSPACE, 5, "0" * 32, 9, history.snap_id(history.NAMED, "v1", NOW_NS), "v1", history.NAMED,
    NOW_NS,
)  # fmt: skip
MARK: Final = Mark(Origin("conversations/u/c/workspace/", WORKSPACE, 5, 9), "x" * 32, NOW_NS)
KEPT: Final = {"format": 1, "workspace": WORKSPACE, "from": 4}
OUTDATED: Final = json.loads(json.dumps(Outdated(((1, b"\xff"), (7, b"n")), (1, 7)).to_json()))


def signed(rng: random.Random, value: dict[str, Any]) -> bytes:
    """The object changed, mostly with its digest made anew; else as a disk would have it."""
    how = rng.randrange(6)
    if how == 0:
        return json_bytes(rng, value | {"digest": json_digest(value)})
    if how == 1:
        return json.dumps(value | {"digest": json_digest(value)}).encode()
    for _ in range(rng.randrange(1, 4)):
        changed = changed_value(rng, value)
        value = changed if isinstance(changed, dict) else value
    return json.dumps(value | {"digest": json_digest(value)}).encode()


def run_lease(raw: bytes) -> None:
    """A lease can be shown, judged and written again; a released one has no time left."""
    lease = decode_lease(raw, layout.LEASE_KEY)
    assert decode_lease(lease.encode(), layout.LEASE_KEY) == lease
    assert lease.who
    left_s = lease.left_s(NOW_NS, NOW_NS)
    assert left_s >= 0
    assert not left_s or lease.state != RELEASED


def _bucket(key: str, raw: bytes) -> ScopedStore:
    store = ScopedStore(MemoryStore(), "conversations/u/c/workspace/")
    store.put(key, raw)
    return store


def run_mirrored(raw: bytes) -> None:
    """A hint is a generation, or nothing; never an error."""
    generation = journaling.read_mirrored(_bucket(layout.MIRRORED_KEY, raw), WORKSPACE)
    assert 0 <= generation < 1 << 64
    if generation:
        found = json.loads(raw)
        assert found["workspace"] == WORKSPACE
        assert found["digest"] == json_digest(found)


def run_workspace(raw: bytes) -> None:
    """The workspace's name, or an error for a person."""
    found = journaling.read_workspace(_bucket(layout.WORKSPACE_KEY, raw))
    assert isinstance(found, str)


def run_snapshot(raw: bytes) -> None:
    """A snapshot is that of its key, and can be called by a name."""
    found = history.decode_snapshot(raw, SNAPSHOT.key)
    assert found.key == SNAPSHOT.key
    assert history.decode_snapshot(found.encode(), found.key) == found
    assert found.ref.isprintable()


def run_mark(raw: bytes) -> None:
    """A fork's mark comes back as it was."""
    found = decode_mark(raw)
    assert decode_mark(found.encode()) == found


def run_snapshot_key(text: str) -> None:
    """A key is no snapshot's, or the one that we would make."""
    key = layout.SNAP_PREFIX + text
    found = history.split_snap_key(key)
    if found is not None:
        assert history.snap_key(*found) == key
        assert history.kind_of(found[1]) in history.KINDS


def make_snapshot_key(rng: random.Random) -> str:
    """A key that is nearly one."""
    text = SNAPSHOT.key.removeprefix(layout.SNAP_PREFIX)
    at = rng.randrange(len(text) + 1)
    piece = any_text(rng) if rng.random() < 0.5 else rng.choice("0123456789abcdef-")
    return text[:at] + piece + text[at + rng.randrange(2) :]


def run_reference(text: str) -> None:
    """What a person writes is a reference or an error in words."""
    history.parse_ref(text, NOW_NS)


def make_reference(rng: random.Random) -> str:
    """Something like a reference."""
    known = ("#5", "gen:9", "2027-01-02T03:04:05Z", "15m", "turn:t1:begin", "head", "undo", "v1")
    text = rng.choice(known)
    at = rng.randrange(len(text) + 1)
    return text if rng.random() < 0.1 else text[:at] + any_text(rng) + text[at:]


def run_outdated(raw: bytes) -> None:
    """A note in the cache: read back as it was written, or a FormatError."""
    found = Outdated.from_json(jsontext.value_of(raw, "note"))
    assert Outdated.from_json(json.loads(json.dumps(found.to_json()))) == found


TARGETS: Final = (
    Target("leases", lambda rng: signed(rng, LEASE), run_lease),
    Target("mirrored notes", lambda rng: signed(rng, MIRRORED), run_mirrored),
    Target("workspace notes", lambda rng: signed(rng, NOTE), run_workspace),
    Target("snapshots", lambda rng: signed(rng, json.loads(SNAPSHOT.encode())), run_snapshot),
    Target("snapshot keys", make_snapshot_key, run_snapshot_key),
    Target(
        "history notes",
        lambda rng: signed(rng, KEPT),
        lambda raw: history.decode_kept_from(raw, WORKSPACE),
    ),
    Target("fork marks", lambda rng: signed(rng, json.loads(MARK.encode())), run_mark),
    Target("references", make_reference, run_reference, (UserError,)),
    Target("kernel notes", lambda rng: json_bytes(rng, OUTDATED), run_outdated),
)
