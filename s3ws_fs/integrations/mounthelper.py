"""mount.s3ws and umount.s3ws: what mount(8) and umount(8) run for fstab and `mount -t s3ws`.

    mount.s3ws SOURCE DIR [-sfnvrw] [-o OPTIONS] [-t TYPE]     SOURCE: s3ws, or USER/CONVERSATION
    umount.s3ws DIR [-nlfvr] [-t TYPE]

Invariants
1. mount.s3ws returns 0 only when the workspace is mounted and ready, and leaves the daemon behind.
2. umount.s3ws returns 0 only when everything is saved. A forced or lazy unmount is left to
   umount(8): it does not wait, and the daemon saves what it can on its own.
3. Exit codes are those of mount(8): 1 wrong usage or settings, 2 the system can't, 32 it failed.

Called by mount(8), umount(8) and systemd's mount units, through the entry points of these names.
"""

from __future__ import annotations

import getopt
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs import __version__, launch
from s3ws_fs.cli import report
from s3ws_fs.control import registry
from s3ws_fs.core.errors import ExitCode, S3wsError, UserError
from s3ws_fs.fuse import table
from s3ws_fs.integrations import options
from s3ws_fs.settings.sources import default_storage_path
from s3ws_fs.workspaces.mounts import runtime_dir
from s3ws_fs.workspaces.storage import make_default_store

MOUNT_USAGE: Final = 1
MOUNT_SYSTEM: Final = 2
MOUNT_SOFTWARE: Final = 4
MOUNT_INTERRUPTED: Final = 8
MOUNT_FAILED: Final = 32
_CODES: Final = {
    ExitCode.USAGE: MOUNT_USAGE,
    ExitCode.BAD_SETTINGS: MOUNT_USAGE,
    ExitCode.INTERNAL: MOUNT_SOFTWARE,
    ExitCode.NO_FUSE: MOUNT_SYSTEM,
}

NO_NAME: Final = ("s3ws", "none", "s3ws#")
"""Sources that name nothing. `s3ws` is what the kernel's table shows, so that `mount -a` sees that
it is mounted already."""


@dataclass
class Request:
    """One command line."""

    words: list[str]
    flags: set[str]
    options: str


def parse(arguments: Sequence[str], short: str) -> Request:
    """Flags may stand before and after the words. Raises UserError (exit code 2)."""
    try:
        given, words = getopt.gnu_getopt(list(arguments), short + "o:t:N:hV", ["help", "version"])
    except getopt.GetoptError as exc:
        raise UserError(str(exc), remedy="See `--help`.", exit_code=ExitCode.USAGE) from None
    lists = [value for name, value in given if name == "-o"]
    return Request(words, {name for name, _ in given}, ",".join(lists))


def mount(arguments: Sequence[str]) -> None:
    """mount.s3ws. Raises UserError."""
    asked = parse(arguments, "sfnvrw")
    if len(asked.words) != 2 or "-N" in asked.flags:
        raise UserError(
            "mount.s3ws takes a source and a directory, and no namespace (-N).",
            remedy="mount -t s3ws USER/CONVERSATION DIR [-o OPTIONS]",
            exit_code=ExitCode.USAGE,
        )
    source, directory = asked.words
    pairs = options.pairs(options.split(asked.options))
    wanted = options.read([*_named(source), *pairs], sloppy="-s" in asked.flags)
    if "-r" in asked.flags:
        wanted.overrides["read_only"] = True
    os.environ.update(wanted.environ)
    settings = wanted.settings(os.environ)
    config = settings.mount_config(launch.canonical_mountpoint(directory))
    if "-f" in asked.flags:
        return
    make_default_store(settings, default_storage_path(os.environ, os.geteuid()))
    with _events("mount.s3ws", asked.flags) as on_event:
        launch.mount(config, on_event=on_event, nonempty=wanted.nonempty)


def _named(source: str) -> list[tuple[str, str | None]]:
    """USER/CONVERSATION as options; what options say comes after it, and counts."""
    if source in NO_NAME:
        return []
    user, slash, conversation = source.partition("/")
    if not slash or not user or not conversation or "/" in conversation:
        raise UserError(
            f"{source[:256]!a} names no workspace.",
            remedy="The source is USER/CONVERSATION, or `s3ws` with the options user_id and"
            " conversation_id (or their variables in an env_file).",
            exit_code=ExitCode.USAGE,
        )
    return [("user_id", user), ("conversation_id", conversation)]


def _events(name: str, flags: set[str]) -> AbstractContextManager[launch.EventSink]:
    """Progress with -v, else what has to be said alone."""
    return report.progress(name, as_json=False) if "-v" in flags else nullcontext(_warning_only)


def _warning_only(event: dict[str, Any]) -> None:
    if event.get("event") == "warning":
        report.note(f"mount.s3ws: warning: {event.get('message')}")


def umount(arguments: Sequence[str]) -> None:
    """umount.s3ws. Raises UserError."""
    asked = parse(arguments, "nlfvrRc")
    if len(asked.words) != 1 or "-N" in asked.flags:
        raise UserError(
            "umount.s3ws takes one directory, and no namespace (-N).",
            remedy="umount DIR",
            exit_code=ExitCode.USAGE,
        )
    os.chdir("/")
    directory = launch.canonical_mountpoint(asked.words[0])
    unusual = sorted(asked.flags & {"-l", "-f"})
    if unusual or registry.read(runtime_dir(), directory) is None:
        _without_waiting(directory, unusual)
        return
    with _events("umount.s3ws", asked.flags) as on_event:
        launch.umount_and_wait(directory, runtime_dir(), on_event=on_event)


def _without_waiting(directory: str, flags: Sequence[str]) -> None:
    """umount(8) alone, as asked for, or for a mount that is not registered here."""
    if not table.is_mounted(directory):
        raise UserError(f"{directory!a} is not mounted.", exit_code=ExitCode.NOT_MOUNTED)
    done = subprocess.run(["umount", "-i", *flags, "--", directory], check=False)
    if done.returncode:
        raise UserError(f"{directory!a} was not unmounted.", exit_code=ExitCode.BUSY)
    report.note(
        f"umount.s3ws: {directory} is unmounted; its daemon saves the rest in the background"
    )


def _run(name: str, work: Callable[[Sequence[str]], None], arguments: list[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if not given or {"-h", "--help"} & set(given):
        report.echo("\n".join((__doc__ or "").splitlines()[2:4]))
        return 0 if given else MOUNT_USAGE
    if {"-V", "--version"} & set(given):
        report.echo(f"{name} from s3ws {__version__}")
        return 0
    try:
        work(given)
    except UserError as exc:
        report.report_user_error(exc, prefix=name)
        return _CODES.get(exc.exit_code, MOUNT_FAILED)
    except S3wsError as exc:
        report.report_user_error(UserError(str(exc)), prefix=name)
        return MOUNT_FAILED
    except KeyboardInterrupt:
        report.note(f"{name}: interrupted")
        return MOUNT_INTERRUPTED
    except Exception as exc:
        report.report_unexpected(exc)
        return MOUNT_SOFTWARE
    return 0


def mount_main(arguments: list[str] | None = None) -> int:
    """The program mount.s3ws; its exit status."""
    return _run("mount.s3ws", mount, arguments)


def umount_main(arguments: list[str] | None = None) -> int:
    """The program umount.s3ws; its exit status."""
    return _run("umount.s3ws", umount, arguments)
