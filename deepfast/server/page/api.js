// Talking to the server: JSON, and server-sent events as they come.
// In: a path and a body. Out: parsed JSON; an async iterator of events; errors with a status.
// Does not know: what any field means.

let key = "";
try {
  key = localStorage.getItem("deepfast.key") || "";
} catch {
  // Storage may be forbidden: the key then lives as long as the page.
}
let askForKey = async () => false; // set by the page; resolves to true when there is a new key to try
let onState = () => {}; // told "up" and "down"

/** The server answered with an error; retryAfter is in seconds. */
export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The server did not answer, or went away in the middle. */
export class Disconnected extends Error {}

export function setKey(value) {
  key = value;
  try {
    localStorage.setItem("deepfast.key", value);
  } catch {
    // As above.
  }
}

export function connect(handlers) {
  askForKey = handlers.askForKey;
  onState = handlers.onState;
}

async function send(path, { method = "GET", body, signal } = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
    if (path !== "/health") onState("up");
    return answer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    onState("down");
    throw new Disconnected(String(error.message || error));
  }
}

async function checked(path, options) {
  let answer = await send(path, options);
  while (answer.status === 401 && (await askForKey(key !== ""))) answer = await send(path, options);
  if (answer.ok) return answer;
  const text = await answer.text().catch(() => "");
  let message = text.slice(0, 300) || `HTTP ${answer.status}`;
  try {
    const parsed = JSON.parse(text);
    message = parsed.error?.message ?? parsed.detail ?? message;
  } catch {
    // Not JSON: a proxy in between, for example. Its text is all there is.
  }
  throw new ApiError(answer.status, String(message), Number(answer.headers.get("Retry-After")) || 0);
}

/** The JSON that a GET, or a POST with a body, answers with. */
export async function json(path, body, signal) {
  const answer = await checked(path, { method: body === undefined ? "GET" : "POST", body, signal });
  return answer.json();
}

/** The status of /health: 200 when the server can answer, 0 when it is gone. */
export async function health() {
  try {
    return (await send("/health")).status;
  } catch {
    return 0;
  }
}

/** The events of a stream as parsed JSON, until [DONE]. Leaving the loop closes the connection. */
export async function* events(path, body, signal) {
  const answer = await checked(path, { method: "POST", body, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let done = false;
  try {
    let rest = "";
    while (!done) {
      const piece = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        onState("down");
        throw new Disconnected(String(error.message || error));
      });
      if (piece.done) throw new Disconnected("the stream ended early");
      rest += piece.value;
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") {
          done = true;
          break;
        }
        if (!data) continue;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(event.error.code ?? 500, event.error.message ?? String(event.error), 0);
        yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
