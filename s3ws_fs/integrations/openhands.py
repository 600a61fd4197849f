"""OpenHands: a workspace for each conversation, for its software-agent-sdk as it is.

    with ConversationWorkspace(conversation_id, "alice", base_dir="/srv/workspaces") as workspace:
        conversation = Conversation(
            agent=agent,
            workspace=workspace.working_dir,
            persistence_dir=workspace.persistence_dir,
            conversation_id=workspace.conversation_uuid,
            hook_config=HookConfig.from_dict(workspace.hook_config()),
        )
        ...
        conversation.close()      # before the workspace is unmounted

The agent in a container: a workspace made with `in_container=True`, and for DockerWorkspace
`volumes=workspace.volumes, working_dir=CONTAINER_PROJECT`. The hooks of such a conversation would
run in the container, which has neither s3ws nor the bucket's keys; there `with workspace.turn():`
goes around each run.

Invariants
1. OpenHands is a peer: nothing of it is imported, and nothing of it is patched.
2. A conversation's id is the same with and without dashes. Two conversations share no directory.
3. Leaving the `with` block, or `umount`, means that everything is in the bucket; else it raises.
4. The layout is that of a stock agent server below /workspace: the agent works in project/, and the
   conversation is kept beside it, so that it is no part of the agent's git repository. Whoever
   mounts the workspace elsewhere finds both. We make neither directory; OpenHands does.

Called by other people's programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import uuid
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from s3ws_fs.control import client, registry
from s3ws_fs.control.paths import make_private
from s3ws_fs.core.errors import ExitCode, S3wsError, UserError
from s3ws_fs.core.ids import canonical_id
from s3ws_fs.integrations import openhands_hook, turns
from s3ws_fs.manager import Storage, WorkspaceManager
from s3ws_fs.settings import Settings
from s3ws_fs.settings.sources import bad_setting
from s3ws_fs.workspaces.mounts import runtime_dir
from s3ws_fs.workspaces.reading import writes

__all__ = ["CONTAINER_PROJECT", "ConversationWorkspace", "trigger_workspace_sync"]

IMAGE_UID: Final = 10001
"""User and group of the agent in OpenHands' images."""
CONTAINER_PATH: Final = "/workspace"
CONTAINER_PROJECT: Final = "/workspace/project"
PROJECT: Final = "project"
CONVERSATIONS: Final = "conversations"
QUICK_HOOK_S: Final = 60
SAVE_TIMEOUT_S: Final = 120
"""How long an agent that finished waits for the store, unless said otherwise."""
HOOK_MARGIN_S: Final = 5
"""A hook ends by itself before OpenHands ends it, so that it can say why."""
SAVING_EVENTS: Final = ("stop", "session_end")

_T = TypeVar("_T")


