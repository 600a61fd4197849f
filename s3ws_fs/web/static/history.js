// Snapshots and backups, and what brings them back.

import { encode, get, post } from "./api.js";
import { badge, bytes, el, failure, note, show, when } from "./dom.js";
import { ask, rewind, typed } from "./restore.js";

const WORDS = { named: "snapshot", "turn-begin": "begin of a turn", "turn-end": "end of a turn", "before-restore": "before a restore", "before-undo": "before an undo" };

const unpacked = (found) => [
  el("p", {}, `${found.entries === 1 ? "1 entry" : `${found.entries} entries`}, ${bytes(found.bytes)}, into the new directory `, el("code", {}, found.directory), ". Nothing that is there is changed."),
  el("div", { class: "paths", tabindex: "0", "aria-label": "Paths" }, found.paths.map((path) => el("div", { class: "mono wrap" }, path)))];

export function history(address, base) {
  const snapshots = el("div"), backups = el("div");
  const name = el("input", { required: true, maxlength: "64", pattern: "[A-Za-z0-9._\\-]+", placeholder: "before-refactoring", autocomplete: "off", spellcheck: "false" });
  const point = el("input", { required: true, maxlength: "128", placeholder: "15m, #12 or a time", autocomplete: "off", spellcheck: "false" });
  const only = el("input", { maxlength: "4096", placeholder: "everything", autocomplete: "off", spellcheck: "false" });
  const restore = (ref, path = "") => rewind(address, path ? `Restore ${only.value.trim()} of ${ref}` : `Restore ${ref}`, null, "restore", path ? { ref, paths: [path] } : { ref }, refresh, path ? "Restore" : undefined);
  const undo = el("button", { type: "button", onclick: () => rewind(address, "Undo the last restore", "What stood before it comes back. An undo can be undone.", "undo", {}, refresh) }, "Undo the last restore");

  const take = el("form", { class: "row", onsubmit: async (event) => {
    event.preventDefault();
    try {
      await post(`${address}/snapshot`, { name: name.value.trim() });
      note(`The snapshot ${name.value.trim()} is taken.`);
      name.value = "";
      await refresh();
    } catch (error) { note(`${error.message} ${error.remedy}`); }
  } }, el("label", {}, "New snapshot", name), el("button", {}, "Take a snapshot"));
  const other = el("form", { class: "row", onsubmit: (event) => { event.preventDefault(); restore(point.value.trim(), typed(only.value)); } },
    el("label", {}, "Another point in history", point), el("label", {}, "Only this file or directory", only), el("button", {}, "Restore…"));

  const make = el("button", { type: "button" }, "Back up now");
  make.addEventListener("click", async () => {
    make.disabled = true;
    try {
      const made = await post(`${address}/backup`);
      note(`${made.name} is made: ${bytes(made.bytes)}.`);
      await refresh();
    } catch (error) { note(`${error.message} ${error.remedy}`); }
    make.disabled = false;
  });

  const node = el("div", {},
    el("section", { class: "panel" }, el("div", { class: "between" }, el("h2", {}, "Snapshots"), undo), snapshots, el("div", { class: "forms" }, take, other)),
    el("section", { class: "panel" }, el("div", { class: "between" }, el("h2", {}, "Backups"), make), backups));

  async function refresh() {
    await Promise.all([
      get(`${address}/snapshots`).then((found) => {
        const list = [...found.snapshots].sort((a, b) => b.created_ns - a.created_ns);
        undo.disabled = !list.some((each) => each.kind.startsWith("before-"));
        show(snapshots, list.length ? el("table", { class: "stack" },
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Name"), el("th", { scope: "col" }, "Kind"), el("th", { scope: "col" }, "Taken"), el("td"))),
          el("tbody", {}, list.map((each) => el("tr", {},
            el("td", {}, el("strong", { class: "wrap" }, each.ref)), el("td", { class: "muted" }, `${WORDS[each.kind] || each.kind}, #${each.number}`), el("td", { class: "muted" }, when(each.created_ns / 1e6)),
            el("td", { class: "end" }, el("div", { class: "row" },
              el("a", { class: "button", href: `${base}/changes?${encode({ old: each.ref, new: "head" })}` }, "Changes since"),
              el("button", { type: "button", "aria-label": `Restore ${each.ref}`, onclick: () => restore(each.ref) }, "Restore…"))))))) : el("p", { class: "empty" }, "There are no snapshots yet."),
        found.damaged.map((each) => el("p", { class: "muted" }, `${each.key} is damaged: ${each.why}`)));
      }).catch((error) => show(snapshots, failure(error))),
      get(`${address}/backups`).then((found) => {
        const list = [...found.backups].sort((a, b) => (a.name < b.name ? 1 : -1));
        show(backups, list.length ? el("table", { class: "stack" },
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Name"), el("th", { scope: "col" }, "Taken"), el("th", { scope: "col", class: "number" }, "Size"), el("td"))),
          el("tbody", {}, list.map((each) => el("tr", {},
            el("td", {}, el("span", { class: "wrap" }, each.name), " ", each.good ? null : badge("bad", "not whole"), each.missing ? badge("warn", `${each.missing} files missing`) : null),
            el("td", { class: "muted" }, when(Date.parse(each.time))),
            el("td", { class: "number" }, bytes(each.bytes), each.entries ? el("div", { class: "small muted" }, `${each.entries} entries`) : null),
            el("td", { class: "end" }, el("div", { class: "row" }, each.good ? el("button", { type: "button", "aria-label": `Restore ${each.name}`, onclick: () => ask(address, "Restore this backup", null, "restore-backup", { name: each.name }, unpacked,
              (made) => note(`${made.entries} entries are in ${made.directory}${made.failed ? `; ${made.failed} could not be restored` : ""}.`)) }, "Restore…") : null)))))) : el("p", { class: "empty" }, "There are no backups yet."));
      }).catch((error) => show(backups, failure(error))),
    ]);
  }
  return { node, refresh };
}
