"""packaging/kubernetes.yaml, played by `podman kube play`.

This podman knows neither native sidecars nor probes without systemd: the sidecar becomes an
ordinary container of the pod, and the test asks what its startupProbe would ask, and runs its
preStop.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.buckets import S3Bucket
from tests.support.mounting import REPOSITORY
from tests.support.podman import IMAGE, Container, Podman, shared_directory

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the first test waits for the image
]

FILE: Final = REPOSITORY / "packaging/kubernetes.yaml"
ENOUGH: Final = 120


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text()))


def sidecar_of(pod: dict[str, Any]) -> dict[str, Any]:
    [sidecar] = pod["spec"]["initContainers"]
    found: dict[str, Any] = sidecar
    return found


def test_the_sidecar_starts_before_the_agent_and_ends_after_it() -> None:
    *_, pod = documents()
    sidecar = sidecar_of(pod)
    assert sidecar["restartPolicy"] == "Always", "this makes it a native sidecar"
    assert sidecar["startupProbe"], "the agent waits for this"
    env = {each["name"]: each.get("value") for each in sidecar["env"]}
    assert int(env["WORKSPACE_STOP_GRACE"]) < pod["spec"]["terminationGracePeriodSeconds"]
    [agent] = pod["spec"]["containers"]
    assert "privileged" not in agent["securityContext"]
    modes = [
        mount["mountPropagation"]
        for container in (sidecar, agent)
        for mount in container["volumeMounts"]
        if mount["name"] == "workspaces"
    ]
    assert modes == ["Bidirectional", "HostToContainer"]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """What the kubelet makes of an emptyDir: a shared directory of the host."""
    with shared_directory(tmp_path / "workspaces") as path:
        yield path


def test_the_pod_works_and_its_end_saves_all(
    request: pytest.FixtureRequest,
    podman: Podman,
    s3_bucket: S3Bucket,
    user: str,
    files: str,
    shared: Path,
    tmp_path: Path,
) -> None:
    secret, claim, pod = documents()
    spec = pod["spec"]
    sidecar = sidecar_of(pod)
    keys = {
        "access-key": s3_bucket.env["AWS_ACCESS_KEY_ID"],
        "secret-key": s3_bucket.env["AWS_SECRET_ACCESS_KEY"],
    }
    assert secret["stringData"].keys() == keys.keys()
    # This podman reads a secret for the environment as JSON, and stores a played one as YAML.
    stored = tmp_path / "secret.json"
    stored.touch(mode=0o600)
    stored.write_text(
        json.dumps({name: base64.b64encode(key.encode()).decode() for name, key in keys.items()})
    )
    values = {
        "AWS_ENDPOINT_URL_S3": s3_bucket.env["AWS_ENDPOINT_URL_S3"],
        "WORKSPACE_BUCKET": s3_bucket.env["WORKSPACE_BUCKET"],
        "WORKSPACE_USER_ID": user,
        "WORKSPACE_CONVERSATION_ID": "conversation",
    }
    for each in sidecar["env"]:
        if each["name"] in values:
            each["value"] = values[each["name"]]
    sidecar["image"] = IMAGE
    for image in (sidecar, *spec["containers"]):
        image["imagePullPolicy"] = "Never"
    # An ordinary container for this podman, and an emptyDir that is the shared directory.
    del sidecar["restartPolicy"], sidecar["startupProbe"], sidecar["livenessProbe"]
    spec["containers"].insert(0, sidecar)
    del spec["initContainers"]
    spec["hostNetwork"] = True
    [agent] = spec["containers"][1:]
    agent["command"] = [
        "sh",
        "-c",
        "while ! mountpoint -q /workspaces/workspace; do sleep 0.1; done;"
        "cd /workspaces/workspace && id -u > who; while :; do sleep 0.1; done",
    ]
    for volume in spec["volumes"]:
        if "emptyDir" in volume:
            del volume["emptyDir"]
            volume["hostPath"] = {"path": str(shared), "type": "Directory"}
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(yaml.safe_dump_all([claim, pod]))

    def remove() -> None:
        podman.call("pod", "rm", "--force", "--time", "0", "agent-test-123", ok=None)
        podman.call("secret", "rm", "s3ws-store", ok=None)
        podman.call("volume", "rm", claim["metadata"]["name"], ok=None)

    request.addfinalizer(remove)
    podman.call("secret", "create", "s3ws-store", stored)
    podman.call("kube", "play", manifest)
    workspace = Container(podman, "agent-test-123-workspace")
    workspace.wait_for(
        *documents()[-1]["spec"]["initContainers"][0]["startupProbe"]["exec"]["command"]
    )
    beside = Container(podman, "agent-test-123-agent")
    beside.wait_for("test", "-s", "/workspaces/workspace/who", user="10001")
    workspace.exec(*sidecar["lifecycle"]["preStop"]["exec"]["command"])
    assert s3_bucket.get(files + "who").body == b"10001\n"
    beside.exec("sh", "-c", "echo last > /workspaces/workspace/last", user="10001")
    beside.stop(0)
    assert workspace.stop(ENOUGH) == 0, workspace.logs()
    assert s3_bucket.get(files + "last").body == b"last\n"
