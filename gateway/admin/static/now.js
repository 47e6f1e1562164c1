// Now: hosts and their models, and the actions of operators.

import { badge, facts, h, keyed, rich, setText, set, show } from "./dom.js";
import { bytes, count, moment, plural, seconds } from "./format.js";
import { drain, endLease, load, pin, unload } from "./actions.js";
import { mayOperate } from "./permissions.js";
import { now, state } from "./store.js";

const STATES = {
  stopped: ["not loaded", ""],
  sleeping: ["sleeping", ""],
  starting: ["loading", "warn"],
  ready: ["ready", "good"],
  stopping: ["stopping", "warn"],
  backoff: ["retrying soon", "bad"],
  failed: ["failed", "bad"],
};

const ELSEWHERE = { available: "good", unavailable: "bad" };

export function build(root) {
  const unsupervised = h("p", { class: "soft" }, "No supervised host is configured. Other backends are listed under Chain.");
  const unconfigured = h("p", { class: "soft" }, ...rich("No backend is configured. Add one under `backends` in the configuration file, or run `hostler up`."));
  const hosts = h("div");
  const elsewhere = h("ul", { class: "elsewhere" });
  const others = h(
    "section",
    { class: "card", "aria-labelledby": "elsewhere" },
    h("div", { class: "head" }, h("h3", { id: "elsewhere" }, "Other servers"), h("span", { class: "soft small" }, "models that no supervised host has")),
    elsewhere,
  );
  const far = h("ul", { class: "elsewhere" });
  const cluster = h(
    "section",
    { class: "card", "aria-labelledby": "far" },
    h("div", { class: "head" }, h("h3", { id: "far" }, "Hosts of other gateways"), h("span", { class: "soft small" }, "which this gateway does not use")),
    far,
  );
  root.append(unsupervised, unconfigured, hosts, others, cluster);
  return {
    update() {
      const empty = state.version && !state.hosts.length;
      show(unsupervised, empty && state.chain.hops.length);
      show(unconfigured, empty && !state.chain.hops.length);
      keyed(hosts, state.hosts, (host) => host.backend, hostCard);
      const known = state.models.filter((each) => each.state in ELSEWHERE);
      keyed(elsewhere, known, (each) => each.name, elsewhereRow);
      show(others, known.length);
      const used = state.cluster?.elsewhere ?? [];
      keyed(far, used, (each) => `${each.name} ${each.gateways.join(" ")}`, farRow);
      show(cluster, used.length);
    },
  };
}

/** A model without a supervised host: whether a backend can serve it now, and if not, why. */
function elsewhereRow({ name }) {
  const kind = badge();
  const why = h("p", { class: "small" });
  const node = h("li", {}, h("div", { class: "head" }, h("h4", {}, name), kind.node), why);
  const update = (card) => {
    kind.update(card.state, ELSEWHERE[card.state]);
    set(why, "class", `small ${card.state === "unavailable" ? "bad" : "soft"}`);
    setText(why, card.failure);
    show(why, card.failure);
  };
  return { node, update };
}

/** A host that only other gateways of the cluster use. */
function farRow({ name, gateways }) {
  const reach = badge();
  const words = h("p", { class: "small soft" });
  const node = h("li", {}, h("div", { class: "head" }, h("h4", {}, name), reach.node, h("span", { class: "soft small" }, `at ${gateways.join(", ")}`)), words);
  const update = (host) => {
    if (!host.reachable) reach.update("unreachable", "bad");
    else reach.update(host.draining ? "draining" : "reachable", host.draining ? "warn" : "good");
    const loaded = host.models.filter((each) => each.phase !== "cold").map((each) => `${each.model} ${each.phase}, ${each.running} of ${each.parallel} slots in use`);
    const requests = `${host.serving ? plural(host.serving, "request") : "no requests"} in progress, ${host.waiting || "none"} waiting`;
    setText(words, [requests, ...(loaded.length ? loaded : ["no model loaded"])].join(" · "));
  };
  return { node, update };
}

