"""A headless Chromium, driven by chromedriver in the W3C WebDriver protocol over plain HTTP.

Invariants
1. Where chromium or chromedriver is missing, `need_browser` skips with that reason.
2. Driver and browser have a directory of their own, and have ended, with their children, when the
   block is left.
3. Waiting is asking again until it is so, up to WAIT_S; never a pause of its own.

Called by the tests of web, and by scripts/webshots.py.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.mounting import wait_until

WAIT_S: Final = 30.0
ANSWER_S: Final = 60.0
_ELEMENT: Final = "element-6066-11e4-a52e-4f735466cecf"
_CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")

KEYS: Final = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012"}
Found = dict[str, str]
"""An element of the page."""


class BrowserError(AssertionError):
    """What the driver said."""


def missing() -> str | None:
    """What is not installed, or None."""
    if shutil.which("chromedriver") is None:
        return "chromedriver (Debian: chromium-driver)"
    if not any(map(shutil.which, _CHROMIUM)):
        return "chromium"
    return None


def need_browser() -> None:
    """Skip the test where there is no browser."""
    what = missing()
    if what is not None:
        pytest.skip(f"not installed: {what}")


class Browser:
    """One window."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session = ""

    def start(self, profile: Path, downloads: Path) -> None:
        """Open the window."""
        program = next(path for name in _CHROMIUM if (path := shutil.which(name)))
        options = {
            "binary": program,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                "--force-color-profile=srgb",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
            ],
            "prefs": {"download.default_directory": str(downloads)},
        }
        wanted = {
            "capabilities": {
                "alwaysMatch": {
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL"},
                }
            }
        }
        self._session = self._ask("POST", "/session", wanted)["sessionId"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            data = None if method == "GET" else json.dumps(body or {})
            connection.request(method, path, data, {"Content-Type": "application/json"})
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise BrowserError(f"{value['error']}: {value['message'].splitlines()[0]}")
        return value

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """A command of this window. Raises BrowserError."""
        return self._ask(method, f"/session/{self._session}{path}", body)

    def cdp(self, cmd: str, **params: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": cmd, "params": params})

    # --- looking

    def open(self, address: str) -> None:
        """Go to an address."""
        self.ask("POST", "/url", {"url": address})

    @property
    def address(self) -> str:
        """Where it is."""
        return str(self.ask("GET", "/url"))

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script in the page."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self) -> str:
        """All that can be read on the page."""
        return str(self.run("return document.body.innerText"))

    def find(self, css: str, containing: str = "") -> Found:
        """The first element that is shown, once there is one."""
        found: list[Found] = []

        def there() -> bool:
            script = (
                "return [...document.querySelectorAll(arguments[0])].filter(e =>"
                " e.checkVisibility() && e.textContent.includes(arguments[1])).slice(0, 1)"
            )
            found[:] = self.run(script, css, containing)
            return bool(found)

        wait_until(there, timeout_s=WAIT_S, what=f"{css} with {containing!r}\n{self.text()}")
        return {_ELEMENT: found[0][_ELEMENT]}

    def wait_for(self, text: str) -> None:
        """Until it can be read on the page."""
        wait_until(lambda: text in self.text(), timeout_s=WAIT_S, what=f"{text!r} on the page")

    def click(self, css: str, containing: str = "") -> None:
        """Click an element."""
        element = self.find(css, containing)[_ELEMENT]
        self.ask("POST", f"/element/{element}/click")

    def type(self, css: str, text: str) -> None:
        """Put text into a field, instead of what is there."""
        element = self.find(css)[_ELEMENT]
        self.ask("POST", f"/element/{element}/clear")
        self.ask("POST", f"/element/{element}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys, by name or as characters."""
        downs = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": key} for key in downs for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        self.ask("POST", "/actions", {"actions": [source]})

    def complaints(self) -> list[str]:
        """What the page, or the browser over it, complained of since the last call."""
        said = self.ask("POST", "/se/log", {"type": "browser"})
        return [each["message"] for each in said if each["level"] in ("SEVERE", "WARNING")]

    # --- how it looks

    def shape(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Size of the window, and the colours its person likes."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(self.ask("GET", "/screenshot"))

    def end(self) -> None:
        """Close the window."""
        if self._session:
            self.ask("DELETE", "")


@contextlib.contextmanager
def running_browser(downloads: Path) -> Iterator[Browser]:
    """A window that downloads into a directory (invariant 2)."""
    downloads.mkdir(parents=True, exist_ok=True)
    # Not below a test's own directory: Chromium makes sockets there, whose paths have to be short.
    with tempfile.TemporaryDirectory(prefix="s3ws-b-", ignore_cleanup_errors=True) as own:
        yield from _running(Path(own), downloads)


def _running(own: Path, downloads: Path) -> Iterator[Browser]:
    home = own / "home"
    home.mkdir()
    process = subprocess.Popen(
        ["chromedriver", "--port=0", "--allowed-ips=127.0.0.1"],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(own), "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "started successfully on port" in line:
                port = int(line.rstrip(".\n").rpartition(" ")[2])
                break
        else:
            raise BrowserError("chromedriver ended before it was ready")
        browser = Browser(port)
        try:
            browser.start(own / "profile", downloads)
            yield browser
        finally:
            with contextlib.suppress(BrowserError, OSError):
                browser.end()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
