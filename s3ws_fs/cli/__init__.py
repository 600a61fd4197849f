"""The `s3ws` command.

Invariants
1. Results go to standard output, everything else to standard error; `--json` output is JSON alone.
2. A failure prints what happened and what to do, and ends with the documented exit code; a
   traceback is seen only with S3WS_DEBUG=1 (an unexpected one is kept in a file, which is named).
3. Nothing taken from outside (file names, error texts) reaches the terminal unescaped.

Called by the `s3ws` entry point and `python -m s3ws_fs`.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
from importlib import import_module
from typing import Any, Final, NoReturn

import click

import s3ws_fs
from s3ws_fs.cli.report import report_unexpected, report_user_error
from s3ws_fs.core.errors import ExitCode, S3wsError, UserError

_EPILOG = """\b
Exit codes:
   0  ok
   1  internal error
   2  usage
   3  bad settings or ids
   4  not mounted
   5  already mounted, or the cache is busy
   6  the store is unreachable or refuses
   7  not everything is saved (the list is printed)
   8  the cache is damaged or of another workspace
   9  fenced by another writer
  10  FUSE is not available, or may not be used
  11  the mount point is busy
  12  check found damage
  13  check found no damage, but what somebody else changed or added
  14  the daemon kept dying: the mount was ended, the cache keeps everything
  15  restart: this mount can't be handed to another daemon
  16  another mount holds the workspace's lease
  17  history has no such point, snapshot or turn (any more)
  18  fork: the conversation has a workspace already
"""


_MODULES: Final = {
    "backups": ("backup", "backups", "restore-backup"),
    "check": ("check",),
    "commands": ("ls", "status", "sync", "version"),
    "delete": ("delete",),
    "doctor": ("doctor",),
    "fleet": ("du", "list"),
    "fork": ("fork",),
    "git": ("git",),
    "history": ("snapshot", "snapshots", "turn"),
    "look": ("cat", "diff", "log"),
    "metrics.command": ("metrics",),
    "mounting": ("mount", "restart", "umount"),
    "rescue": ("rescue",),
    "rewind": ("restore", "undo"),
    "top": ("top",),
    "watch": ("watch",),
    "web": ("web",),
}
"""The commands, by the module below this one that has them; `a-b` is a_b there, `list` is list_."""
_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}


class _Commands(click.Group):
    """Loads the module of the command that was asked for, and no other: they import much."""

    def list_commands(self, _: click.Context) -> list[str]:
        return sorted(_MODULE_OF)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        module = _MODULE_OF.get(name)
        if module is None:
            return None
        found = import_module(f"s3ws_fs.cli.{module}")
        attribute = name.replace("-", "_")
        command = getattr(found, attribute + ("_" if hasattr(builtins, attribute) else ""))
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(s3ws_fs.__version__, message="s3ws %(version)s")
def cli() -> None:
    """Workspaces that work like a local disk and live in S3.

    Settings come from WORKSPACE_* and AWS_* variables; the flags of `s3ws mount` override them.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit with its code."""
    # Between S3WS_DEBUG's traceback and a plain message: decided here, for every command alike.
    try:
        result: Any = cli.main(args=arguments, prog_name="s3ws", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else ExitCode.OK)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(ExitCode.USAGE)
    except click.ClickException as exc:
        exc.show()
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("s3ws: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output went away, as `s3ws ls | head` does; not a failure to report.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as exc:
        report_user_error(exc)
        sys.exit(exc.exit_code)
    except S3wsError as exc:
        report_user_error(UserError(str(exc)))
        sys.exit(ExitCode.INTERNAL)
    except Exception as exc:
        report_unexpected(exc)
        sys.exit(ExitCode.INTERNAL)
