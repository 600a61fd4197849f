"""The page asked by a real HTTP client: who is let in, what leaves, and how it is refused."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest

from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.web import files, mounts, routes
from s3ws_fs.web.guard import KEY_HEADER
from s3ws_fs.web.http import BODY_BYTES_MAX, CONNECTIONS_MAX
from tests.support.fake_mounts import Place
from tests.support.webclient import Client, Running, serving
from tests.web.conftest import CONTENT, HOSTILE


def address(info: MountInfo, what: str = "") -> str:
    return f"/api/mounts/{registry.mount_key(info.mountpoint)}" + (f"/{what}" if what else "")


# --- who is let in


def test_a_link_lets_in_once(page: Running) -> None:
    token = page.token
    assert Client(page.port).enter(token).status == 200
    second = Client(page.port).enter(token)
    assert second.status == 403 and token not in second.body.decode()
    assert page.token != token and len(page.links) == 2
    assert Client(page.port).enter(page.token).status == 200


@pytest.mark.parametrize("token", ["", "x" * 43, None, 7, ["x"], "é" * 43])
def test_no_other_token_does(page: Running, token: Any) -> None:
    answer = Client(page.port).ask("POST", "/api/session", {"token": token})
    assert answer.status == 403 and "Set-Cookie" not in answer.headers
    assert len(page.links) == 1


def test_the_cookie_is_for_this_page_alone(page: Running) -> None:
    cookie = Client(page.port).enter(page.token).headers["Set-Cookie"]
    assert re.fullmatch(r"s3ws_[0-9a-f]{8}=[\w-]{43}; HttpOnly; SameSite=Strict; Path=/", cookie), (
        cookie
    )


@pytest.mark.parametrize("left_out", ["cookie", "key"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/api/mounts"), ("POST", "/api/session/end")])
def test_cookie_and_key_are_both_needed(
    client: Client, left_out: str, method: str, path: str
) -> None:
    body: dict[str, str] | None = {} if method == "POST" else None
    setattr(client, left_out, "")
    assert client.ask(method, path, body).status == 401
    setattr(client, left_out, "s3ws_00000000=x" if left_out == "cookie" else "x")
    assert client.ask(method, path, body).status == 401


def test_every_address_below_api_needs_a_session(page: Running, dead: MountInfo) -> None:
    stranger = Client(page.port)
    for what in ("", "tree", "file?path=binary", "log", "diff", "patch", "snapshots", "backups"):
        assert stranger.ask("GET", address(dead, what)).status == 401, what
    for what in ("ticket", "look/restore", "confirm", "snapshot", "sync", "backup", "look/undo"):
        assert stranger.ask("POST", address(dead, what), {}).status == 401, what
    assert stranger.ask("GET", "/download/x").status == 401


def test_who_leaves_is_out(client: Client) -> None:
    client.get("/api/mounts")
    client.post("/api/session/end", {})
    client.get("/api/mounts", 401)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_host_is_refused_before_anything(page: Running, client: Client, host: str) -> None:
    for path in ("/", "/api/mounts", "/app.js"):
        assert client.ask("GET", path, headers={"Host": host}).status == 421, path
    answer = client.ask("POST", "/api/session", {"token": page.token}, headers={"Host": host})
    assert answer.status == 421 and len(page.links) == 2


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:9", "LOCALHOST"])
def test_loopback_by_any_port_is_us(client: Client, host: str) -> None:
    assert client.ask("GET", "/api/mounts", headers={"Host": host}).status == 200


def test_a_further_name_can_be_allowed() -> None:
    with serving(("box.example",)) as page:
        assert Client(page.port).ask("GET", "/", headers={"Host": "box.example:8"}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_pages_may_not_ask(client: Client, dead: MountInfo, headers: dict[str, str]) -> None:
    path = address(dead, "ticket")
    assert client.ask("POST", path, {"path": "binary"}, headers=headers).status == 403
    assert client.ask("GET", "/api/mounts", headers=headers).status == 403


def test_what_a_form_can_send_is_no_request(client: Client, dead: MountInfo) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data", None):
        answer = client.ask("POST", address(dead, "sync"), b"{}", headers={"Content-Type": kind})
        assert answer.status == 415, kind
    assert client.ask("POST", address(dead, "sync"), b"[1]").status == 400
    assert client.ask("POST", address(dead, "sync"), b"{" * 5000).status == 400


def test_get_changes_nothing(client: Client, living: MountInfo) -> None:
    for what in ("sync", "snapshot", "backup", "confirm", "look/restore", "look/undo", "ticket"):
        assert client.ask("GET", address(living, what)).status == 404, what


def test_other_methods_are_refused(client: Client) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert client.ask(method, "/api/mounts").status == 405, method


# --- how it leaves


def test_every_answer_has_the_headers(client: Client, dead: MountInfo) -> None:
    asked = [
        client.ask("GET", path)
        for path in (
            "/",
            "/app.css",
            "/nothing",
            "/api/mounts",
            address(dead, "tree"),
            "/api/x/y/z",
        )
    ]
    asked += [client.ask("PUT", "/"), client.ask("GET", "/", headers={"Host": "evil"})]
    asked.append(client.ask("POST", "/api/session", b"x" * (BODY_BYTES_MAX + 1)))
    for answer in asked:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert asked[-1].status == 413


def test_the_page_is_of_this_package_alone(client: Client) -> None:
    text = client.ask("GET", "/").body.decode()
    assert "http://" not in text and "https://" not in text
    for name in re.findall(r'(?:src|href)="(/[^"]+)"', text):
        assert client.ask("GET", name).status == 200, name
    for path, (name, kind) in routes._STATIC.items():
        answer = client.ask("GET", path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind), name
        if name.endswith(".js"):
            for module in re.findall(r'from "\./([^"]+)"', answer.body.decode()):
                assert f"/{module}" in routes._STATIC, module


def test_no_script_makes_html() -> None:
    sinks = (
        "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\\(|new Function|srcdoc|style="
    )
    from importlib import resources

    for entry in (resources.files("s3ws_fs.web") / "static").iterdir():
        if not entry.name.endswith(".svg"):
            assert not re.search(sinks, entry.read_text()), entry.name


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/static/app.js", "/app.js/..", "/%2e%2e/app.js", "//app.js", "/app.py"],
)
def test_nothing_else_is_served(client: Client, path: str) -> None:
    assert client.ask("GET", path).status == 404


# --- mounts


def test_a_dead_mount_is_listed_with_what_is_unsaved(client: Client, dead: MountInfo) -> None:
    (mount,) = client.get("/api/mounts")["mounts"]
    assert (mount["state"], mount["alive"], mount["conversation"]) == (
        "dead",
        False,
        "conversation",
    )
    assert mount["unsaved"]["files"] > 0
    assert client.get(address(dead))["status"]["unsaved"] == mount["unsaved"]


@pytest.mark.parametrize("key", ["0" * 16, "x", "..", "%2e%2e", "0" * 17, ""])
def test_no_other_key_is_a_mount(client: Client, dead: MountInfo, key: str) -> None:
    assert client.ask("GET", f"/api/mounts/{key}/tree").status == 404


# --- files


def test_names_are_shown_harmless_and_kept_true(client: Client, dead: MountInfo) -> None:
    entries = client.get(address(dead, "tree"))["entries"]
    (odd,) = [each for each in entries if each["shown"].startswith("<img")]
    assert odd["shown"] == "<img src=x onerror=alert(1)>\\x1b[31m\\xff\\u202e.txt"
    assert odd["id"] == quote_from_bytes(HOSTILE)
    found = client.get(address(dead, f"file?path={odd['id']}"))
    assert found["text"] == "<script>alert(1)</script>\n\\x1b[31m\\u202e\n"
    assert found["size"] == len(CONTENT) and not found["is_binary"]


def test_a_directory_and_the_way_to_it(client: Client, dead: MountInfo) -> None:
    found = client.get(address(dead, "tree?path=dir"))
    assert [each["shown"] for each in found["path"]] == ["dir"]
    (entry,) = found["entries"]
    assert (entry["shown"], entry["id"], entry["state"]) == ("inner.txt", "dir/inner.txt", "dirty")
    assert client.get(address(dead, "file?path=dir/inner.txt"))["text"] == "hello\nworld\n"


def test_directories_come_in_pages(
    client: Client, dead: MountInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PAGE_MAX", 2)
    first, last = (
        client.get(address(dead, "tree?start=0")),
        client.get(address(dead, "tree?start=4")),
    )
    assert (first["total"], len(first["entries"]), len(last["entries"])) == (5, 2, 1)
    assert client.get(address(dead, "tree?start=9"))["entries"] == []
    for start in ("-1", "x", "9" * 30, ""):
        client.get(address(dead, f"tree?start={start}"), 400)


@pytest.mark.parametrize(
    "path",
    ["..", "../..", "dir/..", "/etc/passwd", "dir//inner.txt", ".", "%2e%2e", "nothing", "out/x",
     "%00", "dir/inner.txt/x", "a" * 5000, "%ff%fe"],
)  # fmt: skip
def test_no_path_leads_out(client: Client, dead: MountInfo, path: str) -> None:
    for what in ("tree", "file"):
        assert client.ask("GET", address(dead, f"{what}?path={path}")).status == 400, what


def test_a_symlink_is_shown_and_not_followed(client: Client, dead: MountInfo) -> None:
    entries = client.get(address(dead, "tree"))["entries"]
    assert [each["target"] for each in entries if each["shown"] == "out"] == ["/etc/passwd"]
    assert "no file" in client.ask("GET", address(dead, "file?path=out")).error


def test_what_is_no_text_is_not_shown(client: Client, dead: MountInfo) -> None:
    found = client.get(address(dead, "file?path=binary"))
    assert (found["is_binary"], found["text"]) == (True, None)


def download(client: Client, info: MountInfo, path: str) -> Any:
    ticket = client.post(address(info, "ticket"), {"path": path})["address"]
    # A browser sends the cookie alone with it.
    return ticket, client.ask("GET", ticket, headers={KEY_HEADER: None})


def test_a_download_is_an_attachment_of_no_type(client: Client, dead: MountInfo) -> None:
    _, answer = download(client, dead, quote_from_bytes(HOSTILE))
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    said = answer.headers["Content-Disposition"]
    assert said.startswith('attachment; filename="') and said.isascii() and "<" not in said
    assert "\\" not in said and said.count('"') == 2


def test_a_sparse_file_is_whole(client: Client, dead: MountInfo) -> None:
    assert download(client, dead, "sparse")[1].body == bytes(3 << 20) + b"end"


def test_a_ticket_serves_once_and_not_alone(client: Client, dead: MountInfo) -> None:
    ticket, answer = download(client, dead, "binary")
    assert answer.body == b"a\0b"
    assert client.ask("GET", ticket).status == 404
    other = client.post(address(dead, "ticket"), {"path": "binary"})["address"]
    assert client.ask("GET", other, headers={"Cookie": None}).status == 401


def test_tickets_have_a_limit(client: Client, dead: MountInfo) -> None:
    tickets = [
        client.post(address(dead, "ticket"), {"path": "binary"})["address"]
        for _ in range(routes.TICKETS_MAX + 1)
    ]
    assert client.ask("GET", tickets[0]).status == 404
    assert client.ask("GET", tickets[1]).status == 200


# --- errors


def test_a_refusal_is_told_as_it_was_said(
    client: Client, living: MountInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> dict[str, Any]:
        raise UserError("the store \u202e says no", remedy="try later", exit_code=ExitCode.STORE)

    monkeypatch.setattr("s3ws_fs.control.client.request", refuse)
    answer = client.ask("POST", address(living, "sync"), {})
    assert answer.status == 502
    said = answer.json()["error"]
    assert (said["message"], said["remedy"]) == ("the store \\u202e says no", "try later")


def test_a_fault_is_logged_and_not_told(
    client: Client,
    living: MountInfo,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> dict[str, Any]:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("s3ws_fs.control.client.request", fail)
    answer = client.ask("POST", address(living, "sync"), {})
    assert answer.status == 500 and b"secret" not in answer.body
    assert "secret detail" in caplog.text and client.key not in caplog.text
    client.get("/api/session/none", 404)


def test_connections_have_a_limit(page: Running) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(CONNECTIONS_MAX):
            idle = held.enter_context(socket.create_connection(("127.0.0.1", page.port)))
            # Answered, so that it is known to hold its place; and kept.
            idle.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(12) == b"HTTP/1.1 200"
        with contextlib.closing(socket.create_connection(("127.0.0.1", page.port))) as one_more:
            assert one_more.recv(12) == b"HTTP/1.1 503"
    assert Client(page.port).ask("GET", "/").status in (200, 503)


def test_a_list_has_a_limit(
    client: Client, dead: MountInfo, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.write(place.runtime_dir, replace(dead, mountpoint=dead.mountpoint + "-2"))
    monkeypatch.setattr(mounts, "LISTED_MAX", 1)
    found = client.get("/api/mounts")
    assert (len(found["mounts"]), found["more"]) == (1, 1)
    Path(registry.info_path(place.runtime_dir, dead.mountpoint)).write_text("{")
    found = client.get("/api/mounts")
    assert (len(found["mounts"]), found["more"], len(found["damaged"])) == (1, 0, 1)


def test_a_preview_has_a_limit(
    client: Client, dead: MountInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PREVIEW_BYTES_MAX", 3)
    found = client.get(address(dead, "file?path=dir/inner.txt"))
    assert (found["text"], found["shown_bytes"], found["size"]) == ("hel", 3, 13)
    # A character that the limit cuts in two does not make it binary; anything else does.
    assert files.as_text("ab€".encode()[:3]) == "ab"
    assert files.as_text(b"a\xff\xff") is None
    with pytest.raises(UserError):
        files.clean(b"a" * (files.PATH_BYTES_MAX + 1))


def test_slow_acts_wait_for_each_other_and_hold_up_nobody(
    client: Client, living: MountInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, lock = threading.Event(), threading.Lock()
    at_work: list[int] = [0]
    most: list[int] = [0]
    entered = threading.Semaphore(0)

    def slow(_: str, cmd: str, *__: Any, **___: Any) -> dict[str, Any]:
        if cmd != "sync":
            return {"state": "ready"}
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        entered.release()
        assert go.wait(60)
        with lock:
            at_work[0] -= 1
        return {}

    monkeypatch.setattr("s3ws_fs.control.client.request", slow)
    path = address(living, "sync")
    with ThreadPoolExecutor(routes.ACTS_MAX + 2) as pool:
        asked = [pool.submit(client.ask, "POST", path, {}) for _ in range(routes.ACTS_MAX + 2)]
        for _ in range(routes.ACTS_MAX):
            assert entered.acquire(timeout=60)
        assert client.get("/api/mounts")["mounts"][0]["state"] == "ready"
        go.set()
        assert [each.result().status for each in asked] == [200] * len(asked)
    assert most[0] == routes.ACTS_MAX
