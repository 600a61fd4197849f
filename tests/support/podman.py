"""podman and runc, without a container engine's daemon and without a registry.

Invariants
1. Nothing of the machine's own podman is used or changed: images, containers, volumes, networks and
   settings are below one directory, and gone with it.
2. Whatever a test does, its containers are removed, and what they mounted below the directory is
   taken away: `close`.
3. Nothing comes from the network: images are made here (SHELL_IMAGE), or by containers.py.
4. Secrets go to containers by the environment, never by arguments.

Called by containers.py, and by the tests of packaging and integrations.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.mounting import clear_mountpoint, wait_until

IMAGE: Final = "localhost/s3ws:test"
"""This checkout, by its Dockerfile: containers.py builds it."""
SHELL_IMAGE: Final = "localhost/s3ws-shell"
SHELL_PROGRAMS: Final = ("sh", "cat", "id", "ls", "mkdir", "sleep", "stat")
COMMAND_S_MAX: Final = 180.0
PLUGIN_S_MAX: Final = 120
NOFILE_MAX: Final = 65_536
NPROC_MAX: Final = 4096
PROGRAMS: Final = ("podman", "runc", "conmon")


def why_not(*more: str) -> str | None:
    """Why no containers can be run here, with these programs too; None when they can."""
    missing = [name for name in (*PROGRAMS, *more) if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (scripts/setup dev does it on Debian)"
    if os.geteuid() != 0:
        return "needs root for containers"
    return None


@contextlib.contextmanager
def shell_engine(*, plugin: str = "") -> Iterator[Podman]:
    """An engine for one test, with SHELL_IMAGE alone; without podman the test is skipped."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="s3ws-podman-", dir="/var/tmp") as name:
        podman = Podman(Path(name), plugin=plugin, driver="vfs")
        try:
            podman.make_shell()
            yield podman
        finally:
            podman.close()


