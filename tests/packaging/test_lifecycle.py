"""How containers end, and what is there afterwards (shape a: the mount inside the container)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.buckets import S3Bucket
from tests.support.host import NEVER_BY_ITSELF
from tests.support.podman import Container, Podman

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the first test waits for the image
]

MAY_MOUNT = ("--device=/dev/fuse", "--cap-add=SYS_ADMIN")
FILES = 300
WORK = f"""
    mkdir -p src
    i=0
    while [ $i -lt {FILES} ]; do echo "file $i" > src/$i.txt; i=$((i+1)); done
    git init -q repo
    : > done
"""
"""Work that is there whole when `done` is."""
COUNT = "ls src | wc -l; cat src/7.txt; git -C repo status --short | wc -l"
COUNTED = [str(FILES), "file", "7", "0"]
SIGKILLED = 128 + 9
ENOUGH = 120


@pytest.fixture
def volume(podman: Podman) -> str:
    """A cache volume of this test."""
    return podman.call("volume", "create").stdout.strip()


class Boxes:
    """Containers of one workspace on one cache volume."""

    def __init__(self, podman: Podman, settings: dict[str, str], volume: str) -> None:
        self.podman = podman
        self.settings = settings
        self.volume = volume

    def options(self, *more: str) -> list[str]:
        return [*MAY_MOUNT, f"--volume={self.volume}:/var/lib/s3ws", *more]

    def start(self, script: str, *more: str, **env: str) -> Container:
        env = self.settings | env
        return self.podman.start("sh", "-c", script, options=self.options(*more), env=env)

    def run(self, script: str, *more: str, **env: str) -> list[str]:
        env = self.settings | env
        code, out, err = self.podman.run("sh", "-c", script, options=self.options(*more), env=env)
        assert code == 0, err
        return out.split()


@pytest.fixture
def boxes(podman: Podman, settings: dict[str, str], volume: str) -> Boxes:
    return Boxes(podman, settings, volume)


def never_flushed(box: Container, bucket: S3Bucket, files: str) -> None:
    box.wait_for("test", "-e", "/workspace/done")
    assert bucket.listing(files) == [], "nothing was flushed so far"


def test_stop_with_enough_grace_is_everything_in_the_bucket(
    boxes: Boxes, s3_bucket: S3Bucket, files: str, podman: Podman
) -> None:
    """The agent ends first, and what it writes while it ends is saved too."""
    script = WORK + "trap 'echo bye > last.txt; exit 3' TERM; while :; do sleep 0.1; done"
    box = boxes.start(script, **NEVER_BY_ITSELF, WORKSPACE_STOP_GRACE=str(ENOUGH))
    never_flushed(box, s3_bucket, files)
    assert box.stop(ENOUGH) == 3, box.logs()
    names = s3_bucket.listing(files)
    assert len([name for name in names if "/src/" in name]) == FILES
    assert s3_bucket.get(files + "last.txt").body == b"bye\n"
    # And another host, without that cache, at once: the lease was given back.
    podman.call("rm", box.name)
    podman.call("volume", "rm", boxes.volume)
    assert boxes.run(COUNT) == COUNTED


@pytest.mark.parametrize("end", ["stop -t 1", "kill"])
def test_an_end_without_a_flush_loses_nothing_the_next_container_goes_on(
    boxes: Boxes, s3_bucket: S3Bucket, files: str, end: str
) -> None:
    script = "trap '' TERM\n" + WORK + "while :; do sleep 0.1; done"
    box = boxes.start(script, **NEVER_BY_ITSELF)
    never_flushed(box, s3_bucket, files)
    if end == "kill":
        box.kill()
        code = box.wait()
    else:
        code = box.stop(1)
    assert code == SIGKILLED
    assert s3_bucket.listing(files) == []
    assert boxes.run(COUNT) == COUNTED
    assert len([name for name in s3_bucket.listing(files) if "/src/" in name]) == FILES


def test_a_killed_container_that_is_started_again_goes_on(
    boxes: Boxes, s3_bucket: S3Bucket, files: str, podman: Podman
) -> None:
    """What the dead daemon left below /run is no hindrance, also when its pid is used again."""
    script = "[ -e done ] || { " + WORK + "}\necho again >> starts; while :; do sleep 0.1; done"
    box = boxes.start(script, **NEVER_BY_ITSELF, WORKSPACE_STOP_GRACE=str(ENOUGH))
    box.wait_for("test", "-e", "/workspace/starts")
    box.kill()
    assert box.wait() == SIGKILLED
    podman.call("start", box.name)
    box.wait_for("sh", "-c", "[ $(wc -l < /workspace/starts) = 2 ]")
    assert box.stop(ENOUGH) == 128 + 15, box.logs()
    assert s3_bucket.get(files + "starts").body == b"again\nagain\n"


def test_short_of_memory_the_agent_goes_and_its_work_is_saved(
    boxes: Boxes, s3_bucket: S3Bucket, files: str
) -> None:
    script = WORK + "exec python3 -c 'x = bytearray(1 << 30)'"
    box = boxes.start(script, "--memory=400m", "--memory-swap=400m", **NEVER_BY_ITSELF)
    assert box.wait() == SIGKILLED, box.logs()
    assert len([name for name in s3_bucket.listing(files) if "/src/" in name]) == FILES


def test_short_of_memory_and_all_of_the_container_killed_loses_nothing(
    boxes: Boxes, s3_bucket: S3Bucket, files: str
) -> None:
    """The kernel's choice is the first process: all others go with it, the daemon in the middle."""
    # Many small ones, so that none outweighs the first process's score.
    hog = "for i in 1 2 3 4 5 6 7 8; do python3 -c 'x = bytearray(80 << 20); input()' <fifo & done"
    script = WORK + f"mkfifo fifo; while [ ! -e go ]; do sleep 0.1; done; exec 9<>fifo; {hog}; wait"
    box = boxes.start(script, "--memory=400m", "--memory-swap=400m", **NEVER_BY_ITSELF)
    never_flushed(box, s3_bucket, files)
    first = int(box.state()["Pid"])
    Path(f"/proc/{first}/oom_score_adj").write_text("1000")
    box.exec("touch", "/workspace/go", user="agent")
    assert box.wait() == SIGKILLED, box.logs()
    assert s3_bucket.listing(files) == []
    assert boxes.run(COUNT) == COUNTED


