"""pip, virtual environments, compiled Python and npm, on the mount and without a network."""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs, trees
from tests.support.e2e_fixtures import Elsewhere
from tests.support.tools import need

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

PIP: Final = ("-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet")
OFFLINE: Final = ("--no-index", "--no-cache-dir", "--root-user-action=ignore")
SETUPTOOLS_MIN: Final = 71
"""From here on it makes wheels by itself."""

ALONE: Final = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": ""}


def need_pip() -> None:
    """Skip where this interpreter has no pip."""
    if not programs.have_pip():
        pytest.skip("this environment has no pip")


def write_source_project(top: Path) -> None:
    """A project with a module, data and a command."""
    package = top / "gamma_e2e"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from importlib import resources\n\n\ndef main():\n"
        "    print(resources.files(__name__).joinpath('data.txt').read_text(), end='')\n"
    )
    (package / "data.txt").write_text("data beside a module\n")
    (top / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "gamma-e2e"\nversion = "2.0"\n'
        '[project.scripts]\ngamma = "gamma_e2e:main"\n'
        "[tool.setuptools]\npackages = ['gamma_e2e']\n"
        "[tool.setuptools.package-data]\ngamma_e2e = ['*.txt']\n"
    )


def compiled_files(top: Path) -> dict[Path, tuple[int, int]]:
    """Inode and mtime of every compiled module: a file written anew has others."""
    return {
        path.relative_to(top): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in top.rglob("*.pyc")
    }


def test_a_virtual_environment_with_pip(here: Path, tmp_path: Path) -> None:
    """venv brings pip along from the interpreter's own wheels."""
    need_pip()
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python can't make a virtual environment with pip (no ensurepip)")
    environment = here / "venv"
    programs.run(sys.executable, "-m", "venv", environment, env=ALONE)
    python = environment / "bin" / "python"
    assert python.is_symlink() or python.is_file()
    names = programs.make_wheels(tmp_path / "wheels", modules=10)
    programs.run(python, *PIP, *OFFLINE, "--find-links", tmp_path / "wheels", *names, env=ALONE)
    program = "import alpha_e2e.m3, beta_e2e, sys; print(sys.prefix, alpha_e2e.m3.VALUE)"
    assert programs.run(python, "-I", "-c", program) == f"{environment} 3\n"
    pip = environment / "bin" / "pip"
    listed = programs.run(pip, "--isolated", "list", "--format=freeze", env=ALONE).splitlines()
    assert {"alpha-e2e==1.0", "beta-e2e==1.0"} <= set(listed)
    assert programs.run(pip, "check", env=ALONE) == "No broken requirements found.\n"
    programs.run(pip, "--isolated", "uninstall", "-qy", "beta-e2e", env=ALONE)
    assert not list(environment.rglob("beta_e2e*"))


def test_pip_builds_a_project_that_stands_on_the_mount(here: Path) -> None:
    need_pip()
    try:
        has_wheels = int(metadata.version("setuptools").split(".")[0]) >= SETUPTOOLS_MIN
    except metadata.PackageNotFoundError:
        has_wheels = False
    if not has_wheels:
        pytest.skip(f"this environment has no setuptools {SETUPTOOLS_MIN} or newer to build with")
    write_source_project(here / "project")
    target = here / "site"
    programs.run(
        sys.executable, *PIP, *OFFLINE, "--no-build-isolation", "--target", target,
        here / "project", env=ALONE,
    )  # fmt: skip
    script = target / "bin" / "gamma"
    assert script.stat().st_mode & 0o111
    assert (
        programs.run(script, env={**ALONE, "PYTHONPATH": str(target)}) == "data beside a module\n"
    )


def test_compileall_is_done_once(here: Path) -> None:
    trees.build_source_tree(here / "tree", files=30)
    compile_all = (sys.executable, "-m", "compileall", "-j", "1", here / "tree")
    assert programs.run(*compile_all, env=ALONE).count("Compiling ") == 30
    before = compiled_files(here)
    assert len(before) == 30
    assert programs.run(*compile_all, env=ALONE).count("Compiling ") == 0
    assert compiled_files(here) == before


def make_npm_project(top: Path) -> Path:
    """An application of two packages that stand as tarballs beside it, with a lock file."""
    for name, needs in (("leaf-e2e", {}), ("tool-e2e", {"leaf-e2e": "1.0.0"})):
        source = top / name
        source.mkdir(parents=True)
        (source / "index.js").write_text(f"module.exports = {name!r};\n")
        manifest: dict[str, object] = {"name": name, "version": "1.0.0", "main": "index.js"}
        if needs:
            (source / "run.js").write_text(
                "#!/usr/bin/env node\nconsole.log(require('leaf-e2e'), 'by', require('./index'));\n"
            )
            manifest |= {"bin": {"tool": "run.js"}}
        (source / "package.json").write_text(json.dumps(manifest))
        with tarfile.open(top / f"{name}-1.0.0.tgz", "w:gz") as archive:
            archive.add(source, "package")
    application = top / "application"
    application.mkdir()
    names = {name: f"file:../{name}-1.0.0.tgz" for name in ("leaf-e2e", "tool-e2e")}
    (application / "package.json").write_text(
        json.dumps({"name": "application", "version": "1.0.0", "dependencies": names})
    )
    return application


def npm(top: Path, cwd: Path, *words: str) -> str:
    """Run npm without its registry, with a cache and settings of its own."""
    env = {
        "npm_config_cache": str(top / "npm-cache"),
        "npm_config_userconfig": str(top / "npmrc"),
        "npm_config_offline": "true",
        "npm_config_audit": "false",
        "npm_config_fund": "false",
        "npm_config_update_notifier": "false",
    }
    return programs.run("npm", *words, cwd=cwd, env=env)


def test_npm_ci(here: Path, native: Path) -> None:
    need("npm", "node")
    found = []
    for top in (native, here):
        application = make_npm_project(top)
        npm(top, application, "install", "--package-lock-only")
        npm(top, application, "ci")
        (application / "node_modules" / "stray").write_text("ci removes it\n")
        npm(top, application, "ci")
        tool = application / "node_modules" / ".bin" / "tool"
        assert tool.is_symlink()
        assert programs.run(tool, cwd=application) == "leaf-e2e by tool-e2e\n"
        assert npm(top, application, "exec", "--", "tool") == "leaf-e2e by tool-e2e\n"
        lock = json.loads((application / "node_modules" / ".package-lock.json").read_text())
        assert set(lock["packages"]) == {"node_modules/leaf-e2e", "node_modules/tool-e2e"}
        found.append(trees.manifest(application / "node_modules"))
    ignore = ("mtime_ns", "sha256", "size", *trees.OTHER_FILESYSTEM)
    assert trees.differences(*found, ignore=ignore) == []


def test_nothing_is_compiled_again_on_another_host(here: Path, elsewhere: Elsewhere) -> None:
    """Last in this module. A compiled module holds the time of its source."""
    trees.build_source_tree(here / "tree", files=20)
    source = here / "tree" / "package0" / "module0"
    (source / "__init__.py").write_text("from . import source_00000\n")
    programs.run(sys.executable, "-c", "import module0", cwd=source.parent, env=ALONE)
    name = source.relative_to(here.parent)
    before = compiled_files(source)
    assert len(before) == 2
    there = elsewhere() / name
    programs.run(sys.executable, "-c", "import module0", cwd=there.parent, env=ALONE)
    assert compiled_files(there) == before
    (there / "__init__.py").write_text("CHANGED = True\n")
    programs.run(sys.executable, "-c", "import module0", cwd=there.parent, env=ALONE)
    assert compiled_files(there) != before
