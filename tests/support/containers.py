"""The image of this checkout in an engine of the tests (podman.py), made without a registry.

Invariants
1. The base image is made by debootstrap, and has the name that `FROM` uses; a build pulls nothing.
   pip finds in a build what it finds on this machine: the locked packages are laid out for it.
2. All processes of one test run share engine and image; the last one takes them away.

S3WS_TEST_ENGINE=DIR keeps engine and images there between runs, and builds by layers (for who works
on these tests).

Called by tests/packaging.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support import podman as podman_engine
from tests.support.mounting import REPOSITORY
from tests.support.podman import IMAGE, Podman, quietly

BASE_IMAGE: Final = "docker.io/library/debian:bookworm-slim"
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
BUILD_S_MAX: Final = 900.0


def why_not() -> str | None:
    """Why the image can't be made and run here; None when it can."""
    if (reason := podman_engine.why_not("debootstrap")) is not None:
        return reason
    return None if os.path.exists("/dev/fuse") else "there is no /dev/fuse"


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
                make_base(podman)
                build(podman)
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


def make_base(podman: Podman) -> None:
    """The image that FROM names, by debootstrap."""
    if podman.has_image(BASE_IMAGE):
        return
    root = podman.directory / "base"
    command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", SUITE]
    quietly([*command, str(root), *_mirror()], "debootstrap")
    for name in SLIMMED:
        shutil.rmtree(root / name)
    for name, text in SLIM_SETTINGS.items():
        (root / name).write_text(text)
    archive = podman.directory / "base.tar"
    quietly(["tar", "-C", str(root), "-cf", str(archive), "."], "tar")
    shutil.rmtree(root)
    path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    podman.call("import", "--change", path, archive, BASE_IMAGE, timeout_s=BUILD_S_MAX)
    archive.unlink()


def build(podman: Podman) -> None:
    """The image of this checkout, by its Dockerfile."""
    wheels = podman.directory / "wheels"
    wheels.mkdir(exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-build-isolation"]
    for lock in ("build", "runtime"):
        file = str(REPOSITORY / f"requirements/{lock}.txt")
        quietly([*pip, "--no-deps", "--require-hashes", "-d", str(wheels), "-r", file], "pip")
    options = ["--pull=never", "--isolation", "chroot", "--format", "docker"]
    options += [f"--layers={str(podman.is_kept).lower()}", "--volume", f"{wheels}:/wheels:ro"]
    options += ["--build-arg", "PIP_FIND_LINKS=/wheels", "--build-arg", "PIP_NO_INDEX=1"]
    podman.call("build", *options, "--tag", IMAGE, REPOSITORY, timeout_s=BUILD_S_MAX)


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
