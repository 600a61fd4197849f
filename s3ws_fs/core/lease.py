"""The lease: who may write to the workspace, as an object beside the journal. Pure.

`journal/lease.json` (docs/format.md has the MUST rules) names the holder, an epoch that only rises,
and how long the lease lasts after the object was put, by the store's clock.

    held       lasts `lasts_ms` after it was put; renewed by putting it again
    released   its holder has ended cleanly: anybody may take it

Invariants
1. Every body differs from every other: epoch and serial never repeat together, and a holder is
   known by its writer. So a conditional put is never mistaken for another's.
2. A holder changes nothing below files/, and deletes nothing, later than `fence_ms` after the
   *sending* of the last request that proved its lease; `fence_ms` is a part of `lasts_ms`. So who
   finds it lapsed, or waits that long after taking it over, is alone.
3. Times are compared on one clock only: the store's (when was it put, what is it now) or the
   holder's own (when did I send). The two hosts' clocks are never compared; `since_ns` is for
   people.

Called by transfer (leasing, gate), replica and the settings.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import HOST_CHARS_MAX, json_digest
from s3ws_fs.core.limits import FORMAT_VERSION

HELD: Final = "held"
RELEASED: Final = "released"

NEW: Final = "new"
GIVEN: Final = "given"
OWN: Final = "own"
LAPSED: Final = "lapsed"
TAKEN: Final = "taken"
"""How a lease was got: there was none, it was released, ours already, lapsed, or taken by force."""

FENCE_PARTS: Final = 3
"""A proof of the lease is good for this part of it; that long a successor leaves the mirror."""
IDLE_FACTOR: Final = 10
"""A mount with nothing to do extends its lease to this many times the lease, …"""
IDLE_FACTOR_MAX: Final = 60
"""… and, the longer it is idle, up to this many: an idle mount costs next to no request."""
RENEW_PARTS: Final = (2, 3)
"""An idle lease is renewed after this part of it, so that there is time for more than one try."""
LAPSE_SLACK_S: Final = 2.0
"""Stores date objects in whole seconds, and clocks run at rates that differ a little."""
LEASE_BYTES_MAX: Final = 4096

_U63_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Lease:
    """What the object says."""

    epoch: int
    state: str
    writer: str
    host: str
    pid: int
    since_ns: int
    lasts_ms: int
    fence_ms: int
    serial: int

    @property
    def who(self) -> str:
        """The holder, for a person."""
        when = datetime.fromtimestamp(self.since_ns // 1_000_000_000, UTC)
        return f"{self.host} (pid {self.pid}, since {when:%Y-%m-%d %H:%M:%S} UTC)"

    def left_s(self, put_ns: int, now_ns: int) -> float:
        """Seconds until it has lapsed; both times by the store's clock. Not above 0: it has."""
        if self.state == RELEASED:
            return 0.0
        lasts_s = max(self.lasts_ms, self.fence_ms) / 1e3
        return lasts_s + LAPSE_SLACK_S - (now_ns - put_ns) / 1e9

    def encode(self) -> bytes:
        """The object's bytes."""
        body = asdict(self) | {"format": FORMAT_VERSION}
        return json.dumps(body | {"digest": json_digest(body)}, indent=1).encode()


_INTS: Final = tuple(f.name for f in fields(Lease) if f.type in (int, "int"))


def decode_lease(raw: bytes, where: str) -> Lease:
    """The inverse of `Lease.encode`. Raises FormatError."""
    try:
        found = json.loads(raw[: LEASE_BYTES_MAX + 1])
    except (ValueError, RecursionError) as exc:
        raise FormatError(where, "it is not JSON") from exc
    if not isinstance(found, dict) or len(raw) > LEASE_BYTES_MAX:
        raise FormatError(where, "it is no lease")
    if found.get("format") != FORMAT_VERSION:
        raise FormatError(where, f"it has format {found.get('format')!r}")
    if found.get("digest") != json_digest(found):
        raise FormatError(where, "its digest does not match")
    values: dict[str, Any] = {}
    for field in fields(Lease):
        value = found.get(field.name)
        if field.name in _INTS:
            is_good = type(value) is int and 0 <= value <= _U63_MAX
        else:
            is_good = type(value) is str
        if not is_good:
            raise FormatError(where, f"its {field.name} is {value!r}")
        values[field.name] = value
    lease = Lease(**values)
    if lease.state not in (HELD, RELEASED) or len(lease.host) > HOST_CHARS_MAX:
        raise FormatError(where, "its state or its host can't be")
    if lease.since_ns >= 1 << 62:
        raise FormatError(where, "its date can't be")
    return lease


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease that is ours, and its ETag. `sent_s`: when the request that proved it was sent, by
    CLOCK_BOOTTIME, which all processes of a host share.
    """

    lease: Lease
    etag: str
    sent_s: float

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Grant:
        """The inverse of `to_json`."""
        return cls(Lease(**value["lease"]), value["etag"], value["sent_s"])


def fence_s(lease_s: float) -> float:
    """How long a proof of the lease is good for."""
    return lease_s / FENCE_PARTS


def idle_lease_s(lease_s: float, idle_for_s: float) -> float:
    """How long the lease of a mount that did nothing for `idle_for_s` should last from now on."""
    return min(IDLE_FACTOR_MAX * lease_s, max(IDLE_FACTOR * lease_s, 2 * idle_for_s))


def renew_after_s(lasts_s: float) -> float:
    """When a lease that nothing else renews is renewed, after it was sent."""
    part, of = RENEW_PARTS
    return lasts_s * part / of
