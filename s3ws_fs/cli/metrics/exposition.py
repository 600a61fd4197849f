"""Metrics of this host's mounts in Prometheus' data model, collected when somebody asks.

Invariants
1. Every mount of the registry is told, also one that is dead or does not answer (`s3ws_up` 0): no
   daemon holds up the others for longer than COLLECT_S.
2. Label values are printable, and different for different mounts.

Called by cli.metrics.command; the only importer of prometheus_client.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from s3ws_fs.cli.metrics import families
from s3ws_fs.cli.metrics.kinds import COUNTER, GAUGE, HISTOGRAM, INFO, SUMMARY, Document, Family, at
from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.plaintext import safe, safe_name
from s3ws_fs.workspaces.mounts import described, runtime_dir, status_document

BASE: Final = ("user", "conversation", "mountpoint")
"""Labels of every sample of a mount."""
LABEL_CHARS_MAX: Final = 100
COLLECT_S: Final = 8.0
"""How long is waited for all mounts together; Prometheus gives up after 10 s."""
ASKED_AT_ONCE_MAX: Final = 16

_MAKERS: Final[dict[str, Any]] = {
    GAUGE: GaugeMetricFamily,
    COUNTER: CounterMetricFamily,
    HISTOGRAM: HistogramMetricFamily,
    SUMMARY: SummaryMetricFamily,
}


class Mounts(Collector):
    """The metrics of one mount, or of all that this user has."""

    def __init__(self, mountpoint: str | None = None) -> None:
        """`mountpoint`: the canonical path of the one that is meant."""
        self._mountpoint = mountpoint

    def collect(self) -> Iterator[Metric]:
        """Ask, and yield each family that has samples."""
        if self._mountpoint is not None:
            # Read anew each time: it may have another daemon by now, or be gone.
            info = registry.read(runtime_dir(), self._mountpoint)
            yield from _families([] if info is None else _documents([info]))
            return
        infos, damaged = registry.list_mounts(runtime_dir())
        yield _of_host(families.MOUNTS, len(infos))
        yield _of_host(families.DAMAGED_ENTRIES, len(damaged))
        yield from _families(_documents(infos))


def _of_host(family: Family, number: int) -> Metric:
    return GaugeMetricFamily(family.exposed, family.help, value=number)


# --- asking --------------------------------------------------------------------------------------


def _documents(infos: Sequence[MountInfo]) -> list[Document]:
    pool = ThreadPoolExecutor(ASKED_AT_ONCE_MAX, "metrics")
    try:
        asked: list[Future[Document]] = [pool.submit(_document, info) for info in infos]
        wait(asked, timeout=COLLECT_S)
        return [
            future.result() if future.done() else described(info) | {"state": "silent"}
            for info, future in zip(infos, asked, strict=True)
        ]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _document(info: MountInfo) -> Document:
    document = status_document(info, counts=True, timeout_s=COLLECT_S)
    if document.get("state") == "dead":
        return document
    pids = {
        "daemon": document.get("pid"),
        "holder": at(document, "holder.pid"),
        "worker": document.get("worker_pid"),
    }
    found = {name: _process(pid) for name, pid in pids.items() if isinstance(pid, int)}
    return document | {
        "started_at_s": info.started_at_s,
        "processes": {name: said for name, said in found.items() if said is not None},
    }


def _process(pid: int) -> dict[str, float] | None:
    """Memory and processor time; None when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        # The command name is in parentheses and may hold anything.
        after = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, IndexError, ValueError):
        return None
    ticks = int(after[11]) + int(after[12])
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "cpu_s": ticks / os.sysconf("SC_CLK_TCK"),
    }


# --- telling -------------------------------------------------------------------------------------


def _families(documents: Sequence[Document]) -> Iterator[Metric]:
    now_s = time.time()
    bases = [_base(document) for document in documents]
    for name, read in families.READERS.items():
        metric = _metric(families.FAMILIES[name])
        for base, document in zip(bases, documents, strict=True):
            for labels, said in read(document, now_s):
                short = [safe(label)[:LABEL_CHARS_MAX] for label in labels]
                more = (1,) if said is None else said if isinstance(said, tuple) else (said,)
                metric.add_metric([*base, *short], *more)
        if metric.samples:
            yield metric


def _base(document: Document) -> list[str]:
    ids = [safe(str(at(document, f"workspace.{name}"))) for name in ("user_id", "conversation_id")]
    return [*ids, safe_name(os.fsencode(str(document.get("mountpoint"))))]


def _metric(family: Family) -> Any:
    # An info is a gauge whose name says so; the text format knows no other.
    name = family.exposed if family.type == INFO else f"s3ws_{family.name}"
    maker = _MAKERS[GAUGE if family.type == INFO else family.type]
    return maker(name, family.help, labels=(*BASE, *family.labels))
