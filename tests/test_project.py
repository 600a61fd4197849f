"""What the project promises about itself: locks, what a process loads (documents: tests/docs)."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("build", "runtime", "dev", "openhands")
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)( ; [^\\]+)? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
HEAVY = {"boto3", "botocore", "pydantic", "click", "rich", "prometheus_client"}


def pins(lock: str) -> dict[str, set[str]]:
    """Versions by package (more than one where markers choose)."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / f"requirements/{lock}.txt").read_text().splitlines():
        if match := PIN.fullmatch(line):
            found.setdefault(match[1], set()).add(match[2])
    return found


def normal(requirement: str) -> str:
    return re.split(r"[\[<>=~! ]", requirement)[0].lower().replace("_", "-")


def modules_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_versions_and_hashes_and_nothing_else(lock: str) -> None:
    for line in (ROOT / f"requirements/{lock}.txt").read_text().splitlines():
        assert line.startswith("#") or PIN.fullmatch(line) or HASH.fullmatch(line), line
        assert "://" not in line


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime, dev = pins("runtime"), pins("dev")
    assert {normal(each) for each in project["dependencies"]} <= runtime.keys()
    assert {normal(each) for each in project["optional-dependencies"]["dev"]} <= dev.keys()
    assert {name: dev[name] for name in runtime} == runtime
    peer = pins("openhands")
    assert {"openhands-sdk", "openhands-tools"} <= peer.keys()
    assert {name: peer[name] for name in peer.keys() & runtime.keys()}.items() <= runtime.items()
    assert {normal(each) for each in project["dependencies"]} <= peer.keys()


def test_every_direct_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs/dependencies.md").read_text()
    for each in project["dependencies"] + project["optional-dependencies"]["dev"]:
        assert f"| {re.split('[<>=~]', each)[0]} |" in text, each


def test_importing_the_package_loads_nothing_else() -> None:
    assert not modules_after("import s3ws_fs") & {*HEAVY, "trio", "lmdb", "pyfuse3", "xxhash"}


def test_the_daemon_loads_nothing_heavy() -> None:
    loaded = modules_after("import s3ws_fs.daemon.daemon")
    assert {"pyfuse3", "lmdb", "trio"} <= loaded
    assert not loaded & HEAVY
