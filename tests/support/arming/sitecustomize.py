"""Read by the interpreter of every child that has this directory on PYTHONPATH.

A failpoint is armed when the environment names a plan (tests/support/armed.py); else nothing
happens, and nothing is imported.
"""

from __future__ import annotations

import os

if "S3WS_TEST_FAILPOINT" in os.environ:
    from tests.support.armed import install_from_environment

    install_from_environment()
