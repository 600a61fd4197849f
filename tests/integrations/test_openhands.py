"""ConversationWorkspace and trigger_workspace_sync, without OpenHands, on real mounts."""

from __future__ import annotations

import asyncio
import json
import shlex
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from s3ws_fs.control import client, registry
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.fuse import table
from s3ws_fs.integrations import openhands_hook
from s3ws_fs.integrations.openhands import (
    CONTAINER_PATH,
    CONTAINER_PROJECT,
    HOOK_MARGIN_S,
    IMAGE_UID,
    QUICK_HOOK_S,
    ConversationWorkspace,
    trigger_workspace_sync,
)
from s3ws_fs.manager import LocalStorage
from tests.integrations.conftest import WorkspaceMaker
from tests.support.buckets import LocalBucket
from tests.support.mounting import REPOSITORY
from tests.support.podman import SHELL_IMAGE, shell_engine

DASHED = "6F9619FF-8b86-d011-b42d-00c04fc964ff"
HEX = "6f9619ff8b86d011b42d00c04fc964ff"
FILES = f"conversations/alice/{HEX}/workspace/files"


def marks(workspace: ConversationWorkspace) -> list[str]:
    path = registry.socket_path(workspace.manager.config.runtime_dir, workspace.mountpoint)
    return [each["ref"] for each in client.request(path, "snapshots")["snapshots"]]


# --- what it says, before anything is mounted


def unmounted(own_host: Path, conversation: str | uuid.UUID = DASHED, **options: object) -> object:
    values = {
        "user_id": "alice",
        "base_dir": own_host / "w",
        "storage": LocalStorage(own_host),
        **options,
    }
    return ConversationWorkspace(conversation, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("spelling", [DASHED, HEX, HEX.upper(), uuid.UUID(HEX)])
def test_every_spelling_of_an_id_is_one_conversation(
    own_host: Path, spelling: str | uuid.UUID
) -> None:
    workspace = unmounted(own_host, spelling)
    assert isinstance(workspace, ConversationWorkspace)
    assert workspace.mountpoint == str(own_host / "w/alice" / HEX)
    assert workspace.conversation_uuid == uuid.UUID(HEX)
    assert workspace.working_dir == f"{workspace.mountpoint}/project"
    assert workspace.persistence_dir == f"{workspace.mountpoint}/conversations"
    assert workspace.volumes == [f"{workspace.mountpoint}:/workspace:rw,rslave"]
    assert workspace.manager.config.workspace.conversation_id == HEX
    assert not (own_host / "w").exists()


def test_an_id_that_is_no_uuid_is_a_workspace_but_no_conversation_of_openhands(
    own_host: Path,
) -> None:
    workspace = unmounted(own_host, "test-123")
    assert isinstance(workspace, ConversationWorkspace)
    assert workspace.mountpoint.endswith("/alice/test-123")
    with pytest.raises(UserError, match="no UUID") as caught:
        _ = workspace.conversation_uuid
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        ({"conversation": "../up"}, "conversation id"),
        ({"user_id": "a/b"}, "user id"),
        ({"user_id": ""}, "user id"),
        ({"max_size_mb": 0}, "WORKSPACE_MAX_SIZE_MB|max-size-mb"),
    ],
)
def test_bad_ids_and_settings_are_refused_by_the_constructor(
    own_host: Path, ids: dict[str, object], what: str
) -> None:
    with pytest.raises(UserError, match=what) as caught:
        unmounted(own_host, **ids)  # type: ignore[arg-type]
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS
    assert not (own_host / "w").exists()


def test_the_user_comes_from_the_environment(
    own_host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="WORKSPACE_USER_ID") as caught:
        unmounted(own_host, user_id=None)
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS
    monkeypatch.setenv("WORKSPACE_USER_ID", "bob")
    workspace = unmounted(own_host, user_id=None)
    assert isinstance(workspace, ConversationWorkspace)
    assert workspace.mountpoint == str(own_host / "w/bob" / HEX)


