"""podman: a store and settings of its own, and an image made of this machine's shell.

Invariants
1. Nothing of the machine's podman is used or changed: --root and --runroot stand below a directory
   of the test's, and so does containers.conf.
2. Nothing comes from the network: the image is a shell and a few programs of this machine with
   their libraries. (With --rootfs instead of an image podman ends no use of a volume at a stop.)
3. `end` removes the containers that were made here.

Called by the tests of integrations.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

PROGRAMS: Final = ("sh", "cat", "id", "ls", "mkdir", "sleep", "stat")
IMAGE: Final = "localhost/s3ws-shell"
COMMAND_S_MAX: Final = 180.0
_CONF: Final = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
volume_plugin_timeout = 120

[engine.volume_plugins]
s3ws = "{socket}"
"""


def require_podman() -> None:
    """Skip the test, saying why, where there is no podman that could run containers."""
    if os.geteuid() != 0:
        pytest.skip("needs root for containers")
    missing = [name for name in ("podman", "runc", "conmon") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install podman runc)")


class Podman:
    """podman with the volume plugin that listens on `socket`."""

    def __init__(self, base: Path, socket: str) -> None:
        self.base = base
        base.mkdir()
        # podman takes no path of more than 50 characters there.
        self._runroot = tempfile.mkdtemp(prefix="s3ws-", dir="/tmp")
        self.rootfs = base / "rootfs"
        _make_root(self.rootfs)
        conf = base / "containers.conf"
        conf.write_text(_CONF.format(socket=socket))
        self._env = {**os.environ, "CONTAINERS_CONF": str(conf)}
        self._names: list[str] = []
        archive = shutil.make_archive(str(base / "image"), "tar", self.rootfs)
        self.run("import", archive, IMAGE)

    def run(self, *words: str | os.PathLike[str], code: int = 0) -> str:
        """`podman WORDS`: what it prints. AssertionError when the exit code is not `code`."""
        done = self._podman(*words)
        assert done.returncode == code, (words, done)
        return done.stdout

    def container(self, name: str, *words: str, script: str, options: tuple[str, ...] = ()) -> str:
        """`podman run` of a shell script in a container of this name."""
        self._names.append(name)
        given = ["--name", name, "--network", "none", *options, *words]
        return self.run("run", *given, "--pull=never", IMAGE, "/bin/sh", "-c", script)

    def end(self) -> None:
        """Remove what was made."""
        for name in self._names:
            self._podman("rm", "--force", "--time", "0", "--ignore", name)
        for _, mounted in _mounts_below(str(self.base), self._runroot):
            subprocess.run(["umount", "-l", mounted], check=False)
        shutil.rmtree(self._runroot, ignore_errors=True)

    def _podman(self, *words: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
        places = ["--root", str(self.base / "root"), "--runroot", self._runroot]
        return subprocess.run(
            ["podman", *places, "--storage-driver", "vfs", *words],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )


def _mounts_below(*tops: str) -> list[tuple[int, str]]:
    """Mounts that podman left, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4] for line in lines]
    found = [(len(p), p) for p in places if any(p.startswith(f"{top}/") for top in tops)]
    return sorted(found, reverse=True)


def _make_root(root: Path) -> None:
    for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "workspace"):
        (root / name).mkdir(parents=True)
    for name in PROGRAMS:
        program = shutil.which(name)
        assert program is not None, name
        shutil.copy(program, root / "bin" / name)
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+)", said):
            place = root / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
