// Chain: the backends in the order they are tried, their circuit breakers, and their cost.

import { get } from "./api.js";
import { badge, facts, h, keyed, s, setText, set, show } from "./dom.js";
import { clock, moment, money, seconds } from "./format.js";
import { now, state } from "./store.js";
import { describe } from "./outcomes.js";

const BREAKERS = { closed: ["in use", "good"], open: ["circuit open", "bad"], half_open: ["half-open", "warn"] };
const HOUR = 3600;

export function build(root) {
  const sum = h("p", { class: "spent" });
  const spent = h("progress", { max: "1", "aria-label": "cost today, of the daily limit" });
  const none = h("p", { class: "soft" }, "No backends are configured.");
  const hops = h("ol", { class: "hops" });
  const changes = h("ol", { class: "small plain" });
  const quiet = h("p", { class: "soft" }, "No circuit breaker has changed.");
  const requests = requestChanges();
  root.append(sum, spent, none, hops, requests.node, h("div", { class: "card" }, h("h3", {}, "State changes"), quiet, changes));
  return {
    update() {
      requests.update();
      const { chain } = state;
      const clouds = chain.hops.some((hop) => !hop.local);
      show(sum, clouds || chain.cost);
      setText(sum, `Today: ${money(chain.cost)}${chain.limit === null ? ", no limit" : ` of ${money(chain.limit)}`}`);
      show(spent, chain.limit);
      if (chain.limit) spent.value = Math.min(1, chain.cost / chain.limit);
      show(none, !chain.hops.length);
      keyed(hops, chain.hops.map((hop, index) => ({ ...hop, number: index + 1 })), (hop) => hop.backend, hopCard);
      show(quiet, !state.breakers.length);
      keyed(changes, state.breakers.slice(0, 30), (each) => `${each.at} ${each.event.backend} ${each.event.model}`, ({ at, event }) => ({
        node: h("li", {}, `${moment(at)} · ${event.backend}${event.model ? `, ${event.model}` : ""}: ${words(event.previous)} → ${words(event.state)}`),
      }));
    },
  };
}

/** What the settings change in requests for a model, as a diff for each backend. */
function requestChanges() {
  const model = h("select", { "aria-label": "Model" });
  const status = h("p", { class: "soft small", role: "status" });
  const diffs = h("div");
  const node = h("div", { class: "card" }, h("h3", {}, "Changes of requests"), model, status, diffs);
  const load = async () => {
    const asked = model.value;
    if (!asked) return;
    try {
      const { hops } = await get(`/admin/route?model=${encodeURIComponent(asked)}`);
      if (asked !== model.value) return;
      const changed = hops.filter((hop) => hop.changes.length);
      setText(status, changed.length ? "" : "Requests for this model are sent as they are.");
      diffs.replaceChildren(...changed.map((hop) => h("div", {}, h("p", { class: "small" }, hop.backend), h("pre", { tabindex: "0", "aria-label": `changes for ${hop.backend}` }, hop.changes.join("\n")))));
    } catch (error) {
      setText(status, error.message);
    }
  };
  model.addEventListener("change", load);
  let listed = "";
  const update = () => {
    const names = state.models.map((each) => each.name);
    show(node, names.length);
    if (names.join("\n") === listed) return;
    const chosen = model.value;
    listed = names.join("\n");
    model.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (names.includes(chosen)) model.value = chosen;
    load();
  };
  return { node, update };
}

const words = (name) => BREAKERS[name]?.[0] ?? name;