class ConversationWorkspace:
    """The workspace of one conversation, mounted on `base_dir/USER/CONVERSATION`.

    `storage` as for WorkspaceManager; from the environment when not given (OpenHands' own names
    count too). `user_id`: WORKSPACE_USER_ID when not given. `in_container`: for an agent in a stock
    image, whose user is another one. Options as for WorkspaceManager.

    The constructor raises UserError for bad ids and settings; it touches nothing. Methods block: in
    an asyncio program call them by `asyncio.to_thread`, or use those of `manager`.
    """

    def __init__(
        self,
        conversation_id: str | uuid.UUID,
        user_id: str | None = None,
        *,
        base_dir: str | os.PathLike[str],
        storage: Storage | None = None,
        in_container: bool = False,
        **options: Any,
    ) -> None:
        conversation = canonical_id(str(conversation_id), what="conversation id")
        user = canonical_id(user_id if user_id is not None else _user(), what="user id")
        if in_container:
            theirs = {"allow_other": True, "root_uid": IMAGE_UID, "root_gid": IMAGE_UID}
            options = {**theirs, **options}
        if storage is None:
            ids = {"conversation_id": conversation, "user_id": user}
            storage = Settings.load(os.environ, {**options, **ids})
        path = Path(base_dir).expanduser() / user / conversation
        self._manager = WorkspaceManager(storage, conversation, user, path, **options)
        self._conversation = conversation

    @property
    def manager(self) -> WorkspaceManager:
        """The same workspace, for asyncio and trio."""
        return self._manager

    @property
    def mountpoint(self) -> str:
        """Where it is mounted on this host."""
        return self._manager.mountpoint

    @property
    def working_dir(self) -> str:
        """For `workspace=`, or `LocalWorkspace(working_dir=…)`."""
        return str(Path(self.mountpoint) / PROJECT)

    @property
    def persistence_dir(self) -> str:
        """For `persistence_dir=`: the conversation is kept in its own workspace."""
        return str(Path(self.mountpoint) / CONVERSATIONS)

    @property
    def conversation_uuid(self) -> uuid.UUID:
        """For `conversation_id=`. Raises UserError when the id is no UUID."""
        try:
            return uuid.UUID(self._conversation)
        except ValueError:
            raise UserError(
                f"The conversation id {self._conversation!a} is no UUID, as OpenHands wants it.",
                remedy="Make one by uuid.uuid4().",
                exit_code=ExitCode.BAD_SETTINGS,
            ) from None

    @property
    def volumes(self) -> list[str]:
        """For `DockerWorkspace(volumes=…)`. Raises UserError when Docker can't name the path.

        rslave: what is mounted on the host after the container started shows in it, too.
        """
        if ":" in self.mountpoint:
            raise UserError(
                f"Docker can't bind {self.mountpoint!a}: it has a colon in it.",
                remedy="Choose another base_dir.",
                exit_code=ExitCode.BAD_SETTINGS,
            )
        return [f"{self.mountpoint}:{CONTAINER_PATH}:rw,rslave"]

    def hook_config(self, *, save_timeout_s: int = SAVE_TIMEOUT_S) -> dict[str, Any]:
        """For `HookConfig.from_dict`, or as JSON in .openhands/hooks.json.

        session_start: the workspace is mounted and the conversation's. user_prompt_submit: a turn
        begins. stop (the agent finished) and session_end: the turn ends, everything is saved. No
        hook keeps the agent from going on; what failed stands in its HookExecutionEvent.
        """
        timeouts_s = {
            event: save_timeout_s if event in SAVING_EVENTS else QUICK_HOOK_S
            for event in openhands_hook.EVENTS
        }
        return {
            event: [{"matcher": "*", "hooks": [self._hook(event, timeout_s)]}]
            for event, timeout_s in timeouts_s.items()
        }

    def _hook(self, event: str, timeout_s: int) -> dict[str, Any]:
        command = [sys.executable, "-P", "-m", openhands_hook.__name__, event]
        command += ["--mountpoint", self.mountpoint]
        command += ["--runtime-dir", self._manager.config.runtime_dir]
        command += ["--timeout", str(timeout_s)]
        whole_s = timeout_s + HOOK_MARGIN_S
        return {"type": "command", "command": shlex.join(command), "timeout": whole_s}

    # --- its life ----------------------------------------------------------------------------

    def mount(self, *, take_over: bool = False) -> None:
        """Mount; return when it is ready. A mount that an earlier run of the program left is used.

        Raises UserError with the exit code that `s3ws mount` would have.
        """
        make_private(Path(self.mountpoint))
        _wait_for(self._manager.initialize(take_over=take_over, adopt=True))

    def sync(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Flush now; return {"sealed", "mirrored", …} when all is in the bucket.

        Raises UserError (exit code 4: not mounted; 7: not saved within `timeout_s` seconds).
        """
        return _wait_for(self._manager.manual_sync(timeout_s))

    def umount(self, timeout_s: float | None = None) -> None:
        """Final flush and unmount. Raises UserError when not everything is saved."""
        _wait_for(self._manager.cleanup(timeout_s))

    @contextlib.contextmanager
    def turn(self, timeout_s: float = SAVE_TIMEOUT_S) -> Iterator[str]:
        """What the block does is one turn; afterwards everything is saved. Its name is the value.

        For conversations without these hooks, such as those in a container. Raises UserError. An
        exception of the block wins over one of saving.
        """
        name, _ = turns.begin(self._socket(), timeout_s)
        try:
            yield name
        except BaseException:
            with contextlib.suppress(S3wsError):
                turns.finish(self._socket(), timeout_s)
            raise
        turns.finish(self._socket(), timeout_s)

    def _socket(self) -> str:
        return registry.socket_path(self._manager.config.runtime_dir, self.mountpoint)

    def __enter__(self) -> Self:
        self.mount()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.umount()


def trigger_workspace_sync(
    conversation_id: str | uuid.UUID,
    user_id: str | None = None,
    *,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Flush the workspace of a conversation that is mounted on this host, by whatever program.

    Returns {"sealed", "mirrored", …} when all is in the bucket. Raises UserError: it is
    not mounted (exit code 4), not saved within `timeout_s` seconds (7), or several users have a
    conversation of this id and `user_id` is not given (2).
    """
    conversation = canonical_id(str(conversation_id), what="conversation id")
    user = None if user_id is None else canonical_id(user_id, what="user id")
    infos, _ = registry.list_mounts(runtime_dir())
    found = [
        info
        for info in infos
        if info.conversation_id == conversation
        and user in (None, info.user_id)
        and writes(info)
        and info.is_alive()
    ]
    if not found:
        raise UserError(
            f"No workspace of conversation {conversation} is mounted on this host.",
            remedy="`s3ws status` lists the mounts; WORKSPACE_RUNTIME_DIR has to be the same.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    if len(found) > 1:
        raise UserError(
            f"Conversation {conversation} is mounted {len(found)} times on this host, the first on "
            f"{found[0].mountpoint!a}.",
            remedy="Say which by user_id, or sync by the mount point.",
            exit_code=ExitCode.USAGE,
        )
    path = registry.socket_path(runtime_dir(), found[0].mountpoint)
    try:
        return client.request(path, "sync", timeout_s=timeout_s)
    except client.DaemonSilentError as exc:
        raise UserError(exc.message, remedy=exc.remedy, exit_code=ExitCode.NOT_SAVED) from exc


def _user() -> str:
    user = os.environ.get("WORKSPACE_USER_ID", "").strip()
    if not user:
        raise bad_setting(
            "WORKSPACE_USER_ID", "the user is not given.", "Set it, or give `user_id`."
        )
    return user


def _wait_for(call: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine, also inside of a running event loop, which waits meanwhile."""
    with ThreadPoolExecutor(1, "s3ws") as thread:
        return thread.submit(asyncio.run, call).result()
