"""What fits s3ws into a host: packaging/install-host, and the units, linted by systemd itself."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "packaging/install-host"
BIN = Path(sys.executable).parent
MOUNTING = ("s3ws@.service", "s3ws-volumes.service")
UNITS = (*MOUNTING, "s3ws-metrics.service")
HELPERS = ("mount.s3ws", "mount.fuse.s3ws", "umount.s3ws", "umount.fuse.s3ws")
OWN_MOUNTS = {
    *("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts"),
    *("ProtectKernelTunables", "ProtectControlGroups", "ProtectKernelModules", "ProtectKernelLogs"),
    *("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "TemporaryFileSystem"),
    *("RootDirectory", "RootImage", "MountFlags", "DynamicUser", "ProtectProc", "ProcSubset"),
}
"""Settings that give a service mounts of its own, which nobody else sees."""


def install(root: Path, bin_directory: Path = BIN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [INSTALL, bin_directory, root], capture_output=True, text=True, check=False
    )


def service(unit: str) -> dict[str, str]:
    """Settings of its [Service] section (the last of several of one name)."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "packaging/systemd" / unit)
    return dict(parser["Service"])


def test_it_installs_links_and_units_and_says_which(tmp_path: Path) -> None:
    done = install(tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = [f"{tmp_path}/sbin/{name}" for name in HELPERS]
    wanted += [f"{tmp_path}/etc/systemd/system/{name}" for name in UNITS]
    assert sorted(done.stdout.split()) == sorted(wanted)
    for name in HELPERS:
        program = name.replace("fuse.", "")
        assert os.readlink(tmp_path / "sbin" / name) == f"{BIN}/{program}"
        assert os.access(tmp_path / "sbin" / name, os.X_OK)
    for name in UNITS:
        text = (tmp_path / "etc/systemd/system" / name).read_text()
        assert "@BIN@" not in text and f"ExecStart={BIN}/" in text
    assert install(tmp_path).stdout == done.stdout, "again: the same"


def test_it_replaces_nothing_of_others_and_installs_nothing_that_is_not_there(
    tmp_path: Path,
) -> None:
    foreign = tmp_path / "sbin/mount.s3ws"
    foreign.parent.mkdir()
    foreign.write_text("somebody else's")
    done = install(tmp_path)
    assert done.returncode == 1 and "not a link of ours" in done.stderr
    assert foreign.read_text() == "somebody else's"
    done = install(tmp_path / "other", tmp_path)
    assert done.returncode == 1 and "install s3ws-fs there first" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path, unit: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    assert install(tmp_path).returncode == 0

    def verify() -> subprocess.CompletedProcess[str]:
        path = tmp_path / "etc/systemd/system" / unit
        # The manual page is installed by nobody here.
        command = ["systemd-analyze", "verify", "--man=no", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = verify()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    path = tmp_path / "etc/systemd/system" / unit
    path.write_text(path.read_text().replace("[Service]", "[Service]\nKillMod=mixed"))
    assert "KillMod" in verify().stderr, "the lint finds what is wrong"


@pytest.mark.parametrize("unit", MOUNTING)
def test_no_unit_gives_its_mounts_to_itself_alone(unit: str) -> None:
    assert service(unit).keys() & OWN_MOUNTS == set()


def test_the_units_leave_alone_what_must_live_on() -> None:
    workspace, volumes = service("s3ws@.service"), service("s3ws-volumes.service")
    # The daemon speaks for its holder, which gets the signal; the plugin's mounts get none.
    assert (workspace["Type"], workspace["NotifyAccess"]) == ("notify", "all")
    assert workspace["KillMode"] == "mixed" and volumes["KillMode"] == "process"
    assert workspace["OOMPolicy"] == volumes["OOMPolicy"] == "continue"
