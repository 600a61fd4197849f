"""Requests about objects of the mirror that are not ours (docs/outside.md).

Called by worker (see requests).
"""

from __future__ import annotations

from typing import Any

from s3ws_fs.transfer import outside
from s3ws_fs.transfer.session import Group, Reply


class Outside(Group):
    """Nothing in the bucket is changed."""

    def do_look_outside(self, ask: dict[str, Any], part: Reply) -> None:
        """What stands at these mirror paths that is not ours."""
        for text in ask["paths"]:
            found = outside.look(self.session.store, text, ask["workspace"])
            if found is not None:
                part({"found": found.to_json()})

    def do_fetch_outside(self, ask: dict[str, Any], part: Reply) -> None:
        """The bytes of one object that is not ours, in pieces; only while it is that one."""
        for data in outside.read(self.session.store, ask["path"], ask["etag"], ask["size_bytes"]):
            part({}, data)

    def do_measure_outside(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """How much an import of the whole mirror would bring."""
        return outside.measure(self.session.store)

    def do_import(self, ask: dict[str, Any], part: Reply) -> None:
        """Everything below files/, object by object, with the directories above them."""
        session = self.session
        outside.send_all(session.store, session.transfers, part)
