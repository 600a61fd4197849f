"""What `s3ws doctor` finds: one thing that was looked at, how it is, and what to do.

Invariants
1. A check never raises for what it looks at: what is wrong is its answer.
2. The exit code of one that failed is that with which `s3ws mount` would end for it.

Called by the checks beside it, and the command.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from s3ws_fs.core.errors import ExitCode

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing. `remedy` is empty where nothing is to be done."""

    name: str
    state: str
    detail: str
    remedy: str = ""
    exit_code: ExitCode = ExitCode.OK

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self) | {"exit_code": int(self.exit_code)}


def ok(name: str, detail: str) -> Check:
    """It is as it should be."""
    return Check(name, OK, detail)


def warning(name: str, detail: str, remedy: str) -> Check:
    """Mounting works, but something will hurt some day."""
    return Check(name, WARNING, detail, remedy)


def failed(name: str, detail: str, remedy: str, exit_code: ExitCode) -> Check:
    """Mounting does not work."""
    return Check(name, FAILED, detail, remedy, exit_code)


def skipped(name: str, why: str) -> Check:
    """It could not be looked at, for another's sake."""
    return Check(name, SKIPPED, why)


def exit_code(checks: Iterable[Check]) -> ExitCode:
    """That of the first check that failed."""
    return next((each.exit_code for each in checks if each.state == FAILED), ExitCode.OK)
