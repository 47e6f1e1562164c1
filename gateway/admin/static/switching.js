// Switching: what is being loaded, who waits for it, and how long it took before.

import { badge, cells, h, keyed, say, set, show, table } from "./dom.js";
import { moment, seconds } from "./format.js";
import { cancel } from "./orders.js";
import { mayOperate } from "./rights.js";
import { state } from "./store.js";

const PHASES = ["fetching", "draining", "saving", "stopping", "starting", "loading", "restoring", "ready"];

const QUEUE = ["place", "model", "client", "host", "waited", "turn in", ...(mayOperate ? [""] : [])];
const QUEUE_WIDTHS = ["", "free"];
const PAST = ["when", "host", "from", "to", "result", "took", "of which"];
const PAST_WIDTHS = ["", "", "free", "free", "", "", "long"];

export function build(root) {
  const none = h("p", { class: "soft" }, "No switch is under way.");
  const running = h("div");
  const nobody = h("p", { class: "soft" }, "Nobody waits.");
  const queue = h("tbody");
  const queueTable = table("Queue", QUEUE, queue);
  const never = h("p", { class: "soft" }, "No switch yet.");
  const past = h("tbody");
  const pastTable = table("Last switches", PAST, past);
  root.append(
    h("div", { class: "card" }, h("h3", {}, "Under way"), none, running),
    h("div", { class: "card" }, h("h3", {}, "Queue"), nobody, queueTable),
    h("div", { class: "card" }, h("h3", {}, "Last switches"), never, pastTable),
  );
  return {
    update() {
      const moving = underWay();
      show(none, !moving.length);
      keyed(running, moving, (each) => `${each.backend} ${each.switch.id} ${each.switch.model}`, runningCard);
      const waiting = state.hosts.flatMap((host) => host.queue.map((each) => ({ ...each, backend: host.backend, seen: host.seen })));
      show(nobody, !waiting.length);
      show(queueTable, waiting.length);
      keyed(queue, waiting, (each) => `${each.backend} ${each.id}`, queueRow);
      show(never, !state.switches.length);
      show(pastTable, state.switches.length);
      keyed(past, state.switches.slice(0, 100), (each) => `${each.backend} ${each.switch.id} ${each.at}`, pastRow);
    },
  };
}

/** What is told as it goes; and what was loading before the page was opened. */
function underWay() {
  const told = [...state.running.values()];
  for (const host of state.hosts) {
    for (const status of host.host?.models ?? []) {
      if (status.state !== "starting" || told.some((each) => each.backend === host.backend && each.switch.model === status.model)) continue;
      told.push({
        backend: host.backend,
        seen: Date.now() / 1000,
        switch: { id: "", model: status.model, phase: "loading", from_models: [], percent: status.percent, eta_s: status.eta_s, elapsed_s: Date.now() / 1000 + state.skew - status.since, phase_seconds: {} },
      });
    }
  }
  return told;
}

function runningCard() {
  const title = h("h4");
  const where = h("p", { class: "soft small" });
  const bar = h("progress", { max: "100", "aria-label": "load" });
  const words = h("p", { class: "small" });
  const steps = PHASES.map((phase) => h("li", {}, phase));
  const node = h("div", {}, title, where, h("ol", { class: "phases" }, ...steps), bar, words);
  const update = ({ backend, switch: moved, seen }) => {
    say(title, moved.from_models.length ? `${moved.from_models.join(", ")} → ${moved.model}` : moved.model);
    say(where, `on ${backend}`);
    const at = PHASES.indexOf(moved.phase);
    steps.forEach((step, index) => {
      const spent = moved.phase_seconds?.[PHASES[index]];
      show(step, index === at || spent !== undefined || PHASES[index] === "ready");
      set(step, "data-state", index === at ? "current" : spent !== undefined ? "done" : "");
      set(step, "aria-current", index === at ? "step" : null);
      say(step, spent === undefined ? PHASES[index] : `${PHASES[index]} ${seconds(spent)}`);
    });
    if (moved.percent === null || moved.percent === undefined) bar.removeAttribute("value");
    else bar.value = moved.percent;
    const since = Date.now() / 1000 - seen;
    const left = moved.eta_s === null || moved.eta_s === undefined ? "" : `, about ${seconds(Math.max(0, moved.eta_s - since))} left`;
    say(words, `${seconds(moved.elapsed_s + since)} so far${left}`);
  };
  return { node, update };
}

function queueRow(first) {
  const told = cells(QUEUE, Array(6).fill(""), QUEUE_WIDTHS);
  const stop = mayOperate && h("td", { role: "cell" }, h("button", { type: "button", class: "danger", "aria-label": `Cancel ${first.id}`, on: { click: (event) => cancel(first.id, event.currentTarget) } }, "Cancel"));
  const node = h("tr", { role: "row" }, ...told, stop);
  const update = (each) => {
    const since = Date.now() / 1000 - each.seen;
    const values = [each.position, each.model, each.client, each.backend, seconds(each.waited_s + since), each.eta_s - since < 0.5 ? "a moment" : `about ${seconds(each.eta_s - since)}`];
    values.forEach((value, index) => say(told[index], value));
  };
  return { node, update };
}

function pastRow({ at, backend, switch: moved }) {
  const failed = moved.phase === "failed";
  const spent = Object.entries(moved.phase_seconds ?? {}).filter(([, value]) => value >= 0.001).map(([phase, value]) => `${phase} ${seconds(value)}`);
  const row = [moment(at), backend, moved.from_models.join(", ") || "–", moved.model, badge(failed ? "failed" : "ready", failed ? "bad" : "good").node, seconds(moved.elapsed_s), failed ? (moved.failure?.message ?? "") : spent.join(", ")];
  return { node: h("tr", { role: "row" }, ...cells(PAST, row, PAST_WIDTHS)) };
}
