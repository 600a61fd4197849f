"""docs/troubleshooting.md: each symptom is shown by a test, and each text is one that we print.

Invariants
1. The last cell of a row names tests that exist.
2. What the first cell quotes is in a string of the package, or in the answer of the kernel.
3. Symptoms that no other test makes happen are made to happen here; what is seen then is compared
   with the row that names the test.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Final, cast

import pytest

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.launch import preflight
from s3ws_fs.store.base import Conditional
from s3ws_fs.transfer.requests.opening import Opening
from tests.docs.reading import ROOT, Document, code_of
from tests.support import actors
from tests.support.buckets import LocalBucket
from tests.support.host import Host
from tests.support.mounting import workspace_config
from tests.support.programs import GIT_ENV

ROWS: Final = [
    (where, cells) for where, cells in Document("docs/troubleshooting.md").rows() if len(cells) == 4
]
WITHOUT_TEXT: Final = ("s3ws ", "umount", "restore", "notes ")
"""How code in the first cell begins that is no text of ours."""


@cache
def texts() -> list[str]:
    """Every string of the package, with … for what is put in."""
    found: list[str] = []
    for path in (ROOT / "s3ws_fs").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(_shown(value) for value in node.values))
    return found


def _shown(value: ast.expr) -> str:
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.BinOp):
        return ""
    return "…"


def fits(quoted: str, text: str) -> bool:
    """Whether a text has the parts of what is quoted, in their order."""
    parts = [re.escape(part.strip()) for part in quoted.split("…") if part.strip(" .:;")]
    return re.search(".*".join(parts), text, re.DOTALL) is not None


@pytest.mark.parametrize(("where", "cells"), ROWS, ids=[where for where, _ in ROWS])
def test_a_row_is_shown_and_its_text_is_ours(where: str, cells: list[str]) -> None:
    seen, why, remedy, shown_by = cells
    assert why and remedy
    cited = code_of(shown_by)
    assert cited, "which test makes it happen?"
    for each in cited:
        path, _, name = each.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.M), each
    for quoted in code_of(seen):
        if quoted.startswith(WITHOUT_TEXT):
            continue
        if re.match("[A-Z_]+: ", quoted):  # a setting's name, which is put in
            quoted = quoted.partition(": ")[2]
            quoted = re.sub(r"\b(user|conversation)\b", "…", quoted)
        assert any(fits(quoted, text) for text in texts()), quoted


def test_a_text_that_nobody_prints_is_found() -> None:
    assert any(fits("… is already mounted (daemon …).", text) for text in texts())
    assert not any(fits("… is already mounted (demon …).", text) for text in texts())


# --- made to happen ------------------------------------------------------------------------------


@pytest.fixture
def row(request: pytest.FixtureRequest) -> str:
    """What the row says that names this test."""
    (seen,) = [cells[0] for _, cells in ROWS if request.node.name in cells[3]]
    return seen


@pytest.fixture
def new_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def make(env: dict[str, str], name: str = "one", **options: object) -> Host:
        hosts.append(Host(tmp_path / name, env, **options))  # type: ignore[arg-type]
        return hosts[-1]

    yield make
    for host in hosts:
        host.end()


@pytest.fixture
def local(tmp_path: Path) -> LocalBucket:
    root = tmp_path / "store"
    root.mkdir()
    return LocalBucket(root)


def test_no_ids(row: str, local: LocalBucket, new_host: Callable[..., Host]) -> None:
    host = new_host(local.env)
    del host.settings["WORKSPACE_USER_ID"]
    done = host.s3ws("mount", host.mountpoint, ok=ExitCode.BAD_SETTINGS)
    assert fits(code_of(row)[0], done.stderr)


def test_allow_other(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user other than root, on a host without the line."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(preflight, "user_allow_other", lambda: False)
    monkeypatch.setattr(preflight, "FUSE_DEVICE", os.devnull)
    config = workspace_config(tmp_path, allow_other=True)
    with pytest.raises(UserError) as caught:
        preflight._check_fuse(config)
    assert fits(code_of(row)[0], str(caught.value))
    assert caught.value.exit_code is ExitCode.NO_FUSE


def test_unconditional_store(row: str) -> None:
    """The transfer worker's answer for a server that overwrites where it had to refuse."""
    store = SimpleNamespace(
        check=lambda: None, probe_conditional=lambda _: Conditional(put_must_create=False)
    )
    session = SimpleNamespace(store=store, transfers=None)
    worker = cast(Opening, SimpleNamespace(session=session))
    with pytest.raises(UserError) as caught:
        Opening.do_probe(worker, {"allow_unconditional": False}, lambda *_: None)
    assert fits(code_of(row)[0], str(caught.value))
    assert caught.value.exit_code is ExitCode.STORE
    allowed = Opening.do_probe(worker, {"allow_unconditional": True}, lambda *_: None)
    assert not allowed["conditional"]["put_must_create"]


@pytest.mark.fuse
def test_another_runtime_directory(
    row: str, local: LocalBucket, new_host: Callable[..., Host]
) -> None:
    host = new_host(local.env)
    host.mount()
    (host.mountpoint / "f").touch()
    right = host.settings["WORKSPACE_RUNTIME_DIR"]
    host.settings["WORKSPACE_RUNTIME_DIR"] = f"{right}-other"
    done = host.s3ws("umount", host.mountpoint, ok=ExitCode.NOT_MOUNTED)
    assert fits(code_of(row)[0], done.stderr)
    assert (host.mountpoint / "f").exists()
    host.settings["WORKSPACE_RUNTIME_DIR"] = right
    host.umount()


@pytest.mark.fuse
def test_git_of_another_user(row: str, local: LocalBucket, new_host: Callable[..., Host]) -> None:
    actors.require_root()
    stranger = "12345"
    host = new_host(local.env)
    host.settings |= {"WORKSPACE_ROOT_UID": stranger, "WORKSPACE_ROOT_GID": stranger}
    host.mount()
    git = partial(
        subprocess.run, cwd=host.mountpoint, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(host.base), **GIT_ENV},
    )  # fmt: skip
    assert git(["git", "init", "-q", "."]).returncode == 0
    for path in [host.mountpoint / ".git", *(host.mountpoint / ".git").rglob("*")]:
        os.chown(path, int(stranger), int(stranger))
    refused = git(["git", "status"])
    assert refused.returncode != 0
    assert row.removeprefix("git: ") in refused.stderr
    host.umount()
    host.settings["WORKSPACE_UID_MAP"] = f"{stranger}:{os.geteuid()}"
    host.mount()
    assert git(["git", "status"]).returncode == 0
    host.umount()
