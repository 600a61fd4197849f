"""What a fuzz target is, and how one case of it is judged.

Invariants
1. A case ends with a value, or with one of the target's documented errors; anything else is a
   finding: another exception, more than CASE_S_MAX, or a process that died.
2. A case is made of its number alone: `python -m tests.fuzz --target T --case N` does it again.

Called by the modules of tests.fuzz.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.core.errors import S3wsError

CASE_S_MAX: Final = 30.0
"""Far beyond what any case takes, on a busy machine too: more is a hang."""


class FindingError(AssertionError):
    """A case that went wrong."""


@dataclass(frozen=True)
class Target:
    """`make` makes an input, `run` gives it to a decoder and checks what comes out."""

    name: str
    make: Callable[[random.Random], Any]
    run: Callable[[Any], object]
    errors: tuple[type[BaseException], ...] = (S3wsError,)

    def case(self, number: int) -> bool:
        """One case; whether it ended with a documented error. Raises FindingError."""
        value = self.make(random.Random(f"{self.name} {number}"))
        began = time.monotonic()
        try:
            self.run(value)
            refused = False
        except self.errors:
            refused = True
        except Exception as exc:
            raise FindingError(
                f"{self.name}, case {number}: {type(exc).__name__}: {exc}\n{value!r:.2000}"
            ) from exc
        took_s = time.monotonic() - began
        if took_s > CASE_S_MAX:
            raise FindingError(f"{self.name}, case {number}: {took_s:.0f} s\n{value!r:.2000}")
        return refused
