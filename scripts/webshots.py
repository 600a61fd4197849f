"""The pictures of docs/web.md: `python -m scripts.webshots`.

A small workspace is mounted on a directory as its bucket, worked in for two turns, and looked at in
a headless Chromium by the status page. Needs /dev/fuse, chromium and chromedriver.

Invariants
1. Nothing is left but the pictures: mount, server, browser and directories end with the run.
2. Names and numbers that differ from run to run are in the pictures (times, sizes): they are made
   anew by hand, when the page looks otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.support.browser import Browser, missing, running_browser
from tests.support.buckets import LocalBucket
from tests.support.host import Host
from tests.support.webpage import running_page

IMAGES: Final = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDE: Final = (960, 640)
PHONE: Final = (390, 720)
LIVE_S: Final = 40.0
"""How long the charts are watched, with something written meanwhile."""
PAUSE_LOOKS: Final = 4

SERVER: Final = '''\
"""A small service that answers what it is asked."""

import json
from http.server import BaseHTTPRequestHandler


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
'''


def work(host: Host) -> None:
    """Two turns of an agent."""
    top = host.mountpoint
    host.s3ws("turn", "begin", "1-first-sketch", top)
    (top / "src").mkdir()
    (top / "src" / "server.py").write_text(SERVER)
    (top / "src" / "__init__.py").write_text("")
    (top / "README.md").write_text("# A service\n\nIt answers what it is asked.\n")
    (top / "tests").mkdir()
    (top / "tests" / "test_server.py").write_text("def test_nothing():\n    assert True\n")
    (top / "data.bin").write_bytes(bytes(range(256)) * 4000)
    host.s3ws("turn", "end", "1-first-sketch", top)
    host.s3ws("snapshot", "--name", "before-refactoring", top)
    host.s3ws("turn", "begin", "2-errors-and-logs", top)
    changed = SERVER.replace("import json\n", "import json\nimport logging\n")
    changed = changed.replace(
        "body = json", 'logging.info("asked for %s", self.path)\n        body = json'
    )
    (top / "src" / "server.py").write_text(changed)
    (top / "src" / "errors.py").write_text("class Refused(Exception):\n    pass\n")
    (top / "tests" / "test_server.py").rename(top / "tests" / "test_answers.py")
    (top / "data.bin").unlink()
    host.s3ws("turn", "end", "2-errors-and-logs", top)
    host.s3ws("backup", top)


def watch(host: Host, browser: Browser) -> None:
    """Let the charts have something to show."""
    until_s = time.monotonic() + LIVE_S
    number = 0
    while time.monotonic() < until_s:
        number += 1
        # A file, then time enough for it to be saved.
        if number % PAUSE_LOOKS:
            browser.text()
            time.sleep(1.5)
            continue
        data = bytes((number * 7 + at) % 251 for at in range(256)) * 400 * (1 + number % 5)
        (host.mountpoint / "src" / f"model-{number // PAUSE_LOOKS % 4}.bin").write_bytes(data)
    (host.mountpoint / "src" / "notes.md").write_text("not saved yet\n")


def shoot(browser: Browser, target: Path, name: str) -> None:
    """One picture."""
    (target / f"web-{name}.png").write_bytes(browser.picture())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=IMAGES)
    target = parser.parse_args().to
    if (what := missing()) is not None:
        raise SystemExit(f"not installed: {what}")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="s3ws-shots-") as base, contextlib.ExitStack() as stack:
        here = Path(base)
        (here / "store").mkdir()
        settings = {"WORKSPACE_SYNC_DEBOUNCE_MIN": "2", "WORKSPACE_BACKUP_INTERVAL": "300"}
        bucket = LocalBucket(here / "store")
        host = Host(
            here / "alice",
            bucket.env,
            user="alice",
            conversation="review-service",
            settings=settings,
        )
        other = Host(
            here / "bob", bucket.env, user="bob", conversation="port-to-rust", settings=settings
        )
        other.settings["WORKSPACE_RUNTIME_DIR"] = str(host.runtime)
        other.runtime = host.runtime
        for each in (host, other):
            stack.callback(each.end)
            each.mount()
        (other.mountpoint / "main.rs").write_text("fn main() {}\n")
        work(host)
        page = stack.enter_context(running_page(host.env, here / "page"))
        browser = stack.enter_context(running_browser(here / "downloads"))
        pictures(host, browser, page.link, target)


def pictures(host: Host, browser: Browser, link: str, target: Path) -> None:
    browser.shape(*WIDE)
    browser.open(link)
    browser.click("a.mount", "review-service")
    browser.find(".verdict")
    watch(host, browser)
    shoot(browser, target, "overview")
    base = browser.address
    browser.click(".brand")
    browser.find("a.mount", "port-to-rust")
    shoot(browser, target, "mounts")
    browser.open(f"{base}/files?path=src")
    browser.find("td", "server.py")
    shoot(browser, target, "files")
    browser.open(f"{base}/changes")
    browser.click("a.button", "What it changed")
    browser.click("details.file summary", "server.py")
    browser.find("pre.patch")
    shoot(browser, target, "changes")
    browser.click("input[aria-label='Select data.bin']")
    browser.click("button", "Restore selected (1)")
    browser.find("dialog .paths", "data.bin")
    shoot(browser, target, "restore-one")
    browser.press("Escape")
    browser.open(f"{base}/history")
    browser.find("td", "before-refactoring")
    browser.find("td", "backup-")
    browser.click("button[aria-label='Restore before-refactoring']")
    browser.find("dialog .paths")
    shoot(browser, target, "restore")
    browser.press("Escape")
    browser.shape(*WIDE, dark=True)
    browser.open(base)
    browser.find(".verdict p")
    browser.find("figure .line")
    shoot(browser, target, "dark")
    browser.shape(*PHONE)
    browser.open(base)
    browser.find(".verdict p")
    shoot(browser, target, "phone")


if __name__ == "__main__":
    main()
