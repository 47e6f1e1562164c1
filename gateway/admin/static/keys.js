// Keys: what each may use, and what it has used today. Only where keys are needed, and for operators.

import { cells, h, keyed, setText, show, table } from "./dom.js";
import { get } from "./api.js";
import { count, moment, money, plural } from "./format.js";

const COLUMNS = ["key", "scopes", "limits", "used today", "expires", "note"];
const WIDTHS = ["free", "free", "free", "free", "", "free"];
const REFRESH_MS = 5000;

export function build(root) {
  const hint = h("p", { class: "soft" }, "Keys are changed at a terminal: ", h("code", {}, "hostler keys add|set|revoke NAME"), ".");
  const problem = h("p", { class: "bad", role: "alert", hidden: "" });
  const rows = h("tbody");
  root.append(h("div", { class: "card" }, hint, problem, table("API keys", COLUMNS, rows)));
  let timer = null;

  async function refresh() {
    try {
      keyed(rows, await get("/admin/keys"), (each) => each.name, keyRow);
      show(problem, false);
    } catch (error) {
      setText(problem, error.message);
      show(problem, true);
    }
  }

  return {
    enter() {
      refresh();
      timer = setInterval(refresh, REFRESH_MS);
    },
    leave() {
      clearInterval(timer);
    },
  };
}

function keyRow() {
  const fields = cells(COLUMNS, Array(COLUMNS.length).fill(""), WIDTHS);
  const update = (key) => {
    const values = [key.shared ? `${key.name} (shared)` : key.name, key.scopes.join(", "), limits(key).join(", ") || "none", used(key), key.expires === null ? "never" : moment(key.expires), key.note || "–"];
    values.forEach((value, index) => setText(fields[index], value));
  };
  return { node: h("tr", { role: "row" }, ...fields), update };
}

function limits({ rules, local_only, priority }) {
  const words = [];
  if (rules.models) words.push(`models ${rules.models.join(" ")}`);
  if (rules.backends) words.push(`backends ${rules.backends.join(" ")}`);
  if (local_only) words.push("local only");
  if (priority) words.push(`priority ${priority}`);
  if (rules.requests_per_minute) words.push(`${count(rules.requests_per_minute)} requests/min`);
  if (rules.tokens_per_minute) words.push(`${count(rules.tokens_per_minute)} tokens/min`);
  if (rules.tokens_per_day) words.push(`${count(rules.tokens_per_day)} tokens/day`);
  if (rules.dollars_per_day !== undefined) words.push(`${money(rules.dollars_per_day)}/day`);
  return words;
}

function used({ used: today }) {
  return today === null ? "–" : `${plural(today.requests, "request")}, ${plural(today.tokens, "token")}, ${money(today.dollars)}`;
}
