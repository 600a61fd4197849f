"""The mounts of this host as a table.

Invariants
1. Which there are, and what each says, comes from workspaces.mounts; a member that a daemon of
   another version leaves out shows as "-".

Called by cli only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s3ws_fs.cli import report
from s3ws_fs.cli.tables import text_table
from s3ws_fs.control import registry
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.workspaces.mounts import runtime_dir, status_documents


def show_mounts(*, as_json: bool) -> int:
    """Print one line a mount."""
    infos, damaged = registry.list_mounts(runtime_dir())
    found = status_documents(infos)
    if as_json:
        report.echo_json({"mounts": found})
    else:
        lines = mount_lines(found)
        report.echo("\n".join(lines) if lines else "nothing is mounted")
    for path in damaged:
        report.note(f"s3ws: the entry {path!a} is damaged; remove it if no daemon belongs to it")
    return ExitCode.OK


def mount_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """One line a mount."""
    head = ("mount point", "user", "conversation", "state", "health", "dirty", "oldest", "used")
    rows = []
    for each in found:
        workspace, dirty = part(each, "workspace"), part(each, "dirty")
        quota = part(each, "quota")
        files = dirty.get("files")
        rows.append(
            (
                str(each.get("mountpoint", "-")),
                str(workspace.get("user_id", "-")),
                str(workspace.get("conversation_id", "-")),
                str(each.get("state", "-")),
                str(part(each, "health").get("state", "-")),
                f"{files} files" if report.is_finite(files) else "-",
                report.human_seconds(dirty.get("oldest_age_s")),
                share(quota.get("used_bytes"), quota.get("max_bytes")),
            )
        )
    return text_table(head, rows, right=(5,))


def share(used: object, most: object) -> str:
    """A part of a whole in percent; "-" when it is not known."""
    if not report.is_finite(used) or not report.is_finite(most) or most <= 0:
        return "-"
    return f"{100 * used / most:.0f} %"


def part(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A member that should be an object."""
    value = document.get(name)
    return value if isinstance(value, dict) else {}
