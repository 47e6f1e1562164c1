// The page around the sections: navigation, connection status, theme.

import { h, setText, set, show } from "./dom.js";
import { connect, state, watch } from "./store.js";
import * as overview from "./now.js";
import * as flow from "./flow.js";
import * as switching from "./switching.js";
import * as chain from "./chain.js";
import * as charts from "./charts.js";
import * as tryit from "./tryit.js";
import * as logs from "./logs.js";
import * as programs from "./connect.js";
import * as keys from "./keys.js";
import * as getting from "./get.js";
import { mayOperate } from "./permissions.js";

const SECTIONS = [
  ["now", "Now", overview],
  ["flow", "Flow", flow],
  ["switching", "Switching", switching],
  ["chain", "Chain", chain],
  ["charts", "Charts", charts],
  ["try", "Try it", tryit],
  ["logs", "Logs", logs],
  ["connect", "Connect", programs],
  ...(mayOperate ? [["get", "Get models", getting]] : []),
  ...("keys" in document.body.dataset ? [["keys", "Keys", keys]] : []),
];

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const status = document.getElementById("link");
const mistakes = h("p", { id: "config-errors", class: "bad", role: "alert", hidden: "" });
const links = new Map();
const views = new Map();
let current = null;

function build() {
  const list = h("ul");
  for (const [id, title] of SECTIONS) {
    // With "./", since axe takes a bare "#now" for a skip link once it is scrolled out of view.
    const anchor = h("a", { href: `./#${id}` }, title);
    links.set(id, anchor);
    list.append(h("li", {}, anchor));
  }
  list.addEventListener("focusin", ({ target }) => {
    // Browsers leave a link alone of which only an edge shows. What a pointer presses must not move, though.
    if (target.matches(":focus-visible")) center(target);
  });
  nav.append(list);
  main.before(mistakes);
  document.body.append(
    h("div", { class: "notifications" }, h("p", { id: "notice", role: "status" }), h("p", { id: "alert", role: "alert" })),
  );
}

/** Bring a section's link to the middle of the row, which is wider than a phone. */
function center(anchor) {
  const list = nav.firstChild;
  list.scrollLeft = anchor.offsetLeft - list.offsetLeft - (list.clientWidth - anchor.offsetWidth) / 2;
}

function go(focus) {
  const [id, title, section] = SECTIONS.find(([name]) => `#${name}` === location.hash) ?? SECTIONS[0];
  if (current === id) return;
  views.get(current)?.leave?.();
  current = id;
  for (const [name, anchor] of links) set(anchor, "aria-current", name === id ? "page" : null);
  center(links.get(id));
  if (!views.has(id)) {
    const root = h("section", { class: "view", "aria-labelledby": `title-${id}` });
    root.append(h("h2", { id: `title-${id}`, tabindex: "-1" }, title));
    views.set(id, { root, ...section.build(root) });
  }
  const view = views.get(id);
  main.replaceChildren(view.root);
  document.title = `${title} · Hostler`;
  view.enter?.();
  view.update?.();
  if (focus) document.getElementById(`title-${id}`).focus({ preventScroll: true });
  scrollTo(0, 0);
}

const LINKS = { live: "live", connecting: "connecting…", reconnecting: "connection lost, reconnecting…", paused: "paused" };

function update() {
  setText(status, LINKS[state.link]);
  set(status, "data-kind", state.link);
  const notices = [];
  const wrong = state.config_errors;
  if (wrong !== null) notices.push(`The configuration has mistakes. Its last good state is in use until they are corrected: ${wrong.mistakes.join(" · ")}`);
  const cluster = state.cluster;
  if (cluster !== null && !cluster.connected) notices.push(`The store of cluster ${cluster.name} is away (${cluster.reason}). Its gateways go on with local values, and show only their own requests until it is back.`);
  notices.push(...(cluster?.problems ?? []).map((each) => `Cluster: ${each}.`));
  show(mistakes, notices.length > 0);
  setText(mistakes, notices.join(" "));
  views.get(current)?.update?.();
}

const THEMES = ["auto", "light", "dark"];

function theme() {
  const button = document.getElementById("theme");
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("hostler-theme") ?? "auto";
  } catch {
    /* storage is not available */
  }
  const apply = () => {
    set(document.documentElement, "data-theme", chosen === "auto" ? null : chosen);
    setText(button, `Theme: ${chosen}`);
  };
  button.addEventListener("click", () => {
    chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    try {
      localStorage.setItem("hostler-theme", chosen);
    } catch {
      /* not kept over a reload */
    }
    apply();
  });
  apply();
  show(button, true);
}

build();
theme();
watch(update);
addEventListener("hashchange", () => go(true));
go(false);
connect();
