// Chain: the backends in the order they are asked, what is thought of each, and what they cost.

import { badge, facts, h, keyed, s, say, set, show } from "./dom.js";
import { moment, money, seconds } from "./format.js";
import { now, state } from "./store.js";

const BREAKERS = { closed: ["in use", "good"], open: ["left alone", "bad"], half_open: ["being tried", "warn"] };
const HOUR = 3600;

export function build(root) {
  const sum = h("p");
  const spent = h("progress", { max: "1", "aria-label": "spent today, of the limit" });
  const none = h("p", { class: "soft" }, "No backends are configured.");
  const hops = h("ol", { class: "hops" });
  const changes = h("ol", { class: "small" });
  const quiet = h("p", { class: "soft" }, "No breaker has changed.");
  root.append(sum, spent, none, hops, h("div", { class: "card" }, h("h3", {}, "Changes"), quiet, changes));
  return {
    update() {
      const { chain } = state;
      const clouds = chain.hops.some((hop) => !hop.local);
      show(sum, clouds || chain.cost);
      say(sum, `Today: ${money(chain.cost)}${chain.limit === null ? ", no limit is set" : ` of ${money(chain.limit)}`}`);
      show(spent, chain.limit);
      if (chain.limit) spent.value = Math.min(1, chain.cost / chain.limit);
      show(none, !chain.hops.length);
      keyed(hops, chain.hops.map((hop, index) => ({ ...hop, number: index + 1 })), (hop) => hop.backend, hopCard);
      show(quiet, !state.breakers.length);
      keyed(changes, state.breakers.slice(0, 30), (each) => `${each.at} ${each.event.backend} ${each.event.model}`, ({ at, event }) => ({
        node: h("li", {}, `${moment(at)} · ${event.backend}${event.model ? `, ${event.model}` : ""}: ${words(event.before)} → ${words(event.state)}`),
      }));
    },
  };
}

const words = (name) => BREAKERS[name]?.[0] ?? name;

function hopCard() {
  const number = h("span", { class: "soft" });
  const name = h("h3");
  const reach = badge();
  const breaker = badge();
  const place = badge();
  const told = facts({ kind: "Kind", answered: "Answered", failures: "Failures", retry: "Tried again in", cost: "Cost today" });
  const models = h("ul", { class: "small" });
  const strip = s("svg", { viewBox: "0 0 600 14", role: "img", preserveAspectRatio: "none" });
  const caption = h("p", { class: "soft small" }, "the last hour");
  const node = h("li", { class: "card" }, h("div", { class: "head" }, number, name, reach.node, breaker.node, place.node), told.node, models, strip, caption);
  let drawn = "";
  const update = (hop) => {
    say(number, `${hop.number}.`);
    say(name, hop.backend);
    reach.update(hop.reachable ? "reachable" : "silent", hop.reachable ? "good" : "bad");
    breaker.update(...(BREAKERS[hop.breaker.state] ?? [hop.breaker.state, ""]));
    place.update(hop.local ? "in the house" : "outside", "");
    const tries = state.requests.flatMap((each) => (each.attempts?.length ? each.attempts : each.backend ? [{ backend: each.backend, outcome: each.outcome === "ok" ? "answered" : each.code || each.outcome }] : [])).filter((each) => each.backend === hop.backend);
    const kinds = new Map();
    for (const each of tries) kinds.set(each.outcome, (kinds.get(each.outcome) ?? 0) + 1);
    const answered = kinds.get("answered") ?? 0;
    kinds.delete("answered");
    told.update({
      kind: hop.kind,
      answered: tries.length ? `${answered} of the last ${tries.length}` : "not asked lately",
      failures: [...kinds].map(([kind, times]) => `${times} × ${kind.replaceAll("_", " ")}`).join(", "),
      retry: hop.breaker.retry_at ? seconds(Math.max(0, hop.breaker.retry_at - now())) : "",
      cost: hop.cost === null ? "" : money(hop.cost),
    });
    keyed(models, hop.models.filter((each) => each.state !== "closed" || each.retry_at), (each) => each.model, () => {
      const item = h("li");
      return { node: item, update: (each) => say(item, `${each.model}: ${words(each.state)}${each.retry_at ? `, tried again in ${seconds(Math.max(0, each.retry_at - now()))}` : ""}`) };
    });
    const spans = timeline(hop);
    const key = JSON.stringify(spans.map(([, , kind]) => kind)) + Math.floor(now() / 10);
    if (key === drawn) return;
    drawn = key;
    strip.replaceChildren(...spans.map(([from, to, kind]) => s("rect", { x: from * 600, y: 0, width: Math.max(1, (to - from) * 600), height: 14, "data-state": kind })));
    const bad = spans.reduce((all, [from, to, kind]) => all + (kind === "closed" ? 0 : to - from), 0);
    set(strip, "aria-label", bad ? `left alone for ${Math.round(bad * 60)} of the last 60 minutes` : "in use for the whole last hour");
  };
  return { node, update };
}

/** The last hour of a host's breaker as `[from, to, state]`, in parts of the hour. */
function timeline(hop) {
  const end = now();
  const begin = end - HOUR;
  const changes = state.breakers.filter((each) => each.event.backend === hop.backend && !each.event.model && each.at >= begin).reverse();
  const spans = [];
  let from = begin;
  let kind = changes.length ? changes[0].event.before : hop.breaker.state;
  for (const { at, event } of changes) {
    spans.push([(from - begin) / HOUR, (at - begin) / HOUR, kind]);
    from = at;
    kind = event.state;
  }
  spans.push([(from - begin) / HOUR, 1, hop.breaker.state]);
  return spans;
}