def test_a_lost_cache_volume_is_the_last_seal(
    boxes: Boxes, podman: Podman, s3_bucket: S3Bucket, files: str
) -> None:
    script = WORK + "while [ ! -e more ]; do sleep 0.1; done; echo new > unsaved; : > done2;"
    box = boxes.start(script + "while :; do sleep 0.1; done", **NEVER_BY_ITSELF)
    never_flushed(box, s3_bucket, files)
    box.exec("s3ws", "sync", "/workspace")
    box.exec("touch", "/workspace/more", user="agent")
    box.wait_for("test", "-e", "/workspace/done2")
    box.kill()
    assert box.wait() == SIGKILLED
    box.remove()
    podman.call("volume", "rm", boxes.volume)
    # The killed one can't give its lease back: the platform, which knows that it is dead, says so.
    found = boxes.run(COUNT + "; ls unsaved more 2>&1 | grep -c cannot", WORKSPACE_TAKE_OVER="1")
    assert found == [*COUNTED, "2"]


def test_a_store_that_is_away_is_exit_code_7_with_the_list(
    boxes: Boxes, s3_bucket: S3Bucket, files: str
) -> None:
    script = WORK + "while :; do sleep 0.1; done"
    box = boxes.start(script, **NEVER_BY_ITSELF, WORKSPACE_STOP_GRACE="10")
    never_flushed(box, s3_bucket, files)
    server = s3_bucket.server
    server.stop()
    try:
        assert box.stop(ENOUGH) == 7, box.logs()
        said = box.logs()
        assert "src/10.txt" in said
        assert "NOT everything is in the bucket" in said
    finally:
        server.start()
    assert boxes.run(COUNT) == COUNTED


def test_two_containers_of_one_workspace_are_kept_apart(
    boxes: Boxes, podman: Podman, settings: dict[str, str]
) -> None:
    box = boxes.start("while :; do sleep 0.1; done")
    box.wait_healthy()
    code, _, err = podman.run("true", options=MAY_MOUNT, env=settings)
    assert code == 16, err
    assert "Traceback" not in err
