// Requests to the server. The key is kept by the browser for this address and port only.

const KEY = "s3ws-key";

export class ApiError extends Error {
  constructor(status, said) {
    super(said.message || `The server answered ${status}.`);
    this.status = status;
    this.remedy = said.remedy || "";
  }
}

async function send(method, address, body) {
  let response;
  try {
    response = await fetch(address, {
      method,
      headers: { "X-S3ws-Key": localStorage.getItem(KEY) || "", ...(body ? { "Content-Type": "application/json" } : {}) },
      body: body ? JSON.stringify(body) : undefined,
    });
  } catch {
    throw new ApiError(0, { message: "The status page does not answer.", remedy: "Is `s3ws web` still running?" });
  }
  const said = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, said.error || {});
  return said;
}

export const get = (address, query) => send("GET", query ? `${address}?${encode(query)}` : address);
export const post = (address, body) => send("POST", address, body || {});

// Paths are in percent escapes already, as they may hold bytes that are no text.
export function encode(query) {
  return Object.entries(query)
    .map(([name, value]) => `${name}=${name === "path" ? value : encodeURIComponent(value)}`)
    .join("&");
}

export async function enter(token) {
  const said = await post("/api/session", { token });
  localStorage.setItem(KEY, said.key);
}

export async function leave() {
  await post("/api/session/end").catch(() => {});
  localStorage.removeItem(KEY);
}

export const hasKey = () => Boolean(localStorage.getItem(KEY));
