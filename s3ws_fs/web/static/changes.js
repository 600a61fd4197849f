// What changed: by turn, seal by seal, and between any two points, with patches.

import { encode, get } from "./api.js";
import { bytes, counted, el, failure, setText, show, when } from "./dom.js";
import { rewind } from "./restore.js";

const LETTERS = { added: "A", deleted: "D", modified: "M", renamed: "R" };

const letter = (kind) => el("span", { class: `letter ${kind}`, title: kind, "aria-label": kind }, LETTERS[kind] || "?");

function totals(counts) {
  const words = Object.keys(LETTERS).filter((kind) => counts[kind]).map((kind) => `${counts[kind]} ${kind}`);
  return words.length ? `${words.join(", ")}; +${bytes(counts.bytes_added)} −${bytes(counts.bytes_removed)}` : "no changes";
}

const name = (change) => el("span", { class: "wrap" }, change.from_shown !== undefined ? `${change.from_shown} → ${change.shown}` : change.shown);

function detail(change) {
  const { before, after } = change;
  const words = [];
  if (change.is_directory || !(before || after)) return "";
  if (before && after) {
    if (before.size !== after.size) words.push(`${bytes(before.size)} → ${bytes(after.size)}`);
    if (before.mode !== after.mode) words.push(`mode ${before.mode} → ${after.mode}`);
    for (const aspect of change.aspects || []) if (["owner", "xattrs"].includes(aspect)) words.push(aspect);
  } else words.push(bytes((before || after).size));
  return words.join("; ");
}

function colour(line, isHead) {
  if (line.startsWith("@@")) return "hunk";
  if (isHead) return "head";
  if (line.startsWith("+")) return "add";
  if (line.startsWith("-")) return "del";
  return "";
}

function patchOf(text, isCut) {
  let isHead = true;
  const lines = text.replace(/\n$/, "").split("\n").map((line) => {
    if (line.startsWith("diff --git ")) isHead = true;
    if (line.startsWith("@@")) isHead = false;
    return el("span", { class: colour(line, isHead) }, line || " ");
  });
  return [el("pre", { class: "patch", tabindex: "0", "aria-label": "Patch" }, lines), isCut ? el("p", { class: "muted small" }, "The rest is left out; `s3ws diff --patch` has it.") : null];
}

function changed(address, from, to, change) {
  const said = el("span", { class: "small muted nowrap" }, detail(change));
  const hasPatch = !change.is_directory && ["file", "symlink"].includes(change.type);
  if (!hasPatch) return el("div", { class: "change flat" }, letter(change.kind), name(change), said);
  const body = el("div");
  const node = el("details", { class: "file" }, el("summary", {}, letter(change.kind), name(change), said), body);
  node.addEventListener("toggle", async () => {
    if (!node.open || body.childElementCount) return;
    show(body, el("p", { class: "busy" }, "Comparing…"));
    try {
      const found = await get(`${address}/patch`, { old: from.number, new: to.number, path: change.id });
      show(body, found.patch ? patchOf(found.patch, found.is_cut) : el("p", { class: "empty" }, "Its contents are the same."));
    } catch (error) { show(body, failure(error)); }
  });
  return node;
}

// The list of a difference; what is ticked can be restored to what it was before it.
function difference(address, found, again) {
  const chosen = new Map();
  const button = el("button", { type: "button", disabled: true, onclick: () => {
    const title = chosen.size === 1 ? `Restore ${[...chosen.keys()][0].shown}` : `Restore ${chosen.size} paths`;
    rewind(address, title, null, "restore", { ref: `#${found.from.number}`, paths: [...chosen.values()].flat() }, again, "Restore");
  } }, "Restore selected…");
  const pick = (change) => {
    const box = el("input", { type: "checkbox", "aria-label": `Select ${change.shown}`, onchange: () => {
      // Of what was renamed both: one comes, one goes.
      if (box.checked) chosen.set(change, change.from_id === undefined ? [change.id] : [change.id, change.from_id]);
      else chosen.delete(change);
      button.disabled = !chosen.size;
      setText(button, chosen.size ? `Restore selected (${chosen.size})…` : "Restore selected…");
    } });
    return el("div", { class: "pick" }, change.id ? box : el("span", { class: "nobox" }), changed(address, found.from, found.to, change));
  };
  const list = found.changes.map(pick);
  return [el("div", { class: "between" }, el("p", { class: "muted" }, totals(found.counts)), list.length ? button : null), list];
}

