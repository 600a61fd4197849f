// Directories and files as they stand in the cache.

import { encode, get, post } from "./api.js";
import { badge, bytes, el, failure, show, svg, when } from "./dom.js";
import { earlier } from "./restore.js";

const STATES = {
  dirty: ["warn", "not saved yet", "dirty: not in the bucket yet"],
  sealed: ["info", "saved", "sealed: in the journal; the readable copy below files/ follows"],
  mirrored: ["good", "saved, readable", "mirrored: in the journal, and readable below files/"],
};

export const glyph = (type) => type === "directory"
  ? svg("svg", { class: "glyph dir", viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: "M1.5 3.500h4.500l1.500 2h7v8h-13z" }))
  : svg("svg", { class: "glyph", viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: "M3.500 1.500h6l3 3v10h-9zM9.500 1.500v3h3" }));

export function crumbs(base, path) {
  const links = [el("li", {}, path.length ? el("a", { href: `${base}/files` }, "workspace") : el("span", { "aria-current": "page" }, "workspace"))];
  path.forEach((each, at) => links.push(el("li", {}, at < path.length - 1
    ? el("a", { href: `${base}/files?path=${each.id}` }, each.shown) : el("span", { "aria-current": "page" }, each.shown))));
  return el("nav", { "aria-label": "Path" }, el("ul", { class: "crumbs" }, links));
}

function saved(entry) {
  const [level, text, title] = STATES[entry.state] || ["", entry.state, ""];
  return [badge(level, text, title), entry.warmth === "warm" ? null : [" ", badge("", entry.warmth === "cold" ? "bytes in the bucket" : "bytes partly here", "Bytes are fetched when they are read.")]];
}

function row(base, entry) {
  const isDirectory = entry.type === "directory";
  const address = isDirectory ? `${base}/files?path=${entry.id}` : `${base}/file?path=${entry.id}`;
  const opens = isDirectory || entry.type === "file";
  return el("tr", {},
    el("td", {}, el("span", { class: "name" }, glyph(entry.type), opens ? el("a", { href: address }, entry.shown) : entry.shown,
      entry.target !== undefined ? el("span", { class: "muted" }, ` → ${entry.target}`) : null,
      opens || entry.target !== undefined ? null : el("span", { class: "muted" }, ` (${entry.type})`))),
    el("td", { class: "number" }, entry.type === "file" ? bytes(entry.size) : ""),
    el("td", { class: "wide muted" }, when(entry.mtime_ns / 1e6)),
    el("td", {}, saved(entry)));
}

const nameOf = (path) => path.map((each) => each.shown).join("/");

const earlierButton = (address, path, refresh) => el("button", { type: "button", onclick: () => earlier(address, path.at(-1).id, nameOf(path), refresh) }, "Earlier version…");

export function directory(address, base, query) {
  const node = el("section", { class: "panel", "aria-label": "Files" }, el("p", { class: "busy" }, "Looking…"));
  async function refresh() {
    const page = await get(`${address}/tree`, { path: query.path || "", start: query.start || "0" });
    const folders = page.total <= page.page;
    // All on one page: directories first. Otherwise by name alone, so that pages follow each other.
    const entries = folders ? [...page.entries.filter((e) => e.type === "directory"), ...page.entries.filter((e) => e.type !== "directory")] : page.entries;
    const to = (start) => `${base}/files?${encode({ path: query.path || "", start })}`;
    show(node,
      el("div", { class: "between" }, crumbs(base, page.path), el("div", { class: "row middle" }, el("span", { class: "small muted" }, page.total === 1 ? "1 entry" : `${page.total} entries`), page.path.length ? earlierButton(address, page.path, refresh) : null)),
      entries.length ? el("table", { class: "stack" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Name"), el("th", { scope: "col", class: "number" }, "Size"), el("th", { scope: "col", class: "wide" }, "Changed"), el("th", { scope: "col" }, "State"))),
        el("tbody", {}, entries.map((entry) => row(base, entry)))) : el("p", { class: "empty" }, "This directory is empty."),
      folders ? null : el("nav", { class: "row", "aria-label": "Pages" },
        page.start > 0 ? el("a", { class: "button", href: to(Math.max(0, page.start - page.page)) }, "Previous") : null,
        el("span", { class: "muted" }, `${page.start + 1} to ${Math.min(page.total, page.start + page.page)} of ${page.total}`),
        page.start + page.page < page.total ? el("a", { class: "button", href: to(page.start + page.page) }, "Next") : null));
  }
  return { node, refresh };
}

// A download goes by an address of its own, which serves once: the browser sends no key with it.
async function download(address, path) {
  const { address: ticket } = await post(`${address}/ticket`, { path });
  const link = el("a", { href: ticket, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

export function file(address, base, query) {
  const node = el("section", { class: "panel", "aria-label": "File" }, el("p", { class: "busy" }, "Reading…"));
  async function refresh() {
    const found = await get(`${address}/file`, { path: query.path || "" });
    const trouble = el("div");
    const button = el("button", { type: "button", onclick: () => download(address, query.path).catch((error) => show(trouble, failure(error))) }, "Download");
    let body;
    if (found.is_binary) body = el("p", { class: "empty" }, "This is no text. Download it to look at it.");
    else if (!found.size) body = el("p", { class: "empty" }, "The file is empty.");
    else body = [el("pre", { class: "text", tabindex: "0", "aria-label": "Contents" }, found.text),
      found.shown_bytes < found.size ? el("p", { class: "muted small" }, `The first ${bytes(found.shown_bytes)} of ${bytes(found.size)}.`) : null];
    show(node, el("div", { class: "between" }, crumbs(base, found.path), el("div", { class: "row" }, earlierButton(address, found.path, refresh), button)),
      el("p", { class: "muted small" }, `${bytes(found.size)}, mode ${found.mode}, changed `, when(found.mtime_ns / 1e6), " ", saved(found)), trouble, body);
  }
  return { node, refresh };
}
