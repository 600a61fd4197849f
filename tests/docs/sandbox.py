"""A place in which the documents' commands are run as they stand: a fresh clone, a home, a bucket.

Invariants
1. The bucket is on a real SeaweedFS, the mounts are real; all else stands below one directory.
2. What is exchanged before a command runs is listed in `places`, and exchanged back in its output.
3. `end` leaves nothing behind: mounts are ended by the process ids in their own registry.
4. A document is one shell: what a command exports or where it goes holds for those after it.

Called by tests/docs/test_run.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from s3ws_fs.control import registry
from tests.docs.reading import ROOT
from tests.docs.shell import Step
from tests.support.host import QUICK, kill_all
from tests.support.mounting import clear_mountpoint
from tests.support.programs import GIT_ENV
from tests.support.seaweed import Seaweed

SCRIPT_S_MAX: Final = 600.0
_FOREIGN: Final = ("WORKSPACE_", "AWS_", "FILE_STORE", "S3WS_", "OH_", "XDG_", "VIRTUAL_ENV")
_LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")

HELPERS: Final = {
    "s3ws": 'exec {python} -m s3ws_fs "$@"',
    "python3": 'exec {python} "$@"',
    "aws": 'exec {python} -m tests.docs.aws "$@"',
    "sudo": 'exec "$@"',
}
"""Programs of the sandbox. aws is a stand-in for the parts of the AWS command that documents use;
sudo is what it is for root."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step; `printed` is standard output and error together."""

    step: Step
    status: int
    printed: str


class Sandbox:
    """One document's place. `name` makes its user in the bucket."""

    def __init__(self, base: Path, server: Seaweed, name: str) -> None:
        self.base = base
        self.user = f"alice-{re.sub(r'[^a-z]+', '-', name.lower()).strip('-')}"
        self.clone, self.bin, self.run_dir = base / "clone", base / "bin", base / "run"
        for directory in (
            self.bin,
            base / "home",
            base / "tmp",
            base / "root" / "srv",
            base / "root" / "mnt",
        ):
            directory.mkdir(parents=True)
        self.places = {
            r"(?<![\w/.~}*-])/tmp\b": f"{base}/tmp",
            r"\bmy-bucket\b": server.bucket,
            r"http://localhost:9000\b": server.endpoint_url,
            r"AWS_ACCESS_KEY_ID=…": f"AWS_ACCESS_KEY_ID={server.access_key}",
            r"AWS_SECRET_ACCESS_KEY=…": f"AWS_SECRET_ACCESS_KEY={server.secret_key}",
            r"\balice\b": self.user,
            r"(?<![\w/.~}*-])/(?=(?:workspace|look|srv|mnt)\b)": f"{base}/root/",
        }
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)},
            **GIT_ENV,
            **QUICK,
            **server.env,
            "HOME": str(base / "home"),
            "TMPDIR": str(base / "tmp"),
            "PATH": f"{self.bin}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
            "WORKSPACE_STORAGE_TYPE": "s3",
            "WORKSPACE_BUCKET": server.bucket,
            "WORKSPACE_USER_ID": self.user,
            "WORKSPACE_CONVERSATION_ID": "test-123",
            "WORKSPACE_CACHE_DIR": str(base / "cache"),
            "WORKSPACE_RUNTIME_DIR": str(self.run_dir),
        }
        for program, line in HELPERS.items():
            path = self.bin / program
            path.write_text(f"#!/bin/sh\n{line.format(python=shlex.quote(sys.executable))}\n")
            path.chmod(0o755)
        self._make_clone()

    def _make_clone(self) -> None:
        """The files of this repository, and its environment under the clone's own name."""
        shutil.copytree(ROOT, self.clone, symlinks=True, ignore=_LEFT_OUT)
        real, ours = Path(sys.prefix), self.clone / ".venv"
        ours.mkdir()
        for path in real.iterdir():
            if path.name in ("bin", "lib", "lib64", "include"):
                (ours / path.name).symlink_to(path)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(real / "pyvenv.cfg", ours)
        # What scripts/setup leaves when it is done: nothing is to be installed.
        stamp = subprocess.run(
            ["bash", "-c", "{ pwd; cat requirements/*.txt pyproject.toml; } | sha256sum"],
            cwd=self.clone, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        (ours / ".s3ws-setup").write_text(f"dev {stamp.stdout.split()[0]}\n")

    def exchanged(self, text: str) -> str:
        """Invariant 2."""
        for pattern, place in self.places.items():
            text = re.sub(pattern, place.replace("\\", r"\\"), text)
        return text

    def as_written(self, printed: str) -> str:
        """The output as the document would show it."""
        for place, written in (
            (f"{self.base}/root/", "/"), (f"{self.base}/tmp", "/tmp"), (self.user, "alice"),
            (self.env["AWS_ENDPOINT_URL_S3"], "http://localhost:9000"),
            (self.env["WORKSPACE_BUCKET"], "my-bucket"),
        ):  # fmt: skip
            printed = printed.replace(place, written)
        return printed

    def run(self, steps: Sequence[Step]) -> list[Outcome]:
        """Run them in one shell. Those after an end of the shell itself have no outcome."""
        mark = f"--- {secrets.token_hex(8)}"
        script = "".join(f"{self._line(step)}\nprintf '\\n{mark} %d\\n' \"$?\"\n" for step in steps)
        path, log = self.base / "script", self.base / "output"
        path.write_text(f"set -o pipefail\n{script}")
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "--noprofile", "--norc", str(path)],
                cwd=self.clone, env=self.env, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(SCRIPT_S_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                out.write(f"\nnot within {SCRIPT_S_MAX:g} s\n".encode())
        pieces = re.split(rf"\n{mark} (\d+)\n", log.read_text(errors="backslashreplace"))
        texts, statuses = pieces[0::2], [*map(int, pieces[1::2]), -1]
        return [
            Outcome(step, status, self.as_written(text))
            for step, status, text in zip(steps, statuses, texts, strict=False)
        ]

    def _line(self, step: Step) -> str:
        text = self.exchanged(step.command)
        if step.is_python:
            return f"python3 -m tests.docs.toplevel {shlex.quote(text)}"
        if step.goes_on:
            return f"python3 -m tests.docs.until_ended {shlex.quote(text)}"
        return text.rstrip("\n")

    def end(self) -> None:
        """Invariant 3. Nothing is saved by this."""
        for _, info in self.mounts():
            mountpoint = Path(info.mountpoint)
            if info.is_alive():
                kill_all(info, meanwhile=partial(clear_mountpoint, mountpoint))
            clear_mountpoint(mountpoint)

    def save(self) -> list[str]:
        """Unmount what the document left mounted: what was said by each that was not saved."""
        said = []
        for directory, info in self.mounts():
            done = subprocess.run(
                [self.bin / "s3ws", "umount", info.mountpoint],
                env={**self.env, "WORKSPACE_RUNTIME_DIR": directory},
                cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
            said += [] if done.returncode == 0 else [f"{info.mountpoint}: {done.stderr}"]
        return said

    def mounts(self) -> list[tuple[str, registry.MountInfo]]:
        """What is still mounted below this place: the directory of its socket, and what it is.

        ./quickstart minds no WORKSPACE_ variable: its mounts are where they are by default.
        """
        default = registry.default_runtime_dir({}, os.geteuid())
        return [
            (directory, info)
            for directory in (str(self.run_dir), os.path.realpath(default))
            for info in registry.list_mounts(directory)[0]
            if Path(info.mountpoint).is_relative_to(self.base)
        ]
