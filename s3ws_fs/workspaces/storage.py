"""The directory of the local storage. Called by the commands and the integrations that mount."""

from __future__ import annotations

import os
from pathlib import Path

from s3ws_fs.control.paths import make_private
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.settings import Settings


def make_default_store(settings: Settings, default: str) -> None:
    """Make the directory of the local storage when nobody named it: a fresh home has no parents.

    Of a named one the parents are not made: that one is missing may mean a disk is not mounted.
    """
    if settings.storage_type != "local" or settings.storage_path != os.path.realpath(default):
        return
    try:
        make_private(Path(default))
    except OSError as exc:
        raise UserError(
            f"The directory {default!a} of the local storage can't be made: {exc.strerror}.",
            remedy="Name another by WORKSPACE_STORAGE_PATH.",
            exit_code=ExitCode.STORE,
        ) from exc
