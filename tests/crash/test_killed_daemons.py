"""SIGKILL at failpoints of a real daemon and a real worker under a real mount: see daemons.py.

Here some of the cases; `python -m tests.crash.daemons` tries all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from s3ws_fs.core import failpoints as fp
from tests.crash.daemons import CASES, SECOND, Case, Trial

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

SOME = (
    Case(fp.COMMIT_AFTER, 5),
    Case(fp.BATCH_BEFORE, 3),
    Case(fp.LOG_FLUSHING),
    Case(fp.FORGET_BATCH, 2),
    Case(fp.SEAL_AFTER, 2),
    Case(fp.FINAL_AFTER),
    Case(fp.RESTORE_LOADED, host=SECOND),
)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.point)
def test_killed_at(tmp_path: Path, case: Case) -> None:
    Trial(tmp_path / "w", case).run()


def test_all_of_them_stand_in_the_table() -> None:
    assert set(SOME) <= set(CASES)
    assert len(set(CASES)) == len(CASES)
