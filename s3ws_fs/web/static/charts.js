// Small line charts: an SVG that stretches, with words around it. Arrow keys and pointers read values.

import { clock, el, setText, show, svg } from "./dom.js";

const W = 1000;
const H = 100;

function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

// Paths of the parts between gaps: [[x, y], …] each.
function parts(points) {
  const found = [];
  let part = [];
  for (const point of points) {
    if (point) part.push(point);
    else if (part.length) { found.push(part); part = []; }
  }
  if (part.length) found.push(part);
  return found;
}

const d = (part) => part.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

export function chart(title, format, scale = nice) {
  const now = el("p", { class: "now" }, "–");
  const top = el("span", { class: "top" });
  const first = el("span");
  const last = el("span", { "aria-live": "polite" });
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const plot = el("div", { class: "plot", tabindex: "0", role: "img" }, drawing, top);
  const node = el("figure", { class: "panel chart" },
    el("div", { class: "between" }, el("h2", {}, title), now), plot, el("p", { class: "axis" }, first, last));
  let data = { times: [], values: [], xs: [] };
  let at = null;
  const cursor = svg("line", { class: "cursor", y1: 0, y2: H, visibility: "hidden" });

  function read(index) {
    at = index;
    if (index === null || !data.times.length) {
      cursor.setAttribute("visibility", "hidden");
      setText(last, data.times.length ? "now" : "");
      return;
    }
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", data.xs[index]);
    cursor.setAttribute("x2", data.xs[index]);
    const value = data.values[index];
    setText(last, `${clock(data.times[index] * 1000)}: ${value === null ? "not known" : format(value)}`);
  }
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * W;
    let best = null;
    data.xs.forEach((each, index) => { if (best === null || Math.abs(each - x) < Math.abs(data.xs[best] - x)) best = index; });
    read(best);
  });
  plot.addEventListener("pointerleave", () => read(null));
  plot.addEventListener("blur", () => read(null));
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !data.times.length) return;
    event.preventDefault();
    read(Math.min(data.times.length - 1, Math.max(0, (at ?? data.times.length) + step)));
  });

  function update(times, values) {
    const known = values.filter((value) => value !== null);
    const most = scale(Math.max(0, ...known));
    const from = times[0] ?? 0;
    const span = Math.max(60, (times.at(-1) ?? 0) - from);
    const to = times.at(-1) ?? 0;
    const xs = times.map((time) => W - ((to - time) / span) * W);
    data = { times, values, xs };
    const lines = parts(values.map((value, index) => (value === null ? null : [xs[index], H - (value / most) * H])));
    show(drawing,
      svg("line", { class: "grid", x1: 0, x2: W, y1: H / 2, y2: H / 2 }),
      lines.map((part) => svg("path", { class: "area", d: `${d(part)}L${part.at(-1)[0].toFixed(1)} ${H}L${part[0][0].toFixed(1)} ${H}Z` })),
      lines.map((part) => svg("path", { class: "line", d: d(part) })), cursor);
    const latest = values.length ? values.at(-1) : null;
    setText(now, latest === null ? "not known" : format(latest));
    setText(top, known.length ? format(most) : "");
    setText(first, times.length ? `${Math.round(span / 60)} min ago` : "no figures yet");
    plot.setAttribute("aria-label", known.length
      ? `${title}: now ${latest === null ? "not known" : format(latest)}, at most ${format(Math.max(...known))}. Arrow keys read single values.`
      : `${title}: no figures yet`);
    read(at !== null && at < times.length ? at : null);
  }
  return { node, update };
}

export function spark(values) {
  const most = nice(Math.max(2, ...values));
  const points = values.map((value, index) => [values.length > 1 ? (index / (values.length - 1)) * W : W, H - 4 - (value / most) * (H - 8)]);
  return svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `Age of the oldest unsaved change lately: at most ${Math.max(0, ...values).toFixed(1)} s` },
  points.length > 1 ? [svg("path", { class: "area", d: `${d(points)}L${W} ${H}L0 ${H}Z` }), svg("path", { class: "line", d: d(points) })] : null);
}
