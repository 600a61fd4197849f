"""Requests before any work: opening store and cache, what the store is, the lease.

Invariants
1. `warm` and `hello` make no request of the store; every other request of the worker comes after.

Called by worker (see requests).
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.ids import new_id
from s3ws_fs.core.lease import GIVEN, NEW, OWN
from s3ws_fs.store.base import Conditional
from s3ws_fs.transfer import journaling, leasing
from s3ws_fs.transfer.leasing import Claim
from s3ws_fs.transfer.session import Group, Reply


class Opening(Group):
    """From `hello` to a lease."""

    def do_warm(self, ask: dict[str, Any], part: Reply) -> None:
        """Build the client of the store that `hello` will most likely name, and load what a mount
        needs. (transfer/early asks for it.)"""
        self.session.warm(ask)

    def do_hello(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Open store and cache; no request is made."""
        session = self.session
        session.open(ask)
        if ask.get("conditional") is not None:
            session.store.assume(Conditional(**ask["conditional"]))
        return {"pid": os.getpid()}

    def do_lease(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Take the lease, and shut out who had it. `state`: what stands then, unless as before."""
        session = self.session
        claim = Claim(**ask["claim"])
        taking = session.gate.take(claim)
        state = None
        # Also when an earlier start of ours took it, and died before it had sealed.
        if taking.is_from_another or (taking.how == OWN and not ask["ours"]):
            state = leasing.seal_fence(
                session.store,
                claim,
                taking.grant.lease.epoch,
                uuid=ask["uuid"],
                flush_id=new_id(session.means.randbits),
            )
        elif taking.how == GIVEN or (taking.how == NEW and claim.epoch_floor):
            # Without a lease, but not without a past: since we looked it may have been deleted.
            state = journaling.survey(session.store)
        session.surveyed = state
        return {
            "how": taking.how,
            "was": None if taking.was is None else taking.was.who,
            "quiet_s": taking.quiet_s,
            "state": None if state is None else state.to_json(),
        }

    def do_renew(self, ask: dict[str, Any], part: Reply) -> None:
        """Prove the lease; it lasts `lasts_s` from now on."""
        self.session.gate.renew(ask["lasts_s"])

    def do_release(self, ask: dict[str, Any], part: Reply) -> None:
        """Give the lease back: all is done."""
        self.session.gate.release()

    def do_probe(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Does it answer, and does it keep conditions? Raises UserError exit 6."""
        session = self.session
        session.store.check()
        found = session.store.probe_conditional(session.transfers)
        if not found.safe and not ask["allow_unconditional"]:
            raise UserError(
                "the store ignores conditional writes: two writers could overwrite each other",
                remedy="Use a store that keeps If-None-Match and If-Match on PUT (AWS S3, MinIO, "
                "SeaweedFS), or allow it with WORKSPACE_ALLOW_UNCONDITIONAL=1 and one writer only.",
                exit_code=ExitCode.STORE,
            )
        return {"conditional": asdict(found)}

    def do_ping(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """We are there; and what the store has not answered that it should have."""
        return {"late": self.session.late()}

    def do_check(self, ask: dict[str, Any], part: Reply) -> None:
        """Does it answer?"""
        self.session.store.check()

    def do_survey(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """What stands in the journal."""
        return journaling.survey(self.session.store).to_json()

    def do_make_workspace(self, ask: dict[str, Any], part: Reply) -> dict[str, Any]:
        """Create or read journal/workspace.json."""
        session = self.session
        session.workspace = journaling.make_workspace(session.store, ask["uuid"], ask["created_ns"])
        return {"workspace": session.workspace}
