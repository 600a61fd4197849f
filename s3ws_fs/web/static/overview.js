// All mounts of the host, and what one of them says of itself.

import { get, post } from "./api.js";
import { chart, spark } from "./charts.js";
import { badge, bytes, counted, el, failure, meter, note, seconds, setText, show } from "./dom.js";

// What matters of a status, in words: how bad, what, and more.
export function verdict(status) {
  const { state, generation = {}, dirty = {}, health = {}, unsaved, error, mirror = {} } = status;
  if (state === "dead") {
    const left = unsaved ? `${counted(unsaved.records || 0, "change")} in ${counted(unsaved.files || 0, "file")} are in its cache only. ` : "";
    return ["bad", "Not mounted: its daemon is gone", `${left}Mount again to go on saving.`];
  }
  if (state === "silent") return ["warn", "Its daemon does not answer", error?.message || ""];
  if (!("head" in generation) && state !== "ready") return ["info", `It is ${state}`, ""];
  const waits = `${counted(dirty.files || 0, "file")}, ${bytes(dirty.bytes || 0)} not saved yet; the oldest change is ${seconds(dirty.oldest_age_s)} old`;
  if (health.state === "fenced") return ["bad", "Another mount took this workspace", health.error || ""];
  if (health.state && health.state !== "ok") return ["warn", `Saving is held up for ${seconds(health.since_s)}`, [health.error, dirty.records ? waits : null].filter(Boolean).join(". ")];
  if (status.read_only) return ["info", "Read-only", "It shows what another mount saves."];
  if (generation.head !== generation.sealed) return ["info", "Saving", waits];
  if (generation.sealed !== generation.mirrored) return ["good", "Everything is saved", `The readable copy follows: ${counted(mirror.pending_files || 0, "file")} to go.`];
  return ["good", "Everything is saved", ""];
}

export function mountList() {
  const filter = el("input", { type: "search", autocomplete: "off", oninput: () => paint() });
  const field = el("label", { hidden: true }, "Filter", filter);
  const list = el("ul", { class: "mounts" });
  const more = el("p", { class: "muted" });
  const rows = new Map();
  let last = { mounts: [], more: 0, damaged: [] };

  function row(each) {
    const head = el("div"), said = el("div", { class: "said" }), line = el("div", { class: "spark" }), room = el("div", { class: "room small" });
    const link = el("a", { class: "mount", href: `#/m/${each.key}` }, head, said, line, room);
    return { node: el("li", {}, link), update(now) {
      const [level, what, detail] = verdict(now);
      show(head, el("strong", {}, now.conversation), el("span", { class: "where small muted" }, `${now.user} · `, el("span", { class: "mono" }, now.mountpoint)));
      show(said, badge(level, what), detail ? el("p", { class: "small muted wrap" }, detail) : null);
      show(line, now.alive ? spark(now.spark || []) : null);
      const quota = now.quota;
      show(room, quota ? [`${bytes(quota.used_bytes)} of ${bytes(quota.max_bytes)}`, meter("Quota", quota.used_bytes, quota.max_bytes)] : null);
    } };
  }

  function paint() {
    const wanted = filter.value.trim().toLowerCase();
    const shown = last.mounts.filter((each) => `${each.conversation} ${each.user} ${each.mountpoint}`.toLowerCase().includes(wanted));
    const nodes = [];
    for (const each of shown) {
      if (!rows.has(each.key)) rows.set(each.key, row(each));
      rows.get(each.key).update(each);
      nodes.push(rows.get(each.key).node);
    }
    // The same nodes in the same order stay where they are, and so does the focus.
    if (nodes.length !== list.children.length || nodes.some((node, at) => list.children[at] !== node)) show(list, nodes);
    field.hidden = last.mounts.length < 7;
    const words = [];
    if (!last.mounts.length) words.push("Nothing is mounted on this host. `s3ws mount` mounts a workspace.");
    if (last.more) words.push(`${last.more} more are not listed.`);
    for (const path of last.damaged) words.push(`The entry ${path} is damaged.`);
    setText(more, words.join(" "));
  }

  const node = el("div", {}, el("div", { class: "between" }, el("h1", { tabindex: "-1" }, "Mounts of this host"), field), list, more);
  return { node, title: "Mounts", every_ms: 2000, async refresh() { last = await get("/api/mounts"); paint(); } };
}

