"""When a workspace is nearly full."""

from __future__ import annotations

import pytest

from s3ws_fs.core.quota import CLEAR_PART, WARN_PART, QuotaWarning

LIMIT = 1000
WARN, CLEAR = int(WARN_PART * LIMIT), int(CLEAR_PART * LIMIT)


@pytest.mark.parametrize("what", ["bytes", "files"])
def test_it_begins_at_four_fifths_and_ends_well_below(what: str) -> None:
    warning = QuotaWarning(LIMIT, LIMIT)
    told = []
    walk = (WARN - 1, WARN, WARN - 1, WARN, CLEAR, LIMIT + 1, CLEAR - 1, WARN - 1, WARN)
    for used in walk:
        changed = warning.look(used, 0) if what == "bytes" else warning.look(0, used)
        told.append((changed, warning.is_on))
    on, still, off, none = (True, True), (False, True), (True, False), (False, False)
    assert told == [none, on, still, still, still, still, off, none, on]


def test_it_lasts_while_either_is_short() -> None:
    warning = QuotaWarning(LIMIT, LIMIT)
    assert warning.look(WARN, WARN)
    assert not warning.look(0, WARN)
    assert warning.look(0, 0)
