"""Where the OpenHands SDK is installed, and what it must not do while it is tested.

Called by tests.e2e.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounting import REPOSITORY

VENV: Final = Path(os.environ.get("OPENHANDS_VENV", str(REPOSITORY / ".venv-openhands")))


def require_openhands() -> str:
    """The Python that has the SDK; skips the test, saying why, where there is none."""
    if not (VENV / ".s3ws-setup").exists():
        pytest.skip(
            f"the OpenHands SDK is not (or not wholly) installed in {VENV.name}: "
            "`scripts/setup openhands` does it, where there is Python 3.12 or later"
        )
    return str(VENV / "bin/python")


def openhands_env(base: Path) -> dict[str, str]:
    """Variables that keep it in one directory, off the network, and quiet."""
    for name in ("home", "tmp"):
        (base / name).mkdir(parents=True, exist_ok=True)
    return {
        "HOME": str(base / "home"),
        "TMPDIR": str(base / "tmp"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENHANDS_SUPPRESS_BANNER": "1",
    }


def end_what_it_left(base: Path) -> None:
    """End every process that has the HOME of `openhands_env`: of a program that was killed, the
    tmux server and the shells go on, with the workspace as their directory.
    """
    mark = os.fsencode(f"HOME={base / 'home'}")
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if mark in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)
