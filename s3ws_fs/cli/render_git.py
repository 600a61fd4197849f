"""What status and the ends of `sync` and `umount` say of git state.

Called by cli.render, cli.commands and cli.mounting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from s3ws_fs.cli.report import safe
from s3ws_fs.launch.end import counted

LINES_MAX: Final = 10


def git_lines(git: object) -> list[str]:
    """The state of all repositories, a line each thing; nothing where there is none."""
    if not isinstance(git, dict):
        return []
    last = git.get("last")
    last = last if isinstance(last, dict) else {}
    lines = []
    count = last.get("repositories")
    if isinstance(count, int) and count:
        broken = last.get("broken_count", 0)
        have = f"bundles of {counted(count - broken, 'repository')}"
        lines.append(have.replace("repositorys", "repositories"))
    if git.get("running"):
        lines.append(f"{safe(str(git['running']))} now")
    return lines + list(git_troubles(git))


def git_troubles(git: object) -> Iterator[str]:
    """What is not as it should be."""
    if not isinstance(git, dict):
        return
    if git.get("error"):
        yield f"the bundles are older: {safe(str(git['error']))}"
    last = git.get("last")
    if not isinstance(last, dict):
        return
    for kind, text in (("broken", "no bundle of"), ("notes", "bundle of")):
        items = last.get(kind, [])
        for item in items[:LINES_MAX]:
            name = safe(str(item.get("name"))) or "."
            yield f"{text} {name}: {safe(str(item.get('why')))}"
        if len(items) > LINES_MAX:
            yield "and more (see --json)"
