"""The service manager that started this process (sd_notify): datagrams to NOTIFY_SOCKET.

Invariants
1. `tell` never waits and never raises: one that does not read misses words, and delays nothing.
2. Whoever reads the variable takes it out of the environment: no child speaks for the service.
3. A word is one line: whatever stands in a value, it makes no second assignment.

Called by the daemon and by integrations.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, MutableMapping
from typing import Final

from s3ws_fs.control.paths import socket_address

VARIABLE: Final = "NOTIFY_SOCKET"
VALUE_CHARS_MAX: Final = 512
"""Longer texts are cut: they are for one line of `systemctl status`."""


class ServiceManager:
    """Whom to tell, or nobody (address None)."""

    def __init__(self, address: str | None) -> None:
        self._address = address if address and address[0] in "/@" else None

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> ServiceManager:
        """The one that the environment names; see invariant 2."""
        return cls(environ.pop(VARIABLE, None))

    @property
    def is_there(self) -> bool:
        """Whether anybody is told."""
        return self._address is not None

    def tell(self, **words: object) -> None:
        """READY=1, STATUS="…" and so on, in one datagram."""
        if self._address is None or not words:
            return
        text = "\n".join(f"{name}={_one_line(str(value))}" for name, value in words.items())
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
            _address(self._address) as address,
        ):
            sock.setblocking(False)
            sock.sendto(text.encode("utf-8", "replace"), address)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:VALUE_CHARS_MAX])


@contextlib.contextmanager
def _address(name: str) -> Iterator[str]:
    if name.startswith("@"):
        # The abstract namespace.
        yield "\0" + name[1:]
        return
    with socket_address(name) as address:
        yield address
