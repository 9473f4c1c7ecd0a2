// The service's public REST API, and nothing else. The key is asked for when it is needed and kept for this tab alone.

const KEY = "kvblend-api-key";

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the service answered ${status}`);
    this.status = status;
    this.title = { 0: "The service cannot be reached", 401: "A valid API key is needed", 403: "This key may not do that",
      404: "Not found", 429: "Too much at once", 503: "vLLM does not answer" }[status] ?? "The service refused it";
  }
}

let askForKey = async () => false;
export const onKeyWanted = (ask) => (askForKey = ask);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

async function send(method, path, { json, form, signal } = {}) {
  for (let tries = 0; ; tries += 1) {
    const headers = {};
    if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, signal, body: json === undefined ? form : JSON.stringify(json) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "The request did not get through. Is the service running, and is this page still served by it?" });
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => null);
    if (response.status === 401 && tries === 0 && (await askForKey())) continue;
    throw new ApiError(response.status, body?.error);
  }
}

async function read(method, path, options) {
  const response = await send(method, path, options);
  return response.status === 204 ? null : response.json();
}

export const get = (path) => read("GET", path);
export const post = (path, json) => read("POST", path, { json });
export const upload = (path, form) => read("POST", path, { form });
export const remove = (path) => read("DELETE", path);
export const segment = encodeURIComponent;
export const collectionPath = (name) => `v1/collections/${segment(name)}`;
// The id is one step, its slashes encoded: of more steps the browser would resolve one that is a dot.
export const documentPath = (collection, id) => `${collectionPath(collection)}/documents/${segment(id)}`;
export const text = async (path) => (await send("GET", path)).text();

// Whatever its status: /readyz says with 503 what is not ready.
export async function readiness() {
  const response = await fetch("readyz", { headers: hasKey() ? { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {} }).catch(() => null);
  return response?.headers.get("content-type")?.includes("json") ? response.json() : null;
}

// Server-sent events of a request: yields [name, data].
export async function* events(method, path, { json, signal } = {}) {
  const response = await send(method, path, { json, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (held + value).replaceAll("\r\n", "\n").split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trimStart()]);
        const data = lines.filter(([field]) => field === "data").map(([, own]) => own).join("\n");
        if (data) yield [lines.find(([field]) => field === "event")?.[1] ?? "message", JSON.parse(data)];
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

// One answer of a collection: calls what is given of onSources, onText; returns the whole, as the last event has it.
export async function answer(collection, request, { onSources, onText, signal }) {
  const path = `${collectionPath(collection)}/query`;
  for await (const [name, data] of events("POST", path, { json: { ...request, stream: true }, signal })) {
    if (name === "sources") onSources?.(data.sources);
    else if (name === "delta") onText?.(data.text);
    else if (name === "error") throw new ApiError(500, data.error);
    else if (name === "done") return data;
  }
  throw new ApiError(0, { message: "The answer broke off before its end." });
}
