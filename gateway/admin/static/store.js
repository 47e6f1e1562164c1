// What is known of the gateway: a snapshot, then changes. Views are told at most a few times a second.

import { get, leave } from "./api.js";

const KEPT = 200;
const CHANGES_KEPT = 1000;
const PACE_MS = 200;

export const state = {
  link: "connecting",
  version: "",
  recording: false, // prompts and answers are kept
  active: null,
  default: null,
  models: [],
  hosts: [], // { backend, reachable, host, waiting, serving, queue, engines }
  in_flight: [],
  chain: { hops: [], cost: 0, limit: null },
  requests: [], // finished ones, the newest first
  switches: [], // finished ones, the newest first: { at, backend, switch }
  running: new Map(), // backend -> { backend, switch, seen }
  breakers: [], // changes, the newest first: { at, event }
  skew: 0, // what the gateway's clock is ahead of ours, in seconds
};

const listeners = new Set();
let due = null;
let drawn = 0;

/** Call `listener` whenever something has changed, and once a second for what counts down. */
export function watch(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export const now = () => Date.now() / 1000 + state.skew;

function changed() {
  if (due !== null) return;
  due = setTimeout(draw, Math.max(0, PACE_MS - (performance.now() - drawn)));
}

function draw() {
  clearTimeout(due);
  due = null;
  drawn = performance.now();
  for (const listener of listeners) listener();
}

const host = (backend) => state.hosts.find((each) => each.backend === backend);

const hear = {
  snapshot(value) {
    Object.assign(state, {
      version: value.version,
      recording: value.recording,
      active: value.active,
      default: value.default,
      models: value.models,
      hosts: value.hosts.map((each) => ({ ...each, seen: Date.now() / 1000 })),
      in_flight: value.in_flight,
      chain: value.chain,
      skew: value.at ? value.at - Date.now() / 1000 : 0,
    });
    state.running.clear();
    remember();
  },
  update(value) {
    state.active = value.active;
    state.in_flight = value.in_flight;
    state.chain = value.chain;
    for (const each of value.hosts) {
      const known = host(each.backend);
      if (known) Object.assign(known, { reachable: each.reachable, waiting: each.waiting, serving: each.serving, engines: each.engines });
    }
  },
  request(value) {
    state.in_flight = state.in_flight.filter((each) => each.id !== value.id);
    if (value.backend === null && value.outcome === "ok") return; // a probe
    state.requests.unshift(value);
    state.requests.length = Math.min(state.requests.length, KEPT);
  },
  host(value) {
    const known = host(value.backend);
    if (!known) return;
    known.reachable = value.reachable;
    if (value.host) known.host = value.host;
    refreshModels();
  },
  engine(value) {
    const known = host(value.backend);
    if (!known?.host) return;
    const others = known.host.models.filter((each) => each.model !== value.status.model);
    known.host.models = [...others, value.status];
  },
  switch(value) {
    const { backend } = value;
    if (["ready", "failed"].includes(value.switch.phase)) {
      state.running.delete(backend);
      state.switches.unshift({ at: now(), backend, switch: value.switch });
      state.switches.length = Math.min(state.switches.length, KEPT);
    } else state.running.set(backend, { backend, switch: value.switch, seen: Date.now() / 1000 });
  },
  queue(value) {
    const known = host(value.backend);
    if (known) Object.assign(known, { queue: value.waiting, waiting: value.waiting.length, serving: value.serving, seen: Date.now() / 1000 });
  },
  breaker(value) {
    state.breakers.unshift({ at: now(), event: value });
    state.breakers.length = Math.min(state.breakers.length, CHANGES_KEPT);
    refreshModels();
  },
};

let refreshing = null;

/** Profiles may have come or gone, or backends: which models there are, and which can be asked, is told by the status only. */
function refreshModels() {
  refreshing ??= setTimeout(async () => {
    refreshing = null;
    try {
      const status = await get("/admin/status");
      state.models = status.models;
      changed();
    } catch {
      /* the next snapshot tells */
    }
  }, 300);
}

/** What happened before the page was opened, or while it was not connected. */
async function remember() {
  try {
    const [requests, switches, breakers] = await Promise.all(
      ["requests", "switches", "breakers"].map((kind) => get(`/admin/history?kind=${kind}&limit=${kind === "breakers" ? CHANGES_KEPT : KEPT}`)),
    );
    const known = new Set(requests.map((each) => each.event.id));
    const fresh = state.requests.filter((each) => !known.has(each.id));
    state.requests = [...fresh, ...requests.map((each) => each.event)].slice(0, KEPT);
    state.switches = switches.map((each) => ({ at: each.at, backend: each.event.backend, switch: each.event.switch }));
    state.breakers = breakers.map((each) => ({ at: each.at, event: each.event }));
  } catch {
    /* the live view goes on without */
  }
  changed();
}

let source = null;
let retry = null;
let pause = 500;

function link(word) {
  state.link = word;
  changed();
}

/** Follow the gateway. A hidden page lets go: browsers allow six connections per address, for all tabs together. */
export function connect() {
  disconnect();
  source = new EventSource("/events");
  for (const [kind, run] of Object.entries(hear)) {
    source.addEventListener(kind, (event) => {
      run(JSON.parse(event.data));
      changed();
    });
  }
  source.addEventListener("open", () => {
    pause = 500;
    link("live");
  });
  source.addEventListener("error", async () => {
    link("reconnecting");
    disconnect();
    try {
      const answer = await fetch("/healthz", { cache: "no-store" });
      if (answer.ok && (await fetch("/readyz", { cache: "no-store" })).status === 401) leave();
    } catch {
      /* the gateway is away */
    }
    retry = setTimeout(connect, pause);
    pause = Math.min(pause * 2, 5000);
  });
}

function disconnect() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    disconnect();
    state.link = "paused";
  } else connect();
});
addEventListener("online", connect);
addEventListener("pagehide", disconnect);
setInterval(() => {
  if (!document.hidden) changed();
}, 1000);
