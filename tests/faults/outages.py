"""A host whose store is behind a proxy: outages by name, and what must hold after each.

Invariants
1. What really stands in the bucket is read beside the proxy, by a client of its own.
2. `Outages.settled` is the whole promise: healthy, nothing dirty, the mirror equal, and every
   journal number once.

Called by the tests of this directory and by long.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from s3ws_fs.core import journal, layout
from tests.support import proxy as faults
from tests.support import trees
from tests.support.buckets import S3Bucket, mirror_differences
from tests.support.host import Host
from tests.support.mounting import wait_until
from tests.support.proxy import EVERY, FaultyProxy
from tests.support.seaweed import Seaweed

HEALED_S_MAX: Final = 90.0
"""Until all is well after healing, on a busy machine; the long form prints the real figures."""
TOLD_S_MAX: Final = 60.0


@dataclass(frozen=True)
class Outage:
    """One way in which the store is away; `words`: what status has to say of it (one of them)."""

    begin: Callable[[FaultyProxy], None]
    words: tuple[str, ...]
    total: bool = True
    """Nothing reaches the server."""


def _refuse(code: str, status: int) -> Callable[[FaultyProxy], None]:
    return lambda proxy: proxy.weather(faults.error(status, code))


def _lose_writes(proxy: FaultyProxy) -> None:
    for method in ("PUT", "POST", "DELETE"):
        proxy.arm(faults.LOST, method, times=EVERY)


BROKEN: Final = ("the connection failed", "the server can't be reached")

OUTAGES: Final = {
    "refused": Outage(FaultyProxy.refuse, ("the server can't be reached", *BROKEN)),
    "black hole": Outage(
        lambda proxy: proxy.weather(faults.BLACK_HOLE), ("no answer for", *BROKEN)
    ),
    "throttled": Outage(lambda proxy: proxy.weather(faults.SLOW_DOWN), ("SlowDown",)),
    "500": Outage(lambda proxy: proxy.weather(faults.INTERNAL), ("InternalError",)),
    "requests cut": Outage(lambda proxy: proxy.weather(faults.CUT_REQUEST), BROKEN),
    "answers cut": Outage(lambda proxy: proxy.weather(faults.RESET_ANSWER), BROKEN, total=False),
    "writes unanswered": Outage(_lose_writes, BROKEN, total=False),
    "garbage": Outage(lambda proxy: proxy.weather(faults.GARBAGE), BROKEN),
    "login page": Outage(lambda proxy: proxy.weather(faults.page(200)), ("not S3's",)),
    "keys refused": Outage(_refuse("InvalidAccessKeyId", 403), ("does not know this access key",)),
    "expired": Outage(_refuse("ExpiredToken", 400), ("session token has expired",)),
    "clock": Outage(_refuse("RequestTimeTooSkewed", 403), ("clock of this machine",)),
    "no bucket": Outage(_refuse("NoSuchBucket", 404), ("bucket does not exist",)),
}


class Front(S3Bucket):
    """The server's bucket, which hosts reach through a proxy and the test without it."""

    def __init__(self, server: Seaweed, proxy: FaultyProxy) -> None:
        super().__init__(server)
        self.proxy = proxy

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, "AWS_ENDPOINT_URL_S3": self.proxy.url}


class Outages:
    """One host behind one proxy."""

    def __init__(self, host: Host, proxy: FaultyProxy, bucket: S3Bucket) -> None:
        self.host = host
        self.proxy = proxy
        self.bucket = bucket

    def work(self, name: str, *, files: int = 12) -> None:
        """Local work of all kinds below a directory of this name; it needs no store."""
        top = self.host.mountpoint / name
        trees.build_source_tree(top, files=files)
        (top / "renamed").mkdir()
        (top / "renamed" / "inner").write_bytes(name.encode() * 500)
        (top / "renamed").rename(top / "moved")
        (top / "log").write_bytes(b"")
        for number in range(20):
            with (top / "log").open("ab") as log:
                log.write(b"line %d\n" % number)
        (top / "gone").write_bytes(b"x")
        (top / "gone").unlink()

    def degraded(self, outage: Outage) -> None:
        """Wait until status tells what is wrong."""

        def told() -> bool:
            health = self.host.now()["health"]
            return health["state"] == "degraded" and any(w in health["error"] for w in outage.words)

        try:
            wait_until(told, timeout_s=TOLD_S_MAX)
        except AssertionError:
            raise AssertionError(f"status says {self.host.now()['health']}") from None
        assert self.host.now()["health"]["since_s"] >= 0

    def settled(self, timeout_s: float = HEALED_S_MAX) -> float:
        """Wait until all is in the bucket by itself, and compare; seconds it took."""
        began = time.monotonic()
        host = self.host

        def well() -> bool:
            now = host.now()
            generation = now["generation"]
            return bool(
                now["health"]["state"] == "ok"
                and now["dirty"]["records"] == 0
                and generation["mirrored"] == generation["head"]
            )

        try:
            wait_until(well, timeout_s=timeout_s)
        except AssertionError:
            raise AssertionError(f"not well again: {host.now()}\n{host.log_tail()}") from None
        took_s = time.monotonic() - began
        self.journal_is_whole()
        found = mirror_differences(
            self.bucket, host.prefix, trees.manifest(host.mountpoint), host.unmirrored()
        )
        assert found == []
        return took_s

    def journal_is_whole(self) -> int:
        """Every number once, each header continuing the one before; the newest number."""
        prefix = self.host.prefix + layout.SEG_PREFIX
        keys = self.bucket.listing(prefix)
        numbers = [int(key.removeprefix(prefix), 16) for key in keys]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        before, flushes = "", set()
        for key, number in zip(keys, numbers, strict=True):
            raw = self.bucket.get(key).body
            header = journal.decode_header(raw[: journal.HEADER_BYTES], key)
            assert header.number == number
            assert not before or header.prev_hash == before, f"{key} does not continue"
            before = journal.header_hash(raw[: journal.HEADER_BYTES])
            flushes.add(header.flush_id)
        assert len(flushes) == len(numbers)
        return numbers[-1]

    def newest(self) -> int:
        """The newest journal number."""
        prefix = self.host.prefix + layout.SEG_PREFIX
        keys = self.bucket.listing(prefix)
        return int(keys[-1].removeprefix(prefix), 16) if keys else 0
