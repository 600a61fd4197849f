"""All workspaces below a root prefix: names by delimiter listings, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3ws_fs.core.errors import PermanentError
from s3ws_fs.store.base import ListEntry
from s3ws_fs.store.fleet import Fleet
from s3ws_fs.store.memory import MemoryStore


class Watched(MemoryStore):
    """Notes what is listed whole; has delimiter listings of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[str] = []

    def folders(self, prefix: str = "") -> Iterator[str]:
        names = {key[len(prefix) :].split("/")[0] for key in self._objects if "/" in key}
        return iter(sorted(names))

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        self.listed.append(prefix)
        return super().list(prefix, start_after)


def test_names_and_stores() -> None:
    memory = Watched()
    for key in (
        "conversations/alice/one/workspace/journal/workspace.json",
        "conversations/alice/one/events/1",
        "conversations/alice/two/events/1",
        "conversations/bob/three/workspace/files/x",
    ):
        memory.put(f"root/{key}", b"1")
    fleet = Fleet(memory, "root/")
    assert set(fleet.users()) == {"alice", "bob"}
    assert memory.listed == []
    store = fleet.workspace("alice", "one")
    assert [entry.key for entry in store.everything()] == ["journal/workspace.json"]
    assert memory.listed == ["root/conversations/alice/one/workspace/"]
    with pytest.raises(PermanentError, match="reading only"):
        store.put("files/x", b"1")
    assert fleet.counters.by_op()["list"] == 1


def test_names_that_are_no_ids_of_ours_are_left_out() -> None:
    memory = MemoryStore()
    dashed = "0123abcd-0123-4123-8123-0123456789ab"
    for name in ("good", "-option", "with space", "x" * 129, dashed, dashed.replace("-", "")):
        memory.put(f"conversations/{name}/c/workspace/files/x", b"")
        memory.put(f"conversations/u/{name}/workspace/files/x", b"")
    fleet = Fleet(memory, "")
    assert list(fleet.users()) == [dashed.replace("-", ""), "good", "u"]
    assert list(fleet.conversations("u")) == [dashed.replace("-", ""), "good"]
