"""A workspace for an agent in a stock container, which has neither /dev/fuse nor any capability.

Shape b: the mount is a sidecar's (or the host's), and reaches the agent by mount propagation.
Shape c: the mount is the host's, and the agent gets it as a plain directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from s3ws_fs.fuse import table
from tests.support.buckets import S3Bucket
from tests.support.containers import BASE_IMAGE
from tests.support.host import NEVER_BY_ITSELF, HostMaker
from tests.support.podman import Container, Podman, shared_directory

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the first test waits for the image
]

MAY_MOUNT = ("--device=/dev/fuse", "--cap-add=SYS_ADMIN")
ENOUGH = 120
UID = "10001"
OTHER_UID = "4711"
"""Of an agent's image that knows nothing of ours."""
AGENT = """
    while ! grep -q ' {path} fuse.s3ws ' /proc/mounts; do sleep 0.1; done
    cd {path} && echo "by $(id -u)" > agent.txt && mkdir -p sub && : > sub/empty
    while :; do sleep 0.1; done
"""


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host for all workspaces, as /srv/s3ws."""
    with shared_directory(tmp_path / "srv") as path:
        yield path


class Pair:
    """A sidecar and an agent that share `directory`; the workspace is its `conversation`."""

    def __init__(self, podman: Podman, settings: dict[str, str], shared: Path, uid: str) -> None:
        self.podman = podman
        self.shared = shared
        self.path = shared / "conversation"
        self.uid = uid
        self.cache = podman.call("volume", "create").stdout.strip()
        self.settings = settings | {
            "WORKSPACE_MOUNTPOINT": "/srv/s3ws/conversation",
            "WORKSPACE_RUN_AS": f"{uid}:{uid}",
            "WORKSPACE_STOP_GRACE": str(ENOUGH),
            "WORKSPACE_COMMAND_GRACE": "3",
        }

    def sidecar(self, **env: str) -> Container:
        options = [*MAY_MOUNT, f"--volume={self.cache}:/var/lib/s3ws"]
        options.append(f"--volume={self.shared}:/srv/s3ws:rshared")
        return self.podman.start(options=options, env=self.settings | env)

    def agent(self, *volumes: str, script: str = AGENT, path: str = "/workspace") -> Container:
        """A stock container, of a uid of its own, with no rights at all."""
        options = [f"--user={self.uid}", "--cap-drop=all", "--security-opt=no-new-privileges"]
        options += [f"--volume={volume}" for volume in volumes]
        command = ["sh", "-c", script.format(path=path)]
        return self.podman.start(*command, image=BASE_IMAGE, options=options)

    def wrote(self, agent: Container, path: str = "/workspace") -> None:
        agent.wait_for("test", "-e", f"{path}/sub/empty", user=self.uid)


@pytest.fixture(params=[UID, OTHER_UID])
def pair(
    request: pytest.FixtureRequest, podman: Podman, settings: dict[str, str], shared: Path
) -> Pair:
    return Pair(podman, settings, shared, request.param)


@pytest.fixture
def one_pair(podman: Podman, settings: dict[str, str], shared: Path) -> Pair:
    return Pair(podman, settings, shared, UID)


def test_a_sidecar_mounts_for_a_stock_container_that_started_before_it(
    pair: Pair, s3_bucket: S3Bucket, files: str
) -> None:
    pair.path.mkdir()
    agent = pair.agent(f"{pair.path}:/workspace:rw,rslave")
    sidecar = pair.sidecar(**NEVER_BY_ITSELF)
    sidecar.wait_healthy()
    pair.wrote(agent)
    assert table.is_mounted(str(pair.path)), "the host sees it as well"
    # The order that every runtime keeps: the agent first, then what saves its work.
    agent.stop(0)
    assert s3_bucket.listing(files) == []
    assert sidecar.stop(ENOUGH) == 0, sidecar.logs()
    assert s3_bucket.get(files + "agent.txt").body == f"by {pair.uid}\n".encode()
    assert s3_bucket.get(files + "agent.txt").metadata["uid"] == pair.uid
    assert not table.is_mounted(str(pair.path))


def test_a_container_that_starts_after_the_mount_sees_it_too(
    one_pair: Pair, s3_bucket: S3Bucket, files: str
) -> None:
    sidecar = one_pair.sidecar(**NEVER_BY_ITSELF)
    sidecar.wait_healthy()
    agent = one_pair.agent(f"{one_pair.path}:/workspace:rw,rslave")
    one_pair.wrote(agent)
    agent.stop(0)
    assert sidecar.stop(ENOUGH) == 0, sidecar.logs()
    assert s3_bucket.get(files + "agent.txt").body == f"by {UID}\n".encode()


@pytest.mark.parametrize("how", ["bound before the mount", "bound after the mount"])
def test_a_sidecar_that_has_to_end_first_saves_all_that_the_agent_was_told_is_written(
    one_pair: Pair, s3_bucket: S3Bucket, files: str, how: str
) -> None:
    volume = f"{one_pair.path}:/workspace:rw,rslave"
    one_pair.path.mkdir()
    agents = [one_pair.agent(volume)] if how == "bound before the mount" else []
    sidecar = one_pair.sidecar(**NEVER_BY_ITSELF)
    sidecar.wait_healthy()
    agent = agents[0] if agents else one_pair.agent(volume)
    one_pair.wrote(agent)
    assert agent.is_running()
    assert sidecar.stop(ENOUGH) == 0, sidecar.logs()
    assert s3_bucket.get(files + "agent.txt").body == f"by {UID}\n".encode()
    assert not agent.succeeds("touch", "/workspace/more", user=UID), "it is cut off"


def test_an_agent_outlives_its_sidecar_where_the_directory_above_is_bound(
    one_pair: Pair, s3_bucket: S3Bucket, files: str
) -> None:
    """The sidecar is killed; the next one clears what it left, and goes on with its cache."""
    path = "/workspaces/conversation"
    agent = one_pair.agent(f"{one_pair.shared}:/workspaces:rw,rslave", path=path)
    sidecar = one_pair.sidecar(**NEVER_BY_ITSELF)
    sidecar.wait_healthy()
    one_pair.wrote(agent, path)
    sidecar.kill()
    sidecar.wait()
    assert not agent.succeeds("ls", path, user=UID), "nobody answers there"
    following = one_pair.sidecar()
    following.wait_healthy()
    assert agent.exec("cat", f"{path}/agent.txt", user=UID) == f"by {UID}\n"
    agent.exec("touch", f"{path}/after", user=UID)
    agent.stop(0)
    assert following.stop(ENOUGH) == 0, following.logs()
    assert files + "after" in s3_bucket.listing(files)


def test_a_host_mount_is_a_plain_directory_to_a_container(
    podman: Podman, s3_bucket: S3Bucket, new_host: HostMaker
) -> None:
    """No propagation: bound after the mount, ended before it, as an engine does with -v."""
    host = new_host(
        s3_bucket,
        settings={
            **NEVER_BY_ITSELF,
            "WORKSPACE_ROOT_UID": OTHER_UID,
            "WORKSPACE_ROOT_GID": OTHER_UID,
        },
    )
    host.mount()
    script = "id -u; echo kept > here.txt; stat -c %u here.txt; df . | grep -c s3ws"
    options: Sequence[str] = [
        f"--user={OTHER_UID}",
        "--cap-drop=all",
        "--workdir=/workspace",
        f"--volume={host.mountpoint}:/workspace",
    ]
    code, out, err = podman.run("sh", "-c", script, image=BASE_IMAGE, options=options)
    assert code == 0, err
    assert out.split() == [OTHER_UID, OTHER_UID, "1"]
    assert (host.mountpoint / "here.txt").read_text() == "kept\n"
    host.umount()
    assert s3_bucket.get(host.prefix + "files/here.txt").body == b"kept\n"
