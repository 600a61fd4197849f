"""The real OpenHands SDK on a workspace of ours: run, finish, unmount, mount elsewhere, resume.

The program (tests/support/openhands_program.py) runs in a virtual environment of its own, as the
SDK needs Python 3.12: `scripts/setup openhands` makes it. Nothing is flushed by itself here, so
that what stands in the bucket was put there by a hook, or by the unmounting.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from s3ws_fs.control import registry
from s3ws_fs.fuse import table
from tests.support.buckets import S3Bucket
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host, kill_all
from tests.support.mounting import REPOSITORY, clear_mountpoint, require_fuse
from tests.support.openhands_sdk import end_what_it_left, openhands_env, require_openhands

PROGRAM: Final = REPOSITORY / "tests/support/openhands_program.py"
LINE_S_MAX: Final = 120.0
CONVERSATION: Final = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
FILES: Final = "workspace/files"

pytestmark = [pytest.mark.e2e, pytest.mark.fuse, pytest.mark.s3, pytest.mark.slow]


class Program:
    """One run of it on a host, told by its JSON lines."""

    def __init__(self, python: str, host: Host, phase: str, conversation: str) -> None:
        self.log = host.base / f"{phase}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-P", str(PROGRAM), phase, conversation, str(host.base / "workspaces")],
                env=host.env,
                cwd=host.base,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def expect(self, what: str) -> dict[str, Any]:
        """Its next line, which has to be of this kind."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("S3WS "):
                said: dict[str, Any] = json.loads(line.removeprefix("S3WS "))
                assert said["what"] == what, said
                return said
        raise AssertionError(f"it ended ({self.process.wait()}):\n{self.log.read_text()[-6000:]}")

    def go_on(self) -> None:
        """The test has looked."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """It ends well."""
        code = self.process.wait(LINE_S_MAX)
        assert code == 0, self.log.read_text()[-6000:]

    def end(self) -> None:
        """Nothing is left of it."""
        if self.process.poll() is None:
            self.process.kill()
        with self.process:
            pass


@contextlib.contextmanager
def ended(host: Host) -> Iterator[Host]:
    """End what was mounted on it, and what the SDK left behind."""
    try:
        yield host
    finally:
        for info in registry.list_mounts(str(host.runtime))[0]:
            mountpoint = Path(info.mountpoint)
            if info.is_alive():
                kill_all(info, meanwhile=partial(clear_mountpoint, mountpoint))
            clear_mountpoint(mountpoint)
        end_what_it_left(host.base)


def new_host(base: Path, bucket: S3Bucket, user: str) -> Host:
    """A host whose settings are those of an OpenHands installation."""
    server = bucket.server
    settings = {
        **QUICK,
        **NEVER_BY_ITSELF,
        **openhands_env(base),
        "FILE_STORE": "s3",
        "FILE_STORE_PATH": server.bucket,
        "AWS_S3_BUCKET": server.bucket,
        "AWS_S3_ENDPOINT": server.endpoint_url.removeprefix("http://"),
        "AWS_S3_SECURE": "false",
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": server.region,
    }
    host = Host(base, {}, user=user, conversation=CONVERSATION, settings=settings)
    # Whose workspace it is, the program says.
    del host.settings["WORKSPACE_CONVERSATION_ID"]
    return host


def texts(said: dict[str, Any], tool: str) -> list[str]:
    """What a tool answered; none of it is an error."""
    found = [each for each in said["observations"] if each["tool"] == tool]
    assert [each["text"] for each in found if each["is_error"]] == []
    return [each["text"] for each in found]


def hooks_of(said: dict[str, Any]) -> list[tuple[str, str]]:
    """Which hooks ran, and what they said; none failed, none kept the agent from anything."""
    bad = [h for h in said["hooks"] if h["exit_code"] or not h["success"] or h["blocked"]]
    assert bad == []
    return [(hook["event"], hook["stdout"].partition(": ")[2].strip()) for hook in said["hooks"]]


def changed(host: Host, mountpoint: str, turn: str) -> dict[str, str]:
    """How a turn changed what is in project/src, by path."""
    found = host.json("diff", "--turn", turn, "-m", mountpoint)["changes"]
    paths = {change["name"]: change["kind"] for change in found}
    return {path: how for path, how in paths.items() if path.startswith("project/src/")}


@pytest.mark.timeout(600)
def test_a_conversation_goes_on_elsewhere(s3_bucket: S3Bucket, tmp_path: Path, user: str) -> None:
    require_fuse()
    python = require_openhands()
    conversation = uuid.UUID(CONVERSATION).hex
    files = f"conversations/{user}/{conversation}/{FILES}"
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(ended(new_host(tmp_path / "one", s3_bucket, user)))
        program = Program(python, one, "work", CONVERSATION)
        stack.callback(program.end)

        opened = program.expect("opened")
        assert opened["conversation"] == CONVERSATION
        assert (opened["events"], opened["status"]) == (0, "idle")
        mountpoint = opened["mountpoint"]
        assert mountpoint.endswith(f"/{user}/{conversation}")
        assert table.is_mounted(mountpoint)

        finished = program.expect("finished")
        assert finished["status"] == "finished"
        assert "hello, earth" in texts(finished, "terminal")[-1]
        texts(finished, "file_editor")
        start, turn, stop = hooks_of(finished)
        assert start == ("SessionStart", "the workspace is ready, sealed 0")
        assert turn == ("UserPromptSubmit", "turn 1 begins")
        assert stop[0] == "Stop"
        assert stop[1].startswith("turn 1 has ended, everything is saved")
        # The agent has finished, nothing is unmounted, and nothing is flushed but by hooks.
        assert s3_bucket.get(f"{files}/project/src/greet.py").body == b"print('hello, earth')\n"
        assert s3_bucket.get(f"{files}/project/out.txt").body == b"hello, earth\n"
        assert s3_bucket.get(f"{files}/conversations/{conversation}/base_state.json").body
        marks = one.json("snapshots", mountpoint)["snapshots"]
        assert [mark["ref"] for mark in marks] == ["turn:1:begin", "turn:1:end"]
        assert changed(one, mountpoint, "1") == {"project/src/greet.py": "added"}

        program.go_on()
        closed = program.expect("closed")
        assert hooks_of(closed)[-1][0] == "SessionEnd"
        program.go_on()
        assert program.expect("triggered")["result"]["sealed"] > 0
        # A hook that fails keeps the agent from nothing.
        unmounted = program.expect("unmounted")
        assert (unmounted["may_stop"], unmounted["may_ask"]) == (True, True)
        assert unmounted["codes"] == [1]
        assert "is not mounted" in unmounted["stderr"]
        program.wait()
        assert not table.is_mounted(mountpoint)
        shutil.rmtree(one.cache)

        two = stack.enter_context(ended(new_host(tmp_path / "two", s3_bucket, user)))
        program = Program(python, two, "resume", conversation)
        stack.callback(program.end)
        opened = program.expect("opened")
        assert opened["conversation"] == CONVERSATION
        assert opened["events"] == closed["events"]
        assert opened["actions"] == ["terminal", "file_editor", "file_editor", "terminal", "finish"]
        assert opened["mountpoint"] != mountpoint

        finished = program.expect("finished")
        assert finished["status"] == "finished"
        looked, greeted = texts(finished, "terminal")[-2:]
        assert "by the terminal" in looked
        assert "greet" in looked
        # The conversation's own files are no part of the agent's repository.
        assert "conversations" not in looked.partition("greet")[2].partition("[")[0]
        assert "hello, earth" in texts(finished, "file_editor")[-2]
        assert "hello, moon" in greeted
        assert hooks_of(finished)[-1][1].startswith("turn 2 has ended, everything is saved")
        assert s3_bucket.get(f"{files}/project/src/greet.py").body == b"print('hello, moon')\n"
        assert changed(two, opened["mountpoint"], "2") == {"project/src/greet.py": "modified"}

        program.go_on()
        program.expect("closed")
        program.go_on()
        program.expect("triggered")
        program.expect("unmounted")
        program.wait()
        assert os.listdir(opened["mountpoint"]) == []
