"""What a run is asked for and what it measured, as plain values. Pure.

Called by bench.runner and those below it (fill), bench.report, bench.goals and bench.plots (read).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.workloads import Scale, Step


@dataclass(frozen=True, slots=True)
class Options:
    """What to run. The same seed gives the same bytes; round r uses seed + r.

    `peers`: where the peers' programs are, beside PATH. `idle_s`: how long the targets are left
    alone at the end, to see what they use then.
    """

    scale: Scale
    rounds: int
    seed: int
    targets: Sequence[str]
    scenarios: Sequence[str]
    base: Path | None = None
    peers: Path | None = None
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One scenario on one target in one round. CPU: the target's daemon, and its children.

    None: it has no daemon, or another one than before. The peaks of memory are of the same two.
    """

    round: int
    target: str
    scenario: str
    steps: list[Step]
    cpu_s: float | None
    children_cpu_s: float | None


@dataclass(frozen=True, slots=True)
class Lag:
    """From the end of a burst until the bucket has it, and the requests that took.

    Ours is asked to `sync` at that moment; a peer begins by itself. `sealed_s`: all bytes are in
    the bucket, for ours at one instant; `mirrored_s`: as one object a file (None where that never
    is). `again`: requests of another sync, with nothing changed. `late_s`: added to each request.
    """

    round: int
    target: str
    files: int
    late_s: float
    burst_s: float
    sealed_s: float
    mirrored_s: float | None
    sealed_requests: dict[str, int]
    requests: dict[str, int]
    again: int


@dataclass(frozen=True, slots=True)
class Wire:
    """What one change took to be in the bucket: time, requests, bytes at the proxy."""

    round: int
    target: str
    what: str
    seconds: float
    requests: dict[str, int]
    up_bytes: int
    down_bytes: int


@dataclass(frozen=True, slots=True)
class Growth:
    """The same work beside `files` files: time per operation (µs), a list of all (entries/s).

    `cpu_us`: the daemon's processor time for one of each (of `list`: for one entry). `flush_s`: a
    sync after some of that work. `change_s`, `change_cpu_s`: a sync after one small change, and
    what daemon and worker spend on it; the mean of many, checkpoints among them.
    """

    target: str
    files: int
    create_us: float
    stat_us: float
    save_us: float
    list_per_s: float
    flush_s: float | None
    flush_requests: int | None
    private_mib: float | None
    cpu_us: dict[str, float] = field(default_factory=dict)
    change_s: float | None = None
    change_cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sized:
    """The same work in a file of `mib` MiB: time per operation (µs), and what is sent to save it.

    A write: 4 KiB somewhere and `fsync`; a read: 4 KiB that neither kernel nor reader has seen; an
    append: 4 KiB. `filled_s`, `change_s`, `tail_s`: a sync of the whole file, of 4 KiB changed in
    it, of 1 MiB appended.
    """

    target: str
    mib: int
    fill_s: float
    write_us: float
    read_us: float
    append_us: float
    cpu_us: dict[str, float]
    filled_s: float | None
    change_s: float | None
    change_up_bytes: int | None
    tail_s: float | None
    tail_up_bytes: int | None
    private_mib: float | None


@dataclass(frozen=True, slots=True)
class Idle:
    """A daemon left alone: CPU seconds of it and its children, and how many children it has."""

    seconds: float
    cpu_s: float
    children: int


@dataclass(slots=True)
class Results:
    """All that was measured. Memory: private, at the end and the highest seen, in MiB."""

    options: Options
    machine: dict[str, str]
    turns: list[Turn] = field(default_factory=list)
    lags: list[Lag] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    idle: dict[str, Idle] = field(default_factory=dict)
    private_mib: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    peak_children_mib: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """`target scenario` → why."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Scenario → why nobody did it."""
    sizes: list[Sized] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything, for a machine to read."""
        value = asdict(self)
        value["options"]["base"] = value["options"]["peers"] = None
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Results:
        """The inverse of `to_json`, but for the places."""
        options = dict(value["options"])
        options["scale"] = Scale.from_json(options["scale"])
        turns = [Turn(**{**t, "steps": [Step(**s) for s in t["steps"]]}) for t in value["turns"]]
        return cls(
            Options(**options),
            value["machine"],
            turns,
            [Lag(**each) for each in value["lags"]],
            [Wire(**each) for each in value["wires"]],
            [Growth(**each) for each in value["growths"]],
            {name: Idle(**each) for name, each in value["idle"].items()},
            value["private_mib"],
            value["peak_mib"],
            value["peak_children_mib"],
            value["left_out"],
            value["failed"],
            value["not_run"],
            # Figures of older runs have none.
            [Sized(**each) for each in value.get("sizes", ())],
        )
