"""Texts that the worker says and the daemon knows again. Called by both.

Invariants
1. Nothing else is here: the daemon, which waits for its imports, loads none of the worker's modules
   for a word.
"""

from __future__ import annotations

from typing import Final

LATE: Final = "a later flush of this workspace put it: another writer goes on"
MISSING: Final = "the object is missing in the bucket"
"""Why bytes could not be had, in a FormatError, where nothing stands any more."""
NO_PATH: Final = "its key is the path of no file: a name is empty, dots, too long or not escaped"
