"""The manual page and the shells' completion, made from the command itself.

1. The page is a function of click's commands, settings.OPTIONS and core.errors: nothing is typed
   twice, and nothing in it depends on when or where it was made.
2. Text is printable ASCII in the file: everything else is written as groff's escapes.
3. Completion is click's own: the shell asks `s3ws` itself, so the files hold no list of commands.

Called by `make manual` (writes packaging/s3ws.1 and packaging/completion/), and by the tests, which
hold those files against it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

import s3ws_fs
from s3ws_fs.cli import cli
from s3ws_fs.settings import OPTIONS

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "packaging" / "s3ws.1"
COMPLETION: Final = {
    "bash": ROOT / "packaging" / "completion" / "s3ws.bash",
    "zsh": ROOT / "packaging" / "completion" / "_s3ws",
    "fish": ROOT / "packaging" / "completion" / "s3ws.fish",
}
DATE: Final = "2026-11-30"
"""Of the text, not of the day it was made: the same commands give the same page."""

FILES: Final = (
    (
        "/var/cache/s3ws, ~/.cache/s3ws",
        "Caches, one directory for each workspace, and beside it its log. What is not saved stands "
        "only there. WORKSPACE_CACHE_DIR names another place.",
    ),
    (
        "/run/s3ws, $XDG_RUNTIME_DIR/s3ws",
        "Control sockets, and which mounts there are. WORKSPACE_RUNTIME_DIR names another place.",
    ),
    (
        "/var/lib/s3ws, ~/.local/share/s3ws",
        "The bucket of the storage type local. WORKSPACE_STORAGE_PATH names another place.",
    ),
    (
        "/etc/fuse.conf",
        "Users other than root need user_allow_other in it for --allow-other.",
    ),
)
EXAMPLES: Final = (
    ("Work in a workspace, and leave nothing unsaved:", (
        "export WORKSPACE_BUCKET=my-bucket WORKSPACE_USER_ID=alice",
        "export WORKSPACE_CONVERSATION_ID=test-123",
        "s3ws mount ~/workspace",
        "s3ws umount ~/workspace",
    )),
    ("Go back to what was a quarter of an hour ago, and forth again:", (
        "s3ws restore 15m ~/workspace",
        "s3ws undo ~/workspace",
    )),
    ("Get one file out of the newest backup, without a mount:", (
        "s3ws restore-backup latest src/main.py --to restored",
    )),
)  # fmt: skip


def page() -> str:
    """The whole manual page, as man(7) source."""
    context = click.Context(cli, info_name="s3ws", **cli.context_settings)
    lines = [
        '.\\" Made by scripts/manual.py (make manual). Change the commands, not this file.',
        f'.TH S3WS 1 "{DATE}" "s3ws {s3ws_fs.__version__}" "s3ws manual"',
        ".SH NAME",
        _text("s3ws - workspaces that work like a local disk and live in S3"),
        ".SH SYNOPSIS",
        ".B s3ws",
        "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(cli.help or ""),
        ".SH OPTIONS",
        *_options(cli, context),
        ".TP",
        f"\\fB{_escape(', '.join(context.help_option_names))}\\fR",
        "Show what there is, and end; behind a command: what that takes.",
        ".SH COMMANDS",
    ]
    for path, command in commands(cli, ""):
        lines += _command(path, command)
    lines += [
        ".SH SETTINGS",
        _text(
            "Every setting is an environment variable and a flag of s3ws mount; the flag wins. "
            "Commands that name a workspace without a mount take the same flags. An empty variable "
            "counts as not set. Credentials have no flag: they come from AWS's own variables, "
            "profiles and roles."
        ),
        *_settings(context),
        ".SH EXIT STATUS",
        *_exit_status(),
        ".SH FILES",
    ]
    for name, meaning in FILES:
        lines += [".TP", f".I {_escape(name)}", _text(meaning)]
    lines.append(".SH EXAMPLES")
    for title, rows in EXAMPLES:
        lines += [".TP", _text(title), ".nf", *(_escape(row) for row in rows), ".fi"]
    lines += [
        ".SH SEE ALSO",
        ".BR fusermount3 (1),",
        ".BR mount (8),",
        ".BR umount (8)",
    ]
    return "\n".join(lines) + "\n"


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its words behind `s3ws`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        child = group.get_command(context, name)
        if child is None or child.hidden:
            continue
        words = f"{path} {name}".strip()
        if isinstance(child, click.Group):
            yield from commands(child, words)
        else:
            yield words, child


def _command(path: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"s3ws {path}")
    usage = " ".join(command.collect_usage_pieces(context))
    return [
        f".SS {_escape(f's3ws {path}')}",
        f"\\fBs3ws {_escape(path)}\\fR {_escape(usage)}",
        ".PP",
        *_paragraphs(command.help or ""),
        *_options(command, context),
    ]


def _options(command: click.Command, context: click.Context) -> list[str]:
    """Its own options; those of settings are in a section for all."""
    lines: list[str] = []
    settings = 0
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        if parameter.name in OPTIONS:
            settings += 1
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [".TP", f"\\fB{_escape(record[0])}\\fR", _text(record[1] or "")]
    if settings:
        lines += [".PP", _text("And the flags of settings (see SETTINGS).")]
    return lines


def _settings(context: click.Context) -> list[str]:
    mount = cli.get_command(context, "mount")
    assert mount is not None
    flags = {
        parameter.name: [*parameter.opts, *parameter.secondary_opts]
        for parameter in mount.params
        if isinstance(parameter, click.Option)
    }
    lines = []
    for name, option in OPTIONS.items():
        variables = ", ".join(option.variables)
        lines += [
            ".TP",
            f"\\fB{_escape(variables)}\\fR, {_escape(', '.join(flags[name]))}",
            _text(option.help),
        ]
    return lines


def _exit_status() -> list[str]:
    lines = []
    for code, meaning in re.findall(r"^ +(\d+)  (.*)$", cli.epilog or "", re.MULTILINE):
        lines += [".TP", f".B {code}", _text(meaning)]
    return lines


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of a help text; those that begin with \\b keep their lines."""
    lines: list[str] = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip("\n"))):
        if number:
            lines.append(".PP")
        rows = [row.strip() for row in paragraph.strip("\n").splitlines() if row.strip()]
        if rows and rows[0] == "\b":
            lines += [".nf", *(_text(row) for row in rows[1:]), ".fi"]
        else:
            lines.append(_text(" ".join(rows)))
    return lines


def _text(text: str) -> str:
    """A line of running text; `code` is bold."""
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _escape(" ".join(text.split())))


def _escape(text: str) -> str:
    """Text in which nothing is a request or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = "".join(c if " " <= c <= "~" else f"\\[u{ord(c):04X}]" for c in text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


ZSH: Final = """\
#compdef s3ws
# Asks s3ws for click's function. Click's own file for zsh, found by fpath, completes at the first
# tab, does nothing at the second (it then only registers itself), and works from the third on.
eval "$(_S3WS_COMPLETE=zsh_source s3ws)"
_s3ws_completion "$@"
"""


def completion(shell: str) -> str:
    """The file for this shell: click's script as `s3ws` itself prints it; of zsh, see there."""
    if shell == "zsh":
        return ZSH
    done = subprocess.run(
        [sys.executable, "-m", "s3ws_fs"],
        env={**os.environ, "_S3WS_COMPLETE": f"{shell}_source"},
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip("\n") + "\n"


def main() -> None:
    PAGE.write_text(page())
    for shell, path in COMPLETION.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(completion(shell))


if __name__ == "__main__":
    main()
