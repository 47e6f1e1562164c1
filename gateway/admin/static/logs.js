// Logs of the gateway and of engines, live.

import { events, url } from "./api.js";
import { h, setText, set, show } from "./dom.js";
import { clock } from "./format.js";
import { state } from "./store.js";

const MAX_LINES = 2000;

export function build(root) {
  const source = h("select", { id: "log-source" });
  const filter = h("input", { id: "log-filter", type: "search", autocomplete: "off" });
  const level = h("select", { id: "log-level" }, h("option", { value: "" }, "all levels"), h("option", { value: "warning" }, "warnings and errors"), h("option", { value: "error" }, "errors"));
  const follow = h("input", { id: "log-follow", type: "checkbox", checked: true });
  const summary = h("p", { class: "soft small" });
  const lines = h("pre", { class: "lines", tabindex: "0", role: "log", "aria-live": "off", "aria-label": "Log lines" });
  root.append(
    h(
      "div",
      { class: "fields" },
      h("div", { class: "field" }, h("label", { for: "log-source" }, "Source"), source),
      h("div", { class: "field wide" }, h("label", { for: "log-filter" }, "Filter"), filter),
      h("div", { class: "field" }, h("label", { for: "log-level" }, "Level"), level),
      h("div", { class: "field line" }, follow, h("label", { for: "log-follow" }, "Follow")),
    ),
    summary,
    lines,
  );
  let abort = null;
  let kept = [];

  const options = () => {
    const engines = state.hosts.flatMap((host) => (host.host?.profiles ?? []).map((profile) => ({ backend: host.backend, model: profile.name })));
    const key = JSON.stringify(engines);
    if (key === source.dataset.key) return;
    source.dataset.key = key;
    const chosen = source.value;
    source.replaceChildren(
      h("option", { value: "{}" }, "gateway"),
      ...engines.map((each) => h("option", { value: JSON.stringify(each), selected: JSON.stringify(each) === chosen }, `${each.model} on ${each.backend}`)),
    );
  };

  const fits = (line) => {
    const words = filter.value.trim().toLowerCase();
    if (words && !line.text.toLowerCase().includes(words)) return false;
    const grave = ["error", "critical"].includes(line.level);
    return level.value === "" || grave || (level.value === "warning" && line.level === "warning");
  };

  const draw = (fresh) => {
    const shown = fresh.filter(fits).map((line) => h("div", { "data-level": line.level }, line.at && h("time", {}, clock(line.at)), line.logger ? `${line.logger}: ${line.text}` : line.text));
    lines.append(...shown);
    while (lines.childElementCount > MAX_LINES) lines.firstElementChild.remove();
    if (follow.checked) lines.scrollTop = lines.scrollHeight;
    setText(summary, `${lines.childElementCount} of ${kept.length} lines shown`);
  };

  const again = () => {
    lines.replaceChildren();
    draw(kept);
  };

  const read = async () => {
    stop();
    const mine = (abort = new AbortController());
    kept = [];
    again();
    const query = new URLSearchParams(JSON.parse(source.value || "{}"));
    try {
      const response = await fetch(url(`/admin/logs?${query}`), { signal: mine.signal, cache: "no-store" });
      if (!response.ok) throw new Error(`HTTP status ${response.status} from the gateway`);
      for await (const { event, data } of events(response.body)) {
        if (event !== "lines") continue;
        const fresh = JSON.parse(data).map((line) => ({ ...line, level: line.level || guess(line.text) }));
        kept = [...kept, ...fresh].slice(-MAX_LINES);
        draw(fresh);
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      setText(summary, `${error.message}; retrying`);
    }
    if (!mine.signal.aborted) setTimeout(() => abort === mine && read(), 2000);
  };

  const stop = () => {
    abort?.abort();
    abort = null;
  };

  source.addEventListener("change", read);
  filter.addEventListener("input", again);
  level.addEventListener("change", again);
  document.addEventListener("visibilitychange", () => {
    if (root.isConnected) document.hidden ? stop() : read();
  });
  return {
    update: options,
    enter() {
      options();
      read();
    },
    leave: stop,
  };
}

/** The level of an engine's line, guessed from its words. */
function guess(text) {
  if (/^(\S+\s+){0,3}E\b|error|fail|abort|panic/i.test(text)) return "error";
  if (/^(\S+\s+){0,3}W\b|warn/i.test(text)) return "warning";
  return "";
}
