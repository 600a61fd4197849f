// Elements and words. Text is only ever set as text: nothing here, or anywhere, makes HTML of it.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const el = (name, props, ...children) => fill(document.createElement(name), props, children);
export const svg = (name, props, ...children) => fill(document.createElementNS(SVG, name), props, children);

export function show(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function bytes(count) {
  if (typeof count !== "number") return "–";
  let value = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return unit === "B" ? `${Math.round(value)} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

export function seconds(value) {
  if (typeof value !== "number") return "–";
  if (value < 120) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

const pad = (number) => String(number).padStart(2, "0");

export function clock(ms) {
  const date = new Date(ms);
  return `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

export function when(ms) {
  const date = new Date(ms);
  const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  const time = clock(ms);
  const text = new Date().toDateString() === date.toDateString() ? time : `${day} ${time.slice(0, 5)}`;
  return el("time", { class: "nowrap", datetime: date.toISOString(), title: `${day} ${time}` }, text);
}

export const badge = (level, text, title) => el("span", { class: `badge ${level}`, title }, text);

export function meter(label, used, max) {
  const share = max > 0 ? Math.min(1, used / max) : 0;
  return el("div", { class: share > 0.8 ? "meter warn" : "meter", role: "img", "aria-label": `${label}: ${Math.round(share * 100)} %` },
    svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none" }, svg("rect", { width: Math.max(share * 100, used > 0 ? 1 : 0), height: 6 })));
}

export function failure(error) {
  return el("div", { class: "panel error", role: "alert" },
    el("p", {}, error.message), error.remedy ? el("p", { class: "muted" }, error.remedy) : null);
}

export function note(text) {
  const made = el("p", { class: "note" }, text);
  document.getElementById("notes").append(made);
  setTimeout(() => made.remove(), 8000);
}
