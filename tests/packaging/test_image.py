"""The image: what is in it, how it refuses, what its health check says."""

from __future__ import annotations

import json

import pytest

from tests.support.buckets import S3Bucket
from tests.support.containers import BASE_IMAGE
from tests.support.podman import IMAGE, Podman

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # the first test waits for the image
]

MAY_MOUNT = ("--device=/dev/fuse", "--cap-add=SYS_ADMIN")
LAYERS_MB_MAX = 260
"""What the image adds to its base."""


def test_it_is_small_and_holds_nothing_that_only_builds(podman: Podman) -> None:
    sizes = {}
    for name in (IMAGE, BASE_IMAGE):
        [found] = json.loads(podman.call("image", "inspect", name).stdout)
        sizes[name] = found["Size"]
    added_mb = (sizes[IMAGE] - sizes[BASE_IMAGE]) / 1e6
    print(f"the image adds {added_mb:.0f} MB to its base")
    assert added_mb < LAYERS_MB_MAX
    script = "command -v gcc pip cc pkg-config; ls /opt/s3ws/lib/python3.*/site-packages"
    code, out, err = podman.run("-c", script, options=["--entrypoint=sh"])
    assert code == 0, err
    names = set(out.split())
    assert {"boto3", "s3ws_fs"} <= names
    assert not names & {"pip", "setuptools", "Cython", "cython"}
    assert not [name for name in names if name.startswith("/")]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ((), "there is no /dev/fuse"),
        (("--device=/dev/fuse",), "lacks the capability SYS_ADMIN"),
        (("--user=10001", "--device=/dev/fuse"), "SYS_ADMIN"),
    ],
)
def test_a_container_that_may_not_mount_says_so_in_one_sentence(
    podman: Podman, settings: dict[str, str], options: tuple[str, ...], what: str
) -> None:
    code, out, err = podman.run("touch", "/ran", options=options, env=settings)
    assert code == 10
    assert out == ""
    [line] = err.splitlines()
    assert what in line or "can't be opened" in line
    assert line.endswith("--device /dev/fuse --cap-add SYS_ADMIN")


def test_settings_that_are_missing_are_a_sentence_too(podman: Podman) -> None:
    code, _, err = podman.run("true", options=MAY_MOUNT, env={"WORKSPACE_BUCKET": "b"})
    assert code == 3
    assert "WORKSPACE_USER_ID" in err
    assert "Traceback" not in err


def test_the_command_is_nobody_special(
    podman: Podman, settings: dict[str, str], s3_bucket: S3Bucket, files: str
) -> None:
    script = """
        id -un; id -G; pwd; stat -c %U .
        env | grep -E 'AWS_(SECRET|ACCESS|SESSION)' && exit 90
        cat /proc/1/environ 2>/dev/null && exit 91
        ls /var/lib/s3ws 2>/dev/null && exit 92
        echo work > result.txt && git init -q repo && sync
        exit 42
    """
    code, out, err = podman.run("sh", "-c", script, options=MAY_MOUNT, env=settings)
    assert code == 42, err
    assert out.split() == ["agent", "10001", "/workspace", "agent"]
    assert s3_bucket.get(files + "result.txt").body == b"work\n"
    assert files + "repo/.git/HEAD" in s3_bucket.listing(files)


def test_a_whole_container_of_a_plain_user_works_by_fusermount3(
    podman: Podman, settings: dict[str, str], s3_bucket: S3Bucket, files: str
) -> None:
    settings = settings | {"WORKSPACE_CACHE_DIR": "/home/agent/cache", "HOME": "/home/agent"}
    settings["WORKSPACE_RUNTIME_DIR"] = "/home/agent/run"
    wrapper = "exec /opt/s3ws/bin/s3ws-entrypoint sh -c 'id -u; echo work > result.txt'"
    prepared = (
        "chmod 666 /dev/fuse && exec setpriv --reuid 10001 --regid 10001 --clear-groups sh -c"
    )
    options = [*MAY_MOUNT, "--entrypoint=sh"]
    code, out, err = podman.run("-c", f'{prepared} "{wrapper}"', options=options, env=settings)
    assert code == 0, err
    assert out.split() == ["10001"]
    assert s3_bucket.get(files + "result.txt").body == b"work\n"


def test_the_health_check_tells_a_mount_from_none(podman: Podman, settings: dict[str, str]) -> None:
    [found] = json.loads(podman.call("image", "inspect", IMAGE).stdout)
    assert found["Healthcheck"]["Test"] == ["CMD", "/opt/s3ws/bin/s3ws-entrypoint", "--health"]
    box = podman.start("sleep", "1000", options=MAY_MOUNT, env=settings)
    box.wait_healthy()
    box.exec("umount", "--lazy", "/workspace")
    box.wait_for("sh", "-c", "! s3ws-entrypoint --health")
    assert "not mounted" in box.exec("s3ws-entrypoint", "--health", ok=1)
    assert box.is_running()
    assert box.stop(20) == 128 + 15, box.logs()
