"""Hooks, run as OpenHands runs them: by a shell, in the workspace, with the event as input."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.integrations import openhands_hook
from s3ws_fs.integrations.openhands import ConversationWorkspace
from s3ws_fs.manager import LocalStorage, S3Storage
from tests.integrations.conftest import WorkspaceMaker
from tests.integrations.test_openhands import DASHED, FILES, HEX, marks
from tests.support.buckets import LocalBucket
from tests.support.fake_mounts import faked
from tests.support.mounting import wait_until
from tests.support.proxy import faulty_proxy
from tests.support.seaweed import Seaweed

TRAP = "raise SystemExit('code of the workspace was run')\n"

pytestmark = pytest.mark.fuse


def run(
    workspace: ConversationWorkspace, event: str, session: str = DASHED
) -> subprocess.CompletedProcess[str]:
    """As openhands.sdk.hooks.executor does it."""
    [[hook]] = [matcher["hooks"] for matcher in workspace.hook_config()[event]]
    said = {"event_type": event, "session_id": session, "working_dir": workspace.mountpoint}
    return subprocess.run(
        hook["command"],
        shell=True,
        cwd=workspace.mountpoint,
        env={**os.environ, "OPENHANDS_SESSION_ID": session, "AI_AGENT": "openhands"},
        input=json.dumps(said),
        capture_output=True,
        text=True,
        timeout=hook["timeout"],
        check=False,
    )


def said(workspace: ConversationWorkspace, event: str) -> str:
    """What a hook that succeeded said: text that OpenHands takes for no decision."""
    done = run(workspace, event)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("s3ws: ")
    return done.stdout.removeprefix("s3ws: ").strip()


def in_process(workspace: ConversationWorkspace, event: str, **changes: Any) -> int:
    config = workspace.manager.config
    words = [event, "--mountpoint", changes.get("mountpoint", workspace.mountpoint)]
    words += ["--runtime-dir", config.runtime_dir, "--timeout", str(changes.get("timeout_s", 60))]
    return openhands_hook.main(words)


def test_a_session_from_its_start_to_its_end(
    new_workspace: WorkspaceMaker, local_bucket: LocalBucket
) -> None:
    with new_workspace(DASHED) as workspace:
        top = Path(workspace.mountpoint)
        assert said(workspace, "session_start").startswith("the workspace is ready")
        assert said(workspace, "user_prompt_submit") == "turn 1 begins"
        (top / "a.txt").write_text("1")
        assert said(workspace, "user_prompt_submit") == "turn 1 goes on"
        assert said(workspace, "stop").startswith("turn 1 has ended, everything is saved: sealed")
        assert local_bucket.get(f"{FILES}/a.txt").body == b"1"
        assert said(workspace, "stop").startswith("everything is saved")
        assert said(workspace, "user_prompt_submit") == "turn 2 begins"
        # The agent did not finish.
        assert said(workspace, "session_end").startswith("turn 2 has ended")
        refs = [f"turn:{n}:{side}" for n in (1, 2) for side in ("begin", "end")]
        assert sorted(marks(workspace)) == refs


def test_nothing_in_the_workspace_is_imported(new_workspace: WorkspaceMaker) -> None:
    with new_workspace(DASHED) as workspace:
        for name in ("json.py", "argparse.py", "sitecustomize.py", "s3ws_fs/__init__.py"):
            path = Path(workspace.mountpoint) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(TRAP)
        for event in openhands_hook.EVENTS:
            said(workspace, event)


def test_another_conversations_session_is_told(new_workspace: WorkspaceMaker) -> None:
    with new_workspace(DASHED) as workspace:
        done = run(workspace, "session_start", "0" * 32)
        assert done.returncode == openhands_hook.FAILED
        assert f"is the workspace of conversation {HEX}" in done.stderr
        assert run(workspace, "session_start", HEX).returncode == 0


@pytest.mark.parametrize("event", openhands_hook.EVENTS)
def test_without_a_mount_it_fails_and_blocks_nothing(
    new_workspace: WorkspaceMaker, event: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(new_workspace(DASHED), event) == openhands_hook.FAILED
    assert "is not mounted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [[], ["stop"], ["no-such-event"], ["stop", "--mountpoint", "/x", "--unknown"], ["--help"]],
)
def test_a_command_that_is_not_understood_blocks_nothing(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert openhands_hook.main(words) == openhands_hook.FAILED
    assert "is not understood" in capsys.readouterr().err


def test_what_nobody_thought_of_blocks_nothing(
    new_workspace: WorkspaceMaker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def breaks(*_: object) -> str:
        raise RuntimeError("a\x1b[31mb")

    monkeypatch.setitem(openhands_hook.EVENTS, "stop", breaks)
    with new_workspace(DASHED) as workspace:
        assert in_process(workspace, "stop") == openhands_hook.FAILED
    assert capsys.readouterr().err == "s3ws: RuntimeError: a\\x1b[31mb\n"


def test_a_store_that_is_known_to_be_away_is_hardly_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openhands_hook, "DEGRADED_S", 0.2)
    with faked(tmp_path, monkeypatch) as place:
        monkeypatch.setenv("S3WS_FAKE", "silent")
        workspace = ConversationWorkspace(
            "conversation", "user", base_dir=tmp_path / "w", storage=LocalStorage(tmp_path)
        )
        workspace.mount()
        # With an hour's patience this would not end within the test's time.
        assert in_process(workspace, "stop", timeout_s=3600) == openhands_hook.FAILED
        told = capsys.readouterr().err
        assert told.startswith("s3ws: The store did not answer within 0.2 s: timeout\n"), told
        assert place.runtime_dir == workspace.manager.config.runtime_dir


@pytest.mark.s3
def test_after_an_outage_it_saves(
    own_host: Path, seaweed: Seaweed, user: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_proxy(seaweed.endpoint_url) as proxy:
        storage = S3Storage(
            bucket=seaweed.bucket,
            endpoint_url=proxy.url,
            region=seaweed.region,
            access_key=seaweed.access_key,
            secret_key=seaweed.secret_key,
        )
        with ConversationWorkspace(
            DASHED, user, base_dir=own_host / "w", storage=storage
        ) as workspace:
            assert in_process(workspace, "user_prompt_submit") == openhands_hook.OK
            (Path(workspace.mountpoint) / "a.txt").write_text("kept")
            proxy.refuse()
            try:
                assert in_process(workspace, "stop", timeout_s=30) == openhands_hook.FAILED
                assert capsys.readouterr().err.startswith("s3ws: ")
            finally:
                proxy.listen()
            wait_until(
                lambda: in_process(workspace, "stop", timeout_s=30) == openhands_hook.OK,
                timeout_s=60,
                what="it saves when the store is back",
            )
            assert "turn 1 has ended, everything is saved" in capsys.readouterr().out
