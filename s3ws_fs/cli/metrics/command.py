"""`s3ws metrics`: Prometheus metrics of one mount, or of all mounts of this host.

Invariants
1. Nothing here runs in a daemon: this process asks them by their control sockets, when it is asked
   itself.
2. prometheus_client is loaded when the command runs, not with every `s3ws`.

Called by cli only.
"""

from __future__ import annotations

from pathlib import Path

import click

from s3ws_fs.cli import report
from s3ws_fs.workspaces.mounts import registered

EVERY_S_MIN = 1.0


@click.command(short_help="Print metrics for Prometheus, or serve or write them.")
@click.argument("mountpoint", required=False, type=click.Path(path_type=str, readable=False))
@click.option(
    "--textfile",
    metavar="FILE.prom",
    type=click.Path(path_type=Path),
    help="Write them to a file for node_exporter's textfile collector, which is replaced whole.",
)
@click.option(
    "--every",
    "every_s",
    metavar="SECONDS",
    type=click.FloatRange(min=EVERY_S_MIN),
    help="With --textfile: again and again, until SIGTERM.",
)
@click.option(
    "--listen",
    metavar="[ADDRESS:]PORT",
    help="Serve them at http://127.0.0.1:PORT/metrics until SIGTERM; loopback only.",
)
def metrics(
    mountpoint: str | None, textfile: Path | None, every_s: float | None, listen: str | None
) -> None:
    """Print metrics in Prometheus' text format.

    Without MOUNTPOINT: of all mounts that this user has on this host, told apart by the labels
    user, conversation and mountpoint. docs/metrics.md lists them.
    """
    if textfile is not None and listen is not None:
        raise click.UsageError("--textfile and --listen are two ways: choose one.")
    if every_s is not None and textfile is None:
        raise click.UsageError("--every goes with --textfile.")
    one = None if mountpoint is None else registered(mountpoint).mountpoint
    from prometheus_client.exposition import generate_latest

    from s3ws_fs.cli.metrics import ways
    from s3ws_fs.cli.metrics.exposition import Mounts

    mounts = Mounts(one)
    if listen is not None:
        with ways.Server(*ways.loopback(listen), mounts) as server:
            report.note(f"metrics at {server.url}")
            server.serve_until_signal()
    elif textfile is None:
        click.echo(generate_latest(mounts), nl=False)
    elif textfile.suffix != ways.TEXTFILE_SUFFIX:
        raise click.UsageError(f"node_exporter reads {ways.TEXTFILE_SUFFIX} files only.")
    elif every_s is None:
        ways.write_textfile(textfile, mounts)
    else:
        ways.repeat(lambda: ways.write_textfile(textfile, mounts), every_s)