class Podman:
    """An engine of its own below `directory`, whose path is short: those of sockets are limited.

    `plugin`: the socket of a volume plugin with the name s3ws. `driver`: vfs copies, and works on
    every disk. `is_kept`: what is there stays.
    """

    def __init__(
        self, directory: Path, *, plugin: str = "", driver: str = "overlay", is_kept: bool = False
    ) -> None:
        self.directory = directory
        self.is_kept = is_kept
        self._plugin = plugin
        self.label = f"s3ws-test={os.getpid()}"
        for name in ("networks", "tmp"):
            (directory / name).mkdir(exist_ok=True, parents=True)
        files = {
            "containers.conf": self._containers_conf(),
            "storage.conf": f'[storage]\ndriver = "{driver}"\nrunroot = "{directory}/run"\n'
            f'graphroot = "{directory}/graph"\n',
            "registries.conf": 'unqualified-search-registries = ["docker.io"]\n',
            "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
        }
        for name, text in files.items():
            (directory / name).write_text(text)

    def _containers_conf(self) -> str:
        # Explicit: without CAP_SYS_RESOURCE no limit above our own can be set.
        limits = [
            f"{name}={value}:{value}"
            for name, which, most in (
                ("nofile", resource.RLIMIT_NOFILE, NOFILE_MAX),
                ("nproc", resource.RLIMIT_NPROC, NPROC_MAX),
            )
            for hard in [resource.getrlimit(which)[1]]
            for value in [most if hard == resource.RLIM_INFINITY else min(hard, most)]
        ]
        has_netavark = Path("/usr/lib/podman/netavark").exists()
        plugin = f'[engine.volume_plugins]\ns3ws = "{self._plugin}"\n' if self._plugin else ""
        network = 'network_backend = "netavark"\n' if has_netavark else ""
        return (
            f"[containers]\ndefault_ulimits = {json.dumps(limits)}\nlog_driver = 'k8s-file'\n"
            f'[network]\n{network}network_config_dir = "{self.directory}/networks"\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
            f'tmp_dir = "{self.directory}/libpod"\nvolume_path = "{self.directory}/volumes"\n'
            f"volume_plugin_timeout = {PLUGIN_S_MAX}\n{plugin}"
        )

    @property
    def env(self) -> dict[str, str]:
        """The environment of podman, and of tools that call it."""
        foreign = ("WORKSPACE_", "AWS_", "CONTAINER", "DOCKER_", "XDG_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        return kept | {
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.directory / "registries.conf"),
            "TMPDIR": str(self.directory / "tmp"),
            # Health checks are run by hand: no timers of a systemd that may not be there.
            "DISABLE_HC_SYSTEMD": "true",
        }

    def call(
        self,
        *words: str | os.PathLike[str],
        ok: int | None = 0,
        env: Mapping[str, str] | None = None,
        timeout_s: float = COMMAND_S_MAX,
        stdin: Any = subprocess.DEVNULL,
    ) -> subprocess.CompletedProcess[str]:
        """Run podman; AssertionError when its exit code is not `ok` (None: any)."""
        done = subprocess.run(
            ["podman", *(os.fspath(word) for word in words)],
            env=self.env | dict(env or {}),
            stdin=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            # conmon leaves a file named oom where it was started.
            cwd=self.directory,
        )
        if ok is not None and done.returncode != ok:
            raise AssertionError(
                f"podman {' '.join(map(str, words[:3]))}: exit code {done.returncode}, wanted {ok}"
                f"\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
            )
        return done

    # --- images ----------------------------------------------------------------------------

    def has_image(self, name: str) -> bool:
        return self.call("image", "exists", name, ok=None).returncode == 0

    def make_shell(self) -> None:
        """SHELL_IMAGE: a shell and a few programs of this machine, with their libraries."""
        root = self.directory / "shell"
        _make_root(root)
        archive = shutil.make_archive(str(root), "tar", root)
        self.call("import", archive, SHELL_IMAGE)
        shutil.rmtree(root)
        os.unlink(archive)

    # --- containers ------------------------------------------------------------------------

    def start(
        self,
        *command: str,
        image: str = "",
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Container:
        """Start a container in the background."""
        values = dict(env or {})
        names = [word for name in values for word in ("--env", name)]
        words = ["run", "--detach", "--pull=never", "--network=host", "--label", self.label]
        words += [*names, *options]
        done = self.call(*words, image or IMAGE, *command, env=values)
        return Container(self, done.stdout.strip().splitlines()[-1])

    def run(
        self,
        *command: str,
        image: str = "",
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, str, str]:
        """Run a container to its end: exit code, standard output, standard error."""
        values = dict(env or {})
        names = [word for name in values for word in ("--env", name)]
        words = ["run", "--rm", "--pull=never", "--network=host", "--label", self.label]
        words += [*names, *options]
        done = self.call(*words, image or IMAGE, *command, env=values, ok=None)
        return done.returncode, done.stdout, done.stderr

    def remove_containers(self, *, everybodys: bool = False) -> None:
        """The containers of this process's tests go, killed."""
        chosen = [] if everybodys else ["--filter", f"label={self.label}"]
        found = self.call("ps", "--all", "--quiet", *chosen, ok=None).stdout.split()
        if found:
            self.call("rm", "--force", "--time", "0", *found, ok=None)

    def close(self) -> None:
        """Invariant 2."""
        self.remove_containers(everybodys=True)
        if self.is_kept:
            return
        unmount_below(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)


class Container:
    """One container."""

    def __init__(self, podman: Podman, name: str) -> None:
        self._podman = podman
        self.name = name

    def state(self) -> dict[str, Any]:
        """What the engine says of it."""
        found = json.loads(self._podman.call("inspect", self.name).stdout)
        state: dict[str, Any] = found[0]["State"]
        return state

    def is_running(self) -> bool:
        return bool(self.state()["Running"])

    def logs(self) -> str:
        done = self._podman.call("logs", self.name, ok=None)
        return done.stdout + done.stderr

    def exec(self, *command: str, user: str = "root", ok: int | None = 0) -> str:
        """Run a program in it; what it printed."""
        done = self._podman.call("exec", "--user", user, self.name, *command, ok=ok)
        return done.stdout

    def succeeds(self, *command: str, user: str = "root") -> bool:
        """Whether a program in it ends with 0."""
        done = self._podman.call("exec", "--user", user, self.name, *command, ok=None)
        return done.returncode == 0

    def wait_for(self, *command: str, user: str = "root", timeout_s: float = 60.0) -> None:
        """Until a program in it ends with 0; a container that ended is told with its log."""

        def holds() -> bool:
            if self.succeeds(*command, user=user):
                return True
            assert self.is_running(), self.logs()
            return False

        wait_until(holds, timeout_s=timeout_s, what=" ".join(command))

    def wait_healthy(self, *, timeout_s: float = 60.0) -> None:
        """Until the image's own health check says so."""

        def healthy() -> bool:
            done = self._podman.call("healthcheck", "run", self.name, ok=None)
            if done.returncode:
                assert self.is_running(), self.logs()
            return done.returncode == 0

        wait_until(healthy, timeout_s=timeout_s, what="a healthy container")

    def stop(self, grace_s: int) -> int:
        """`docker stop -t`: SIGTERM, and SIGKILL when the grace is over. Its exit code."""
        self._podman.call("stop", "--time", str(grace_s), self.name)
        return self.wait()

    def kill(self, name: str = "KILL") -> None:
        self._podman.call("kill", "--signal", name, self.name)

    def wait(self) -> int:
        """Until it has ended; its exit code."""
        return int(self._podman.call("wait", self.name).stdout.strip())

    def remove(self) -> None:
        self._podman.call("rm", "--force", "--time", "0", self.name)


@contextlib.contextmanager
def shared_directory(path: Path) -> Iterator[Path]:
    """A directory whose mounts are seen by all who bind it with rslave or rshared."""
    path.mkdir()
    quietly(["mount", "--bind", str(path), str(path)], "mount")
    try:
        quietly(["mount", "--make-rshared", str(path)], "mount")
        yield path
    finally:
        unmount_below(path)


def unmount_below(path: Path) -> None:
    """Take away every mount at and below it, a dead one too."""
    for mountpoint in reversed(_mounts_below(path)):
        clear_mountpoint(Path(mountpoint))
        subprocess.run(["umount", "-l", mountpoint], capture_output=True, check=False)


def _mounts_below(path: Path) -> list[str]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mountpoint = line.split(" ")[4].encode().decode("unicode_escape")
        if mountpoint == str(path) or mountpoint.startswith(f"{path}/"):
            found.append(mountpoint)
    return found


def _make_root(root: Path) -> None:
    for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "workspace"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    for name in SHELL_PROGRAMS:
        program = shutil.which(name)
        assert program is not None, name
        shutil.copy(program, root / "bin" / name)
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+)", said):
            place = root / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)


def quietly(command: list[str], name: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
