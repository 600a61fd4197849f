"""scripts/setup where something can't be had: it says so, and goes on where it may."""

from __future__ import annotations

import os
import re
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


def get_promtool(tmp_path: Path, apt_get: str) -> subprocess.CompletedProcess[str]:
    """That function of the script, alone, on a system with another apt-get and no promtool."""
    bin_dir = tmp_path / "bin"
    (tmp_path / "venv/bin").mkdir(parents=True)
    bin_dir.mkdir()
    (bin_dir / "apt-get").write_text(f"#!/bin/sh\n{apt_get}\n")
    (bin_dir / "apt-get").chmod(0o755)
    for name in ("bash", "sh", "mktemp", "rm", "timeout", "dpkg-deb", "tar", "install", "cp"):
        if (found := shutil.which(name)) is None:
            pytest.skip(f"{name} is not installed")
        (bin_dir / name).symlink_to(found)
    script = (REPOSITORY / "scripts/setup").read_text()
    function = re.search(r"^get_promtool\(\).*?^}$", script, re.M | re.S)
    assert function is not None
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'say() {{ echo "$@"; }}\n{function[0]}\nget_promtool'],
        env={"PATH": str(bin_dir), "TMPDIR": str(tmp_path), "venv": str(tmp_path / "venv")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("apt_get", ["exit 100", "exit 0", "echo damaged > prometheus_1_all.deb"])
def test_without_promtool_it_goes_on_and_says_so(tmp_path: Path, apt_get: str) -> None:
    done = get_promtool(tmp_path, apt_get)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        "that failed: the tests that need it will be skipped",
    ]
    assert sorted(os.listdir(tmp_path)) == ["bin", "venv"]
    assert os.listdir(tmp_path / "venv/bin") == []


def test_promtool_alone_is_taken_out_of_its_package(tmp_path: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: prometheus\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    (tree / "usr/bin").mkdir(parents=True)
    for name in ("prometheus", "promtool"):
        (tree / "usr/bin" / name).write_text(f"#!/bin/sh\necho {name}\n")
    deb = tmp_path / "made.deb"
    subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, stdout=subprocess.DEVNULL)
    place = tmp_path / "place"
    place.mkdir()
    done = get_promtool(place, f"cp {deb} prometheus_1_all.deb")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    assert os.listdir(place / "venv/bin") == ["promtool"]
    assert os.access(place / "venv/bin/promtool", os.X_OK)
    assert sorted(os.listdir(place)) == ["bin", "venv"]
