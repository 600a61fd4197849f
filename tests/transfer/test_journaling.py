"""The journal's small JSON objects."""

from __future__ import annotations

import pytest

from s3ws_fs.core import layout
from s3ws_fs.core.errors import UserError
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling
from tests.transfer.seals import WORKSPACE


def test_the_workspace_object_is_made_once(store: ScopedStore) -> None:
    assert journaling.read_workspace(store) is None
    assert journaling.make_workspace(store, "1" * 32, 1) == "1" * 32
    assert journaling.make_workspace(store, "2" * 32, 1) == "1" * 32
    store.put(layout.WORKSPACE_KEY, b'{"format": 99}')
    with pytest.raises(UserError):
        journaling.read_workspace(store)
    store.put(layout.WORKSPACE_KEY, b'{"format": 1, "workspace": "x", "extent_bytes": 65536}')
    with pytest.raises(UserError, match="65536"):
        journaling.read_workspace(store)


def test_small_files_with_a_wrong_digest_count_for_nothing(store: ScopedStore) -> None:
    journaling.make_workspace(store, WORKSPACE, 1234)
    raw = store.get(layout.WORKSPACE_KEY).data
    assert journaling.read_workspace(store) == WORKSPACE
    for wrong in (raw.replace(b"1234", b"1235"), raw.replace(b'"digest"', b'"digesx"')):
        store.put(layout.WORKSPACE_KEY, wrong)
        with pytest.raises(UserError, match="digest"):
            journaling.read_workspace(store)
    journaling.note_mirrored(store, WORKSPACE, 17)
    assert journaling.read_mirrored(store, WORKSPACE) == 17
    raw = store.get(layout.MIRRORED_KEY).data
    store.put(layout.MIRRORED_KEY, raw.replace(b"17", b"99"))
    assert journaling.read_mirrored(store, WORKSPACE) == 0
