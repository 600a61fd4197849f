"""`s3ws web`: the status page of this host's mounts, in a browser.

Invariants
1. What the page needs is imported when it is asked for, not by other commands.
2. The link, which lets a browser in once, goes to standard output or into a private file; nowhere
   else. The log goes to standard error, each line of it printable.

Called by cli only.
"""

from __future__ import annotations

import os
from functools import partial

import click

from s3ws_fs.cli import report
from s3ws_fs.core.errors import ExitCode, UserError

_ADDRESS = "127.0.0.1"
_PORT = 8765


@click.command(short_help="Show mounts, files, changes and backups in a browser.")
@click.option("--listen", "address", default=_ADDRESS, show_default=True, help="Address.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_PORT, show_default=True, help="0: any free."
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A further name by which browsers may call this page (repeatable).",
)
@click.option(
    "--link-file",
    type=click.Path(path_type=str, readable=False),
    help="Write the link into this file (0600) instead of printing it.",
)
def web(address: str, port: int, hosts: tuple[str, ...], link_file: str | None) -> None:
    """Serve a status page for the mounts of this host until ctrl-C.

    It prints a link that lets one browser in, and the next one when that was used. The page has no
    TLS: on another address than loopback, put a proxy with TLS before it, or reach it by
    `ssh -L 8765:localhost:8765 HOST`.
    """
    import trio

    from s3ws_fs.daemon import logs
    from s3ws_fs.web.server import Listening, serve

    logs.set_up("warning", "text")
    told = partial(_write, link_file) if link_file is not None else _print
    if not is_loopback(address):
        report.note("s3ws: warning: whoever can reach this address can read the link and all else")
    where = Listening(address, port, hosts)
    try:
        trio.run(serve, where, told)
    except KeyboardInterrupt:
        report.note("s3ws: the status page is closed")
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        report.note("s3ws: the status page is closed")


def is_loopback(address: str) -> bool:
    """Whether only this host can reach an address."""
    return address in ("localhost", "::1") or address.startswith("127.")


def _print(link: str) -> None:
    report.echo(f"open {link}")


def _write(path: str, link: str) -> None:
    """The link alone, in a file of this user's own; whole at any time. Raises UserError."""
    temporary = f"{path}.new"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600)
        with os.fdopen(fd, "w") as out:
            out.write(link + "\n")
        os.replace(temporary, path)  # noqa: PTH105 - beside the open above
    except OSError as exc:
        raise UserError(
            f"The link can't be written to {path!a}: {exc.strerror}.",
            remedy="Name a file in a directory of yours; remove what is left of an earlier try.",
            exit_code=ExitCode.USAGE,
        ) from exc