export function turnsOf(snapshots) {
  const turns = new Map();
  for (const each of snapshots) {
    if (!each.kind.startsWith("turn-")) continue;
    const turn = turns.get(each.name) || { name: each.name };
    turn[each.kind.slice(5)] = each;
    turns.set(each.name, turn);
  }
  return [...turns.values()].sort((a, b) => (b.end || b.begin).created_ns - (a.end || a.begin).created_ns);
}

export function changes(address, base, query) {
  const points = el("datalist", { id: "points" });
  const old = el("input", { list: "points", value: query.old ? decodeURIComponent(query.old) : "1h", required: true, autocomplete: "off", spellcheck: "false" });
  const now = el("input", { list: "points", value: query.new ? decodeURIComponent(query.new) : "head", required: true, autocomplete: "off", spellcheck: "false" });
  const link = (a, b) => `${base}/changes?${encode({ old: a, new: b })}`;
  const form = el("form", { class: "row", onsubmit: (event) => {
    event.preventDefault();
    location.hash = link(old.value.trim(), now.value.trim());
  } }, el("label", {}, "From", old), el("label", {}, "To", now), el("button", { class: "main" }, "Compare"));
  const result = el("div"), turns = el("div"), seals = el("div");
  const node = el("div", {},
    el("section", { class: "panel" }, el("h2", {}, "Compare two points"), form,
      el("p", { class: "small muted" }, "A point is a snapshot’s name, turn:NAME:begin, #12 (a seal), 15m (so long ago), a time, or head (the newest that is saved)."), points),
    result,
    el("section", { class: "panel" }, el("h2", {}, "Turns"), turns),
    el("section", { class: "panel" }, el("h2", {}, "Seals"), seals));

  async function compare() {
    if (!query.old) return;
    show(result, el("p", { class: "busy" }, "Comparing…"));
    const [a, b] = [decodeURIComponent(query.old), decodeURIComponent(query.new || "head")];
    try {
      const found = await get(`${address}/diff`, { old: a, new: b });
      show(result, el("section", { class: "panel", "aria-label": "Difference" },
        el("div", { class: "between" }, el("h2", {}, `From ${a} to ${b}`), el("span", { class: "small muted" }, `#${found.from.number} → #${found.to.number}`)),
        difference(address, found, compare),
        found.more ? el("p", { class: "muted" }, `and ${found.more} more`) : null));
    } catch (error) { show(result, failure(error)); }
  }

  async function marks() {
    try {
      const { snapshots } = await get(`${address}/snapshots`);
      const found = turnsOf(snapshots);
      const refs = new Set(["head", ...snapshots.map((each) => each.ref)]);
      show(points, [...refs].slice(0, 200).map((ref) => el("option", { value: ref })));
      show(turns, found.length ? found.map((turn) => {
        const at = turn.end || turn.begin;
        return el("div", { class: "seal between" },
          el("span", {}, el("strong", { class: "wrap" }, turn.name), el("span", { class: "muted small" }, turn.begin && turn.end ? " ended " : turn.end ? " ended (no beginning is kept) " : " began ", when(at.created_ns / 1e6))),
          turn.begin ? el("a", { class: "button", href: link(turn.begin.ref, turn.end ? turn.end.ref : "head") }, turn.end ? "What it changed" : "Changed so far") : null);
      }) : el("p", { class: "empty" }, "No turns are marked. `s3ws turn begin NAME` and `s3ws turn end NAME` mark them."));
    } catch (error) { show(turns, failure(error)); }
  }

  let oldest = 0;
  const more = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => log() }, "Older seals");
  const list = el("div");
  async function log() {
    more.disabled = true;
    try {
      const page = await get(`${address}/log`, { before: oldest });
      list.append(...page.seals.map((seal) => el("div", { class: "seal" },
        el("div", { class: "between" },
          el("span", {}, el("strong", {}, `#${seal.number}`), " ", when(seal.sealed_at_s * 1000), el("span", { class: "muted small" }, ` ${totals(seal.counts)}`)),
          seal.number > 1 ? el("a", { class: "small", href: link(`#${seal.number - 1}`, `#${seal.number}`) }, "Show changes") : null),
        seal.changes.map((change) => el("div", { class: "change small" }, letter(change.kind), name(change))),
        seal.omitted ? el("p", { class: "small muted" }, `and ${counted(seal.omitted, "more change")}`) : null)));
      oldest = page.seals.at(-1)?.number ?? oldest;
      more.hidden = !page.more;
      show(seals, list.childElementCount ? list : el("p", { class: "empty" }, "Nothing is sealed yet."), more);
    } catch (error) { show(seals, list, failure(error)); }
    more.disabled = false;
  }
  return { node, async refresh() { await Promise.all([compare(), marks(), log()]); } };
}
