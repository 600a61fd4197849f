// Bringing back: what would change is shown first, and only what was shown can be confirmed.

import { get, post } from "./api.js";
import { bytes, el, failure, note, show, when } from "./dom.js";

const KINDS = [["added", "+"], ["changed", "~"], ["deleted", "−"], ["kept", "="]];
const HINT = "What is there now becomes a snapshot first: undo brings it back. Open files keep what they have.";

function rewound(found) {
  const then = [`#${found.point.number} of `, when(found.point.created_ns / 1e6)];
  if (found.is_nothing) return [el("p", {}, "There is nothing to do: it is as it was at ", then, ".")];
  const words = KINDS.filter(([kind]) => found[kind].count).map(([kind]) => `${found[kind].count} ${kind}`);
  const paths = KINDS.flatMap(([kind, sign]) => [
    ...found[kind].paths.map((path) => el("div", { class: "mono wrap" }, `${sign} ${path}`)),
    found[kind].count > found[kind].paths.length ? el("div", { class: "muted small" }, `${sign} and ${found[kind].count - found[kind].paths.length} more`) : null,
  ]);
  return [el("p", {}, "As it was at ", then, `: ${words.join(", ") || "attributes only"}. `, el("span", { class: "muted" }, `${bytes(found.bytes_back)} come back, ${bytes(found.bytes_gone)} go.`)),
    el("div", { class: "paths", tabindex: "0", "aria-label": "Paths" }, paths)];
}

// A question: what would change is shown, and only what was shown can be confirmed.
export function ask(address, title, hint, look, body, render, done, verb = title) {
  const content = el("div", { class: "body" }, el("p", { class: "busy" }, "Comparing…"));
  const cancel = el("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const go = el("button", { type: "button", class: "danger", disabled: true }, verb);
  const heading = el("h2", { id: "question", class: "wrap" }, `${title}?`);
  const dialog = el("dialog", { "aria-labelledby": "question" }, heading, content, el("div", { class: "row" }, cancel, go));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  cancel.focus();
  let plan = null;
  go.addEventListener("click", async () => {
    go.disabled = cancel.disabled = true;
    show(content, el("p", { class: "busy", role: "status" }, "At work…"));
    try {
      const found = await post(`${address}/confirm`, { plan });
      dialog.close();
      done(found);
    } catch (error) {
      show(content, failure(error));
      cancel.disabled = false;
      cancel.textContent = "Close";
    }
  });
  post(`${address}/look/${look}`, body).then((found) => {
    plan = found.plan;
    show(content, hint ? el("p", { class: "muted" }, hint) : null, render(found));
    go.disabled = Boolean(found.is_nothing);
    if (found.is_nothing) cancel.textContent = "Close";
  }).catch((error) => { show(content, failure(error)); cancel.textContent = "Close"; });
}


// A restore or an undo, of the whole workspace or of some paths.
export function rewind(address, title, hint, look, body, refresh, verb) {
  ask(address, title, hint || HINT, look, body, rewound, (found) => {
    note(found.is_nothing ? "There was nothing to do." : "Restored. “Undo the last restore” under History brings back what was there before.");
    if (!found.is_shown) note("Some names may still be shown to programs as before: `s3ws restart` ends that.");
    refresh();
  }, verb);
}

// One path at an earlier point, which is asked for first.
export function earlier(address, id, shown, refresh) {
  const points = el("datalist", { id: "earlier" });
  const point = el("input", { list: "earlier", required: true, maxlength: "128", placeholder: "15m, #12, a snapshot or a time", autocomplete: "off", spellcheck: "false" });
  const form = el("form", { onsubmit: (event) => {
    event.preventDefault();
    dialog.close();
    rewind(address, `Restore ${shown}`, null, "restore", { ref: point.value.trim(), paths: [id] }, refresh, "Restore");
  } },
  el("div", { class: "body" }, el("label", {}, "The point in history at which it was right", point), points),
  el("div", { class: "row" }, el("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), el("button", { class: "main" }, "Show changes")));
  const dialog = el("dialog", { "aria-labelledby": "earlier-of" }, el("h2", { id: "earlier-of", class: "wrap" }, `An earlier ${shown}`), form);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  point.focus();
  // A help only: where they can't be had, a point is typed.
  get(`${address}/snapshots`).then(({ snapshots }) => show(points, snapshots.map((each) => el("option", { value: each.ref }))), () => {});
}

// What a person types as a path, as it travels; nothing when it is empty, or only slashes.
export const typed = (text) => text.trim().split("/").filter(Boolean).map(encodeURIComponent).join("/");
