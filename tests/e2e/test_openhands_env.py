"""The .env file of an OpenHands installation serves as it is: a shell reads it, then `s3ws`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.core.errors import ExitCode
from tests.support.buckets import LocalBucket, S3Bucket
from tests.support.host import QUICK, Host
from tests.support.mounting import require_fuse

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

CONVERSATION = "0f8fad5b-d9cb-469f-a165-70867728950e"
KEY = "workspace/files/kept.txt"

S3_FILES = {
    "all names": """
        FILE_STORE=s3
        FILE_STORE_PATH={bucket}
        AWS_S3_BUCKET={bucket}
        AWS_S3_ENDPOINT=http://{address}
        AWS_S3_SECURE=false
    """,
    "an address without scheme": """
        FILE_STORE=s3
        FILE_STORE_PATH={bucket}
        AWS_S3_ENDPOINT={address}
        AWS_S3_SECURE=false
    """,
    "AWS_S3_SECURE decides": """
        FILE_STORE=S3
        FILE_STORE_PATH=~/.openhands
        AWS_S3_BUCKET={bucket}
        AWS_S3_ENDPOINT=https://{address}
        AWS_S3_SECURE=False
    """,
    "our own names win": """
        FILE_STORE=local
        FILE_STORE_PATH=/nowhere
        AWS_S3_BUCKET=no-such-bucket
        AWS_S3_ENDPOINT=http://192.0.2.1:9
        WORKSPACE_STORAGE_TYPE=s3
        WORKSPACE_BUCKET={bucket}
        AWS_ENDPOINT_URL_S3=http://{address}
    """,
}


class Installation:
    """A host that has its settings in .env, and what every host has besides."""

    def __init__(self, base: Path, user: str, text: str) -> None:
        ours = {"WORKSPACE_USER_ID": user, "WORKSPACE_CONVERSATION_ID": CONVERSATION}
        self.host = Host(base, {}, user=user, settings={**QUICK, **ours})
        self.dotenv = base / ".env"
        lines = [line.strip() for line in text.strip().splitlines()]
        self.dotenv.write_text("# OpenHands\n" + "\n".join(lines) + "\n")

    def s3ws(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `s3ws` with what a shell makes of the file."""
        script = 'set -a; . "$0"; set +a; exec "$@"'
        command = [sys.executable, "-m", "s3ws_fs", *map(str, words)]
        return subprocess.run(
            ["bash", "-c", script, str(self.dotenv), *command],
            env=self.host.env,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    def works(self) -> None:
        """Mount, write, unmount."""
        require_fuse()
        mounted = self.s3ws("mount", self.host.mountpoint)
        assert mounted.returncode == 0, mounted.stderr
        (self.host.mountpoint / "kept.txt").write_text("kept")
        saved = self.s3ws("umount", self.host.mountpoint)
        assert saved.returncode == 0, saved.stderr


@pytest.fixture
def installed(tmp_path: Path, user: str) -> Iterator[list[Installation]]:
    """Put into this list what has to be ended."""
    made: list[Installation] = []
    yield made
    for each in made:
        each.host.end()


def on_s3(base: Path, user: str, bucket: S3Bucket, text: str) -> Installation:
    server = bucket.server
    address = server.endpoint_url.removeprefix("http://")
    keys = f"""
        AWS_ACCESS_KEY_ID={server.access_key}
        AWS_SECRET_ACCESS_KEY={server.secret_key}
        AWS_DEFAULT_REGION={server.region}
    """
    filled = text.format(bucket=server.bucket, address=address)
    return Installation(base, user, filled.rstrip() + keys)


@pytest.mark.s3
@pytest.mark.parametrize("name", S3_FILES)
def test_a_bucket(
    name: str, s3_bucket: S3Bucket, tmp_path: Path, user: str, installed: list[Installation]
) -> None:
    installation = on_s3(tmp_path / "host", user, s3_bucket, S3_FILES[name])
    installed.append(installation)
    installation.works()
    conversation = CONVERSATION.replace("-", "")
    key = f"conversations/{user}/{conversation}/{KEY}"
    assert s3_bucket.get(key).body == b"kept"


@pytest.mark.s3
def test_a_secure_endpoint_that_is_none_is_refused(
    s3_bucket: S3Bucket, tmp_path: Path, user: str, installed: list[Installation]
) -> None:
    text = S3_FILES["all names"].replace("SECURE=false", "SECURE=true")
    installation = on_s3(tmp_path / "host", user, s3_bucket, text)
    installed.append(installation)
    refused = installation.s3ws("mount", installation.host.mountpoint)
    assert refused.returncode == ExitCode.STORE, refused.stderr
    assert "SSL" in refused.stderr or "TLS" in refused.stderr


def test_a_directory(
    local_bucket: LocalBucket, tmp_path: Path, user: str, installed: list[Installation]
) -> None:
    text = f"FILE_STORE=local\nFILE_STORE_PATH='{local_bucket.root}'"
    installation = Installation(tmp_path / "host", user, text)
    installed.append(installation)
    installation.works()
    conversation = CONVERSATION.replace("-", "")
    assert local_bucket.get(f"conversations/{user}/{conversation}/{KEY}").body == b"kept"


def test_a_store_that_we_do_not_have_is_named(
    tmp_path: Path, user: str, installed: list[Installation]
) -> None:
    installation = Installation(tmp_path / "host", user, "FILE_STORE=google_cloud")
    installed.append(installation)
    refused = installation.s3ws("mount", installation.host.mountpoint)
    assert refused.returncode == ExitCode.BAD_SETTINGS
    assert "FILE_STORE" in refused.stderr
