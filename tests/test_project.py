"""What the project promises about itself: locks, what a process loads, what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from s3ws_fs.settings import OPTIONS, Settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
LOCKS = ("build", "runtime", "dev")
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)( ; [^\\]+)? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
HEAVY = {"boto3", "botocore", "pydantic", "click", "rich"}


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


def test_the_readme_lists_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text()
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", text, re.M)] == sorted(ExitCode)


def test_the_readme_lists_every_setting() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [o.variable for o in OPTIONS.values() if f"`{o.variable}`" not in text]
    assert missing == []


def test_the_readme_lists_no_setting_that_does_not_exist() -> None:
    known = {variable for option in OPTIONS.values() for variable in option.variables}
    readme, code = _readme_and_code()
    named = set(re.findall(r"\b(?:WORKSPACE_|FILE_STORE|AWS_S3_)[A-Z0-9_]*\b", readme))
    assert {name for name in named - known if f'"{name}"' not in code} == set()


def test_the_readme_shows_the_defaults_of_the_settings() -> None:
    text = (ROOT / "README.md").read_text()
    settings = Settings.load(
        {"HOME": "/h", "WORKSPACE_USER_ID": "u", "WORKSPACE_CONVERSATION_ID": "c"}
    )
    for variable, default in (
        ("WORKSPACE_UNMOUNT_GRACE", f"{settings.unmount_grace_s:g}"),
        ("WORKSPACE_SYNC_POINT_INTERVAL", f"{settings.sync_point_interval_s:g}"),
        ("WORKSPACE_READ_TIMEOUT", f"{settings.read_timeout_s:g}"),
        ("WORKSPACE_BACKUP_INTERVAL", f"{settings.backup_interval_s:g}"),
        ("WORKSPACE_ADAPTIVE_WAIT_US", f"{settings.adaptive_wait_us}"),
        ("WORKSPACE_MAX_FILES", f"{settings.max_size_mb}, {settings.max_inodes}"),
        ("WORKSPACE_MAX_PARALLEL", f"{settings.addressing_style}, {settings.max_parallel}"),
        (
            "WORKSPACE_SYNC_DEBOUNCE_MAX",
            f"{settings.debounce_min_s:.1f}, {settings.debounce_max_s:.1f}",
        ),
    ):
        [row] = re.findall(rf"^\| [^|]*`{variable}` \| ([^|]*) \|", text, re.M)
        assert row == default, variable


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in DOCUMENTS)])
def test_links_between_documents_resolve(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def _readme_and_code() -> tuple[str, str]:
    sources = [ROOT / "packaging/docker_entrypoint.py", *(ROOT / "s3ws_fs").rglob("*.py")]
    return (ROOT / "README.md").read_text(), "\n".join(path.read_text() for path in sources)
