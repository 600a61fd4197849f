"""A mount namespace of a host's own, in which mount(8) finds the helpers of this checkout.

Invariants
1. Nothing of the machine is changed: what packaging/install-host makes stands below a test's
   directory, and is bound over /sbin in the namespace alone; so is a /run/mount of its own.
2. `end` lets the namespace go; mounts in it go with their daemons (Host.end).

Called by the tests of integrations.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.host import Host
from tests.support.mounting import REPOSITORY

COMMAND_S_MAX = 120.0
PROGRAMS = ("unshare", "nsenter", "mount", "umount", "findmnt")


def require_namespaces() -> None:
    """Skip the test, saying why, where there are none."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a mount namespace")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


class Namespace:
    """The namespace; the processes of `host` are started in it by `run`."""

    def __init__(self, host: Host, base: Path) -> None:
        self.host = host
        self.root = base / "root"
        subprocess.run(
            [REPOSITORY / "packaging/install-host", Path(sys.executable).parent, self.root],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        # In a chroot there is nothing at "/" whose propagation could be changed.
        is_chroot = all(line.split()[4] != "/" for line in table)
        propagation = "unchanged" if is_chroot else "private"
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", propagation, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        # It answers, so it is in its namespace.
        self._keeper.stdin.write(b"\n")
        self._keeper.stdin.flush()
        self._keeper.stdout.read(1)
        self.run("mount", "--bind", self.root / "sbin", os.path.realpath("/sbin"))
        # mount(8) notes userspace options such as _netdev there.
        os.makedirs("/run/mount", exist_ok=True)
        self.run("mount", "-t", "tmpfs", "tmpfs", "/run/mount")

    def inside(self, *command: str | os.PathLike[str]) -> list[str]:
        """The command line that runs this in the namespace."""
        enter = ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "--"]
        return [*enter, *(os.fspath(word) for word in command)]

    def run(
        self, *command: str | os.PathLike[str], code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end. AssertionError when the exit code is not `code`."""
        done = subprocess.run(
            self.inside(*command),
            env=self.host.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )
        assert done.returncode == code, (command, done, self.host.log_tail())
        assert "Traceback" not in done.stderr
        return done

    def end(self) -> None:
        """Let it go."""
        self._keeper.kill()
        self._keeper.communicate()
