"""scripts/setup where it has nothing to install with: it says so, and makes nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.mounting import REPOSITORY


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the script needs of this repository."""
    for name in ("scripts", "requirements"):
        shutil.copytree(REPOSITORY / name, tmp_path / "clone" / name)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path / "clone")
    return tmp_path / "clone"


def run(clone: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """On a system whose Pythons are all too old, and whose uv finds none."""
    bin_dir = clone.parent / "bin"
    bin_dir.mkdir(exist_ok=True)
    for name in ("python3", "python3.11", "python3.12", "python3.13", "uv"):
        (bin_dir / name).write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n')
        (bin_dir / name).chmod(0o755)
    return subprocess.run(
        ["bash", str(clone / "scripts/setup"), *words],
        env={"PATH": f"{bin_dir}:/usr/bin:/bin", "HOME": str(clone.parent), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_new_python_the_sdk_is_not_installed_and_it_says_why(clone: Path) -> None:
    done = run(clone, "openhands", OPENHANDS_PYTHON="/no/such/python")
    assert done.returncode == 1
    assert "no Python 3.12 or newer was found" in done.stderr
    assert "its test is skipped" in done.stderr
    assert not (clone / ".venv-openhands").exists()


def test_what_it_does_not_know_is_usage(clone: Path) -> None:
    done = run(clone, "everything")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: scripts/setup run|dev|openhands")
