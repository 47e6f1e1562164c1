// The state of the gateway: a snapshot, then changes. Listeners are called at most a few times a second.

import { get, sessionExpired, url } from "./api.js";

const MAX_ENTRIES = 200;
const MAX_CHANGES = 1000;
const PACE_MS = 200;

export const state = {
  link: "connecting",
  version: "",
  recording: false, // prompts and answers are recorded
  cluster: null, // { name, store, connected, reason, since, gateways, hosts, elsewhere } of a gateway in a cluster
  config_errors: null, // { file, mistakes, since } while the configuration file has mistakes
  active: null,
  default: null,
  models: [],
  hosts: [], // { backend, reachable, host, waiting, serving, queue, engines }
  in_flight: [],
  chain: { hops: [], cost: 0, limit: null },
  requests: [], // finished ones, newest first
  switches: [], // finished ones, newest first: { at, backend, switch }
  running: new Map(), // backend -> { backend, switch, seen }
  breakers: [], // state changes, newest first: { at, event }
  skew: 0, // seconds the gateway's clock is ahead of the browser's
};

const listeners = new Set();
let due = null;
let drawn = 0;

/** Call `listener` on every change, and once a second for countdowns. */
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

/** Whether this gateway serves the request; in a cluster it may be another one. */
export const isOwn = (request) => !request.gateway || state.cluster === null || state.cluster.gateways.some((each) => each.own && each.name === request.gateway);

const host = (backend) => state.hosts.find((each) => each.backend === backend);

const handlers = {
  snapshot(value) {
    Object.assign(state, {
      version: value.version,
      recording: value.recording,
      config_errors: value.config_errors,
      cluster: value.cluster,
      active: value.active,
      default: value.default,
      models: value.models,
      hosts: value.hosts.map((each) => ({ ...each, seen: Date.now() / 1000 })),
      in_flight: value.in_flight,
      chain: value.chain,
      skew: value.at ? value.at - Date.now() / 1000 : 0,
    });
    state.running.clear();
    loadHistory();
  },
  update(value) {
    state.active = value.active;
    state.config_errors = value.config_errors;
    state.cluster = value.cluster;
    state.in_flight = value.in_flight;
    state.chain = value.chain;
    for (const each of value.hosts) {
      const known = host(each.backend);
      if (known) Object.assign(known, { reachable: each.reachable, waiting: each.waiting, serving: each.serving, engines: each.engines });
    }
  },
  request(value) {
    state.in_flight = state.in_flight.filter((each) => each.id !== value.id);
    if (value.backend === null && value.outcome === "ok") return; // a model list or health check
    state.requests.unshift(value);
    state.requests.length = Math.min(state.requests.length, MAX_ENTRIES);
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
  devices(value) {
    const known = host(value.backend);
    if (known?.host) known.host.devices = value.devices;
  },
  switch(value) {
    const { backend } = value;
    const known = state.switches.find((each) => isSameSwitch(each, value));
    // Sent again with the first answer: by now another switch may be in progress.
    if (known) known.switch = value.switch;
    else if (["ready", "failed"].includes(value.switch.phase)) {
      state.running.delete(backend);
      state.switches.unshift({ at: now(), backend, switch: value.switch });
      state.switches.length = Math.min(state.switches.length, MAX_ENTRIES);
    } else state.running.set(backend, { backend, switch: value.switch, seen: Date.now() / 1000 });
  },
  queue(value) {
    const known = host(value.backend);
    if (known) Object.assign(known, { queue: value.waiting, waiting: value.waiting.length, serving: value.serving, seen: Date.now() / 1000 });
  },
  breaker(value) {
    state.breakers.unshift({ at: now(), event: value });
    state.breakers.length = Math.min(state.breakers.length, MAX_CHANGES);
    refreshModels();
  },
};

let refreshing = null;

/** Models and their availability are part of the status only: fetch it after a change of hosts or circuit breakers. */
function refreshModels() {
  refreshing ??= setTimeout(async () => {
    refreshing = null;
    try {
      const status = await get("/admin/status");
      state.models = status.models;
      changed();
    } catch {
      /* the next snapshot has it */
    }
  }, 300);
}

/** Events from before the page was opened, or while it was disconnected. */
async function loadHistory() {
  const since = now() - 1;
  try {
    const [requests, switches, breakers] = await Promise.all(
      ["requests", "switches", "breakers"].map((kind) => get(`/admin/history?kind=${kind}&limit=${kind === "breakers" ? MAX_CHANGES : MAX_ENTRIES}`)),
    );
    const known = new Set(requests.map((each) => each.event.id));
    const fresh = state.requests.filter((each) => !known.has(each.id));
    // Those of other gateways of a cluster become known later.
    const past = requests.map((each) => each.event).sort((one, other) => other.at - one.at);
    state.requests = [...fresh, ...past].slice(0, MAX_ENTRIES);
    const ended = switches.map((each) => ({ at: each.at, backend: each.event.backend, switch: each.event.switch }));
    state.switches = withNewer(ended, state.switches, since, isSameSwitch);
    state.breakers = withNewer(breakers.map((each) => ({ at: each.at, event: each.event })), state.breakers, since, isSameChange);
  } catch {
    /* the live view works without it */
  }
  changed();
}

/** The events that arrived while the others were being loaded, then the loaded ones that are not among them. */
function withNewer(loaded, live, since, isSame) {
  const fresh = live.filter((entry) => entry.at >= since);
  return [...fresh, ...loaded.filter((entry) => !fresh.some((each) => isSame(each, entry)))];
}

const isSameSwitch = (one, other) => one.backend === other.backend && one.switch.id === other.switch.id;

/** The browser and the gateway note the time of a circuit breaker's change separately. */
const isSameChange = (one, other) => Math.abs(one.at - other.at) < 10 && JSON.stringify(one.event) === JSON.stringify(other.event);

let source = null;
let retry = null;
let pause = 500;

function link(word) {
  state.link = word;
  changed();
}

/** Subscribe to the gateway. A hidden page disconnects: browsers allow six connections per address for all tabs. */
export function connect() {
  disconnect();
  source = new EventSource(url("/events"));
  for (const [kind, handle] of Object.entries(handlers)) {
    source.addEventListener(kind, (event) => {
      handle(JSON.parse(event.data));
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
      const response = await fetch(url("/healthz"), { cache: "no-store" });
      if (response.ok && (await fetch(url("/readyz"), { cache: "no-store" })).status === 401) sessionExpired();
    } catch {
      /* the gateway is unreachable */
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
