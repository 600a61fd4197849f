"""What documents say of our commands, held against the commands: names, subcommands, options.

Invariants
1. The truth is click's own tree of commands, loaded as the program loads it.
2. Placeholders (capital letters, …, [brackets]) stand for anything; everything else must exist.

Called by the tests of tests/docs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import click

from s3ws_fs.cli import cli
from scripts.manual import commands

_CALL: Final = re.compile(r"(?<![\w/.:@-])s3ws(?=\s|$)(?:[ \t]+([^\n;&<>`)\"]*))?")
_OPTION: Final = re.compile(r"--?[A-Za-z][A-Za-z0-9-]*")
_PLACEHOLDER: Final = re.compile(r"[A-Z][A-Z0-9_-]*|[…“”\"'.,:]+|\$.*|\{.*")
_IMAGES: Final = ("docker", "podman", "buildah", "nerdctl")
"""Programs for which `s3ws` may be the name of an image."""

_TYPES: Final = ("-t", "--driver", "--volume-driver")
"""Options behind which `s3ws` is a kind of filesystem or volume; so it is before a path or =."""


def calls(text: str) -> Iterator[str]:
    """What follows the program's name, for each time it is called in a line of shell or of text."""
    for match in _CALL.finditer(text):
        before = text[: match.start()].split()
        rest = match[1] or ""
        if before and before[0] in _IMAGES and "exec" not in before:
            first = rest.split()[:1]
            if not first or first[0] not in children(cli):
                continue
        if (before and before[-1] in _TYPES) or re.match(r"[/=]", rest):
            continue
        # A pipe ends a call; between words without space it separates alternatives.
        yield re.split(r"\s\|(?:\s|$)|#\s", rest)[0].strip()


def problems(arguments: str) -> list[str]:
    """What is wrong with the words behind `s3ws`."""
    words = re.sub(r"[\[\]()]|\.\.\.", " ", arguments).replace("\\|", "|").split()
    reached: list[click.Command] = [cli]
    while words and any(isinstance(each, click.Group) for each in reached):
        if words[0].startswith("-") or _PLACEHOLDER.fullmatch(words[0]):
            break
        names = words.pop(0).rstrip(".,:").split("|")
        below = {name: c for each in reached for name, c in children(each).items()}
        unknown = [name for name in names if name not in below]
        if unknown:
            return [f"there is no command {unknown[0]!r}"]
        reached = [below[name] for name in names]
    known = set().union(*(options_of(command) for command in reached))
    if words and reached == [cli] and not words[0].startswith("-"):
        known |= every_option()
    return [
        f"{reached[0].name} has no option {option}"
        for word in words
        if word.startswith("-")
        for option in _OPTION.findall(word.partition("=")[0])
        if option not in known
    ]


def options_of(command: click.Command) -> set[str]:
    """The options of one command."""
    found = {"-h", "--help"}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def children(command: click.Command) -> dict[str, click.Command]:
    """The commands below a group, by name; none below a command."""
    if not isinstance(command, click.Group):
        return {}
    context = click.Context(command)
    found = {name: command.get_command(context, name) for name in command.list_commands(context)}
    return {name: child for name, child in found.items() if child is not None}


def all_commands() -> dict[str, click.Command]:
    """Every command that does something, by its words behind `s3ws`."""
    return dict(commands(cli, ""))


def every_option() -> set[str]:
    """The options of all commands."""
    return options_of(cli).union(*(options_of(command) for command in all_commands().values()))
