// Flow: requests in flight and recent ones, each with its timing.

import { badge, facts, h, keyed, setText, set, show } from "./dom.js";
import { get } from "./api.js";
import { clock, count, money, perSecond, seconds, speed } from "./format.js";
import { cancel } from "./actions.js";
import { mayOperate } from "./permissions.js";
import { isOwn, now, state } from "./store.js";
import { describe, describeReason } from "./outcomes.js";

const MAX_SHOWN = 100_000;

const OUTCOMES = {
  ok: ["ok", "good"],
  failed: ["failed", "bad"],
  broken: ["broken off", "bad"],
  client_disconnected: ["client disconnected", "warn"],
  cancelled: ["cancelled", "warn"],
  waiting: ["waiting", "warn"],
  prefill: ["prefill", ""],
  generating: ["generating", "good"],
};

const COLUMNS = ["time", "outcome", "model", "backend", "client", "queue", "switch", "first token", "speed", "total"];

export function build(root) {
  const search = h("input", { type: "search", id: "flow-search", autocomplete: "off" });
  const only = h("select", { id: "flow-only" }, h("option", { value: "" }, "all"), h("option", { value: "bad" }, "with problems"), h("option", { value: "hop" }, "served by a later hop"));
  const flying = h("ol", { class: "flow", "aria-label": "Requests in flight" });
  const past = h("ol", { class: "flow", "aria-label": "Recent requests" });
  const none = h("p", { class: "soft" }, "No requests in flight.");
  const empty = h("p", { class: "soft" }, "No requests to show.");
  const summary = h("p", { class: "soft small" });
  const above = columns();
  const names = columns();
  root.append(
    h("div", { class: "card flying" }, h("h3", {}, "In flight"), none, above, flying),
    h(
      "div",
      { class: "card" },
      h("h3", {}, "Recent requests"),
      h(
        "div",
        { class: "fields" },
        h("div", { class: "field wide" }, h("label", { for: "flow-search" }, "Model, client, backend or id"), search),
        h("div", { class: "field" }, h("label", { for: "flow-only" }, "Show"), only),
      ),
      summary,
      empty,
      names,
      past,
    ),
  );
  const update = () => {
    show(none, !state.in_flight.length);
    show(above, state.in_flight.length);
    keyed(flying, state.in_flight, (each) => each.id, (each) => row(each, true));
    const words = search.value.trim().toLowerCase();
    const shown = state.requests.filter((each) => fits(each, words, only.value));
    keyed(past, shown, (each) => `${each.id} ${each.at}`, (each) => row(each, false));
    show(empty, !shown.length);
    show(names, shown.length);
    const bad = shown.filter((each) => each.outcome !== "ok").length;
    setText(summary, shown.length ? `${shown.length} shown, ${bad || "none"} with problems` : "");
  };
  search.addEventListener("input", update);
  only.addEventListener("change", update);
  return { update };
}

function columns() {
  return h("div", { class: "columns", "aria-hidden": "true" }, ...COLUMNS.map((name, index) => h("span", { class: index > 4 ? "num" : "" }, name)));
}

function fits(request, words, only) {
  if (only === "bad" && request.outcome === "ok") return false;
  if (only === "hop" && !request.hop) return false;
  if (!words) return true;
  return [request.model, request.requested_model, request.client, request.backend, request.id, request.protocol, request.gateway].some((text) => text?.toLowerCase().includes(words));
}

function row(first, live) {
  const cells = Object.fromEntries(COLUMNS.map((name, index) => [name, h("span", index > 4 ? { class: "num", "data-label": name } : { class: name === "model" ? "name" : "" })]));
  const kind = badge();
  cells.outcome.append(kind.node);
  const [by, why, from, protocol] = [h("span"), h("span", { class: "under" }), h("span"), h("span", { class: "under" })];
  cells["backend"].append(by, why);
  cells.client.append(from, protocol);
  const summary = h("summary", {}, ...COLUMNS.map((name) => cells[name]));
  const inside = h("div", { class: "inside" });
  const details = h("details", {}, summary, inside);
  const stop = live && mayOperate && h("button", { type: "button", class: "danger", "aria-label": `Cancel ${first.id}`, on: { click: () => cancel(first.id, stop) } }, "Cancel");
  const node = h("li", {}, details, stop);
  let request = first;
  let body = null;
  const open = () => {
    if (!details.open) return;
    if (!body) inside.append(...(body = detail(live)).nodes);
    body.update(request);
  };
  details.addEventListener("toggle", open);
  const update = (fresh) => {
    request = fresh;
    const total = live ? Math.max(0, now() - request.at) : request.seconds;
    const [word, colour] = OUTCOMES[live ? request.phase : request.outcome] ?? [request.outcome, ""];
    kind.update(word, colour);
    // `at` is the arrival of a request in flight, and the end of a finished one.
    setText(cells.time, clock(live ? request.at : request.at - request.seconds));
    const model = served(request) ?? request.requested_model ?? "no model";
    setText(cells.model, request.requested_model && request.requested_model !== model ? `${request.requested_model} → ${model}` : model);
    const later = request.hop ? ` · hop ${request.hop + 1}` : "";
    setText(by, request.backend ? `${request.backend}${later}` : "–");
    setText(why, request.backend && request.hop && (live || request.outcome === "ok") ? describeReason(request.reason) : "");
    show(why, why.textContent);
    setText(from, request.client);
    setText(protocol, request.gateway ? `${request.protocol} at ${request.gateway}` : request.protocol);
    const rate = live ? null : speed(request);
    const [queued, switched] = waits(request, total);
    const numbers = {
      queue: queued >= 0.001 ? seconds(queued) : "–",
      switch: switched >= 0.001 ? seconds(switched) : "–",
      "first token": seconds(request.first_token_s),
      speed: rate ? perSecond(rate) : "–",
      total: seconds(total),
    };
    for (const [name, text] of Object.entries(numbers)) {
      setText(cells[name], text);
      set(cells[name], "data-none", text === "–");
    }
    open();
  };
  return { node, update };
}

