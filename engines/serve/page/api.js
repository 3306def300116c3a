// The server's API: a chat as a stream of chunks, and errors in words.

/** What went wrong, for a reader: a title, and what the server said of it. */
export class Failure extends Error {
  constructor(title, detail = "", status = 0) {
    super(detail ? `${title} ${detail}` : title);
    this.title = title;
    this.detail = detail;
    this.status = status;
  }
}

const TITLES = {
  400: "The server refused the request.",
  401: "The server wants an API key.",
  404: "The server does not have this.",
  413: "The conversation is too large for this server.",
  429: "The server is busy.",
  500: "The engine failed.",
  503: "The server has no place for this now.",
};

async function failure(response) {
  let detail = "";
  try {
    detail = (await response.json()).error.message;
  } catch {
    // No body of ours: a proxy between, for example. The status says enough.
  }
  const wait = response.headers.get("Retry-After");
  if (wait !== null) detail += `${detail ? ". " : ""}Try again in ${wait} s.`;
  const title = TITLES[response.status] ?? `The server answered ${response.status}.`;
  return new Failure(title, detail, response.status);
}

async function ask(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.", "Is it still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** The model that is served: its id and max_model_len. */
export async function servedModel(key) {
  const found = await (await ask("v1/models", key)).json();
  return found.data[0];
}

/** The chunks of one answer. Ends with a Failure if the answer is cut. */
export async function* chat(body, key, signal) {
  const response = await ask("v1/chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: toJson(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure("The answer was cut.", chunk.error.message);
    yield chunk;
  }
  throw new Failure("The connection broke before the answer ended.");
}

// Seeds have 64 bits, JavaScript's numbers 53: a seed is a string of digits up to here.
function toJson({ seed, ...others }) {
  const text = JSON.stringify(others);
  return seed === undefined ? text : `{"seed":${seed},${text.slice(1)}`;
}

/** The data of server-sent events; comments, which keep a connection open, are left out. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The connection broke before the answer ended.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
