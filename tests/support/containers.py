"""Real containers by podman and runc, without a container engine's daemon and without a registry.

Invariants
1. Nothing of the machine's own podman is used or changed: images, containers, volumes, networks and
   settings are below one directory, and gone with it.
2. Whatever a test does, its containers are removed, and what they mounted below the directory is
   taken away: `close`.
3. The base image is made by debootstrap, and has the name that `FROM` uses; a build pulls nothing.
   pip finds in a build what it finds on this machine: the locked packages are laid out for it.
4. Secrets go to containers by the environment, never by arguments.

S3WS_TEST_ENGINE=DIR keeps engine and images there between runs, and builds by layers (for who works
on these tests).

Called by tests/packaging.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.mounting import REPOSITORY, clear_mountpoint, wait_until

BASE_IMAGE: Final = "docker.io/library/debian:bookworm-slim"
IMAGE: Final = "localhost/s3ws:test"
SUITE: Final = "bookworm"
BASE_PACKAGES: Final = "ca-certificates"
SLIMMED: Final = (
    "var/cache/apt/archives",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
)
SLIM_SETTINGS: Final = {
    "etc/dpkg/dpkg.cfg.d/docker": "force-unsafe-io\npath-exclude /usr/share/doc/*\n"
    "path-exclude /usr/share/locale/*\npath-exclude /usr/share/man/*\n",
    "etc/apt/apt.conf.d/docker-clean": 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n'
    'Binary::apt-get::APT::Keep-Downloaded-Packages "false";\n'
    'APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n'
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n',
}
"""What Debian's own images set: no documentation, no syncing of files, no copies of packages."""
MEMORY_DIRECTORY: Final = Path("/dev/shm")
MEMORY_MB_MIN: Final = 6000
COMMAND_S_MAX: Final = 120.0
BUILD_S_MAX: Final = 900.0
NOFILE_MAX: Final = 65_536
NPROC_MAX: Final = 4096
PROGRAMS: Final = ("podman", "runc", "debootstrap")


def why_not() -> str | None:
    """Why no containers can be run here; None when they can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (scripts/setup dev does it on Debian)"
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    return None


@contextlib.contextmanager
def running_engine() -> Iterator[Podman]:
    """An engine with the base image and ours; all processes of one test run share it.

    In memory where that is large, for there is much to unpack. Its path is short: paths of sockets
    below it are limited.
    """
    kept = os.environ.get("S3WS_TEST_ENGINE")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    memory, disk = MEMORY_DIRECTORY, Path("/var/tmp")
    free = os.statvfs(memory) if memory.is_dir() else None
    is_large = free is not None and free.f_bavail * free.f_frsize > MEMORY_MB_MIN << 20
    directory = Path(kept) if kept else (memory if is_large else disk) / f"s3ws-podman-{run[:12]}"
    with (
        open(f"{directory}.building", "w") as building,
        open(f"{directory}.users", "w") as users,
    ):
        fcntl.flock(building, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        podman = Podman(directory, is_kept=bool(kept))
        try:
            if kept or not podman.has_image(IMAGE):
                podman.make_base()
                podman.build()
            fcntl.flock(building, fcntl.LOCK_UN)
            yield podman
        finally:
            podman.remove_containers()
            fcntl.flock(building, fcntl.LOCK_EX)
            with contextlib.suppress(BlockingIOError):
                # The last one cleans up.
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                podman.close()
                os.unlink(building.name)
                os.unlink(users.name)


class Podman:
    """An engine of its own below `directory`."""

    def __init__(self, directory: Path, *, is_kept: bool = False) -> None:
        self.directory = directory
        self._is_kept = is_kept
        self.label = f"s3ws-test={os.getpid()}"
        for name in ("networks", "tmp", "wheels"):
            (directory / name).mkdir(exist_ok=True, parents=True)
        files = {
            "containers.conf": self._containers_conf(),
            "storage.conf": f'[storage]\ndriver = "overlay"\nrunroot = "{directory}/run"\n'
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
        network = 'network_backend = "netavark"\n' if has_netavark else ""
        return (
            f"[containers]\ndefault_ulimits = {json.dumps(limits)}\nlog_driver = 'k8s-file'\n"
            f'[network]\n{network}network_config_dir = "{self.directory}/networks"\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
            f'tmp_dir = "{self.directory}/libpod"\nvolume_path = "{self.directory}/volumes"\n'
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

    def make_base(self) -> None:
        """The image that FROM names, by debootstrap."""
        if self.has_image(BASE_IMAGE):
            return
        root = self.directory / "base"
        command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", SUITE]
        _quietly([*command, str(root), *_mirror()], "debootstrap")
        for name in SLIMMED:
            shutil.rmtree(root / name)
        for name, text in SLIM_SETTINGS.items():
            (root / name).write_text(text)
        archive = self.directory / "base.tar"
        _quietly(["tar", "-C", str(root), "-cf", str(archive), "."], "tar")
        shutil.rmtree(root)
        path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.call("import", "--change", path, archive, BASE_IMAGE, timeout_s=BUILD_S_MAX)
        archive.unlink()

    def build(self) -> None:
        """The image of this checkout, by its Dockerfile."""
        wheels = self.directory / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-build-isolation"]
        for lock in ("build", "runtime"):
            file = str(REPOSITORY / f"requirements/{lock}.txt")
            _quietly([*pip, "--no-deps", "--require-hashes", "-d", str(wheels), "-r", file], "pip")
        options = ["--pull=never", "--isolation", "chroot", "--format", "docker"]
        options += [f"--layers={str(self._is_kept).lower()}", "--volume", f"{wheels}:/wheels:ro"]
        options += ["--build-arg", "PIP_FIND_LINKS=/wheels", "--build-arg", "PIP_NO_INDEX=1"]
        self.call("build", *options, "--tag", IMAGE, REPOSITORY, timeout_s=BUILD_S_MAX)

    # --- containers ------------------------------------------------------------------------

    def start(
        self,
        *command: str,
        image: str = IMAGE,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Container:
        """Start a container in the background."""
        values = dict(env or {})
        names = [word for name in values for word in ("--env", name)]
        words = ["run", "--detach", "--pull=never", "--network=host", "--label", self.label]
        words += [*names, *options]
        done = self.call(*words, image, *command, env=values)
        return Container(self, done.stdout.strip().splitlines()[-1])

    def run(
        self,
        *command: str,
        image: str = IMAGE,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, str, str]:
        """Run a container to its end: exit code, standard output, standard error."""
        values = dict(env or {})
        names = [word for name in values for word in ("--env", name)]
        words = ["run", "--rm", "--pull=never", "--network=host", "--label", self.label]
        words += [*names, *options]
        done = self.call(*words, image, *command, env=values, ok=None)
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
        if self._is_kept:
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
    _quietly(["mount", "--bind", str(path), str(path)], "mount")
    try:
        _quietly(["mount", "--make-rshared", str(path)], "mount")
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


def _mirror() -> list[str]:
    """Where this machine's apt gets the suite from; nothing to use debootstrap's own idea."""
    form = "$(CODENAME) $(COMPONENT) $(REPO_URI)"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in done.stdout.splitlines():
        codename, _, rest = line.partition(" ")
        component, _, address = rest.partition(" ")
        if (codename, component) == (SUITE, "main"):
            return [address]
    return []


def _quietly(command: list[str], name: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
