"""A program as an OpenHands user writes it: the real SDK, one conversation, a workspace of ours.

It runs in the virtual environment of `scripts/setup openhands`, in a process of its own; the model
is the SDK's TestLLM with a script, so that nothing is asked of any network. Settings come from the
environment under OpenHands' own names.

    python tests/support/openhands_program.py work|resume CONVERSATION BASE_DIR

It says what happened in JSON lines, and waits for a line of standard input where a test looks at
the bucket: after the agent finished (nothing is closed yet), and after the conversation was closed
(the workspace is still mounted). At the end it runs hooks without the mount.

Called by tests.e2e.test_openhands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from openhands.sdk import Agent, Conversation, LocalWorkspace, Tool
from openhands.sdk.event import ActionEvent, HookExecutionEvent, ObservationEvent
from openhands.sdk.hooks import HookConfig, HookManager
from openhands.sdk.llm import Message, MessageToolCall, TextContent
from openhands.sdk.testing import TestLLM
from openhands.tools.file_editor import FileEditorTool
from openhands.tools.terminal import TerminalTool

from s3ws_fs.integrations.openhands import ConversationWorkspace, trigger_workspace_sync

WORK_PROMPT = "Write a greeting program, under version control."
RESUME_PROMPT = "Greet the moon as well."


def call(number: int, tool: str, **arguments: Any) -> Message:
    """An answer of the model that calls a tool."""
    wanted = MessageToolCall(
        id=f"call_{number}", name=tool, arguments=json.dumps(arguments), origin="completion"
    )
    return Message(role="assistant", content=[TextContent(text="")], tool_calls=[wanted])


def work_script(at: str) -> list[Message]:
    """The first turn."""
    code = "print('hello, world')\n"
    return [
        call(
            1, "terminal", command="git init -q . && mkdir src && echo by the terminal > notes.txt"
        ),
        call(2, "file_editor", command="create", path=f"{at}/src/greet.py", file_text=code),
        call(
            3,
            "file_editor",
            command="str_replace",
            path=f"{at}/src/greet.py",
            old_str="world",
            new_str="earth",
        ),
        call(
            4,
            "terminal",
            command="python3 src/greet.py > out.txt && git add src notes.txt && git -c user.name=a "
            "-c user.email=a@b.example commit -q -m greet && cat out.txt",
        ),
        call(5, "finish", message="It greets the earth."),
    ]


def resume_script(at: str) -> list[Message]:
    """The second turn, on another host."""
    return [
        call(11, "terminal", command="cat notes.txt && git log --oneline && git status --short"),
        call(12, "file_editor", command="view", path=f"{at}/src/greet.py"),
        call(
            13,
            "file_editor",
            command="str_replace",
            path=f"{at}/src/greet.py",
            old_str="earth",
            new_str="moon",
        ),
        call(14, "terminal", command="python3 src/greet.py | tee out.txt"),
        call(15, "finish", message="It greets the moon."),
    ]


def say(what: str, **values: Any) -> None:
    """One line for the test."""
    print("S3WS " + json.dumps({"what": what, **values}), flush=True)


def pause(what: str, **values: Any) -> None:
    """The same, and wait until the test has looked."""
    say(what, **values)
    sys.stdin.readline()


def observations(conversation: Any) -> Iterator[dict[str, Any]]:
    """What the tools answered, in order."""
    for event in conversation.state.events:
        if isinstance(event, ObservationEvent):
            texts = [
                part.text for part in event.observation.to_llm_content if hasattr(part, "text")
            ]
            yield {
                "tool": event.tool_name,
                "is_error": event.observation.is_error,
                "text": "\n".join(texts),
            }


def hooks(conversation: Any) -> list[dict[str, Any]]:
    """What the hooks did, in order."""
    return [
        {
            "event": event.hook_event_type,
            "success": event.success,
            "blocked": event.blocked,
            "exit_code": event.exit_code,
            "stdout": event.stdout,
            "stderr": event.stderr,
        }
        for event in conversation.state.events
        if isinstance(event, HookExecutionEvent)
    ]


def main(phase: str, conversation_id: str, base_dir: str) -> None:
    """One run of the program."""
    with ConversationWorkspace(conversation_id, base_dir=base_dir) as workspace:
        is_new = phase == "work"
        script = (work_script if is_new else resume_script)(workspace.working_dir)
        conversation = Conversation(
            agent=Agent(
                llm=TestLLM.from_messages(list(script)),
                tools=[Tool(name=TerminalTool.name), Tool(name=FileEditorTool.name)],
            ),
            workspace=LocalWorkspace(working_dir=workspace.working_dir),
            persistence_dir=workspace.persistence_dir,
            conversation_id=workspace.conversation_uuid,
            hook_config=HookConfig.from_dict(workspace.hook_config()),
            visualizer=None,
        )
        actions = [e for e in conversation.state.events if isinstance(e, ActionEvent)]
        say(
            "opened",
            mountpoint=workspace.mountpoint,
            conversation=str(conversation.id),
            events=len(conversation.state.events),
            actions=[action.tool_name for action in actions],
            status=conversation.state.execution_status.value,
        )
        conversation.send_message(WORK_PROMPT if is_new else RESUME_PROMPT)
        conversation.run()
        pause(
            "finished",
            status=conversation.state.execution_status.value,
            events=len(conversation.state.events),
            observations=list(observations(conversation)),
            hooks=hooks(conversation),
        )
        conversation.close()
        pause("closed", events=len(conversation.state.events), hooks=hooks(conversation))
        say("triggered", result=trigger_workspace_sync(conversation_id))
        config = HookConfig.from_dict(workspace.hook_config())
    # Now every hook fails. What does the SDK make of that?
    hook_manager = HookManager(config, working_dir=base_dir, session_id=str(conversation.id))
    may_stop, results = hook_manager.run_stop("agent_finished")
    may_ask, _, _ = hook_manager.run_user_prompt_submit("Go on.")
    codes = [result.exit_code for result in results]
    say("unmounted", may_stop=may_stop, may_ask=may_ask, codes=codes, stderr=results[0].stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