/** The model that answered: the requested one where a name with a star stands for it. */
function served(request) {
  return request.model?.includes("*") ? request.requested_model : request.model;
}

/** Seconds in the queue and in a switch; for a request in flight, so far. */
function waits(request, total) {
  if (request.phase !== "waiting") return [request.queue_s, request.switch_s];
  const running = state.running.get(request.backend);
  const loads = running?.switch.model === request.model ? running.switch.elapsed_s + Date.now() / 1000 - running.seen : 0;
  const switched = Math.min(total, request.switch_s + loads);
  return [total - switched, switched];
}

const PARTS = [
  ["queue", "queued"],
  ["switch", "switching"],
  ["prefill", "prefill"],
  ["generation", "generation"],
];

function detail(live) {
  const bar = h("div", { class: "bar", role: "img" });
  const pieces = PARTS.map(([part]) => h("span", { "data-part": part }));
  bar.append(...pieces);
  const keys = PARTS.map(([part]) => h("li", { "data-part": part }));
  const fields = facts({
    id: "Request",
    began: "Started",
    asked: "Requested model",
    served: "Served by",
    gateway: "Gateway",
    why: "Reason",
    outcome: "Outcome",
    tokens: "Tokens",
    operation: "Operation",
    cost: "Cost",
  });
  const attempts = h("ol", { class: "small" });
  const contents = h("div", { class: "contents" });
  let id = "";
  const read = h("button", { type: "button", class: "quiet", on: { click: () => showTranscript(id, contents, read) } }, "Show prompt and answer");
  const update = (request) => {
    const total = live ? Math.max(0, now() - request.at) : request.seconds;
    const [queued, switched] = waits(request, total);
    const first = request.first_token_s ?? total;
    const lengths = [queued, switched, Math.max(0, first - queued - switched), Math.max(0, total - first)];
    const sum = lengths.reduce((one, other) => one + other, 0) || 1;
    PARTS.forEach(([, words], index) => {
      show(pieces[index], lengths[index] / sum > 0.001);
      pieces[index].style.flexGrow = lengths[index] / sum;
      setText(keys[index], `${words} ${seconds(lengths[index])}`);
    });
    set(bar, "aria-label", PARTS.map(([, words], index) => `${words} ${seconds(lengths[index])}`).join(", "));
    fields.update({
      id: request.id,
      began: clock(live ? request.at : request.at - request.seconds),
      asked: request.requested_model ?? "none",
      served: request.backend ? `${served(request) ?? ""} on ${request.backend}${request.hop ? `, hop ${request.hop + 1}` : ""}` : "no backend",
      gateway: request.gateway ?? "",
      why: request.backend && (live || request.outcome === "ok") ? describeReason(request.reason) || (request.hop ? "" : "first in the chain") : "",
      outcome: live ? request.phase : [request.status, request.code, request.outcome === "ok" ? "" : request.reason].filter(Boolean).join(" · "),
      tokens: request.prompt_tokens || request.completion_tokens ? `${count(request.prompt_tokens)} prompt${request.cached_tokens ? ` (${count(request.cached_tokens)} cached)` : ""}, ${count(request.completion_tokens)} completion` : "",
      operation: `${request.protocol} ${request.operation}${request.streamed ? ", streamed" : ""}`,
      cost: request.cost ? money(request.cost) : "",
    });
    id = request.id;
    show(read, !live && state.recording && mayOperate && isOwn(request) && !contents.childElementCount);
    const tried = request.attempts ?? [];
    show(attempts, tried.length > 1);
    if (tried.length > 1 && attempts.childElementCount !== tried.length) {
      attempts.replaceChildren(...tried.map((each) => h("li", {}, `${each.backend}: ${describe(each.outcome)} after ${seconds(each.seconds)}`)));
    }
  };
  return { nodes: [bar, h("ul", { class: "key" }, ...keys), fields.node, attempts, read, contents], update };
}

/** Show the recorded prompt and answer. */
async function showTranscript(id, place, button) {
  button.disabled = true;
  try {
    const [found] = await get(`/admin/contents?id=${encodeURIComponent(id)}`);
    const part = (name, text) => {
      const truncated = found.truncated.includes(name) || text.length > MAX_SHOWN;
      return [h("h4", {}, name === "request" ? "Request" : "Answer"), h("pre", { tabindex: "0", "aria-label": name }, pretty(text.slice(0, MAX_SHOWN)) + (truncated ? "\n[truncated]" : ""))];
    };
    place.replaceChildren(...part("request", found.request), ...part("answer", found.answer));
    show(button, false);
  } catch (error) {
    place.replaceChildren(h("p", { class: "bad small" }, error.message));
  }
  button.disabled = false;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