export function mountOverview(address, head) {
  const banner = el("div", { class: "panel verdict" });
  const age = chart("Oldest unsaved change", seconds, (value) => (value <= 5 ? 5 : Math.ceil(value / 10) * 10));
  const rate = chart("Upload rate", (value) => `${bytes(value)}/s`, (value) => 1024 * 2 ** Math.max(0, Math.ceil(Math.log2(value / 1024))));
  const facts = el("dl", { class: "facts" });
  const text = el("div"), save = el("button", { type: "button" }, "Save now");
  show(banner, text, save);
  save.addEventListener("click", async () => {
    save.disabled = true;
    try {
      await post(`${address}/sync`);
      note("Everything is saved.");
    } catch (error) { note(`${error.message} ${error.remedy}`); }
    save.disabled = false;
  });
  const trouble = el("div");
  const node = el("div", {}, banner, el("div", { class: "charts" }, age.node, rate.node), el("div", { class: "panel" }, el("h2", {}, "In figures"), facts), trouble);

  function paint(data) {
    const status = data.status;
    const [level, what, detail] = verdict(status);
    banner.className = `panel verdict ${level}`;
    show(text, el("p", {}, what), detail ? el("p", { class: "muted" }, detail) : null);
    save.hidden = !data.alive || Boolean(status.read_only) || !status.generation;
    age.update(data.chart.time_s, data.chart.age_s);
    rate.update(data.chart.time_s, data.chart.rate);
    show(facts, rows(status).map(([name, ...value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    show(trouble, troubles(status));
  }
  return { node, every_ms: 2000, async refresh() { const data = await get(address); head(data); paint(data); } };
}

function rows(status) {
  const { generation, dirty, quota, flush, health, hydration, backup, lease, store, cache, pid, uptime_s: up, version, holder } = status;
  const found = [];
  if (generation) found.push(["Saved up to", `${generation.sealed} of ${generation.head}`, el("span", { class: "muted" }, ` (readable: ${generation.mirrored})`)]);
  if (dirty) found.push(["Not saved yet", dirty.records ? `${counted(dirty.files, "file")}, ${bytes(dirty.bytes)}` : "nothing"]);
  if (flush) found.push(["Flush", [flush.state, flush.next_due_s !== null && flush.next_due_s !== undefined ? `due in ${seconds(flush.next_due_s)}` : null, flush.last_sealed_age_s !== null && flush.last_sealed_age_s !== undefined ? `last ${seconds(flush.last_sealed_age_s)} ago` : null].filter(Boolean).join(", ")]);
  if (health) found.push(["Store", badge(health.state === "ok" ? "good" : "warn", health.state), el("div", { class: "small muted wrap" }, store?.location || "")]);
  if (quota) found.push(["Quota", `${bytes(quota.used_bytes)} of ${bytes(quota.max_bytes)}, ${counted(quota.used_inodes, "file")}`, meter("Quota", quota.used_bytes, quota.max_bytes)]);
  if (hydration?.cold_files) found.push(["Only in the bucket", `${counted(hydration.cold_files, "file")}, ${bytes(hydration.cold_bytes)}`]);
  if (backup?.last) found.push(["Last backup", `${seconds(backup.age_s)} ago`, el("div", { class: "small muted wrap" }, backup.last.name)]);
  if (lease?.holder) found.push(["Lease", String(lease.holder)]);
  if (pid) found.push(["Daemon", `${pid}${up !== undefined ? `, up ${seconds(up)}` : ""}${holder?.restarts ? `, ${counted(holder.restarts, "restart")}` : ""}`, el("div", { class: "small muted wrap" }, version ? `s3ws ${version}` : "")]);
  if (cache?.path) found.push(["Cache", el("span", { class: "mono wrap" }, cache.path)]);
  return found;
}

const LISTED = 20;

function troubles(status) {
  const found = [];
  const listed = (title, items) => {
    if (!items?.length) return;
    found.push(el("div", { class: "panel" }, el("h2", {}, `${title} (${items.length})`),
      el("ul", {}, items.slice(0, LISTED).map((item) => el("li", { class: "wrap" }, el("code", {}, item.path || String(item)), item.reason || item.what ? el("span", { class: "muted" }, ` ${item.reason || item.what}`) : null)))));
  };
  listed("Not readable below files/", status.mirror?.unmirrored);
  listed("Changed by others", status.mirror?.conflicts);
  listed("Changes by others, lately", (status.outside?.events || []).slice(-LISTED));
  listed("Damaged in the bucket", status.hydration?.damaged);
  if (status.backup?.error) found.push(failure({ message: `The last backup failed: ${status.backup.error}` }));
  return found;
}
