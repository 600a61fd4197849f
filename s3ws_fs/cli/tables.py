"""Columns of text.

Invariants
1. Every cell is made safe for a terminal here.

Called by cli only.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import chain

from s3ws_fs.cli.report import safe


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int] = ()
) -> list[str]:
    """Lines: a head, then the rows, in columns as wide as they need; none without rows.

    `right`: the columns that are numbers.
    """
    if not rows:
        return []
    cells = [[safe(cell) for cell in row] for row in chain([head], rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
