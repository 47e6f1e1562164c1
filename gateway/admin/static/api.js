// Calls to the gateway. An answer that is no success becomes an error that says what to do.

export async function get(path) {
  return decoded(await fetch(path, { headers: { Accept: "application/json" }, cache: "no-store" }));
}

export async function post(path, body) {
  return decoded(
    await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(body),
    }),
  );
}

async function decoded(answer) {
  if (answer.status === 401) leave();
  const text = await answer.text();
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    /* told below */
  }
  if (!answer.ok) throw new Error(problem(value, answer.status));
  return value;
}

/** What an error answer says, in whatever shape its protocol has. */
export function problem(value, status) {
  const told = value?.error;
  return (typeof told === "string" ? told : told?.message) || `the gateway answered with status ${status}`;
}

/** The login has ended: the page asks for the key again. */
export function leave() {
  if (!leaving) location.reload();
  leaving = true;
}
let leaving = false;

/** The events of a stream that `fetch` opened, as `{ event, data }`. */
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