function hostCard(first) {
  const reach = badge();
  const rule = h("span", { class: "soft small" });
  const answers = h("a", { href: "./#flow" });
  const waiting = h("a", { href: "./#switching" });
  const load_ = h("span", { class: "soft small end" }, answers, " in progress, ", waiting, " waiting");
  const models = h("ul", { class: "models" });
  const devices = h("ul", { class: "devices" });
  const programs = h("ul", { class: "programs soft small" });
  const none = h("p", { class: "soft" }, ...rich("No models yet. Run `hostler profiles add FILE.gguf` on this host to add one, from a file or a URL."));
  const unreachable = h("p", { class: "bad" }, "The supervisor is unreachable. This is the last known state.");
  const draining = h("p", { class: "soft" }, "Out of service: it takes no new requests, and unloads its models after their last answers.");
  let current = first;
  const drains = h("button", { type: "button", class: "quiet", on: { click: () => drain(current.backend, !current.host?.draining, drains) } });
  const title = `host-${first.backend}`;
  const node = h(
    "section",
    { class: "card", "aria-labelledby": title },
    h("div", { class: "head" }, h("h3", { id: title }, first.backend), reach.node, rule, load_),
    unreachable,
    draining,
    mayOperate && h("div", { class: "actions" }, drains),
    devices,
    programs,
    none,
    models,
  );
  const update = (host) => {
    current = host;
    const drained = Boolean(host.host?.draining);
    if (host.reachable && drained) reach.update("draining", "warn");
    else reach.update(host.reachable ? "reachable" : "unreachable", host.reachable ? "good" : "bad");
    show(unreachable, !host.reachable);
    show(draining, host.reachable && drained);
    setText(drains, drained ? "Back into service" : "Drain");
    set(drains, "aria-label", drained ? `Take ${host.backend} back into service` : `Drain ${host.backend} for maintenance`);
    show(none, host.host && !host.host.profiles.length);
    const used = (host.host?.models ?? []).reduce((sum, each) => sum + each.memory_bytes + each.gpu_bytes, 0);
    const budget = host.host?.budget_bytes;
    setText(rule, host.host?.exclusive ? "one model at a time" : budget ? `${bytes(used)} of ${bytes(budget)} in use` : "several models at a time");
    setText(answers, host.serving ? plural(host.serving, "request") : "no requests");
    setText(waiting, host.waiting || "none");
    keyed(devices, host.host?.devices ?? [], (each) => each.name, deviceRow);
    show(devices, host.host?.devices?.length);
    keyed(programs, host.host?.programs ?? [], (each) => each.path, programRow);
    show(programs, host.host?.programs?.length);
    keyed(models, rowsOf(host), (row) => row.profile.name, modelRow);
  };
  return { node, update };
}

/** A llama-server: its build, the devices that it can use, and the options that it lacks. */
function programRow() {
  const node = h("li", {});
  const update = ({ path, build, devices, lacks }) => {
    setText(node, [
      `${path}${build ? ` ${build}` : ""}`,
      devices.length ? devices.join(", ") : "CPU only",
      ...(lacks.length ? [`lost with this version: ${lacks.join(", ")}`] : []),
    ].join(" · "));
  };
  return { node, update };
}

/** A GPU: what takes its memory, and how busy and warm it is. What its driver does not report is left out. */
function deviceRow({ name }) {
  const model = h("span", { class: "soft small" });
  const yields = badge("making room for other programs", "warn");
  const bar = h("meter", { min: "0", "aria-label": `memory of ${name}` });
  const details = facts({ memory: "Memory", others: "Other programs", models: "For models", busy: "Busy", warm: "Temperature", power: "Power" });
  const node = h("li", {}, h("div", { class: "head" }, h("h4", {}, name), model, yields.node), bar, details.node);
  const update = (device) => {
    setText(model, device.vendor ? device.model : "not found");
    show(yields.node, device.yielding);
    const known = device.used_bytes != null && device.total_bytes;
    show(bar, known);
    if (known) {
      set(bar, "max", device.total_bytes);
      set(bar, "value", device.used_bytes);
    }
    details.update({
      memory: known ? `${bytes(device.used_bytes)} of ${bytes(device.total_bytes)}` : device.total_bytes ? bytes(device.total_bytes) : "",
      others: known && device.other_bytes ? bytes(device.other_bytes) : "",
      models: device.capacity_bytes != null ? `at most ${bytes(device.capacity_bytes)}` : "",
      busy: device.utilization != null ? `${Math.round(device.utilization)} %` : "",
      warm: device.temperature_c != null ? `${Math.round(device.temperature_c)} °C` : "",
      power: device.power_w != null ? `${Math.round(device.power_w)} W` : "",
    });
  };
  return { node, update };
}

function rowsOf(host) {
  const statuses = new Map((host.host?.models ?? []).map((each) => [each.model, each]));
  const engines = new Map((host.engines ?? []).map((each) => [each.model, each]));
  const rows = (host.host?.profiles ?? []).map((profile) => ({
    host,
    profile,
    status: statuses.get(profile.name),
    engine: engines.get(profile.name),
  }));
  const rank = (row) => ["ready", "starting", "stopping"].indexOf(row.status?.state ?? "") + 1 || 9;
  return rows.sort((one, other) => rank(one) - rank(other) || one.profile.name.localeCompare(other.profile.name));
}

/** What survived the last switch, and of what use it was. */
function kept(conversations) {
  if (!conversations) return "";
  const { reason, slots, tokens, first_answer: answer } = conversations;
  const restored = slots ? `${plural(slots, "slot")} with ${count(tokens)} tokens restored` : "";
  const used = slots && answer ? `${count(answer.cached)} of ${count(answer.prompt)} prompt tokens of the first answer were in them` : "";
  return [restored, used, reason && (slots ? reason : `not kept: ${reason}`)].filter(Boolean).join("; ");
}

