// Switching: loads in progress, the queue, and recent switches.

import { badge, cells, h, keyed, setText, set, show, table } from "./dom.js";
import { count, moment, seconds } from "./format.js";
import { cancel } from "./actions.js";
import { mayOperate } from "./permissions.js";
import { state } from "./store.js";

const PHASES = ["fetching", "draining", "saving", "stopping", "starting", "loading", "restoring", "ready"];

const QUEUE = ["position", "model", "client", "host", "waited", "starts in", ...(mayOperate ? [""] : [])];
const QUEUE_WIDTHS = ["", "free"];
const PAST = ["when", "host", "from", "to", "result", "duration", "prompt tokens read", "phases"];
const PAST_WIDTHS = ["", "", "free", "free", "", "", "", "long"];

export function build(root) {
  const none = h("p", { class: "soft" }, "No switch in progress.");
  const running = h("div");
  const empty = h("p", { class: "soft" }, "No requests are waiting.");
  const queue = h("tbody");
  const queueTable = table("Queue", QUEUE, queue);
  const never = h("p", { class: "soft" }, "No switches yet.");
  const past = h("tbody");
  const pastTable = table("Recent switches", PAST, past);
  root.append(
    h("div", { class: "card" }, h("h3", {}, "In progress"), none, running),
    h("div", { class: "card" }, h("h3", {}, "Queue"), empty, queueTable),
    h("div", { class: "card" }, h("h3", {}, "Recent switches"), never, pastTable),
  );
  return {
    update() {
      const moving = inProgress();
      show(none, !moving.length);
      keyed(running, moving, (each) => `${each.backend} ${each.switch.id} ${each.switch.model}`, runningCard);
      const waiting = state.hosts.flatMap((host) => host.queue.map((each) => ({ ...each, backend: host.backend, seen: host.seen })));
      show(empty, !waiting.length);
      show(queueTable, waiting.length);
      keyed(queue, waiting, (each) => `${each.backend} ${each.id}`, queueRow);
      show(never, !state.switches.length);
      show(pastTable, state.switches.length);
      keyed(past, state.switches.slice(0, 100), (each) => `${each.backend} ${each.switch.id} ${each.at} ${Boolean(each.switch.first_answer)}`, pastRow);
    },
  };
}

/** Switches from events, and loads that began before the page was opened. */
function inProgress() {
  const found = [...state.running.values()];
  for (const host of state.hosts) {
    for (const status of host.host?.models ?? []) {
      if (status.state !== "starting" || found.some((each) => each.backend === host.backend && each.switch.model === status.model)) continue;
      found.push({
        backend: host.backend,
        seen: Date.now() / 1000,
        switch: { id: "", model: status.model, phase: "loading", from_models: [], percent: status.percent, eta_s: status.eta_s, elapsed_s: Date.now() / 1000 + state.skew - status.since, phase_seconds: {} },
      });
    }
  }
  return found;
}

function runningCard() {
  const title = h("h4");
  const where = h("p", { class: "soft small" });
  const bar = h("progress", { max: "100", "aria-label": "load progress" });
  const words = h("p", { class: "small" });
  const steps = PHASES.map((phase) => h("li", {}, phase));
  const node = h("div", {}, title, where, h("ol", { class: "phases" }, ...steps), bar, words);
  const update = ({ backend, switch: moved, seen }) => {
    setText(title, moved.from_models.length ? `${moved.from_models.join(", ")} → ${moved.model}` : moved.model);
    setText(where, `on ${backend}`);
    const at = PHASES.indexOf(moved.phase);
    steps.forEach((step, index) => {
      const duration = moved.phase_seconds?.[PHASES[index]];
      show(step, index === at || duration !== undefined || PHASES[index] === "ready");
      set(step, "data-state", index === at ? "current" : duration !== undefined ? "done" : "");
      set(step, "aria-current", index === at ? "step" : null);
      setText(step, duration === undefined ? PHASES[index] : `${PHASES[index]} ${seconds(duration)}`);
    });
    if (moved.percent === null || moved.percent === undefined) bar.removeAttribute("value");
    else bar.value = moved.percent;
    const since = Date.now() / 1000 - seen;
    const left = moved.eta_s === null || moved.eta_s === undefined ? "" : `, about ${seconds(Math.max(0, moved.eta_s - since))} left`;
    setText(words, `${seconds(moved.elapsed_s + since)} elapsed${left}`);
  };
  return { node, update };
}

/** How long a queued request will wait, if that is known. */
function wait(eta, since) {
  if (eta === null || eta === undefined) return "";
  return eta - since < 0.5 ? "a moment" : `about ${seconds(eta - since)}`;
}

function queueRow(first) {
  const fields = cells(QUEUE, Array(6).fill(""), QUEUE_WIDTHS);
  const stop = mayOperate && h("td", { role: "cell" }, h("button", { type: "button", class: "danger", "aria-label": `Cancel ${first.id}`, on: { click: (event) => cancel(first.id, event.currentTarget) } }, "Cancel"));
  const node = h("tr", { role: "row" }, ...fields, stop);
  const update = (each) => {
    const since = Date.now() / 1000 - each.seen;
    const values = [each.position, each.model, each.client, each.backend, seconds(each.waited_s + since), wait(each.eta_s, since)];
    values.forEach((value, index) => setText(fields[index], value));
  };
  return { node, update };
}

/** How much of the first answer's prompt was not in a restored conversation. */
function readAgain(answer) {
  return answer ? `${count(answer.prompt - answer.cached)} of ${count(answer.prompt)}` : "";
}

function pastRow({ at, backend, switch: moved }) {
  const failed = moved.phase === "failed";
  const phases = Object.entries(moved.phase_seconds ?? {}).filter(([, value]) => value >= 0.001).map(([phase, value]) => `${phase} ${seconds(value)}`);
  const row = [moment(at), backend, moved.from_models.join(", ") || "–", moved.model, badge(failed ? "failed" : "ready", failed ? "bad" : "good").node, seconds(moved.elapsed_s), readAgain(moved.first_answer), failed ? (moved.failure?.message ?? "") : phases.join(", ")];
  return { node: h("tr", { role: "row" }, ...cells(PAST, row, PAST_WIDTHS)) };
}
