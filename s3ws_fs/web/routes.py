"""What is answered at which address.

    GET  /, /app.css, /*.js                      the page: files of this package, for everybody
    POST /api/session        {token}             let in once; answers the key
    GET  /api/mounts                             all mounts, in short
    GET  /api/mounts/KEY                         one, with its charts
    GET  /api/mounts/KEY/tree?path=&start=       a page of a directory
    GET  /api/mounts/KEY/file?path=              the beginning of a file
    GET  /api/mounts/KEY/log?before=             what each seal changed
    GET  /api/mounts/KEY/diff?old=&new=          what changed between two points
    GET  /api/mounts/KEY/patch?old=&new=&path=   how a file's bytes changed
    GET  /api/mounts/KEY/snapshots, …/backups
    POST /api/mounts/KEY/ticket    {path}        an address that downloads a file, once
    POST /api/mounts/KEY/look/restore {ref}, …/look/undo, …/look/restore-backup {name}
                                                 what it would change
    POST /api/mounts/KEY/confirm   {plan}        do that
    POST /api/mounts/KEY/snapshot  {name}, …/sync, …/backup
    GET  /download/TICKET                        the bytes, as an attachment

Invariants
1. GET changes nothing; POST takes JSON of at most http.BODY_BYTES_MAX, and nothing a form can send.
2. Every address below /api but /api/session needs a session; /download/ a session and its ticket.
3. Bytes of a workspace leave as an attachment of no type, never as a page.
4. Slow work has places of its own: LOOKS_MAX, HEAVY_MAX and ACTS_MAX at a time.

Called by web.server.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib import resources
from typing import Any, Final
from urllib.parse import quote_from_bytes

import trio

from s3ws_fs.control import wire
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import ExitCode, FormatError, S3wsError, UserError
from s3ws_fs.core.plaintext import safe
from s3ws_fs.web import files, looks
from s3ws_fs.web.acts import Acts
from s3ws_fs.web.guard import HEADERS, Guard
from s3ws_fs.web.http import BadRequest, Request, Response, pieces
from s3ws_fs.web.mounts import Mounts

LOOKS_MAX: Final = 8
HEAVY_MAX: Final = 2
ACTS_MAX: Final = 2
"""Threads of each kind; the others wait."""
TICKETS_MAX: Final = 64
TICKET_S: Final = 60.0
NUMBER_MAX: Final = 1 << 62
_MINDED: Final = frozenset('<>:"/\\|?*%\ufffd')

_VIEWS: Final = ("overview", "browse", "changes", "history", "restore")
_SCRIPTS: Final = ("app", "api", "dom", "charts", *_VIEWS)
_STATIC: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in _SCRIPTS},
}
_STATUS: Final = {
    ExitCode.USAGE: HTTPStatus.BAD_REQUEST,
    ExitCode.NOT_MOUNTED: HTTPStatus.NOT_FOUND,
    ExitCode.NO_SUCH_POINT: HTTPStatus.NOT_FOUND,
    ExitCode.STORE: HTTPStatus.BAD_GATEWAY,
    ExitCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}

_log = logging.getLogger(__name__)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Ticket:
    info: MountInfo
    path: bytes
    until_s: float


class Routes:
    """The handler of all requests."""

    def __init__(self, guard: Guard, mounts: Mounts) -> None:
        self._guard = guard
        self._mounts = mounts
        self._acts = Acts(mounts)
        self._differences = looks.Differences(mounts)
        self._tickets: OrderedDict[str, _Ticket] = OrderedDict()
        self._looking = trio.CapacityLimiter(LOOKS_MAX)
        self._heavy = trio.CapacityLimiter(HEAVY_MAX)
        self._acting = trio.CapacityLimiter(ACTS_MAX)
        static = resources.files(__package__) / "static"
        self._static = {
            path: ((static / name).read_bytes(), kind) for path, (name, kind) in _STATIC.items()
        }

    async def handle(self, request: Request) -> Response:
        """The answer to a request, whatever it is."""
        try:
            self._guard.admit(request)
            response = await self._route(request)
        except BadRequest as exc:
            return refusal(exc)
        except UserError as exc:
            response = _error(exc)
        except FormatError as exc:
            response = _error(UserError(f"It is damaged: {exc}", exit_code=ExitCode.STORE))
        except S3wsError as exc:
            response = _error(UserError(str(exc), exit_code=ExitCode.STORE))
        except Exception:
            # The page serves others too: a fault in one request must not end it.
            _log.exception("a request to %s failed", request.path.partition("?")[0][:100])
            response = _error(
                UserError("This failed by a fault of the status page; its log says why.")
            )
        response.headers += HEADERS
        return response

    async def _route(self, request: Request) -> Response:
        path, is_post = request.path, request.method == "POST"
        if request.method not in ("GET", "HEAD", "POST"):
            raise BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and POST are known")
        if path in self._static and not is_post:
            body, kind = self._static[path]
            return Response(body=body, headers=[("Content-Type", kind)])
        if path == "/api/session" and is_post:
            response = self._guard.enter(_json(request).get("token"))
            return _as_json(response, {"key": bytes(response.body).decode()})  # type: ignore[arg-type]
        if path.startswith("/download/") and not is_post:
            return await self._download(request, path.removeprefix("/download/"))
        if not path.startswith("/api/"):
            raise BadRequest(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        session = self._guard.require(request)
        if path == "/api/session/end" and is_post:
            self._guard.leave(session)
            return _as_json(Response(), {})
        if path == "/api/mounts" and not is_post:
            return await self._answer(self._mounts.list, self._looking)
        _, _, _, key, *rest = path.split("/", 4) if path.startswith("/api/mounts/") else [""] * 4
        info = await trio.to_thread.run_sync(self._mounts.find, key, limiter=self._looking)
        what = rest[0] if rest else ""
        if is_post:
            return await self._post(info, what, _json(request))
        return await self._get(info, what, request)

    async def _get(self, info: MountInfo, what: str, request: Request) -> Response:
        query, mounts = request.query, self._mounts
        path = query.get("path", b"")
        if what in ("", "tree", "file", "snapshots", "backups"):
            look: Callable[[], Json] = {
                "": partial(mounts.one, info),
                "tree": partial(files.tree, mounts, info, path, _number(query.get("start", b"0"))),
                "file": partial(files.preview, mounts, info, path),
                "snapshots": partial(looks.snapshots, mounts, info),
                "backups": partial(looks.backups, mounts, info),
            }[what]
            return await self._answer(look, self._looking)
        old, new = query.get("old", b""), query.get("new", b"")
        if what == "log":
            look = partial(looks.log, mounts, info, _number(query.get("before", b"0")))
        elif what == "diff":
            refs = [looks.known_ref(each.decode("utf-8", "replace")) for each in (old, new)]
            look = partial(self._differences.changes, info, *refs)
        elif what == "patch":
            look = partial(self._differences.patch, info, _number(old), _number(new), path)
        else:
            raise BadRequest(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        return await self._answer(look, self._heavy)

    async def _post(self, info: MountInfo, what: str, said: Json) -> Response:
        acts = self._acts
        if what == "ticket":
            return _as_json(Response(), {"address": self._ticket(info, said.get("path"))})
        act: dict[str, Callable[[], Json]] = {
            "look/restore": partial(acts.look_at_restore, info, said.get("ref"), said.get("paths")),
            "look/undo": partial(acts.look_at_undo, info),
            "look/restore-backup": partial(acts.look_at_backup, info, said.get("name")),
            "confirm": partial(acts.carry_out, info, said.get("plan")),
            "snapshot": partial(acts.snapshot, info, said.get("name")),
            "sync": partial(acts.sync, info),
            "backup": partial(acts.backup, info),
        }
        if what not in act:
            raise BadRequest(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        return await self._answer(act[what], self._acting)

    async def _answer(self, look: Callable[[], Json], limiter: trio.CapacityLimiter) -> Response:
        return _as_json(Response(), await trio.to_thread.run_sync(look, limiter=limiter))

    # --- downloads

    def _ticket(self, info: MountInfo, path: object) -> str:
        """An address that serves once, within TICKET_S: no header of ours comes with it."""
        if not isinstance(path, str):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "a path is missing")
        name = secrets.token_urlsafe(16)
        cleaned = files.named(path)
        self._tickets[name] = _Ticket(info, cleaned, trio.current_time() + TICKET_S)
        while len(self._tickets) > TICKETS_MAX:
            self._tickets.popitem(last=False)
        return f"/download/{name}"

    async def _download(self, request: Request, name: str) -> Response:
        self._guard.require(request, by_cookie=True)
        ticket = self._tickets.pop(name, None)
        if ticket is None or ticket.until_s < trio.current_time():
            raise BadRequest(HTTPStatus.NOT_FOUND, "this address served already")
        get = partial(files.download, self._mounts, ticket.info, ticket.path)
        file, size, found = await trio.to_thread.run_sync(get, limiter=self._looking)
        return Response(
            body=pieces(found, self._looking),
            length=size,
            headers=[
                ("Content-Type", "application/octet-stream"),
                ("Content-Disposition", disposition(file)),
            ],
        )


def disposition(name: bytes) -> str:
    """A header by which a browser saves the bytes under a name, and does nothing else with them.

    Browsers that mind a character of a name take none of it, so those that any file system minds
    are replaced.
    """
    text = name.decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() and c not in _MINDED else "_" for c in text)
    plain = "".join(c if c.isascii() else "_" for c in shown)
    quoted = quote_from_bytes(shown.encode(), "")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quoted}"


def refusal(exc: BadRequest) -> Response:
    """A request that is none of ours, or may not be."""
    response = _as_json(Response(exc.status), {"error": {"message": exc.text}})
    response.headers += HEADERS
    return response


def _error(exc: UserError) -> Response:
    said = wire.error_object(exc)
    said |= {"message": safe(exc.message), "remedy": safe(exc.remedy)}
    return _as_json(Response(_STATUS.get(exc.exit_code, HTTPStatus.CONFLICT)), {"error": said})


def _as_json(response: Response, value: Json) -> Response:
    response.body = json.dumps(value, separators=(",", ":")).encode("ascii")
    response.headers.append(("Content-Type", "application/json"))
    return response


def _json(request: Request) -> Json:
    """The body of a POST (invariant 1). Raises BadRequest."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BadRequest(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON is wanted")
    try:
        return jsontext.object_of(request.body, "body")
    except FormatError as exc:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "this is no JSON object") from exc


def _number(text: bytes) -> int:
    if text.isdigit() and len(text) < 20 and int(text) < NUMBER_MAX:
        return int(text)
    raise BadRequest(HTTPStatus.BAD_REQUEST, "a number is wanted")
