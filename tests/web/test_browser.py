"""The page in a headless Chromium, over a real mount: what a person sees and does there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.control import registry
from tests.support.browser import Browser, need_browser, running_browser
from tests.support.buckets import LocalBucket
from tests.support.host import QUICK, Host
from tests.support.mounting import wait_until
from tests.support.webpage import Page, running_page
from tests.web.conftest import HOSTILE

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

MARKUP = "<img src=x onerror='document.title=1'><script>document.title=1</script>"
NARROW = (360, 720)

CONTRAST = """
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const found = channels(getComputedStyle(node).backgroundColor);
    if (found.length < 4 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
const bad = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !node.checkVisibility()) continue;
  if (node.closest(":disabled, noscript, .skip")) continue;
  const [a, b] = [luminance(channels(getComputedStyle(node).color)), luminance(behind(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push(`${walk.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return bad;
"""
"""Texts whose colour differs from what is behind them by less than WCAG asks (4.5 : 1)."""

UNNAMED = """
return [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0'], dialog")]
  .filter((node) => node.checkVisibility())
  .filter((node) => !(node.getAttribute("aria-label") || node.labels?.length
    || node.textContent.trim() || document.getElementById(node.getAttribute("aria-labelledby"))))
  .map((node) => node.outerHTML.slice(0, 80));
"""
"""Controls without a name that a screen reader could say."""


class Scene:
    """A mount, its page, and a window that was let in."""

    def __init__(self, host: Host, page: Page, browser: Browser, downloads: Path) -> None:
        self.host = host
        self.page = page
        self.browser = browser
        self.downloads = downloads
        self.top = host.mountpoint
        key = registry.mount_key(str(host.mountpoint))
        self.base = f"http://127.0.0.1:{page.port}/#/m/{key}"

    def go(self, tab: str = "") -> Browser:
        """Open a part of the mount, anew."""
        self.browser.open("about:blank")
        self.browser.open(self.base + (f"/{tab}" if tab else ""))
        self.browser.find("h1", self.host.settings["WORKSPACE_CONVERSATION_ID"])
        return self.browser


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    need_browser()
    base = tmp_path_factory.mktemp("scene")
    (base / "store").mkdir()
    settings = QUICK | {"WORKSPACE_BACKUP_INTERVAL": "0"}
    host = Host(base / "host", LocalBucket(base / "store").env, settings=settings)
    with contextlib.ExitStack() as stack:
        stack.callback(host.end)
        host.mount()
        top = os.fsencode(host.mountpoint)
        (host.mountpoint / "src").mkdir()
        (host.mountpoint / "src" / "a.py").write_text("one = 1\ntwo = 2\n")
        with open(os.path.join(top, HOSTILE), "w") as odd:
            odd.write(MARKUP + "\n")
        host.s3ws("snapshot", "--name", "first", host.mountpoint)
        page = stack.enter_context(running_page(host.env, base / "page"))
        browser = stack.enter_context(running_browser(base / "downloads"))
        browser.shape(1120, 800)
        browser.open(page.link)
        browser.find("a.mount")
        yield Scene(host, page, browser, base / "downloads")


@pytest.fixture(autouse=True)
def no_complaints(scene: Scene) -> Iterator[None]:
    """Neither the page nor the browser complained: no script was refused, nothing broke."""
    scene.browser.shape(1120, 800)
    yield
    assert scene.browser.complaints() == []


def test_the_token_leaves_the_address_and_the_link_is_spent(scene: Scene) -> None:
    browser = scene.browser
    browser.open(f"http://127.0.0.1:{scene.page.port}/#/")
    browser.find("a.mount")
    assert "token" not in browser.address
    assert browser.run("return document.cookie") == ""
    assert scene.page.token not in json.dumps(browser.run("return {...localStorage}"))


def test_the_overview_lives(scene: Scene) -> None:
    browser = scene.go()
    browser.wait_for("Everything is saved")
    browser.find("figure .line")
    (scene.top / "live").write_bytes(b"x" * 100_000)
    scene.host.sync()
    generation = str(scene.host.now()["generation"]["head"])
    browser.wait_for(f"{generation} of {generation}")
    browser.click(".plot")
    browser.press("Left")
    browser.find(".axis span", " s")


def test_unsaved_changes_are_seen_and_saved(scene: Scene) -> None:
    browser = scene.go()
    browser.find(".verdict")
    browser.click("button", "Save now")
    browser.find(".note", "Everything is saved")


def test_markup_in_names_and_contents_is_text(scene: Scene) -> None:
    browser = scene.go("files")
    link = browser.find("td a", "<img src=x onerror=alert(1)>\\x1b[31m\\xff\\u202e.txt")
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    browser.ask("POST", f"/element/{next(iter(link.values()))}/click")
    browser.find("pre.text", MARKUP)
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("return document.title") != "1"
    browser.click("button", "Download")
    wait_until(lambda: bool(list(scene.downloads.glob("*.txt"))), timeout_s=30, what="a download")
    (saved,) = scene.downloads.glob("*.txt")
    assert saved.read_text() == MARKUP + "\n"


def test_a_script_of_another_origin_of_ours_does_not_run(scene: Scene) -> None:
    """Trusted types: even our own scripts can make no HTML of text."""
    browser = scene.go()
    made = """
      try { document.createElement("div").innerHTML = "<b>x</b>"; return "made"; }
      catch (error) { return error.name; }
    """
    assert browser.run(made) == "TypeError"
    assert any("TrustedHTML" in each for each in browser.complaints())


def test_the_tree_is_walked_by_keyboard(scene: Scene) -> None:
    browser = scene.go("files")
    browser.find("td a", "src")
    browser.run("document.querySelector('td a').focus()")
    browser.press("Enter")
    browser.find("td a", "a.py")
    assert browser.run("return document.activeElement.tagName") == "H1"
    browser.press("Tab", "Tab")
    assert browser.run("return document.activeElement.textContent") == "Files"


def test_a_turn_is_compared_with_its_patch(scene: Scene) -> None:
    scene.host.s3ws("turn", "begin", "t1", scene.top)
    (scene.top / "src" / "a.py").write_text("one = 1\ntwo = 22\n")
    (scene.top / "src" / "b.py").write_text("new\n")
    scene.host.s3ws("turn", "end", "t1", scene.top)
    browser = scene.go("changes")
    browser.click("a.button", "What it changed")
    browser.wait_for("1 added, 1 modified")
    browser.click("details.file summary", "src/a.py")
    browser.find("pre.patch .add", "+two = 22")
    browser.find("pre.patch .del", "-two = 2")
    browser.find(".seal", "#1")


def test_a_comparison_of_what_is_not_there_says_so(scene: Scene) -> None:
    browser = scene.go("changes")
    browser.type("input[list=points]", "no-such-point")
    browser.click("button", "Compare")
    browser.find(".error", "no-such-point")
    # The browser tells of the answer's status, too.
    assert all("404" in each for each in browser.complaints())


def test_a_restore_is_shown_confirmed_and_undone(scene: Scene) -> None:
    file = scene.top / "src" / "a.py"
    file.write_text("spoilt\n")
    (scene.top / "extra").write_text("x")
    browser = scene.go("history")
    browser.click("button[aria-label='Restore first']")
    browser.find("dialog .paths", "~ src/a.py")
    browser.find("dialog .paths", "− extra")
    assert file.read_text() == "spoilt\n"
    browser.click("dialog button", "Cancel")
    assert file.read_text() == "spoilt\n" and (scene.top / "extra").exists()
    browser.click("button[aria-label='Restore first']")
    browser.find("dialog .paths", "~ src/a.py")
    browser.click("dialog button.danger")
    browser.find(".note", "Restored")
    assert file.read_text() == "one = 1\ntwo = 2\n" and not (scene.top / "extra").exists()
    browser.click("button", "Undo the last restore")
    browser.find("dialog .paths", "+ extra")
    browser.click("dialog button.danger")
    wait_until(lambda: (scene.top / "extra").exists(), timeout_s=30, what="the undo")
    assert file.read_text() == "spoilt\n"


def test_single_paths_of_a_difference_are_restored(scene: Scene) -> None:
    src = scene.top / "src"
    (src / "old.py").write_text("old\n")
    (src / "lost.py").write_text("lost\n")
    (src / "mine.py").write_text("mine\n")
    scene.host.s3ws("snapshot", "--name", "whole", scene.top)
    (src / "lost.py").unlink()
    (src / "old.py").rename(src / "new.py")
    (src / "mine.py").write_text("my own\n")
    scene.host.sync()
    browser = scene.go("changes?old=whole&new=head")
    button = "section[aria-label=Difference] button"
    browser.find(f"{button}:disabled", "Restore selected")
    browser.click("input[aria-label='Select src/lost.py']")
    browser.click("input[aria-label='Select src/mine.py']")
    browser.click("input[aria-label='Select src/new.py']")
    browser.click("input[aria-label='Select src/mine.py']")
    browser.click(button, "Restore selected (2)")
    for path in ("+ src/lost.py", "src/new.py", "src/old.py"):
        browser.find("dialog .paths", path)
    assert "mine.py" not in browser.run("return document.querySelector('dialog').textContent")
    assert not (src / "lost.py").exists()
    browser.click("dialog button.danger")
    browser.find(".note", "Restored")
    assert (src / "lost.py").read_text() == "lost\n" and (src / "old.py").read_text() == "old\n"
    assert not (src / "new.py").exists() and (src / "mine.py").read_text() == "my own\n"


def test_an_earlier_version_of_a_file_is_asked_for_and_comes_back(scene: Scene) -> None:
    odd = os.path.join(os.fsencode(scene.top), HOSTILE)
    with open(odd, "w") as file:
        file.write("spoilt\n")
    (scene.top / "beside").write_text("newer\n")
    browser = scene.go("files")
    browser.click("td a", "<img src=x")
    browser.find("pre.text", "spoilt")
    browser.click("button", "Earlier version…")
    browser.type("dialog input", "no-such-point")
    browser.press("Enter")
    browser.find("dialog .error", "no-such-point")
    browser.click("dialog button", "Close")
    assert all("404" in each for each in browser.complaints())
    browser.click("button", "Earlier version…")
    browser.type("dialog input", "first")
    browser.press("Enter")
    browser.find("dialog .paths", "~ <img src=x onerror=alert(1)>")
    with open(odd) as file:
        assert file.read() == "spoilt\n"
    browser.click("dialog button.danger")
    browser.find("pre.text", MARKUP)
    with open(odd) as file:
        assert file.read() == MARKUP + "\n"
    assert (scene.top / "beside").read_text() == "newer\n"


def test_a_path_can_be_named_by_hand(scene: Scene) -> None:
    (scene.top / "docs ü").mkdir()
    (scene.top / "docs ü" / "100 %.md").write_text("right\n")
    scene.host.s3ws("snapshot", "--name", "by-name", scene.top)
    (scene.top / "docs ü" / "100 %.md").write_text("wrong\n")
    (scene.top / "beside").write_text("newest\n")
    browser = scene.go("history")
    browser.type("input[placeholder^='15m']", "by-name")
    browser.type("input[placeholder=everything]", "/docs ü/100 %.md")
    browser.press("Enter")
    browser.find("dialog .paths", "~ docs ü/100 %.md")
    browser.click("dialog button.danger")
    browser.find(".note", "Restored")
    assert (scene.top / "docs ü" / "100 %.md").read_text() == "right\n"
    assert (scene.top / "beside").read_text() == "newest\n"


def test_a_backup_is_made_and_restored_beside(scene: Scene) -> None:
    (scene.top / "src" / "kept.txt").write_text("in the backup")
    browser = scene.go("history")
    browser.click("button", "Back up now")
    browser.find("td", "backup-")
    browser.click("button[aria-label^='Restore backup-']")
    browser.find("dialog .paths", "src/kept.txt")
    (scene.top / "src" / "kept.txt").unlink()
    browser.click("dialog button.danger")
    browser.find(".note", "entries are in restored-backup-")
    (made,) = scene.top.glob("restored-backup-*")
    assert (made / "src" / "kept.txt").read_text() == "in the backup"
    assert not (scene.top / "src" / "kept.txt").exists()


def test_a_snapshot_is_taken_by_its_form(scene: Scene) -> None:
    browser = scene.go("history")
    browser.type("input[placeholder='before-refactoring']", "by-hand")
    browser.press("Enter")
    browser.find("td strong", "by-hand")
    shown = scene.host.json("snapshots", scene.top)["snapshots"]
    assert "by-hand" in [each["ref"] for each in shown]


@pytest.mark.parametrize(
    "tab", ["", "files", "changes?old=first&new=head", "history", "file?path=src/a.py"]
)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_on_a_phone_and_in_the_dark(scene: Scene, tab: str, dark: bool) -> None:
    browser = scene.browser
    browser.shape(*NARROW, dark=dark)
    scene.go(tab)
    wait_until(
        lambda: not browser.run("return document.querySelector('.busy')"), timeout_s=30, what=tab
    )
    width = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    assert browser.run(CONTRAST) == []
    assert browser.run(UNNAMED) == []
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 21, 24)") is dark


def test_a_page_without_its_link_says_what_to_do(scene: Scene, tmp_path: Path) -> None:
    with running_browser(tmp_path) as other:
        other.open(f"http://127.0.0.1:{scene.page.port}/#/")
        other.wait_for("This page needs its link")
        other.open(f"http://127.0.0.1:{scene.page.port}/#token=wrong")
        other.wait_for("was used already")
        assert "token" not in other.address


def test_a_lost_server_is_said(scene: Scene, tmp_path: Path) -> None:
    with running_browser(tmp_path) as other, running_page(scene.host.env, tmp_path / "p") as page:
        other.open(page.link)
        other.find("a.mount")
        page.process.terminate()
        page.process.wait()
        other.wait_for("does not answer")


def test_who_signs_out_is_out(scene: Scene, tmp_path: Path) -> None:
    with running_browser(tmp_path) as other:
        other.open(scene.page.link)
        other.find("a.mount")
        other.click("button", "Sign out")
        other.wait_for("This page needs its link")
        other.open("about:blank")
        other.open(scene.base)
        other.wait_for("This page needs its link")
