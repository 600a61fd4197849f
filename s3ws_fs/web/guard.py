"""Who may look: links that let a browser in once, sessions, and what every request must show.

A link holds a token in its fragment, which no browser sends. The page posts it, and gets a cookie
(HttpOnly, SameSite=Strict) and a key. Every further request has to show both: the cookie, and the
key in a header. Browsers send the cookies of an address to all its ports, so a cookie may get known
to another server on this host: alone it is worth nothing. The key is kept by the browser for our
port alone, and no other page can send it.

Invariants
1. A token lets in once; then another takes its place. Tokens, cookies and keys come from `secrets`,
   are compared in constant time, and are in no log, argument or address.
2. A request whose Host is none of ours is refused before anything is looked at, so that no name can
   be made to point here (DNS rebinding); so is one that another page made (Origin, Sec-Fetch-Site).
3. At most SESSIONS_MAX sessions; one that was not used for SESSION_IDLE_S is over.

Called by web.server and web.routes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from s3ws_fs.web.http import BadRequest, Request, Response

TOKEN_BYTES: Final = 32
SESSIONS_MAX: Final = 16
SESSION_IDLE_S: Final = 12 * 3600.0
COOKIE_PREFIX: Final = "s3ws_"
"""What follows is another one at each run: two pages on one address would take each other's."""
KEY_HEADER: Final = "x-s3ws-key"
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})

HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ("Cache-Control", "no-store"),
)
"""Of every answer."""


@dataclass(slots=True)
class Session:
    """A browser that was let in."""

    cookie: str
    key: str
    used_s: float


class Guard:
    """`hosts`: names by which we may be called, without a port. `monotonic`: seconds."""

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        monotonic: Callable[[], float],
        on_used: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._hosts = LOOPBACK | {host.lower() for host in hosts}
        self._monotonic = monotonic
        self._on_used = on_used
        self._sessions: list[Session] = []
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.cookie = COOKIE_PREFIX + secrets.token_hex(4)

    def admit(self, request: Request) -> None:
        """What holds for every request (invariant 2). Raises BadRequest."""
        host = request.headers.get("host", "").lower()
        if _without_port(host) not in self._hosts:
            raise BadRequest(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this address is not known here: see --allow-host of `s3ws web`",
            )
        site = request.headers.get("sec-fetch-site", "none")
        origin = request.headers.get("origin")
        if request.path.startswith(("/api/", "/download/")) and (
            site not in ("same-origin", "none") or origin not in (None, f"http://{host}")
        ):
            raise BadRequest(HTTPStatus.FORBIDDEN, "another page asked")

    def enter(self, token: object) -> Response:
        """A session for whoever has the token. Raises BadRequest."""
        given = token.encode("utf-8", "replace") if isinstance(token, str) else b""
        if not secrets.compare_digest(given, self.token.encode()):
            raise BadRequest(
                HTTPStatus.FORBIDDEN,
                "this link was used already, or is of an earlier run: take the newest one from the "
                "terminal",
            )
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        session = Session(
            secrets.token_urlsafe(TOKEN_BYTES),
            secrets.token_urlsafe(TOKEN_BYTES),
            self._monotonic(),
        )
        self._forget_idle()
        self._sessions = [*self._sessions, session][-SESSIONS_MAX:]
        self._on_used(self.token)
        cookie = f"{self.cookie}={session.cookie}; HttpOnly; SameSite=Strict; Path=/"
        return Response(body=session.key.encode(), headers=[("Set-Cookie", cookie)])

    def require(self, request: Request, *, by_cookie: bool = False) -> Session:
        """The session of a request. Raises BadRequest.

        `by_cookie`: of a download, whose address is a secret of its own that serves once.
        """
        self._forget_idle()
        cookie = _cookie(request.headers.get("cookie", ""), self.cookie).encode("utf-8", "replace")
        key = request.headers.get(KEY_HEADER, "").encode("utf-8", "replace")
        found = None
        for session in self._sessions:
            same = secrets.compare_digest(session.cookie.encode(), cookie)
            if same and (by_cookie or secrets.compare_digest(session.key.encode(), key)):
                found = session
        if found is None:
            raise BadRequest(HTTPStatus.UNAUTHORIZED, "sign in by the link from the terminal")
        found.used_s = self._monotonic()
        return found

    def leave(self, session: Session) -> None:
        """End a session."""
        self._sessions.remove(session)

    def _forget_idle(self) -> None:
        since_s = self._monotonic() - SESSION_IDLE_S
        self._sessions = [each for each in self._sessions if each.used_s >= since_s]


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and port.isascii() else host


def _cookie(text: str, wanted: str) -> str:
    """The value of a cookie, "" when it is not there."""
    for part in text.split(";"):
        name, _, value = part.strip().partition("=")
        if name == wanted:
            return value
    return ""
