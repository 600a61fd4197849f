"""Which volumes there are, and who uses each: one JSON file, so that the plugin may be restarted.

Invariants
1. What a method returned from is on disk: written whole (temporary file, fsync, rename), 0600, in a
   directory 0700. A file that does not decode is an error, never an empty list of volumes.
2. Uses (mount ids) belong to one boot: after another one no container of theirs runs any more.
3. It holds options, which hold no secret (integrations.options).
4. At most VOLUMES_MAX volumes, and USES_MAX uses of one.

Not locked: called by volumes.driver, under its lock.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from s3ws_fs.control.paths import ensure_private_dir
from s3ws_fs.control.registry import boot_id
from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import ExitCode, FormatError, UserError

VOLUMES_MAX: Final = 10_000
USES_MAX: Final = 1_000
STATE_BYTES_MAX: Final = 64 << 20
VERSION: Final = 1
_NAME: Final = "volumes.json"


@dataclass
class Volume:
    """One volume. `cache`: the directory of its workspace's cache, which no other volume has;
    `uses`: the ids by which it was mounted and not yet unmounted.
    """

    name: str
    options: dict[str, str]
    cache: str
    created_s: float
    uses: list[str] = field(default_factory=list)


class State:
    """The volumes, in memory and on disk."""

    def __init__(self, directory: str) -> None:
        """Load them. Raises FormatError, OSError, UserError."""
        ensure_private_dir(directory)
        self._path = Path(directory) / _NAME
        self.volumes: dict[str, Volume] = {}
        try:
            with self._path.open("rb") as source:
                data = source.read(STATE_BYTES_MAX + 1)
        except FileNotFoundError:
            return
        self._load(data)

    def add(self, name: str, options: dict[str, str], cache: str) -> None:
        """A new volume."""
        if len(self.volumes) >= VOLUMES_MAX:
            raise UserError(
                f"There are {VOLUMES_MAX} volumes already.",
                remedy="Remove those that nobody needs (the workspaces stay in the bucket).",
                exit_code=ExitCode.BAD_SETTINGS,
            )
        self._change(name, Volume(name, options, cache, time.time()))

    def remove(self, name: str) -> None:
        """Forget a volume."""
        self._change(name, None)

    def use(self, name: str, ident: str) -> None:
        """Note a use; the same one twice is one."""
        volume = self.volumes[name]
        if ident in volume.uses:
            return
        if len(volume.uses) >= USES_MAX:
            raise UserError(f"The volume {name} is in use {USES_MAX} times already.")
        self._change(name, replace(volume, uses=[*volume.uses, ident]))

    def release(self, name: str, ident: str) -> None:
        """Note the end of a use; one that is not known changes nothing."""
        volume = self.volumes[name]
        if ident in volume.uses:
            uses = [use for use in volume.uses if use != ident]
            self._change(name, replace(volume, uses=uses))

    def _change(self, name: str, volume: Volume | None) -> None:
        """On disk first: what could not be written is not done."""
        changed = {key: value for key, value in self.volumes.items() if key != name}
        if volume is not None:
            changed[name] = volume
        self._write(changed)
        self.volumes = changed

    def _write(self, volumes: dict[str, Volume]) -> None:
        document = {
            "v": VERSION,
            "boot_id": boot_id(),
            "volumes": [asdict(volume) for volume in volumes.values()],
        }
        temporary = self._path.with_suffix(".tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as out:
            json.dump(document, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _load(self, data: bytes) -> None:
        where = str(self._path)
        document = jsontext.object_of(data, where)
        if document.get("v") != VERSION:
            raise FormatError(where, f"version {document.get('v')!a} is not known")
        listed = document.get("volumes")
        if len(data) > STATE_BYTES_MAX or not isinstance(listed, list):
            raise FormatError(where, "no list of volumes")
        is_this_boot = document.get("boot_id") == boot_id()
        for item in listed:
            volume = _volume(item, where)
            if not is_this_boot:
                volume.uses = []
            self.volumes[volume.name] = volume


def _volume(item: Any, where: str) -> Volume:
    try:
        name, options, uses, cache = item["name"], item["options"], item["uses"], item["cache"]
        created_s = float(item["created_s"])
        strings = [name, cache, *options.keys(), *options.values(), *uses]
    except (TypeError, KeyError, AttributeError, ValueError) as exc:
        raise FormatError(where, f"not a volume ({type(exc).__name__})") from None
    if not isinstance(uses, list) or not all(isinstance(text, str) for text in strings):
        raise FormatError(where, "not a volume (types)")
    return Volume(name, options, cache, created_s, uses)
