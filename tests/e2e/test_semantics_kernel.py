"""What the kernel does with a file beyond reading and writing: running it, asking about it.

Where the answer is not ext4's, docs/semantics.md says so, and why; here stands what it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.actors import require_root
from tests.support.mounting import mounted_workspace, wait_until, workspace_config
from tests.support.pair import Pair, outcome
from tests.support.syscalls import AT_FDCWD, call, handle_of, open_handle, renameat2

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

FS_IOC_GETFLAGS: Final = 0x80086601
FIGETBSZ: Final = 2
STATX_BTIME: Final = 0x800
STATX_BASIC: Final = 0x7FF
_STATX_BYTES: Final = 256
RENAME_WHITEOUT: Final = 4
ECHO: Final = "while read line; do echo $line; done"


# --- running programs ------------------------------------------------------------------------


def test_programs_and_scripts_run(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        os.chdir(top)
        Path("script").write_text('#!/bin/sh\necho "$0 $1"\n')
        os.chmod("script", 0o755)
        shutil.copy("/bin/sh", "binary")
        shutil.copy("/bin/sh", "setuid")
        os.symlink("script", "link")
        Path("plain").write_text("echo no")
        os.chmod("plain", 0o755)
        Path("no such interpreter").write_text("#!/none\n")
        os.chmod("no such interpreter", 0o755)

        def run(*command: str) -> Any:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout

        return [
            run("./script", "x"),
            run("./link", "y"),
            run("./binary", "-c", "echo from a binary"),
            outcome(run, "./plain"),
            outcome(run, "./no such interpreter"),
            outcome(run, "./"),
        ]

    assert pair.same(scenario)[2] == (0, "from a binary\n")


def test_a_running_program_is_not_written_to(pair: Pair) -> None:
    """ETXTBSY both ways; replacing it by rename is how programs update themselves."""

    def scenario(top: Path) -> list[Any]:
        os.chdir(top)
        shutil.copy("/bin/sh", "program")
        with subprocess.Popen(
            ["./program", "-c", "while read line; do echo $line; done"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as running:
            assert running.stdin is not None and running.stdout is not None
            running.stdin.write(b"x\n")
            running.stdin.flush()
            assert running.stdout.readline() == b"x\n"  # it has been started
            seen = [
                outcome(os.open, "program", os.O_WRONLY),
                outcome(os.open, "program", os.O_RDWR | os.O_TRUNC),
                outcome(os.truncate, "program", 0),
            ]
            shutil.copy("/bin/sh", "new")
            os.rename("new", "program")
            running.stdin.write(b"y\n")
            running.stdin.flush()
            seen.append(running.stdout.readline())
            running.stdin.close()
            seen.append(running.wait())
        fd = os.open("program", os.O_WRONLY)
        seen.append(outcome(subprocess.call, ["./program"], stdin=subprocess.DEVNULL))
        os.close(fd)
        seen.append(outcome(subprocess.call, ["./program"], stdin=subprocess.DEVNULL))
        return seen

    seen = pair.same(scenario)
    assert seen[0] == "ETXTBSY"
    assert seen[-2:] == ["ETXTBSY", 0]


def test_shared_objects_load(pair: Pair) -> None:
    """Mapped with PROT_EXEC: what Python's extension modules and dlopen need."""
    import _ctypes

    source = _ctypes.__file__

    def scenario(top: Path) -> Any:
        shutil.copy(source, top / "_ctypes.so")
        script = (
            "import sys, importlib.util as u\n"
            "spec = u.spec_from_file_location('_ctypes', sys.argv[1])\n"
            "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
            "print(module.sizeof.__name__)\n"
        )
        return subprocess.run(
            [sys.executable, "-I", "-c", script, str(top / "_ctypes.so")],
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    assert pair.same(scenario) == "sizeof\n"


def test_setuid_and_devices_have_no_power(pair: Pair) -> None:
    """The mount is nosuid and nodev: bits and nodes are kept, and do nothing."""
    require_root()
    flags = os.statvfs(pair.here).f_flag
    assert flags & os.ST_NODEV == os.ST_NODEV
    assert flags & os.ST_NOSUID == os.ST_NOSUID
    os.mknod(pair.here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert outcome(os.open, pair.here / "null", os.O_RDONLY) == "EACCES"


# --- asking about files ----------------------------------------------------------------------


def _statx(path: Path, mask: int) -> tuple[int, int]:
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    call("statx", AT_FDCWD, os.fsencode(path), 0, mask, buffer)
    return int.from_bytes(buffer.raw[:4], sys.byteorder), int.from_bytes(
        buffer.raw[40:48], sys.byteorder
    )


def test_statx_has_all_but_the_birth_time(pair: Pair) -> None:
    path = pair.here / "f"
    path.write_bytes(b"12345")
    mask, size = _statx(path, STATX_BASIC | STATX_BTIME)
    assert mask & STATX_BASIC == STATX_BASIC
    assert not mask & STATX_BTIME
    assert size == 5


def test_inode_flags_are_not_kept(pair: Pair) -> None:
    """lsattr, chattr: the kernel asks for it by ioctl, which pyfuse3 does not pass on."""
    with (pair.here / "f").open("w+b") as file:
        buffer = bytearray(8)
        assert outcome(fcntl.ioctl, file, FS_IOC_GETFLAGS, buffer) in ("ENOTTY", "EOPNOTSUPP")
        assert fcntl.ioctl(file, FIGETBSZ, buffer) == 0
        assert int.from_bytes(buffer[:4], sys.byteorder) == 4096


def test_unnamed_files_are_made_the_old_way(pair: Pair) -> None:
    """O_TMPFILE is refused, and Python's tempfile does without it."""
    assert outcome(os.open, pair.here, os.O_RDWR | os.O_TMPFILE) in ("EOPNOTSUPP", "ENOTSUP")
    with tempfile.TemporaryFile(dir=pair.here) as file:
        file.write(b"x")
        assert os.fstat(file.fileno()).st_nlink == 0
    with tempfile.NamedTemporaryFile(dir=pair.here) as named:
        assert os.listdir(pair.here) == [os.path.basename(named.name)]
    assert os.listdir(pair.here) == []


def test_file_handles_open_files(pair: Pair) -> None:
    """Also of an inode that the kernel has long forgotten, and none of a file that is gone."""
    require_root()

    def scenario(top: Path) -> list[Any]:
        (top / "f").write_bytes(b"content")
        (top / "gone").write_bytes(b"x")
        (top / "d").mkdir()
        handles = [handle_of(top / name) for name in ("f", "d", "gone")]
        (top / "gone").unlink()
        (top / "f").rename(top / "d" / "moved")
        seen: list[Any] = []
        for handle in handles:
            fd = outcome(open_handle, top, handle, os.O_RDONLY)
            if isinstance(fd, str):
                seen.append(fd)
                continue
            is_dir = stat.S_ISDIR(os.fstat(fd).st_mode)
            seen.append(os.listdir(fd) if is_dir else os.read(fd, 9))
            os.close(fd)
        return seen

    seen = pair.same(scenario)
    if seen[0] == "EPERM":
        pytest.skip("open_by_handle_at needs CAP_DAC_READ_SEARCH, which root lacks here")
    assert seen == [b"content", ["moved"], "ESTALE"]


def test_the_filesystem_says_what_it_is(pair: Pair) -> None:
    info = os.statvfs(pair.here)
    assert info.f_namemax == 255
    assert info.f_bsize == info.f_frsize == 4096
    assert info.f_bfree == info.f_bavail
    assert info.f_ffree == info.f_favail
    assert not info.f_flag & os.ST_RDONLY
    assert os.pathconf(pair.here, "PC_NAME_MAX") == 255
    assert pair.here.stat().st_blksize >= 4096
    assert pair.here.stat().st_dev != pair.native.stat().st_dev


def test_space_and_files_are_counted_as_they_come_and_go(tmp_path: Path) -> None:
    with mounted_workspace(workspace_config(tmp_path)) as workspace:
        _count_in(workspace.mountpoint)


def _count_in(top: Path) -> None:
    def used() -> tuple[int, int]:
        info = os.statvfs(top)
        return (info.f_blocks - info.f_bfree) * info.f_frsize, info.f_files - info.f_ffree

    before_bytes, before_files = used()
    (top / "d").mkdir()
    (top / "d" / "f").write_bytes(b"x" * 1_000_000)
    os.link(top / "d" / "f", top / "twin")
    os.symlink("x", top / "link")
    held = (1_000_000 + 4095) // 4096 * 4096
    assert used() == (before_bytes + held, before_files + 3), "a link is no inode"
    fd = os.open(top / "twin", os.O_RDONLY)
    os.unlink(top / "d" / "f")
    os.unlink(top / "twin")
    assert used()[0] == before_bytes + held, "still open"
    os.close(fd)
    os.unlink(top / "link")
    os.rmdir(top / "d")
    # What was let go counts as free at the latest when it is needed.
    wait_until(lambda: used() == (before_bytes, before_files), what=f"{used()}")


def test_renames_across_mounts_are_refused(pair: Pair) -> None:
    (pair.here / "f").touch()
    (pair.native / "g").touch()
    assert outcome(os.rename, pair.here / "f", pair.native / "f") == "EXDEV"
    assert outcome(os.link, pair.native / "g", pair.here / "g") == "EXDEV"
    shutil.move(pair.here / "f", pair.native / "f")
    assert (pair.native / "f").exists()
    assert not (pair.here / "f").exists()


def test_whiteouts_are_not_for_users(pair: Pair) -> None:
    (pair.here / "f").touch()
    got = outcome(renameat2, pair.here / "f", pair.here / "g", RENAME_WHITEOUT)
    assert got in ("EINVAL", "EPERM")
