"""Stores that are kept open: how many, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.settings import Settings
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.web.stores import STORES_MAX, Stores
from s3ws_fs.workspaces.reading import Workspace
from tests.support.fake_mounts import Place


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[ScopedStore]:
    """What was closed."""
    found: list[ScopedStore] = []
    real = ScopedStore.close

    def close(store: ScopedStore) -> None:
        found.append(store)
        real(store)

    monkeypatch.setattr(ScopedStore, "close", close)
    return found


@pytest.fixture
def stores() -> Iterator[Stores]:
    made = Stores()
    yield made
    made.close()


def workspace(place: Place, number: int) -> Workspace:
    Path(place.environ["WORKSPACE_STORAGE_PATH"]).mkdir(exist_ok=True)
    environ = place.environ | {"WORKSPACE_CONVERSATION_ID": f"c{number}"}
    return Workspace(Settings.load(environ).mount_config(place.mountpoint), None)


def test_a_store_is_opened_once(place: Place, stores: Stores, closed: list[ScopedStore]) -> None:
    with stores.use(workspace(place, 1)) as first, stores.use(workspace(place, 1)) as second:
        assert first is second
    with stores.use(workspace(place, 1)) as again:
        assert again is first and closed == []
    stores.close()
    assert closed == [first]


def test_those_that_nobody_uses_are_closed(
    place: Place, stores: Stores, closed: list[ScopedStore]
) -> None:
    with ExitStack() as held:
        used = [held.enter_context(stores.use(workspace(place, n))) for n in range(STORES_MAX + 2)]
        assert closed == []
        stores.close()
        assert closed == []
    # They were given back the newest first.
    assert closed == [used[1], used[0]]


def test_a_store_that_can_not_be_is_said(place: Place, stores: Stores) -> None:
    bad = workspace(place, 1)
    Path(place.environ["WORKSPACE_STORAGE_PATH"]).rmdir()
    with pytest.raises(UserError) as caught, stores.use(bad):
        pytest.fail("there is no store")
    assert caught.value.exit_code == ExitCode.STORE
