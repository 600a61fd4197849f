"""The container's first process, run for real as process 1 of a pid namespace of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ENTRYPOINT = ROOT / "packaging/docker_entrypoint.py"
S3WS = Path(sys.executable).parent / "s3ws"
DEADLINE_S = 60.0
FILES = "conversations/user/conversation/workspace/files"

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and other users"),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare"),
]


def root_is_a_mount() -> bool:
    """Whether "/" is a mount point (it is not in a plain chroot)."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == "/" for line in table)


class Container:
    """What a container gives the entrypoint: process 1, mounts of its own, an environment."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.store = base / "store"
        self.cache = base / "cache"
        self.mountpoint = base / "workspace"
        # The command runs as another user, who has to get as far as the mount point.
        for place in (base, *base.parents[:2]):
            place.chmod(0o755)
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "S3WS_COMMAND": str(S3WS),
            "WORKSPACE_MOUNTPOINT": str(self.mountpoint),
            "WORKSPACE_STORAGE_TYPE": "local",
            "WORKSPACE_STORAGE_PATH": str(self.store),
            "WORKSPACE_CACHE_DIR": str(self.cache),
            "WORKSPACE_RUNTIME_DIR": str(base / "run"),
            "WORKSPACE_USER_ID": "user",
            "WORKSPACE_CONVERSATION_ID": "conversation",
            "WORKSPACE_STOP_GRACE": "1",
            "AWS_SECRET_ACCESS_KEY": "not for the agent",
        }

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if not root_is_a_mount():
            # In a chroot there is nothing at "/" whose propagation could be changed.
            namespaces += ["--propagation", "unchanged"]
        return subprocess.Popen(
            [*namespaces, sys.executable, str(ENTRYPOINT), *command],
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, **env: str) -> tuple[int, str, str]:
        with self.start(*command, **env) as process:
            out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, err


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    assert S3WS.exists(), f"{S3WS} is missing: install the package (scripts/setup dev)"
    yield Container(tmp_path)


def first_process(process: subprocess.Popen[str]) -> int:
    """The entrypoint's process id as we see it: the only child of `unshare`."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(children.read_text().split()[0])


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_runs_the_command_as_its_user_saves_and_ends_with_its_code(container: Container) -> None:
    script = "id -u; pwd; echo hello > hello.txt; env | grep -c SECRET; exit 42"
    code, out, err = container.run("sh", "-c", script)
    assert code == 42, err
    assert out.split() == ["10001", str(container.mountpoint), "0"]
    assert (container.store / FILES / "hello.txt").read_text() == "hello\n"
    shutil.rmtree(container.cache)
    code, out, err = container.run("stat", "-c", "%u %s", "hello.txt")
    assert (code, out) == (0, "10001 6\n"), err


def test_forwards_signals_and_saves(container: Container, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.mkdir(mode=0o777)
    ready.chmod(0o777)
    script = (
        f"trap 'echo late > late.txt; exit 5' TERM; : > {ready}/now; while :; do sleep 0.1; done"
    )
    with container.start("sh", "-c", script) as process:
        wait_for(ready / "now")
        os.kill(first_process(process), signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 5, err
    assert (container.store / FILES / "late.txt").read_text() == "late\n"


def test_ends_processes_left_behind_and_tells_by_which_signal_it_ended(
    container: Container,
) -> None:
    script = "setsid sh -c 'trap : TERM; exec > held.txt; while :; do sleep 0.1; done' & kill -9 $$"
    code, _, err = container.run("sh", "-c", script)
    assert code == 128 + signal.SIGKILL, err


def test_says_when_not_everything_is_saved(container: Container) -> None:
    script = f"echo lost > x; chmod 0 {container.store}; mv {container.store} {container.base}/gone"
    code, _, err = container.run("sh", "-c", script, WORKSPACE_RUN_AS="0:0")
    assert code == 7, err
    assert "NOT everything is in the bucket" in err


def test_an_unknown_program_is_127_and_a_bad_setting_3(container: Container) -> None:
    assert container.run("no-such-program")[0] == 127
    assert container.run("true", WORKSPACE_RUN_AS="someone")[0] == 3
    assert container.run("true", WORKSPACE_USER_ID="../other")[0] == 3
