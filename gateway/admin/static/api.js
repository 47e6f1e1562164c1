// Calls to the gateway. An unsuccessful response becomes an Error with the message to show.

/** Where the gateway is: `/`, or where it is mounted in another application. */
const ROOT = new URL("..", import.meta.url);

/** The URL of a path of the gateway. */
export function url(path) {
  return new URL(path.slice(1), ROOT).href;
}

export async function get(path) {
  return decode(await fetch(url(path), { headers: { Accept: "application/json" }, cache: "no-store" }));
}

export async function post(path, body) {
  return decode(
    await fetch(url(path), {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(body),
    }),
  );
}

export async function remove(path) {
  return decode(await fetch(url(path), { method: "DELETE", headers: { Accept: "application/json" } }));
}

async function decode(response) {
  if (response.status === 401) sessionExpired();
  const text = await response.text();
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    /* handled below */
  }
  if (!response.ok) throw new Error(errorMessage(value, response.status));
  return value;
}

/** The message of an error response, in the shape of any protocol. */
export function errorMessage(value, status) {
  const error = value?.error;
  return (typeof error === "string" ? error : error?.message) || `HTTP status ${status} from the gateway`;
}

/** The session has expired: reload to show the login form. */
export function sessionExpired() {
  if (!reloading) location.reload();
  reloading = true;
}
let reloading = false;

/** The server-sent events of a `fetch` response body, as `{ event, data }`. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value.replaceAll("\r", "");
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const block = rest.slice(0, end);
        rest = rest.slice(end + 2);
        let event = "message";
        const data = [];
        for (const line of block.split("\n")) {
          if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
          else if (line.startsWith("event:")) event = line.slice(6).trim();
        }
        if (data.length) yield { event, data: data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