function hopCard() {
  const number = h("span", { class: "soft" });
  const name = h("h3");
  const reach = badge();
  const breaker = badge();
  const place = badge();
  const details = facts({ kind: "Kind", answered: "Answered", why: "Paused", retry: "Retry in", cost: "Cost today" });
  const failures = h("ul", { class: "chips", "aria-label": "Failures by kind" });
  const lanes = h("div", { class: "lanes" });
  const axis = h("div", { class: "axis soft small", "aria-hidden": "true" }, h("span", {}, "an hour ago"), h("span", {}, "now"));
  const node = h("li", { class: "card" }, h("div", { class: "head" }, number, name, reach.node, breaker.node, place.node), details.node, failures, lanes);
  lanes.append(axis);
  const update = (hop) => {
    setText(number, `${hop.number}.`);
    setText(name, hop.backend);
    reach.update(hop.reachable ? "reachable" : "unreachable", hop.reachable ? "good" : "bad");
    breaker.update(...(BREAKERS[hop.breaker.state] ?? [hop.breaker.state, ""]));
    place.update(hop.local ? "local" : "cloud", "");
    const tries = state.requests.flatMap(attempts).filter((each) => each.backend === hop.backend);
    const kinds = new Map();
    for (const each of tries) kinds.set(each.outcome, (kinds.get(each.outcome) ?? 0) + 1);
    const answered = kinds.get("answered") ?? 0;
    kinds.delete("answered");
    details.update({
      kind: hop.kind,
      answered: tries.length ? `${answered} of the last ${tries.length}` : "no recent attempts",
      why: hop.breaker.reason ?? "",
      retry: hop.breaker.retry_at ? seconds(Math.max(0, hop.breaker.retry_at - now())) : "",
      cost: hop.cost === null ? "" : money(hop.cost),
    });
    show(failures, kinds.size);
    keyed(failures, [...kinds].sort((one, other) => other[1] - one[1]), ([kind]) => kind, ([kind]) => {
      const item = h("li");
      return { node: item, update: ([, times]) => setText(item, `${times} × ${describe(kind)}`) };
    });
    const models = hop.models.map((each) => ({ ...each, backend: hop.backend, label: each.model }));
    keyed(lanes, [{ ...hop.breaker, backend: hop.backend, label: "backend" }, ...models], (each) => each.model ?? "", lane);
    if (lanes.lastChild !== axis) lanes.append(axis);
  };
  return { node, update };
}

/** The attempts of a request, as far as they are known. */
function attempts(request) {
  if (request.attempts?.length) return request.attempts;
  return request.backend ? [{ backend: request.backend, outcome: request.outcome === "ok" ? "answered" : request.code || request.outcome }] : [];
}

/** The last hour of one circuit breaker: of a backend, or of one of its models. */
function lane() {
  const label = h("span", { class: "label" });
  const mood = h("span", { class: "small soft" });
  const strip = s("svg", { viewBox: "0 0 600 12", role: "img", preserveAspectRatio: "none" });
  const node = h("div", { class: "lane" }, label, strip, mood);
  let drawn = "";
  const update = (breaker) => {
    setText(label, breaker.label);
    const rest = breaker.retry_at ? `, retry in ${seconds(Math.max(0, breaker.retry_at - now()))}` : "";
    setText(mood, words(breaker.state) + (breaker.reason ? `: ${breaker.reason}` : "") + rest);
    set(mood, "data-state", breaker.state);
    const spans = timeline(breaker);
    const key = JSON.stringify(spans.map(([, , kind]) => kind)) + Math.floor(now() / 10);
    if (key === drawn) return;
    drawn = key;
    strip.replaceChildren(
      ...spans.map(([from, to, kind]) =>
        s("rect", { x: from * 600, y: 0, width: Math.max(1.5, (to - from) * 600), height: 12, "data-state": kind }, s("title", {}, `${words(kind)} from ${clock(now() - HOUR * (1 - from))}, ${seconds((to - from) * HOUR)}`)),
      ),
    );
    const bad = spans.reduce((all, [from, to, kind]) => all + (kind === "closed" ? 0 : to - from), 0);
    set(strip, "aria-label", `${breaker.label}: ${bad ? `circuit open for ${Math.max(1, Math.round(bad * 60))} of the last 60 minutes` : "in use for the last 60 minutes"}`);
  };
  return { node, update };
}

/** The last hour of a circuit breaker as `[from, to, state]`, in fractions of the hour. */
function timeline(breaker) {
  const end = now();
  const begin = end - HOUR;
  const changes = state.breakers.filter(({ at, event }) => event.backend === breaker.backend && (event.model ?? null) === (breaker.model ?? null) && at >= begin).reverse();
  const spans = [];
  let from = begin;
  let kind = changes.length ? changes[0].event.previous : breaker.state;
  for (const { at, event } of changes) {
    spans.push([(from - begin) / HOUR, (at - begin) / HOUR, kind]);
    from = at;
    kind = event.state;
  }
  spans.push([(from - begin) / HOUR, 1, breaker.state]);
  return spans;
}
