"""Kinds of metrics, and how one is read out of a status document.

Invariants
1. What a daemon did not say (it is dead, or of an older version) is no sample, never a 0 that is
   not true.
2. Each family is declared once, by one of the functions below: `FAMILIES` is what there is.

Called by cli.metrics.families, which declares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.cli.report import is_finite

Document = dict[str, Any]

LABELLED_MAX: Final = 256
"""Samples of one family of one mount: what a daemon says is cut there."""
BUCKET_BITS: Final = range(14, 37, 2)
"""Limits of a histogram's buckets are 2**n ns: 16 µs, 66 µs, 0.26 ms, … 4.3 s, 17 s, 69 s."""

GAUGE, COUNTER, HISTOGRAM, SUMMARY, INFO = "gauge", "counter", "histogram", "summary", "info"


@dataclass(frozen=True, slots=True)
class Family:
    """One family: its name without `s3ws_` and `_total`, type, meaning, and the labels it has
    besides those of its mount (`is_of_host`: it has none of these).
    """

    name: str
    type: str
    help: str
    labels: tuple[str, ...] = ()
    is_of_host: bool = False

    @property
    def exposed(self) -> str:
        """The name as it is queried (of a histogram or summary without its endings)."""
        return f"s3ws_{self.name}" + {COUNTER: "_total", INFO: "_info"}.get(self.type, "")


Samples = Iterator[tuple[tuple[str, ...], Any]]
"""Label values, and what they are of: a number; of a histogram its buckets and sum; of a summary
count and sum; of an info its labels."""
Read = Callable[[Document, float], Samples]
"""Samples of a document; the second argument is the time, in seconds since the epoch."""

FAMILIES: Final[dict[str, Family]] = {}
READERS: Final[dict[str, Read]] = {}


def add(name: str, kind: str, text: str, read: Read, labels: tuple[str, ...] = ()) -> None:
    """A family with a reader of its own."""
    FAMILIES[name] = Family(name, kind, text, labels)
    READERS[name] = read


def value(name: str, path: str, text: str, kind: str = GAUGE) -> None:
    """A number of the document."""

    def read(document: Document, _: float) -> Samples:
        found = number(at(document, path))
        if found is not None:
            yield (), found

    add(name, kind, text, read)


def flag(name: str, path: str, text: str) -> None:
    """1 when a member says something, 0 when it is there and says nothing."""

    def read(document: Document, _: float) -> Samples:
        above, last = path.rsplit(".", 1)
        whole = at(document, above)
        if isinstance(whole, dict) and last in whole:
            yield (), float(bool(whole[last]))

    add(name, GAUGE, text, read)


def length(name: str, path: str, text: str) -> None:
    """How many things a list of the document holds."""

    def read(document: Document, _: float) -> Samples:
        listed = at(document, path)
        if isinstance(listed, list):
            yield (), float(len(listed))

    add(name, GAUGE, text, read)


def each(name: str, path: str, text: str, label: str, *, of: str = "", kind: str = COUNTER) -> None:
    """The numbers of an object of the document (`of`: of that member of each) by their names."""

    def read(document: Document, _: float) -> Samples:
        for key, said in items(document, path):
            found = number(at(said, of) if of else said)
            if found is not None:
                yield (key,), found

    add(name, kind, text, read, (label,))


def at(document: Any, path: str) -> Any:
    """The member `a.b.c`; None when there is none."""
    found: Any = document
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def number(said: object) -> float | None:
    """A number as such; None for anything else."""
    return said if is_finite(said) and not isinstance(said, bool) else None


def items(document: Document, path: str) -> Iterable[tuple[str, Any]]:
    """The members of an object of the document."""
    whole = at(document, path)
    return list(whole.items())[:LABELLED_MAX] if isinstance(whole, dict) else []


def ago(document: Document, path: str, now_s: float) -> Samples:
    """The time that was so many seconds ago, to the second: a finer one would not stay the same."""
    age_s = number(at(document, path))
    if age_s is not None:
        yield (), float(round(now_s - age_s))


def buckets(bits: dict[str, Any]) -> list[tuple[str, float]]:
    """Cumulated counts of durations below 2**n ns for each n of BUCKET_BITS, and of all; `bits`
    counts them by the number of their bits (fuse.tally).
    """
    counted = [
        (int(n), found)
        for n, said in bits.items()
        if n.isdecimal() and (found := number(said)) is not None
    ]
    limits = [
        (repr((1 << limit) / 1e9), sum(count for n, count in counted if n <= limit))
        for limit in BUCKET_BITS
    ]
    return [*limits, ("+Inf", sum(count for _, count in counted))]