/** The lease of a model that ends last. */
const leaseOf = ({ host, profile }) => (host.host?.leases ?? []).filter((lease) => lease.model === profile.name).at(-1);

function modelRow({ profile: { name } }) {
  let row = null;
  const kind = badge();
  const active = badge("active", "good");
  const pinned = badge("pinned", "pin");
  const leased = badge("leased", "pin");
  const ends = h("button", { type: "button", class: "quiet", "aria-label": `End the lease of ${name}`, on: { click: () => endLease(leaseOf(row), ends) } }, "End lease");
  const also = h("p", { class: "soft small" });
  const details = facts({ memory: "Memory", context: "Context", slots: "Slots in use", waiting: "Waiting", idle: "Unloads", load: "Load time", kept: "Conversations" });
  const bar = h("progress", { max: "100", "aria-label": `loading ${name}` });
  const step = h("p", { class: "small soft" });
  const failure = h("p", { class: "bad small" });
  const loads = h("button", { type: "button", "aria-label": `Load ${name}`, on: { click: () => load(name, loads) } }, "Load");
  const what = h("button", { type: "button", class: "quiet", "aria-label": `Forecast loading ${name}`, on: { click: () => load(name, loads, { always: true }) } }, "Forecast");
  const unloads = h(
    "button",
    { type: "button", class: "quiet", "aria-label": `Unload ${name}`, on: { click: () => unload(name, row.engine?.running ?? 0, unloads) } },
    "Unload",
  );
  const pins = h("button", { type: "button", class: "quiet", on: { click: () => pin(name, row.host.backend, !row.profile.pinned, row.host.host?.exclusive, pins) } });
  const node = h(
    "li",
    {},
    h("div", { class: "head" }, h("h4", {}, name), kind.node, active.node, pinned.node, leased.node),
    also,
    bar,
    step,
    details.node,
    failure,
    mayOperate && h("div", { class: "actions" }, loads, unloads, what, pins, ends),
  );
  const update = (fresh) => {
    row = fresh;
    const { profile, status, engine } = row;
    const current = status?.sleeping ? "sleeping" : (status?.state ?? "stopped");
    const [word, colour] = STATES[current] ?? [current, ""];
    kind.update(engine?.draining ? "draining" : word, engine?.draining ? "warn" : colour);
    set(node, "data-state", current);
    show(active.node, state.active === name && current === "ready");
    const lease = leaseOf(row);
    show(pinned.node, profile.pinned);
    show(leased.node, lease);
    show(ends, lease);
    setText(pins, profile.pinned ? "Unpin" : "Pin");
    set(pins, "aria-label", `${profile.pinned ? "Unpin" : "Pin"} ${name}`);
    setText(also, [profile.aliases.length ? `also ${profile.aliases.join(", ")}` : "", profile.description].filter(Boolean).join(" · "));
    show(also, also.textContent);
    const loading = current === "starting";
    show(bar, loading);
    if (status?.percent === null || status?.percent === undefined) bar.removeAttribute("value");
    else bar.value = status.percent;
    const running = state.running.get(row.host.backend);
    const phase = running?.switch.model === name ? running.switch.phase : loading ? "starting" : "";
    const eta = status?.eta_s ?? running?.switch.eta_s;
    setText(step, phase && [phase, status?.percent != null && `${Math.round(status.percent)} %`, eta != null && `about ${seconds(eta)} left`].filter(Boolean).join(", "));
    show(step, phase);
    const memory = (status?.memory_bytes ?? 0) + (status?.gpu_bytes ?? 0);
    details.update({
      memory: memory ? bytes(memory) : profile.memory_bytes ? `expected: ${bytes(profile.memory_bytes)}` : "",
      context: profile.context ? count(profile.context) : "",
      slots: current === "ready" && engine ? `${engine.running} of ${engine.parallel}` : "",
      waiting: engine?.waiting || "",
      idle: current === "ready" ? (profile.pinned ? "never (pinned)" : lease ? `not before ${moment(lease.expires_at)} (leased to ${lease.holder})` : engine?.idle_until ? `in ${seconds(Math.max(0, engine.idle_until - now()))}` : "when memory is needed") : "",
      load: current === "stopped" && engine ? `about ${seconds(engine.load_s)}` : "",
      kept: kept(status?.conversations),
    });
    setText(failure, status?.failure?.message);
    show(failure, status?.failure);
    const up = ["ready", "starting"].includes(current);
    show(loads, !up);
    show(what, !up);
    show(unloads, up);
    const rivals = row.host.host?.exclusive && rowsOf(row.host).some((other) => other.status?.state === "ready");
    setText(loads, rivals ? "Switch" : "Load");
    set(loads, "aria-label", rivals ? `Switch to ${name}` : `Load ${name}`);
  };
  return { node, update };
}
