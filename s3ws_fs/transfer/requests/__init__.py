"""What a worker can be asked: one module for each group of requests, and the table of all.

Invariants
1. A request `make-workspace` is answered by the one method `do_make_workspace` there is.
2. A group is imported when it is first asked for something: a mount needs the first two, and waits
   for their imports. The worker imports the others as soon as it has a moment, lest they are those
   of another version by then.

Called by worker.
"""

from __future__ import annotations

import importlib
import threading
from typing import Final

from s3ws_fs.transfer.session import Handler, Session

GROUPS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("opening", "Opening"): (
        "warm",
        "hello",
        "lease",
        "renew",
        "release",
        "probe",
        "ping",
        "check",
        "survey",
        "make-workspace",
    ),
    ("reading", "Reading"): ("restore", "follow", "fetch", "fetch-mirror"),
    ("flush", "Flush"): (
        "freeze",
        "seal",
        "checkpoint",
        "mirror",
        "reconcile",
        "stop-mirror",
        "drop",
    ),
    ("outside", "Outside"): ("look-outside", "fetch-outside", "measure-outside", "import"),
    ("history", "History"): ("snap-put", "snap-drop", "snap-list", "records-at"),
    ("keeping", "Keeping"): ("put-file", "list-below", "drop-below"),
    ("rewinding", "Rewinding"): ("rewind", "unsnap", "rewound"),
}
"""Module and class of each group, and what it answers."""

_GROUP_OF: Final = {name: group for group, names in GROUPS.items() for name in names}


class Handlers(dict[str, Handler]):
    """Every request by its name. KeyError for one that there is not. Thread-safe."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._lock = threading.Lock()

    @property
    def is_whole(self) -> bool:
        """Whether every group is loaded."""
        return self.keys() >= _GROUP_OF.keys()

    def load(self) -> None:
        """Load what was not asked for yet."""
        for name in _GROUP_OF:
            self[name]

    def __missing__(self, name: str) -> Handler:
        module, kind = _GROUP_OF[name]
        with self._lock:
            found: Handler | None = self.get(name)
            if found is None:
                loaded = importlib.import_module(f"{__name__}.{module}")
                for each, handler in getattr(loaded, kind)(self._session).handlers().items():
                    self.setdefault(each, handler)
        return self[name] if found is None else found
