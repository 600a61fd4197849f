// Signing in, the address bar, and looking again while the page is seen.

import { enter, get, hasKey, leave } from "./api.js";
import { directory, file } from "./browse.js";
import { changes } from "./changes.js";
import { clock, el, failure, setText, show } from "./dom.js";
import { history } from "./history.js";
import { mountList, mountOverview, verdict } from "./overview.js";

const main = document.getElementById("main");
const pulse = document.getElementById("pulse");
const out = document.getElementById("leave");
const TABS = [["", "Overview"], ["files", "Files"], ["changes", "Changes"], ["history", "History"]];

let current = null;
let timer = 0;
let number = 0;

function route() {
  const [path, text] = location.hash.replace(/^#\/?/, "").split("?");
  const query = Object.fromEntries((text || "").split("&").filter(Boolean).map((part) => part.split("=")));
  const [kind, key, tab = ""] = path.split("/");
  return kind === "m" && /^[0-9a-f]{16}$/.test(key || "") ? { key, tab, query } : { key: null, tab: "", query };
}

function mountPage({ key, tab, query }) {
  const address = `/api/mounts/${key}`, base = `#/m/${key}`;
  const heading = el("h1", { tabindex: "-1" }, "…"), where = el("p", { class: "muted small wrap" });
  const shown = tab === "file" ? "files" : tab;
  const head = (data) => {
    setText(heading, data.conversation);
    setText(where, `${data.user} · ${data.mountpoint} · ${data.store}`);
    document.title = `${data.conversation} · s3ws`;
    if (tab) setText(pulse, verdict(data.status)[1]);
  };
  const views = { "": () => mountOverview(address, head), files: () => directory(address, base, query), file: () => file(address, base, query), changes: () => changes(address, base, query), history: () => history(address, base) };
  const view = (views[tab] || views[""])();
  const node = el("div", {},
    el("nav", { class: "small", "aria-label": "Where you are" }, el("a", { href: "#/" }, "All mounts")), heading, where,
    el("nav", { class: "tabs", "aria-label": "Parts of this mount" }, TABS.map(([id, name]) => el("a", { href: id ? `${base}/${id}` : base, "aria-current": id === shown ? "page" : null }, name))), view.node);
  return { ...view, node, title: "Mount", async refresh() {
    if (tab) await Promise.all([get(address).then(head), view.refresh()]);
    else await view.refresh();
  } };
}

function signIn(error) {
  out.hidden = true;
  return { node: el("div", { class: "center panel" }, el("h1", { tabindex: "-1" }, "This page needs its link"),
    el("p", {}, "Open the newest link that ", el("code", {}, "s3ws web"), " printed on its terminal. Each link lets one browser in."),
    error ? el("p", { class: "muted" }, error.message) : null), title: "Sign in", async refresh() {} };
}

async function look() {
  const mine = number;
  clearTimeout(timer);
  try {
    await current.refresh();
    if (mine !== number) return;
    if (current.every_ms) setText(pulse, `live, ${clock(Date.now())}`);
    pulse.classList.remove("lost");
  } catch (error) {
    if (mine !== number) return;
    if (error.status === 401 || error.status === 403) return open(signIn(error));
    pulse.classList.toggle("lost", error.status === 0);
    if (error.status === 0) setText(pulse, error.message);
    else if (!current.every_ms || !main.querySelector(".error")) show(main, current.node, failure(error));
  }
  if (current.every_ms && !document.hidden) timer = setTimeout(look, current.every_ms);
}

function open(page) {
  number += 1;
  clearTimeout(timer);
  current = page;
  document.title = `${page.title} · s3ws`;
  setText(pulse, "");
  show(main, page.node);
  main.querySelector("h1")?.focus({ preventScroll: true });
  scrollTo(0, 0);
  out.hidden = !hasKey();
  return look();
}

async function start() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    // Out of the address bar before anything else, whatever becomes of it.
    window.history.replaceState(null, "", "/#/");
    try { await enter(token); } catch (error) { return open(signIn(error)); }
  }
  const where = route();
  return open(hasKey() ? (where.key ? mountPage(where) : mountList()) : signIn());
}

addEventListener("hashchange", start);
document.addEventListener("visibilitychange", () => { if (!document.hidden && current?.every_ms) look(); });
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
out.addEventListener("click", async () => { await leave(); open(signIn()); });
start();
