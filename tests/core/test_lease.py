"""The lease as bytes, and the policy of how long it lasts."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import bounds, lease
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import json_digest
from s3ws_fs.core.lease import HELD, RELEASED, Lease, decode_lease

S = 1_000_000_000
ONE = Lease(
    epoch=3,
    state=HELD,
    writer="a" * 32,
    host="one.example",
    pid=77,
    since_ns=1_700_000_000 * S,
    lasts_ms=60_000,
    fence_ms=20_000,
    serial=9,
)


def test_it_survives_the_bucket() -> None:
    assert decode_lease(ONE.encode(), "x") == ONE
    released = replace(ONE, state=RELEASED, host="ho\u0308st \u2028")
    assert decode_lease(released.encode(), "x") == released


def test_it_says_who() -> None:
    assert ONE.who == "one.example (pid 77, since 2023-11-14 22:13:20 UTC)"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", -1),
        ("epoch", "3"),
        ("epoch", 1 << 63),
        ("pid", True),
        ("state", "lost"),
        ("host", "h" * 65),
        ("host", 5),
        ("since_ns", 1 << 62),
        ("format", 2),
    ],
)
def test_what_can_not_be_is_refused(name: str, value: object) -> None:
    body = {**json.loads(ONE.encode()), name: value}
    body["digest"] = json_digest(body)
    with pytest.raises(FormatError):
        decode_lease(json.dumps(body).encode(), "journal/lease.json")


@given(st.binary(max_size=200) | st.integers(0, len(ONE.encode()) - 1))
def test_other_bytes_are_no_lease(raw: bytes | int) -> None:
    if isinstance(raw, int):
        whole = bytearray(ONE.encode())
        whole[raw] ^= 1
        raw = bytes(whole)
    with contextlib.suppress(FormatError):
        assert decode_lease(raw, "x") == ONE


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"[" * 100_000, ONE.encode() + b" " * 5000])
def test_hostile_bytes(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_lease(raw, "x")


def test_it_lapses_by_one_clock() -> None:
    put_ns = 5 * S
    assert ONE.left_s(put_ns, put_ns) == 60 + lease.LAPSE_SLACK_S
    assert ONE.left_s(put_ns, put_ns + 61 * S) == 1
    assert ONE.left_s(put_ns, put_ns + 62 * S) <= 0
    assert replace(ONE, state=RELEASED).left_s(put_ns, put_ns) <= 0
    # A fence that is longer than the lease (none of ours is) counts all the same.
    assert replace(ONE, lasts_ms=0).left_s(put_ns, put_ns) == 20 + lease.LAPSE_SLACK_S


@given(st.floats(bounds.LEASE_S_MIN, bounds.LEASE_S_MAX), st.floats(0, 1e9))
def test_how_long_an_idle_mount_extends_it(lease_s: float, idle_for_s: float) -> None:
    lasts_s = lease.idle_lease_s(lease_s, idle_for_s)
    assert 10 * lease_s <= lasts_s <= 60 * lease_s
    assert lease.fence_s(lease_s) < lease.renew_after_s(lasts_s) < lasts_s


def test_a_day_of_idleness_costs_few_requests() -> None:
    """The policy as the daemon runs it: renewals of one idle mount in 24 hours."""
    now_s, lasts_s, renewals = 0.0, bounds.LEASE_S, 0
    while now_s < 86_400:
        now_s += lease.renew_after_s(lasts_s)
        lasts_s = lease.idle_lease_s(bounds.LEASE_S, now_s)
        renewals += 1
    assert renewals < 45
