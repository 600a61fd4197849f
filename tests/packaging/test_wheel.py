"""What a wheel holds besides modules: manual page, completion of shells, status page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.manual import COMPLETION, PAGE
from tests.docs.reading import ROOT

WANTED = {
    "share/man/man1/s3ws.1": PAGE,
    "share/bash-completion/completions/s3ws.bash": COMPLETION["bash"],
    "share/zsh/site-functions/_s3ws": COMPLETION["zsh"],
    "share/fish/vendor_completions.d/s3ws.fish": COMPLETION["fish"],
}


def test_manual_and_completion_are_installed_where_programs_look(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("s3ws_fs", "packaging"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    command += ["--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp_path), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if "BackendUnavailable" in done.stderr or "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not installed (requirements/build.txt)")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {
            name.partition(".data/data/")[2]: archive.read(name)
            for name in archive.namelist()
            if ".data/data/" in name
        }
        inside = set(archive.namelist())
    page = {f"s3ws_fs/web/static/{file.name}" for file in (ROOT / "s3ws_fs/web/static").iterdir()}
    assert page and page <= inside
    assert held == {name: path.read_bytes() for name, path in WANTED.items()}
    if shutil.which("man") is None:
        return
    prefix = tmp_path / "prefix"
    for name, data in held.items():
        (prefix / name).parent.mkdir(parents=True)
        (prefix / name).write_bytes(data)
    (prefix / "bin").mkdir()
    env = {"PATH": f"{prefix}/bin:{os.environ.get('PATH', os.defpath)}"}
    done = subprocess.run(["man", "-w", "s3ws"], env=env, capture_output=True, text=True)
    if "minimized" in done.stdout:
        return
    assert done.stdout.strip() == f"{prefix}/share/man/man1/s3ws.1", done.stderr