def test_the_storage_comes_from_the_environment_under_openhands_names(
    own_host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILE_STORE", "s3")
    monkeypatch.setenv("FILE_STORE_PATH", "conversations-bucket")
    monkeypatch.setenv("AWS_S3_ENDPOINT", "minio:9000")
    monkeypatch.setenv("AWS_S3_SECURE", "false")
    workspace = unmounted(own_host, storage=None)
    assert isinstance(workspace, ConversationWorkspace)
    store = workspace.manager.config.store
    assert (store.type, store.bucket) == ("s3", "conversations-bucket")
    assert store.endpoint_url == "http://minio:9000"


def test_an_agent_in_a_container_is_another_user(own_host: Path) -> None:
    workspace = unmounted(own_host, in_container=True, root_gid=7)
    assert isinstance(workspace, ConversationWorkspace)
    config = workspace.manager.config
    assert (config.allow_other, config.root_uid, config.root_gid) == (True, IMAGE_UID, 7)


def test_docker_can_not_bind_a_path_with_a_colon(own_host: Path) -> None:
    workspace = unmounted(own_host, base_dir=own_host / "a:b")
    assert isinstance(workspace, ConversationWorkspace)
    with pytest.raises(UserError, match="colon"):
        _ = workspace.volumes


def test_hooks_are_commands_that_end_before_openhands_ends_them(own_host: Path) -> None:
    workspace = unmounted(own_host, base_dir=own_host / "with space")
    assert isinstance(workspace, ConversationWorkspace)
    config = workspace.hook_config(save_timeout_s=33)
    assert json.loads(json.dumps(config)) == config
    assert list(config) == ["session_start", "user_prompt_submit", "stop", "session_end"]
    for event, [matcher] in config.items():
        assert matcher["matcher"] == "*"
        [hook] = matcher["hooks"]
        words = shlex.split(hook["command"])
        assert words[:5] == [sys.executable, "-P", "-m", openhands_hook.__name__, event]
        assert words[words.index("--mountpoint") + 1] == workspace.mountpoint
        waits_s = int(words[words.index("--timeout") + 1])
        assert waits_s == (33 if event in ("stop", "session_end") else QUICK_HOOK_S)
        assert hook["timeout"] == waits_s + HOOK_MARGIN_S


def test_imports_nothing_of_openhands() -> None:
    code = "import s3ws_fs.integrations.openhands, sys; print('openhands' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# --- mounted


@pytest.mark.fuse
def test_leaving_the_block_saves_everything(
    new_workspace: WorkspaceMaker, local_bucket: LocalBucket
) -> None:
    with new_workspace(DASHED) as workspace:
        assert table.is_mounted(workspace.mountpoint)
        for place in Path(workspace.mountpoint).parents[:2]:
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
        Path(workspace.working_dir).mkdir()
        (Path(workspace.working_dir) / "a.txt").write_text("kept")
        assert f"{FILES}/project/a.txt" not in local_bucket.listing()
    assert not table.is_mounted(workspace.mountpoint)
    assert local_bucket.get(f"{FILES}/project/a.txt").body == b"kept"


@pytest.mark.fuse
def test_a_program_that_starts_again_takes_the_mount_it_left(
    new_workspace: WorkspaceMaker, local_bucket: LocalBucket
) -> None:
    new_workspace(DASHED).mount()
    later = new_workspace(HEX)
    (Path(later.mountpoint) / "a.txt").write_text("of the first")
    later.mount()
    later.umount()
    assert local_bucket.get(f"{FILES}/a.txt").body == b"of the first"
    later.umount()


@pytest.mark.fuse
def test_the_mount_of_another_workspace_is_not_taken(
    new_workspace: WorkspaceMaker, own_host: Path
) -> None:
    new_workspace(DASHED).mount()
    other = ConversationWorkspace(
        DASHED,
        "alice",
        base_dir=own_host / "workspaces",
        storage=LocalStorage(own_host / "elsewhere"),
    )
    with pytest.raises(UserError) as caught:
        other.mount()
    assert caught.value.exit_code is ExitCode.ALREADY_MOUNTED
    other.umount()
    assert table.is_mounted(other.mountpoint)


@pytest.mark.fuse
def test_a_turn_is_marked_and_saved(
    new_workspace: WorkspaceMaker, local_bucket: LocalBucket
) -> None:
    with new_workspace(DASHED) as workspace:
        with workspace.turn() as name:
            assert name == "1"
            (Path(workspace.mountpoint) / "a.txt").write_text("1")
        assert local_bucket.get(f"{FILES}/a.txt").body == b"1"
        with pytest.raises(RuntimeError, match="the agent's"), workspace.turn():
            raise RuntimeError("the agent's")
        refs = [f"turn:{n}:{side}" for n in (1, 2) for side in ("begin", "end")]
        assert sorted(marks(workspace)) == refs


@pytest.mark.fuse
def test_methods_work_inside_of_a_running_loop(new_workspace: WorkspaceMaker) -> None:
    async def program() -> None:
        workspace = new_workspace(DASHED)
        workspace.mount()
        assert workspace.sync()["sealed"] >= 0
        assert (await workspace.manager.status())["state"] == "ready"
        await asyncio.to_thread(workspace.umount)

    asyncio.run(program())


@pytest.mark.fuse
def test_trigger_workspace_sync_finds_the_mount_by_its_id(
    new_workspace: WorkspaceMaker, local_bucket: LocalBucket
) -> None:
    with new_workspace(HEX) as workspace:
        (Path(workspace.mountpoint) / "a.txt").write_text("kept")
        done = trigger_workspace_sync(DASHED)
        assert done["sealed"] == done["mirrored"]
        assert local_bucket.get(f"{FILES}/a.txt").body == b"kept"
        assert trigger_workspace_sync(uuid.UUID(HEX), "alice", timeout_s=30)["sealed"] >= 1
        for ids in (("other",), (HEX, "bob")):
            with pytest.raises(UserError, match="is mounted on this host") as caught:
                trigger_workspace_sync(*ids)
            assert caught.value.exit_code is ExitCode.NOT_MOUNTED


@pytest.mark.fuse
def test_trigger_workspace_sync_does_not_guess_whose_conversation(
    new_workspace: WorkspaceMaker, local_bucket: LocalBucket
) -> None:
    with new_workspace("test-1", "alice"), new_workspace("test-1", "bob") as workspace:
        with pytest.raises(UserError, match="2 times") as caught:
            trigger_workspace_sync("test-1")
        assert caught.value.exit_code is ExitCode.USAGE
        (Path(workspace.mountpoint) / "a.txt").write_text("bob's")
        trigger_workspace_sync("test-1", "bob")
        key = "conversations/bob/test-1/workspace/files/a.txt"
        assert local_bucket.get(key).body == b"bob's"


@pytest.mark.fuse
def test_trigger_workspace_sync_leaves_read_only_mounts_alone(
    new_workspace: WorkspaceMaker,
) -> None:
    with new_workspace(HEX):
        pass
    with (
        new_workspace(HEX, read_only=True),
        pytest.raises(UserError, match="is mounted on this host"),
    ):
        trigger_workspace_sync(HEX)


@pytest.mark.fuse
@pytest.mark.slow
def test_an_agent_of_another_user_works_in_a_real_container(
    new_workspace: WorkspaceMaker, local_bucket: LocalBucket
) -> None:
    with shell_engine() as podman, new_workspace(DASHED, in_container=True) as workspace:
        [volume] = workspace.volumes
        script = (
            f"mkdir project && echo $(id -u) >project/id.txt && cd {CONTAINER_PROJECT} && "
            "cat id.txt && stat -c %u:%g . /workspace"
        )
        options = ["--volume", volume, "--workdir", CONTAINER_PATH]
        options += ["--user", f"{IMAGE_UID}:{IMAGE_UID}"]
        with workspace.turn():
            code, said, err = podman.run(
                "/bin/sh", "-c", script, image=SHELL_IMAGE, options=options
            )
        assert code == 0, err
        assert said.split() == [str(IMAGE_UID), *[f"{IMAGE_UID}:{IMAGE_UID}"] * 2]
        # The container is gone, the workspace still mounted, and nothing flushes by itself.
        key = f"{FILES}/project/id.txt"
        assert local_bucket.get(key).body == f"{IMAGE_UID}\n".encode()
        assert marks(workspace) == ["turn:1:begin", "turn:1:end"]
