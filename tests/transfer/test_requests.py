"""The table of what a worker can be asked."""

from __future__ import annotations

import importlib
import pkgutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3ws_fs.transfer import requests
from s3ws_fs.transfer.requests import GROUPS, Handlers
from s3ws_fs.transfer.session import Means, Session
from s3ws_fs.transfer.worker import Worker


def test_each_group_answers_what_the_table_says() -> None:
    for (module, kind), names in GROUPS.items():
        group = getattr(importlib.import_module(f"{requests.__name__}.{module}"), kind)
        assert set(group(Session(Means())).handlers()) == set(names), module
    named = [name for names in GROUPS.values() for name in names]
    assert len(named) == len(set(named))
    assert {module for module, _ in GROUPS} == {
        found.name for found in pkgutil.iter_modules(requests.__path__)
    }


def test_a_group_is_made_once() -> None:
    handlers = Handlers(Session(Means()))
    names = [name for names in GROUPS.values() for name in names] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(handlers.__getitem__, names))
    for (_, kind), names_of in GROUPS.items():
        owners = {id(getattr(found[names.index(name)], "__self__", None)) for name in names_of}
        assert len(owners) == 1, kind
    assert found == [handlers[name] for name in names]


def test_what_was_not_asked_for_is_loaded_too() -> None:
    handlers = Handlers(Session(Means()))
    freeze = handlers["freeze"]
    before = handlers.is_whole
    handlers.load()
    assert (before, handlers.is_whole) == (False, True)
    assert handlers["freeze"] == freeze


def test_a_worker_with_a_moment_loads_all_of_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs, idle_s=0.01)
        worker.run()
    assert worker.handlers.is_whole


def test_what_was_put_in_place_of_one_stays() -> None:
    handlers = Handlers(Session(Means()))

    def mine(*_: object) -> None:
        return None

    handlers["lease"] = mine
    assert handlers["hello"] is not None
    assert handlers["lease"] is mine


def test_an_unknown_request() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        Handlers(Session(Means()))["nonsense"]


def test_a_worker_begins_without_what_a_mount_does_not_need() -> None:
    code = (
        "import sys, s3ws_fs.transfer.worker as w, s3ws_fs.transfer.requests.opening, "
        "s3ws_fs.transfer.requests.reading; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout.split()
    assert "s3ws_fs.transfer.journaling" in loaded
    for name in ("boto3", "pathspec", "s3ws_fs.transfer.points", "s3ws_fs.transfer.mirror"):
        assert name not in loaded
