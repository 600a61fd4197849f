"""What a worker can be asked: one module for each group of requests, and the table of all.

Invariants
1. A request `make-workspace` is answered by the one method `do_make_workspace` there is.

Called by worker.
"""

from __future__ import annotations

from typing import Final

from s3ws_fs.transfer.requests.flush import Flush
from s3ws_fs.transfer.requests.history import History
from s3ws_fs.transfer.requests.keeping import Keeping
from s3ws_fs.transfer.requests.opening import Opening
from s3ws_fs.transfer.requests.outside import Outside
from s3ws_fs.transfer.requests.reading import Reading
from s3ws_fs.transfer.requests.rewinding import Rewinding
from s3ws_fs.transfer.session import Group, Handler, Session

GROUPS: Final[tuple[type[Group], ...]] = (
    Opening,
    Flush,
    Reading,
    Outside,
    History,
    Keeping,
    Rewinding,
)


def handlers(session: Session) -> dict[str, Handler]:
    """Every request by its name."""
    found: dict[str, Handler] = {}
    for group in GROUPS:
        for name, handler in group(session).handlers().items():
            assert name not in found, name
            found[name] = handler
    return found
