"""Short sequences on a real mount that is killed: see ace_mount.py.

Here those of one operation and some of two; `python -m tests.crash.ace_mount` tries all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from s3ws_fs.cache.redo import remove_log
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from tests.crash.ace_mount import CONTAINER, MountAce
from tests.crash.sequences import KINDS, sequences
from tests.support.host import Host

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

SECOND_EVERY = 60
TOGETHER = 8


@pytest.fixture
def ace(tmp_path: Path) -> Iterator[MountAce]:
    made = MountAce(tmp_path / "w")
    yield made
    made.end()


def test_killed_after_each(ace: MountAce) -> None:
    chosen = list(chain(sequences(1), sequences(2, SECOND_EVERY)))
    kinds = {op.kind for sequence in chosen for op in sequence.ops}
    assert kinds == set(KINDS) - {"fsync-directory"}
    ace.run(chosen, together=TOGETHER)
    print(dict(ace.counts))
    assert not ace.wrong
    assert ace.counts["looks"] > 2 * len(chosen), "after the kills, and on another host"


def test_a_lost_operation_is_found(ace: MountAce) -> None:
    """The control: the database goes back to before the operations, and its log is gone."""
    kept = b""

    def database(host: Host) -> Path:
        return host.workspace_cache() / DATA_DIR / DATA_FILE

    def keep(host: Host) -> None:
        nonlocal kept
        kept = database(host).read_bytes()

    def put_back(host: Host) -> None:
        # In place: another file would be another writer's.
        with database(host).open("r+b") as file:
            file.write(kept)
        remove_log(host.workspace_cache())

    ace.host.mount()
    created, *_ = (s for s in sequences(1) if s.ops[0].kind == "create")
    ace.crash([created], CONTAINER)
    assert not ace.wrong
    ace.crash([created], CONTAINER, sealed=keep, dead=put_back)
    assert len(ace.wrong) == 1
