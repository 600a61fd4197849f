"""The container's first process, run for real as process 1 of a pid namespace of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from s3ws_fs.container.processes import OOM_SCORE_OF_COMMAND
from tests.support.host import NEVER_BY_ITSELF
from tests.support.proxy import faulty_proxy, held
from tests.support.seaweed import Seaweed

ROOT = Path(__file__).resolve().parent.parent.parent
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
        above = Path(tempfile.gettempdir())
        for place in (base, *(each for each in base.parents if each.is_relative_to(above))):
            if place != above:
                place.chmod(0o755)
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "WORKSPACE_MOUNTPOINT": str(self.mountpoint),
            "WORKSPACE_STORAGE_TYPE": "local",
            "WORKSPACE_STORAGE_PATH": str(self.store),
            "WORKSPACE_CACHE_DIR": str(self.cache),
            "WORKSPACE_RUNTIME_DIR": str(base / "run"),
            "WORKSPACE_USER_ID": "user",
            "WORKSPACE_CONVERSATION_ID": "conversation",
            "WORKSPACE_COMMAND_GRACE": "1",
            "AWS_SECRET_ACCESS_KEY": "not for the agent",
        }

    def start(self, *command: str, under: Sequence[str] = (), **env: str) -> subprocess.Popen[str]:
        """Process 1 is the entrypoint, or the program `under` that starts it."""
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if not root_is_a_mount():
            # In a chroot there is nothing at "/" whose propagation could be changed.
            namespaces += ["--propagation", "unchanged"]
        return subprocess.Popen(
            [*namespaces, *under, sys.executable, "-m", "s3ws_fs.container", *command],
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
    yield Container(tmp_path)


def first_process(process: subprocess.Popen[str]) -> int:
    """The entrypoint's process id as we see it: the only child of `unshare`."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(children.read_text().split()[0])


def s3_env(server: Seaweed) -> dict[str, str]:
    return server.env | {"WORKSPACE_STORAGE_TYPE": "s3", "WORKSPACE_BUCKET": server.bucket}


def open_directory(path: Path) -> Path:
    """A directory in which everybody may write."""
    path.mkdir()
    path.chmod(0o777)
    return path


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
    ready = open_directory(tmp_path / "ready")
    script = (
        f"trap 'echo late > late.txt; exit 5' TERM; : > {ready}/now; while :; do sleep 0.1; done"
    )
    with container.start("sh", "-c", script) as process:
        wait_for(ready / "now")
        os.kill(first_process(process), signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 5, err
    assert (container.store / FILES / "late.txt").read_text() == "late\n"


def test_a_command_that_does_not_end_is_killed_and_what_it_wrote_is_saved(
    container: Container, tmp_path: Path
) -> None:
    ready = open_directory(tmp_path / "ready")
    script = f"trap '' TERM; echo kept > kept.txt; : > {ready}/now; while :; do sleep 0.1; done"
    with container.start("sh", "-c", script, WORKSPACE_STOP_GRACE="60") as process:
        wait_for(ready / "now")
        os.kill(first_process(process), signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + signal.SIGKILL, err
    assert "the command did not end in 1 s: killing it" in err
    assert (container.store / FILES / "kept.txt").read_text() == "kept\n"


@pytest.mark.s3
def test_a_flush_that_takes_too_long_is_given_up_in_time_to_say_what_is_missing(
    container: Container, tmp_path: Path, seaweed: Seaweed
) -> None:
    ready = open_directory(tmp_path / "ready")
    script = f"echo lost > lost.txt; : > {ready}/now; while :; do sleep 0.1; done"
    gate = threading.Event()
    with faulty_proxy(seaweed.endpoint_url) as proxy:
        container.env |= s3_env(seaweed) | {"AWS_ENDPOINT_URL_S3": proxy.url}
        container.env |= NEVER_BY_ITSELF | {"WORKSPACE_USER_ID": "entrypoint-late"}
        with container.start("sh", "-c", script, WORKSPACE_STOP_GRACE="5") as process:
            wait_for(ready / "now")
            proxy.weather(held(gate))
            os.kill(first_process(process), signal.SIGTERM)
            _, err = process.communicate(timeout=DEADLINE_S)
            gate.set()
            proxy.heal()
        assert process.returncode == 7, err
        assert "lost.txt" in err
        assert "NOT everything is in the bucket" in err
        # The next container on the same cache goes on.
        code, out, err = container.run("cat", "lost.txt")
        assert (code, out) == (0, "lost\n"), err


def test_as_a_child_of_another_init_it_ends_what_its_command_left_behind(
    container: Container, tmp_path: Path
) -> None:
    ready = open_directory(tmp_path / "ready")
    left = f"trap 'echo late > late.txt; exit' TERM; : > {ready}/now; while :; do sleep 0.1; done"
    script = f'setsid sh -c "{left}" & while [ ! -e {ready}/now ]; do sleep 0.1; done'
    init = ["sh", "-c", '"$@"; exit $?', "init"]
    with container.start("sh", "-c", script, under=init) as process:
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert (container.store / FILES / "late.txt").read_text() == "late\n"


def test_when_memory_is_short_the_command_goes_first(container: Container) -> None:
    code, out, err = container.run("cat", "/proc/self/oom_score_adj", "/proc/1/oom_score_adj")
    assert code == 0, err
    command, first = map(int, out.split())
    assert command >= OOM_SCORE_OF_COMMAND
    assert first < command or first >= OOM_SCORE_OF_COMMAND


def test_ends_processes_left_behind_and_tells_by_which_signal_it_ended(
    container: Container,
) -> None:
    script = "setsid sh -c 'trap : TERM; exec > held.txt; while :; do sleep 0.1; done' & kill -9 $$"
    code, _, err = container.run("sh", "-c", script)
    assert code == 128 + signal.SIGKILL, err


def test_says_when_not_everything_is_saved(container: Container) -> None:
    script = f"echo lost > x; chmod 0 {container.store}; mv {container.store} {container.base}/gone"
    container.env |= NEVER_BY_ITSELF
    code, _, err = container.run("sh", "-c", script, WORKSPACE_RUN_AS="0:0")
    assert code == 7, err
    assert "NOT everything is in the bucket" in err


def test_an_unknown_program_is_127_and_a_bad_setting_3(container: Container) -> None:
    assert container.run("no-such-program")[0] == 127
    for name, value in (
        ("WORKSPACE_RUN_AS", "someone"),
        ("WORKSPACE_RUN_AS", "-1"),
        ("WORKSPACE_STOP_GRACE", "soon"),
        ("WORKSPACE_COMMAND_GRACE", "11"),
        ("WORKSPACE_STOP_GRACE", "86401"),
    ):
        code, _, err = container.run("true", **{name: value})
        assert (code, len(err.splitlines())) == (3, 1), err
    assert container.run("true", WORKSPACE_USER_ID="../other")[0] == 3
